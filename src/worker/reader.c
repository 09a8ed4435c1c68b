/*-------------------------------------------------------------------------
 *
 * reader.c
 *		Reads events from the log, aside and dead_letter into batches.
 *
 * sending.c asks for batches.  The reading cursor runs ahead of the settled
 * cursor.  Between them are the batch that is being filled and the events that
 * the sender knows.  A mark says how far the settled cursor may move once all
 * events up to some seq are settled; progress.c asks for that.
 *
 * While the next events of the log fail, events from its end are taken out of
 * turn.  Later, reading in order passes over them.  The settled cursor does
 * not: their seq is below that of any mark behind their places, so no such
 * mark is reached before they are settled.
 *
 * Nothing in memory is truer than the log.  An event that has failed is read
 * again from its table each time, and not sent if somebody has deleted it.
 *
 * Each read is a transaction of its own (see txn.c), and no transaction is open
 * while requests are in flight.  If a transaction fails, what it has read is
 * forgotten and read again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "log/aside.h"
#include "log/crash_guard.h"
#include "log/outbox.h"
#include "settings.h"
#include "worker/item.h"
#include "worker/reader.h"
#include "worker/second_chance.h"
#include "worker/txn.h"

/* How many events may be taken out of turn: memory is bounded. */
#define MAX_EARLY		50000

/* An event that was taken out of turn. */
typedef struct Early
{
	OnsidePosition pos;
	int64		taken;			/* reader.takes when it was taken */
} Early;

void
onside_reader_init(OnsideWorker *worker, const OnsideCursor *settled)
{
	OnsideReader *reader = &worker->reader;

	onside_brake_init(&reader->brake, "read the outbox", ONSIDE_STEP_READING);
	onside_cursor_copy(&reader->reading, settled);
	onside_cursor_copy(&reader->passed, settled);
	reader->unread = true;
}

void
onside_reader_wake(OnsideWorker *worker)
{
	worker->reader.unread = true;
}

bool
onside_reader_has_some(OnsideWorker *worker)
{
	OnsideReader *reader = &worker->reader;

	return reader->unread || reader->reading.window != NULL ||
		reader->open_batch != NULL;
}

/* ----------
 * In order
 * ----------
 */

/* A read of the log into a batch. */
typedef struct Read
{
	OnsideWorker *worker;
	OnsideBatch *batch;
	int			max_events;		/* what fits into the batch */
	int			max_bytes;
	bool		finished;		/* the window was read to its end */
} Read;

bool
onside_reader_took(OnsideWorker *worker, const OnsidePosition *pos, int64 until)
{
	const Early *entry = worker->reader.early == NULL ? NULL :
		hash_search(worker->reader.early, pos, HASH_FIND, NULL);

	return entry != NULL && entry->taken <= until;
}

/*
 * Puts a row of the log into the batch, unless it was taken out of turn.
 * False, and the row is read again by the next read, if it does not fit.
 */
static bool
add_to_batch(TupleTableSlot *row, const OnsidePosition *pos, void *arg)
{
	Read	   *read = arg;
	OnsideEvent event;
	OnsideItem	item;

	onside_crash_guard_at(pos);
	read->worker->reader.rows_read++;
	if (onside_reader_took(read->worker, pos, read->worker->reader.takes))
		return true;
	onside_outbox_read_event(row, &event);
	item = onside_item_at(pos, onside_outbox_recorded_at(row));
	return onside_batch_add(read->batch, &event, &item, read->max_events,
							read->max_bytes);
}

/* Body of a transaction: reads on at the reading cursor, and moves it. */
static void
read_in_order(OnsideWorker *worker, void *arg)
{
	Read	   *read = arg;

	read->finished = onside_window_read(&worker->reader.reading, add_to_batch,
										read);
}

/* Notes that everything that was read has been handed over or passed over. */
static void
pass_what_was_read(OnsideReader *reader)
{
	onside_cursor_copy(&reader->passed, &reader->reading);
	reader->rows_passed = reader->rows_read;
}

