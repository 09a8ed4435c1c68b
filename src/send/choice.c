/*-------------------------------------------------------------------------
 *
 * choice.c
 *		What is sent next.
 *
 * Events that were never sent and pieces that have failed take turns, and
 * share the requests in flight, so that neither holds up the other.  Dead
 * letters that have a second chance come in between.  After many failures in
 * a row there is a common wait (pace.c says how long), and after the wait a
 * round of two probes: one has a never-sent event, the other an event that
 * has failed.  The first acceptance ends this.
 *
 * sender.c calls this file to fill an order.  Choosing notes whose turn it is,
 * and may cut a piece.  It takes no piece out of its place:
 * onside_sender_sent() does so when the order has been carried out.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "send/choice.h"
#include "send/holding.h"

/*
 * After so many failures in a row, events are also taken from the log's end.
 */
#define OLDEST_FAILURES		8

/* A part of a request that timed out has less time until both are past. */
#define SHORT_FAILURES		2
#define SHORT_TIME			(15 * USECS_PER_SEC)

/* While other events wait, so many requests go before the next dead letter. */
#define CHANCE_EVERY		9

/* How long an answer is assumed to take until the first one has come. */
#define UNKNOWN_MEDIAN		(500 * ONSIDE_US_PER_MS)

/* ----------
 * What may go
 * ----------
 */

/* How many requests of this kind are in flight? */
static int
count_in_flight(const OnsideSender *sender, OnsideOrderKind kind)
{
	int			n = 0;

	for (int i = 0; i < ONSIDE_SENDER_MAX_REQUESTS; i++)
		n += sender->requests[i].id != 0 && sender->requests[i].kind == kind;
	return n;
}

/*
 * May one more request go, of what has failed, or of what has not?  What has
 * failed takes at most half of the requests in flight.  If only one may be in
 * flight, what has failed has one more of its own: else a failed event that
 * hangs would hold up all others.
 */
bool
onside_choice_has_room(const OnsideSender *sender, bool again)
{
	int			nagain = count_in_flight(sender, ONSIDE_SEND_AGAIN) +
		sender->chances_in_flight;
	int			allowed = sender->pace.allowed;

	if (sender->pace.settings.max_in_flight == 1)
		return again ? nagain == 0 : sender->in_flight - nagain == 0;
	return sender->in_flight < allowed &&
		(!again || nagain < Max(allowed / 2, 1));
}

/*
 * The moment from which on each request with never-sent events has been out
 * for longer than twice the median answer.  Until then a batch waits to be
 * full.
 */
int64
onside_choice_partial_from(const OnsideSender *sender)
{
	int64		from = 0;

	for (int i = 0; i < ONSIDE_SENDER_MAX_REQUESTS; i++)
	{
		const OnsideInFlight *request = &sender->requests[i];

		/* What failed before holds up no new batch. */
		if (request->id == 0 || request->kind == ONSIDE_SEND_AGAIN ||
			request->kind == ONSIDE_SEND_CHANCE)
			continue;
		from = Max(from, request->sent_us + 1 +
				   2 * (sender->pace.median != 0 ? sender->pace.median :
						UNKNOWN_MEDIAN));
	}
	return from;
}

/*
 * Which never-sent events may go?  There has to be memory for them in case
 * they fail.  Events from the log's end have a tenth more of it, because only
 * an acceptance empties the memory, and these may be the only good ones.
 */
int
onside_choice_fresh(const OnsideSender *sender, int offers)
{
	int64		held = sender->held - sender->held_aside;

	if (held >= ONSIDE_SENDER_MAX_HELD)
		offers &= ~ONSIDE_OFFER_OLDEST;
	if (held >= ONSIDE_SENDER_MAX_HELD + ONSIDE_SENDER_MAX_HELD / 10)
		offers &= ~ONSIDE_OFFER_NEWEST;
	return offers & (ONSIDE_OFFER_OLDEST | ONSIDE_OFFER_NEWEST);
}

bool
onside_choice_probe_is_out(const OnsideSender *sender)
{
	for (int i = 0; i < ONSIDE_SENDER_MAX_REQUESTS; i++)
		if (sender->requests[i].id != 0 && sender->requests[i].probe)
			return true;
	return false;
}

