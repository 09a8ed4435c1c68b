/*-------------------------------------------------------------------------
 *
 * launcher.c
 *		The background worker that runs a worker for each database.
 *
 * Which databases have the extension is written in each database's own
 * pg_extension, which only a connection to it can read.  So the launcher takes
 * a slot for every database that it does not know and starts a worker there;
 * one that finds no extension says so and leaves, and the launcher remembers.
 * CREATE EXTENSION takes a slot by itself, at commit.  The states of a slot, and
 * who makes which step, are in shmem.h, and service.c makes them; WANTED becomes
 * STARTING here alone, and slots are given back here alone.  The state is in shared
 * memory, so that a restarted launcher finds workers that its predecessor started.
 *
 * A database that becomes a template or refuses connections is dismissed: its
 * worker leaves and its slot is freed, as if it had been dropped.
 *
 * Slots and background workers can be fewer than databases.  Who has the
 * extension keeps its slot.  A worker that fails before it knows whether its
 * database has it gives way to the databases that have not been looked at.
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
#include "storage/lwlock.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "log/crash_guard.h"
#include "log/service.h"
#include "settings.h"
#include "worker/launcher.h"
#include "worker/process.h"
#include "worker/worker.h"

#define POLL_INTERVAL		60000	/* ms */
#define RETRY_INTERVAL		10000	/* ms; while a worker cannot be started */

/*
 * A worker that fails soon after its start waits before the next one, or until somebody
 * calls resume(); ms.
 */
#define HEALTHY_RUN			10000
#define RESTART_MIN_DELAY	500
#define RESTART_MAX_DELAY	10000

/*
 * Most databases in which is looked for the extension at once: each takes one
 * of max_worker_processes.  One that takes longer than LOOK_TIME (ms) waits for
 * somebody's lock, and is not to keep the others from starting.
 */
#define MAX_STARTING		2
#define LOOK_TIME			1000

/* What the launcher knows of a slot besides what is in shared memory. */
typedef struct Minding
{
	BackgroundWorkerHandle *handle;
	TimestampTz started_at;
	TimestampTz not_before;		/* of the next start */
	unsigned	failures;		/* short runs in a row */
	bool		told;			/* the log has that it cannot be started */
} Minding;

/* What a launcher is; made by onside_launcher_main() and handed down. */
typedef struct Launcher
{
	Minding    *mindings;		/* one for each slot */
	List	   *absent;			/* OIDs of databases without the extension */
	List	   *postponed;		/* OIDs of those where looking has failed */
	bool		out_of_slots;	/* and a database wants one */
	bool		told;			/* the log has that we are, for good */
} Launcher;

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

static void
remember(List **list, Oid database)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	*list = list_append_unique_oid(*list, database);
	MemoryContextSwitchTo(old);
}

/*
 * Requests a slot for each of these databases that we know nothing of, but for those
 * in "except", until none is free.
 */
static void
adopt(Launcher *launcher, List *databases, List *except)
{
	ListCell   *lc;

	foreach(lc, databases)
	{
		Oid			database = lfirst_oid(lc);
		OnsideSlot *slot;

		if (list_member_oid(except, database) ||
			list_member_oid(launcher->absent, database) ||
			onside_slot_find(database) != NULL)
			continue;
		slot = onside_service_request(database);
		if (slot == NULL)
		{
			launcher->out_of_slots = true;
			return;
		}
		if (list_member_oid(launcher->postponed, database))
		{
			launcher->postponed = list_delete_oid(launcher->postponed,
												  database);
			launcher->mindings[slot - onside_slot_get(0)].not_before =
				TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
											RESTART_MAX_DELAY);
		}
	}
}

/* Are all slots taken by databases that have the extension? */
static bool
slots_are_used_up(void)
{
	for (int i = 0; i < onside_max_databases; i++)
	{
		Oid			database;

		if (!onside_service_look(onside_slot_get(i), &database).found)
			return false;
	}
	return true;
}

/*
 * Requests slots for all databases that we know nothing of; first for those where
 * looking has not failed.  The log is told, once, when all slots are taken for good.
 */
static void
adopt_databases(Launcher *launcher, List *databases)
{
	launcher->out_of_slots = false;
	adopt(launcher, databases, launcher->postponed);
	if (!launcher->out_of_slots)
		adopt(launcher, databases, NIL);

	if (!launcher->out_of_slots)
		launcher->told = false;
	else if (!launcher->told && slots_are_used_up())
	{
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("onside_attribution: %d databases are served, as many as onside_attribution.max_databases allows",
						onside_max_databases),
				 errdetail("Other databases are not looked at. If they have the extension, their events are recorded and not sent."),
				 errhint("Increase onside_attribution.max_databases and restart the server.")));
		launcher->told = true;
	}
}

/* ----------
 * Slots
 * ----------
 */

/*
 * Says in "status" why no worker runs.  Only for a slot in WANTED: no worker is in
 * it, and none comes before we start one, so what it publishes is not overwritten.
 */
