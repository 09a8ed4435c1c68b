/*-------------------------------------------------------------------------
 *
 * window.c
 *		Reads the committed events between two snapshots.
 *
 * The next events are visible in a newer snapshot and not in the last one:
 *
 *		(xid >= xmax(last) OR xid = ANY (xip(last)))
 *		AND xid < xmax(new) AND pg_visible_in_snapshot(xid, new)
 *
 * Late commits, rollbacks, savepoints (a row carries its top-level xid) and
 * prepared transactions come out right by construction.  The rows of such a
 * window never change, so it can be read in pieces, each in a transaction of
 * its own, and read again after a crash.  ranges.c works out which xids these
 * are.
 *
 * The segments' indexes are read directly.  A plan would depend on statistics,
 * which are never right for a table that is filled and truncated.  Here the
 * cost follows what is read.  Each range is scanned in the segments' indexes
 * and merged by (xid, id).
 *
 * Called by the worker (to send, and to count what is pending) and by what a
 * person calls (flush, status, DROP EXTENSION).  The caller has a transaction
 * and an active snapshot.  The locks are AccessShareLock on each segment and
 * its index.  They are released at once, so that a TRUNCATE of a segment is
 * not kept waiting. onside_window_last_id() alone waits for no lock.
 *
 * Before an event is handed out, the WAL of its commit is flushed (durable.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#include "compat.h"
#include "log/durable.h"
#include "log/outbox.h"
#include "log/ranges.h"
#include "log/shape.h"
#include "log/tables.h"
#include "log/window.h"

/* A segment, opened, and the scan of the present range. */
typedef struct Source
{
	Relation	rel;
	Relation	index;
	IndexScanDesc scan;
	TupleTableSlot *slot;
	bool		backward;		/* the last row of a range comes first */
	bool		has_row;
	OnsidePosition pos;			/* of the row in slot */
} Source;

static void
open_source(Source *source, Relation rel, bool backward)
{
	(void) onside_shape_require(rel, true);
	source->rel = rel;
	source->index = index_open(onside_shape_index(rel), AccessShareLock);
	source->slot = table_slot_create(rel, NULL);
	source->scan = onside_index_beginscan(rel, source->index,
										  onside_reading_snapshot(), 2);
	source->backward = backward;
	source->has_row = false;
}

static void
close_source(Source *source)
{
	index_endscan(source->scan);
	ExecDropSingleTupleTableSlot(source->slot);
	index_close(source->index, AccessShareLock);
}

/* Goes to the scan's next row, or, backward, to the one before it. */
static void
advance_source(Source *source)
{
	TupleTableSlot *slot = source->slot;
	bool		isnull;

	source->has_row = index_getnext_slot(source->scan, source->backward ?
										 BackwardScanDirection :
										 ForwardScanDirection, slot);
	if (!source->has_row)
		return;
	source->pos.xid =
		DatumGetFullTransactionId(slot_getattr(slot, Anum_outbox_xid,
											   &isnull));
	source->pos.id = DatumGetInt64(slot_getattr(slot, Anum_outbox_id,
												&isnull));
}

/*
 * Scans a range, and stands at its first (or last) row.  A single transaction
 * is read from an id on, several are read as a whole.
 */
static void
start_range(Source *source, const OnsideRange *range)
{
	ScanKeyData keys[2];

	if (FullTransactionIdEquals(range->first, range->last))
	{
		ScanKeyInit(&keys[0], Anum_outbox_index_xid, BTEqualStrategyNumber,
					F_XID8EQ, FullTransactionIdGetDatum(range->first));
		ScanKeyInit(&keys[1], Anum_outbox_index_id, BTGreaterStrategyNumber,
					F_INT8GT, Int64GetDatum(range->after_id));
	}
	else
	{
		ScanKeyInit(&keys[0], Anum_outbox_index_xid,
					BTGreaterEqualStrategyNumber, F_XID8GE,
					FullTransactionIdGetDatum(range->first));
		ScanKeyInit(&keys[1], Anum_outbox_index_xid,
					BTLessEqualStrategyNumber, F_XID8LE,
					FullTransactionIdGetDatum(range->last));
	}
	index_rescan(source->scan, keys, 2, NULL, 0);
	advance_source(source);
}

