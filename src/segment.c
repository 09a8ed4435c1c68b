/*-------------------------------------------------------------------------
 *
 * segment.c
 *		The outbox's segments: moving on and emptying.
 *
 * Delivered events are not deleted.  Writing moves from segment to segment,
 * and a segment all of whose events are settled is truncated, which costs the
 * same whatever it holds and leaves no dead rows for anybody's snapshot.
 *
 * A segment is truncated under an AccessExclusiveLock that is only taken if
 * nobody has any lock on it: no purchase ever waits for it.  Whoever inserted
 * into the segment holds a RowExclusiveLock until the end of its transaction
 * (a prepared one, too), so with the lock in hand there are no rows of open
 * transactions in it.  What makes it right, however, is looking once more,
 * under the lock: every row that a new snapshot sees must be covered by the
 * cursor.  The cursor is written in the same transaction.
 *
 * We call ExecuteTruncateGuts() rather than run TRUNCATE, and pass no relation
 * to log: a logical subscriber that sends its own copy of the events must not
 * lose them because the publisher has none left to send.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_class.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "outbox.h"
#include "segment.h"
#include "settings.h"
#include "shmem.h"

/* Heap and TOAST, in bytes. */
static uint64
segment_size(Oid relid)
{
	Relation	rel = table_open(relid, AccessShareLock);
	uint64		size = table_relation_size(rel, MAIN_FORKNUM);

	if (OidIsValid(rel->rd_rel->reltoastrelid))
	{
		Relation	toast = table_open(rel->rd_rel->reltoastrelid,
									   AccessShareLock);

		size += table_relation_size(toast, MAIN_FORKNUM);
		table_close(toast, AccessShareLock);
	}
	table_close(rel, AccessShareLock);
	return size;
}

static int
next_segment(int segment)
{
	return segment % ONSIDE_SEGMENTS + 1;
}

int
onside_segment_choose(int current, bool move_on)
{
	uint64		size = segment_size(onside_segment_oid(current));

	if (size < (uint64) onside_segment_size * 1024 && !(move_on && size > 0))
		return current;

	for (int segment = next_segment(current); segment != current;
		 segment = next_segment(segment))
		if (segment_size(onside_segment_oid(segment)) == 0)
			return segment;
	return current;
}

/* When the youngest event in the segment was recorded; 0 if there is none. */
static TimestampTz
last_recorded_at(Relation rel, Oid index_oid)
{
	Relation	index = index_open(index_oid, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	IndexScanDesc scan = onside_index_beginscan(rel, index,
												GetActiveSnapshot(), 0);
	TimestampTz result = 0;
	bool		isnull;

	index_rescan(scan, NULL, 0, NULL, 0);
	if (index_getnext_slot(scan, BackwardScanDirection, slot))
		result = DatumGetTimestampTz(slot_getattr(slot,
												  Anum_outbox_recorded_at,
												  &isnull));
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, AccessShareLock);
	return result;
}

static bool
retention_is_over(Relation rel, Oid index_oid)
{
	if (onside_retention == 0)
		return true;
	return last_recorded_at(rel, index_oid) +
		(int64) onside_retention * USECS_PER_SEC <= GetCurrentTimestamp();
}

/* Truncates one segment if it may be. */
static bool
empty_segment(int segment, const OnsideCursor *settled, const char **blocked)
{
	Oid			relid = onside_segment_oid(segment);
	Oid			index_oid = onside_segment_index_oid(segment);
	Relation	rel;
	bool		emptied = false;

	if (segment_size(relid) == 0)
		return false;

	/* Most often it is simply not settled yet; no lock is needed to see that. */
	rel = table_open(relid, AccessShareLock);
	PushActiveSnapshot(GetTransactionSnapshot());
	if (onside_window_count_unsettled(rel, settled, 1) > 0 ||
		!retention_is_over(rel, index_oid))
	{
		PopActiveSnapshot();
		table_close(rel, AccessShareLock);
		return false;
	}
	PopActiveSnapshot();
	table_close(rel, AccessShareLock);

	if (!ConditionalLockRelationOid(relid, AccessExclusiveLock))
	{
		*blocked = "a delivered segment of the outbox is in use by another session: a transaction that has read the outbox or written to it is still open";
		return false;
	}

	rel = table_open(relid, NoLock);
	PushActiveSnapshot(GetLatestSnapshot());
	if (onside_window_count_unsettled(rel, settled, 1) == 0)
	{
		onside_truncate(list_make1(rel), list_make1_oid(relid));
		emptied = true;
	}
	PopActiveSnapshot();
	table_close(rel, NoLock);
	return emptied;
}

int
onside_segment_empty(int current, const OnsideCursor *settled,
					 const char **blocked)
{
	int			n = 0;

	*blocked = NULL;
	for (int segment = next_segment(current); segment != current;
		 segment = next_segment(segment))
		if (empty_segment(segment, settled, blocked))
			n++;
	return n;
}

void
onside_segment_report(int segment, const OnsideCursor *settled,
					  OnsideSegmentReport *report)
{
	Oid			relid = onside_segment_oid(segment);
	Relation	rel = table_open(relid, AccessShareLock);

	report->bytes = segment_size(relid);
	report->unsettled =
		onside_window_count_unsettled(rel, settled, 1) > 0;
	report->retained = !report->unsettled &&
		!retention_is_over(rel, onside_segment_index_oid(segment));
	table_close(rel, AccessShareLock);
}
