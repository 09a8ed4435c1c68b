/*-------------------------------------------------------------------------
 *
 * segment.c
 *		The outbox's segments: moving on and emptying.
 *
 * Delivered events are not deleted.  Writing moves from segment to segment,
 * and a segment all of whose events are settled is truncated, which costs the
 * same whatever it holds and leaves no dead rows for anybody's snapshot.
 *
 * A segment is truncated under an AccessExclusiveLock, which is taken only if
 * nobody has any lock on the segment: no purchase ever waits for it.  A
 * transaction that has inserted into the segment holds a RowExclusiveLock to
 * its end (a prepared one, too), so under our lock no row is of an open
 * transaction.  Under the lock we look once more, which is what makes emptying
 * safe: the cursor must cover every row that a new snapshot sees.
 *
 * A standby replays that lock, and cancels queries there that have read the
 * segment; so it ends a pg_dump, which locks every table.  So segments are
 * emptied seldom.  Writing leaves a segment that is full, or with nothing
 * pending one that is 16 MB large or a day old.  So an idle shop empties a
 * segment once a day, and a busy shop at most once for each 16 MB.  A DBA
 * would not notice 16 MB, or a day's events, in a backup.
 * hot_standby_feedback can tell that a query on a standby has a snapshot from
 * when the segment was written to.  Then the segment stays until the query has
 * ended, or until the outbox is as large as four full segments.
 *
 * Retention counts from the moment when writing left the segment, so each
 * event in it is kept for at least that long, whatever recorded_at it has.
 *
 * Emptying is the way out of a full disk, so it must not need disk space:
 * TRUNCATE would make new files, and fail.  The files are cut to length 0 in
 * place, as VACUUM cuts the end of a table; see empty_in_place().  That cannot
 * be rolled back.  So the cursor that covers the rows, and the dead letters
 * made of them, are on disk before.  Nothing is logged for logical decoding: a
 * subscriber that sends its own copy of the events must not lose them when the
 * publisher empties a segment.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/nbtree.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xloginsert.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/storage.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/slot.h"
#include "replication/walsender_private.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/sinval.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "log/segment.h"
#include "log/shmem.h"
#include "log/tables.h"
#include "settings.h"

/*
 * A segment is emptied when it is larger than this (bytes) or older (seconds).
 */
#define WORTH_EMPTYING		(16 * 1024 * 1024)
#define OLD_ENOUGH			(24 * 3600)

/* A standby holds up emptying until the outbox has this many full segments. */
#define MAX_HELD_SEGMENTS	4

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

/* The size at which writing leaves a segment; bytes. */
static uint64
full_size(void)
{
	return (uint64) onside_segment_size * 1024;
}

/* Have this many seconds passed since then?  0 means long ago. */
static bool
is_over(TimestampTz since, int seconds)
{
	return since + (int64) seconds * USECS_PER_SEC <= GetCurrentTimestamp();
}

/* Is a segment of this size, with events since begun_at, worth the lock? */
static bool
is_worth_emptying(uint64 size, TimestampTz begun_at)
{
	return size >= Min(full_size(), WORTH_EMPTYING) ||
		is_over(begun_at, OLD_ENOUGH);
}

/*
 * Takes the next segment that is empty.  If there is none, writing stays where
 * it is, and that segment grows.
 */
bool
onside_segment_move_on(OnsideDelivery *delivery, bool drained)
{
	int			current = delivery->segment;
	TimestampTz now = GetCurrentTimestamp();
	uint64		size = segment_size(onside_segment_oid(current));

	if (size == 0 || delivery->begun_at[current - 1] == 0)
		delivery->begun_at[current - 1] = now;	/* it begins now */
	if (size < full_size() &&
		!(drained && size > 0 &&
		  is_worth_emptying(size, delivery->begun_at[current - 1])))
		return false;

	for (int segment = next_segment(current); segment != current;
		 segment = next_segment(segment))
		if (segment_size(onside_segment_oid(segment)) == 0)
		{
			delivery->left_at[current - 1] = now;
			delivery->segment = segment;
			delivery->begun_at[segment - 1] = now;
			delivery->left_at[segment - 1] = 0;
			return true;
		}
	return false;
}

/*
 * Does a standby tell us of a snapshot that is not younger than this
 * transaction?  It does so through its slot, or else through its walsender.
 */
