/*-------------------------------------------------------------------------
 *
 * control.c
 *		pause, resume and flush.
 *
 * pause() and resume() write the table "control", so that the decision
 * survives a restart.  At their commit the worker looks there.  EXECUTE on
 * them is the privilege; see delivery.c.
 *
 * flush() takes a snapshot and waits until the settled cursor covers every
 * event that the snapshot sees, and until no event is aside that was recorded
 * by then.  What comes later does not matter, so flush() returns under any
 * load.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "attempt.h"
#include "compat.h"
#include "log/aside.h"
#include "log/commit.h"
#include "log/crash_guard.h"
#include "log/delivery.h"
#include "log/locks.h"
#include "log/shmem.h"
#include "log/tables.h"
#include "log/window.h"
#include "operate/control.h"
#include "version.h"

PG_FUNCTION_INFO_V1(onside_pause);
PG_FUNCTION_INFO_V1(onside_resume);
PG_FUNCTION_INFO_V1(onside_flush);

/* Without a worker nobody announces that the cursor moved; ms. */
#define FLUSH_POLL		1000

#define FLUSH_USES \
	(ONSIDE_USES_LOG | ONSIDE_READS_CURSOR | ONSIDE_READS_ASIDE)

/* How long to wait for the worker to write what is settled already; ms. */
#define WRITE_TIMEOUT	1000

/* pause(reason text) */
Datum
onside_pause(PG_FUNCTION_ARGS)
{
	onside_control_set(true, PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0));
	onside_commit_wake(ONSIDE_WAKE_CONTROL);
	PG_RETURN_VOID();
}

/* resume() */
Datum
onside_resume(PG_FUNCTION_ARGS)
{
	onside_control_set(false, NULL);
	onside_commit_wake(ONSIDE_WAKE_CONTROL | ONSIDE_WAKE_RESUME);
	onside_commit_wake_launcher(false);
	PG_RETURN_VOID();
}

/* What flush() waits for: all that was committed then. */
typedef struct Moment
{
	OnsideSnapshot *snapshot;
	TimestampTz time;
} Moment;

/*
 * Is every event settled that was committed at that moment, and does "status"
 * know of it?  A cursor that our worker has not written covers nothing; the
 * worker writes its own.
 */
static bool
is_settled(const Moment *until, OnsideSlot *slot)
{
	OnsideDelivery delivery = {0};
	bool		result;
	const char *row_problem;

	/*
	 * The tables of another version may look different, and their worker
	 * idles.
	 */
	if (onside_version_problem() != NULL)
		return false;

	/* Reading the outbox may be what crashes. */
	if (onside_crash_guard_reason() != NULL)
		return false;

	/* Waiting for a lock could take longer than the caller's timeout. */
	if (onside_lock_tables(FLUSH_USES) != NULL)
		return false;

	/* The caller's own snapshot may be as old as its transaction. */
	PushActiveSnapshot(GetLatestSnapshot());
	onside_delivery_load(&delivery, NULL, &row_problem);
	result = onside_window_pending(&delivery.settled, until->snapshot,
								   1).events == 0 &&
		!onside_aside_holds(until->time) &&
		(slot == NULL || onside_slot_tells(slot, delivery.delivered +
										   delivery.dead_lettered));
	PopActiveSnapshot();
	onside_cursor_release(&delivery.settled);
	onside_unlock_tables(FLUSH_USES);
	return result;
}

/* Tells the worker that nobody waits here any more, also after an error. */
static void
stop_waiting(int code, Datum arg)
{
	OnsideSlot *slot = (OnsideSlot *) DatumGetPointer(arg);

	if (slot != NULL)
		pg_atomic_fetch_sub_u32(&slot->flush_waiters, 1);
}

/*
 * Waits, until the deadline, until everything is settled that was committed
 * at that moment.  The worker wakes us when the cursor has moved.  We also
 * look by ourselves once in FLUSH_POLL: there may be no worker, and the slot
 * may be another database's by now.
 */
