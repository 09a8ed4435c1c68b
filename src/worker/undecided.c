/*-------------------------------------------------------------------------
 *
 * undecided.c
 *		Events that are not decided soon leave the log for the table aside, and
 *		come back from there.
 *
 * An event that fails while others are accepted would hold the cursor back, and
 * with it the log.  So what has failed for a while moves to aside, in the
 * transaction that moves the cursor past it.  The sender decides which events those
 * are (onside_review_pieces()), and goes on trying them, by their ids aside.  At
 * the end of the process whatever holds the cursor back moves there, so that a
 * successor repeats little.
 *
 * Aside can hold more events than memory.  The sender is given as many as it has
 * room for, in the order in which they were recorded, and more when those are
 * settled; and all of it is looked through again when rows may have come by SQL.
 *
 * Called by the worker's loop, after progress.c has written what was settled.  What
 * cannot be written stays in the log, or aside, and is tried again; see txn.c.
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

/* Most transactions that set events aside at the end of the process. */
#define ASIDE_AT_EXIT			20

/* Setting aside is tried again so soon if it could not be done; us. */
#define ASIDE_AGAIN				INT64CONST(1000000)

/* ----------
 * From the log
 * ----------
 */

/* Body of a transaction: they go aside, and the row moves past them. */
static void
write_aside(OnsideWorker *worker, void *arg)
{
	OnsideUndecided *undecided = &worker->undecided;
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < undecided->n; i++)
	{
		const OnsideWords *words = undecided->items[i].words;
		OnsideCopy	copy;

		/* What is gone is found to be so when it is tried again. */
		if (onside_fate_fetch(&undecided->was[i], &copy))
			onside_aside_insert(&undecided->ids[i], &copy.event,
								words == NULL ? 0 : words->status,
								words == NULL ? "it was under way when the worker ended" :
								words->text, copy.recorded_at, now);
	}
	onside_progress_store(worker);
}

/* The sender is to know the events by their ids aside from now on. */
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

/* As they were: they have not left. */
static void
restore_items(OnsideUndecided *undecided)
{
	for (int i = 0; i < undecided->n; i++)
		*undecided->items[i].item = undecided->was[i];
}

/*
 * Has what is not decided soon leave the log.  Returns true if something has.
 *
 * The cursor that is written is the one that is right when they have left, so both
 * are made to look so before the transaction, and put back if it fails.
 */
static bool
set_aside(OnsideWorker *worker)
{
	OnsideCursor *settled = &worker->progress.delivery.settled;
	OnsideSender *sender = worker->sender;
	OnsideUndecided *undecided = &worker->undecided;
	OnsideCursor old = {0};
	bool		done;

	undecided->n = onside_review_pieces(sender, onside_clock(),
										undecided->items,
										ONSIDE_WRITE_AT_ONCE);
	if (undecided->n == 0)
		return false;

	/* Fates refer to events by the places that these have now. */
	if (sender->nfates > 0)
		onside_progress_persist(worker);
	if (sender->nfates > 0 ||
		onside_brake_timeout(worker, &undecided->leaving) > 0)
	{
		onside_review_at(sender, onside_clock() + ASIDE_AGAIN);
		return false;
	}

	rename_items(undecided);
	onside_cursor_copy(&old, settled);
	(void) onside_reader_settled(worker, onside_sender_settled(sender),
								 settled);
	done = onside_txn_run(worker, &undecided->leaving, ONSIDE_USES_CURSOR |
						  ONSIDE_USES_LOG | ONSIDE_USES_ASIDE, write_aside,
						  NULL);
	if (done)
	{
		onside_reader_forget(worker, onside_sender_settled(sender));
		onside_review_is_aside(sender);
		onside_progress_request_maintenance(worker);
		onside_progress_is_stored(worker);
	}
	else
	{
		/*
		 * What the body has noted of the row was rolled back: whoever asks whether
		 * it is written waits until it is.
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

/* Those of aside that the sender does not know. */
typedef struct Load
{
	OnsideUndecided *undecided;
	HTAB	   *known;
	int			n;
	int			room;
	OnsideItem *items;
} Load;

static void
note_known(OnsideItem *item, void *arg)
{
	if (item->home == ONSIDE_IN_ASIDE)
		(void) hash_search((HTAB *) arg, onside_item_id(item), HASH_ENTER,
						   NULL);
}

/* Notes one row of aside, and that we have come so far; false if there is no room. */
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

/* Body of a transaction. */
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
 * Takes events of aside into memory, as many as there is room for.  The sender is
 * given them after the transaction, and fates that are not written yet come first:
 * an event that was accepted is still in the table until then.
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
	info.keysize = info.entrysize = sizeof(pg_uuid_t);
	info.hcxt = CurrentMemoryContext;
	load.known = hash_create("onside_attribution events aside", 256, &info,
							 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	onside_sender_visit(sender, note_known, load.known);
	load.items = palloc(load.room * sizeof(OnsideItem));
	if (onside_txn_run(worker, &undecided->loading, ONSIDE_READS_ASIDE,
					   read_aside, &load))
	{
		for (int i = 0; i < load.n; i++)
			onside_review_add_aside(sender, &load.items[i], onside_clock());

		/* At the end it goes on from the beginning, for what came before. */
		if (load.n < load.room)
		{
			undecided->more = began_at != 0;
			undecided->recorded_at = 0;
		}
	}
	else
	{
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
onside_undecided_all_known(OnsideWorker *worker)
{
	return !worker->undecided.more;
}

bool
onside_undecided_is_drained(OnsideWorker *worker)
{
	return onside_sending_drained(worker) &&
		onside_progress_is_written(worker) &&
		onside_undecided_all_known(worker);
}

/* ----------
 * When
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

void
onside_undecided_save_at_exit(OnsideWorker *worker)
{
	uint32		held = InterruptHoldoffCount;

	/* The process is about to be interrupted; an error would reset the count. */
	HOLD_INTERRUPTS();
	for (int i = 0; i < ASIDE_AT_EXIT; i++)
	{
		onside_review_end(worker->sender, onside_clock());
		if (!set_aside(worker))
			break;
	}
	onside_progress_persist_at_exit(worker);
	InterruptHoldoffCount = held;
}
