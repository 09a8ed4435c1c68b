/*-------------------------------------------------------------------------
 *
 * window.c
 *		The committed events between two snapshots, and the cursor.
 *
 * A transaction's events become visible all at once and in no order of xid: a
 * long one commits after younger ones.  So progress cannot be a number.  It is
 * a snapshot: the next events are those visible in a newer snapshot and not in
 * the last one, which is
 *
 *		(xid >= xmax(last) OR xid = ANY (xip(last)))
 *		AND xid < xmax(new) AND pg_visible_in_snapshot(xid, new)
 *
 * Late commits, rollbacks, savepoints (a row carries its top-level xid) and
 * prepared transactions come out right by construction.  The rows of such a
 * window never change, so it can be read in pieces, each in a transaction of
 * its own, and read again after a crash.
 *
 * Reading goes to the segments' indexes directly.  A plan would depend on
 * statistics, of which a table that is filled and truncated has none that are
 * right; here the cost follows what is read.  For each xid that was still open
 * in the last snapshot and is not in the new one there is one probe, and one
 * range for all later ones, merged over the segments by (xid, id).
 *
 * Before an event is handed out, the WAL of its commit is flushed: with
 * synchronous_commit = off a transaction is visible before it is durable, and
 * a purchase that a crash takes back must not have been reported.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lwlock.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#include "compat.h"
#include "outbox.h"
#include "shmem.h"
#include "window.h"

/* ----------
 * Snapshots
 * ----------
 */

/* Where snapshots live; NULL for the current context. */
static MemoryContext snapshot_context;

void
onside_snapshots_live_in(MemoryContext context)
{
	snapshot_context = context;
}

static OnsideSnapshot *
make_snapshot(FullTransactionId xmin, FullTransactionId xmax, uint32 nxip)
{
	OnsideSnapshot *snapshot;

	snapshot = MemoryContextAlloc(snapshot_context != NULL ?
								  snapshot_context : CurrentMemoryContext,
								  offsetof(OnsideSnapshot, xip) +
								  nxip * sizeof(FullTransactionId));
	snapshot->refcount = 1;
	snapshot->xmin = xmin;
	snapshot->xmax = xmax;
	snapshot->nxip = nxip;
	return snapshot;
}

static OnsideSnapshot *
hold(OnsideSnapshot *snapshot)
{
	if (snapshot != NULL)
		snapshot->refcount++;
	return snapshot;
}

void
onside_snapshot_release(OnsideSnapshot *snapshot)
{
	if (snapshot != NULL && --snapshot->refcount == 0)
		pfree(snapshot);
}

static int
compare_xids(const void *a, const void *b)
{
	FullTransactionId x = *(const FullTransactionId *) a;
	FullTransactionId y = *(const FullTransactionId *) b;

	if (FullTransactionIdPrecedes(x, y))
		return -1;
	return FullTransactionIdPrecedes(y, x) ? 1 : 0;
}

/* An xid of a live snapshot is at most 2^31 behind the next one. */
static FullTransactionId
widen(TransactionId xid, FullTransactionId next)
{
	uint32		epoch = EpochFromFullTransactionId(next);

	if (xid > XidFromFullTransactionId(next))
		epoch--;
	return FullTransactionIdFromEpochAndXid(epoch, xid);
}

OnsideSnapshot *
onside_snapshot_take(void)
{
	Snapshot	active = GetActiveSnapshot();
	FullTransactionId next = ReadNextFullTransactionId();
	FullTransactionId own = GetTopFullTransactionIdIfAny();
	OnsideSnapshot *snapshot;

	snapshot = make_snapshot(widen(active->xmin, next),
							 widen(active->xmax, next), active->xcnt + 1);
	for (uint32 i = 0; i < active->xcnt; i++)
		snapshot->xip[i] = widen(active->xip[i], next);

	/* A snapshot leaves out its own transaction, which is as open as others. */
	if (FullTransactionIdIsValid(own) &&
		FullTransactionIdPrecedes(own, snapshot->xmax))
	{
		snapshot->xip[active->xcnt] = own;
		if (FullTransactionIdPrecedes(own, snapshot->xmin))
			snapshot->xmin = own;
	}
	else
		snapshot->nxip--;
	qsort(snapshot->xip, snapshot->nxip, sizeof(FullTransactionId),
		  compare_xids);
	return snapshot;
}

