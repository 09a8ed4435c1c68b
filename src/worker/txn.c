/*-------------------------------------------------------------------------
 *
 * txn.c
 *		The worker's transactions, and what it does when one fails.
 *
 * DROP EXTENSION can come at any time.  It locks the extension before anything
 * else, so each of our transactions, all of them short, does that first, too,
 * and then looks whether the tables are still there, and still the same.  Then
 * they stay until its end.
 *
 * The worker never waits for a lock.  It takes those of the tables and indexes
 * that it is about to use if all of them are free at once; otherwise it gives
 * back what it has got, and tries again a little later.  So nobody ever waits
 * for us longer than for a few milliseconds of work, an administrator can lock
 * our tables in any order and for as long as he likes, and what needs none of
 * the locked tables goes on: with dead_letter locked, events are delivered.
 *
 * Nor does an error end the process.  A full disk, a table that somebody has
 * altered, a damaged page: the transaction is rolled back, and the work rests
 * before it is tried again, twice as long each time.  What the API has accepted
 * meanwhile is remembered in memory, so it is not sent again just because it
 * could not be written down.  The log gets a line a minute, "status" says
 * what is wrong for as long as it lasts.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/lwlock.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "clock.h"
#include "compat.h"
#include "log/locks.h"
#include "log/service.h"
#include "log/tables.h"
#include "worker/process.h"
#include "worker/txn.h"

/* How long work rests after a lock that was not free, and after an error; ms. */
#define LOCKED_MIN_DELAY	20
#define LOCKED_MAX_DELAY	500
#define FAILED_MIN_DELAY	500
#define FAILED_MAX_DELAY	60000

/* A problem is news for so long after the work could have been tried again. */
#define STALE_AFTER			3000

/* The log gets a line about the same problem so often; ms. */
#define LOG_INTERVAL		60000

/* ----------
 * Locks
 * ----------
 */

/* The extension that we serve is not there (any more). */
static void
leave(OnsideWorker *worker, bool another)
{
	onside_service_leave(worker->slot, another ? ONSIDE_SLOT_WANTED :
						 ONSIDE_SLOT_ABSENT, true);
	proc_exit(0);
}

void
onside_txn_leave_orderly(OnsideWorker *worker)
{
	worker->txn.left_orderly = true;
	proc_exit(0);
}

/*
 * Locks the extension and those tables, in the current transaction.  Returns
 * what is locked by somebody else, or NULL.
 */
static const char *
lock(OnsideWorker *worker, int uses)
{
	OnsideTxn  *txn = &worker->txn;
	const char *busy;
	Oid			table;

	if (!OidIsValid(txn->extension))
		txn->extension = get_extension_oid("onside_attribution", true);
	if (!OidIsValid(txn->extension))
		leave(worker, false);
	if (!ConditionalLockDatabaseObject(ExtensionRelationId, txn->extension, 0,
									   AccessShareLock))
		return "extension onside_attribution is locked by another session";

	table = onside_relation_oid("delivery_cursor");
	if (!OidIsValid(txn->cursor_table))
		txn->cursor_table = table;
	if (table != txn->cursor_table || !OidIsValid(table))
		leave(worker, OidIsValid(table));

	busy = onside_lock_tables(uses);
	if (busy != NULL)
		return psprintf("%s.%s is locked by another session", ONSIDE_SCHEMA,
						busy);
	return NULL;
}

/* ----------
 * Brakes
 * ----------
 */

void
onside_brake_init(OnsideBrake *brake, const char *work, OnsideStep step)
{
	memset(brake, 0, sizeof(*brake));
	brake->work = work;
	brake->step = step;
}

long
onside_brake_timeout(OnsideWorker *worker, const OnsideBrake *brake)
{
	if (brake->problem == NULL)
		return -1;
	return brake->tried_at < worker->txn.hurried_at ? 0 :
		onside_ms_until(brake->tried_at, brake->delay);
}

