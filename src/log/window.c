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
 * What is in progress costs nothing: the ranges that are read leave out every
 * transaction that the snapshot does not include, and a transaction that was
 * open in the last snapshot is looked for only once it has committed.  So two
 * million rows that somebody has not committed yet, or has rolled back, are
 * not waded through by each of the others' events.
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
#include "access/relation.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/lwlock.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#include "compat.h"
#include "log/outbox.h"
#include "log/shape.h"
#include "log/shmem.h"
#include "log/tables.h"
#include "log/window.h"

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

FullTransactionId
onside_widen_xid(TransactionId xid, FullTransactionId next)
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

	snapshot = make_snapshot(onside_widen_xid(active->xmin, next),
							 onside_widen_xid(active->xmax, next), active->xcnt + 1);
	for (uint32 i = 0; i < active->xcnt; i++)
		snapshot->xip[i] = onside_widen_xid(active->xip[i], next);

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

static int
compare_positions(const OnsidePosition *a, const OnsidePosition *b)
{
	int			cmp = compare_xids(&a->xid, &b->xid);

	if (cmp != 0)
		return cmp;
	return a->id < b->id ? -1 : (a->id > b->id ? 1 : 0);
}

bool
onside_cursor_covers(const OnsideCursor *cursor, FullTransactionId xid,
					 int64 id)
{
	OnsidePosition pos = {xid, id};

	if (includes(cursor->done, xid))
		return true;
	return cursor->window != NULL && includes(cursor->window, xid) &&
		compare_positions(&pos, &cursor->pos) <= 0;
}

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

/* ----------
 * Durability
 * ----------
 */

/* Does clog still know this transaction?  The caller has XactTruncationLock. */
static bool
is_in_clog(FullTransactionId xid)
{
	return U64FromFullTransactionId(ReadNextFullTransactionId()) -
		U64FromFullTransactionId(xid) < (UINT64CONST(1) << 31) &&
		!TransactionIdPrecedes(XidFromFullTransactionId(xid),
							   onside_oldest_clog_xid());
}

/*
 * Flushes the WAL of a transaction's commit.  For a synchronous commit, and
 * for one long ago, there is nothing to do, and the lookup says so.  Flushing
 * up to the insert position instead would wait for WAL that nobody needs, and
 * can fail where that position is a page boundary with nothing behind it.
 */
void
onside_flush_commit(FullTransactionId xid)
{
	static FullTransactionId last = {InvalidTransactionId};
	XLogRecPtr	lsn = InvalidXLogRecPtr;

	if (FullTransactionIdEquals(xid, last))
		return;

	/* The lock keeps clog from being truncated beneath us. */
	LWLockAcquire(XactTruncationLock, LW_SHARED);
	if (is_in_clog(xid))
		lsn = TransactionIdGetCommitLSN(XidFromFullTransactionId(xid));
	LWLockRelease(XactTruncationLock);

	if (!XLogRecPtrIsInvalid(lsn))
		XLogFlush(lsn);
	last = xid;
}

