/*-------------------------------------------------------------------------
 *
 * shmem.c
 *		What the launcher, the workers and all backends share.
 *
 * A fixed array of slots, one for each database from which events are sent.  A
 * crash may lose everything here: what must survive is in the tables
 * delivery_cursor and control.
 *
 * Locks: one LWLock for all slots guards which database has which slot, and how
 * the database is served; service.c alone takes it, but for a look at the
 * status here.  Each slot has one more, which guards the status and the
 * statistics that its worker publishes.  Whoever wants both takes the lock of
 * all slots first.  Everything else are single words that are read and written
 * atomically; beside each field shmem.h says by whom.  A purchase takes neither
 * lock: it reads "database", "segment" and "wake_at", and changes "recorded"
 * and "wakeup".
 *
 * Nothing here can fail once the server has started.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "log/shmem.h"
#include "settings.h"

#define TRANCHE "onside_attribution"

typedef struct OnsideControl
{
	LWLock	   *lock;			/* set once; see above */

	/*
	 * The launcher's number in PostgreSQL's array of processes, as
	 * OnsideSlot.procno.  The launcher alone writes it, at its beginning and
	 * its end.
	 */
	pg_atomic_uint32 launcher_procno;

	/*
	 * Set by sessions before they wake the launcher, taken by the launcher
	 * before it looks at the databases; see onside_launcher_wake().
	 */
	pg_atomic_uint32 forget;

	OnsideSlot	slots[FLEXIBLE_ARRAY_MEMBER];
} OnsideControl;

/* Our shared memory; NULL if the library was not preloaded. */
static OnsideControl *control;

/* Hooks that were there before ours, which we call. */
static shmem_request_hook_type prev_shmem_request_hook;
static shmem_startup_hook_type prev_shmem_startup_hook;

static const char *const state_names[] = {
	"not_running", "idle", "sending", "backing_off", "paused",
	"unauthorized", "misconfigured", "refusing", "disabled",
};

const char *
onside_state_name(OnsideState state)
{
	return state_names[state];
}

void
onside_copy_text(char *to, const char *from, int size)
{
	int			len = pg_mbcliplen(from, strlen(from), size - 1);

	memcpy(to, from, len);
	to[len] = '\0';
}

static Size
shmem_size(void)
{
	return add_size(offsetof(OnsideControl, slots),
					mul_size(onside_max_databases, sizeof(OnsideSlot)));
}

/* Sessions never stop counting, so what they have counted is subtracted. */
void
onside_slot_clear_stats(OnsideSlot *slot)
{
	memset(&slot->stats, 0, sizeof(slot->stats));
	slot->stats.counters[ONSIDE_COUNT_RECORDED] =
		-(int64) pg_atomic_read_u64(&slot->recorded);
	slot->stats.counters[ONSIDE_COUNT_SKIPPED] =
		-(int64) pg_atomic_read_u64(&slot->skipped);
	slot->stats.reset_at = GetCurrentTimestamp();
}

/* Adds what the sessions have counted in atomic words. */
void
onside_slot_read_stats(OnsideSlot *slot, OnsideStats *stats)
{
	*stats = slot->stats;
	stats->counters[ONSIDE_COUNT_RECORDED] +=
		(int64) pg_atomic_read_u64(&slot->recorded);
	stats->counters[ONSIDE_COUNT_SKIPPED] +=
		(int64) pg_atomic_read_u64(&slot->skipped);
}

/*
 * Makes the slot free.  The database goes first, so that no session finds the
 * slot any more.  "epoch", "leaving" and "flush_waiters" stay: somebody may
 * have noted their value, or is counted in them.
 */