OnsideSnapshot *
onside_snapshot_parse(const char *str)
{
	OnsideSnapshot *snapshot;
	const char *p;
	char	   *end;
	uint64		xmin;
	uint64		xmax;
	uint32		n = 0;

	/* The server made this string: xmin:xmax:xip,xip,... */
	xmin = strtou64(str, &end, 10);
	xmax = strtou64(end + 1, &end, 10);
	p = end + 1;
	if (*p != '\0')
	{
		n = 1;
		for (const char *q = p; *q != '\0'; q++)
			if (*q == ',')
				n++;
	}
	snapshot = make_snapshot(FullTransactionIdFromU64(xmin),
							 FullTransactionIdFromU64(xmax), n);
	for (uint32 i = 0; i < n; i++)
	{
		snapshot->xip[i] = FullTransactionIdFromU64(strtou64(p, &end, 10));
		p = end + 1;
	}
	return snapshot;
}

char *
onside_snapshot_print(const OnsideSnapshot *snapshot)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, UINT64_FORMAT ":" UINT64_FORMAT ":",
					 U64FromFullTransactionId(snapshot->xmin),
					 U64FromFullTransactionId(snapshot->xmax));
	for (uint32 i = 0; i < snapshot->nxip; i++)
		appendStringInfo(&buf, "%s" UINT64_FORMAT, i > 0 ? "," : "",
						 U64FromFullTransactionId(snapshot->xip[i]));
	return buf.data;
}

/* Was this transaction committed (or aborted) at that moment? */
static bool
includes(const OnsideSnapshot *snapshot, FullTransactionId xid)
{
	if (FullTransactionIdPrecedes(xid, snapshot->xmin))
		return true;
	if (!FullTransactionIdPrecedes(xid, snapshot->xmax))
		return false;
	return bsearch(&xid, snapshot->xip, snapshot->nxip,
				   sizeof(FullTransactionId), compare_xids) == NULL;
}

/* ----------
 * Cursors
 * ----------
 */

void
onside_cursor_copy(OnsideCursor *to, const OnsideCursor *from)
{
	OnsideCursor old = *to;

	to->done = hold(from->done);
	to->window = hold(from->window);
	to->pos = from->pos;
	onside_cursor_release(&old);
}

void
onside_cursor_release(OnsideCursor *cursor)
{
	onside_snapshot_release(cursor->done);
	onside_snapshot_release(cursor->window);
	cursor->done = NULL;
	cursor->window = NULL;
}

/* All of it is done. */
static void
end_window(OnsideCursor *cursor)
{
	onside_snapshot_release(cursor->done);
	cursor->done = cursor->window;
	cursor->window = NULL;
	memset(&cursor->pos, 0, sizeof(cursor->pos));
}

static int
compare_positions(const OnsidePosition *a, const OnsidePosition *b)
{
	int			cmp = compare_xids(&a->xid, &b->xid);

	if (cmp != 0)
		return cmp;
	return a->id < b->id ? -1 : (a->id > b->id ? 1 : 0);
}

/* ----------
 * Durability
 * ----------
 */

/*
 * Flushes the WAL of a transaction's commit.  For a synchronous commit, and
 * for one long ago, there is nothing to do, and the lookup says so.  Flushing
 * up to the insert position instead would wait for WAL that nobody needs, and
 * can fail where that position is a page boundary with nothing behind it.
 */
static void
flush_commit(FullTransactionId xid)
{
	static FullTransactionId last = {InvalidTransactionId};
	TransactionId short_xid = XidFromFullTransactionId(xid);
	XLogRecPtr	lsn = InvalidXLogRecPtr;

	if (FullTransactionIdEquals(xid, last))
		return;

	/* The lock keeps clog from being truncated beneath us. */
	LWLockAcquire(XactTruncationLock, LW_SHARED);
	if (U64FromFullTransactionId(ReadNextFullTransactionId()) -
		U64FromFullTransactionId(xid) < (UINT64CONST(1) << 31) &&
		!TransactionIdPrecedes(short_xid, onside_oldest_clog_xid()))
		lsn = TransactionIdGetCommitLSN(short_xid);
	LWLockRelease(XactTruncationLock);

	if (!XLogRecPtrIsInvalid(lsn))
		XLogFlush(lsn);
	last = xid;
}

/* ----------
 * Reading
 * ----------
 */

