/*-------------------------------------------------------------------------
 *
 * backlog.c
 *		How many events are pending.
 *
 * Backends add to slot->recorded once they have committed, and what is settled
 * is known here, so the difference costs nothing at any backlog.  Three things
 * escape it: what a predecessor left, prepared transactions, and a commit
 * between its becoming visible and its being added.  For the first two, the
 * backlog is read and counted once, piece by piece between other work.  The
 * last puts itself right: whenever everything is settled, the count is zero.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "storage/lwlock.h"

#include "backlog.h"
#include "progress.h"
#include "txn.h"
#include "window.h"

/* Events counted in one go. */
#define COUNT_CHUNK		20000

static OnsideSlot *slot;

static bool counting;
static OnsideCursor count_cursor;
static int64 count_total;
static int64 count_recorded;	/* slot->recorded when it began */
static int64 count_settled;		/* events settled when it began */

void
onside_backlog_init(OnsideSlot *my_slot)
{
	slot = my_slot;
}

bool
onside_backlog_counting(void)
{
	return counting;
}

static void
publish_uncounted(int64 uncounted)
{
	LWLockAcquire(slot->lock, LW_EXCLUSIVE);
	slot->status.uncounted = uncounted;
	slot->status.settled = onside_progress_settled_count();
	LWLockRelease(slot->lock);
}

void
onside_backlog_start_counting(void)
{
	onside_cursor_copy(&count_cursor, onside_progress_settled());
	count_total = 0;
	count_recorded = pg_atomic_read_u64(&slot->recorded);
	count_settled = onside_progress_settled_count();
	counting = true;
}

typedef struct CountArg
{
	int			left;
} CountArg;

static bool
count_event(TupleTableSlot *row, const OnsidePosition *pos, void *arg)
{
	CountArg   *count = (CountArg *) arg;

	if (count->left == 0)
		return false;
	count->left--;
	count_total++;
	return true;
}

/* Counts some of the backlog that a predecessor left. */
void
onside_backlog_count_some(void)
{
	CountArg	arg = {COUNT_CHUNK};
	bool		fresh = count_cursor.window == NULL;

	if (fresh)
		count_recorded = pg_atomic_read_u64(&slot->recorded);
	onside_txn_begin();
	if (onside_window_read(&count_cursor, count_event, &arg) && fresh)
		counting = false;
	onside_txn_commit();
	publish_uncounted(count_total - count_recorded + count_settled);
	if (!counting)
		onside_cursor_release(&count_cursor);
}

/* Nothing is pending: whatever the counters say, they start from here. */
void
onside_backlog_is_empty(uint64 recorded)
{
	publish_uncounted(onside_progress_settled_count() - (int64) recorded);
	if (counting)
	{
		counting = false;
		onside_cursor_release(&count_cursor);
	}
}