/* Is it known that a transaction, which has ended, was rolled back? */
static bool
was_rolled_back(FullTransactionId xid)
{
	bool		result;

	LWLockAcquire(XactTruncationLock, LW_SHARED);
	result = is_in_clog(xid) &&
		!TransactionIdDidCommit(XidFromFullTransactionId(xid));
	LWLockRelease(XactTruncationLock);
	return result;
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

static FullTransactionId
next_xid(FullTransactionId xid)
{
	return FullTransactionIdFromU64(U64FromFullTransactionId(xid) + 1);
}

static FullTransactionId
previous_xid(FullTransactionId xid)
{
	return FullTransactionIdFromU64(U64FromFullTransactionId(xid) - 1);
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

/*
 * All transactions from "first" on that the snapshot includes: one range for
 * each gap between those that were in progress.  At most nxip + 1 of them.
 */
static void
add_ranges_from(Ranges *ranges, FullTransactionId first,
				const OnsideSnapshot *snapshot)
{
	for (uint32 i = 0; i < snapshot->nxip; i++)
	{
		if (FullTransactionIdPrecedes(snapshot->xip[i], first))
			continue;
		add_range(ranges, first, previous_xid(snapshot->xip[i]), 0);
		first = next_xid(snapshot->xip[i]);
	}
	add_range(ranges, first, previous_xid(snapshot->xmax), 0);
}

/* One transaction that was in progress, if it has committed by "snapshot". */
static void
add_ended(Ranges *ranges, FullTransactionId xid,
		  const OnsideSnapshot *snapshot)
{
	if (includes(snapshot, xid) && !was_rolled_back(xid))
		add_range(ranges, xid, xid, 0);
}

/* What is left to read of the cursor's window, in ascending order. */
static void
ranges_to_read(const OnsideCursor *cursor, Ranges *ranges)
{
	const OnsideSnapshot *done = cursor->done;
	const OnsideSnapshot *window = cursor->window;
	FullTransactionId pos = cursor->pos.xid;

	make_ranges(ranges, done->nxip + window->nxip + 2);
	if (FullTransactionIdIsValid(pos))
		add_range(ranges, pos, pos, cursor->pos.id);
	for (uint32 i = 0; i < done->nxip; i++)
		if (FullTransactionIdPrecedes(pos, done->xip[i]))
			add_ended(ranges, done->xip[i], window);
	add_ranges_from(ranges, later_xid(done->xmax, next_xid(pos)), window);
}

/*
 * Everything that "seen" includes and the cursor does not cover, once each, in
 * no order.
 */
static void
ranges_pending(const OnsideCursor *cursor, const OnsideSnapshot *seen,
			   Ranges *ranges)
{
	const OnsideSnapshot *done = cursor->done;
	const OnsideSnapshot *window = cursor->window;
	FullTransactionId pos = cursor->pos.xid;

	make_ranges(ranges, done->nxip + seen->nxip +
				(window != NULL ? window->nxip : 0) + 4);
	for (uint32 i = 0; i < done->nxip; i++)
		if (window == NULL ||
			!includes(window, done->xip[i]) ||
			FullTransactionIdPrecedes(pos, done->xip[i]))
			add_ended(ranges, done->xip[i], seen);
	if (window == NULL)
	{
		add_ranges_from(ranges, done->xmax, seen);
		return;
	}
	for (uint32 i = 0; i < window->nxip; i++)
		if (FullTransactionIdPrecedes(window->xip[i], pos) &&
			!FullTransactionIdPrecedes(window->xip[i], done->xmax))
			add_ended(ranges, window->xip[i], seen);
	if (FullTransactionIdIsValid(pos) && includes(seen, pos))
		add_range(ranges, pos, pos, cursor->pos.id);
	add_ranges_from(ranges, later_xid(done->xmax, next_xid(pos)), seen);
}

/* The index of a segment, opened; NULL if it is missing or cannot be used. */
static Relation
try_open_index(Relation rel)
{
	Oid			oid = onside_relation_oid(psprintf("%s_xid_id_idx",
												   RelationGetRelationName(rel)));
	Relation	index = OidIsValid(oid) ?
		try_relation_open(oid, AccessShareLock) : NULL;

	if (index != NULL && index->rd_rel->relkind == RELKIND_INDEX &&
		index->rd_index->indrelid == RelationGetRelid(rel) &&
		index->rd_index->indisvalid)
		return index;
	if (index != NULL)
		relation_close(index, AccessShareLock);
	return NULL;
}

static void
open_source(Source *source, Relation rel)
{
	(void) onside_shape_require(rel, true);
	source->rel = rel;
	source->index = index_open(onside_shape_index(rel), AccessShareLock);
	source->slot = table_slot_create(rel, NULL);
	source->scan = onside_index_beginscan(rel, source->index,
										  onside_reading_snapshot(), 2);
	source->backward = false;
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
			compare_positions(&sources[i].pos, &first->pos);
		if (first == NULL || (first->backward ? order > 0 : order < 0))
			first = &sources[i];
	}
	return first;
}

/*
 * Hands out a range's events, after each of which "cursor" (if not NULL) is
 * moved.  Returns false if the callback stopped.
 */
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
		onside_flush_commit(source->pos.xid);
		if (!callback(source->slot, &source->pos, arg))
			return false;
		if (cursor != NULL)
			cursor->pos = source->pos;
		advance(source);
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
		{
			open_source(&sources[n], rel);
			sources[n++].backward = backward;
		}
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

bool
onside_window_read(OnsideCursor *cursor, OnsideReadCallback callback,
				   void *arg)
{
	Source		sources[ONSIDE_SEGMENTS];
	int			n;
	Ranges		ranges;
	bool		finished = true;

	if (cursor->window == NULL)
	{
		cursor->window = onside_snapshot_take();
		memset(&cursor->pos, 0, sizeof(cursor->pos));
	}

	n = open_sources(sources, false);
	ranges_to_read(cursor, &ranges);
	for (int i = 0; n > 0 && finished && i < ranges.n; i++)
		finished = read_range(sources, n, &ranges.range[i], cursor,
							  callback, arg);
	close_sources(sources, n);
	if (finished)
		end_window(cursor);
	return finished;
}

static int
compare_ranges(const void *a, const void *b)
{
	return compare_xids(&((const Range *) a)->first,
						&((const Range *) b)->first);
}

void
onside_window_read_newest(const OnsideCursor *cursor,
						  OnsideReadCallback callback, void *arg)
{
	OnsideSnapshot *now = onside_snapshot_take();
	Source		sources[ONSIDE_SEGMENTS];
	int			n = open_sources(sources, true);
	Ranges		ranges;

	ranges_pending(cursor, now, &ranges);
	qsort(ranges.range, ranges.n, sizeof(Range), compare_ranges);
	for (int i = ranges.n - 1; n > 0 && i >= 0; i--)
		if (!read_range(sources, n, &ranges.range[i], NULL, callback, arg))
			break;
	close_sources(sources, n);
	pfree(ranges.range);
	onside_snapshot_release(now);
}

/* What of a segment the ranges hold; stops at "max" events. */
static void
count_in_segment(Relation rel, const Ranges *ranges, int64 max,
				 OnsidePending *pending)
{
	Source		source;

	if (RelationGetNumberOfBlocks(rel) == 0)
		return;
	open_source(&source, rel);
	for (int i = 0; pending->events < max && i < ranges->n; i++)
		for (start_range(&source, &ranges->range[i]);
			 pending->events < max && source.has_row; advance(&source))
		{
			TimestampTz recorded_at = onside_outbox_recorded_at(source.slot);

			CHECK_FOR_INTERRUPTS();
			if (pending->events++ == 0 || recorded_at < pending->oldest)
				pending->oldest = recorded_at;
		}
	close_source(&source);
}

OnsidePending
onside_window_pending(const OnsideCursor *cursor, const OnsideSnapshot *seen,
					  int64 max)
{
	OnsidePending pending = {0};
	OnsideSnapshot *now = NULL;
	FullTransactionId own = GetTopFullTransactionIdIfAny();
	Ranges		ranges;

	if (seen == NULL)
		seen = now = onside_snapshot_take();
	ranges_pending(cursor, seen, &ranges);
	if (now != NULL && FullTransactionIdIsValid(own))
		add_range(&ranges, own, own, 0);
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

FullTransactionId
onside_window_last_xid(Relation segment)
{
	FullTransactionId xid = InvalidFullTransactionId;
	OnsideSnapshot *now;
	Ranges		ranges;
	Source		source;

	if (RelationGetNumberOfBlocks(segment) == 0)
		return xid;
	now = onside_snapshot_take();
	make_ranges(&ranges, now->nxip + 2);
	add_ranges_from(&ranges, FirstNormalFullTransactionId, now);
	add_range(&ranges, now->xmax, FullTransactionIdFromU64(PG_UINT64_MAX), 0);

	/* The last range first, and in it the last row. */
	open_source(&source, segment);
	source.backward = true;
	for (int i = ranges.n - 1; !source.has_row && i >= 0; i--)
		start_range(&source, &ranges.range[i]);
	if (source.has_row)
		xid = source.pos.xid;
	close_source(&source);
	onside_snapshot_release(now);
	pfree(ranges.range);
	return xid;
}

bool
onside_window_holds_pending(Relation segment, const OnsideCursor *cursor)
{
	OnsidePending pending = {0};
	OnsideSnapshot *now = onside_snapshot_take();
	Ranges		ranges;

	ranges_pending(cursor, now, &ranges);

	/*
	 * A row that we see has been committed, whatever number it carries: one
	 * from beyond this server's transactions is no reason to throw it away.
	 */
	add_range(&ranges, now->xmax, FullTransactionIdFromU64(PG_UINT64_MAX), 0);
	count_in_segment(segment, &ranges, 1, &pending);
	onside_snapshot_release(now);
	pfree(ranges.range);
	return pending.events > 0;
}

int64
onside_window_last_id(FullTransactionId xid)
{
	int64		last = 0;

	for (int segment = 1; segment <= ONSIDE_SEGMENTS; segment++)
	{
		Oid			relid = onside_relation_oid(psprintf("outbox_%d", segment));
		Relation	rel;
		Relation	index;
		Range		range = {xid, xid, 0};
		Source		source;

		if (!OidIsValid(relid) ||
			!ConditionalLockRelationOid(relid, AccessShareLock))
			continue;
		rel = table_open(relid, NoLock);
		index = try_open_index(rel);
		if (index != NULL)
		{
			index_close(index, NoLock);
			open_source(&source, rel);
			source.backward = true;
			start_range(&source, &range);
			if (source.has_row)
				last = Max(last, source.pos.id);
			close_source(&source);
		}
		table_close(rel, AccessShareLock);
	}
	return last;
}

void
onside_window_fetch(const OnsidePosition *positions, int n,
					OnsideReadCallback callback, void *arg)
{
	Source		sources[ONSIDE_SEGMENTS];
	int			nsources = open_sources(sources, false);

	for (int i = 0; i < n; i++)
	{
		const OnsidePosition *pos = &positions[i];
		Range		range = {pos->xid, pos->xid, pos->id - 1};

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
