/*-------------------------------------------------------------------------
 *
 * window.c
 *		Reads the committed events between two snapshots.
 *
 * The next events to read are visible in a newer snapshot and not in the last
 * one:
 *
 *		(xid >= xmax(last) OR xid = ANY (xip(last)))
 *		AND xid < xmax(new) AND pg_visible_in_snapshot(xid, new)
 *
 * Late commits, rollbacks, savepoints (a row carries its top-level xid) and
 * prepared transactions need no code of their own: the condition is right for
 * all of them.  The rows of such a window never change.  So a window can be
 * read in pieces, each in a transaction of its own, and can be read again after
 * a crash.  ranges.c works out which xids meet the condition.
 *
 * We read the segments' indexes directly.  A plan would depend on statistics,
 * which are never right for a table that is filled and emptied all the time.
 * Here the cost depends only on what is read.  Each range of xids is scanned in
 * each segment's index, and the scans are merged by (xid, id).
 *
 * The worker calls this file to send, and to count what is pending.  So do
 * functions and commands that a person calls: flush(), status, DROP EXTENSION.
 * The caller has a transaction and an active snapshot.  The locks are
 * AccessShareLock on each segment and its index.  They are released before the
 * function returns, so that nobody who empties a segment waits for the end of
 * the caller's transaction.  onside_window_last_id() alone does not wait for
 * these locks.
 *
 * Before an event is handed out, the WAL of its commit is flushed (durable.c).
 * A segment that lacks its index, or whose columns were altered, is an error.
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

/* An open segment, with its scan of the present range. */
typedef struct Source
{
	Relation	rel;
	Relation	index;
	IndexScanDesc scan;
	TupleTableSlot *slot;
	bool		backward;		/* reads the last row of a range first */
	bool		has_row;
	OnsidePosition pos;			/* of the row in slot */
} Source;

/* Opens the index of a segment that is open, and prepares a scan. */
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

/* Closes all but the segment itself. */
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

	/* Rows that the snapshot does not see are skipped here. */
	source->has_row = index_getnext_slot(source->scan, source->backward ?
										 BackwardScanDirection :
										 ForwardScanDirection, slot);
	if (!source->has_row)
		return;

	/* The columns of a segment that we rely on are NOT NULL. */
	source->pos.xid =
		DatumGetFullTransactionId(slot_getattr(slot, Anum_outbox_xid,
											   &isnull));
	source->pos.id = DatumGetInt64(slot_getattr(slot, Anum_outbox_id,
												&isnull));
}

/*
 * Starts the scan of a range, and goes to its first row (or, backward, to its
 * last row).  A range of one transaction begins behind after_id.  A range of
 * several transactions is read as a whole.
 */
static void
start_range(Source *source, const OnsideRange *range)
{
	ScanKeyData keys[2];

	if (FullTransactionIdEquals(range->first, range->last))
	{
		/* One transaction: (xid = first AND id > after_id). */
		ScanKeyInit(&keys[0], Anum_outbox_index_xid, BTEqualStrategyNumber,
					F_XID8EQ, FullTransactionIdGetDatum(range->first));
		ScanKeyInit(&keys[1], Anum_outbox_index_id, BTGreaterStrategyNumber,
					F_INT8GT, Int64GetDatum(range->after_id));
	}
	else
	{
		/* Several: (xid >= first AND xid <= last). */
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

		/* This source has no row left in the range. */
		if (!sources[i].has_row)
			continue;

		/* Compare the place of its row with the best one so far. */
		order = first == NULL ? -1 :
			onside_compare_positions(&sources[i].pos, &first->pos);
		if (first == NULL || (first->backward ? order > 0 : order < 0))
			first = &sources[i];
	}
	return first;
}

/*
 * Merges the sources' rows of a range.  Hands out each event, and moves the
 * cursor (if not NULL) past the event.  Returns false if the callback stopped.
 */