const char *
onside_brake_problem(const OnsideBrake *brake)
{
	if (brake->problem == NULL ||
		onside_ms_until(brake->tried_at, brake->delay + STALE_AFTER) == 0)
		return NULL;
	return brake->problem;
}

void
onside_txn_hurry(OnsideWorker *worker)
{
	worker->txn.hurried_at = onside_clock();
}

void
onside_brake_release(OnsideBrake *brake)
{
	if (brake->problem == NULL)
		return;
	pfree(brake->problem);
	brake->problem = NULL;
	brake->delay = 0;
}

/* The work rests for a while, twice as long as the last time. */
static void
pull_brake(OnsideBrake *brake, const char *problem, int min_delay,
		   int max_delay)
{
	char	   *text = psprintf("could not %s: %s", brake->work, problem);

	if (brake->problem != NULL)
		pfree(brake->problem);
	brake->problem = MemoryContextStrdup(TopMemoryContext, text);
	pfree(text);
	brake->delay = Max(min_delay, Min(brake->delay * 2, max_delay));
	brake->tried_at = onside_clock();
}

/*
 * Rolls back after an error.  What PostgreSQL's own processes do in their
 * outermost error handler, of which this is the part that a transaction needs.
 */
static void
roll_back(OnsideBrake *brake, MemoryContext context)
{
	ErrorData  *error;

	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	if (brake->logged_at == 0 ||
		onside_ms_until(brake->logged_at, LOG_INTERVAL) == 0)
	{
		error_context_stack = NULL;
		EmitErrorReport();
		brake->logged_at = onside_clock();
	}
	AbortCurrentTransaction();
	FlushErrorState();
	MemoryContextSwitchTo(context);
	pull_brake(brake, error->message, FAILED_MIN_DELAY, FAILED_MAX_DELAY);
	FreeErrorData(error);
	RESUME_INTERRUPTS();
}

/* ----------
 * Transactions
 * ----------
 */

/* An error in it is caught here, and nowhere above. */
bool
onside_txn_run(OnsideWorker *worker, OnsideBrake *brake, int uses,
			   OnsideTxnBody body, void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorContextCallback *callbacks = error_context_stack;
	volatile bool done = false;

	if (onside_brake_timeout(worker, brake) > 0)
		return false;
	onside_crash_guard_step(brake->step, NULL);

	PG_TRY();
	{
		const char *busy;

		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		busy = lock(worker, uses);
		if (busy == NULL)
		{
			PushActiveSnapshot(GetTransactionSnapshot());
			body(worker, arg);
			PopActiveSnapshot();
			CommitTransactionCommand();
			done = true;
		}
		else
		{
			pull_brake(brake, busy, LOCKED_MIN_DELAY, LOCKED_MAX_DELAY);
			AbortCurrentTransaction();
		}
		MemoryContextSwitchTo(context);
	}
	PG_CATCH();
	{
		roll_back(brake, context);
		error_context_stack = callbacks;
	}
	PG_END_TRY();

	if (done)
		onside_brake_release(brake);
	return done;
}

/* Sleeps between the tries, and leaves if the slot is closed meanwhile. */
void
onside_txn_insist(OnsideWorker *worker, OnsideBrake *brake, int uses,
				  OnsideTxnBody body, void *arg)
{
	while (!onside_txn_run(worker, brake, uses, body, arg))
	{
		LWLockAcquire(worker->slot->lock, LW_EXCLUSIVE);
		onside_copy_text(worker->slot->status.reason, brake->problem,
						 sizeof(worker->slot->status.reason));
		LWLockRelease(worker->slot->lock);
		pgstat_report_activity(STATE_IDLE, brake->problem);

		onside_process_sleep(onside_brake_timeout(worker, brake),
							 worker->wait_event_idle);
		if (onside_service_is_closed(worker->slot))
			onside_txn_leave_orderly(worker);
	}
}
