/*-------------------------------------------------------------------------
 *
 * reader.c
 *		From the log into batches.
 *
 * The reading cursor runs ahead of the settled one; between them are the open
 * batch and the sender's queue.  Each read is a transaction of its own, and
 * none is open while requests are under way.
 *
 * A full batch goes to the sender at once; one that is not full goes when
 * nothing is under way, and is filled up until then.  So batches are immediate
 * when it is quiet and large under load.
 *
 * If a transaction fails, what it has read is forgotten: the open batch is
 * thrown away, and reading starts over where that batch began.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/timestamp.h"

#include "batch.h"
#include "clock.h"
#include "crash_guard.h"
#include "send/http.h"
#include "outbox.h"
#include "progress.h"
#include "reader.h"
#include "send/sender.h"
#include "settings.h"
#include "txn.h"

static OnsideSlot *slot;
static OnsideCursor reading;	/* read up to here */
static OnsideCursor queued;		/* and up to here handed to the sender */
static OnsideBatch *open_batch; /* being filled, or NULL */
static bool unread;				/* there may be events to read */
static uint64 read_recorded;	/* slot->recorded before the last read */
static TimestampTz peeked_oldest;
static int	average_bytes;		/* of an event in the last batch */
static OnsideBrake brake = {.work = "read the outbox"};

void
onside_reader_init(OnsideSlot *my_slot, const OnsideCursor *settled)
{
	slot = my_slot;
	onside_cursor_copy(&reading, settled);
	onside_cursor_copy(&queued, settled);
	unread = true;
}

void
onside_reader_wake(void)
{
	unread = true;
}

typedef struct ReadLimits
{
	int			max_events;
	int			max_bytes;
	bool		finished;		/* the window was read to its end */
} ReadLimits;

static bool
add_to_open_batch(TupleTableSlot *row, const OnsidePosition *pos, void *arg)
{
	ReadLimits *limits = (ReadLimits *) arg;
	OnsideEvent event;

	onside_crash_guard_at(pos);
	onside_outbox_read_event(row, &event);
	return onside_batch_add(open_batch, &event, pos,
							DatumGetTimestampTz(row->tts_values[Anum_outbox_recorded_at - 1]),
							limits->max_events, limits->max_bytes);
}

/* Hands the open batch over. */
static void
queue_open_batch(void)
{
	average_bytes = open_batch->body.len / open_batch->nevents;
	onside_batch_seal(open_batch);
	onside_cursor_copy(&queued, &open_batch->end);
	onside_sender_add(open_batch);
	open_batch = NULL;
}

/* Body of a transaction. */
static void
read_some(void *arg)
{
	ReadLimits *limits = arg;

	limits->finished = onside_window_read(&reading, add_to_open_batch, limits);
}

/* Forgets what was read and not handed over. */
static void
start_over(void)
{
	onside_batch_free(open_batch);
	open_batch = NULL;
	onside_cursor_copy(&reading, &queued);
	unread = true;
}

/*
 * Reads into the open batch.  Returns true if the batch is full.
 */
static bool
read_into_batch(ReadLimits *limits)
{
	bool		fresh = reading.window == NULL;
	bool		finished;

	if (open_batch == NULL)
		open_batch = onside_batch_create();

	onside_crash_guard_step(ONSIDE_STEP_READING, NULL);
	read_recorded = pg_atomic_read_u64(&slot->recorded);
	if (!onside_txn_run(&brake, ONSIDE_USES_LOG, read_some, limits))
	{
		start_over();
		return false;
	}
	finished = limits->finished;

	onside_cursor_copy(&open_batch->end, &reading);
	if (finished && fresh)
		unread = false;

	if (open_batch->nevents == 0)
	{
		/* Nothing: whatever there is ends here. */
		if (!onside_sender_extend_last(&reading))
			onside_progress_advance(&reading);
		onside_cursor_copy(&queued, &reading);
		onside_batch_free(open_batch);
		open_batch = NULL;
	}
	return open_batch != NULL &&
		(!finished || open_batch->nevents >= limits->max_events);
}