static bool
standby_needs(TransactionId xid)
{
	bool		result = false;

	if (!TransactionIdIsNormal(xid))
		return false;

	/* Physical slots: those that belong to no database. */
	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < max_replication_slots; i++)
	{
		ReplicationSlot *slot = &ReplicationSlotCtl->replication_slots[i];
		TransactionId xmin = InvalidTransactionId;

		SpinLockAcquire(&slot->mutex);
		if (slot->in_use && slot->data.database == InvalidOid)
			xmin = slot->effective_xmin;
		SpinLockRelease(&slot->mutex);
		if (TransactionIdIsNormal(xmin) &&
			TransactionIdPrecedesOrEquals(xmin, xid))
			result = true;
	}
	LWLockRelease(ReplicationSlotControlLock);

	/* Standbys without a slot. */
	for (int i = 0; !result && i < max_wal_senders; i++)
	{
		WalSnd	   *walsnd = &WalSndCtl->walsnds[i];
		pid_t		pid;
		PGPROC	   *proc;
		TransactionId xmin;

		SpinLockAcquire(&walsnd->mutex);
		pid = walsnd->pid;
		SpinLockRelease(&walsnd->mutex);
		proc = pid == 0 ? NULL : BackendPidGetProc(pid);
		xmin = proc == NULL ? InvalidTransactionId : proc->xmin;
		result = TransactionIdIsNormal(xmin) &&
			TransactionIdPrecedesOrEquals(xmin, xid);
	}
	return result;
}

/* Is the outbox so large that no standby is waited for any more? */
static bool
is_crowded(void)
{
	uint64		size = 0;

	for (int segment = 1; segment <= ONSIDE_SEGMENTS; segment++)
		size += segment_size(onside_segment_oid(segment));
	return size > MAX_HELD_SEGMENTS * full_size();
}

/* May the segment be emptied, as far as that can be seen without its lock? */
static bool
may_be_emptied(int segment, Relation rel, OnsideDelivery *delivery,
			   const char **blocked)
{
	FullTransactionId last;

	/* Rows that came by replication or a restore may be in any segment. */
	if (delivery->begun_at[segment - 1] == 0)
		delivery->begun_at[segment - 1] = GetCurrentTimestamp();
	if (delivery->left_at[segment - 1] == 0)
		delivery->left_at[segment - 1] = GetCurrentTimestamp();

	if (onside_window_holds_pending(rel, &delivery->settled))
		return false;

	/*
	 * A crash has come between its indexes and its rows: see empty_in_place().
	 */
	last = onside_window_last_xid(rel);
	if (!FullTransactionIdIsValid(last))
		return true;
	if (!is_over(delivery->left_at[segment - 1], onside_retention) ||
		!is_worth_emptying(segment_size(RelationGetRelid(rel)),
						   delivery->begun_at[segment - 1]))
		return false;
	if (standby_needs(XidFromFullTransactionId(last)) && !is_crowded())
	{
		*blocked = "a delivered segment of the outbox is kept for a standby: a query there (hot_standby_feedback) has a snapshot from when the segment was written to";
		return false;
	}
	return true;
}

/*
 * Locks a segment, its indexes and its TOAST table, as TRUNCATE would, if all
 * of them are free.  Locks that were taken are kept to the end of the
 * transaction, even if another one was not free.
 */
static bool
lock_all(Relation rel)
{
	List	   *relids = list_make1_oid(RelationGetRelid(rel));
	Oid			toast_id = rel->rd_rel->reltoastrelid;
	ListCell   *lc;

	relids = list_concat(relids, RelationGetIndexList(rel));
	if (OidIsValid(toast_id))
	{
		Relation	toast = table_open(toast_id, AccessShareLock);

		relids = lappend_oid(relids, toast_id);
		relids = list_concat(relids, RelationGetIndexList(toast));
		table_close(toast, AccessShareLock);
	}
	foreach(lc, relids)
		if (!ConditionalLockRelationOid(lfirst_oid(lc), AccessExclusiveLock))
			return false;
	return true;
}

/* Can empty_index() empty all of these indexes? */
static bool
are_btrees(List *indexes)
{
	ListCell   *lc;

	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), NoLock);
		bool		is_btree = index->rd_rel->relam == BTREE_AM_OID;

		index_close(index, NoLock);
		if (!is_btree)
			return false;
	}
	return true;
}

/*
 * Each session remembers where a btree's root is.  An invalidation that goes with
 * the commit would be lost if this transaction failed later, and the root stays gone.
 * So it is sent at once, too: nobody can look there before the lock is released.
 */
