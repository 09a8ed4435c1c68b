/*-------------------------------------------------------------------------
 *
 * service.c
 *		How each database is served: the states of its slot.
 *
 * OnsideService in shmem.h says what the states and flags mean.  This file alone
 * reads and changes them, each function in one step under the lock of all slots,
 * so that launcher, workers and commands never see one of them without the others.
 * It is called by the launcher, by workers when they come and go, by commands on
 * databases and by the commit of CREATE EXTENSION; never by a purchase.
 *
 * What nobody may conclude from a copy: that a worker which was in the slot is
 * still there, or that there is still none.  Who needs that holds the slot, which
 * keeps workers out, or is the launcher, without which none is started.
 *
 * Nothing here can fail.  The lock is held for a few instructions, but for a look
 * at a file of crash_guard.c.
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

/* For who has the lock. */
static bool
is_closed(const OnsideService *service)
{
	return service->holds > 0 || service->dismissed;
}

/* ----------
 * For everybody
 * ----------
 */

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
 * In any state but FREE and ABSENT a worker is wanted already, or is there; if that
 * one finds no extension, it is told by "wanted_again" that it has come too early.
 */
OnsideSlot *
onside_service_request(Oid database)
{
	OnsideSlot *slot;

	LWLockAcquire(onside_slots_lock(), LW_EXCLUSIVE);
	slot = onside_slot_take(database);
	if (slot != NULL)
	{
		OnsideService *service = &slot->service;

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

void
onside_service_let_go(OnsideSlot *slot)
{
	OnsideService *service = &slot->service;

	LWLockAcquire(onside_slots_lock(), LW_EXCLUSIVE);
	Assert(service->holds > 0);
	service->holds--;
	if (service->holds == 0 && service->state == ONSIDE_SLOT_FREE)
		onside_slot_reset(slot);	/* it was only held */
	LWLockRelease(onside_slots_lock());
}

/*
 * A worker counts itself into "leaving" before it takes its pid out, and both are
 * read under the lock, so there is no moment in between.
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
 * The launcher could use TerminateBackgroundWorker(), with the handle that it got
 * when it registered the worker.  A session has no handle; and a launcher that was
 * started again has none of its predecessor's workers.  The lock does here what
 * the handle does there: a process that is in the slot cannot leave it, and so
 * not end and pass on its pid, while we have the lock.
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
 * That no worker may be in the slot is for those that the launcher does not know
 * to be there: one that its predecessor registered, for example, which came after
 * this launcher had taken it for lost and has registered another.  The other one
 * leaves at once, and must not take the slot along.
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

	/* It is about the next worker, which may end before it can say so. */
	if (done && to == ONSIDE_SLOT_STARTING)
		service->orderly = false;
	LWLockRelease(onside_slots_lock());
	return done;
}

/*
 * The launcher looked up the database before it took the lock.  Meanwhile a command
 * may have let go of the slot, and the commit of CREATE EXTENSION may have taken
 * it for another database, which must not be dismissed in place of this one: the
 * launcher would free its slot, and might know it as one without the extension.
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
	if (changed)
		onside_slot_wake(slot, ONSIDE_WAKE_CHECK);
}

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
 * A worker has the slot before it says that it runs, and says that it ends before
 * it leaves the slot.  So under the lock either a worker is in the slot, or none
 * is, or the last one has crashed.
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
 * Exit callback: this process, which has left the slot, is not in PostgreSQL's
 * array of processes any more, where commands look for who is connected.
 */
static void
worker_is_gone(int code, Datum arg)
{
	OnsideSlot *slot = (OnsideSlot *) DatumGetPointer(arg);

	pg_atomic_fetch_sub_u32(&slot->leaving, 1);
	ConditionVariableBroadcast(&slot->worker_cv);
}

/*
 * A worker that comes late finds its slot given to another database, or taken by
 * another worker, or in a state in which the launcher does not expect one.
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
		/* It is turned away.  That is no failure to wait after. */
		service->orderly = true;
		wanted = false;
	}
	else if (wanted)
	{
		/* Before it connects, and so run when it is disconnected again. */
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
 * The worker leaves the slot before it is disconnected from the database, because
 * what it has to do then may still need the slot's locks.  Whoever waits for the
 * latter waits for worker_is_gone().
 */
void
onside_service_leave(OnsideSlot *slot, OnsideSlotState state, bool orderly)
{
	OnsideService *service = &slot->service;

	/* Before the launcher can start another one. */
	onside_crash_guard_end();

	LWLockAcquire(onside_slots_lock(), LW_EXCLUSIVE);
	if (service->worker_pid == MyProcPid)
	{
		pg_atomic_fetch_add_u32(&slot->leaving, 1);
		service->worker_pid = 0;
		service->orderly = orderly;
		pg_atomic_write_u32(&slot->procno, ONSIDE_NO_PROC);
		if (state == ONSIDE_SLOT_ABSENT && service->wanted_again)
			state = ONSIDE_SLOT_WANTED;
		service->state = state;

		LWLockAcquire(slot->lock, LW_EXCLUSIVE);
		slot->status.state = ONSIDE_NOT_RUNNING;
		slot->status.reason[0] = '\0';
		LWLockRelease(slot->lock);
	}
	LWLockRelease(onside_slots_lock());

	ConditionVariableBroadcast(&slot->worker_cv);
	ConditionVariableBroadcast(&slot->settled_cv);
	onside_launcher_wake(false);
}