/* A batch that is not full goes if nothing is in flight and it has lingered. */
static bool
partial_batch_may_go(void)
{
	return open_batch != NULL && onside_http_in_flight() == 0 &&
		onside_ms_until(open_batch->opened_at, onside_linger) == 0;
}

/* Reads a batch and hands it over; false if there is none that may go. */
static bool
read_batch(ReadLimits *limits)
{
	while (unread || reading.window != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		if (onside_brake_timeout(&brake) > 0)
			return false;
		peeked_oldest = 0;
		if (read_into_batch(limits))
		{
			queue_open_batch();
			return true;
		}
	}

	if (!partial_batch_may_go())
		return false;
	queue_open_batch();
	return true;
}

/* As many events as fill a batch, if they are as large as the last ones. */
static int
batch_size(const ReadLimits *limits)
{
	return Max(1, Min(limits->max_events,
					  limits->max_bytes / Max(1, average_bytes)));
}

uint64
onside_reader_wants(void)
{
	ReadLimits	limits;
	int			present = open_batch == NULL ? 0 : open_batch->nevents;

	limits.max_events = onside_sender_wants(&limits.max_bytes);
	if (limits.max_events == 0)
		return 0;
	if (present == 0 && onside_http_in_flight() == 0)
		return 1;
	return Max(1, batch_size(&limits) - present);
}

void
onside_reader_read_and_send(void)
{
	ReadLimits	limits;

	do
	{
		while ((limits.max_events = onside_sender_wants(&limits.max_bytes)) > 0 &&
			   read_batch(&limits))
			 /* another one */ ;
	} while (onside_sender_pump());
}

bool
onside_reader_drained(void)
{
	return !unread && reading.window == NULL && open_batch == NULL &&
		!onside_sender_busy();
}

uint64
onside_reader_recorded(void)
{
	return read_recorded;
}

/* A look at the next event that does not read it. */
typedef struct Peek
{
	OnsideCursor cursor;
	uint64		recorded;
	TimestampTz oldest;
	bool		finished;
} Peek;

static bool
take_recorded_at(TupleTableSlot *row, const OnsidePosition *pos, void *arg)
{
	Peek	   *peek = arg;
	bool		isnull;

	peek->oldest =
		DatumGetTimestampTz(slot_getattr(row, Anum_outbox_recorded_at,
										 &isnull));
	return false;
}

/* Body of a transaction. */
static void
peek_body(void *arg)
{
	Peek	   *peek = arg;

	peek->finished = onside_window_read(&peek->cursor, take_recorded_at, peek);
}

TimestampTz
onside_reader_oldest(void)
{
	TimestampTz oldest = onside_sender_oldest();
	Peek		peek = {0};

	if (oldest != 0)
		return oldest;
	if (open_batch != NULL)
		return open_batch->events[0].recorded_at;
	if (peeked_oldest != 0 || !unread)
		return peeked_oldest;

	/* There may be some that nobody may send now. */
	peek.recorded = pg_atomic_read_u64(&slot->recorded);
	onside_cursor_copy(&peek.cursor, &reading);
	if (onside_txn_run(&brake, ONSIDE_USES_LOG, peek_body, &peek))
	{
		read_recorded = peek.recorded;
		peeked_oldest = peek.oldest;
		if (peek.finished && reading.window == NULL)
		{
			/* There are none. */
			onside_cursor_copy(&reading, &peek.cursor);
			onside_cursor_copy(&queued, &peek.cursor);
			onside_progress_advance(&peek.cursor);
			unread = false;
		}
	}
	onside_cursor_release(&peek.cursor);
	return peeked_oldest;
}

const char *
onside_reader_problem(void)
{
	return brake.problem;
}

long
onside_reader_timeout(void)
{
	if (onside_brake_timeout(&brake) >= 0)
		return onside_brake_timeout(&brake);
	if (open_batch == NULL || onside_linger == 0 ||
		onside_http_in_flight() > 0)
		return -1;
	return onside_ms_until(open_batch->opened_at, onside_linger);
}
