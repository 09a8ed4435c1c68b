/*-------------------------------------------------------------------------
 *
 * segment.c
 *		The outbox's segments: moving on and emptying.
 *
 * Delivered events are not deleted.  Writing moves from segment to segment.
 * Once all events of a segment are settled, the segment is emptied as a whole.
 * That costs the same whatever the segment holds, and leaves no dead rows for
 * anybody's snapshot.
 *
 * The worker calls this file, in a transaction of its own; doctor() calls
 * onside_segment_report().
 *
 * A segment is emptied under an AccessExclusiveLock, which we take only if
 * nobody has any lock on the segment.  So we never wait, and a purchase that
 * comes meanwhile waits for the rest of our short transaction at most.  A
 * transaction that has inserted into the segment holds a RowExclusiveLock to
 * its end (a prepared one, too), so under our lock no row is of an open
 * transaction.  Under the lock we look once more: the cursor must cover every
 * row that a new snapshot sees.  This second look makes emptying safe.
 *
 * A standby replays that lock, and cancels queries there that have read the
 * segment.  A pg_dump there, which locks every table, would fail.  So segments
 * are emptied seldom.  Writing leaves a segment that is full; if nothing is
 * pending, it also leaves one that is 16 MB large or a day old.  So an idle
 * shop empties a segment once a day, and a busy shop at most once for each 16
 * MB.  A DBA would not notice 16 MB, or a day's events, in a backup.
 *
 * With hot_standby_feedback a standby tells us the oldest transaction that its
 * queries need.  If a query there has a snapshot from when the segment was
 * written to, the segment stays until the query has ended, or until the outbox
 * is as large as four full segments.
 *
 * Retention counts from the moment when writing left the segment, so each
 * event in it is kept for at least that long, whatever its recorded_at says.
 *
 * Emptying is the way out of a full disk, so it must not need disk space:
 * TRUNCATE would make new files, and fail.  The files are cut to length 0 in
 * place, as VACUUM cuts the end of a table; see empty_in_place().  That cannot
 * be rolled back.  So the caller has flushed the cursor that covers the rows,
 * and the dead letters made of them, to disk before.  Nothing is logged for
 * logical decoding: a subscriber that sends its own copy of the events must
 * not lose them when the publisher empties a segment.
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
#include "replication/walsender.h"
#include "replication/slot.h"
#include "replication/walsender_private.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/sinval.h"
#include "storage/spin.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "log/segment.h"
#include "log/shmem.h"
#include "log/snapshot.h"
#include "log/tables.h"
#include "settings.h"

/*
 * A segment is emptied only if it is at least this large (bytes; or full, if
 * segment_size is less), or if its first event came at least this long ago
 * (seconds).
 */
#define WORTH_EMPTYING		(16 * 1024 * 1024)
#define OLD_ENOUGH			(24 * 3600)

/*
 * A standby holds up emptying until the outbox is larger than this number of
 * full segments.
 */
#define MAX_HELD_SEGMENTS	4

