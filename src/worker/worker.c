/*-------------------------------------------------------------------------
 *
 * worker.c
 *		The background worker that sends one database's events.
 *
 * A loop around one wait.  Each turn takes the reasons for waking up and the
 * answers that have come, has the sender say what to send next and the reader
 * read it, writes down what has become of events, publishes how things stand,
 * and sleeps.  Events go one way, and what becomes of them comes back the
 * other:
 *
 *		reader.c (window.c -> batch.c) -> sending.c (sender.c -> http.c)
 *		progress.c, undecided.c <- sending.c
 *
 * This file has the process (how it starts and takes its slot), the loop, and
 * when to wake up.  configuration.c has what the worker was told to do, and
 * publish.c what the worker tells others.  All that the worker knows is in one
 * struct; see state.h.
 *
 * The launcher registers the process (onside_worker_register()).  However the
 * process ends, before_exit() leaves the slot; after a crash, shared memory is
 * made anew.  The loop takes the slot's own lock for a moment at a time, and
 * waits for no lock on a table of ours.
 *
 * An error in a transaction of ours (a full disk, a locked or damaged table)
 * does not end the process, and work that needs no such transaction goes on;
 * see txn.c.  Nothing that the network does is an error: the sender decides
 * what to do about it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "compat.h"
#include "log/crash_guard.h"
#include "log/service.h"
#include "log/window.h"
#include "send/http.h"
#include "version.h"
#include "worker/backlog.h"
#include "worker/chance.h"
#include "worker/configuration.h"
#include "worker/process.h"
#include "worker/progress.h"
#include "worker/publish.h"
#include "worker/reader.h"
#include "worker/sending.h"
#include "worker/txn.h"
#include "worker/undecided.h"
#include "worker/worker.h"

/*
 * How often we look for what no callback tells us of (logical replication's
 * prepared transactions that are committed); ms.
 */
#define POLL_INTERVAL			15000

/* How soon we look again for events that were deleted, if we could not; ms. */
#define RECHECK_INTERVAL		500

/* ----------
 * Waking up
 * ----------
 */

/* What signals ask for: to end, or to read the settings again. */
static void
serve_signals(OnsideWorker *worker)
{
	if (ProcDiePending)
		onside_undecided_save_at_exit(worker);
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
		onside_configuration_reload(worker);
}

/*
 * Takes the reasons for which others have woken us, and then looks at what
 * each stands for.  A reason that comes after the exchange is for the next
 * turn.
 */
static void
take_wakeup(OnsideWorker *worker)
{
	OnsideSlot *slot = worker->slot;
	uint32		bits = pg_atomic_exchange_u32(&slot->wakeup, 0);
	uint64		recorded = pg_atomic_read_u64(&slot->recorded);

	if (bits == 0 && recorded == worker->noticed)
		return;

	/* There may be new events, whatever else there is. */
	worker->noticed = recorded;
	onside_reader_wake(worker);

	/* Commands on the extension, pause() and resume(): looked up later. */
	if (bits & ONSIDE_WAKE_CHECK)
		onside_configuration_check_extension(worker);
	if (bits & ONSIDE_WAKE_CONTROL)
		onside_configuration_check_control(worker);
	if (bits & (ONSIDE_WAKE_CHECK | ONSIDE_WAKE_RESUME))
		onside_txn_hurry(worker);

	/* resume(): everything that waits is tried now. */
	if (bits & ONSIDE_WAKE_RESUME)
	{
		pg_atomic_write_u32(&slot->start_now, 0);
		onside_configuration_read(worker);
		onside_sending_configure(worker, true, false);
		onside_chance_expect(worker, GetCurrentTimestamp());
	}

	/* flush() relies on the row of delivery_cursor. */
	if (bits & ONSIDE_WAKE_FLUSH)
		onside_progress_check_row(worker);
}

/*
 * Somebody has deleted events, or has put some aside.  From now on no deleted
 * event is sent, and pending events are counted anew.  A deleted event that is
 * in flight is known to the sender until its request has ended, so we look
 * again then.
 */
static void
notice_withdrawals(OnsideWorker *worker)
{
	uint32		now = pg_atomic_read_u32(&worker->slot->epoch);

	/* A commit that deletes events raises the epoch. */
	if (now != worker->epoch)
	{
		worker->epoch = now;
		worker->withdrawal_due = true;
		onside_reader_start_over(worker);
		onside_sending_suspect(worker);
	}
	worker->withdrawal_due |= onside_sending_take_suspect(worker);

	/* Forget what is gone; again later, if it cannot be looked up now. */
	if (!worker->withdrawal_due || !onside_sending_check(worker))
		return;
	worker->withdrawal_due = false;
	onside_undecided_look_again(worker);
	onside_backlog_start_counting(worker);

	/* flush() may wait for what was deleted. */
	ConditionVariableBroadcast(&worker->slot->settled_cv);
}