/*
 * After failures, dead letters wait for an acceptance.  It would never come if
 * there is nothing else to send, so one dead letter goes as a probe then.
 */
bool
onside_choice_may_take_chance(const OnsideSender *sender, int offers)
{
	return (offers & ONSIDE_OFFER_CHANCE) != 0 &&
		(sender->pace.failures == 0 ||
		 (sender->in_flight == 0 && sender->held == 0 &&
		  onside_choice_fresh(sender, offers) == 0)) &&
		sender->chances_in_flight < sender->chance_tries &&
		onside_choice_has_room(sender, true);
}

/* ----------
 * Of what has failed
 * ----------
 */

/* The youngest of the pieces that are not tried, or NULL. */
static OnsidePiece *
youngest_piece(OnsideSender *sender)
{
	dlist_head *head = !dlist_is_empty(&sender->untried_end) ?
		&sender->untried_end : &sender->untried;

	return dlist_is_empty(head) ? NULL :
		dlist_head_element(OnsidePiece, node, head);
}

/* The largest of them, and of several the oldest. */
static OnsidePiece *
largest_piece(OnsideSender *sender)
{
	OnsidePiece *best = NULL;
	dlist_iter	iter;

	dlist_foreach(iter, &sender->untried)
	{
		OnsidePiece *piece = dlist_container(OnsidePiece, node, iter.cur);

		if (best == NULL || piece->nitems >= best->nitems)
			best = piece;
	}
	return best;
}

/* The lone event that is due first, if it is due now; or NULL. */
static OnsidePiece *
first_due(const OnsideSender *sender, int64 now)
{
	if (sender->lone.n == 0 || sender->lone.pieces[0]->due_us > now)
		return NULL;
	return sender->lone.pieces[0];
}

/*
 * The next piece of what has failed.  Pieces from the log's end come first,
 * since they may be the only good ones.  Otherwise three take turns: the
 * youngest piece, so that the good events of a request soon get away from the
 * bad one; the largest piece; and the lone event that has waited longest.
 */
static OnsidePiece *
next_again(OnsideSender *sender, int64 now)
{
	if (!dlist_is_empty(&sender->untried_end))
		return youngest_piece(sender);
	for (int i = 0; i < 3; i++)
	{
		int			turn = (sender->turn + i) % 3;
		OnsidePiece *piece = turn == 0 ? youngest_piece(sender) :
			turn == 1 ? largest_piece(sender) : first_due(sender, now);

		if (piece != NULL)
		{
			sender->turn = (turn + 1) % 3;
			return piece;
		}
	}
	return NULL;
}

/*
 * Cuts off what of a piece is beyond the batch's bounds.  The settings may
 * have been others when the piece was made.
 */
static void
cut_to_fit(OnsideSender *sender, OnsidePiece *piece)
{
	int64		bytes = ONSIDE_SENDER_FRAME;
	int			n;

	for (n = 0; n < piece->nitems; n++)
	{
		bytes += piece->items[n].bytes + 1;
		if (n > 0 && (n == sender->pace.settings.batch_max_events ||
					  bytes >= sender->pace.settings.batch_max_bytes))
			break;
	}
	onside_holding_cut_rest(sender, piece, n);
}

/* Orders a piece that has failed, or a part of it. */
static void
order_again(OnsideSender *sender, OnsidePiece *piece, int64 now,
			OnsideOrder *order)
{
	cut_to_fit(sender, piece);
	order->kind = ONSIDE_SEND_AGAIN;
	order->piece = piece;

	/* What timed out once is cut short at first, so that it holds up less. */
	if (piece->timed_out && (piece->failures_since < SHORT_FAILURES ||
							 now - piece->first_failed_us < SHORT_TIME))
		order->timeout = onside_pace_short_timeout(&sender->pace);

	/* Two refusals count only if they came on two connections. */
	if (piece->refusals > 0)
		order->fresh_connection = true;
}

/* ----------
 * The next request
 * ----------
 */

/*
 * Orders never-sent events: the log's next ones, or those at its end if there
 * are no others, or, by turns, if the next ones fail again and again.
 */
