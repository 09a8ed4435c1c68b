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
#include "worker/txn.h"

/* Events counted in one go. */
#define COUNT_CHUNK		20000

/* A commit is added within this time (ms), and is waited for so often. */
#define CONFIRM_DELAY	20
#define MAX_CONFIRMS	100

void
onside_backlog_init(OnsideWorker *worker)
{
	onside_brake_init(&worker->backlog.brake, "count what is pending",
					  ONSIDE_STEP_COUNTING);
}

static void
publish_uncounted(OnsideWorker *worker, int64 uncounted)
{
	LWLockAcquire(worker->slot->lock, LW_EXCLUSIVE);
	worker->slot->status.uncounted = uncounted;
	worker->slot->status.settled = onside_progress_settled_count(worker);
	LWLockRelease(worker->slot->lock);
}

void
onside_backlog_start_counting(OnsideWorker *worker)
{
	worker->backlog.counting = true;
	worker->backlog.prepared = false;
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
count_aside(OnsideWorker *worker, void *arg)
{
	OnsideBacklog *backlog = &worker->backlog;

	backlog->total = onside_aside_count(PG_INT64_MAX, &backlog->aside_oldest);
}

/*
 * Counts what is aside and what has been read, at one moment at which all that is
 * decided is written; the log from there on is counted next.
 */
static bool
prepare(OnsideWorker *worker)
{
	OnsideBacklog *backlog = &worker->backlog;

	if (!onside_progress_is_written(worker) ||
		!onside_txn_run(worker, &backlog->brake, ONSIDE_READS_ASIDE,
						count_aside, NULL))
		return false;
	backlog->total += onside_reader_waiting(worker);
	onside_sender_visit(worker->sender, count_item, &backlog->total);
	onside_cursor_copy(&backlog->cursor, onside_reader_position(worker));
	backlog->recorded = pg_atomic_read_u64(&worker->slot->recorded);
	backlog->settled = onside_progress_settled_count(worker);
	backlog->takes = onside_reader_takes(worker);
	backlog->counted_at = 0;
	backlog->confirms = 0;
	return true;
}

/* One piece of it. */
typedef struct Piece
{
	OnsideWorker *worker;
	int			events;
	bool		finished;
} Piece;

static bool
count_event(TupleTableSlot *row, const OnsidePosition *pos, void *arg)
{
	Piece	   *piece = arg;
	OnsideWorker *worker = piece->worker;

	if (piece->events == COUNT_CHUNK)
		return false;
	/* What was taken since was not counted with what had been read. */
	if (!onside_reader_took(worker, pos, worker->backlog.takes))
		piece->events++;
	return true;
}

/* Body of a transaction.  The caller puts the cursor back if it fails. */
static void
count_piece(OnsideWorker *worker, void *arg)
{
	Piece	   *piece = arg;

	piece->finished = onside_window_read(&worker->backlog.cursor, count_event,
										 piece);
}

/*
 * Counts a piece of the backlog that a predecessor left.  Three phases: what is in
 * memory and aside (prepare()), then the log piece by piece, and then waiting
 * whether a commit that we have seen is yet to be added to slot->recorded.
 */
void
onside_backlog_count_some(OnsideWorker *worker)
{
	OnsideBacklog *backlog = &worker->backlog;
	Piece		piece = {.worker = worker};
	bool		fresh = backlog->cursor.window == NULL;
	OnsideCursor before = {0};

	if (!backlog->counting)
		return;
	if (!backlog->prepared)
	{
		backlog->prepared = prepare(worker);
		return;
	}
	if (backlog->counted_at != 0)
	{
		if (onside_ms_until(backlog->counted_at, CONFIRM_DELAY) > 0)
			return;
		if (pg_atomic_read_u64(&worker->slot->recorded) ==
			(uint64) backlog->recorded ||
			++backlog->confirms >= MAX_CONFIRMS)
		{
			backlog->counting = false;
			onside_cursor_release(&backlog->cursor);
			return;
		}
		backlog->counted_at = 0;
	}

	/* What was taken out of turn is not known any more and would count twice. */
	if (onside_reader_forgotten(worker) > backlog->takes)
	{
		backlog->prepared = false;
		return;
	}
	if (fresh)
		backlog->recorded = pg_atomic_read_u64(&worker->slot->recorded);
	onside_cursor_copy(&before, &backlog->cursor);
	if (onside_txn_run(worker, &backlog->brake, ONSIDE_USES_LOG, count_piece,
					   &piece))
	{
		backlog->total += piece.events;
		if (piece.finished && fresh)
			backlog->counted_at = onside_clock();
		publish_uncounted(worker, backlog->total - backlog->recorded +
						  backlog->settled);
	}
	else
		onside_cursor_copy(&backlog->cursor, &before);
	onside_cursor_release(&before);
}

long
onside_backlog_timeout(OnsideWorker *worker)
{
	OnsideBacklog *backlog = &worker->backlog;

	if (!backlog->counting)
		return -1;
	if (!backlog->prepared && !onside_progress_is_written(worker))
		return -1;
	if (backlog->counted_at != 0)
		return onside_ms_until(backlog->counted_at, CONFIRM_DELAY);
	return Max(0, onside_brake_timeout(worker, &backlog->brake));
}

TimestampTz
onside_backlog_aside_oldest(OnsideWorker *worker)
{
	return worker->backlog.aside_oldest;
}

/* Nothing is pending: whatever the counters say, they start from here. */
void
onside_backlog_is_empty(OnsideWorker *worker, uint64 recorded)
{
	OnsideBacklog *backlog = &worker->backlog;

	publish_uncounted(worker, onside_progress_settled_count(worker) -
					  (int64) recorded);
	if (backlog->counting)
	{
		backlog->counting = false;
		onside_cursor_release(&backlog->cursor);
	}
}