void
onside_slot_reset(OnsideSlot *slot)
{
	pg_atomic_write_u32(&slot->database, InvalidOid);
	memset(&slot->service, 0, sizeof(slot->service));
	slot->service.state = ONSIDE_SLOT_FREE;
	pg_atomic_write_u32(&slot->procno, ONSIDE_NO_PROC);
	pg_atomic_write_u32(&slot->wakeup, 0);
	pg_atomic_write_u32(&slot->start_now, 0);

	/*
	 * The start of a new database's counts: the first event wakes the worker.
	 */
	pg_atomic_write_u32(&slot->segment, 1);
	pg_atomic_write_u64(&slot->recorded, 0);
	pg_atomic_write_u64(&slot->wake_at, 1);
	pg_atomic_write_u64(&slot->skipped, 0);
	pg_atomic_write_u64(&slot->repeated, 0);
	pg_atomic_write_u64(&slot->withdrawers_end, 0);
	slot->logged_state = ONSIDE_IDLE;

	/* A person may be reading the status. */
	LWLockAcquire(slot->lock, LW_EXCLUSIVE);
	memset(&slot->status, 0, sizeof(slot->status));
	onside_slot_clear_stats(slot);
	LWLockRelease(slot->lock);
}

/* Hook: asks for the memory and the locks, as many as max_databases needs. */
static void
request_shmem(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();

	RequestAddinShmemSpace(shmem_size());
	RequestNamedLWLockTranche(TRANCHE, onside_max_databases + 1);
}

/*
 * Hook: makes all slots.  PostgreSQL calls it again after a crash, when
 * everything starts over, and on EXEC_BACKEND platforms in each backend, which
 * finds the slots made.
 */
static void
make_slots(void)
{
	bool		found;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	control = ShmemInitStruct("onside_attribution", shmem_size(), &found);

	/* We are the first since the server started, or since it crashed. */
	if (!found)
	{
		/* The first lock is that of all slots; each slot has one more. */
		LWLockPadded *locks = GetNamedLWLockTranche(TRANCHE);

		control->lock = &locks[0].lock;
		pg_atomic_init_u32(&control->launcher_procno, ONSIDE_NO_PROC);
		pg_atomic_init_u32(&control->forget, 0);
		for (int i = 0; i < onside_max_databases; i++)
		{
			OnsideSlot *slot = &control->slots[i];

			/* Every atomic word needs pg_atomic_init once. */
			pg_atomic_init_u32(&slot->database, InvalidOid);
			pg_atomic_init_u32(&slot->leaving, 0);
			pg_atomic_init_u32(&slot->procno, ONSIDE_NO_PROC);
			pg_atomic_init_u32(&slot->wakeup, 0);
			pg_atomic_init_u32(&slot->start_now, 0);
			pg_atomic_init_u32(&slot->segment, 1);
			pg_atomic_init_u64(&slot->recorded, 0);
			pg_atomic_init_u64(&slot->wake_at, 1);
			pg_atomic_init_u64(&slot->skipped, 0);
			pg_atomic_init_u64(&slot->repeated, 0);
			pg_atomic_init_u32(&slot->epoch, 0);
			pg_atomic_init_u64(&slot->withdrawers_end, 0);
			pg_atomic_init_u32(&slot->flush_waiters, 0);
			slot->lock = &locks[i + 1].lock;
			ConditionVariableInit(&slot->settled_cv);
			ConditionVariableInit(&slot->worker_cv);
			onside_slot_reset(slot);
		}
	}
	LWLockRelease(AddinShmemInitLock);
}

void
onside_shmem_init(void)
{
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_shmem;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = make_slots;
}

bool
onside_shmem_available(void)
{
	return control != NULL;
}

OnsideSlot *
onside_slot_get(int i)
{
	Assert(i >= 0 && i < onside_max_databases);
	return &control->slots[i];
}

LWLock *
onside_slots_lock(void)
{
	return control->lock;
}

Oid
onside_slot_database(OnsideSlot *slot)
{
	return pg_atomic_read_u32(&slot->database);
}

/* Tries first where it found a slot last: sessions look for the same slot. */
OnsideSlot *
onside_slot_find(Oid database)
{
	static int	last = 0;		/* where it was found last; a hint */

	if (control == NULL || !OidIsValid(database))
		return NULL;

	for (int n = 0; n < onside_max_databases; n++)
	{
		/* Go round once, from there on. */
		int			i = (last + n) % onside_max_databases;

		if (onside_slot_database(&control->slots[i]) == database)
		{
			last = i;
			pg_read_barrier();	/* as onside_slot_take() has written it */
			return &control->slots[i];
		}
	}
	return NULL;
}