/* ----------
 * Working
 * ----------
 */

/* Takes the answers that have come. */
static void
take_answers(OnsideWorker *worker)
{
	onside_sending_collect(worker);
	onside_configuration_mind_credentials(worker);
}

/* Reads and sends what may be sent now. */
static void
fill_and_send(OnsideWorker *worker)
{
	if (!onside_configuration_may_send(worker))
		return;
	onside_chance_look(worker);
	onside_sending_pump(worker);
}

/* Writes down what is settled, moves events aside, looks after segments. */
static void
write_and_maintain(OnsideWorker *worker)
{
	bool		drained = onside_undecided_is_drained(worker);

	onside_progress_persist_if_due(worker);
	onside_undecided_exchange(worker);
	onside_progress_maintain_if_due(worker, drained);
}

/*
 * Every POLL_INTERVAL, looks for changes that wake nobody.  Returns true if it
 * has looked.
 */
static bool
poll_if_due(OnsideWorker *worker)
{
	if (onside_ms_until(worker->polled_at, POLL_INTERVAL) > 0)
		return false;

	/* Segments, and rows that somebody may have changed by SQL. */
	onside_progress_maintain(worker, onside_undecided_is_drained(worker));
	onside_progress_check_row(worker);
	onside_undecided_look_again(worker);
	onside_chance_expect(worker, GetCurrentTimestamp());

	/* Events may have been deleted by a prepared transaction. */
	(void) onside_sending_check(worker);
	onside_configuration_check_control(worker);

	/* A credentials file may have changed. */
	onside_configuration_read(worker);
	onside_reader_wake(worker);
	worker->polled_at = onside_clock();
	return true;
}

/* ----------
 * Sleeping
 * ----------
 */

/* Milliseconds until the next piece of work that nobody wakes us for. */
static long
sleep_timeout(OnsideWorker *worker)
{
	long		timeout = onside_ms_until(worker->polled_at, POLL_INTERVAL);

	timeout = onside_sooner(timeout, onside_progress_timeout(worker));
	timeout = onside_sooner(timeout, onside_undecided_timeout(worker));
	timeout = onside_sooner(timeout, onside_publish_timeout(worker));
	if (onside_configuration_may_send(worker))
	{
		timeout = onside_sooner(timeout, onside_sending_timeout(worker));
		timeout = onside_sooner(timeout, onside_chance_timeout(worker));
	}
	if (worker->withdrawal_due)
		timeout = onside_sooner(timeout, RECHECK_INTERVAL);
	timeout = onside_sooner(timeout, onside_backlog_timeout(worker));
	return onside_sooner(timeout, onside_configuration_timeout(worker));
}

/*
 * Says after how many more events we want to be woken.  While we cannot send,
 * the first new event wakes us and later ones do not: "status" shows the age
 * of the oldest.  Returns false if there is a reason not to sleep.
 */
static bool
arm_wakeup(OnsideWorker *worker)
{
	uint64		wanted = onside_configuration_may_send(worker) ?
		onside_sending_wants(worker) : 0;

	if (wanted == 0)
		wanted = onside_reader_has_some(worker) ? 0 : 1;
	return onside_slot_arm(worker->slot, worker->noticed, wanted);
}

/* Sleeps until a commit, an answer, a signal, or the time. */
static void
sleep_until_woken(OnsideWorker *worker)
{
	if (!arm_wakeup(worker))
		return;
	onside_crash_guard_step(ONSIDE_STEP_WAITING, NULL);
	(void) onside_http_wait(worker->http, sleep_timeout(worker),
							onside_http_in_flight(worker->http) > 0 ?
							worker->wait_event_request :
							worker->wait_event_idle);
}

/* ----------
 * The loop
 * ----------
 */

/*
 * One turn each time that the worker is woken.  Every step does what is due
 * and waits for nothing; only the last one sleeps.
 */
static void
main_loop(OnsideWorker *worker)
{
	for (;;)
	{
		serve_signals(worker);
		take_wakeup(worker);
		onside_configuration_act(worker);
		take_answers(worker);
		notice_withdrawals(worker);
		fill_and_send(worker);
		onside_progress_settle(worker);
		write_and_maintain(worker);
		if (poll_if_due(worker))
			continue;			/* for what it has found */
		onside_backlog_count_some(worker);
		onside_publish_status(worker);
		sleep_until_woken(worker);
	}
}

/* ----------
 * Starting
 * ----------
 */

/* Exit callback: leaves the slot, unless txn.c has left it already. */
static void
before_exit(int code, Datum arg)
{
	OnsideWorker *worker = (OnsideWorker *) DatumGetPointer(arg);

	onside_service_leave(worker->slot, ONSIDE_SLOT_WANTED,
						 worker->txn.left_orderly);
}

/*
 * Makes the worker and takes its slot.  Ends the process if the slot does not
 * want this worker any more.
 */
