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
#include "log/dead_letter.h"
#include "log/outbox.h"
#include "settings.h"
#include "worker/reader.h"
#include "worker/txn.h"

/* So many events are taken out of turn at most. */
#define MAX_EARLY		50000

/* With more marks than this every second one is given up. */
#define MAX_MARKS		1024

/* With all up to "seq" settled, everything up to "cursor" is. */
typedef struct Mark
{
	int64		seq;
	OnsideCursor cursor;
} Mark;

/* An event that was taken out of turn. */
typedef struct Early
{
	OnsidePosition pos;
	int64		taken;			/* "takes" then */
} Early;

static OnsideSlot *slot;
static OnsideCursor reading;	/* read up to here */
static OnsideCursor passed;		/* and up to here handed over */
static OnsideBatch *open_batch; /* being filled, or NULL */
static bool unread;				/* there may be events to read */
static uint64 read_recorded;	/* slot->recorded before the last read */
static TimestampTz peeked_oldest;
static int	average_bytes;		/* of an event in the last batch */
static Mark marks[MAX_MARKS];
static int	nmarks;
static HTAB *early;				/* what was taken out of turn; or NULL */
static int64 takes;				/* how often something was, or that was forgotten */
static int64 forgotten;			/* "takes" when that was forgotten */
static OnsideBrake brake = {
	.work = "read the outbox",
	.step = ONSIDE_STEP_READING
};

void
onside_reader_init(OnsideSlot *my_slot, const OnsideCursor *settled)
{
	slot = my_slot;
	onside_cursor_copy(&reading, settled);
	onside_cursor_copy(&passed, settled);
	unread = true;
}

void
onside_reader_wake(void)
{
	unread = true;
}

bool
onside_reader_has_some(void)
{
	return unread || reading.window != NULL || open_batch != NULL;
}

/* ----------
 * Items
 * ----------
 */

OnsidePosition
onside_item_position(const OnsideItem *item)
{
	OnsidePosition pos;

	Assert(item->home == ONSIDE_IN_LOG);
	pos.xid = FullTransactionIdFromU64(item->key[0]);
	pos.id = (int64) item->key[1];
	return pos;
}

const pg_uuid_t *
onside_item_id(const OnsideItem *item)
{
	Assert(item->home != ONSIDE_IN_LOG);
	return (const pg_uuid_t *) item->key;
}

void
onside_item_set_id(OnsideItem *item, const pg_uuid_t *id)
{
	memcpy(item->key, id->data, UUID_LEN);
}

static OnsideItem
item_at(const OnsidePosition *pos, TimestampTz recorded_at)
{
	OnsideItem	item = {0};

	item.home = ONSIDE_IN_LOG;
	item.key[0] = U64FromFullTransactionId(pos->xid);
	item.key[1] = (uint64) pos->id;
	item.recorded_at = recorded_at;
	return item;
}

/* ----------
 * In order
 * ----------
 */

/* What is being read, into which batch. */
typedef struct Read
{
	OnsideBatch *batch;
	int			max_events;
	int			max_bytes;
	bool		finished;		/* the window was read to its end */
} Read;

bool
onside_reader_took(const OnsidePosition *pos, int64 until)
{
	const Early *entry = early == NULL ? NULL :
		hash_search(early, pos, HASH_FIND, NULL);

	return entry != NULL && entry->taken <= until;
}

static bool
add_to_batch(TupleTableSlot *row, const OnsidePosition *pos, void *arg)
{
	Read	   *read = arg;
	OnsideEvent event;
	OnsideItem	item;

	onside_crash_guard_at(pos);
	if (onside_reader_took(pos, takes))
		return true;
	onside_outbox_read_event(row, &event);
	item = item_at(pos, onside_outbox_recorded_at(row));
	return onside_batch_add(read->batch, &event, &item, read->max_events,
							read->max_bytes);
}

/* Body of a transaction. */
static void
read_in_order(void *arg)
{
	Read	   *read = arg;

	read->finished = onside_window_read(&reading, add_to_batch, read);
}

static void
free_open_batch(void)
{
	if (open_batch != NULL)
		onside_batch_free(open_batch);
	open_batch = NULL;
}

void
onside_reader_start_over(void)
{
	free_open_batch();
	onside_cursor_copy(&reading, &passed);
	unread = true;
}

/* Everything that was taken out of turn has been passed. */
static void
forget_early(void)
{
	if (early == NULL)
		return;
	hash_destroy(early);
	early = NULL;
	forgotten = ++takes;
}

int64
onside_reader_takes(void)
{
	return takes;
}

int64
onside_reader_forgotten(void)
{
	return forgotten;
}