/* Raises "withdrawers_end" to this end, if it is lower. */
static void
raise_withdrawers_end(OnsideSlot *slot, FullTransactionId end)
{
	uint64		known = pg_atomic_read_u64(&slot->withdrawers_end);

	/* Never lower the end, whoever else raises it meanwhile. */
	while (known < U64FromFullTransactionId(end) &&
		   !pg_atomic_compare_exchange_u64(&slot->withdrawers_end, &known,
										   U64FromFullTransactionId(end)))
		 /* somebody else has raised it; known is what it is now */ ;
}

/*
 * While the database had no slot, nobody noted which prepared transactions have
 * withdrawn events.  So every transaction that has a number by now may withdraw
 * events.  The order matters: first the slot can be found, then the next number
 * is read.  A session that is about to prepare has its number already.  If it
 * does not find the slot, its number is below the one that is read here.  If it
 * finds the slot, it raises the end itself.
 *
 * A session may commit a prepared transaction between the two steps, and take
 * it for a transaction that withdraws nothing.  That does no harm: the
 * database's worker is yet to be started, and begins by looking at everything.
 */
OnsideSlot *
onside_slot_take(Oid database)
{
	OnsideSlot *slot = onside_slot_find(database);

	if (slot != NULL)
		return slot;
	for (int i = 0; i < onside_max_databases; i++)
	{
		slot = &control->slots[i];
		if (OidIsValid(onside_slot_database(slot)))
			continue;

		/* Nobody sees the slot before its fields are those of a new slot. */
		onside_slot_reset(slot);

		/* Now the slot can be found, and then the number is read. */
		pg_write_barrier();
		pg_atomic_write_u32(&slot->database, database);
		pg_memory_barrier();
		raise_withdrawers_end(slot, ReadNextFullTransactionId());
		return slot;
	}
	return NULL;
}

/*
 * Prepared transactions may have survived the restart.  What they have
 * withdrawn was noted in the memory that is gone, so every one may withdraw
 * events.
 */
void
onside_slot_restore(int i, Oid database, const OnsideStats *stats)
{
	OnsideSlot *slot = onside_slot_get(i);

	pg_atomic_write_u32(&slot->database, database);
	pg_atomic_write_u64(&slot->withdrawers_end, PG_UINT64_MAX);
	slot->service.state = ONSIDE_SLOT_WANTED;
	slot->service.found = true; /* or there would be no statistics to keep */
	slot->stats = *stats;
}

/*
 * This process alone writes its number into a slot, and the process that had
 * the number before has left its slot.  So no lock is needed.
 */
bool
onside_slot_is_mine(OnsideSlot *slot)
{
	return pg_atomic_read_u32(&slot->procno) == (uint32) ONSIDE_MY_PROCNO;
}

/* Wakes the process with this number, if there is one. */
static void
set_latch_of(pg_atomic_uint32 *procno)
{
	uint32		no = pg_atomic_read_u32(procno);

	if (no != ONSIDE_NO_PROC)
		SetLatch(&GetPGProcByNumber(no)->procLatch);
}

void
onside_slot_wake(OnsideSlot *slot, uint32 why)
{
	if ((why & ONSIDE_WAKE_WITHDRAWN) != 0)
		pg_atomic_fetch_add_u32(&slot->epoch, 1);

	/*
	 * The worker takes the bits before it looks, and does not sleep while a
	 * bit is set.  (The latch alone would not do: a wait for a lock resets
	 * it.)  So if a bit was set already, the worker will look anyway.
	 */
	if (pg_atomic_fetch_or_u32(&slot->wakeup, why) == 0 ||
		(why & ~ONSIDE_WAKE_COMMIT) != 0)
		set_latch_of(&slot->procno);
}

/* The end is the number behind that of the transaction. */
void
onside_slot_withdraw_later(OnsideSlot *slot, FullTransactionId xid)
{
	FullTransactionIdAdvance(&xid);
	raise_withdrawers_end(slot, xid);
}

