/*-------------------------------------------------------------------------
 *
 * sender.c
 *		The machine that decides what is sent next, and what an answer means.
 *
 * sender.h says how the machine is used.  This file has what callers see: it
 * takes requests into flight and out again, and tells how things stand.  The
 * decisions are in choice.c (what is sent next), outcome.c (what an answer
 * means), verdict.c (is the event itself the reason?) and review.c (what time
 * decides); holding.c keeps the events.
 *
 * Ticks tell before from after.  Each request and each answer gets the next
 * tick, since the caller's clock may stand still between the two.
 *
 * The worker alone calls this, outside of transactions.  The sender takes no
 * locks, and nothing fails except for want of memory.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "send/choice.h"
#include "send/holding.h"
#include "send/outcome.h"
#include "send/sender.h"
#include "send/verdict.h"

/* A second chance begins with so many tries; acceptances add to them. */
#define CHANCE_TRIES		10

/* ----------
 * Set-up
 * ----------
 */

OnsideSender *
onside_sender_create(const OnsideSendSettings *settings, uint64 seed)
{
	OnsideSender *sender = palloc0(sizeof(OnsideSender));

	sender->context = CurrentMemoryContext;
	dlist_init(&sender->untried);
	dlist_init(&sender->untried_end);
	onside_pace_init(&sender->pace, settings, seed);
	return sender;
}

/* Frees all pieces, wherever they are. */
void
onside_sender_free(OnsideSender *sender)
{
	dlist_mutable_iter iter;

	/* A piece is in flight, untried, or among the lone ones. */
	for (int i = 0; i < ONSIDE_SENDER_MAX_REQUESTS; i++)
		if (sender->requests[i].id != 0)
			onside_piece_free(sender->requests[i].piece);
	dlist_foreach_modify(iter, &sender->untried)
		onside_piece_free(dlist_container(OnsidePiece, node, iter.cur));
	dlist_foreach_modify(iter, &sender->untried_end)
		onside_piece_free(dlist_container(OnsidePiece, node, iter.cur));
	for (int i = 0; i < sender->lone.n; i++)
		onside_piece_free(sender->lone.pieces[i]);
	if (sender->lone.pieces != NULL)
		pfree(sender->lone.pieces);
	/* The fates share the words of failures with the pieces. */
	onside_sender_forget_fates(sender, sender->nfates);
	if (sender->fates != NULL)
		pfree(sender->fates);
	pfree(sender);
}

/* Trouble that a predecessor was in goes on, and so does a Retry-After. */
void
onside_sender_restore(OnsideSender *sender, int64 now, int64 not_before,
					  int64 trouble_us, int refused_in_row)
{
	sender->pace.not_before = not_before;
	sender->pace.asked = not_before != 0;
	sender->refused_in_row = refused_in_row;
	if (not_before == 0 && trouble_us >= now)
		return;

	/*
	 * "failure" stays unknown where the predecessor has not said the reason.
	 */
	sender->trouble = ++sender->tick;
	sender->trouble_us = trouble_us;
	if (not_before != 0)
		sender->failure = ONSIDE_RESPONSE_THROTTLED;
	else if (refused_in_row >= ONSIDE_REFUSED_IN_ROW)
		sender->failure = ONSIDE_RESPONSE_REFUSED;
}

void
onside_sender_configure(OnsideSender *sender,
						const OnsideSendSettings *settings)
{
	/* Smaller bounds count at once; larger ones are grown into. */
	sender->pace.settings = *settings;
	sender->pace.allowed = Min(sender->pace.allowed, settings->max_in_flight);
	sender->pace.size = Min(sender->pace.size, settings->batch_max_events);
}

/* Ends all waits; the next request goes on a fresh connection. */
void
onside_sender_resume(OnsideSender *sender, int64 now)
{
	onside_pace_reset(&sender->pace);
	for (int i = 0; i < sender->lone.n; i++)
		sender->lone.pieces[i]->due_us =
			Min(sender->lone.pieces[i]->due_us, now);
	onside_heap_reorder(&sender->lone);
	sender->probe_newest = sender->probe_failed = false;
	sender->oldest_failures = 0;
	sender->fresh_connection = sender->renew = true;
}

