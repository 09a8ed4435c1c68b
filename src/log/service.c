/*-------------------------------------------------------------------------
 *
 * service.c
 *		How each database is served: the states of its slot.
 *
 * OnsideService in shmem.h says what the states and flags mean.  This file
 * alone reads and changes them.  Each function does so in one step under the
 * lock of all slots.  So launcher, workers and commands never see a state
 * without the flags that belong to it.
 *
 * The launcher calls this file, workers when they come and go, commands on
 * databases, and the commit of CREATE EXTENSION; a purchase never does.
 *
 * Nobody may conclude from a copy that a worker which was in the slot is still
 * there, or that there is still none.  Whoever needs to know that no worker
 * comes holds the slot, which keeps workers out, or is the launcher, which
 * alone starts workers.
 *
 * Nothing here can fail.  The lock is held for a few instructions, and in
 * onside_service_has_crashed() for a look at a file of crash_guard.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"

#include "compat.h"
#include "log/crash_guard.h"
#include "log/service.h"

/* Must a worker leave, or stay out?  The caller has the lock, or a copy. */
static bool
is_closed(const OnsideService *service)
{
	return service->holds > 0 || service->dismissed;
}

/* ----------
 * For everybody
 * ----------
 */

/* Copies the state with its flags, and the database that they are about. */
OnsideService
onside_service_look(OnsideSlot *slot, Oid *database)
{
	OnsideService service;

	LWLockAcquire(onside_slots_lock(), LW_SHARED);
	service = slot->service;
	*database = onside_slot_database(slot);
	LWLockRelease(onside_slots_lock());
	return service;
}

/*
 * In any state but FREE and ABSENT a worker is wanted already, or is there.  If
 * that worker finds no extension, "wanted_again" tells it that it has come too
 * early.
 */
OnsideSlot *
onside_service_request(Oid database)
{
	OnsideSlot *slot;

	LWLockAcquire(onside_slots_lock(), LW_EXCLUSIVE);

	/* A database that has no slot gets one. */
	slot = onside_slot_take(database);
	if (slot != NULL)
	{
		OnsideService *service = &slot->service;

		/* No worker is there or coming: have one started. */
		if (service->state == ONSIDE_SLOT_FREE ||
			service->state == ONSIDE_SLOT_ABSENT)
			service->state = ONSIDE_SLOT_WANTED;
		else
			service->wanted_again = true;
	}
	LWLockRelease(onside_slots_lock());
	return slot;
}

/* ----------
 * For commands on a database
 * ----------
 */

/* A hold is taken whatever state the slot is in; is_closed() does the rest. */
OnsideSlot *
onside_service_hold(Oid database)
{
	OnsideSlot *slot;

	if (!onside_shmem_available())
		return NULL;

	LWLockAcquire(onside_slots_lock(), LW_EXCLUSIVE);
	slot = onside_slot_take(database);
	if (slot != NULL)
		slot->service.holds++;
	LWLockRelease(onside_slots_lock());
	return slot;
}

/* The last one to let go gives back a slot that was taken to be held. */
void
onside_service_let_go(OnsideSlot *slot)
{
	OnsideService *service = &slot->service;

	LWLockAcquire(onside_slots_lock(), LW_EXCLUSIVE);
	Assert(service->holds > 0);
	service->holds--;
	if (service->holds == 0 && service->state == ONSIDE_SLOT_FREE)
		onside_slot_reset(slot);	/* no worker has had it */
	LWLockRelease(onside_slots_lock());
}

/*
 * A worker counts itself into "leaving" before it takes its pid out.  We read
 * both under the lock, so there is no moment in between.
 */
bool
onside_service_is_over(OnsideSlot *slot)
{
	bool		over;

	LWLockAcquire(onside_slots_lock(), LW_SHARED);
	over = slot->service.worker_pid == 0 &&
		pg_atomic_read_u32(&slot->leaving) == 0;
	LWLockRelease(onside_slots_lock());
	return over;
}

/*
 * TerminateBackgroundWorker() needs the handle that the launcher got when it
 * registered the worker.  A session has no handle, and a launcher that was
 * started again has none of its predecessor's workers.  The lock makes a handle
 * unnecessary: while we have it, a process that is in the slot cannot leave the
 * slot, so it cannot end, and nobody else can get its pid.
 */
void
onside_service_terminate(OnsideSlot *slot)
{
	LWLockAcquire(onside_slots_lock(), LW_SHARED);
	if (slot->service.worker_pid != 0)
		(void) kill(slot->service.worker_pid, SIGTERM);
	LWLockRelease(onside_slots_lock());
}

/* ----------
 * For the launcher
 * ----------
 */

/*
 * Takes no step while a worker is in the slot, because the launcher may not
 * know of that worker.  For example, its predecessor has registered a worker,
 * which is late, so this launcher takes it for lost and registers another one.
 * The late worker takes the slot.  The other one leaves at once, and the
 * launcher, which sees it end, must not change the slot of the first one.
 */
bool
onside_service_step(OnsideSlot *slot, OnsideSlotState from, OnsideSlotState to)
{
	OnsideService *service = &slot->service;
	bool		done;

	LWLockAcquire(onside_slots_lock(), LW_EXCLUSIVE);
	done = service->state == from && service->worker_pid == 0;
	if (done)
		service->state = to;

	/* The flag is about the next worker, which may end before it can set it. */
	if (done && to == ONSIDE_SLOT_STARTING)
		service->orderly = false;
	LWLockRelease(onside_slots_lock());
	return done;
}

/*
 * The launcher looked up the database before it took the lock.  Meanwhile a
 * command may have let go of the slot, and the commit of CREATE EXTENSION may
 * have taken it for another database.  That one must not be dismissed in place
 * of this one: the launcher would free its slot, and might then take it for a
 * database without the extension.
 */
