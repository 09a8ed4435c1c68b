/*-------------------------------------------------------------------------
 *
 * outcome.c
 *		What an answer means for what was sent, and for what comes next.
 *
 * Nothing is concluded from a failure alone.  What has failed is halved and tried
 * again, beside all the rest, until the event is alone that fails while others pass;
 * verdict.c says when that is.  An acceptance ends a trouble, and lets what has failed
 * in nothing but an outage go together again.  If the API asks one request to wait
 * (429, or 503 with Retry-After), all wait.  pace.c hears of all of it.
 *
 * Called by sender.c, with a copy of the request that has been answered; its piece
 * is in no collection, and is put into one, or dropped, here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "send/holding.h"
#include "send/outcome.h"
#include "send/review.h"
#include "send/verdict.h"

/* After so many failures, what failed in them once or twice is sent together again. */
#define OUTAGE_FAILURES		20
#define OUTAGE_GROUP		64

/* Each acceptance adds some tries to a chance. */
#define CHANCE_ADDED		2
#define CHANCE_MAX			1000

#define THROTTLED_WAIT_MAX	(3600 * USECS_PER_SEC)

/* ----------
 * Accepted
 * ----------
 */

/* Two events with one event_id never share a request. */
static bool
holds_event_id(const OnsideItem *items, int n, const OnsideItem *item)
{
	for (int i = 0; i < n; i++)
		if (memcmp(items[i].event_id, item->event_id,
				   sizeof(item->event_id)) == 0)
			return true;
	return false;
}

/*
 * An outage is over: what failed in nothing else, and not often, goes together
 * again.
 */
static void
group_lone_events(OnsideSender *sender)
{
	OnsideItem	items[OUTAGE_GROUP];
	int			n = 0;
	OnsidePiece *model = NULL;
	OnsidePiece **all = sender->lone.pieces;
	int			nall = sender->lone.n;
	int			kept = 0;

	for (int i = 0; i < nall; i++)
	{
		OnsidePiece *piece = all[i];

		if (piece->first_failed < sender->trouble || piece->failures == 0 ||
			piece->failures > 2 || piece->throttled > 0 ||
			holds_event_id(items, n, &piece->items[0]))
			all[kept++] = piece;
		else
		{
			items[n++] = piece->items[0];
			if (model == NULL || piece->failures > model->failures)
			{
				if (model != NULL)
					onside_holding_drop(sender, model);
				model = piece;
			}
			else
				onside_holding_drop(sender, piece);
		}
		if (n == OUTAGE_GROUP || (i == nall - 1 && n > 0))
		{
			OnsidePiece *group = onside_piece_create(sender->context, items,
													 n);

			qsort(group->items, n, sizeof(OnsideItem),
				  onside_item_compare);
			group->tries = model->tries;
			group->failures = model->failures;
			group->first_failed = model->first_failed;
			group->first_failed_us = model->first_failed_us;
			group->last_failed = model->last_failed;
			group->words = model->words;
			group->words->refcount++;
			onside_holding_count(sender, group, 1);
			onside_holding_drop(sender, model);
			model = NULL;
			n = 0;
			onside_holding_put_untried(sender, group);
		}
	}
	sender->lone.n = kept;
	onside_heap_reorder(&sender->lone);
}

/* Everything in the request is delivered. */
void
onside_outcome_accepted(OnsideSender *sender, OnsideInFlight *request,
						const OnsideAnswer *answer, int64 now)
{
	OnsidePiece *piece = request->piece;
	bool		newest = request->kind == ONSIDE_SEND_NEWEST;

	for (int i = 0; i < piece->nitems; i++)
	{
		if (piece->items[i].home != ONSIDE_IN_LOG)
			onside_holding_add_fate(sender, ONSIDE_FATE_ACCEPTED,
									&piece->items[i], piece);
		if (piece->items[i].home == ONSIDE_IN_DEAD_LETTER)
			sender->healed++;
		else
			sender->delivered++;
	}
	if (request->kind == ONSIDE_SEND_CHANCE)
		sender->chance_tries = Min(sender->chance_tries + CHANCE_ADDED,
								   CHANCE_MAX);

	if (request->generation == sender->generation)
	{
		bool		outage = sender->pace.failures >= OUTAGE_FAILURES;

		onside_pace_accepted(&sender->pace, piece->nitems, request->bytes,
							 newest, answer->duration);
		if (request->kind == ONSIDE_SEND_OLDEST || newest)
			onside_pace_note_fresh(&sender->pace, false);
		if (request->kind == ONSIDE_SEND_OLDEST)
			sender->oldest_failures = 0;

		/* A connection on which it was refused is in front of something else. */
		if (piece->refusals > 0 && request->fresh_connection)
			sender->renew = true;
		sender->accepted = sender->tick;
		sender->accepted_us = now;
		sender->accepted_sent = Max(sender->accepted_sent, request->sent);
		sender->refused_in_row = 0;
		if (sender->trouble != 0 && !sender->recovered &&
			now - sender->trouble_us >= ONSIDE_REFUSED_TWICE)
		{
			sender->recovered = true;
			sender->recovered_us = sender->trouble_us;
		}
		if (outage)
			group_lone_events(sender);
		sender->trouble = 0;
		sender->failure = ONSIDE_RESPONSE_DELIVERED;
		sender->probe_newest = sender->probe_failed = false;
		onside_review_at(sender, now + ONSIDE_REVIEW_INTERVAL);
	}
	onside_holding_drop(sender, piece);
}

