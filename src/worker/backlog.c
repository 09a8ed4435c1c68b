/*-------------------------------------------------------------------------
 *
 * backlog.c
 *		How many events are pending.
 *
 * Backends add to slot->recorded once they have committed, and what is settled
 * is known here, so the difference costs nothing at any backlog.  Two things
 * escape it: what a predecessor left, and a commit between its becoming visible
 * and its being added.  The former is read and counted once, piece by piece
 * between other work.  As for the latter, the count stands only if nobody has
 * added anything for a moment after the last look; otherwise what is new is
 * counted, too, and so on for a while.  Under a load that never pauses the count
 * can stay off by a few, until everything is settled: then it is zero.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "storage/lwlock.h"

#include "clock.h"
#include "log/aside.h"
#include "log/window.h"
#include "worker/backlog.h"
#include "worker/progress.h"
#include "worker/reader.h"
#include "worker/sending.h"
#include "worker/txn.h"

/* Events counted in one go. */
#define COUNT_CHUNK		20000

/* A commit is added within this time (ms), and is waited for so often. */
#define CONFIRM_DELAY	20
#define MAX_CONFIRMS	100

static OnsideSlot *slot;

static bool counting;
static OnsideCursor count_cursor;
static int64 count_total;
static int64 count_recorded;	/* slot->recorded when it began */
static int64 count_settled;		/* events settled when it began */
static int64 count_takes;		/* onside_reader_takes() then */
static int64 counted_at;		/* when the last of it was counted; 0 for not yet */
static int	confirms;			/* how often that was waited for */
static bool prepared;
static TimestampTz aside_oldest;
static OnsideBrake brake = {
	.work = "count what is pending",
	.step = ONSIDE_STEP_COUNTING
};

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
	counting = true;
	prepared = false;
}

/* Those of aside are counted in the table. */
static void
count_item(OnsideItem *item, void *arg)
{
	if (item->home == ONSIDE_IN_LOG)
		(*(int64 *) arg)++;
}

/* Body of a transaction. */
static void
count_aside(void *arg)
{
	count_total = onside_aside_count(PG_INT64_MAX, &aside_oldest);
}

/*
 * Counts what is aside and what has been read, at one moment at which all that is
 * decided is written; the log from there on is counted next.
 */
static bool
prepare(void)
{
	if (!onside_progress_is_written() ||
		!onside_txn_run(&brake, ONSIDE_READS_ASIDE, count_aside, NULL))
		return false;
	count_total += onside_reader_waiting();
	onside_sender_visit(onside_sending_sender(), count_item, &count_total);
	onside_cursor_copy(&count_cursor, onside_reader_position());
	count_recorded = pg_atomic_read_u64(&slot->recorded);
	count_settled = onside_progress_settled_count();
	count_takes = onside_reader_takes();
	counted_at = 0;
	confirms = 0;
	return true;
}

/* One piece of it. */
typedef struct Piece
{
	int			events;
	bool		finished;
} Piece;

static bool
count_event(TupleTableSlot *row, const OnsidePosition *pos, void *arg)
{
	Piece	   *piece = (Piece *) arg;

	if (piece->events == COUNT_CHUNK)
		return false;
	/* What was taken since was not counted with what had been read. */
	if (!onside_reader_took(pos, count_takes))
		piece->events++;
	return true;
}

/* Body of a transaction.  count_cursor is put back if it fails. */
static void
count_piece(void *arg)
{
	Piece	   *piece = arg;

	piece->finished = onside_window_read(&count_cursor, count_event, piece);
}

/* Counts some of the backlog that a predecessor left. */
void
onside_backlog_count_some(void)
{
	Piece		piece = {0};
	bool		fresh = count_cursor.window == NULL;
	OnsideCursor before = {0};

	if (!prepared)
	{
		prepared = prepare();
		return;
	}
	if (counted_at != 0)
	{
		if (onside_ms_until(counted_at, CONFIRM_DELAY) > 0)
			return;
		if (pg_atomic_read_u64(&slot->recorded) == (uint64) count_recorded ||
			++confirms >= MAX_CONFIRMS)
		{
			counting = false;
			onside_cursor_release(&count_cursor);
			return;
		}
		counted_at = 0;
	}

	/* What was taken out of turn is not known any more and would count twice. */
	if (onside_reader_forgotten() > count_takes)
	{
		prepared = false;
		return;
	}
	if (fresh)
		count_recorded = pg_atomic_read_u64(&slot->recorded);
	onside_cursor_copy(&before, &count_cursor);
	if (onside_txn_run(&brake, ONSIDE_USES_LOG, count_piece, &piece))
	{
		count_total += piece.events;
		if (piece.finished && fresh)
			counted_at = onside_clock();
		publish_uncounted(count_total - count_recorded + count_settled);
	}
	else
		onside_cursor_copy(&count_cursor, &before);
	onside_cursor_release(&before);
}

long
onside_backlog_timeout(void)
{
	if (!counting)
		return -1;
	if (!prepared && !onside_progress_is_written())
		return -1;
	if (counted_at != 0)
		return onside_ms_until(counted_at, CONFIRM_DELAY);
	return Max(0, onside_brake_timeout(&brake));
}

TimestampTz
onside_backlog_aside_oldest(void)
{
	return aside_oldest;
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
