/*-------------------------------------------------------------------------
 *
 * outcome.c
 *		What an answer means for what was sent, and for what comes next.
 *
 * Nothing is concluded from a failure alone.  What has failed is halved and
 * tried again, beside all other events, until the event that fails while
 * others pass is alone; verdict.c says when an event is given up.  An
 * acceptance ends the trouble, and lets events that failed only in an outage
 * share requests again.  If the API asks one request to wait (429, or 503
 * with Retry-After), all wait.  pace.c is told of each answer.
 *
 * sender.c calls this file with a copy of the request that has been
 * answered.  The request's piece is in no collection any more; it is put into
 * one here, or dropped.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "send/holding.h"
#include "send/outcome.h"
#include "send/review.h"
#include "send/verdict.h"

/*
 * So many failures in a row are an outage.  Lone events that failed in it, at
 * most twice, go together in groups of this size once it is over.
 */
#define OUTAGE_FAILURES		20
#define OUTAGE_GROUP		64

/* Each acceptance of a dead letter adds some tries to the chance. */
#define CHANCE_ADDED		2
#define CHANCE_MAX			1000

/* The longest wait of a lone event that is asked to wait again and again. */
#define THROTTLED_WAIT_MAX	(3600 * USECS_PER_SEC)

/* ----------
 * Accepted
 * ----------
 */