static bool
wait_until_settled(const Moment *until, OnsideSlot *slot,
				   TimestampTz deadline)
{
	/* Nobody signals this one: without a slot, waiting is only sleeping. */
	static ConditionVariable nobody;
	ConditionVariable *cv = slot != NULL ? &slot->settled_cv : &nobody;
	bool		settled;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "onside_attribution flush",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);

	/* Prepared before the first look, so that no wake-up is missed. */
	if (slot != NULL)
		onside_slot_wake(slot, ONSIDE_WAKE_FLUSH);
	else
		ConditionVariableInit(cv);
	ConditionVariablePrepareToSleep(cv);
	while (!(settled = is_settled(until, slot)))
	{
		TimestampTz now = GetCurrentTimestamp();
		long		left = TimestampDifferenceMilliseconds(now, deadline);

		CHECK_FOR_INTERRUPTS();
		if (now >= deadline)
			break;

		/* Each look allocates; sleep without it. */
		MemoryContextReset(context);
		left = Min(left, FLUSH_POLL);
		(void) ConditionVariableTimedSleep(cv, left,
										   onside_wait_event("OnsideAttributionFlush"));
	}
	ConditionVariableCancelSleep();
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return settled;
}

/* Waits until everything is settled that is committed now. */
static bool
flush_until(OnsideSlot *slot, TimestampTz deadline)
{
	Moment		until;
	bool		settled;

	/* The caller's own snapshot may be as old as its transaction. */
	PushActiveSnapshot(GetLatestSnapshot());
	until.snapshot = onside_snapshot_take();
	until.time = GetCurrentTimestamp();
	PopActiveSnapshot();

	/* While anybody waits, the worker writes its cursor at once. */
	if (slot != NULL)
		pg_atomic_fetch_add_u32(&slot->flush_waiters, 1);
	PG_ENSURE_ERROR_CLEANUP(stop_waiting, PointerGetDatum(slot));
	{
		settled = wait_until_settled(&until, slot, deadline);
	}
	PG_END_ENSURE_ERROR_CLEANUP(stop_waiting, PointerGetDatum(slot));
	stop_waiting(0, PointerGetDatum(slot));
	onside_snapshot_release(until.snapshot);
	return settled;
}

/* flush(timeout interval) */
Datum
onside_flush(PG_FUNCTION_ARGS)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz deadline =
		DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
												TimestampTzGetDatum(now),
												PG_GETARG_DATUM(0)));

	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("flush() cannot be executed during recovery"),
				 errhint("Events are sent by the primary.")));

	PG_RETURN_BOOL(flush_until(onside_slot_find(MyDatabaseId), deadline));
}

void
onside_count_pending(OnsideDelivery *delivery, OnsidePending *pending)
{
	TimestampTz oldest;
	const char *problem;

	onside_delivery_load(delivery, NULL, &problem);
	*pending = onside_window_pending(&delivery->settled, NULL,
									 ONSIDE_MAX_COUNTED + 1);
	onside_cursor_release(&delivery->settled);

	/* Events that are aside are below the cursor, and still pending. */
	pending->events += onside_aside_count(ONSIDE_MAX_COUNTED + 1, &oldest);
	if (oldest != 0 && (pending->oldest == 0 || oldest < pending->oldest))
		pending->oldest = oldest;
}

/* Runs in a subtransaction. */
static void
flush_for_a_moment(void *arg)
{
	(void) flush_until(arg,
					   TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												   WRITE_TIMEOUT));
}

void
onside_write_settled(void)
{
	OnsideSlot *slot = onside_slot_find(MyDatabaseId);
	OnsideStatus status;
	int64		pending;
	ErrorData  *error;

	if (!ActiveSnapshotSet() || slot == NULL ||
		onside_slot_read_status(slot, &status, &pending) == 0 ||
		status.objects_differ || pending != 0)
		return;

	/* The tables may be in any state, and this is but a courtesy. */
	error = onside_attempt(flush_for_a_moment, slot, true);
	if (error != NULL && onside_attempt_was_interrupted(error))
		ReThrowError(error);
}
