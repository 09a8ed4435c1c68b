/*-------------------------------------------------------------------------
 *
 * launcher.c
 *		The background worker that runs a worker for each database.
 *
 * Only a connection to a database can tell whether the database has the
 * extension: its own pg_extension says so.  So the launcher takes a slot for
 * each database that it does not know, and starts a worker there.  A worker
 * that finds no extension reports that and leaves, and the launcher remembers
 * the database.  CREATE EXTENSION takes a slot by itself, at commit.
 *
 * shmem.h has the states of a slot and says who changes them; service.c changes
 * them, under the lock of all slots.  The launcher alone makes STARTING of
 * WANTED, and frees slots.  The states are in shared memory, so a restarted
 * launcher finds the workers that its predecessor has started.
 *
 * A database that becomes a template or refuses connections is dismissed: its
 * worker leaves and its slot is freed, as if the database had been dropped.
 *
 * There can be fewer slots, or fewer background workers, than databases.  A
 * database that has the extension keeps its slot.  If a worker fails before it
 * knows whether its database has the extension, its slot goes to a database
 * that no worker has looked at.
 *
 * The launcher sleeps until a commit that makes or drops the extension, a
 * command on a database, or the end of a worker wakes it.  It looks at
 * everything once a minute anyway, and more often while a worker that it wants
 * cannot start.  An error ends the process, and the postmaster starts the next
 * launcher a second later.
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

/* How often the launcher looks at a slot that nothing happens to; ms. */
#define POLL_INTERVAL		60000

/* The same while a worker that is wanted cannot start, or is starting; ms. */
#define RETRY_INTERVAL		10000

/*
 * A worker that has run for less than HEALTHY_RUN (ms) has failed.  Then the
 * next one waits: RESTART_MIN_DELAY (ms) at first, twice as long after each
 * further failure, RESTART_MAX_DELAY at most.  resume() ends that wait.
 */
#define HEALTHY_RUN			10000
#define RESTART_MIN_DELAY	500
#define RESTART_MAX_DELAY	10000

/*
 * In how many databases we look for the extension at once: each look takes one
 * of max_worker_processes.  A worker that has not come up after LOOK_TIME (ms)
 * waits for somebody's lock; it does not count, so that the others can start.
 */
#define MAX_STARTING		2
#define LOOK_TIME			1000

/* What the launcher knows of a slot besides what is in shared memory. */
typedef struct Minding
{
	BackgroundWorkerHandle *handle; /* of the last worker; or NULL */
	TimestampTz started_at;		/* of a worker that may run; or 0 */
	TimestampTz not_before;		/* when the next worker may start */
	unsigned	failures;		/* short runs in a row */
	bool		told;			/* the log says that no worker can start */
} Minding;

/* All that the launcher knows; onside_launcher_main() makes it. */
typedef struct Launcher
{
	Minding    *mindings;		/* one for each slot */
	List	   *absent;			/* OIDs of databases without the extension */
	List	   *postponed;		/* OIDs of databases where a worker has failed
								 * before it could look */
	bool		out_of_slots;	/* some database has got none */
	bool		told;			/* the log says that all slots are used up */
} Launcher;

/* ----------
 * Databases
 * ----------
 */

/*
 * OIDs of the databases in which a worker could run: those that accept
 * connections and are no templates.  The list is in the caller's memory
 * context.
 */
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

/* Adds a database to a list that lives as long as the process. */
static void
remember_database(List **list, Oid database)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	*list = list_append_unique_oid(*list, database);
	MemoryContextSwitchTo(old);
}

/*
 * Requests a slot for each of these databases that has none and is not known
 * to lack the extension, except for those in "except".  Stops when no slot is
 * free.
 */