/* The size of the segment's heap and TOAST table, without indexes; bytes. */
static uint64
segment_size(Oid relid)
{
	Relation	rel = table_open(relid, AccessShareLock);
	uint64		size = table_relation_size(rel, MAIN_FORKNUM);

	/* Large payloads are in the TOAST table. */
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

/* The segment that follows this one; the first follows the last. */
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

/* Have this many seconds passed since that time?  The time 0 is long ago. */
static bool
is_over(TimestampTz since, int seconds)
{
	return since + (int64) seconds * USECS_PER_SEC <= GetCurrentTimestamp();
}

/*
 * Is a segment with this many bytes, and events since begun_at, worth the
 * lock?
 */
static bool
is_worth_emptying(uint64 size, TimestampTz begun_at)
{
	return size >= Min(full_size(), WORTH_EMPTYING) ||
		is_over(begun_at, OLD_ENOUGH);
}

/*
 * Writing moves to the next empty segment.  If no other segment is empty,
 * writing stays where it is, and the present segment grows.
 */
bool
onside_segment_move_on(OnsideDelivery *delivery, bool drained)
{
	int			current = delivery->segment;
	TimestampTz now = GetCurrentTimestamp();
	uint64		size = segment_size(onside_segment_oid(current));

	if (size == 0 || delivery->begun_at[current - 1] == 0)
		delivery->begun_at[current - 1] = now;	/* its first events */

	/*
	 * Stay if the segment is not full, unless everything is settled and the
	 * segment is large or old enough to be emptied.
	 */
	if (size < full_size() &&
		!(drained && size > 0 &&
		  is_worth_emptying(size, delivery->begun_at[current - 1])))
		return false;

	/* Look for an empty segment, and note when writing left and began. */
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
 * Does a snapshot with this xmin need the rows of transaction "xid", because
 * the transaction had not ended when the snapshot was taken?
 */
static bool
holds_back(TransactionId xmin, FullTransactionId next, FullTransactionId xid)
{
	return TransactionIdIsNormal(xmin) &&
		FullTransactionIdPrecedesOrEquals(onside_widen_xid(xmin, next), xid);
}

/*
 * Has a standby told us of a snapshot that is not younger than this
 * transaction?  Its xmin is in its replication slot, or, if it has no slot, in
 * the PGPROC of its walsender.
 */
static bool
standby_needs(FullTransactionId xid)
{
	FullTransactionId next = ReadNextFullTransactionId();
	bool		result = false;

	/*
	 * Physical slots: those that belong to no database.  A logical slot can
	 * have an xmin for as long as a table is copied; it needs no row of ours.
	 */
	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; !result && i < max_replication_slots; i++)
	{
		ReplicationSlot *slot = &ReplicationSlotCtl->replication_slots[i];
		TransactionId xmin = InvalidTransactionId;

		SpinLockAcquire(&slot->mutex);
		if (slot->in_use && slot->data.database == InvalidOid)
			xmin = slot->effective_xmin;
		SpinLockRelease(&slot->mutex);
		result = holds_back(xmin, next, xid);
	}
	LWLockRelease(ReplicationSlotControlLock);

	/* Standbys without a slot. */
	for (int i = 0; !result && i < max_wal_senders; i++)
	{
		WalSnd	   *walsnd = &WalSndCtl->walsnds[i];
		pid_t		pid;
		PGPROC	   *proc;

		/* A walsender that is not in use has the pid 0. */
		SpinLockAcquire(&walsnd->mutex);
		pid = walsnd->pid;
		SpinLockRelease(&walsnd->mutex);
		proc = pid == 0 ? NULL : BackendPidGetProc(pid);

		/* The walsender may have ended meanwhile. */
		result = proc != NULL && holds_back(proc->xmin, next, xid);
	}
	return result;
}

/* Is the outbox so large that we no longer wait for a standby? */
static bool
is_crowded(void)
{
	uint64		size = 0;

	for (int segment = 1; segment <= ONSIDE_SEGMENTS; segment++)
		size += segment_size(onside_segment_oid(segment));
	return size > MAX_HELD_SEGMENTS * full_size();
}

/*
 * May the segment be emptied, as far as we can see without its lock?  Sets
 * times in *delivery that are not known, and *blocked if a standby is the only
 * reason not to.
 */
static bool
may_be_emptied(int segment, Relation rel, OnsideDelivery *delivery,
			   const char **blocked)
{
	FullTransactionId last;

	/*
	 * Replication or a restore can bring rows into a segment that writing has
	 * never been in.  They count from now.
	 */
	if (delivery->begun_at[segment - 1] == 0)
		delivery->begun_at[segment - 1] = GetCurrentTimestamp();
	if (delivery->left_at[segment - 1] == 0)
		delivery->left_at[segment - 1] = GetCurrentTimestamp();

	/* The usual case: the segment holds events that are not settled. */
	if (onside_window_holds_pending(rel, &delivery->settled))
		return false;

	/*
	 * No row can be found by the index: all of them were rolled back, or a
	 * crash has come between the indexes and the rows; see empty_in_place().
	 */
	last = onside_window_last_xid(rel);
	if (!FullTransactionIdIsValid(last))
		return true;

	/*
	 * Keep the rows for the time of retention, and do not lock a segment for a
	 * few rows.
	 */
	if (!is_over(delivery->left_at[segment - 1], onside_retention) ||
		!is_worth_emptying(segment_size(RelationGetRelid(rel)),
						   delivery->begun_at[segment - 1]))
		return false;

	/* Emptying would cancel a query on a standby. */
	if (standby_needs(last) && !is_crowded())
	{
		*blocked = "a delivered segment of the outbox is kept for a standby: a query there (hot_standby_feedback) has a snapshot from when the segment was written to";
		return false;
	}
	return true;
}

/*
 * Locks a segment, its indexes and its TOAST table, as TRUNCATE would.
 * Returns false at the first that somebody else has locked.  Locks that we
 * have got by then are kept to the end of the transaction.
 */
static bool
lock_all(Relation rel)
{
	Oid			toast_id = rel->rd_rel->reltoastrelid;
	List	   *relids;
	ListCell   *lc;

	/* Lock the table first, so that nobody makes another index of it. */
	if (!ConditionalLockRelationOid(RelationGetRelid(rel), AccessExclusiveLock))
		return false;

	/* List everything else that TRUNCATE would lock. */
	relids = RelationGetIndexList(rel);
	if (OidIsValid(toast_id))
	{
		Relation	toast = table_open(toast_id, AccessShareLock);

		relids = lappend_oid(relids, toast_id);
		relids = list_concat(relids, RelationGetIndexList(toast));
		table_close(toast, AccessShareLock);
	}

	/* Stop at the first relation that is not free. */
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
 * Has each session forget where a btree's root is, which sessions remember.
 * PostgreSQL sends an invalidation when the transaction commits.  If the
 * transaction failed, the invalidation would be lost, but the root would be
 * gone all the same.  So we also send it at once.  Until our lock is released,
 * nobody can look the root up again.
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
 * Makes a btree as empty as a new one, which has a meta page without a root
 * and no other page.  A crash between the two steps leaves an empty btree as
 * well, but with pages that nothing refers to.
 */
static void
empty_index(Oid oid)
{
	Relation	index = index_open(oid, NoLock);
	Buffer		buffer = ReadBuffer(index, BTREE_METAPAGE);
	Page		page = BufferGetPage(buffer);

	/* Write a new meta page without a root, and log it. */
	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	START_CRIT_SECTION();
	_bt_initmetapage(page, P_NONE, 0, BTPageGetMeta(page)->btm_allequalimage);
	MarkBufferDirty(buffer);
	if (RelationNeedsWAL(index))
		log_newpage_buffer(buffer, true);
	END_CRIT_SECTION();
	UnlockReleaseBuffer(buffer);

	/* Tell the other sessions at once: cutting off the other pages may fail. */
	forget_root(index);
	RelationTruncate(index, BTREE_METAPAGE + 1);
	index_close(index, NoLock);
}

/* Empties the indexes first: their entries must not outlive the rows. */
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
 * Empties a locked segment and its TOAST table, in place if possible.  Each
 * step is logged, and after each step the tables can be read: at worst they
 * have rows without index entries, or TOAST values that no row refers to.
 * After a crash in between, the worker empties the segment again before
 * writing moves there.
 */
static void
empty_in_place(Relation rel)
{
	Oid			toast_id = rel->rd_rel->reltoastrelid;

	/* A DBA may have added an index that is no btree. */
	if (!are_btrees(RelationGetIndexList(rel)))
	{
		onside_truncate(list_make1(rel),
						list_make1_oid(RelationGetRelid(rel)));
		return;
	}
	empty_table(rel);

	/* The rows that referred to TOASTed values are gone. */
	if (OidIsValid(toast_id))
	{
		Relation	toast = table_open(toast_id, NoLock);

		empty_table(toast);
		table_close(toast, NoLock);
	}
}

/* Empties one segment if it is due, settled and free.  Returns true if so. */
static bool
empty_segment(int segment, OnsideDelivery *delivery, const char **blocked)
{
	Oid			relid = onside_segment_oid(segment);
	Relation	rel;
	bool		emptied = false;

	/* A segment without rows has no times. */
	if (segment_size(relid) == 0)
	{
		delivery->begun_at[segment - 1] = delivery->left_at[segment - 1] = 0;
		return false;
	}

	/*
	 * Look without the exclusive lock first: most often the segment is not
	 * settled yet.
	 */
	rel = table_open(relid, AccessShareLock);
	if (may_be_emptied(segment, rel, delivery, blocked))
	{
		if (!lock_all(rel))
			*blocked = "a delivered segment of the outbox is in use by another session: a transaction that has read the outbox or written to it is still open";
		else
		{
			/*
			 * No open transaction can have rows in the segment now.  Look once
			 * more, with a new snapshot.
			 */
			PushActiveSnapshot(GetLatestSnapshot());
			emptied = !onside_window_holds_pending(rel, &delivery->settled);
			PopActiveSnapshot();
		}
	}
	if (emptied)
	{
		empty_in_place(rel);
		delivery->begun_at[segment - 1] = delivery->left_at[segment - 1] = 0;
	}
	table_close(rel, NoLock);
	return emptied;
}

/*
 * Tries all segments but the one that is written to.  Several can be due at
 * once, for example after a long outage of the API.
 */
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

/* Judges a segment as onside_segment_empty() would, and changes nothing. */
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
