/*-------------------------------------------------------------------------
 *
 * reader.c
 *		From the log, and where else events are, into batches.
 *
 * The reading cursor runs ahead of the settled one.  In between are the batch
 * that is being filled and the events that the sender knows of; for those, marks
 * say which cursor is right once all up to some seq are settled.  Each read is
 * a transaction of its own, and none is open while requests are under way.
 *
 * Events from the log's end are taken out of turn while the next ones fail.
 * Reading in order then passes over them, and over their places no mark is
 * reached before they are settled, since their seq is below that of any mark
 * that is made later.
 *
 * Nothing in memory is truer than the log: what has failed is read again where
 * it is kept each time, and what somebody has deleted is then not sent.
 *
 * If a transaction fails, what it has read is forgotten, and read again.
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

/* So many events are taken out of turn at most. */
#define MAX_EARLY		50000

/* An event that was taken out of turn. */
typedef struct Early
{
	OnsidePosition pos;
	int64		taken;			/* "takes" then */
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

/* What is being read, into which batch. */
typedef struct Read
{
	OnsideWorker *worker;
	OnsideBatch *batch;
	int			max_events;
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

/* Body of a transaction. */
static void
read_in_order(OnsideWorker *worker, void *arg)
{
	Read	   *read = arg;

	read->finished = onside_window_read(&worker->reader.reading, add_to_batch,
										read);
}

/* All that has been read was handed over, or was not to be. */
static void
pass_what_was_read(OnsideReader *reader)
{
	onside_cursor_copy(&reader->passed, &reader->reading);
	reader->rows_passed = reader->rows_read;
}

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

/* Everything that was taken out of turn has been passed. */
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

/* Reads into the open batch.  Returns true if it is full. */
static bool
read_into_open_batch(OnsideWorker *worker, Read *read)
{
	OnsideReader *reader = &worker->reader;
	bool		fresh = reader->reading.window == NULL;

	if (reader->open_batch == NULL)
		reader->open_batch = onside_batch_create();
	read->batch = reader->open_batch;

	reader->read_recorded = pg_atomic_read_u64(&worker->slot->recorded);
	if (!onside_txn_run(worker, &reader->brake, ONSIDE_USES_LOG,
						read_in_order, read))
	{
		onside_reader_start_over(worker);
		return false;
	}
	reader->peeked_oldest = 0;
	if (read->finished && fresh)
		reader->unread = false;
	if (reader->open_batch->nitems == 0)
	{
		/* Nothing: whatever there is ends here. */
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

/* linger does not hold back what somebody waits for in flush(). */
static long
linger_timeout(OnsideWorker *worker)
{
	if (pg_atomic_read_u32(&worker->slot->flush_waiters) > 0)
		return 0;
	return onside_ms_until(worker->reader.open_batch->opened_at, onside_linger);
}

/*
 * Reads until the batch is full or the log has no more.  What does not fill it stays
 * open, and is handed over when it has lingered long enough.
 */
OnsideBatch *
onside_reader_oldest(OnsideWorker *worker, int max_events, int max_bytes,
					 bool full)
{
	OnsideReader *reader = &worker->reader;
	Read		read = {worker, NULL, max_events, max_bytes, false};

	/* Less is to be sent at once than was when it was read. */
	if (reader->open_batch != NULL &&
		(reader->open_batch->nitems > max_events ||
		 (reader->open_batch->nitems > 1 &&
		  reader->open_batch->body.len >= max_bytes)))
		onside_reader_start_over(worker);
	if (reader->open_batch != NULL && reader->open_batch->nitems == max_events)
		return take_open_batch(worker);

	while (reader->unread || reader->reading.window != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		if (onside_reader_rests(worker))
			return NULL;
		if (read_into_open_batch(worker, &read))
			return take_open_batch(worker);
	}
	if (reader->open_batch == NULL || full || linger_timeout(worker) > 0)
		return NULL;
	return take_open_batch(worker);
}

/* ----------
 * What is settled
 * ----------
 */

/*
 * The last mark is moved on if nothing was sent since it was made.  Marks are many while
 * the first events are not settled; giving up some only lets the cursor move in larger
 * steps.
 */
void
onside_reader_passed(OnsideWorker *worker, int64 last_seq)
{
	OnsideReader *reader = &worker->reader;

	if (reader->nmarks == 0 ||
		reader->marks[reader->nmarks - 1].seq != last_seq)
	{
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

/* How many marks are reached with all up to seq settled? */
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

/* Body of a transaction. */
static void
read_newest(OnsideWorker *worker, void *arg)
{
	onside_window_read_newest(&worker->reader.reading, add_to_batch, arg);
}

/*
 * Remembers the places of a batch from the log's end, so that reading in order passes
 * over them.
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
	reader->takes++;
	for (int i = 0; i < batch->nitems; i++)
	{
		OnsidePosition pos = onside_item_position(&batch->items[i]);
		Early	   *entry = hash_search(reader->early, &pos, HASH_ENTER, NULL);

		entry->taken = reader->takes;
	}
}

/*
 * Never from a batch that is open: that has been read in order, and is read again.
 */
OnsideBatch *
onside_reader_newest(OnsideWorker *worker, int max_events, int max_bytes)
{
	OnsideReader *reader = &worker->reader;
	Read		read = {worker, NULL, max_events, max_bytes, false};

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
	note_early(worker, read.batch);
	onside_batch_seal(read.batch);
	return read.batch;
}

/* ----------
 * Again
 * ----------
 */

typedef struct Again
{
	const OnsideItem *items;
	int			n;
	bool	   *gone;
	OnsideBatch *batch;			/* NULL: just looks which are there */
	int			next;			/* of the items, in the log */
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

/* Body of a transaction. */
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
 * One transaction for events in several places; all of them are read, or none.
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
 * Dead letters are not looked for: what is in flight of them is looked at when its fate
 * is carried out.
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

/* A look at the next event that does not read it. */
typedef struct Peek
{
	OnsideWorker *worker;
	OnsideCursor cursor;
	uint64		recorded;
	TimestampTz oldest;
	bool		finished;
} Peek;

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

/* Body of a transaction. */
static void
peek_body(OnsideWorker *worker, void *arg)
{
	Peek	   *peek = arg;

	peek->finished = onside_window_read(&peek->cursor, take_recorded_at, peek);
}

/*
 * Looks at the next event of the log without reading it, once, and remembers its time
 * until something is read.
 */
TimestampTz
onside_reader_oldest_recorded(OnsideWorker *worker)
{
	OnsideReader *reader = &worker->reader;
	Peek		peek = {.worker = worker};

	if (reader->open_batch != NULL)
		return reader->open_batch->items[0].recorded_at;
	if (reader->peeked_oldest != 0 || !reader->unread ||
		onside_reader_rests(worker))
		return reader->peeked_oldest;

	/* There may be some that nobody may send now. */
	peek.recorded = pg_atomic_read_u64(&worker->slot->recorded);
	onside_cursor_copy(&peek.cursor, &reader->reading);
	if (onside_txn_run(worker, &reader->brake, ONSIDE_USES_LOG, peek_body,
					   &peek))
	{
		reader->read_recorded = peek.recorded;
		reader->peeked_oldest = peek.oldest;
		if (peek.finished && reader->reading.window == NULL)
		{
			/* There are none. */
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

long
onside_reader_timeout(OnsideWorker *worker)
{
	OnsideReader *reader = &worker->reader;

	if (onside_brake_timeout(worker, &reader->brake) >= 0)
		return onside_brake_timeout(worker, &reader->brake);
	return reader->open_batch == NULL || linger_timeout(worker) == 0 ? -1 :
		linger_timeout(worker);
}