static bool
read_range(Source *sources, int n, const OnsideRange *range,
		   OnsideCursor *cursor,
		   OnsideReadCallback callback, void *arg)
{
	Source	   *source;

	/* Each source stands at its first row of the range. */
	for (int i = 0; i < n; i++)
		start_range(&sources[i], range);

	while ((source = first_source(sources, n)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();

		/* Nothing is handed out that a crash could take back. */
		onside_flush_commit(source->pos.xid);
		if (!callback(source->slot, &source->pos, arg))
			return false;
		if (cursor != NULL)
			cursor->pos = source->pos;

		/* Only the source whose row was taken goes on. */
		advance_source(source);
	}
	return true;
}

/* Opens the segments that hold rows, and returns their number. */
static int
open_sources(Source *sources, bool backward)
{
	int			n = 0;

	for (int segment = 1; segment <= ONSIDE_SEGMENTS; segment++)
	{
		Relation	rel = table_open(onside_segment_oid(segment),
									 AccessShareLock);

		/* A segment without pages needs no scan. */
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

	/* Open a window that ends at the active snapshot. */
	if (cursor->window == NULL)
	{
		cursor->window = onside_snapshot_take();
		memset(&cursor->pos, 0, sizeof(cursor->pos));
	}

	/* Read the ranges in ascending order. */
	n = open_sources(sources, false);
	onside_ranges_pending(cursor, cursor->window, &ranges);
	for (int i = 0; n > 0 && finished && i < ranges.n; i++)
		finished = read_range(sources, n, &ranges.range[i], cursor,
							  callback, arg);
	close_sources(sources, n);

	/* All that the window shows is done now. */
	if (finished)
		onside_cursor_end_window(cursor);
	return finished;
}

/* Reads the last range first, and each range from its end. */
void
onside_window_read_newest(const OnsideCursor *cursor,
						  OnsideReadCallback callback, void *arg)
{
	OnsideSnapshot *now = onside_snapshot_take();
	Source		sources[ONSIDE_SEGMENTS];
	int			n = open_sources(sources, true);
	OnsideRanges ranges;

	onside_ranges_pending(cursor, now, &ranges);
	for (int i = ranges.n - 1; n > 0 && i >= 0; i--)
		if (!read_range(sources, n, &ranges.range[i], NULL, callback, arg))
			break;
	close_sources(sources, n);
	pfree(ranges.range);
	onside_snapshot_release(now);
}

/* Adds the events that a segment has in these ranges; stops at "max". */
static void
count_in_segment(Relation rel, const OnsideRanges *ranges, int64 max,
				 OnsidePending *pending)
{
	Source		source;

	/* Do not even open the index of an empty segment. */
	if (RelationGetNumberOfBlocks(rel) == 0)
		return;
	open_source(&source, rel, false);
	for (int i = 0; pending->events < max && i < ranges->n; i++)
		for (start_range(&source, &ranges->range[i]);
			 pending->events < max && source.has_row; advance_source(&source))
		{
			TimestampTz recorded_at = onside_outbox_recorded_at(source.slot);

			CHECK_FOR_INTERRUPTS();

			/* The order is by xid, so the oldest event can come anywhere. */
			if (pending->events++ == 0 || recorded_at < pending->oldest)
				pending->oldest = recorded_at;
		}
	close_source(&source);
}

/*
 * Counts segment by segment.  No snapshot shows what the caller's own
 * transaction has recorded, so that gets a range of its own.
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

	/* The active snapshot sees the own events, too. */
	if (now != NULL && FullTransactionIdIsValid(own))
		onside_ranges_add(&ranges, own, own, 0);

	/* Lock one segment at a time, for as long as it is read. */
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
 * Looks for the last row that we see.  The last entry of the index does not do:
 * its transaction may have been rolled back.
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

	/* Read the last range first, and its last row. */
	open_source(&source, segment, true);
	for (int i = ranges.n - 1; !source.has_row && i >= 0; i--)
		start_range(&source, &ranges.range[i]);

	/* Ranges of transactions that have recorded nothing here have no row. */
	if (source.has_row)
		xid = source.pos.xid;
	close_source(&source);
	onside_snapshot_release(now);
	pfree(ranges.range);
	return xid;
}

/* Stops at the first pending event. */
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
 * Serves a hook in somebody's COMMIT PREPARED, which must not wait for our
 * sake.  So a segment is passed over if it or its index is locked, and also if
 * the index is missing.
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

		/* Lock the segment and its index if both are free at once. */
		if (!OidIsValid(relid) ||
			!ConditionalLockRelationOid(relid, AccessShareLock))
			continue;
		rel = table_open(relid, NoLock);
		index = onside_shape_find_index(rel, psprintf("%s_xid_id_idx", name));
		if (OidIsValid(index) &&
			ConditionalLockRelationOid(index, AccessShareLock))
		{
			/* The id of the last row that the transaction has here. */
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
 * Looks each place up in one segment after another, since a position does not
 * say in which segment the event is.
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

		/* A range from this id on, which begins with the event. */
		CHECK_FOR_INTERRUPTS();
		for (int s = 0; s < nsources; s++)
		{
			start_range(&sources[s], &range);

			/* The first row behind id - 1 is the event, if it still exists. */
			if (sources[s].has_row && sources[s].pos.id == pos->id)
			{
				(void) callback(sources[s].slot, pos, arg);
				break;
			}
		}
	}
	close_sources(sources, nsources);
}
