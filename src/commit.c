/*-------------------------------------------------------------------------
 *
 * commit.c
 *		What a backend does once its transaction has committed.
 *
 * PostgreSQL calls XACT_EVENT_COMMIT callbacks when the transaction is already
 * visible to others, which is just when the worker is to be woken.  Nothing in
 * a callback may fail: the transaction can no longer be undone.
 *
 * Events are counted per subtransaction, so that what a rolled back savepoint
 * recorded is not taken for pending.  A prepared transaction's count is lost
 * here; utility_hook.c has the worker count again at COMMIT PREPARED.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "commit.h"
#include "crash_guard.h"
#include "shmem.h"

/* A subtransaction that recorded events, innermost first. */
typedef struct Level
{
	SubTransactionId subid;
	int64		count;
	struct Level *outer;
} Level;

static Level *levels;			/* in TopTransactionContext */
static uint32 wake_bits;
static bool want_worker;
static bool wake_launcher;
static bool forget_absent;

static void
reset(void)
{
	levels = NULL;
	wake_bits = 0;
	want_worker = false;
	wake_launcher = false;
	forget_absent = false;
}

static void
after_commit(void)
{
	OnsideSlot *slot = onside_slot_find(MyDatabaseId);
	int64		count = 0;

	for (Level *level = levels; level != NULL; level = level->outer)
		count += level->count;

	if (slot != NULL && count > 0)
		onside_slot_count(slot, count);
	if (wake_bits & ONSIDE_WAKE_RESUME)
		onside_crash_guard_release();
	if (slot != NULL && wake_bits != 0)
		onside_slot_wake(slot, wake_bits);

	if (onside_shmem_available())
	{
		if (want_worker && onside_slot_request(MyDatabaseId) == NULL)
			forget_absent = true;	/* for when a slot comes free */
		if (want_worker || wake_launcher)
			onside_launcher_wake(forget_absent);
	}
}

static void
xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			if (levels != NULL || wake_bits != 0 || want_worker ||
				wake_launcher)
				after_commit();
			reset();
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			reset();
			break;
		default:
			break;
	}
}

static void
subxact_callback(SubXactEvent event, SubTransactionId mySubid,
				 SubTransactionId parentSubid, void *arg)
{
	if (levels == NULL || levels->subid != mySubid)
		return;

	if (event == SUBXACT_EVENT_ABORT_SUB)
		levels = levels->outer;
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		Level	   *outer = levels->outer;

		if (outer != NULL && outer->subid == parentSubid)
		{
			outer->count += levels->count;
			levels = outer;
		}
		else
			levels->subid = parentSubid;
	}
}

void
onside_commit_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
}

void
onside_commit_count(int64 n)
{
	SubTransactionId subid = GetCurrentSubTransactionId();

	if (levels == NULL || levels->subid != subid)
	{
		Level	   *level = MemoryContextAlloc(TopTransactionContext,
											   sizeof(Level));

		level->subid = subid;
		level->count = 0;
		level->outer = levels;
		levels = level;
	}
	levels->count += n;
}

void
onside_commit_wake(uint32 why)
{
	wake_bits |= why;
}

void
onside_commit_want_worker(void)
{
	want_worker = true;
}

void
onside_commit_wake_launcher(bool forget)
{
	wake_launcher = true;
	forget_absent |= forget;
}