static void
forget_root(Relation index)
{
	SharedInvalidationMessage msg = {0};

	msg.rc.id = SHAREDINVALRELCACHE_ID;
	msg.rc.dbId = MyDatabaseId;
	msg.rc.relId = RelationGetRelid(index);
	SendSharedInvalidMessages(&msg, 1);
	CacheInvalidateRelcache(index); /* for standbys */
}

/*
 * Makes a btree as empty as a new one: a meta page without a root, and no
 * other page.  A crash between the two steps leaves an empty btree, too, with
 * pages that nothing refers to.
 */
static void
empty_index(Oid oid)
{
	Relation	index = index_open(oid, NoLock);
	Buffer		buffer = ReadBuffer(index, BTREE_METAPAGE);
	Page		page = BufferGetPage(buffer);

	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	START_CRIT_SECTION();
	_bt_initmetapage(page, P_NONE, 0, BTPageGetMeta(page)->btm_allequalimage);
	MarkBufferDirty(buffer);
	if (RelationNeedsWAL(index))
		log_newpage_buffer(buffer, true);
	END_CRIT_SECTION();
	UnlockReleaseBuffer(buffer);
	RelationTruncate(index, BTREE_METAPAGE + 1);
	forget_root(index);
	index_close(index, NoLock);
}

/* Indexes first: their entries must not outlive the rows. */
static void
empty_table(Relation rel)
{
	ListCell   *lc;

	foreach(lc, RelationGetIndexList(rel))
		empty_index(lfirst_oid(lc));
	RelationTruncate(rel, 0);
	pgstat_count_truncate(rel);
}

/*
 * Empties a locked segment and its TOAST table.  Each step is logged, and
 * leaves tables that can be read: at worst rows without index entries, and
 * values that no row refers to.  After a crash in between, the segment is not
 * written to until it has been emptied, which is tried again.
 */
static void
empty_in_place(Relation rel, Relation toast)
{
	empty_table(rel);
	if (toast != NULL)
		empty_table(toast);
}

/* Empties a segment that is locked. */
static void
empty(Relation rel)
{
	Relation	toast = OidIsValid(rel->rd_rel->reltoastrelid) ?
		table_open(rel->rd_rel->reltoastrelid, NoLock) : NULL;

	/* An index that a DBA has added may be of another kind. */
	if (are_btrees(RelationGetIndexList(rel)))
		empty_in_place(rel, toast);
	else
		onside_truncate(list_make1(rel),
						list_make1_oid(RelationGetRelid(rel)));
	if (toast != NULL)
		table_close(toast, NoLock);
}

/* Empties one segment if it may be. */
static bool
empty_segment(int segment, OnsideDelivery *delivery, const char **blocked)
{
	Oid			relid = onside_segment_oid(segment);
	Relation	rel;
	bool		emptied = false;

	if (segment_size(relid) == 0)
	{
		delivery->begun_at[segment - 1] = delivery->left_at[segment - 1] = 0;
		return false;
	}

	/*
	 * Most often the segment is not settled yet, which can be seen without a
	 * lock.
	 */
	rel = table_open(relid, AccessShareLock);
	if (may_be_emptied(segment, rel, delivery, blocked))
	{
		if (!lock_all(rel))
			*blocked = "a delivered segment of the outbox is in use by another session: a transaction that has read the outbox or written to it is still open";
		else
		{
			PushActiveSnapshot(GetLatestSnapshot());
			emptied = !onside_window_holds_pending(rel, &delivery->settled);
			PopActiveSnapshot();
		}
	}
	if (emptied)
	{
		empty(rel);
		delivery->begun_at[segment - 1] = delivery->left_at[segment - 1] = 0;
	}
	table_close(rel, NoLock);
	return emptied;
}

int
onside_segment_empty(OnsideDelivery *delivery, const char **blocked)
{
	int			n = 0;

	*blocked = NULL;
	for (int segment = next_segment(delivery->segment);
		 segment != delivery->segment; segment = next_segment(segment))
		if (empty_segment(segment, delivery, blocked))
			n++;
	return n;
}

void
onside_segment_report(int segment, const OnsideDelivery *delivery,
					  OnsideSegmentReport *report)
{
	Oid			relid = onside_segment_oid(segment);
	Relation	rel = table_open(relid, AccessShareLock);

	report->bytes = segment_size(relid);
	report->unsettled = onside_window_holds_pending(rel, &delivery->settled);
	report->retained = !report->unsettled &&
		!is_over(delivery->left_at[segment - 1], onside_retention);
	report->waiting = !report->unsettled && !report->retained &&
		!is_worth_emptying(report->bytes, delivery->begun_at[segment - 1]);
	table_close(rel, AccessShareLock);
}