/* Frees the batch that is being filled; there may be none. */
static void
free_open_batch(OnsideWorker *worker)
{
	OnsideReader *reader = &worker->reader;

	if (reader->open_batch != NULL)
		onside_batch_free(reader->open_batch);
	reader->open_batch = NULL;
}

void
onside_reader_start_over(OnsideWorker *worker)
{
	OnsideReader *reader = &worker->reader;

	free_open_batch(worker);
	onside_cursor_copy(&reader->reading, &reader->passed);
	reader->unread = true;
}

/* Reading has passed all events that were taken out of turn: forgets them. */
static void
forget_early(OnsideWorker *worker)
{
	OnsideReader *reader = &worker->reader;

	if (reader->early == NULL)
		return;
	hash_destroy(reader->early);
	reader->early = NULL;
	reader->forgotten = ++reader->takes;
}

/*
 * Reads the next events into the open batch.  Returns true if the batch is
 * full.  One call reads to the end of the present window at most.
 */
static bool
read_into_open_batch(OnsideWorker *worker, Read *read)
{
	OnsideReader *reader = &worker->reader;
	bool		fresh = reader->reading.window == NULL;

	if (reader->open_batch == NULL)
		reader->open_batch = onside_batch_create();
	read->batch = reader->open_batch;

	/* Before the snapshot: what is counted later may not be in it. */
	reader->read_recorded = pg_atomic_read_u64(&worker->slot->recorded);
	if (!onside_txn_run(worker, &reader->brake, ONSIDE_USES_LOG,
						read_in_order, read))
	{
		onside_reader_start_over(worker);
		return false;
	}

	/* A new window that has been read to its end: the log has no more. */
	reader->peeked_oldest = 0;
	if (read->finished && fresh)
		reader->unread = false;
	if (reader->open_batch->nitems == 0)
	{
		/* Nothing to send, or only what was taken out of turn. */
		free_open_batch(worker);
		pass_what_was_read(reader);
		if (!reader->unread)
			forget_early(worker);
		return false;
	}
	return !read->finished || reader->open_batch->nitems >= read->max_events;
}

/* Hands the open batch over. */
static OnsideBatch *
take_open_batch(OnsideWorker *worker)
{
	OnsideReader *reader = &worker->reader;
	OnsideBatch *batch = reader->open_batch;

	reader->average_bytes = batch->body.len / batch->nitems;
	onside_batch_seal(batch);
	pass_what_was_read(reader);
	reader->open_batch = NULL;
	return batch;
}

/*
 * Milliseconds until the open batch has lingered long enough.  While somebody
 * waits in flush(), nothing lingers.
 */
static long
linger_timeout(OnsideWorker *worker)
{
	if (pg_atomic_read_u32(&worker->slot->flush_waiters) > 0)
		return 0;
	return onside_ms_until(worker->reader.open_batch->opened_at, onside_linger);
}

/*
 * Reads until the batch is full or the log has no more.  A batch that is not
 * full stays open, and is handed over when it has lingered long enough, unless
 * only a full one is wanted.
 */
OnsideBatch *
onside_reader_oldest(OnsideWorker *worker, int max_events, int max_bytes,
					 bool full)
{
	OnsideReader *reader = &worker->reader;
	Read		read = {worker, NULL, max_events, max_bytes, false};

	/* The limits are lower now than when the open batch was read. */
	if (reader->open_batch != NULL &&
		(reader->open_batch->nitems > max_events ||
		 (reader->open_batch->nitems > 1 &&
		  reader->open_batch->body.len >= max_bytes)))
		onside_reader_start_over(worker);
	if (reader->open_batch != NULL && reader->open_batch->nitems == max_events)
		return take_open_batch(worker);

	/* Read, a window after the other. */
	while (reader->unread || reader->reading.window != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		if (onside_reader_rests(worker))
			return NULL;
		if (read_into_open_batch(worker, &read))
			return take_open_batch(worker);
	}

	/* The log has no more. */
	if (reader->open_batch == NULL || full || linger_timeout(worker) > 0)
		return NULL;
	return take_open_batch(worker);
}

