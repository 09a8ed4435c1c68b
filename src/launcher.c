/*-------------------------------------------------------------------------
 *
 * launcher.c
 *		The background worker that runs a worker for each database.
 *
 * Which databases have the extension is written in each database's own
 * pg_extension, which only a connection to it can read.  So the launcher takes
 * a slot for every database that it does not know and starts a worker there;
 * one that finds no extension says so and leaves, and the launcher remembers.
 * CREATE EXTENSION takes a slot by itself, at commit.  A slot then goes
 *
 *		FREE -> WANTED -> STARTING -> RUNNING -> WANTED (worker ended) ...
 *									  RUNNING -> ABSENT -> FREE
 *
 * where WANTED becomes STARTING here alone, and FREE is made here alone.  The
 * state is in shared memory, so that a restarted launcher finds workers that
 * its predecessor started.
 *
 * The launcher sleeps until it is woken: by a commit that makes or drops the
 * extension, by a command on a database, by a worker that ends.  It looks by
 * itself once a minute, and more often while something that it wants to start
 * cannot be started.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "launcher.h"
#include "settings.h"
#include "shmem.h"
#include "worker.h"

#define POLL_INTERVAL		60000	/* ms */
#define RETRY_INTERVAL		10000	/* ms; while a worker cannot be started */

/* A worker that fails soon after its start waits before the next one; ms. */
#define HEALTHY_RUN			10000
#define RESTART_MIN_DELAY	500
#define RESTART_MAX_DELAY	10000

/*
 * Most databases in which is looked for the extension at once: each takes one
 * of max_worker_processes.
 */
#define MAX_STARTING		2

/* What the launcher knows of a slot besides the slot. */
typedef struct Minding
{
	BackgroundWorkerHandle *handle;
	TimestampTz started_at;
	TimestampTz not_before;		/* of the next start */
	int			failures;		/* short runs in a row */
} Minding;

static Minding *mindings;
static List *absent;			/* OIDs of databases without the extension */

/* ----------
 * Databases
 * ----------
 */

/* OIDs of the databases in which a worker could run. */
static List *
list_databases(void)
{
	List	   *result = NIL;
	MemoryContext context = CurrentMemoryContext;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database db = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext old;

		/* -2 marks one that a failed DROP DATABASE has left behind */
		if (!db->datallowconn || db->datistemplate || db->datconnlimit == -2)
			continue;
		old = MemoryContextSwitchTo(context);
		result = lappend_oid(result, db->oid);
		MemoryContextSwitchTo(old);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return result;
}

/* Remembers that this database does not have the extension. */
static void
remember_absent(Oid database)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	absent = list_append_unique_oid(absent, database);
	MemoryContextSwitchTo(old);
}

/* Takes slots for databases that we know nothing of, as far as there are. */
static void
adopt_databases(List *databases)
{
	ListCell   *lc;

	foreach(lc, databases)
	{
		Oid			database = lfirst_oid(lc);

		if (list_member_oid(absent, database) ||
			onside_slot_find(database) != NULL)
			continue;
		if (onside_slot_request(database) == NULL)
			break;
	}
}

/* ----------
 * Slots
 * ----------
 */

static void
set_reason(OnsideSlot *slot, const char *reason)
{
	LWLockAcquire(slot->lock, LW_EXCLUSIVE);
	slot->status.state = ONSIDE_NOT_RUNNING;
	strlcpy(slot->status.reason, reason, sizeof(slot->status.reason));
	LWLockRelease(slot->lock);
}

static bool
set_state(OnsideSlot *slot, OnsideSlotState from, OnsideSlotState to)
{
	bool		done;

	LWLockAcquire(onside_slots_lock(), LW_EXCLUSIVE);
	done = slot->state == from;
	if (done)
		slot->state = to;
	LWLockRelease(onside_slots_lock());
	return done;
}

static void
free_slot(int i)
{
	onside_slot_free(onside_slot_get(i));
	if (mindings[i].handle != NULL)
		pfree(mindings[i].handle);
	memset(&mindings[i], 0, sizeof(Minding));
}

/* Its worker has ended, or never came up: when may the next one start? */
static void
schedule_restart(Minding *minding, bool orderly)
{
	TimestampTz now = GetCurrentTimestamp();
	int			delay;

	if (minding->started_at == 0)
		return;					/* the first one: at once */

	if (orderly ||
		TimestampDifferenceExceeds(minding->started_at, now, HEALTHY_RUN))
		minding->failures = 0;
	else
		minding->failures = Min(minding->failures + 1, 16);
	minding->started_at = 0;

	delay = minding->failures == 0 ? 0 :
		Min(RESTART_MIN_DELAY << (minding->failures - 1), RESTART_MAX_DELAY);
	minding->not_before = TimestampTzPlusMilliseconds(now, delay);
}