static void
set_reason(OnsideSlot *slot, const char *reason)
{
	LWLockAcquire(slot->lock, LW_EXCLUSIVE);
	slot->status.state = ONSIDE_NOT_RUNNING;
	strlcpy(slot->status.reason, reason, sizeof(slot->status.reason));
	LWLockRelease(slot->lock);
}

/* Frees a slot, unless its state is not this any more. */
static bool
free_slot(Launcher *launcher, int i, Oid database, OnsideSlotState state)
{
	if (!onside_service_free(onside_slot_get(i), database, state))
		return false;
	if (launcher->mindings[i].handle != NULL)
		pfree(launcher->mindings[i].handle);
	memset(&launcher->mindings[i], 0, sizeof(Minding));
	return true;
}

/* Its worker has ended, or never came up: when may the next one start? */
static void
schedule_restart(OnsideSlot *slot, bool orderly, Minding *minding)
{
	TimestampTz now = GetCurrentTimestamp();
	int			delay = 0;

	if (minding->started_at == 0)
		return;					/* the first one: at once */

	if (orderly ||
		TimestampDifferenceExceeds(minding->started_at, now, HEALTHY_RUN))
		minding->failures = 0;
	else
	{
		delay = Min(RESTART_MIN_DELAY << minding->failures, RESTART_MAX_DELAY);
		minding->failures = Min(minding->failures + 1, 16);
		set_reason(slot, "its worker has failed and is started again; see the server's log");
	}
	minding->started_at = 0;
	minding->not_before = TimestampTzPlusMilliseconds(now, delay);
}

/* Its quoted name, or its OID. */
static char *
printable_name(Oid database)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *name;

	StartTransactionCommand();
	name = get_database_name(database);
	name = name != NULL ? psprintf("\"%s\"", name) : psprintf("%u", database);
	name = MemoryContextStrdup(context, name);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return name;
}

/* Starts a worker, or says why that is not possible now. */
static void
start_worker(Launcher *launcher, int i, Oid database)
{
	OnsideSlot *slot = onside_slot_get(i);
	Minding    *minding = &launcher->mindings[i];
	MemoryContext old;
	bool		ok;

	if (!onside_service_step(slot, ONSIDE_SLOT_WANTED, ONSIDE_SLOT_STARTING))
		return;

	if (minding->handle != NULL)
		pfree(minding->handle);
	minding->handle = NULL;
	old = MemoryContextSwitchTo(TopMemoryContext);
	ok = onside_worker_register(database, i, &minding->handle);
	MemoryContextSwitchTo(old);

	if (ok)
	{
		minding->started_at = GetCurrentTimestamp();
		minding->told = false;
		return;
	}
	(void) onside_service_step(slot, ONSIDE_SLOT_STARTING, ONSIDE_SLOT_WANTED);
	if (!minding->told)
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("onside_attribution: no free background worker for database %s",
						printable_name(database)),
				 errhint("Increase max_worker_processes.")));
	minding->told = true;
	set_reason(slot, "there is no free background worker: increase max_worker_processes");
}

/* How many are looking for the extension right now? */
static int
count_starting(Launcher *launcher)
{
	TimestampTz now = GetCurrentTimestamp();
	int			n = 0;

	for (int i = 0; i < onside_max_databases; i++)
	{
		Oid			database;
		OnsideService service = onside_service_look(onside_slot_get(i),
													&database);

		if (service.state == ONSIDE_SLOT_STARTING &&
			!TimestampDifferenceExceeds(launcher->mindings[i].started_at, now,
										LOOK_TIME))
			n++;
	}
	return n;
}

/*
 * Did a worker that was registered end before it took its slot?  One that a
 * launcher before us has registered may still come: if it comes before the one
 * that we start instead, it takes the slot, and ours ends; if later, it ends.
 */
static bool
start_failed(Launcher *launcher, int i)
{
	pid_t		pid;

	return launcher->mindings[i].handle == NULL ||
		GetBackgroundWorkerPid(launcher->mindings[i].handle,
							   &pid) == BGWH_STOPPED;
}

/* Milliseconds for which a worker that has crashed too often stays away. */
static long
wait_after_crashes(OnsideSlot *slot, Oid database)
{
	if (onside_service_has_crashed(slot))
		onside_crash_guard_log(database,
							   psprintf("the worker of database %s",
										printable_name(database)));
	return onside_crash_guard_wait(database);
}

/*
 * A worker is wanted: starts it if it may be.  Returns as mind_slot().  No worker
 * is in the slot, and none comes unless we start it.
 */