/* ----------
 * What is settled
 * ----------
 */

/*
 * Makes a mark, or moves the last one on if nothing has been sent since it was
 * made.  Marks become many while the first events are not settled.  Then every
 * second one is given up: the cursor just moves in larger steps.
 */
void
onside_reader_passed(OnsideWorker *worker, int64 last_seq)
{
	OnsideReader *reader = &worker->reader;

	if (reader->nmarks == 0 ||
		reader->marks[reader->nmarks - 1].seq != last_seq)
	{
		/* There is no room: keep the last of each two. */
		if (reader->nmarks == ONSIDE_MAX_MARKS)
		{
			int			kept = 0;

			for (int i = 0; i < reader->nmarks; i++)
				if (i % 2 == 0)
					onside_cursor_release(&reader->marks[i].cursor);
				else
					reader->marks[kept++] = reader->marks[i];
			reader->nmarks = kept;
		}
		memset(&reader->marks[reader->nmarks++], 0, sizeof(OnsideMark));
	}
	reader->marks[reader->nmarks - 1].seq = last_seq;
	reader->marks[reader->nmarks - 1].rows_passed = reader->rows_passed;
	onside_cursor_copy(&reader->marks[reader->nmarks - 1].cursor,
					   &reader->passed);
}

/* How many marks are reached once all events up to seq are settled? */
static int
count_reached(OnsideWorker *worker, int64 seq)
{
	int			n = 0;

	while (n < worker->reader.nmarks && worker->reader.marks[n].seq <= seq)
		n++;
	return n;
}

bool
onside_reader_settled(OnsideWorker *worker, int64 seq, OnsideCursor *settled)
{
	int			n = count_reached(worker, seq);

	if (n > 0)
		onside_cursor_copy(settled, &worker->reader.marks[n - 1].cursor);
	return n > 0;
}

bool
onside_reader_forget(OnsideWorker *worker, int64 seq)
{
	OnsideReader *reader = &worker->reader;
	int			n = count_reached(worker, seq);
	int64		rows_before = reader->rows_settled;

	if (n > 0)
		reader->rows_settled = reader->marks[n - 1].rows_passed;
	for (int i = 0; i < n; i++)
		onside_cursor_release(&reader->marks[i].cursor);
	reader->nmarks -= n;
	memmove(reader->marks, reader->marks + n,
			reader->nmarks * sizeof(OnsideMark));
	return reader->rows_settled != rows_before;
}

/* ----------
 * Out of turn
 * ----------
 */

/*
 * Body of a transaction: reads from the log's end, behind the reading cursor.
 */
static void
read_newest(OnsideWorker *worker, void *arg)
{
	onside_window_read_newest(&worker->reader.reading, add_to_batch, arg);
}

/*
 * Remembers the places of events that were taken out of turn, so that reading
 * in order passes over them.
 */
