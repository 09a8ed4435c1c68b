/*-------------------------------------------------------------------------
 *
 * txn.c
 *		The worker's transactions, and what it does when one fails.
 *
 * All rooms of the worker run their transactions here (onside_txn_run()), one
 * at a time, and all transactions are short.
 *
 * DROP EXTENSION can come at any time, and locks the extension before anything
 * else.  So each of our transactions locks the extension first, too, and then
 * looks whether the tables are still there, and still the same.  From then on
 * the tables stay until the transaction ends.
 *
 * The worker never waits for a lock on the extension or its tables.  It takes
 * the locks on the tables and indexes that it is about to use if all of them
 * are free at once.  Otherwise it gives back what it has got, and tries again
 * a little later.  So nobody ever waits for us longer than for a few
 * milliseconds of work, and an administrator can lock our tables in any order
 * and for as long as he likes.  Work that needs none of the locked tables goes
 * on: with dead_letter locked, events are still delivered.
 *
 * An error does not end the process either.  After a full disk, a table that
 * somebody has altered, or a damaged page, the transaction is rolled back, and
 * the work rests before it is tried again, twice as long each time.  Meanwhile
 * the sender remembers what the API has accepted, so an event is not sent
 * again just because that could not be written.  The server's log gets a line
 * a minute, and "status" says what is wrong as long as it lasts.
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

/*
 * How long work rests after a lock that was not free, and after an error; ms.
 */
#define LOCKED_MIN_DELAY	20
#define LOCKED_MAX_DELAY	500
#define FAILED_MIN_DELAY	500
#define FAILED_MAX_DELAY	60000

/*
 * "status" shows the problem of work that rests.  If the work has not been
 * tried for so long after it could have been, nobody needs it any more; ms.
 */
#define STALE_AFTER			3000

/* How often the log gets a line about errors of one kind of work; ms. */
#define LOG_INTERVAL		60000

/* ----------
 * Locks
 * ----------
 */

/*
 * Ends the process: the extension that we serve is not there (any more).  If
 * there is another one in its place, a successor is to serve that.
 */
static void
leave_slot(OnsideWorker *worker, bool another)
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
 * Locks the extension and the tables that are used, in the current transaction.
 * Returns NULL, or in words what another session has locked.
 */
static const char *
lock_what_is_used(OnsideWorker *worker, int uses)
{
	OnsideTxn  *txn = &worker->txn;
	const char *busy;
	Oid			table;

	/* The extension comes first, as it does in DROP EXTENSION. */
	if (!OidIsValid(txn->extension))
		txn->extension = get_extension_oid("onside_attribution", true);
	if (!OidIsValid(txn->extension))
		leave_slot(worker, false);
	if (!ConditionalLockDatabaseObject(ExtensionRelationId, txn->extension, 0,
									   AccessShareLock))
		return "extension onside_attribution is locked by another session";

	/* Another OID means that it has been dropped, and perhaps created again. */
	table = onside_relation_oid("delivery_cursor");
	if (!OidIsValid(txn->cursor_table))
		txn->cursor_table = table;
	if (table != txn->cursor_table || !OidIsValid(table))
		leave_slot(worker, OidIsValid(table));

	/* All of the tables, or none. */
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

/* Has the work rest, twice as long as the last time, and notes why. */
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
 * Rolls back after an error, logs it, and has the work rest.  PostgreSQL's own
 * processes do the same in their outermost error handlers, and more: this is
 * the part that a transaction needs.
 */
static void
roll_back(OnsideBrake *brake, MemoryContext context)
{
	ErrorData  *error;

	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(context);
	error = CopyErrorData();

	/* The callbacks are those of the code that has failed. */
	if (brake->logged_at == 0 ||
		onside_ms_until(brake->logged_at, LOG_INTERVAL) == 0)
	{
		error_context_stack = NULL;
		EmitErrorReport();
		brake->logged_at = onside_clock();
	}

	/* Now nothing of the transaction is left. */
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

/*
 * An error in the body is caught here, and nowhere above.  After an error or a
 * lock that is not free, the brake says how long the work rests.
 */
bool
onside_txn_run(OnsideWorker *worker, OnsideBrake *brake, int uses,
			   OnsideTxnBody body, void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorContextCallback *callbacks = error_context_stack;
	volatile bool done = false;

	if (onside_brake_timeout(worker, brake) > 0)
		return false;

	/* If this crashes the process, crash_guard.c knows what we did. */
	onside_crash_guard_step(brake->step, NULL);

	PG_TRY();
	{
		const char *busy;

		/* Begin, and take all locks. */
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		busy = lock_what_is_used(worker, uses);
		if (busy == NULL)
		{
			/*
			 * The snapshot comes after the locks: it sees what they waited
			 * for.
			 */
			PushActiveSnapshot(GetTransactionSnapshot());
			body(worker, arg);
			PopActiveSnapshot();
			CommitTransactionCommand();
			done = true;
		}
		else
		{
			/* The text is in the transaction's memory. */
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

/*
 * Sleeps between the tries.  If the slot is closed meanwhile, somebody waits
 * for us, and the process ends.
 */
void
onside_txn_insist(OnsideWorker *worker, OnsideBrake *brake, int uses,
				  OnsideTxnBody body, void *arg)
{
	while (!onside_txn_run(worker, brake, uses, body, arg))
	{
		/* publish.c is not at work yet. */
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
