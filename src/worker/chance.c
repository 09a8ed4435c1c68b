/*-------------------------------------------------------------------------
 *
 * chance.c
 *		Gives dead letters their second chances.
 *
 * send/chances.c decides when which group has a chance, and second_chance.c
 * looks for it in the table.  In a chance, ten of the dead letters that are
 * due are sent, each alone, and more as long as some are accepted: the sender
 * counts (onside_sender_begin_chance()).  The others stay as they are, with a
 * retry_at that is past.  What failed while nothing was accepted has its
 * chance as soon as something is accepted again.
 *
 * The worker's loop calls onside_chance_look() before it sends, and sending.c
 * asks for one dead letter after the other.  Both read in transactions of
 * txn.c, so an error or a lock puts the work off.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "clock.h"
#include "send/chances.h"
#include "worker/chance.h"
#include "worker/item.h"
#include "worker/second_chance.h"
#include "worker/txn.h"

void
onside_chance_init(OnsideWorker *worker)
{
	onside_brake_init(&worker->chance.brake,
					  "look for dead letters that are due",
					  ONSIDE_STEP_READING_DEAD_LETTERS);
}

void
onside_chance_expect(OnsideWorker *worker, TimestampTz retry_at)
{
	onside_chances_expect(&worker->chance.chances, retry_at);
}

/* ----------
 * Whose chance it is
 * ----------
 */

/*
 * Has an outage ended: is something accepted again, after a time without?
 * True only when the fates of that time are written, since the table is asked
 * for them.
 */
static bool
has_recovered(OnsideWorker *worker)
{
	return worker->sender->recovered && worker->sender->nfates == 0;
}

/* Body of a transaction: takes the dead letters of an outage that has ended. */
static void
take_recovery(OnsideWorker *worker, void *arg)
{
	int64		since = worker->sender->recovered_us;

	onside_chances_recovered(&worker->chance.chances,
							 onside_clock_timestamp(since),
							 &onside_second_chance_storage);
}

/* Body of a transaction: looks for a group that has a chance now. */
static void
look_for_group(OnsideWorker *worker, void *arg)
{
	if (onside_chances_look(&worker->chance.chances, GetCurrentTimestamp(),
							&onside_second_chance_storage))
		onside_sender_begin_chance(worker->sender);
}

void
onside_chance_look(OnsideWorker *worker)
{
	OnsideChance *chance = &worker->chance;

	if (has_recovered(worker) &&
		onside_txn_run(worker, &chance->brake, ONSIDE_USES_DEAD_LETTER,
					   take_recovery, NULL))
		worker->sender->recovered = false;
	if (onside_chance_timeout(worker) == 0)
		(void) onside_txn_run(worker, &chance->brake, ONSIDE_USES_DEAD_LETTER,
							  look_for_group, NULL);
}

/* ----------
 * The dead letters of a chance
 * ----------
 */

/* The search for a dead letter to send. */
typedef struct Pick
{
	OnsideBatch *batch;			/* gets its event */
	int			nbusy;
	pg_uuid_t	busy[ONSIDE_SENDER_MAX_REQUESTS * 2];	/* not these */
} Pick;

/* Notes the id, if it is a dead letter. */
static void
note_busy(Pick *pick, const OnsideItem *item)
{
	if (item->home == ONSIDE_IN_DEAD_LETTER &&
		pick->nbusy < (int) lengthof(pick->busy))
		pick->busy[pick->nbusy++] = *onside_item_id(item);
}

/* Notes the dead letters in flight, and those whose fate is not written yet. */
static void
note_all_busy(OnsideWorker *worker, Pick *pick)
{
	OnsideSender *sender = worker->sender;

	for (int i = 0; i < ONSIDE_SENDER_MAX_REQUESTS; i++)
		if (sender->requests[i].id != 0)
			note_busy(pick, &sender->requests[i].piece->items[0]);
	for (int i = 0; i < sender->nfates; i++)
		note_busy(pick, &sender->fates[i].item);
}

/* Puts a dead letter's event into the batch.  False if it cannot be read. */
static bool
add_letter(OnsideBatch *batch, const pg_uuid_t *id)
{
	OnsideEvent event;
	OnsideItem	item = {.home = ONSIDE_IN_DEAD_LETTER};

	if (!onside_second_chance_fetch(id, &event, &item.recorded_at))
		return false;
	onside_item_set_id(&item, id);
	return onside_batch_add(batch, &event, &item, 1, INT_MAX);
}

/*
 * Body of a transaction: puts one dead letter of the present chance into the
 * batch.  A chance without a name is that of an outage, of which we have the
 * ids.  In a group, the oldest, the newest and a random dead letter take
 * turns.
 */
static void
pick_one(OnsideWorker *worker, void *arg)
{
	OnsideChances *chances = &worker->chance.chances;
	Pick	   *pick = arg;
	pg_uuid_t	id;

	/* Of an outage; ids of dead letters that are gone are passed over. */
	if (chances->present.event_name[0] == '\0')
	{
		while (chances->at_once > 0 && pick->batch->nitems == 0)
			(void) add_letter(pick->batch, &chances->ids[--chances->at_once]);
		return;
	}

	/*
	 * Of a group; what cannot be read is put off, so that it is not in the
	 * way.
	 */
	if (onside_second_chance_pick(&chances->present,
								  (OnsidePick) (worker->chance.npicks++ % 3),
								  pick->busy, pick->nbusy, &id) &&
		!add_letter(pick->batch, &id))
		onside_second_chance_postpone(&id, 0, "it cannot be read as an event",
									  0);
}

/*
 * Does not pick a dead letter that is in flight, or whose fate is not written
 * yet: in the table it is still due.
 */
OnsideBatch *
onside_chance_pick(OnsideWorker *worker)
{
	Pick		pick = {0};

	/* If there is no room to note them all, nothing is picked. */
	note_all_busy(worker, &pick);
	if (pick.nbusy == (int) lengthof(pick.busy))
		return NULL;

	/* Sealed, it is ready to be sent. */
	pick.batch = onside_batch_create();
	if (onside_txn_run(worker, &worker->chance.brake, ONSIDE_USES_DEAD_LETTER,
					   pick_one, &pick) &&
		pick.batch->nitems > 0)
	{
		onside_batch_seal(pick.batch);
		return pick.batch;
	}
	onside_batch_free(pick.batch);
	return NULL;
}

/* While a chance is under way, sending.c knows when it goes on. */
long
onside_chance_timeout(OnsideWorker *worker)
{
	OnsideSender *sender = worker->sender;
	TimestampTz at = onside_chances_look_at(&worker->chance.chances);
	long		timeout = 0;

	if (sender->chance_tries > 0 || sender->chances_in_flight > 0)
		return -1;
	if (!has_recovered(worker) && at == DT_NOEND)
		return -1;
	if (!has_recovered(worker) && at != 0)
		timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), at);
	return Max(timeout, onside_brake_timeout(worker, &worker->chance.brake));
}