/* The source whose row comes first (or last, going backward), or NULL. */
static Source *
first_source(Source *sources, int n)
{
	Source	   *first = NULL;

	for (int i = 0; i < n; i++)
	{
		int			order;

		if (!sources[i].has_row)
			continue;
		order = first == NULL ? -1 :
			onside_compare_positions(&sources[i].pos, &first->pos);
		if (first == NULL || (first->backward ? order > 0 : order < 0))
			first = &sources[i];
	}
	return first;
}

/*
 * Hands out a range's events, and moves the cursor (if not NULL) past each.
 * Returns false if the callback stopped.
 */
static bool
read_range(Source *sources, int n, const OnsideRange *range,
		   OnsideCursor *cursor,
		   OnsideReadCallback callback, void *arg)
{
	Source	   *source;

	for (int i = 0; i < n; i++)
		start_range(&sources[i], range);

	while ((source = first_source(sources, n)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		onside_flush_commit(source->pos.xid);
		if (!callback(source->slot, &source->pos, arg))
			return false;
		if (cursor != NULL)
			cursor->pos = source->pos;
		advance_source(source);
	}
	return true;
}

/* Opens the segments that have anything; how many? */
static int
open_sources(Source *sources, bool backward)
{
	int			n = 0;

	for (int segment = 1; segment <= ONSIDE_SEGMENTS; segment++)
	{
		Relation	rel = table_open(onside_segment_oid(segment),
									 AccessShareLock);

		if (RelationGetNumberOfBlocks(rel) > 0)
			open_source(&sources[n++], rel, backward);
		else
			table_close(rel, AccessShareLock);
	}
	return n;
}

static void
close_sources(Source *sources, int n)
{
	for (int i = 0; i < n; i++)
	{
		close_source(&sources[i]);
		table_close(sources[i].rel, AccessShareLock);
	}
}

/*
 * Reads the cursor's window, or what is left of it, range by range.  The
 * cursor is moved with each event that the callback has taken.
 */
bool
onside_window_read(OnsideCursor *cursor, OnsideReadCallback callback,
				   void *arg)
{
	Source		sources[ONSIDE_SEGMENTS];
	int			n;
	OnsideRanges ranges;
	bool		finished = true;

	if (cursor->window == NULL)
	{
		cursor->window = onside_snapshot_take();
		memset(&cursor->pos, 0, sizeof(cursor->pos));
	}

	n = open_sources(sources, false);
	onside_ranges_to_read(cursor, &ranges);
	for (int i = 0; n > 0 && finished && i < ranges.n; i++)
		finished = read_range(sources, n, &ranges.range[i], cursor,
							  callback, arg);
	close_sources(sources, n);
	if (finished)
		onside_cursor_end_window(cursor);
	return finished;
}

/* Goes through the ranges, and each range, from its end. */
void
onside_window_read_newest(const OnsideCursor *cursor,
						  OnsideReadCallback callback, void *arg)
{
	OnsideSnapshot *now = onside_snapshot_take();
	Source		sources[ONSIDE_SEGMENTS];
	int			n = open_sources(sources, true);
	OnsideRanges ranges;

	onside_ranges_pending(cursor, now, &ranges);
	qsort(ranges.range, ranges.n, sizeof(OnsideRange), onside_compare_ranges);
	for (int i = ranges.n - 1; n > 0 && i >= 0; i--)
		if (!read_range(sources, n, &ranges.range[i], NULL, callback, arg))
			break;
	close_sources(sources, n);
	pfree(ranges.range);
	onside_snapshot_release(now);
}

/* What of a segment the ranges hold; stops at "max" events. */
static void
count_in_segment(Relation rel, const OnsideRanges *ranges, int64 max,
				 OnsidePending *pending)
{
	Source		source;

	if (RelationGetNumberOfBlocks(rel) == 0)
		return;
	open_source(&source, rel, false);
	for (int i = 0; pending->events < max && i < ranges->n; i++)
		for (start_range(&source, &ranges->range[i]);
			 pending->events < max && source.has_row; advance_source(&source))
		{
			TimestampTz recorded_at = onside_outbox_recorded_at(source.slot);

			CHECK_FOR_INTERRUPTS();
			if (pending->events++ == 0 || recorded_at < pending->oldest)
				pending->oldest = recorded_at;
		}
	close_source(&source);
}

/*
 * What the caller's own transaction has recorded is in no snapshot, and has a
 * range of its own.
 */
OnsidePending
onside_window_pending(const OnsideCursor *cursor, const OnsideSnapshot *seen,
					  int64 max)
{
	OnsidePending pending = {0};
	OnsideSnapshot *now = NULL;
	FullTransactionId own = GetTopFullTransactionIdIfAny();
	OnsideRanges ranges;

	if (seen == NULL)
		seen = now = onside_snapshot_take();
	onside_ranges_pending(cursor, seen, &ranges);
	if (now != NULL && FullTransactionIdIsValid(own))
		onside_ranges_add(&ranges, own, own, 0);
	for (int segment = 1; segment <= ONSIDE_SEGMENTS; segment++)
	{
		Relation	rel = table_open(onside_segment_oid(segment),
									 AccessShareLock);

		count_in_segment(rel, &ranges, max, &pending);
		table_close(rel, AccessShareLock);
	}
	onside_snapshot_release(now);
	pfree(ranges.range);
	return pending;
}

/*
 * Looks at rows that we see, and not at the index's last entry, which can be
 * of a transaction that was rolled back.
 */
FullTransactionId
onside_window_last_xid(Relation segment)
{
	FullTransactionId xid = InvalidFullTransactionId;
	OnsideSnapshot *now;
	OnsideRanges ranges;
	Source		source;

	if (RelationGetNumberOfBlocks(segment) == 0)
		return xid;
	now = onside_snapshot_take();
	onside_ranges_all(now, &ranges);

	/* The last range first, and in it the last row. */
	open_source(&source, segment, true);
	for (int i = ranges.n - 1; !source.has_row && i >= 0; i--)
		start_range(&source, &ranges.range[i]);
	if (source.has_row)
		xid = source.pos.xid;
	close_source(&source);
	onside_snapshot_release(now);
	pfree(ranges.range);
	return xid;
}

/* Stops at the first event that it finds. */
bool
onside_window_holds_pending(Relation segment, const OnsideCursor *cursor)
{
	OnsidePending pending = {0};
	OnsideSnapshot *now = onside_snapshot_take();
	OnsideRanges ranges;

	onside_ranges_pending(cursor, now, &ranges);

	/*
	 * A row that we see has been committed, even if its xid is from beyond
	 * this server's transactions.  The segment must not be emptied of such
	 * rows.
	 */
	onside_ranges_add_beyond(&ranges, now);
	count_in_segment(segment, &ranges, 1, &pending);
	onside_snapshot_release(now);
	pfree(ranges.range);
	return pending.events > 0;
}

/*
 * For a hook that runs in somebody's COMMIT PREPARED, which must not wait or
 * fail for our sake: a segment that is locked or damaged is passed over.
 */
int64
onside_window_last_id(FullTransactionId xid)
{
	int64		last = 0;

	for (int segment = 1; segment <= ONSIDE_SEGMENTS; segment++)
	{
		char	   *name = psprintf("outbox_%d", segment);
		Oid			relid = onside_relation_oid(name);
		Oid			index;
		Relation	rel;
		OnsideRange range = {xid, xid, 0};
		Source		source;

		if (!OidIsValid(relid) ||
			!ConditionalLockRelationOid(relid, AccessShareLock))
			continue;
		rel = table_open(relid, NoLock);
		index = onside_shape_find_index(rel, psprintf("%s_xid_id_idx", name));
		if (OidIsValid(index) &&
			ConditionalLockRelationOid(index, AccessShareLock))
		{
			open_source(&source, rel, true);
			start_range(&source, &range);
			if (source.has_row)
				last = Max(last, source.pos.id);
			close_source(&source);
			UnlockRelationOid(index, AccessShareLock);
		}
		table_close(rel, AccessShareLock);
	}
	return last;
}

/*
 * Each place is looked up in all segments: a position does not say which it is
 * in.
 */
void
onside_window_fetch(const OnsidePosition *positions, int n,
					OnsideReadCallback callback, void *arg)
{
	Source		sources[ONSIDE_SEGMENTS];
	int			nsources = open_sources(sources, false);

	for (int i = 0; i < n; i++)
	{
		const OnsidePosition *pos = &positions[i];
		OnsideRange range = {pos->xid, pos->xid, pos->id - 1};

		CHECK_FOR_INTERRUPTS();
		for (int s = 0; s < nsources; s++)
		{
			start_range(&sources[s], &range);
			if (sources[s].has_row && sources[s].pos.id == pos->id)
			{
				(void) callback(sources[s].slot, pos, arg);
				break;
			}
		}
	}
	close_sources(sources, nsources);
}