/* Reads into the open batch.  Returns true if it is full. */
static bool
read_into_open_batch(Read *read)
{
	bool		fresh = reading.window == NULL;

	if (open_batch == NULL)
		open_batch = onside_batch_create();
	read->batch = open_batch;

	read_recorded = pg_atomic_read_u64(&slot->recorded);
	if (!onside_txn_run(&brake, ONSIDE_USES_LOG, read_in_order, read))
	{
		onside_reader_start_over();
		return false;
	}
	peeked_oldest = 0;
	if (read->finished && fresh)
		unread = false;
	if (open_batch->nitems == 0)
	{
		/* Nothing: whatever there is ends here. */
		free_open_batch();
		onside_cursor_copy(&passed, &reading);
		if (!unread)
			forget_early();
		return false;
	}
	return !read->finished || open_batch->nitems >= read->max_events;
}

/* Hands the open batch over. */
static OnsideBatch *
take_open_batch(void)
{
	OnsideBatch *batch = open_batch;

	average_bytes = batch->body.len / batch->nitems;
	onside_batch_seal(batch);
	onside_cursor_copy(&passed, &reading);
	open_batch = NULL;
	return batch;
}

/* linger does not hold back what somebody waits for in flush(). */
static long
linger_timeout(void)
{
	if (pg_atomic_read_u32(&slot->flush_waiters) > 0)
		return 0;
	return onside_ms_until(open_batch->opened_at, onside_linger);
}

OnsideBatch *
onside_reader_oldest(int max_events, int max_bytes, bool full)
{
	Read		read = {.max_events = max_events,.max_bytes = max_bytes};

	/* Less is to be sent at once than was when it was read. */
	if (open_batch != NULL &&
		(open_batch->nitems > max_events ||
		 (open_batch->nitems > 1 && open_batch->body.len >= max_bytes)))
		onside_reader_start_over();
	if (open_batch != NULL && open_batch->nitems == max_events)
		return take_open_batch();

	while (unread || reading.window != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		if (onside_reader_rests())
			return NULL;
		if (read_into_open_batch(&read))
			return take_open_batch();
	}
	if (open_batch == NULL || full || linger_timeout() > 0)
		return NULL;
	return take_open_batch();
}

/* ----------
 * What is settled
 * ----------
 */

void
onside_reader_passed(int64 last_seq)
{
	if (nmarks == 0 || marks[nmarks - 1].seq != last_seq)
	{
		if (nmarks == MAX_MARKS)
		{
			int			kept = 0;

			for (int i = 0; i < nmarks; i++)
				if (i % 2 == 0)
					onside_cursor_release(&marks[i].cursor);
				else
					marks[kept++] = marks[i];
			nmarks = kept;
		}
		memset(&marks[nmarks++], 0, sizeof(Mark));
	}
	marks[nmarks - 1].seq = last_seq;
	onside_cursor_copy(&marks[nmarks - 1].cursor, &passed);
}

/* How many marks are reached with all up to seq settled? */
static int
count_reached(int64 seq)
{
	int			n = 0;

	while (n < nmarks && marks[n].seq <= seq)
		n++;
	return n;
}

bool
onside_reader_settled(int64 seq, OnsideCursor *settled)
{
	int			n = count_reached(seq);

	if (n > 0)
		onside_cursor_copy(settled, &marks[n - 1].cursor);
	return n > 0;
}

void
onside_reader_forget(int64 seq)
{
	int			n = count_reached(seq);

	for (int i = 0; i < n; i++)
		onside_cursor_release(&marks[i].cursor);
	nmarks -= n;
	memmove(marks, marks + n, nmarks * sizeof(Mark));
}

/* ----------
 * Out of turn
 * ----------
 */

/* Body of a transaction. */
static void
read_newest(void *arg)
{
	onside_window_read_newest(&reading, add_to_batch, arg);
}