static void
adopt_unknown(Launcher *launcher, List *databases, List *except)
{
	ListCell   *lc;

	foreach(lc, databases)
	{
		Oid			database = lfirst_oid(lc);
		OnsideSlot *slot;

		/* Pass over what we know. */
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

		/* Where a worker has failed, the next one waits. */
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
 * Requests slots for all databases that we do not know; first for those where
 * no worker has failed.  When databases with the extension have taken all
 * slots, the log says so, once.
 */
static void
adopt_databases(Launcher *launcher, List *databases)
{
	launcher->out_of_slots = false;
	adopt_unknown(launcher, databases, launcher->postponed);
	if (!launcher->out_of_slots)
		adopt_unknown(launcher, databases, NIL);

	/* Say it, once. */
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
 * Says in "status" why no worker runs.  The slot is in WANTED: it has no worker
 * that publishes a status, and it gets none before we start one.
 */
static void
set_reason(OnsideSlot *slot, const char *reason)
{
	LWLockAcquire(slot->lock, LW_EXCLUSIVE);
	slot->status.state = ONSIDE_NOT_RUNNING;
	strlcpy(slot->status.reason, reason, sizeof(slot->status.reason));
	LWLockRelease(slot->lock);
}

/* Frees a slot, if it still is this database's and in this state. */
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

/*
 * The slot's worker has ended, or never came up: sets when the next one may
 * start.  A worker that has left orderly, or has run for long, may follow at
 * once.
 */
static void
schedule_restart(OnsideSlot *slot, bool orderly, Minding *minding)
{
	TimestampTz now = GetCurrentTimestamp();
	int			delay = 0;

	/* The first one may start at once; and each end counts once. */
	if (minding->started_at == 0)
		return;

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

/* A database's quoted name; its OID if it is gone. */
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

/*
 * Starts a worker for a slot in WANTED, or says in the log, once, and in
 * "status" that there is no background worker for it.
 */
static void
start_worker(Launcher *launcher, int i, Oid database)
{
	OnsideSlot *slot = onside_slot_get(i);
	Minding    *minding = &launcher->mindings[i];
	MemoryContext old;
	bool		ok;

	/* Before it is registered: the worker may come up at once. */
	if (!onside_service_step(slot, ONSIDE_SLOT_WANTED, ONSIDE_SLOT_STARTING))
		return;

	/* Its handle lives until the slot's next worker is registered. */
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

	/* There is none.  We come back after RETRY_INTERVAL. */
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

/* How many workers have been started and have not come up yet, but may soon? */
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
 * Has the worker ended before it took its slot?  True also if the launcher
 * before us has registered it, because then we have no handle.  That worker
 * may still come: if it is earlier than the one that we start instead, it
 * takes the slot, and ours ends; otherwise it ends.
 */
static bool
start_failed(Launcher *launcher, int i)
{
	pid_t		pid;

	return launcher->mindings[i].handle == NULL ||
		GetBackgroundWorkerPid(launcher->mindings[i].handle,
							   &pid) == BGWH_STOPPED;
}

/*
 * For how many milliseconds no worker starts in this database because workers
 * have crashed there; see crash_guard.c.  Logs a crash that is new.
 */
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
 * Looks after a slot in WANTED: starts a worker, if one may start now.  The
 * slot has no worker, and gets none unless we start it.  Returns the same as
 * mind_slot().
 */
static long
mind_wanted(Launcher *launcher, int i)
{
	OnsideSlot *slot = onside_slot_get(i);
	Minding    *minding = &launcher->mindings[i];
	Oid			database;
	OnsideService service = onside_service_look(slot, &database);
	long		wait;

	/* A command keeps workers out; its end wakes us. */
	if (service.holds > 0)
		return POLL_INTERVAL;

	/*
	 * No worker can run there any more: the slot is free for another database.
	 */
	if (service.dismissed)
	{
		/* Should the database come back, a worker looks at it again. */
		if (free_slot(launcher, i, database, ONSIDE_SLOT_WANTED))
			launcher->absent = list_delete_oid(launcher->absent, database);
		return POLL_INTERVAL;
	}

	/* Wait after a worker that has failed, unless resume() was called. */
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

	/* A worker that fails before it has looked gives way to other databases. */
	if (minding->failures > 0 && !service.found && launcher->out_of_slots &&
		free_slot(launcher, i, database, ONSIDE_SLOT_WANTED))
	{
		remember_database(&launcher->postponed, database);
		return 0;
	}

	/* When a worker has looked, it wakes us; one that is stuck does not. */
	if (count_starting(launcher) >= MAX_STARTING)
		return LOOK_TIME;
	start_worker(launcher, i, database);
	return RETRY_INTERVAL;
}

/*
 * Looks after one slot: does what its state asks of the launcher.  Returns the
 * milliseconds until the slot has to be looked at again, if nobody wakes us.
 */
static long
mind_slot(Launcher *launcher, int i, List *databases)
{
	OnsideSlot *slot = onside_slot_get(i);
	Oid			database = onside_slot_database(slot);
	OnsideService service;

	if (!OidIsValid(database))
		return POLL_INTERVAL;

	/* Can a worker run in the database? */
	onside_service_dismiss(slot, database,
						   !list_member_oid(databases, database));

	/*
	 * By now the slot may be another database's: our latch is set for that, and
	 * what we do now suits that one, too.
	 */
	service = onside_service_look(slot, &database);
	switch (service.state)
	{
		case ONSIDE_SLOT_FREE:
		case ONSIDE_SLOT_RUNNING:
			return POLL_INTERVAL;

		case ONSIDE_SLOT_ABSENT:
			/* Its worker has found no extension. */
			if (free_slot(launcher, i, database, ONSIDE_SLOT_ABSENT))
				remember_database(&launcher->absent, database);
			return POLL_INTERVAL;

		case ONSIDE_SLOT_STARTING:
			/* If the worker will not come, another one is wanted. */
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

/* Looks after all slots.  Returns milliseconds, as mind_slot(); the least. */
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

/* Exit callback: nobody has to wake us any more. */
static void
launcher_exit(int code, Datum arg)
{
	onside_crash_guard_end();
	onside_launcher_detach();
}

/*
 * If launchers before us have crashed, logs that and waits, before we connect
 * to anything; see crash_guard.c.
 */
static void
wait_after_own_crashes(uint32 wait_event)
{
	long		wait;

	if (onside_crash_guard_look(InvalidOid))
		onside_crash_guard_log(InvalidOid, "the launcher");
	while ((wait = onside_crash_guard_wait(InvalidOid)) > 0)
		onside_process_sleep(wait, wait_event);
	onside_crash_guard_begin(InvalidOid);
}

/*
 * Looks after all databases and slots.  Returns the milliseconds until this
 * has to be done again.
 */
static long
look_after_all(Launcher *launcher)
{
	List	   *databases;
	long		timeout;
	long		again;

	/* A database may have got the extension: look at all of them again. */
	if (onside_launcher_take_forget())
	{
		list_free(launcher->absent);
		launcher->absent = NIL;
		launcher->told = false;
	}

	/* Slots first: some may become free, for databases that have none. */
	databases = list_databases();
	onside_crash_guard_sweep(databases);
	timeout = mind_all_slots(launcher, databases);

	/* The slots that are taken now get their workers. */
	adopt_databases(launcher, databases);
	again = mind_all_slots(launcher, databases);
	list_free(databases);
	return Min(timeout, again);
}

/*
 * The process: signals, the crash guard, a connection to no database, and then
 * a loop that looks after everything and sleeps.
 */
void
onside_launcher_main(Datum arg)
{
	Launcher	launcher = {0};
	uint32		wait_event = onside_wait_event("OnsideAttributionLauncher");

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	pqsignal(SIGINT, PG_SIG_IGN);	/* there is no query of ours to cancel */
	BackgroundWorkerUnblockSignals();

	/* From now on others find us and can wake us. */
	before_shmem_exit(launcher_exit, (Datum) 0);
	onside_launcher_attach();
	wait_after_own_crashes(wait_event);
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

		onside_process_sleep(look_after_all(&launcher), wait_event);
	}
}

/*
 * Called by _PG_init() if the library is preloaded.  The launcher starts once
 * the server is no standby any more.
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