bool
onside_slot_may_withdraw(OnsideSlot *slot, FullTransactionId xid)
{
	return U64FromFullTransactionId(xid) <
		pg_atomic_read_u64(&slot->withdrawers_end);
}

/*
 * Waking a process costs a purchase more than recording the event.  It would be
 * for nothing while the worker cannot send, because requests are under way or
 * the API is away.  So the worker says beforehand when it wants to be woken.
 * Each side writes its word before it reads the other's.
 */
void
onside_slot_count(OnsideSlot *slot, int64 n)
{
	uint64		recorded = pg_atomic_add_fetch_u64(&slot->recorded, n);

	if (recorded >= pg_atomic_read_u64(&slot->wake_at))
		onside_slot_wake(slot, ONSIDE_WAKE_COMMIT);
}

bool
onside_slot_arm(OnsideSlot *slot, uint64 noticed, uint64 wanted)
{
	uint64		wake_at = wanted == 0 ? PG_UINT64_MAX : noticed + wanted;

	/* Write first, then look: an event may have come meanwhile. */
	pg_atomic_write_u64(&slot->wake_at, wake_at);
	pg_memory_barrier();
	return pg_atomic_read_u64(&slot->recorded) < wake_at &&
		pg_atomic_read_u32(&slot->wakeup) == 0;
}

/*
 * How many events are pending.  The caller has the slot's lock.  "uncounted"
 * makes up for what "recorded" does not know: the backlog that a starting
 * worker has found, and prepared transactions.
 */
static int64
sum_pending(OnsideSlot *slot)
{
	int64		pending = (int64) pg_atomic_read_u64(&slot->recorded) +
		slot->status.uncounted - slot->status.settled;

	/* The worker can have settled what a session is yet to count. */
	return Max(pending, 0);
}

int64
onside_slot_pending(OnsideSlot *slot)
{
	int64		pending;

	LWLockAcquire(slot->lock, LW_SHARED);
	pending = sum_pending(slot);
	LWLockRelease(slot->lock);

	/* Read afterwards: has the slot been given away meanwhile? */
	return onside_slot_database(slot) == MyDatabaseId ? pending : 0;
}

/*
 * Takes both locks.  A worker takes the slot under the lock of all slots, and
 * leaves it under both.  So the pid and the state belong together.
 */
pid_t
onside_slot_read_status(OnsideSlot *slot, OnsideStatus *status, int64 *pending)
{
	pid_t		pid;

	LWLockAcquire(control->lock, LW_SHARED);
	LWLockAcquire(slot->lock, LW_SHARED);
	pid = slot->service.worker_pid;
	*status = slot->status;
	*pending = sum_pending(slot);
	LWLockRelease(slot->lock);
	LWLockRelease(control->lock);
	return pid;
}

/*
 * Asks whether a worker publishes at all, and whether the slot is still ours.
 */
bool
onside_slot_tells(OnsideSlot *slot, int64 settled)
{
	OnsideStatus status;
	int64		pending;

	return onside_slot_read_status(slot, &status, &pending) == 0 ||
		onside_slot_database(slot) != MyDatabaseId ||
		status.delivered + status.dead_lettered >= settled ||
		status.state == ONSIDE_NOT_RUNNING || status.objects_differ;
}

void
onside_launcher_attach(void)
{
	pg_atomic_write_u32(&control->launcher_procno, ONSIDE_MY_PROCNO);
}

void
onside_launcher_detach(void)
{
	pg_atomic_write_u32(&control->launcher_procno, ONSIDE_NO_PROC);
}

/* Says why, if that matters, before it sets the latch. */
void
onside_launcher_wake(bool forget)
{
	if (control == NULL)
		return;
	if (forget)
		pg_atomic_write_u32(&control->forget, 1);
	set_latch_of(&control->launcher_procno);
}

bool
onside_launcher_take_forget(void)
{
	return pg_atomic_exchange_u32(&control->forget, 0) != 0;
}

pid_t
onside_launcher_pid(void)
{
	uint32		no = control == NULL ? ONSIDE_NO_PROC :
		pg_atomic_read_u32(&control->launcher_procno);

	return no == ONSIDE_NO_PROC ? 0 : GetPGProcByNumber(no)->pid;
}
