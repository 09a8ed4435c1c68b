/*-------------------------------------------------------------------------
 *
 * review.c
 *		What time decides: verdicts, and what leaves the log.
 *
 * The caller asks for a review when onside_sender_wake_at() says so.  A lone
 * event whose last failure has come to count may be given up.  An event that
 * has failed for a while, though other events were accepted, would hold the
 * cursor back for no good reason.  It leaves the log for the table aside,
 * which the caller writes, and is tried again from there.
 *
 * The table can hold more events than memory.  The caller adds as many as
 * there is room for.  What is too many is dropped from memory: the table has
 * it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "send/holding.h"
#include "send/review.h"
#include "send/verdict.h"

/*
 * When the process ends, a request in flight for so long leaves the log, too.
 */
#define LONG_IN_FLIGHT		(1 * USECS_PER_SEC)

void
onside_review_at(OnsideSender *sender, int64 at)
{
	if (sender->judge_at_us == 0 || at < sender->judge_at_us)
		sender->judge_at_us = at;
}

/* A review while it goes on. */
typedef struct Review
{
	int64		now;
	OnsideLeaving *items;		/* that leave the log */
	int			n;
	int			max;
	int64		next_us;		/* when the next review is due */
} Review;

/*
 * Notes the piece's events if they leave the log now, or when to look again.
 */
static void
review_piece(OnsideSender *sender, OnsidePiece *piece, void *arg)
{
	Review	   *review = arg;
	int64		at = sender->ends ? review->now :
		piece->first_failed_us + ONSIDE_ASIDE_AFTER;
	bool		waits = false;

	/* Nothing that was sent after its first failure is accepted yet. */
	if (piece->first_failed == 0 ||
		sender->accepted_sent <= piece->first_failed)
		return;
	for (int i = 0; i < piece->nitems; i++)
	{
		if (piece->items[i].home != ONSIDE_IN_LOG)
			continue;
		if (at <= review->now && review->n < review->max)
		{
			review->items[review->n].item = &piece->items[i];
			review->items[review->n++].words = piece->words;
		}
		else
			waits = true;		/* not time yet, or no room in the array */
	}
	if (waits)
		review->next_us = Min(review->next_us,
							  Max(at, review->now + ONSIDE_REVIEW_INTERVAL));
}

/*
 * When the process ends: notes the events of a request that has been in
 * flight for long and has not failed.
 */
static void
review_request(OnsideSender *sender, const OnsideInFlight *request,
			   Review *review)
{
	OnsidePiece *piece = request->piece;

	if (piece->first_failed != 0 || request->sent >= sender->accepted_sent ||
		review->now - request->sent_us < LONG_IN_FLIGHT)
		return;

	/* It has no words, since it has not failed. */
	for (int i = 0; i < piece->nitems && review->n < review->max; i++)
	{
		if (piece->items[i].home != ONSIDE_IN_LOG)
			continue;
		review->items[review->n].item = &piece->items[i];
		review->items[review->n++].words = NULL;
	}
}

/* Gives a lone event up if what was accepted since its failure condemns it. */
static void
judge_piece(OnsideSender *sender, OnsidePiece *piece, void *arg)
{
	Review	   *review = arg;

	onside_verdict_count_failure(sender, piece);
	if (onside_verdict_is_condemned(sender, piece, review->now))
	{
		onside_heap_remove(&sender->lone, piece);
		onside_holding_give_up(sender, piece);
	}
}

int
onside_review_pieces(OnsideSender *sender, int64 now, OnsideLeaving *items,
					 int max)
{
	Review		review = {now, items, 0, max, PG_INT64_MAX};

	if (sender->judge_at_us == 0 || now < sender->judge_at_us)
		return 0;
	/* What is given up need not leave the log for aside. */
	onside_holding_visit_lone(sender, judge_piece, &review);
	onside_holding_visit(sender, true, review_piece, &review);
	for (int i = 0; sender->ends && i < ONSIDE_SENDER_MAX_REQUESTS; i++)
		if (sender->requests[i].id != 0)
			review_request(sender, &sender->requests[i], &review);
	sender->judge_at_us = review.next_us == PG_INT64_MAX ? 0 : review.next_us;
	return review.n;
}

void
onside_review_end(OnsideSender *sender, int64 now)
{
	sender->ends = true;
	sender->judge_at_us = now;
}

/* ----------
 * Aside
 * ----------
 */

/* Counts what the piece holds, where its events are now. */
static void
recount_piece(OnsideSender *sender, OnsidePiece *piece, void *arg)
{
	onside_holding_count(sender, piece, 1);
}

/* Drops a lone event while there are too many: the table brings it again. */
static void
drop_one_too_many(OnsideSender *sender, OnsidePiece *piece, void *arg)
{
	if (sender->held_aside <= ONSIDE_SENDER_MAX_ASIDE ||
		piece->items[0].home != ONSIDE_IN_ASIDE)
		return;
	onside_heap_remove(&sender->lone, piece);
	onside_holding_drop(sender, piece);
	sender->dropped++;
}

void
onside_review_is_aside(OnsideSender *sender)
{
	sender->held = sender->held_aside = 0;
	onside_holding_visit(sender, true, recount_piece, NULL);
	onside_holding_visit_lone(sender, drop_one_too_many, NULL);
}

void
onside_review_add_aside(OnsideSender *sender, const OnsideItem *item,
						int64 now)
{
	OnsidePiece *piece = onside_piece_create(sender->context, item, 1);

	piece->items[0].home = ONSIDE_IN_ASIDE;

	/* Its past is not known but for one failure; it may go at once. */
	piece->first_failed = ++sender->tick;
	piece->first_failed_us = now;
	piece->due_us = now;
	onside_holding_count(sender, piece, 1);
	onside_holding_put_back(sender, piece);
}

/* Half of the bound, so that what leaves the log next has room as well. */
int
onside_review_aside_room(const OnsideSender *sender)
{
	return (int) Max(ONSIDE_SENDER_MAX_ASIDE / 2 - sender->held_aside, 0);
}