static void
note_early(const OnsideBatch *batch)
{
	if (early == NULL)
	{
		HASHCTL		info = {0};

		info.keysize = sizeof(OnsidePosition);
		info.entrysize = sizeof(Early);
		info.hcxt = TopMemoryContext;
		early = hash_create("onside_attribution events out of turn", 1024,
							&info, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	takes++;
	for (int i = 0; i < batch->nitems; i++)
	{
		OnsidePosition pos = onside_item_position(&batch->items[i]);
		Early	   *entry = hash_search(early, &pos, HASH_ENTER, NULL);

		entry->taken = takes;
	}
}

OnsideBatch *
onside_reader_newest(int max_events, int max_bytes)
{
	Read		read = {.max_events = max_events,.max_bytes = max_bytes};

	if (onside_reader_rests() ||
		(early != NULL && hash_get_num_entries(early) >= MAX_EARLY))
		return NULL;
	if (open_batch != NULL)
		onside_reader_start_over();
	read.batch = onside_batch_create();
	if (!onside_txn_run(&brake, ONSIDE_USES_LOG, read_newest, &read) ||
		read.batch->nitems == 0)
	{
		onside_batch_free(read.batch);
		return NULL;
	}
	note_early(read.batch);
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
	OnsideBatch *batch;
	int			next;			/* of the items, in the log */
} Again;

/* Puts one that is there into the batch. */
static void
add_again(Again *again, int i, const OnsideEvent *event)
{
	again->gone[i] = !onside_batch_add(again->batch, event, &again->items[i],
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
	OnsideEvent event;

	onside_crash_guard_at(pos);
	again->next = next_in_log(again->items, again->next, pos);
	onside_outbox_read_event(row, &event);
	add_again(again, again->next++, &event);
	return true;
}

/* Body of a transaction. */
static void
read_again(void *arg)
{
	Again	   *again = arg;
	OnsidePosition *positions = palloc(again->n * sizeof(OnsidePosition));
	int			n = 0;

	again->next = 0;
	for (int i = 0; i < again->n; i++)
	{
		const OnsideItem *item = &again->items[i];
		OnsideEvent event;
		TimestampTz recorded_at;

		again->gone[i] = true;
		if (item->home == ONSIDE_IN_LOG)
			positions[n++] = onside_item_position(item);
		else if (item->home == ONSIDE_IN_ASIDE ?
				 onside_aside_fetch(onside_item_id(item), &event,
									&recorded_at) :
				 onside_dead_letter_fetch(onside_item_id(item), &event,
										  &recorded_at))
			add_again(again, i, &event);
	}
	onside_window_fetch(positions, n, add_from_log, again);
}

OnsideBatch *
onside_reader_again(const OnsideItem *items, int n, bool *gone, bool *failed)
{
	Again		again = {items, n, gone, NULL, 0};
	int			uses = 0;

	*failed = onside_reader_rests();
	if (*failed)
		return NULL;
	for (int i = 0; i < n; i++)
		uses |= items[i].home == ONSIDE_IN_LOG ? ONSIDE_USES_LOG :
			items[i].home == ONSIDE_IN_ASIDE ? ONSIDE_USES_ASIDE :
			ONSIDE_USES_DEAD_LETTER;
	again.batch = onside_batch_create();
	*failed = !onside_txn_run(&brake, uses, read_again, &again);
	if (*failed || again.batch->nitems == 0)
	{
		onside_batch_free(again.batch);
		return NULL;
	}
	onside_batch_seal(again.batch);
	return again.batch;
}

/* Where in the array an event of the log was, of those not found yet. */
typedef struct Find
{
	const OnsideItem *items;
	int			next;
	bool	   *gone;
} Find;

static bool
found_in_log(TupleTableSlot *row, const OnsidePosition *pos, void *arg)
{
	Find	   *find = arg;

	find->next = next_in_log(find->items, find->next, pos);
	find->gone[find->next++] = false;
	return true;
}

void
onside_reader_find(const OnsideItem *items, int n, bool *gone)
{
	Find		find = {items, 0, gone};
	OnsidePosition *positions = palloc(n * sizeof(OnsidePosition));
	int			npositions = 0;

	for (int i = 0; i < n; i++)
	{
		OnsideEvent event;
		TimestampTz recorded_at;

		gone[i] = items[i].home != ONSIDE_IN_DEAD_LETTER;
		if (items[i].home == ONSIDE_IN_LOG)
			positions[npositions++] = onside_item_position(&items[i]);
		else if (items[i].home == ONSIDE_IN_ASIDE)
			gone[i] = !onside_aside_fetch(onside_item_id(&items[i]), &event,
										  &recorded_at);
	}
	onside_window_fetch(positions, npositions, found_in_log, &find);
}

/* ----------
 * How things stand
 * ----------
 */

int
onside_reader_missing(int max_events, int max_bytes)
{
	int			full = Max(1, Min(max_events,
								  max_bytes / Max(1, average_bytes)));

	return Max(1, full - onside_reader_waiting());
}

int
onside_reader_waiting(void)
{
	return open_batch == NULL ? 0 : open_batch->nitems;
}

const OnsideCursor *
onside_reader_position(void)
{
	return &reading;
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

	if (onside_reader_took(pos, takes))
		return true;
	peek->oldest = onside_outbox_recorded_at(row);
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
onside_reader_oldest_recorded(void)
{
	Peek		peek = {0};

	if (open_batch != NULL)
		return open_batch->items[0].recorded_at;
	if (peeked_oldest != 0 || !unread || onside_reader_rests())
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
			onside_cursor_copy(&passed, &peek.cursor);
			unread = false;
		}
	}
	onside_cursor_release(&peek.cursor);
	return peeked_oldest;
}

const char *
onside_reader_problem(void)
{
	return onside_brake_problem(&brake);
}

bool
onside_reader_rests(void)
{
	return onside_brake_timeout(&brake) > 0;
}

long
onside_reader_timeout(void)
{
	if (onside_brake_timeout(&brake) >= 0)
		return onside_brake_timeout(&brake);
	return open_batch == NULL || linger_timeout() == 0 ? -1 :
		linger_timeout();
}
