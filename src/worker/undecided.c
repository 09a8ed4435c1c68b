/*-------------------------------------------------------------------------
 *
 * undecided.c
 *		Moves events that are not decided soon from the log to the table aside,
 *		and reads the table aside.
 *
 * An event that fails while others are accepted would hold back the cursor,
 * and with it the log.  So an event that has failed for a while moves to
 * aside, in the transaction that moves the cursor past it.  The sender decides
 * which events move (onside_review_pieces()), and goes on trying them: from
 * then on it knows them by their ids in aside.  At the end of the process all
 * events that hold the cursor back move there, so that a successor repeats
 * little.
 *
 * The table can hold more events than memory.  The sender gets as many as it
 * has room for, in the order in which they were recorded, and more when some
 * of them are settled.  When rows may have come by SQL, the whole table is
 * read again.
 *
 * The worker's loop calls onside_undecided_exchange() after progress.c has
 * written what was settled.  An event that cannot be written stays where it is,
 * and the work is tried again; see txn.c, which also has the locks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/hsearch.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "log/aside.h"
#include "log/event.h"
#include "worker/fate.h"
#include "worker/item.h"
#include "worker/progress.h"
#include "worker/reader.h"
#include "worker/sending.h"
#include "worker/txn.h"
#include "worker/undecided.h"

/* How many transactions set events aside at the end of the process, at most. */
#define ASIDE_AT_EXIT			20

/* How soon setting aside is tried again after it has failed; us. */
#define ASIDE_AGAIN				INT64CONST(1000000)

/* ----------
 * From the log
 * ----------
 */

/*
 * Body of a transaction: inserts the events into aside, and moves the cursor
 * past them.  In the transaction the sender already knows them by their new
 * ids, so they are read by what they were.
 */
static void
write_aside(OnsideWorker *worker, void *arg)
{
	OnsideUndecided *undecided = &worker->undecided;
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < undecided->n; i++)
	{
		const OnsideWords *words = undecided->items[i].words;
		OnsideCopy	copy;

		/* A deleted event is noticed when it is tried again. */
		if (onside_fate_fetch(&undecided->was[i], &copy))
			onside_aside_insert(&undecided->ids[i], &copy.event,
								words == NULL ? 0 : words->status,
								words == NULL ?
								"it was under way when the worker ended" :
								words->text, copy.recorded_at, now);
	}
	onside_progress_store(worker);
}

/* Gives the events new ids, by which the sender knows them aside. */
static void
rename_items(OnsideUndecided *undecided)
{
	for (int i = 0; i < undecided->n; i++)
	{
		OnsideItem *item = undecided->items[i].item;

		undecided->was[i] = *item;
		onside_event_next_id(&undecided->ids[i]);
		item->home = ONSIDE_IN_ASIDE;
		onside_item_set_id(item, &undecided->ids[i]);
	}
}

/* Undoes rename_items(): the events have not left the log. */
static void
restore_items(OnsideUndecided *undecided)
{
	for (int i = 0; i < undecided->n; i++)
		*undecided->items[i].item = undecided->was[i];
}

/*
 * Moves events that are not decided from the log to aside, as many as go into
 * one transaction.  Returns true if it has moved any.
 *
 * The transaction writes the cursor that is right once the events have left.
 * So the sender's items and our cursor are changed before the transaction, and
 * changed back if it fails.
 */
static bool
set_aside(OnsideWorker *worker)
{
	OnsideCursor *settled = &worker->progress.delivery.settled;
	OnsideSender *sender = worker->sender;
	OnsideUndecided *undecided = &worker->undecided;
	OnsideCursor old = {0};
	bool		done;

	/* Which events? */
	undecided->n = onside_review_pieces(sender, onside_clock(),
										undecided->items,
										ONSIDE_WRITE_AT_ONCE);
	if (undecided->n == 0)
		return false;

	/* Fates know events by their present places: write the fates first. */
	if (sender->nfates > 0)
		onside_progress_persist(worker);
	if (sender->nfates > 0 ||
		onside_brake_timeout(worker, &undecided->leaving) > 0)
	{
		onside_review_at(sender, onside_clock() + ASIDE_AGAIN);
		return false;
	}

	/* As it will be; then write it. */
	rename_items(undecided);
	onside_cursor_copy(&old, settled);
	(void) onside_reader_settled(worker, onside_sender_settled(sender),
								 settled);
	done = onside_txn_run(worker, &undecided->leaving, ONSIDE_USES_CURSOR |
						  ONSIDE_USES_LOG | ONSIDE_USES_ASIDE, write_aside,
						  NULL);
	if (done)
	{
		/* Tell everybody. */
		onside_reader_forget(worker, onside_sender_settled(sender));
		onside_review_is_aside(sender);
		onside_progress_request_maintenance(worker);
		onside_progress_is_stored(worker);
	}
	else
	{
		/*
		 * The body may have noted a row that was rolled back, so the row has to
		 * be written again before anybody may rely on it.
		 */
		worker->progress.persist_due = true;
		restore_items(undecided);
		onside_cursor_copy(settled, &old);
		onside_review_at(sender, onside_clock() + ASIDE_AGAIN);
	}
	onside_cursor_release(&old);
	return done;
}

/* ----------
 * From aside
 * ----------
 */

/* One reading of aside: the events that the sender does not know yet. */
typedef struct Load
{
	OnsideUndecided *undecided;
	HTAB	   *known;			/* ids of events that the sender knows */
	int			n;				/* events found */
	int			room;			/* for so many */
	OnsideItem *items;
} Load;