void
onside_service_dismiss(OnsideSlot *slot, Oid database, bool dismissed)
{
	OnsideService *service = &slot->service;
	bool		changed;

	LWLockAcquire(onside_slots_lock(), LW_EXCLUSIVE);
	changed = onside_slot_database(slot) == database &&
		service->dismissed != dismissed;
	if (changed)
		service->dismissed = dismissed;
	LWLockRelease(onside_slots_lock());

	/* A worker in the slot must notice, and leave. */
	if (changed)
		onside_slot_wake(slot, ONSIDE_WAKE_CHECK);
}

/* A slot in one of these states has no worker. */
bool
onside_service_free(OnsideSlot *slot, Oid database, OnsideSlotState state)
{
	OnsideService *service = &slot->service;
	bool		done;

	LWLockAcquire(onside_slots_lock(), LW_EXCLUSIVE);
	done = onside_slot_database(slot) == database &&
		service->state == state && service->holds == 0;
	Assert(!done || service->worker_pid == 0);
	if (done)
		onside_slot_reset(slot);
	LWLockRelease(onside_slots_lock());
	return done;
}

/*
 * A worker takes the slot before it writes "running" into its file, and takes
 * that mark away before it leaves the slot.  So if, under the lock, no worker
 * is in the slot and the mark is there, the last worker has crashed.
 */
bool
onside_service_has_crashed(OnsideSlot *slot)
{
	bool		crashed;

	LWLockAcquire(onside_slots_lock(), LW_SHARED);
	crashed = slot->service.worker_pid == 0 &&
		onside_crash_guard_look(onside_slot_database(slot));
	LWLockRelease(onside_slots_lock());
	return crashed;
}

/* ----------
 * For the worker
 * ----------
 */

/*
 * Exit callback: this process has left the slot, and now also PostgreSQL's
 * array of processes, where commands look for who is connected.
 */
static void
worker_is_gone(int code, Datum arg)
{
	OnsideSlot *slot = (OnsideSlot *) DatumGetPointer(arg);

	pg_atomic_fetch_sub_u32(&slot->leaving, 1);
	ConditionVariableBroadcast(&slot->worker_cv);
}

/*
 * A worker that comes late may find that its slot was given to another
 * database, or taken by another worker, or is in a state in which the launcher
 * expects no worker.
 */
OnsideSlot *
onside_service_enter(int slot_no, Oid database)
{
	OnsideSlot *slot = onside_slot_get(slot_no);
	OnsideService *service = &slot->service;
	bool		wanted;

	LWLockAcquire(onside_slots_lock(), LW_EXCLUSIVE);
	wanted = onside_slot_database(slot) == database &&
		service->state == ONSIDE_SLOT_STARTING && service->worker_pid == 0;

	if (wanted && is_closed(service))
	{
		/* Turn the worker away.  That is no failure to wait after. */
		service->orderly = true;
		wanted = false;
	}
	else if (wanted)
	{
		/*
		 * Callbacks run in reverse order, so this one, made before we connect,
		 * runs after we are disconnected.
		 */
		on_shmem_exit(worker_is_gone, PointerGetDatum(slot));
		service->worker_pid = MyProcPid;
		service->orderly = false;
		service->wanted_again = false;
		pg_atomic_write_u32(&slot->procno, ONSIDE_MY_PROCNO);

		/* Why no worker ran has become old. */
		LWLockAcquire(slot->lock, LW_EXCLUSIVE);
		slot->status.reason[0] = '\0';
		LWLockRelease(slot->lock);
	}
	LWLockRelease(onside_slots_lock());
	return wanted ? slot : NULL;
}

void
onside_service_found(OnsideSlot *slot)
{
	LWLockAcquire(onside_slots_lock(), LW_EXCLUSIVE);
	Assert(slot->service.worker_pid == MyProcPid);
	slot->service.state = ONSIDE_SLOT_RUNNING;
	slot->service.found = true;
	LWLockRelease(onside_slots_lock());
	onside_launcher_wake(false);
}

bool
onside_service_is_closed(OnsideSlot *slot)
{
	Oid			database;
	OnsideService service = onside_service_look(slot, &database);

	return is_closed(&service);
}

/*
 * The worker leaves the slot before it is disconnected from the database.
 * Whoever waits until it is disconnected waits for worker_is_gone().
 */
void
onside_service_leave(OnsideSlot *slot, OnsideSlotState state, bool orderly)
{
	OnsideService *service = &slot->service;

	/* Take the mark "running" away before another worker can be started. */
	onside_crash_guard_end();

	LWLockAcquire(onside_slots_lock(), LW_EXCLUSIVE);
	if (service->worker_pid == MyProcPid)
	{
		pg_atomic_fetch_add_u32(&slot->leaving, 1);
		service->worker_pid = 0;
		service->orderly = orderly;
		pg_atomic_write_u32(&slot->procno, ONSIDE_NO_PROC);

		/* The extension may have been made after we looked. */
		if (state == ONSIDE_SLOT_ABSENT && service->wanted_again)
			state = ONSIDE_SLOT_WANTED;
		service->state = state;

		/* Nobody may read the pid 0 with a state of a running worker. */
		LWLockAcquire(slot->lock, LW_EXCLUSIVE);
		slot->status.state = ONSIDE_NOT_RUNNING;
		slot->status.reason[0] = '\0';
		LWLockRelease(slot->lock);
	}
	LWLockRelease(onside_slots_lock());

	/*
	 * Commands wait for the worker to leave, flush() for events to be settled.
	 */
	ConditionVariableBroadcast(&slot->worker_cv);
	ConditionVariableBroadcast(&slot->settled_cv);
	onside_launcher_wake(false);
}
