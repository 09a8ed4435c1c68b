/*-------------------------------------------------------------------------
 *
 * shmem.c
 *		What the launcher, the workers and all backends share.
 *
 * A fixed array of slots, one for each database from which events are sent.
 * Everything here can be lost in a crash: what must survive is in the tables
 * delivery_cursor and control.
 *
 * Locks: one LWLock guards which database has which slot and in what state;
 * one more for each slot guards the status that its worker publishes.  The
 * path of a purchase takes neither: it reads "database", "segment" and "wake_at"
 * and touches "recorded" and "wakeup", single words all of them.  "epoch" is one
 * more, and is never reset: a worker may have noted it.
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
#include "log/crash_guard.h"
#include "log/shmem.h"
#include "settings.h"

#define TRANCHE "onside_attribution"

typedef struct OnsideControl
{
	LWLock	   *lock;
	pid_t		launcher_pid;
	pg_atomic_uint32 launcher_procno;
	pg_atomic_uint32 forget;
	OnsideSlot	slots[FLEXIBLE_ARRAY_MEMBER];
} OnsideControl;

static OnsideControl *control;

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

void
onside_slot_read_stats(OnsideSlot *slot, OnsideStats *stats)
{
	*stats = slot->stats;
	stats->counters[ONSIDE_COUNT_RECORDED] +=
		(int64) pg_atomic_read_u64(&slot->recorded);
	stats->counters[ONSIDE_COUNT_SKIPPED] +=
		(int64) pg_atomic_read_u64(&slot->skipped);
}

static void
reset_slot(OnsideSlot *slot)
{
	slot->database = InvalidOid;
	slot->state = ONSIDE_SLOT_FREE;
	slot->worker_pid = 0;
	slot->left_pid = 0;
	slot->orderly = false;
	slot->wanted_again = false;
	slot->found = false;
	slot->holds = 0;
	slot->dismissed = false;
	pg_atomic_write_u32(&slot->procno, ONSIDE_NO_PROC);
	pg_atomic_write_u32(&slot->wakeup, 0);
	pg_atomic_write_u32(&slot->start_now, 0);
	pg_atomic_write_u32(&slot->segment, 1);
	pg_atomic_write_u64(&slot->recorded, 0);
	pg_atomic_write_u64(&slot->wake_at, 1);
	pg_atomic_write_u64(&slot->skipped, 0);
	pg_atomic_write_u64(&slot->repeated, 0);
	pg_atomic_write_u64(&slot->withdrawers_end, PG_UINT64_MAX);
	memset(&slot->status, 0, sizeof(slot->status));
	slot->logged_state = ONSIDE_IDLE;
	onside_slot_clear_stats(slot);
}

static void
shmem_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();

	RequestAddinShmemSpace(shmem_size());
	RequestNamedLWLockTranche(TRANCHE, onside_max_databases + 1);
}

static void
shmem_startup(void)
{
	bool		found;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	control = ShmemInitStruct("onside_attribution", shmem_size(), &found);
	if (!found)
	{
		LWLockPadded *locks = GetNamedLWLockTranche(TRANCHE);

		control->lock = &locks[0].lock;
		control->launcher_pid = 0;
		pg_atomic_init_u32(&control->launcher_procno, ONSIDE_NO_PROC);
		pg_atomic_init_u32(&control->forget, 0);
		for (int i = 0; i < onside_max_databases; i++)
		{
			OnsideSlot *slot = &control->slots[i];

			pg_atomic_init_u32(&slot->procno, ONSIDE_NO_PROC);
			pg_atomic_init_u32(&slot->wakeup, 0);
			pg_atomic_init_u32(&slot->start_now, 0);
			pg_atomic_init_u32(&slot->segment, 1);
			pg_atomic_init_u64(&slot->recorded, 0);
			pg_atomic_init_u64(&slot->wake_at, 1);
			pg_atomic_init_u64(&slot->skipped, 0);
			pg_atomic_init_u64(&slot->repeated, 0);
			pg_atomic_init_u32(&slot->epoch, 0);
			pg_atomic_init_u64(&slot->withdrawers_end, PG_UINT64_MAX);
			pg_atomic_init_u32(&slot->flush_waiters, 0);
			slot->lock = &locks[i + 1].lock;
			ConditionVariableInit(&slot->settled_cv);
			ConditionVariableInit(&slot->worker_cv);
			reset_slot(slot);
		}
	}
	LWLockRelease(AddinShmemInitLock);
}

void
onside_shmem_init(void)
{
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = shmem_request;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
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

OnsideSlot *
onside_slot_find(Oid database)
{
	static int	last = 0;

	if (control == NULL)
		return NULL;

	if (control->slots[last].database == database)
		return &control->slots[last];

	for (int i = 0; i < onside_max_databases; i++)
	{
		if (control->slots[i].database == database)
		{
			last = i;
			return &control->slots[i];
		}
	}
	return NULL;
}

/* The database's slot, old or new, or NULL; for whoever has the lock. */
static OnsideSlot *
find_or_take_slot(Oid database)
{
	OnsideSlot *slot = onside_slot_find(database);

	for (int i = 0; slot == NULL && i < onside_max_databases; i++)
	{
		if (control->slots[i].database == InvalidOid)
		{
			slot = &control->slots[i];
			reset_slot(slot);
			slot->database = database;

			/* Nobody has noted what was prepared until now. */
			pg_atomic_write_u64(&slot->withdrawers_end,
								U64FromFullTransactionId(ReadNextFullTransactionId()));
		}
	}
	return slot;
}

