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
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/timestamp.h"

#include "batch.h"
#include "clock.h"
#include "crash_guard.h"
#include "http.h"
#include "outbox.h"
#include "progress.h"
#include "reader.h"
#include "sender.h"
#include "settings.h"
#include "txn.h"

static OnsideSlot *slot;
static OnsideCursor reading;	/* read up to here */
static OnsideBatch *open_batch; /* being filled, or NULL */
static bool unread;				/* there may be events to read */
static uint64 read_recorded;	/* slot->recorded before the last read */
static TimestampTz peeked_oldest;
static int	average_bytes;		/* of an event in the last batch */

void
onside_reader_init(OnsideSlot *my_slot, const OnsideCursor *settled)
{
	slot = my_slot;
	onside_cursor_copy(&reading, settled);
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
	onside_sender_add(open_batch);
	open_batch = NULL;
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
	onside_txn_begin();
	finished = onside_window_read(&reading, add_to_open_batch, limits);
	onside_txn_commit();

	onside_cursor_copy(&open_batch->end, &reading);
	if (finished && fresh)
		unread = false;

	if (open_batch->nevents == 0)
	{
		/* Nothing: whatever there is ends here. */
		if (!onside_sender_extend_last(&reading))
			onside_progress_advance(&reading);
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

static bool
take_recorded_at(TupleTableSlot *row, const OnsidePosition *pos, void *arg)
{
	bool		isnull;

	*(TimestampTz *) arg =
		DatumGetTimestampTz(slot_getattr(row, Anum_outbox_recorded_at,
										 &isnull));
	return false;
}

TimestampTz
onside_reader_oldest(void)
{
	TimestampTz oldest = onside_sender_oldest();
	OnsideCursor peeking = {0};

	if (oldest != 0)
		return oldest;
	if (open_batch != NULL)
		return open_batch->events[0].recorded_at;
	if (peeked_oldest != 0 || !unread)
		return peeked_oldest;

	/* There may be some that nobody may send now. */
	read_recorded = pg_atomic_read_u64(&slot->recorded);
	onside_cursor_copy(&peeking, &reading);
	onside_txn_begin();
	if (onside_window_read(&peeking, take_recorded_at, &peeked_oldest) &&
		reading.window == NULL)
	{
		/* There are none. */
		onside_cursor_copy(&reading, &peeking);
		onside_progress_advance(&peeking);
		unread = false;
	}
	onside_txn_commit();
	onside_cursor_release(&peeking);
	return peeked_oldest;
}

long
onside_reader_timeout(void)
{
	if (open_batch == NULL || onside_linger == 0 ||
		onside_http_in_flight() > 0)
		return -1;
	return onside_ms_until(open_batch->opened_at, onside_linger);
}