static OnsideWorker *
enter_slot(int slot_no, Oid database)
{
	OnsideWorker *worker = MemoryContextAllocZero(TopMemoryContext,
												  sizeof(OnsideWorker));

	worker->slot = onside_service_enter(slot_no, database);
	if (worker->slot == NULL)
		proc_exit(0);

	/*
	 * Exit callbacks run in reverse order.  Registered before we connect, this
	 * one runs after PostgreSQL's own has aborted the transaction.
	 */
	before_shmem_exit(before_exit, PointerGetDatum(worker));
	return worker;
}

/* Body of a transaction: *arg says whether the versions differ. */
static void
look_for_matching_version(OnsideWorker *worker, void *arg)
{
	char	   *problem = onside_version_problem();

	*(bool *) arg = problem != NULL;
	if (problem != NULL)
		onside_publish_version_problem(worker, problem);
}

/*
 * Waits while the extension's tables are of another version than the library,
 * and touches none of them.  Once the versions match, a worker that has waited
 * leaves to a successor: its own settings and caches may be out of date by
 * then.
 */
static void
wait_for_matching_version(OnsideWorker *worker)
{
	OnsideSlot *slot = worker->slot;
	uint32		bits = 0;		/* why we were woken, for when we work */
	bool		waited = false;

	/* Nothing is sent, so no commit has to wake us. */
	(void) onside_slot_arm(slot, 0, 0);
	for (;;)
	{
		bool		differs;

		bits |= pg_atomic_exchange_u32(&slot->wakeup, 0);
		if (onside_service_is_closed(slot))
			break;

		onside_txn_insist(worker, &worker->configuration.looking, 0,
						  look_for_matching_version, &differs);
		if (!differs)
			break;

		waited = true;
		onside_process_sleep(POLL_INTERVAL, worker->wait_event_idle);
	}

	/* A resume() that came meanwhile is heard by whoever works next. */
	pg_atomic_fetch_or_u32(&slot->wakeup, bits);
	if (waited || onside_service_is_closed(slot))
		onside_txn_leave_orderly(worker);

	LWLockAcquire(slot->lock, LW_EXCLUSIVE);
	slot->status.objects_differ = false;
	LWLockRelease(slot->lock);
}

/*
 * Makes the rooms ready.  A room may use those that were made ready before it.
 * Reading begins where the predecessor's settled cursor stands.
 */
static void
prepare_rooms(OnsideWorker *worker)
{
	onside_progress_init(worker);
	worker->http = onside_http_create();
	worker->epoch = pg_atomic_read_u32(&worker->slot->epoch);
	onside_sending_init(worker, &worker->progress.delivery);
	onside_reader_init(worker, &worker->progress.delivery.settled);
	onside_chance_init(worker);
	onside_undecided_init(worker);
	onside_configuration_read(worker);
	onside_backlog_init(worker);
	onside_backlog_start_counting(worker);
	worker->polled_at = onside_clock();
}

/*
 * The process: takes its slot, connects, finds the extension, waits until
 * library and SQL objects belong together, and works until it is told to end.
 */
void
onside_worker_main(Datum slot_no)
{
	OnsideWorker *worker;
	Oid			database;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	pqsignal(SIGINT, PG_SIG_IGN);	/* there is no query of ours to cancel */
	BackgroundWorkerUnblockSignals();

	/* The crash guard comes first: it may have us wait before we connect. */
	memcpy(&database, MyBgworkerEntry->bgw_extra, sizeof(database));
	worker = enter_slot(DatumGetInt32(slot_no), database);
	onside_crash_guard_begin(database);
	onside_process_connect(database);

	worker->wait_event_idle = onside_wait_event("OnsideAttributionIdle");
	worker->wait_event_request = onside_wait_event("OnsideAttributionRequest");

	/* Find the extension, and a version of it that fits this library. */
	onside_publish_init(worker);
	onside_configuration_init(worker);
	onside_service_found(worker->slot);
	wait_for_matching_version(worker);

	/* Go on from where the predecessor has stopped. */
	onside_snapshots_live_in(TopMemoryContext);
	prepare_rooms(worker);
	pgstat_report_appname("onside_attribution worker");

	main_loop(worker);
}

/*
 * Called by the launcher, which the postmaster wakes when the worker has
 * started or ended.  The arguments of the process are its slot and its
 * database.
 */
bool
onside_worker_register(Oid database, int slot_no,
					   BackgroundWorkerHandle **handle)
{
	BackgroundWorker worker;

	onside_process_describe(&worker, "onside_attribution worker",
							"onside_worker_main");
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	snprintf(worker.bgw_name, sizeof(worker.bgw_name),
			 "onside_attribution worker for database %u", database);
	worker.bgw_main_arg = Int32GetDatum(slot_no);
	worker.bgw_notify_pid = MyProcPid;
	memcpy(worker.bgw_extra, &database, sizeof(Oid));

	return RegisterDynamicBackgroundWorker(&worker, handle);
}