/* Is an event with this event_id among the items? */
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
 * An outage is over.  Lone events that failed in nothing else, and at most
 * twice, are put into groups, which wait as untried pieces.  A group has the
 * past of that of its events which has failed most often ("model").
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

		/*
		 * It stays alone if it failed before the outage, or often, or was
		 * asked to wait; and two events with one event_id never share a
		 * request.
		 */
		if (piece->first_failed < sender->trouble || piece->failures == 0 ||
			piece->failures > 2 || piece->throttled > 0 ||
			holds_event_id(items, n, &piece->items[0]))
			all[kept++] = piece;
		else
		{
			/* Take the event, and keep the piece only if it is the model. */
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

		/* The group is full, or this was the last lone event. */
		if (n == OUTAGE_GROUP || (i == nall - 1 && n > 0))
		{
			OnsidePiece *group = onside_piece_create(sender->context, items,
													 n);

			qsort(group->items, n, sizeof(OnsideItem),
				  onside_item_compare);

			/* A group that fails is no better known than its model was. */
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

	/* What stays is no heap any more. */
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

	/*
	 * Events of the log are settled by their seq; others have a row to
	 * delete.
	 */
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

	/*
	 * An acceptance by a former endpoint says nothing about the present one.
	 */
	if (request->generation == sender->generation)
	{
		bool		outage = sender->pace.failures >= OUTAGE_FAILURES;

		onside_pace_accepted(&sender->pace, piece->nitems, request->bytes,
							 newest, answer->duration);

		/* The share that fails is of requests in which nothing had failed. */
		if (request->kind == ONSIDE_SEND_OLDEST || newest)
			onside_pace_note_fresh(&sender->pace, false);
		if (request->kind == ONSIDE_SEND_OLDEST)
			sender->oldest_failures = 0;

		/*
		 * What was refused here passes elsewhere: leave the old connections.
		 */
		if (piece->refusals > 0 && request->fresh_connection)
			sender->renew = true;

		/* What failures are compared with. */
		sender->accepted = sender->tick;
		sender->accepted_us = now;
		sender->accepted_sent = Max(sender->accepted_sent, request->sent);
		sender->refused_in_row = 0;

		/*
		 * Dead letters of a trouble that has lasted get their chance at once.
		 */
		if (sender->trouble != 0 && !sender->recovered &&
			now - sender->trouble_us >= ONSIDE_REFUSED_TWICE)
		{
			sender->recovered = true;
			sender->recovered_us = sender->trouble_us;
		}

		/* The trouble is over, and so is a round of probes. */
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

/*
 * Notes on the piece that it has failed, for whatever reason, and the words.
 */
static void
note_failure(OnsideSender *sender, OnsidePiece *piece,
			 const OnsideAnswer *answer, int64 now)
{
	char		status[32];

	/* Its first failure: from now on the sender holds its events. */
	if (piece->first_failed == 0)
	{
		piece->first_failed = sender->tick;
		piece->first_failed_us = now;
		onside_holding_count(sender, piece, 1);
	}

	/* Without words the status is all that can be shown. */
	onside_words_release(piece->words);
	snprintf(status, sizeof(status), "HTTP %d", answer->status);
	piece->words = onside_words_create(sender->context, answer->status,
									   answer->words[0] != '\0' ?
									   answer->words : status);

	/* It leaves the log then if it is still undecided. */
	onside_review_at(sender, now + ONSIDE_ASIDE_AFTER);
}

/* A dead letter that was tried again waits for its next chance. */
static void
chance_failed(OnsideSender *sender, OnsidePiece *piece, OnsideFateKind kind)
{
	/* In an outage the chance ends: others would only fail like this one. */
	sender->chance_tries = sender->pace.failures > 0 ? 0 :
		Max(sender->chance_tries - 1, 0);
	onside_holding_add_fate(sender, kind, &piece->items[0], piece);
	onside_holding_drop(sender, piece);
}

/*
 * The API asks everybody to wait, which says nothing about what was sent.  The
 * piece is halved all the same: smaller requests may pass where it did not.
 */
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
		/* It has not failed, so it has its chance later. */
		chance_failed(sender, piece, ONSIDE_FATE_PUT_OFF);
		return;
	}
	if (!onside_holding_is_lone(piece))
	{
		onside_holding_halve(sender, piece);
		return;
	}

	/*
	 * An event that is asked to wait again and again lets others go first.
	 * Until anything is accepted it is as good a probe as any, and waits no
	 * longer than a probe would.
	 */
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

/* Tells pace.c about a failure, which may be the endpoint's. */
static void
note_trouble(OnsideSender *sender, const OnsideInFlight *request,
			 OnsideResponseClass class, int64 now)
{
	const OnsidePiece *piece = request->piece;
	bool		oldest = request->kind == ONSIDE_SEND_OLDEST;
	bool		newest = request->kind == ONSIDE_SEND_NEWEST;

	/*
	 * A batch of never-sent events was too large: the next ones are smaller.
	 */
	if (class == ONSIDE_RESPONSE_TOO_LARGE && !onside_holding_is_lone(piece) &&
		(oldest || newest))
		onside_pace_too_large(&sender->pace, piece->nitems, request->bytes);

	/* Waits are longer where a person has to set something right. */
	onside_pace_failed(&sender->pace, piece->nitems, oldest || newest, newest,
					   class == ONSIDE_RESPONSE_UNAUTHORIZED ||
					   class == ONSIDE_RESPONSE_MISCONFIGURED, now);
	if (oldest || newest)
		onside_pace_note_fresh(&sender->pace, true);
	if (oldest)
		sender->oldest_failures++;
}

/*
 * A request has failed and nobody asked to wait.  Its halves are tried, or its
 * lone event waits or is given up.
 */
void
onside_outcome_failed(OnsideSender *sender, OnsideInFlight *request,
					  OnsideResponseClass class, const OnsideAnswer *answer,
					  int64 now)
{
	OnsidePiece *piece = request->piece;
	bool		current = request->generation == sender->generation;
	bool		refused = class == ONSIDE_RESPONSE_REFUSED ||
		class == ONSIDE_RESPONSE_TOO_LARGE;

	/* Unless the API refuses what was sent, the connection may be broken. */
	if (current || request->kind == ONSIDE_SEND_CHANCE)
		sender->fresh_connection |= !refused;
	note_failure(sender, piece, answer, now);
	if (request->kind == ONSIDE_SEND_CHANCE)
	{
		chance_failed(sender, piece, ONSIDE_FATE_POSTPONED);
		return;
	}

	/* What a former endpoint answered is no trouble of the present one's. */
	if (current)
		note_trouble(sender, request, class, now);

	/* After a timeout the parts get less time; choice.c says how long. */
	if (piece->timed_out)
		piece->failures_since++;
	piece->timed_out |= answer->kind == ONSIDE_ANSWER_TIMEOUT;
	if (!onside_holding_is_lone(piece))
	{
		onside_holding_halve(sender, piece);
		return;
	}

	/* The failure before this one counts if something was accepted since. */
	piece->failures++;
	onside_verdict_count_failure(sender, piece);
	piece->last_failed = sender->tick;
	piece->undecided = current && !refused;

	/* Is it the event?  A refusal is judged apart from all other failures. */
	if (current && (refused ?
					onside_verdict_is_refused(sender, piece, request, now) :
					onside_verdict_is_condemned(sender, piece, now)))
	{
		onside_holding_give_up(sender, piece);
		return;
	}

	/* The second refusal counts only so long after the first. */
	piece->due_us = now + onside_pace_lone_wait(&sender->pace,
												piece->failures);
	if (piece->refusals == 1)
		piece->due_us = Max(piece->due_us,
							piece->refused_us + ONSIDE_REFUSED_TWICE);
	onside_holding_put_back(sender, piece);
}