/* A range of the log: one transaction from some id on, or several whole ones. */
typedef struct Range
{
	FullTransactionId first;
	FullTransactionId last;		/* inclusive */
	int64		after_id;		/* counts if first = last */
} Range;

typedef struct Ranges
{
	int			n;
	Range	   *range;
} Ranges;

/* A segment, opened, and its scan of the present range. */
typedef struct Source
{
	Relation	rel;
	Relation	index;
	IndexScanDesc scan;
	TupleTableSlot *slot;
	bool		has_row;
	OnsidePosition pos;			/* of the row in slot */
} Source;

static FullTransactionId
next_xid(FullTransactionId xid)
{
	return FullTransactionIdFromU64(U64FromFullTransactionId(xid) + 1);
}

static FullTransactionId
later_xid(FullTransactionId a, FullTransactionId b)
{
	return FullTransactionIdPrecedes(a, b) ? b : a;
}

static void
make_ranges(Ranges *ranges, uint32 capacity)
{
	ranges->n = 0;
	ranges->range = palloc(capacity * sizeof(Range));
}

static void
add_range(Ranges *ranges, FullTransactionId first, FullTransactionId last,
		  int64 after_id)
{
	Range	   *range;

	if (FullTransactionIdPrecedes(last, first))
		return;
	range = &ranges->range[ranges->n++];
	range->first = first;
	range->last = last;
	range->after_id = after_id;
}

/* What is left to read of the cursor's window, in ascending order. */
static void
ranges_to_read(const OnsideCursor *cursor, Ranges *ranges)
{
	const OnsideSnapshot *done = cursor->done;
	const OnsideSnapshot *window = cursor->window;
	FullTransactionId pos = cursor->pos.xid;
	FullTransactionId last =
		FullTransactionIdFromU64(U64FromFullTransactionId(window->xmax) - 1);

	make_ranges(ranges, done->nxip + 2);
	if (FullTransactionIdIsValid(pos))
		add_range(ranges, pos, pos, cursor->pos.id);
	for (uint32 i = 0; i < done->nxip; i++)
		if (FullTransactionIdPrecedes(pos, done->xip[i]) &&
			includes(window, done->xip[i]))
			add_range(ranges, done->xip[i], done->xip[i], 0);
	add_range(ranges, later_xid(done->xmax, next_xid(pos)), last, 0);
}

/* Everything that the cursor does not cover, once each, in no order. */
static void
ranges_not_covered(const OnsideCursor *cursor, Ranges *ranges)
{
	const OnsideSnapshot *done = cursor->done;
	const OnsideSnapshot *window = cursor->window;
	FullTransactionId pos = cursor->pos.xid;
	FullTransactionId last = FullTransactionIdFromU64(PG_UINT64_MAX);

	make_ranges(ranges,
				done->nxip + (window != NULL ? window->nxip : 0) + 2);
	for (uint32 i = 0; i < done->nxip; i++)
		if (window == NULL ||
			!includes(window, done->xip[i]) ||
			FullTransactionIdPrecedes(pos, done->xip[i]))
			add_range(ranges, done->xip[i], done->xip[i], 0);
	if (window == NULL)
	{
		add_range(ranges, done->xmax, last, 0);
		return;
	}
	for (uint32 i = 0; i < window->nxip; i++)
		if (FullTransactionIdPrecedes(window->xip[i], pos) &&
			!FullTransactionIdPrecedes(window->xip[i], done->xmax))
			add_range(ranges, window->xip[i], window->xip[i], 0);
	if (FullTransactionIdIsValid(pos))
		add_range(ranges, pos, pos, cursor->pos.id);
	add_range(ranges, later_xid(done->xmax, next_xid(pos)), last, 0);
}

static void
open_source(Source *source, Relation rel, Oid index)
{
	source->rel = rel;
	source->index = index_open(index, AccessShareLock);
	source->slot = table_slot_create(rel, NULL);
	source->scan = onside_index_beginscan(rel, source->index,
										  GetActiveSnapshot(), 2);
	source->has_row = false;
}

static void
close_source(Source *source)
{
	index_endscan(source->scan);
	ExecDropSingleTupleTableSlot(source->slot);
	index_close(source->index, AccessShareLock);
}

static void
advance(Source *source)
{
	TupleTableSlot *slot = source->slot;
	bool		isnull;

	source->has_row = index_getnext_slot(source->scan, ForwardScanDirection,
										 slot);
	if (!source->has_row)
		return;
	source->pos.xid =
		DatumGetFullTransactionId(slot_getattr(slot, Anum_outbox_xid,
											   &isnull));
	source->pos.id = DatumGetInt64(slot_getattr(slot, Anum_outbox_id,
												&isnull));
}