/* Nothing that the former endpoint has said counts against an event. */
void
onside_sender_elsewhere(OnsideSender *sender, int64 now)
{
	onside_sender_resume(sender, now);

	/* Answers to requests of an earlier generation say nothing of this one. */
	sender->generation++;
	sender->failure = ONSIDE_RESPONSE_DELIVERED;
	for (int i = 0; i < sender->lone.n; i++)
	{
		sender->lone.pieces[i]->against = 0;
		sender->lone.pieces[i]->undecided = false;
		sender->lone.pieces[i]->refusals = 0;
	}
}

void
onside_sender_begin_chance(OnsideSender *sender)
{
	sender->chance_tries = CHANCE_TRIES;
}

void
onside_sender_forget_fates(OnsideSender *sender, int n)
{
	if (n == 0)
		return;
	for (int i = 0; i < n; i++)
		onside_words_release(sender->fates[i].words);
	sender->nfates -= n;
	memmove(sender->fates, sender->fates + n,
			sender->nfates * sizeof(OnsideFate));
}

/* ----------
 * Answers
 * ----------
 */

/*
 * Begins the next wait if this round of probes is over, and none was
 * accepted.
 */
static void
end_probe_round(OnsideSender *sender, const OnsideInFlight *request, int64 now)
{
	if (request->probe && onside_pace_waits(&sender->pace) &&
		!sender->probe_newest && !sender->probe_failed &&
		!onside_choice_probe_is_out(sender))
		onside_pace_wait(&sender->pace, now);
}

/*
 * Takes the request out of flight, notes whether the endpoint is in trouble,
 * and has outcome.c do the rest.
 */
void
onside_sender_answer(OnsideSender *sender, int64 id,
					 const OnsideAnswer *answer, int64 now)
{
	OnsideInFlight *slot = onside_holding_find_request(sender, id);
	OnsideInFlight request;
	OnsideResponseClass class = onside_response_classify(answer);

	/*
	 * Free the place first: end_probe_round() looks for probes that are out.
	 */
	Assert(slot != NULL);
	request = *slot;
	slot->id = 0;
	sender->in_flight--;
	sender->tick++;
	if (request.kind == ONSIDE_SEND_CHANCE)
		sender->chances_in_flight--;

	if (class == ONSIDE_RESPONSE_DELIVERED)
	{
		onside_outcome_accepted(sender, &request, answer, now);
		return;
	}

	/*
	 * A failure is the endpoint's trouble until something is accepted.  Dead
	 * letters have failed before, so their failures say nothing about it.
	 */
	if (request.generation == sender->generation &&
		request.kind != ONSIDE_SEND_CHANCE)
	{
		if (sender->trouble == 0)
		{
			sender->trouble = sender->tick;
			sender->trouble_us = now;
		}
		sender->failure = class;
		sender->failure_kind = answer->kind;
	}

	/* The piece is halved, waits, or is given up. */
	if (class == ONSIDE_RESPONSE_THROTTLED)
		onside_outcome_throttled(sender, &request, answer, now);
	else
		onside_outcome_failed(sender, &request, class, answer, now);
	end_probe_round(sender, &request, now);
}

/* ----------
 * Requests
 * ----------
 */

/* Nothing is ordered before the end of a wait that the API has asked for. */
bool
onside_sender_next(OnsideSender *sender, int64 now, int offers,
				   OnsideOrder *order)
{
	memset(order, 0, sizeof(*order));
	order->timeout = sender->pace.settings.request_timeout;
	if (now < sender->pace.not_before ||
		!(onside_pace_waits(&sender->pace) ?
		  onside_choice_in_wait(sender, now, offers, order) :
		  onside_choice_at_once(sender, now, offers, order)))
		return false;

	/* After a failure the next request, whichever it is, connects anew. */
	order->fresh_connection |= sender->fresh_connection || sender->renew;
	order->renew = sender->renew;
	return true;
}

/*
 * Puts what was ordered into flight.  Events of the log get their seq here, so
 * the sender knows them from now on.  Notes whose turn it was, for the next
 * choice.
 */
