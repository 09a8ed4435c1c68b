/*-------------------------------------------------------------------------
 *
 * commit.c
 *		What a backend does once its transaction has committed.
 *
 * PostgreSQL calls XACT_EVENT_COMMIT callbacks when the transaction is already
 * visible to others.  That is the right moment to wake the worker.  Nothing in
 * a callback may fail: the transaction can no longer be undone.  A callback
 * takes no lock but those of shmem.c, for an instant, and only if a worker is
 * to be started.
 *
 * Events are numbered from 1 within their top-level transaction, and counted
 * per subtransaction.  What a savepoint has recorded is forgotten when it is
 * rolled back, and its numbers are given again.  So the numbers of a
 * transaction's events have no gap, and the last number says how many events
 * there are.  That is how utility_hook.c counts the events of a transaction
 * that another session has prepared.  Nobody can see afterwards whether that
 * transaction has withdrawn events, so we note that when it is prepared.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "log/commit.h"
#include "log/crash_guard.h"
#include "log/service.h"

/*
 * A subtransaction that has recorded events.  The innermost one comes first in
 * the list.  Only the innermost one records, so the counts of the outer ones do
 * not change while it is there.
 */
typedef struct Level
{
	SubTransactionId subid;
	int64		before;			/* events that the outer ones have recorded */
	int64		count;			/* events that this one has recorded */
	struct Level *outer;
} Level;

/*
 * What the present transaction has done that concerns other processes once it
 * has committed.  PostgreSQL's callbacks can find it only in a static.
 */
typedef struct XactState
{
	Level	   *levels;			/* in TopTransactionContext */
	int64		prepared;		/* events of a transaction prepared elsewhere;
								 * or less than 0, counted before: see
								 * rescue.c */
	uint32		wake_bits;
	bool		want_worker;
	bool		wake_launcher;
	bool		forget_absent;
} XactState;

static XactState xact;

/*
 * The transaction has committed.  Counts its events, wakes the worker for what
 * the transaction has done, and wakes the launcher if a worker is to be
 * started.  The slot may have been given away meanwhile; see OnsideSlot.
 */
static void
after_commit(void)
{
	OnsideSlot *slot = onside_slot_find(MyDatabaseId);
	int64		count = xact.prepared;

	/* Savepoints that were released have been added to the outer level. */
	if (xact.levels != NULL)
		count += xact.levels->before + xact.levels->count;

	if (slot != NULL && count > 0)
		onside_slot_count(slot, count);

	/* resume() also ends the waits after failures and crashes. */
	if (xact.wake_bits & ONSIDE_WAKE_RESUME)
	{
		onside_crash_guard_release();
		if (slot != NULL)
			pg_atomic_write_u32(&slot->start_now, 1);
	}

	/* The worker need not tell itself that it has emptied a segment. */
	if (slot != NULL && (xact.wake_bits & ONSIDE_WAKE_WITHDRAWN) != 0 &&
		onside_slot_is_mine(slot))
		xact.wake_bits &= ~ONSIDE_WAKE_WITHDRAWN;
	if (slot != NULL && xact.wake_bits != 0)
		onside_slot_wake(slot, xact.wake_bits);

	/* CREATE EXTENSION, or a command on databases. */
	if (onside_shmem_available())
	{
		if (xact.want_worker && onside_service_request(MyDatabaseId) == NULL)
			xact.forget_absent = true;	/* it tries when a slot is free */
		if (xact.want_worker || xact.wake_launcher)
			onside_launcher_wake(xact.forget_absent);
	}
}

/*
 * Notes that the transaction has withdrawn events before it is prepared: after
 * that, another session can commit it at once.
 */
static void
before_prepare(void)
{
	OnsideSlot *slot = onside_slot_find(MyDatabaseId);

	if (slot != NULL && (xact.wake_bits & ONSIDE_WAKE_WITHDRAWN) != 0)
		onside_slot_withdraw_later(slot, GetTopFullTransactionId());
}

/* Transaction callback.  A rollback concerns no other process. */
static void
xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			/* Most transactions have nothing to do with us. */
			if (xact.levels != NULL || xact.prepared != 0 ||
				xact.wake_bits != 0 ||
				xact.want_worker || xact.wake_launcher)
				after_commit();
			/* FALLTHROUGH */
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			/* The memory of the levels has gone with the transaction. */
			memset(&xact, 0, sizeof(xact));
			break;
		case XACT_EVENT_PRE_PREPARE:
			before_prepare();
			break;
		default:
			break;
	}
}

/*
 * Subtransaction callback: the innermost level ends with its subtransaction.
 * On commit, the level becomes the parent's, or its count is added to the
 * parent's level.  On rollback, the level is forgotten.
 */
static void
subxact_callback(SubXactEvent event, SubTransactionId mySubid,
				 SubTransactionId parentSubid, void *arg)
{
	Level	   *level = xact.levels;

	/* This subtransaction has recorded nothing. */
	if (level == NULL || level->subid != mySubid)
		return;

	if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		Level	   *outer = level->outer;

		/* The parent has recorded nothing itself: it takes the level. */
		if (outer == NULL || outer->subid != parentSubid)
		{
			level->subid = parentSubid;
			return;
		}

		/* The parent has a level already: add to its count. */
		outer->count += level->count;
	}
	else if (event != SUBXACT_EVENT_ABORT_SUB)
		return;

	xact.levels = level->outer;
	pfree(level);
}

void
onside_commit_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
}

/*
 * Counts in the innermost level, and makes one if the subtransaction has none.
 */
int64
onside_commit_next_id(void)
{
	SubTransactionId subid = GetCurrentSubTransactionId();

	if (xact.levels == NULL || xact.levels->subid != subid)
	{
		/* The first event of this subtransaction. */
		Level	   *level = MemoryContextAlloc(TopTransactionContext,
											   sizeof(Level));

		level->subid = subid;
		level->before = xact.levels == NULL ? 0 :
			xact.levels->before + xact.levels->count;
		level->count = 0;
		level->outer = xact.levels;
		xact.levels = level;
	}

	/* The number follows those of the outer levels. */
	return xact.levels->before + ++xact.levels->count;
}

void
onside_commit_count_prepared(int64 n)
{
	xact.prepared += n;
}

void
onside_commit_wake(uint32 why)
{
	xact.wake_bits |= why;
}

void
onside_commit_want_worker(void)
{
	xact.want_worker = true;
}

void
onside_commit_wake_launcher(bool forget)
{
	xact.wake_launcher = true;
	xact.forget_absent |= forget;
}