static void
start_range(Source *source, const Range *range)
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
	advance(source);
}

/* The source whose row comes first, or NULL. */
static Source *
first_source(Source *sources, int n)
{
	Source	   *first = NULL;

	for (int i = 0; i < n; i++)
		if (sources[i].has_row &&
			(first == NULL ||
			 compare_positions(&sources[i].pos, &first->pos) < 0))
			first = &sources[i];
	return first;
}

/* Returns false if the callback stopped. */
static bool
read_range(Source *sources, int n, const Range *range, OnsideCursor *cursor,
		   OnsideReadCallback callback, void *arg)
{
	Source	   *source;

	for (int i = 0; i < n; i++)
		start_range(&sources[i], range);

	while ((source = first_source(sources, n)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		if (includes(cursor->window, source->pos.xid))
		{
			flush_commit(source->pos.xid);
			if (!callback(source->slot, &source->pos, arg))
				return false;
			cursor->pos = source->pos;
		}
		advance(source);
	}
	return true;
}

bool
onside_window_read(OnsideCursor *cursor, OnsideReadCallback callback,
				   void *arg)
{
	Source		sources[ONSIDE_SEGMENTS];
	int			n = 0;
	Ranges		ranges;
	bool		finished = true;

	if (cursor->window == NULL)
	{
		cursor->window = onside_snapshot_take();
		memset(&cursor->pos, 0, sizeof(cursor->pos));
	}

	for (int segment = 1; segment <= ONSIDE_SEGMENTS; segment++)
	{
		Relation	rel = table_open(onside_segment_oid(segment),
									 AccessShareLock);

		if (RelationGetNumberOfBlocks(rel) > 0)
			open_source(&sources[n++], rel, onside_segment_index_oid(segment));
		else
			table_close(rel, AccessShareLock);
	}

	ranges_to_read(cursor, &ranges);
	for (int i = 0; n > 0 && finished && i < ranges.n; i++)
		finished = read_range(sources, n, &ranges.range[i], cursor,
							  callback, arg);

	for (int i = 0; i < n; i++)
	{
		close_source(&sources[i]);
		table_close(sources[i].rel, AccessShareLock);
	}
	if (finished)
		end_window(cursor);
	return finished;
}

bool
onside_window_read_until(OnsideCursor *cursor, OnsideSnapshot *until,
						 OnsideReadCallback callback, void *arg)
{
	/* What came after an open window is another one. */
	if (cursor->window != NULL && !onside_window_read(cursor, callback, arg))
		return false;
	cursor->window = hold(until);
	return onside_window_read(cursor, callback, arg);
}

int
onside_window_count_unsettled(Relation segment, const OnsideCursor *cursor,
							  int max)
{
	Source		source;
	Ranges		ranges;
	int			n = 0;

	/* A plain OID lookup: the index has the segment's name. */
	open_source(&source, segment,
				onside_relation_oid(psprintf("%s_xid_id_idx",
											 RelationGetRelationName(segment))));
	ranges_not_covered(cursor, &ranges);
	for (int i = 0; n < max && i < ranges.n; i++)
		for (start_range(&source, &ranges.range[i]);
			 n < max && source.has_row; advance(&source))
			n++;
	close_source(&source);
	return n;
}

bool
onside_window_fetch(const OnsidePosition *pos, OnsideEvent *event,
					TimestampTz *recorded_at)
{
	Range		range = {pos->xid, pos->xid, pos->id - 1};
	bool		found = false;

	for (int segment = 1; !found && segment <= ONSIDE_SEGMENTS; segment++)
	{
		Relation	rel = table_open(onside_segment_oid(segment),
									 AccessShareLock);
		Source		source;

		open_source(&source, rel, onside_segment_index_oid(segment));
		start_range(&source, &range);
		found = source.has_row && source.pos.id == pos->id;
		if (found)
		{
			bool		isnull;

			onside_outbox_read_event(source.slot, event);
			onside_outbox_copy_event(event);
			*recorded_at =
				DatumGetTimestampTz(slot_getattr(source.slot,
												 Anum_outbox_recorded_at,
												 &isnull));
		}
		close_source(&source);
		table_close(rel, AccessShareLock);
	}
	return found;
}