/* Notes the id of an event of aside that the sender knows. */
static void
note_known(OnsideItem *item, void *arg)
{
	if (item->home == ONSIDE_IN_ASIDE)
		(void) hash_search((HTAB *) arg, onside_item_id(item), HASH_ENTER,
						   NULL);
}

/*
 * Takes one row of aside, unless the sender knows it, and notes that we have
 * come so far.  False, and the reading ends, if there is no room for it.
 */
static bool
load_one(const pg_uuid_t *id, const pg_uuid_t *event_id,
		 TimestampTz recorded_at, int bytes, void *arg)
{
	Load	   *load = arg;

	if (load->n == load->room)
		return false;
	load->undecided->recorded_at = recorded_at;
	load->undecided->id = *id;
	if (hash_search(load->known, id, HASH_FIND, NULL) == NULL)
	{
		OnsideItem *item = &load->items[load->n++];

		memset(item, 0, sizeof(*item));
		item->home = ONSIDE_IN_ASIDE;
		onside_item_set_id(item, id);
		memcpy(item->event_id, event_id->data, UUID_LEN);
		item->recorded_at = recorded_at;
		item->bytes = bytes;
	}
	return true;
}

/* Body of a transaction: reads on from where the last reading has come to. */
static void
read_aside(OnsideWorker *worker, void *arg)
{
	OnsideUndecided *undecided = &worker->undecided;
	Load	   *load = arg;

	load->n = 0;
	onside_aside_read(undecided->recorded_at,
					  undecided->recorded_at == 0 ? NULL : &undecided->id,
					  load_one, load);
}

/*
 * Reads events of aside, as many as the sender has room for, and gives them to
 * the sender after the transaction.  Does nothing while fates are not written:
 * an event that was accepted is in the table until its fate is written, and
 * would be sent again.
 */
static void
load_aside(OnsideWorker *worker)
{
	OnsideSender *sender = worker->sender;
	OnsideUndecided *undecided = &worker->undecided;
	Load		load = {.undecided = undecided};
	HASHCTL		info = {0};
	TimestampTz began_at = undecided->recorded_at;
	pg_uuid_t	began_id = undecided->id;

	load.room = onside_review_aside_room(sender);
	if (!undecided->more || load.room == 0 || sender->nfates > 0 ||
		onside_brake_timeout(worker, &undecided->loading) > 0)
		return;

	/* What the sender knows. */
	info.keysize = info.entrysize = sizeof(pg_uuid_t);
	info.hcxt = CurrentMemoryContext;
	load.known = hash_create("onside_attribution events aside", 256, &info,
							 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	onside_sender_visit(sender, note_known, load.known);

	/* What it does not know. */
	load.items = palloc(load.room * sizeof(OnsideItem));
	if (onside_txn_run(worker, &undecided->loading, ONSIDE_READS_ASIDE,
					   read_aside, &load))
	{
		for (int i = 0; i < load.n; i++)
			onside_review_add_aside(sender, &load.items[i], onside_clock());

		/*
		 * The table has been read to its end.  If this reading began in the
		 * middle, the next one begins at the beginning: rows may have come
		 * there.
		 */
		if (load.n < load.room)
		{
			undecided->more = began_at != 0;
			undecided->recorded_at = 0;
		}
	}
	else
	{
		/* As if nothing had been read. */
		undecided->recorded_at = began_at;
		undecided->id = began_id;
	}
	pfree(load.items);
	hash_destroy(load.known);
}

void
onside_undecided_look_again(OnsideWorker *worker)
{
	worker->undecided.more = true;
	worker->undecided.recorded_at = 0;
}

bool
onside_undecided_is_drained(OnsideWorker *worker)
{
	return onside_sending_drained(worker) &&
		onside_progress_is_written(worker) &&
		!worker->undecided.more;
}

/* ----------
 * What the worker's loop calls
 * ----------
 */

void
onside_undecided_init(OnsideWorker *worker)
{
	OnsideUndecided *undecided = &worker->undecided;

	onside_brake_init(&undecided->leaving, "set events aside",
					  ONSIDE_STEP_SETTING_ASIDE);
	onside_brake_init(&undecided->loading, "read the events that are aside",
					  ONSIDE_STEP_READING_ASIDE);
	onside_undecided_look_again(worker);
}

void
onside_undecided_exchange(OnsideWorker *worker)
{
	(void) set_aside(worker);

	/* The sender has given up the memory of some: read them again later. */
	if (worker->sender->dropped > 0)
	{
		worker->sender->dropped = 0;
		worker->undecided.more = true;
	}
	load_aside(worker);
}

long
onside_undecided_timeout(OnsideWorker *worker)
{
	const OnsideSender *sender = worker->sender;

	if (!worker->undecided.more || onside_review_aside_room(sender) == 0 ||
		sender->nfates > 0)
		return -1;
	return Max(0, onside_brake_timeout(worker, &worker->undecided.loading));
}

/*
 * Moves whatever holds the cursor back to aside, and then writes fates and
 * cursor.  Stops at the first transaction that fails.
 */
void
onside_undecided_save_at_exit(OnsideWorker *worker)
{
	uint32		held = InterruptHoldoffCount;

	/*
	 * An interrupt that is pending would end the process before all is saved.
	 * An error that txn.c catches resets the count, so it is put back by hand.
	 */
	HOLD_INTERRUPTS();
	for (int i = 0; i < ASIDE_AT_EXIT; i++)
	{
		onside_review_end(worker->sender, onside_clock());
		if (!set_aside(worker))
			break;
	}
	InterruptHoldoffCount = held + 1;
	onside_progress_persist_at_exit(worker);
	InterruptHoldoffCount = held;
}
