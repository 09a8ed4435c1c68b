/*-------------------------------------------------------------------------
 *
 * fate.c
 *		Writes into the tables what has become of events.
 *
 * An event of the log that was delivered needs no writing: the cursor moves
 * past it.  For each other event the sender keeps a fate (see
 * sender_state.h).  A refused event goes to dead_letter, an accepted row of
 * aside or dead_letter is deleted, and a dead letter whose chance has failed
 * gets its next one.
 *
 * progress.c calls onside_fate_carry_out() in the transaction that moves the
 * cursor past these events, so that after a crash both have happened, or
 * neither.  That transaction has locked the tables.  If they cannot be written
 * it ends with an error, the sender still has the fates, and they are carried
 * out again.  After the commit, onside_fate_forget() forgets them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "clock.h"
#include "log/aside.h"
#include "log/crash_guard.h"
#include "log/dead_letter.h"
#include "log/outbox.h"
#include "log/window.h"
#include "send/chances.h"
#include "worker/chance.h"
#include "worker/counting.h"
#include "worker/fate.h"
#include "worker/item.h"
#include "worker/second_chance.h"

/* Copies the event of a row, and lets no other row follow. */
static bool
copy_event(TupleTableSlot *row, const OnsidePosition *pos, void *arg)
{
	OnsideCopy *copy = arg;

	onside_outbox_read_event(row, &copy->event);
	onside_outbox_copy_event(&copy->event);
	copy->recorded_at = onside_outbox_recorded_at(row);
	copy->found = true;
	return false;
}

bool
onside_fate_fetch(const OnsideItem *item, OnsideCopy *copy)
{
	copy->found = false;
	if (item->home == ONSIDE_IN_LOG)
	{
		OnsidePosition pos = onside_item_position(item);

		onside_crash_guard_at(&pos);
		onside_window_fetch(&pos, 1, copy_event, copy);
	}
	else
		copy->found = onside_aside_fetch(onside_item_id(item), &copy->event,
										 &copy->recorded_at);
	return copy->found;
}

/*
 * Moves a refused event into dead_letter.  After a crash it may be there
 * already, and somebody may have deleted the event: then nothing is inserted.
 */
static void
bury_event(OnsideWorker *worker, const OnsideFate *fate)
{
	OnsideCopy	copy;
	TimestampTz now = GetCurrentTimestamp();

	if (onside_fate_fetch(&fate->item, &copy) &&
		!onside_dead_letter_holds(&copy.event))
	{
		worker->progress.burying_now++;
		onside_dead_letter_insert(NULL, &copy.event, fate->words->status,
								  fate->words->text, fate->tries,
								  copy.recorded_at,
								  onside_chances_retry_at(now, 0), NULL);
	}
	if (fate->item.home == ONSIDE_IN_ASIDE)
		(void) onside_aside_delete(onside_item_id(&fate->item));
}

/* When any event was accepted last; 0 if this worker does not know. */
static TimestampTz
last_accepted_at(const OnsideSender *sender)
{
	return sender->accepted == 0 ? 0 :
		onside_clock_timestamp(sender->accepted_us);
}

/*
 * Carries out one fate.  If somebody has deleted the row meanwhile, nothing is
 * left to be done.
 */
static void
carry_out(OnsideWorker *worker, const OnsideFate *fate)
{
	switch (fate->kind)
	{
		case ONSIDE_FATE_ACCEPTED:
			/* Its row goes. */
			if (fate->item.home == ONSIDE_IN_ASIDE)
				(void) onside_aside_delete(onside_item_id(&fate->item));
			else
				onside_second_chance_delete(onside_item_id(&fate->item));
			break;
		case ONSIDE_FATE_REFUSED:
			bury_event(worker, fate);
			break;
		case ONSIDE_FATE_POSTPONED:
			/* A chance has failed: the next one comes. */
			onside_second_chance_postpone(onside_item_id(&fate->item),
										  fate->words->status,
										  fate->words->text,
										  last_accepted_at(worker->sender));
			break;
		case ONSIDE_FATE_PUT_OFF:
			/* The API asked to wait: that was no chance. */
			onside_second_chance_postpone(onside_item_id(&fate->item), 0, NULL,
										  0);
			break;
	}
}

bool
onside_fate_carry_out(OnsideWorker *worker)
{
	OnsideProgress *progress = &worker->progress;
	OnsideSender *sender = worker->sender;

	progress->written = Min(sender->nfates, ONSIDE_WRITE_AT_ONCE);
	progress->burying_now = 0;
	for (int i = 0; i < progress->written; i++)
		carry_out(worker, &sender->fates[i]);
	return progress->written == sender->nfates;
}

/*
 * Counts the refused events, and forgets all fates that were carried out.  The
 * server's log gets one line for all refused events, with the API's words about
 * the first one.
 */
void
onside_fate_forget(OnsideWorker *worker)
{
	OnsideProgress *progress = &worker->progress;
	int			refused = 0;
	const char *words = NULL;

	/* How many were refused, and what did the API say? */
	for (int i = 0; i < progress->written; i++)
	{
		const OnsideFate *fate = &worker->sender->fates[i];

		if (fate->kind != ONSIDE_FATE_REFUSED)
			continue;
		if (refused++ == 0)
			words = fate->words->text;
	}

	/* These dead letters have a chance in a while. */
	if (progress->written > 0)
		onside_chance_expect(worker,
							 onside_chances_retry_at(GetCurrentTimestamp(), 0));
	if (refused > 0)
	{
		onside_count(worker, ONSIDE_COUNT_DEAD_LETTERED, refused);
		ereport(LOG,
				(errmsg_plural("onside_attribution: %d event of database \"%s\" was refused for good and moved to dead_letter",
							   "onside_attribution: %d events of database \"%s\" were refused for good and moved to dead_letter",
							   refused, refused, worker->database_name),
				 errdetail("The API said: %s", words)));
	}
	onside_sender_forget_fates(worker->sender, progress->written);
	progress->buried += progress->burying_now;
	progress->burying_now = 0;
}

int
onside_fate_count_unburied(OnsideWorker *worker)
{
	int			n = 0;

	for (int i = 0; i < worker->sender->nfates; i++)
		n += worker->sender->fates[i].kind == ONSIDE_FATE_REFUSED;
	return n;
}