int64
onside_sender_sent(OnsideSender *sender, const OnsideOrder *order,
				   const OnsideItem *items, int n, int bytes, int64 now)
{
	OnsideInFlight *request = onside_holding_find_request(sender, 0);
	OnsidePiece *piece = order->piece;

	/* Take the piece out of its place, or make one of what was read. */
	Assert(request != NULL);
	if (order->kind == ONSIDE_SEND_AGAIN)
		onside_holding_take_out(sender, piece);
	else
	{
		piece = onside_piece_create(sender->context, items, n);
		piece->from_end = order->kind == ONSIDE_SEND_NEWEST;
		if (order->kind != ONSIDE_SEND_CHANCE)
			for (int i = 0; i < n; i++)
				piece->items[i].seq = ++sender->last_seq;
	}
	piece->tries++;

	/* The tick says which failures an acceptance of this request is after. */
	request->id = ++sender->last_request;
	request->kind = order->kind;
	request->piece = piece;
	request->sent = ++sender->tick;
	request->sent_us = now;
	request->bytes = bytes;
	request->generation = sender->generation;
	request->fresh_connection = order->fresh_connection;
	request->probe = order->probe;
	sender->in_flight++;

	/* What this request does is not to be done by the next one, too. */
	if (order->fresh_connection)
		sender->fresh_connection = false;
	sender->renew = false;
	if (order->probe && order->kind == ONSIDE_SEND_AGAIN)
		sender->probe_failed = false;
	else if (order->probe)
		sender->probe_newest = false;

	/* Whose turn it was. */
	sender->again_was_last = order->kind == ONSIDE_SEND_AGAIN;
	sender->newest_was_last = order->kind == ONSIDE_SEND_NEWEST;
	if (order->kind == ONSIDE_SEND_CHANCE)
	{
		sender->chances_in_flight++;
		sender->since_chance = 0;
	}
	else
		sender->since_chance++;
	return request->id;
}

/* No dead letter is due, or the log has nothing to probe with. */
void
onside_sender_nothing(OnsideSender *sender, const OnsideOrder *order)
{
	if (order->kind == ONSIDE_SEND_CHANCE)
		sender->chance_tries = 0;
	else if (order->probe)
		sender->probe_newest = false;
}

/* A probe whose event is gone is still to be sent, with another event. */
bool
onside_sender_gone(OnsideSender *sender, OnsideOrder *order, const bool *gone)
{
	if (onside_holding_withdraw(sender, order->piece, gone))
		return true;
	order->piece = NULL;
	if (order->probe)
		sender->probe_failed = true;
	return false;
}

/* ----------
 * Looking at all of it
 * ----------
 */

/* What check_piece() is called with. */
typedef struct Check
{
	OnsideIsThere is_there;
	void	   *arg;
} Check;

/* Withdraws the events of a piece that are gone. */
static void
check_piece(OnsideSender *sender, OnsidePiece *piece, void *arg)
{
	Check	   *check = arg;
	bool	   *gone = palloc(piece->nitems * sizeof(bool));
	bool		any = false;

	for (int i = 0; i < piece->nitems; i++)
		any |= gone[i] = !check->is_there(&piece->items[i], check->arg);
	if (any)
		(void) onside_holding_withdraw(sender, piece, gone);
	pfree(gone);
}

/* What is in flight is left alone: its answer is awaited. */
void
onside_sender_check(OnsideSender *sender, OnsideIsThere is_there, void *arg)
{
	Check		check = {is_there, arg};

	onside_holding_visit(sender, false, check_piece, &check);
}

/* What visit_items() is called with. */
typedef struct Visit
{
	OnsideVisit visit;
	void	   *arg;
} Visit;

static void
visit_items(OnsideSender *sender, OnsidePiece *piece, void *arg)
{
	Visit	   *visit = arg;

	for (int i = 0; i < piece->nitems; i++)
		visit->visit(&piece->items[i], visit->arg);
}

void
onside_sender_visit(OnsideSender *sender, OnsideVisit visit, void *arg)
{
	Visit		all = {visit, arg};

	onside_holding_visit(sender, true, visit_items, &all);
}

/*
 * Items are in the order of their seq, so the first of the log is the lowest.
 */
static void
find_lowest(OnsideSender *sender, OnsidePiece *piece, void *arg)
{
	int64	   *lowest = arg;

	for (int i = 0; i < piece->nitems; i++)
		if (piece->items[i].home == ONSIDE_IN_LOG)
		{
			*lowest = Min(*lowest, piece->items[i].seq);
			return;
		}
}

int64
onside_sender_settled(OnsideSender *sender)
{
	int64		lowest = sender->last_seq + 1;

	onside_holding_visit(sender, true, find_lowest, &lowest);
	return lowest - 1;
}