static void
note_early(OnsideWorker *worker, const OnsideBatch *batch)
{
	OnsideReader *reader = &worker->reader;

	if (reader->early == NULL)
	{
		HASHCTL		info = {0};

		info.keysize = sizeof(OnsidePosition);
		info.entrysize = sizeof(Early);
		info.hcxt = TopMemoryContext;
		reader->early = hash_create("onside_attribution events out of turn",
									1024, &info,
									HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}

	/* backlog.c asks what was taken before its count began. */
	reader->takes++;
	for (int i = 0; i < batch->nitems; i++)
	{
		OnsidePosition pos = onside_item_position(&batch->items[i]);
		Early	   *entry = hash_search(reader->early, &pos, HASH_ENTER, NULL);

		entry->taken = reader->takes;
	}
}

/*
 * Takes the last events of the log out of turn.  The open batch may hold some
 * of them, read in order: it is given up, and read again later.
 */
OnsideBatch *
onside_reader_newest(OnsideWorker *worker, int max_events, int max_bytes)
{
	OnsideReader *reader = &worker->reader;
	Read		read = {worker, NULL, max_events, max_bytes, false};

	/* Not if too many have been taken. */
	if (onside_reader_rests(worker) ||
		(reader->early != NULL &&
		 hash_get_num_entries(reader->early) >= MAX_EARLY))
		return NULL;
	if (reader->open_batch != NULL)
		onside_reader_start_over(worker);
	read.batch = onside_batch_create();
	if (!onside_txn_run(worker, &reader->brake, ONSIDE_USES_LOG, read_newest,
						&read) ||
		read.batch->nitems == 0)
	{
		onside_batch_free(read.batch);
		return NULL;
	}

	/* From now on they are the sender's. */
	note_early(worker, read.batch);
	onside_batch_seal(read.batch);
	return read.batch;
}

/* ----------
 * Again
 * ----------
 */

/* A read of events by their places. */
typedef struct Again
{
	const OnsideItem *items;	/* those of the log in the log's order */
	int			n;
	bool	   *gone;
	OnsideBatch *batch;			/* NULL: only looks which are there */
	int			next;			/* the next item that the log may have */
} Again;

/* Notes that an event is there, and puts it into the batch. */
static void
add_again(Again *again, int i, const OnsideEvent *event)
{
	again->gone[i] = again->batch != NULL &&
		!onside_batch_add(again->batch, event, &again->items[i],
						  ONSIDE_API_MAX_EVENTS, INT_MAX);
}

/* Which of the items, from this one on, is at that place of the log? */
static int
next_in_log(const OnsideItem *items, int i, const OnsidePosition *pos)
{
	while (items[i].home != ONSIDE_IN_LOG ||
		   items[i].key[0] != U64FromFullTransactionId(pos->xid) ||
		   items[i].key[1] != (uint64) pos->id)
		i++;
	return i;
}

/* Adds an event that the log still has. */
static bool
add_from_log(TupleTableSlot *row, const OnsidePosition *pos, void *arg)
{
	Again	   *again = arg;
	OnsideEvent event = {0};

	onside_crash_guard_at(pos);
	again->next = next_in_log(again->items, again->next, pos);
	if (again->batch != NULL)
		onside_outbox_read_event(row, &event);
	add_again(again, again->next++, &event);
	return true;
}

/*
 * Body of a transaction: reads the events, each in its table, and says which
 * are gone.  Rows of aside and dead_letter are read one by one, and those of
 * the log together.  Without a batch a dead letter counts as there.
 */
static void
read_again(OnsideWorker *worker, void *arg)
{
	Again	   *again = arg;
	OnsidePosition *positions = palloc(again->n * sizeof(OnsidePosition));
	int			n = 0;

	again->next = 0;
	for (int i = 0; i < again->n; i++)
	{
		const OnsideItem *item = &again->items[i];
		OnsideEvent event = {0};
		TimestampTz recorded_at;

		again->gone[i] = true;
		if (item->home == ONSIDE_IN_LOG)
			positions[n++] = onside_item_position(item);
		else if (item->home == ONSIDE_IN_ASIDE ?
				 onside_aside_fetch(onside_item_id(item), &event,
									&recorded_at) :
				 again->batch == NULL ||
				 onside_second_chance_fetch(onside_item_id(item), &event,
											&recorded_at))
			add_again(again, i, &event);
	}
	onside_window_fetch(positions, n, add_from_log, again);
}

/*
 * Reads the events of a piece, which may be in several tables, in one
 * transaction: all of them are read, or none.
 */
OnsideBatch *
onside_reader_again(OnsideWorker *worker, const OnsideItem *items, int n,
					bool *gone, bool *failed)
{
	Again		again = {items, n, gone, NULL, 0};
	int			uses = 0;

	*failed = onside_reader_rests(worker);
	if (*failed)
		return NULL;

	/* Lock only the tables that have some of them. */
	for (int i = 0; i < n; i++)
		uses |= items[i].home == ONSIDE_IN_LOG ? ONSIDE_USES_LOG :
			items[i].home == ONSIDE_IN_ASIDE ? ONSIDE_USES_ASIDE :
			ONSIDE_USES_DEAD_LETTER;

	again.batch = onside_batch_create();
	*failed = !onside_txn_run(worker, &worker->reader.brake, uses, read_again,
							  &again);
	if (*failed || again.batch->nitems == 0)
	{
		onside_batch_free(again.batch);
		return NULL;
	}
	onside_batch_seal(again.batch);
	return again.batch;
}

/*
 * Does not look for dead letters.  The sender knows only those in flight, and
 * they are looked at when their fates are carried out.
 */
void
onside_reader_find(OnsideWorker *worker, const OnsideItem *items, int n,
				   bool *gone)
{
	Again		find = {items, n, gone, NULL, 0};

	read_again(worker, &find);
}

/* ----------
 * How things stand
 * ----------
 */

int
onside_reader_missing(OnsideWorker *worker, int max_events, int max_bytes)
{
	int			fit = max_bytes / Max(1, worker->reader.average_bytes);
	int			full = Max(1, Min(max_events, fit));

	return Max(1, full - onside_reader_waiting(worker));
}

int
onside_reader_waiting(OnsideWorker *worker)
{
	OnsideReader *reader = &worker->reader;

	return reader->open_batch == NULL ? 0 : reader->open_batch->nitems;
}

/* A look at the next event, which does not take it. */
typedef struct Peek
{
	OnsideWorker *worker;
	OnsideCursor cursor;		/* a copy of the reading cursor */
	uint64		recorded;		/* slot->recorded before the look */
	TimestampTz oldest;			/* recorded_at of the next event; or 0 */
	bool		finished;		/* the window has no event */
} Peek;

/* Takes the time of the first event that was not taken out of turn. */
static bool
take_recorded_at(TupleTableSlot *row, const OnsidePosition *pos, void *arg)
{
	Peek	   *peek = arg;

	if (onside_reader_took(peek->worker, pos, peek->worker->reader.takes))
	{
		peek->worker->reader.rows_read++;
		return true;
	}
	peek->oldest = onside_outbox_recorded_at(row);
	return false;
}

/* Body of a transaction: looks at the next event. */
static void
peek_body(OnsideWorker *worker, void *arg)
{
	Peek	   *peek = arg;

	peek->finished = onside_window_read(&peek->cursor, take_recorded_at, peek);
}

/*
 * While nothing may be sent, nothing is read; so this looks at the next event
 * of the log, once, and remembers its time until something is read.
 */
TimestampTz
onside_reader_oldest_recorded(OnsideWorker *worker)
{
	OnsideReader *reader = &worker->reader;
	Peek		peek = {.worker = worker};

	/* What is known. */
	if (reader->open_batch != NULL)
		return reader->open_batch->items[0].recorded_at;
	if (reader->peeked_oldest != 0 || !reader->unread ||
		onside_reader_rests(worker))
		return reader->peeked_oldest;

	/* There may be events that were not read: look. */
	peek.recorded = pg_atomic_read_u64(&worker->slot->recorded);
	onside_cursor_copy(&peek.cursor, &reader->reading);
	if (onside_txn_run(worker, &reader->brake, ONSIDE_USES_LOG, peek_body,
					   &peek))
	{
		reader->read_recorded = peek.recorded;
		reader->peeked_oldest = peek.oldest;
		if (peek.finished && reader->reading.window == NULL)
		{
			/* There are none: that is as good as reading. */
			onside_cursor_copy(&reader->reading, &peek.cursor);
			pass_what_was_read(reader);
			reader->unread = false;
		}
	}
	onside_cursor_release(&peek.cursor);
	return reader->peeked_oldest;
}

bool
onside_reader_rests(OnsideWorker *worker)
{
	return onside_brake_timeout(worker, &worker->reader.brake) > 0;
}

/* A batch that has lingered long enough waits for the sender, not for time. */
long
onside_reader_timeout(OnsideWorker *worker)
{
	OnsideReader *reader = &worker->reader;

	if (onside_brake_timeout(worker, &reader->brake) >= 0)
		return onside_brake_timeout(worker, &reader->brake);
	return reader->open_batch == NULL || linger_timeout(worker) == 0 ? -1 :
		linger_timeout(worker);
}