OnsideSlot *
onside_slot_request(Oid database)
{
	OnsideSlot *slot;

	LWLockAcquire(control->lock, LW_EXCLUSIVE);
	slot = find_or_take_slot(database);
	if (slot != NULL &&
		(slot->state == ONSIDE_SLOT_FREE || slot->state == ONSIDE_SLOT_ABSENT))
		slot->state = ONSIDE_SLOT_WANTED;
	else if (slot != NULL)
		slot->wanted_again = true;
	LWLockRelease(control->lock);
	return slot;
}

bool
onside_slot_free(OnsideSlot *slot, OnsideSlotState state)
{
	bool		done;

	LWLockAcquire(control->lock, LW_EXCLUSIVE);
	done = slot->state == state && slot->holds == 0;
	if (done)
		reset_slot(slot);
	LWLockRelease(control->lock);
	return done;
}

OnsideSlot *
onside_slot_hold(Oid database)
{
	OnsideSlot *slot;

	if (control == NULL)
		return NULL;

	LWLockAcquire(control->lock, LW_EXCLUSIVE);
	slot = find_or_take_slot(database);
	if (slot != NULL)
		slot->holds++;
	LWLockRelease(control->lock);
	return slot;
}

void
onside_slot_let_go(OnsideSlot *slot)
{
	LWLockAcquire(control->lock, LW_EXCLUSIVE);
	Assert(slot->holds > 0);
	slot->holds--;
	if (slot->holds == 0 && slot->state == ONSIDE_SLOT_FREE)
		reset_slot(slot);		/* it was only held */
	LWLockRelease(control->lock);
}

bool
onside_slot_is_closed(OnsideSlot *slot)
{
	return slot->holds > 0 || slot->dismissed;
}

void
onside_slot_leave(OnsideSlot *slot, OnsideSlotState state)
{
	/* Before the launcher can start another one. */
	onside_crash_guard_end();

	LWLockAcquire(control->lock, LW_EXCLUSIVE);
	if (slot->worker_pid == MyProcPid)
	{
		slot->worker_pid = 0;
		slot->left_pid = MyProcPid;
		pg_atomic_write_u32(&slot->procno, ONSIDE_NO_PROC);
		if (state == ONSIDE_SLOT_ABSENT && slot->wanted_again)
			state = ONSIDE_SLOT_WANTED;
		slot->state = state;
		slot->status.state = ONSIDE_NOT_RUNNING;
		slot->status.reason[0] = '\0';
	}
	LWLockRelease(control->lock);

	ConditionVariableBroadcast(&slot->worker_cv);
	ConditionVariableBroadcast(&slot->settled_cv);
	onside_launcher_wake(false);
}

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
	 * The worker takes the bits before it looks, and does not sleep while
	 * there are any: the latch alone could have been reset by a wait for a
	 * lock.  So whoever finds bits set already knows that it will look.
	 */
	if (pg_atomic_fetch_or_u32(&slot->wakeup, why) == 0 ||
		(why & ~ONSIDE_WAKE_COMMIT) != 0)
		set_latch_of(&slot->procno);
}

void
onside_slot_withdraw_later(OnsideSlot *slot, FullTransactionId xid)
{
	uint64		end = U64FromFullTransactionId(xid) + 1;
	uint64		known = pg_atomic_read_u64(&slot->withdrawers_end);

	while (known < end &&
		   !pg_atomic_compare_exchange_u64(&slot->withdrawers_end, &known, end))
		 /* somebody else has raised it; known is what it is now */ ;
}

bool
onside_slot_may_withdraw(OnsideSlot *slot, FullTransactionId xid)
{
	return U64FromFullTransactionId(xid) <
		pg_atomic_read_u64(&slot->withdrawers_end);
}

/*
 * Waking a process costs a purchase more than recording the event does, and is
 * for nothing while the worker could not send it: requests are under way, or
 * the API is away.  So the worker says beforehand when it wants to know, and
 * each side writes its word before it reads the other's.
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

	pg_atomic_write_u64(&slot->wake_at, wake_at);
	pg_memory_barrier();
	return pg_atomic_read_u64(&slot->recorded) < wake_at &&
		pg_atomic_read_u32(&slot->wakeup) == 0;
}

int64
onside_slot_pending(OnsideSlot *slot)
{
	int64		pending;

	/*
	 * "uncounted" makes up for what "recorded" does not know: the backlog that
	 * a starting worker found, and prepared transactions.
	 */
	LWLockAcquire(slot->lock, LW_SHARED);
	pending = (int64) pg_atomic_read_u64(&slot->recorded) +
		slot->status.uncounted - slot->status.settled;
	LWLockRelease(slot->lock);
	return Max(pending, 0);
}

bool
onside_slot_tells(OnsideSlot *slot, int64 settled)
{
	bool		result;

	LWLockAcquire(slot->lock, LW_SHARED);
	result = slot->status.delivered + slot->status.dead_lettered >= settled ||
		slot->status.state == ONSIDE_NOT_RUNNING || slot->status.objects_differ;
	LWLockRelease(slot->lock);
	return slot->worker_pid == 0 || result;
}

void
onside_launcher_attach(void)
{
	control->launcher_pid = MyProcPid;
	pg_atomic_write_u32(&control->launcher_procno, ONSIDE_MY_PROCNO);
}

void
onside_launcher_detach(void)
{
	pg_atomic_write_u32(&control->launcher_procno, ONSIDE_NO_PROC);
	control->launcher_pid = 0;
}

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
	return control == NULL ? 0 : control->launcher_pid;
}
