/*-------------------------------------------------------------------------
 *
 * backlog.c
 *		How many events are pending.
 *
 * Backends add to slot->recorded once they have committed, and the worker knows
 * how many events it has settled.  The difference is what is pending, and costs
 * nothing at any backlog.  It misses two things:
 *
 * - The events that a predecessor has left.  They are read and counted once, in
 *	 pieces between other work.
 * - A commit that is visible and is not yet added.  So the count stands only
 *	 if nobody has added anything for a moment after the last look; otherwise
 *	 the new events are counted, too, and so on for a while.  Under a load that
 *	 never pauses the count can stay off by a few, until everything is settled:
 *	 then it is zero.
 *
 * The result is slot->status.uncounted, under the slot's own lock: a view adds
 * it to the difference.  The worker's loop calls onside_backlog_count_some()
 * in each turn.  A count that cannot be read is tried again; see txn.c.
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

/* How many events are counted in one transaction, at most. */
#define COUNT_CHUNK		20000

/* A commit is added within CONFIRM_DELAY (ms); we wait for it so often. */
#define CONFIRM_DELAY	20
#define MAX_CONFIRMS	100

void
onside_backlog_init(OnsideWorker *worker)
{
	onside_brake_init(&worker->backlog.brake, "count what is pending",
					  ONSIDE_STEP_COUNTING);
}

/* Publishes the number, and the one that it belongs together with. */
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

/* Counts an event that the sender knows; those of aside are counted there. */
static void
count_item(OnsideItem *item, void *arg)
{
	if (item->home == ONSIDE_IN_LOG)
		(*(int64 *) arg)++;
}

/* Body of a transaction. */
static void
count_aside_rows(OnsideWorker *worker, void *arg)
{
	OnsideBacklog *backlog = &worker->backlog;

	backlog->total = onside_aside_count(PG_INT64_MAX, &backlog->aside_oldest);
}

/*
 * Begins a count: with the events that are aside, and those of the log that
 * have been read and are not settled.  The log from there on is counted next.
 * Returns false if that is not possible now: all that is decided has to be
 * written first, because a row of aside is there until then.
 */
static bool
begin_count(OnsideWorker *worker)
{
	OnsideBacklog *backlog = &worker->backlog;

	if (!onside_progress_is_written(worker) ||
		!onside_txn_run(worker, &backlog->brake, ONSIDE_READS_ASIDE,
						count_aside_rows, NULL))
		return false;

	/* What waits in the reader, and what the sender knows. */
	backlog->total += onside_reader_waiting(worker);
	onside_sender_visit(worker->sender, count_item, &backlog->total);

	/* How things stand at this moment. */
	onside_cursor_copy(&backlog->cursor, &worker->reader.reading);
	backlog->recorded = pg_atomic_read_u64(&worker->slot->recorded);
	backlog->settled = onside_progress_settled_count(worker);
	backlog->takes = worker->reader.takes;
	backlog->counted_at = 0;
	backlog->confirms = 0;
	return true;
}

/* A piece of the log that is counted in one transaction. */
typedef struct Piece
{
	OnsideWorker *worker;
	int			events;
	bool		finished;		/* the window ends here */
} Piece;

/* Counts an event of the log, unless the piece is full. */
static bool
count_event(TupleTableSlot *row, const OnsidePosition *pos, void *arg)
{
	Piece	   *piece = arg;
	OnsideWorker *worker = piece->worker;

	if (piece->events == COUNT_CHUNK)
		return false;

	/* What was taken out of turn before the count was counted at its start. */
	if (!onside_reader_took(worker, pos, worker->backlog.takes))
		piece->events++;
	return true;
}

/* Body of a transaction.  If it fails, the caller puts the cursor back. */
static void
count_piece(OnsideWorker *worker, void *arg)
{
	Piece	   *piece = arg;

	piece->finished = onside_window_read(&worker->backlog.cursor, count_event,
										 piece);
}

/*
 * Goes on with the count, in three phases.  First come the events in memory
 * and aside (begin_count()), then the log, a piece in each call.  At the end
 * of the log we wait a moment: if slot->recorded grows meanwhile, a commit
 * that we have counted may just have been added, and the new events are
 * counted as well.
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

	/* The first phase: what is in memory and aside. */
	if (!backlog->prepared)
	{
		backlog->prepared = begin_count(worker);
		return;
	}

	/* The last phase: the log has been counted to its end. */
	if (backlog->counted_at != 0)
	{
		if (onside_ms_until(backlog->counted_at, CONFIRM_DELAY) > 0)
			return;

		/* Nobody has added anything, or we have waited often enough. */
		if (pg_atomic_read_u64(&worker->slot->recorded) ==
			(uint64) backlog->recorded ||
			++backlog->confirms >= MAX_CONFIRMS)
		{
			backlog->counting = false;
			onside_cursor_release(&backlog->cursor);
			return;
		}

		/* Go on with the log. */
		backlog->counted_at = 0;
	}

	/*
	 * The reader has forgotten what it had taken out of turn, so these events
	 * would count twice: begin again.
	 */
	if (worker->reader.forgotten > backlog->takes)
	{
		backlog->prepared = false;
		return;
	}

	/* Count a piece.  A new window sees what was recorded before it. */
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

/* Ends a count that is under way. */
void
onside_backlog_is_empty(OnsideWorker *worker, uint64 recorded)
{
	publish_uncounted(worker, onside_progress_settled_count(worker) -
					  (int64) recorded);
	worker->backlog.counting = false;
	onside_cursor_release(&worker->backlog.cursor);
}