static long
mind_wanted(Launcher *launcher, int i)
{
	OnsideSlot *slot = onside_slot_get(i);
	Minding    *minding = &launcher->mindings[i];
	Oid			database;
	OnsideService service = onside_service_look(slot, &database);
	long		wait;

	if (service.holds > 0)
		return POLL_INTERVAL;	/* whoever lets go wakes us */

	if (service.dismissed)
	{
		/* Should it come back, it is looked at again. */
		if (free_slot(launcher, i, database, ONSIDE_SLOT_WANTED))
			launcher->absent = list_delete_oid(launcher->absent, database);
		return POLL_INTERVAL;
	}

	schedule_restart(slot, service.orderly, minding);
	if (pg_atomic_exchange_u32(&slot->start_now, 0) != 0)
	{
		minding->not_before = 0;
		minding->failures = 0;
	}
	wait = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
										   minding->not_before);
	if (wait <= 0)
		wait = wait_after_crashes(slot, database);
	if (wait > 0)
		return wait;

	if (minding->failures > 0 && !service.found && launcher->out_of_slots &&
		free_slot(launcher, i, database, ONSIDE_SLOT_WANTED))
	{
		remember(&launcher->postponed, database);
		return 0;
	}
	if (count_starting(launcher) >= MAX_STARTING)
		return LOOK_TIME;		/* they wake us, but for one that is stuck */
	start_worker(launcher, i, database);
	return RETRY_INTERVAL;
}

/* Looks after one slot.  Returns milliseconds until it wants that again. */
static long
mind_slot(Launcher *launcher, int i, List *databases)
{
	OnsideSlot *slot = onside_slot_get(i);
	Oid			database = onside_slot_database(slot);
	OnsideService service;

	if (!OidIsValid(database))
		return POLL_INTERVAL;

	onside_service_dismiss(slot, database,
						   !list_member_oid(databases, database));

	/* If it is another database's by now, we have been woken for that. */
	service = onside_service_look(slot, &database);
	switch (service.state)
	{
		case ONSIDE_SLOT_FREE:
		case ONSIDE_SLOT_RUNNING:
			return POLL_INTERVAL;

		case ONSIDE_SLOT_ABSENT:
			if (free_slot(launcher, i, database, ONSIDE_SLOT_ABSENT))
				remember(&launcher->absent, database);
			return POLL_INTERVAL;

		case ONSIDE_SLOT_STARTING:
			if (!start_failed(launcher, i) ||
				!onside_service_step(slot, ONSIDE_SLOT_STARTING,
									 ONSIDE_SLOT_WANTED))
				return RETRY_INTERVAL;
			return mind_wanted(launcher, i);

		case ONSIDE_SLOT_WANTED:
			return mind_wanted(launcher, i);
	}
	return POLL_INTERVAL;
}

/* Looks after all of them; returns when the first one wants that again. */
static long
mind_all_slots(Launcher *launcher, List *databases)
{
	long		timeout = POLL_INTERVAL;

	for (int i = 0; i < onside_max_databases; i++)
	{
		long		wait = mind_slot(launcher, i, databases);

		timeout = Min(timeout, wait);
	}
	return timeout;
}

/* ----------
 * The loop
 * ----------
 */

static void
launcher_exit(int code, Datum arg)
{
	onside_crash_guard_end();
	onside_launcher_detach();
}

/* Counts, connected to nothing, what has crashed before us, and waits. */
static void
begin(uint32 wait_event)
{
	long		wait;

	if (onside_crash_guard_look(InvalidOid))
		onside_crash_guard_log(InvalidOid, "the launcher");
	while ((wait = onside_crash_guard_wait(InvalidOid)) > 0)
		onside_process_sleep(wait, wait_event);
	onside_crash_guard_begin(InvalidOid);
}

/*
 * Looks at all databases and slots.  Returns milliseconds until it is to do so again.
 */
static long
look_around(Launcher *launcher)
{
	List	   *databases;
	long		timeout;
	long		again;

	if (onside_launcher_take_forget())
	{
		list_free(launcher->absent);
		launcher->absent = NIL;
		launcher->told = false;
	}

	databases = list_databases();
	onside_crash_guard_sweep(databases);
	timeout = mind_all_slots(launcher, databases);

	/* A slot that came free just now can be taken at once. */
	adopt_databases(launcher, databases);
	again = mind_all_slots(launcher, databases);
	list_free(databases);
	return Min(timeout, again);
}

/*
 * The process.  It ends by a signal, or when something fails that cannot be done without;
 * the postmaster starts another one a second later.
 */
void
onside_launcher_main(Datum arg)
{
	Launcher	launcher = {0};
	uint32		wait_event = onside_wait_event("OnsideAttributionLauncher");

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	pqsignal(SIGINT, PG_SIG_IGN);
	BackgroundWorkerUnblockSignals();

	before_shmem_exit(launcher_exit, (Datum) 0);
	onside_launcher_attach();
	begin(wait_event);
	onside_process_connect(InvalidOid);
	pgstat_report_appname("onside_attribution launcher");
	launcher.mindings = palloc0(onside_max_databases * sizeof(Minding));

	for (;;)
	{
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}

		onside_process_sleep(look_around(&launcher), wait_event);
	}
}

/*
 * From _PG_init, if preloaded.  It starts when the server is no standby any more.
 */
void
onside_launcher_register(void)
{
	BackgroundWorker worker;

	onside_process_describe(&worker, "onside_attribution launcher",
							"onside_launcher_main");
	worker.bgw_restart_time = 1;
	RegisterBackgroundWorker(&worker);
}