/* Starts a worker.  Returns false if that is not possible now. */
static bool
start_worker(int i)
{
	OnsideSlot *slot = onside_slot_get(i);
	Minding    *minding = &mindings[i];
	MemoryContext old;
	bool		ok;

	if (!set_state(slot, ONSIDE_SLOT_WANTED, ONSIDE_SLOT_STARTING))
		return true;

	if (minding->handle != NULL)
		pfree(minding->handle);
	minding->handle = NULL;
	old = MemoryContextSwitchTo(TopMemoryContext);
	ok = onside_worker_register(slot, i, &minding->handle);
	MemoryContextSwitchTo(old);

	if (ok)
	{
		minding->started_at = GetCurrentTimestamp();
		return true;
	}
	(void) set_state(slot, ONSIDE_SLOT_STARTING, ONSIDE_SLOT_WANTED);
	if (slot->status.reason[0] == '\0')
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("onside_attribution: no free background worker for database %u",
						slot->database),
				 errhint("Increase max_worker_processes.")));
	set_reason(slot, "there is no free background worker: increase max_worker_processes");
	return false;
}

static int
count_starting(void)
{
	int			n = 0;

	for (int i = 0; i < onside_max_databases; i++)
		if (onside_slot_get(i)->state == ONSIDE_SLOT_STARTING)
			n++;
	return n;
}

/* Did a worker that was registered end before it took its slot? */
static bool
start_failed(int i)
{
	pid_t		pid;

	/* A worker of a launcher before us; if it still comes, it leaves again. */
	if (mindings[i].handle == NULL)
		return onside_slot_get(i)->worker_pid == 0;

	return GetBackgroundWorkerPid(mindings[i].handle, &pid) == BGWH_STOPPED;
}

/* Looks after one slot.  Returns milliseconds until it wants that again. */
static long
mind_slot(int i, List *databases)
{
	OnsideSlot *slot = onside_slot_get(i);
	Minding    *minding = &mindings[i];
	long		wait;

	if (!OidIsValid(slot->database))
		return POLL_INTERVAL;

	if (slot->held_by != 0 && BackendPidGetProc(slot->held_by) == NULL)
		slot->held_by = 0;		/* it died without letting go */

	switch (slot->state)
	{
		case ONSIDE_SLOT_FREE:
		case ONSIDE_SLOT_RUNNING:
			return POLL_INTERVAL;

		case ONSIDE_SLOT_ABSENT:
			remember_absent(slot->database);
			free_slot(i);
			return POLL_INTERVAL;

		case ONSIDE_SLOT_STARTING:
			if (!start_failed(i) ||
				!set_state(slot, ONSIDE_SLOT_STARTING, ONSIDE_SLOT_WANTED))
				return RETRY_INTERVAL;
			/* FALLTHROUGH */

		case ONSIDE_SLOT_WANTED:
			if (slot->held_by != 0)
				return POLL_INTERVAL;
			if (!list_member_oid(databases, slot->database))
			{
				free_slot(i);
				return POLL_INTERVAL;
			}
			schedule_restart(minding, slot->orderly);
			wait = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
												   minding->not_before);
			if (wait > 0)
				return wait;
			if (count_starting() >= MAX_STARTING)
				return RETRY_INTERVAL;	/* they wake us */
			(void) start_worker(i);
			return RETRY_INTERVAL;
	}
	return POLL_INTERVAL;
}

/* ----------
 * The loop
 * ----------
 */

static void
launcher_exit(int code, Datum arg)
{
	onside_launcher_detach();
}

static long
look_around(void)
{
	long		timeout = POLL_INTERVAL;
	List	   *databases;

	if (onside_launcher_take_forget())
	{
		list_free(absent);
		absent = NIL;
	}

	databases = list_databases();
	for (int i = 0; i < onside_max_databases; i++)
		timeout = Min(timeout, mind_slot(i, databases));

	/* A slot that came free just now can be taken at once. */
	adopt_databases(databases);
	for (int i = 0; i < onside_max_databases; i++)
		timeout = Min(timeout, mind_slot(i, databases));
	list_free(databases);
	return timeout;
}

void
onside_launcher_main(Datum arg)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	pqsignal(SIGINT, SIG_IGN);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	MemoryContextSwitchTo(TopMemoryContext);
	pgstat_report_appname("onside_attribution launcher");

	mindings = palloc0(onside_max_databases * sizeof(Minding));
	before_shmem_exit(launcher_exit, (Datum) 0);
	onside_launcher_attach();

	for (;;)
	{
		long		timeout;

		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}

		timeout = look_around();
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 timeout, onside_wait_event("OnsideAttributionLauncher"));
	}
}

void
onside_launcher_register(void)
{
	BackgroundWorker worker = {0};

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, "onside_attribution",
			sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "onside_launcher_main",
			sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_name, "onside_attribution launcher",
			sizeof(worker.bgw_name));
	strlcpy(worker.bgw_type, "onside_attribution launcher",
			sizeof(worker.bgw_type));
	RegisterBackgroundWorker(&worker);
}