/* ----------
 * How things stand
 * ----------
 */

/*
 * The first of: a review, the end of a wait, a lone event that is due, and a
 * batch that need not be full any longer.  Each counts only if something could
 * be sent then.
 */
int64
onside_sender_wake_at(const OnsideSender *sender, int64 now, int offers)
{
	const OnsidePace *pace = &sender->pace;
	int64		at = sender->judge_at_us != 0 ? sender->judge_at_us :
		PG_INT64_MAX;

	/* The API's wait comes first, then the common one. */
	if (now < pace->not_before)
		at = Min(at, pace->not_before);
	else if (onside_pace_waits(pace))
	{
		/* After its end the answer to a probe is what wakes the caller. */
		if (now < pace->wait_until &&
			(sender->held > 0 || onside_choice_fresh(sender, offers) != 0))
			at = Min(at, pace->wait_until);
	}
	else
	{
		int64		from = onside_choice_partial_from(sender);

		/* The top of the heap is the lone event that is due first. */
		if (sender->lone.n > 0 && onside_choice_has_room(sender, true))
			at = Min(at, sender->lone.pieces[0]->due_us);
		if (onside_choice_fresh(sender, offers) != 0 &&
			onside_choice_has_room(sender, false) &&
			from > now)
			at = Min(at, from);
	}
	return at == PG_INT64_MAX ? -1 : at;
}

/* Tells the caller whether reading the log is of any use at present. */
int
onside_sender_would_take(const OnsideSender *sender, int64 now, bool *full)
{
	*full = !onside_pace_waits(&sender->pace) &&
		onside_choice_partial_from(sender) > now;
	if (now < sender->pace.not_before ||
		!onside_choice_has_room(sender, false) ||
		onside_choice_fresh(sender, ONSIDE_OFFER_OLDEST) == 0 ||
		(onside_pace_only_probes(&sender->pace) &&
		 now < sender->pace.wait_until))
		return 0;
	return onside_pace_events(&sender->pace, false);
}

/*
 * What is wrong with the endpoint, judged by the last failure since it has
 * accepted anything.  A few refused events are not yet the endpoint's trouble.
 */
OnsideTrouble
onside_sender_trouble(const OnsideSender *sender, int64 now)
{
	if (now < sender->pace.not_before)
		return ONSIDE_TROUBLE_WAITS;
	if (sender->trouble == 0)
		return ONSIDE_TROUBLE_NONE;
	switch (sender->failure)
	{
		case ONSIDE_RESPONSE_DELIVERED:
			/* not known: no failure yet at this endpoint */
			break;
		case ONSIDE_RESPONSE_REFUSED:
		case ONSIDE_RESPONSE_TOO_LARGE:
			if (sender->refused_in_row >= ONSIDE_REFUSED_IN_ROW ||
				onside_pace_waits(&sender->pace))
				return ONSIDE_TROUBLE_REFUSING;
			break;
		case ONSIDE_RESPONSE_THROTTLED:
			return ONSIDE_TROUBLE_WAITS;
		case ONSIDE_RESPONSE_UNAUTHORIZED:
			return ONSIDE_TROUBLE_UNAUTHORIZED;
		case ONSIDE_RESPONSE_MISCONFIGURED:
			/* who it is that a person has to set right */
			return sender->failure_kind == ONSIDE_ANSWER_PROXY_REFUSED ?
				ONSIDE_TROUBLE_PROXY :
				sender->failure_kind == ONSIDE_ANSWER_NOT_TRUSTED ?
				ONSIDE_TROUBLE_CERTIFICATE : ONSIDE_TROUBLE_MISCONFIGURED;
		case ONSIDE_RESPONSE_RETRY:
			return ONSIDE_TROUBLE_FAILS;
	}
	return ONSIDE_TROUBLE_NONE;
}

/*
 * The wait that holds up the most comes first, as in onside_sender_wake_at().
 */
int64
onside_sender_next_attempt(const OnsideSender *sender, int64 now)
{
	const OnsidePace *pace = &sender->pace;
	int64		at = 0;

	if (now < pace->not_before)
		at = pace->not_before;
	else if (onside_pace_waits(pace))
		at = pace->wait_until;
	else if (sender->lone.n > 0)
		at = sender->lone.pieces[0]->due_us;
	return at > now ? at : 0;
}