/* ----------
 * Failed
 * ----------
 */

/* What failed for whatever reason has now done so. */
static void
note_failure(OnsideSender *sender, OnsidePiece *piece,
			 const OnsideAnswer *answer, int64 now)
{
	char		status[32];

	if (piece->first_failed == 0)
	{
		piece->first_failed = sender->tick;
		piece->first_failed_us = now;
		onside_holding_count(sender, piece, 1);
	}
	onside_words_release(piece->words);
	snprintf(status, sizeof(status), "HTTP %d", answer->status);
	piece->words = onside_words_create(sender->context, answer->status,
									   answer->words[0] != '\0' ?
									   answer->words : status);
	onside_review_at(sender, now + ONSIDE_ASIDE_AFTER);
}

/* A dead letter that was tried again waits for its next chance. */
static void
chance_failed(OnsideSender *sender, OnsidePiece *piece, OnsideFateKind kind)
{
	sender->chance_tries = sender->pace.failures > 0 ? 0 :
		Max(sender->chance_tries - 1, 0);
	onside_holding_add_fate(sender, kind, &piece->items[0], piece);
	onside_holding_drop(sender, piece);
}

/* Everybody is to wait; it says nothing about what was sent. */
void
onside_outcome_throttled(OnsideSender *sender, OnsideInFlight *request,
						 const OnsideAnswer *answer, int64 now)
{
	OnsidePiece *piece = request->piece;

	onside_pace_throttled(&sender->pace, answer->retry_after_ms,
						  request->sent_us, now);
	note_failure(sender, piece, answer, now);
	if (request->kind == ONSIDE_SEND_CHANCE)
	{
		chance_failed(sender, piece, ONSIDE_FATE_PUT_OFF);
		return;
	}
	if (!onside_holding_is_lone(piece))
	{
		onside_holding_halve(sender, piece);
		return;
	}

	/* Others go first; but until one is accepted, it is a probe as well. */
	piece->throttled++;
	piece->due_us = sender->pace.not_before +
		Min(USECS_PER_SEC << Min(piece->throttled, 20), THROTTLED_WAIT_MAX);
	if (sender->accepted < piece->first_failed)
		piece->due_us = Min(piece->due_us,
							Max(sender->pace.not_before,
								now + sender->pace.settings.retry_max_delay *
								ONSIDE_US_PER_MS));
	onside_holding_put_back(sender, piece);
}

/* Failures of the endpoint's, as long as nothing is accepted. */
static void
note_trouble(OnsideSender *sender, const OnsideInFlight *request,
			 OnsideResponseClass class, const OnsideAnswer *answer, int64 now)
{
	const OnsidePiece *piece = request->piece;
	bool		oldest = request->kind == ONSIDE_SEND_OLDEST;
	bool		newest = request->kind == ONSIDE_SEND_NEWEST;
	bool		about_sent = class == ONSIDE_RESPONSE_REFUSED ||
		class == ONSIDE_RESPONSE_TOO_LARGE;

	if (class == ONSIDE_RESPONSE_TOO_LARGE && !onside_holding_is_lone(piece) &&
		(oldest || newest))
		onside_pace_too_large(&sender->pace, piece->nitems, request->bytes);
	onside_pace_failed(&sender->pace, piece->nitems, oldest || newest, newest,
					   class == ONSIDE_RESPONSE_UNAUTHORIZED ||
					   class == ONSIDE_RESPONSE_MISCONFIGURED, now);
	if (oldest || newest)
		onside_pace_note_fresh(&sender->pace, true);
	if (oldest)
		sender->oldest_failures++;
	if (!about_sent)
		sender->fresh_connection = true;
}

/* It failed: halves are tried, or a lone event waits or is given up. */
void
onside_outcome_failed(OnsideSender *sender, OnsideInFlight *request,
					  OnsideResponseClass class, const OnsideAnswer *answer,
					  int64 now)
{
	OnsidePiece *piece = request->piece;
	bool		current = request->generation == sender->generation;
	bool		refused = class == ONSIDE_RESPONSE_REFUSED ||
		class == ONSIDE_RESPONSE_TOO_LARGE;

	note_failure(sender, piece, answer, now);
	if (request->kind == ONSIDE_SEND_CHANCE)
	{
		sender->fresh_connection |= !refused;
		chance_failed(sender, piece, ONSIDE_FATE_POSTPONED);
		return;
	}
	if (current)
		note_trouble(sender, request, class, answer, now);
	if (piece->timed_out)
		piece->failures_since++;
	piece->timed_out |= answer->kind == ONSIDE_ANSWER_TIMEOUT;
	if (!onside_holding_is_lone(piece))
	{
		onside_holding_halve(sender, piece);
		return;
	}

	piece->failures++;
	onside_verdict_count_failure(sender, piece);
	piece->last_failed = sender->tick;
	piece->undecided = current && !refused;
	if (current && (refused ?
					onside_verdict_is_refused(sender, piece, request, now) :
					onside_verdict_is_condemned(sender, piece, now)))
	{
		onside_holding_give_up(sender, piece);
		return;
	}
	piece->due_us = now + onside_pace_lone_wait(&sender->pace,
												piece->failures);
	if (piece->refusals == 1)
		piece->due_us = Max(piece->due_us,
							piece->refused_us + ONSIDE_REFUSED_TWICE);
	onside_holding_put_back(sender, piece);
}