static void
order_fresh(OnsideSender *sender, int64 now, int offers, OnsideOrder *order)
{
	bool		newest = (offers & ONSIDE_OFFER_OLDEST) == 0 ||
		((offers & ONSIDE_OFFER_NEWEST) != 0 && !sender->newest_was_last &&
		 sender->oldest_failures >= OLDEST_FAILURES &&
		 dlist_is_empty(&sender->untried_end));
	int64		from = onside_choice_partial_from(sender);

	order->kind = newest ? ONSIDE_SEND_NEWEST : ONSIDE_SEND_OLDEST;
	order->max_events = onside_pace_events(&sender->pace, newest);
	order->max_bytes = onside_pace_bytes(&sender->pace);
	order->full = !newest && from > now;
}

/* While failures are few, everything goes on: what goes next, in turn. */
bool
onside_choice_at_once(OnsideSender *sender, int64 now, int offers,
					  OnsideOrder *order)
{
	OnsidePiece *piece = NULL;
	int			fresh = onside_choice_has_room(sender, false) ?
		onside_choice_fresh(sender, offers) : 0;

	/* The log's end alone is looked at only if its next events fail. */
	if (sender->oldest_failures < OLDEST_FAILURES)
		fresh &= ONSIDE_OFFER_OLDEST;

	/* However much else waits, a dead letter has one request in ten. */
	if (onside_choice_may_take_chance(sender, offers) &&
		sender->since_chance >= CHANCE_EVERY)
	{
		order->kind = ONSIDE_SEND_CHANCE;
		return true;
	}

	/* What has failed, unless it had the last turn and others wait. */
	if (onside_choice_has_room(sender, true) &&
		!(fresh != 0 && sender->again_was_last))
		piece = next_again(sender, now);
	if (piece != NULL)
		order_again(sender, piece, now, order);
	else if (fresh)
		order_fresh(sender, now, fresh, order);
	else if (onside_choice_may_take_chance(sender, offers))
		order->kind = ONSIDE_SEND_CHANCE;
	else
		return false;
	return true;
}

/*
 * What has failed, to probe with: a lone event, each time another.  One that
 * fails is due later, and so no longer on top of the heap.
 */
static OnsidePiece *
probe_piece(OnsideSender *sender)
{
	OnsidePiece *piece = youngest_piece(sender);

	if (piece == NULL)
		return sender->lone.n > 0 ? sender->lone.pieces[0] : NULL;
	onside_holding_cut_rest(sender, piece, 1);
	return piece;
}

/*
 * After many failures: never-sent events go, one in each request, until many
 * of these have failed, too.  Then only probes go, two after each common
 * wait.
 */
bool
onside_choice_in_wait(OnsideSender *sender, int64 now, int offers,
					  OnsideOrder *order)
{
	OnsidePiece *piece;
	int			fresh = onside_choice_has_room(sender, false) ?
		onside_choice_fresh(sender, offers) : 0;

	/* A probe with never-sent events has only one. */
	order->max_events = 1;
	order->max_bytes = onside_pace_bytes(&sender->pace);
	if (fresh != 0 && !onside_pace_only_probes(&sender->pace))
	{
		order_fresh(sender, now, fresh, order);
		order->full = false;
		return true;
	}
	if (now < sender->pace.wait_until)
		return false;

	/* The wait is over: a round of probes, unless one is on its way. */
	if (!sender->probe_newest && !sender->probe_failed)
	{
		if (onside_choice_probe_is_out(sender))
			return false;
		sender->probe_newest = sender->probe_failed = true;
	}

	/* The newest never-sent event is the first probe. */
	order->probe = true;
	if (sender->probe_newest && fresh != 0)
	{
		order->kind = (fresh & ONSIDE_OFFER_NEWEST) != 0 ?
			ONSIDE_SEND_NEWEST : ONSIDE_SEND_OLDEST;
		return true;
	}

	/* That one is out, or not there; the other has failed before. */
	sender->probe_newest = false;
	if (sender->probe_failed && onside_choice_has_room(sender, true) &&
		(piece = probe_piece(sender)) != NULL)
	{
		order_again(sender, piece, now, order);
		return true;
	}
	sender->probe_failed = false;
	return false;
}
