/*-------------------------------------------------------------------------
 *
 * sender.c
 *		What is sent next, and what an answer means for it.
 *
 * An answer is about the endpoint or about what was sent, and only comparison
 * tells: a failure is about what was sent if a request that was sent after it
 * is accepted.  So nothing is concluded from an answer alone.  What has failed
 * is halved and tried again, beside all the rest, until the event is alone that
 * fails while others pass.
 *
 * Pieces that wait are "untried", if they were never sent in this form, or lone
 * events in the heap, which were, and which wait for a while after each
 * failure.  What is in flight belongs to its request.
 *
 * Before and after are told by ticks, which count everything that happens: the
 * clock of the caller may stand still between an answer and the next request.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "send/sender.h"

#define US_PER_MS			INT64CONST(1000)
#define US_PER_S			INT64CONST(1000000)

/* A verdict on a lone event takes so many failures, over so long. */
#define VERDICT_FAILURES	4
#define VERDICT_TIME		(30 * US_PER_S)
/* It is out if so many failures would be as unlikely by chance. */
#define VERDICT_CHANCE		0.001
/* So many are enough, however much fails. */
#define VERDICT_MAX			20

/* Two refusals count as two if they are so far apart. */
#define REFUSED_TWICE		(2 * US_PER_S)
/* So many events are given up while nothing is accepted. */
#define REFUSED_IN_ROW		10

/* An undecided event leaves the log after so long. */
#define ASIDE_AFTER			(5 * US_PER_S)

/* When the process ends, so does one in flight for this long. */
#define LONG_IN_FLIGHT		(1 * US_PER_S)

/* Those that wait are reviewed no more often than this. */
#define REVIEW_INTERVAL		(100 * US_PER_MS)

/* After so many failures in a row, events are also taken from the log's end. */
#define OLDEST_FAILURES		8

/* After so many, what failed in them once or twice is sent together again. */
#define OUTAGE_FAILURES		20
#define OUTAGE_GROUP		64

/* A part of a request that timed out has less time until then. */
#define SHORT_FAILURES		2
#define SHORT_TIME			(15 * US_PER_S)

/* A chance begins with so many tries, and each acceptance adds some. */
#define CHANCE_TRIES		10
#define CHANCE_ADDED		2
#define CHANCE_MAX			1000
/* While others wait, so many go before the next of a chance. */
#define CHANCE_EVERY		9

/* How long an answer takes, as long as nothing is known. */
#define UNKNOWN_MEDIAN		(500 * US_PER_MS)

#define THROTTLED_WAIT_MAX	(3600 * US_PER_S)

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

void
onside_sender_free(OnsideSender *sender)
{
	dlist_mutable_iter iter;

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
	onside_sender_forget_fates(sender, sender->nfates);
	if (sender->fates != NULL)
		pfree(sender->fates);
	pfree(sender);
}

void
onside_sender_restore(OnsideSender *sender, int64 now, int64 not_before,
					  int64 trouble_us, int refused_in_row)
{
	sender->pace.not_before = not_before;
	sender->pace.asked = not_before != 0;
	sender->refused_in_row = refused_in_row;
	if (not_before == 0 && trouble_us >= now)
		return;
	sender->trouble = ++sender->tick;
	sender->trouble_us = trouble_us;
	if (not_before != 0)
		sender->failure = ONSIDE_RESPONSE_THROTTLED;
	else if (refused_in_row >= REFUSED_IN_ROW)
		sender->failure = ONSIDE_RESPONSE_REFUSED;
}

void
onside_sender_configure(OnsideSender *sender,
						const OnsideSendSettings *settings)
{
	sender->pace.settings = *settings;
	sender->pace.allowed = Min(sender->pace.allowed, settings->max_in_flight);
	sender->pace.size = Min(sender->pace.size, settings->batch_max_events);
}

/* Nothing waits any longer. */
static void
start_afresh(OnsideSender *sender, int64 now)
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

void
onside_sender_resume(OnsideSender *sender, int64 now)
{
	start_afresh(sender, now);
}

void
onside_sender_elsewhere(OnsideSender *sender, int64 now)
{
	start_afresh(sender, now);
	sender->generation++;
	sender->failure = ONSIDE_RESPONSE_DELIVERED;
	for (int i = 0; i < sender->lone.n; i++)
	{
		sender->lone.pieces[i]->against = 0;
		sender->lone.pieces[i]->undecided = false;
		sender->lone.pieces[i]->refusals = 0;
	}
}

/* ----------
 * Pieces come and go
 * ----------
 */

static bool
is_lone(const OnsidePiece *piece)
{
	return piece->nitems == 1;
}

static OnsideInFlight *
find_request(OnsideSender *sender, int64 id)
{
	for (int i = 0; i < ONSIDE_SENDER_MAX_REQUESTS; i++)
		if (sender->requests[i].id == id)
			return &sender->requests[i];
	return NULL;
}

/* Counts n events more, or fewer, of those that have failed. */
static void
count_held(OnsideSender *sender, const OnsidePiece *piece, int sign)
{
	if (piece->first_failed == 0)
		return;
	sender->held += sign * piece->nitems;
	for (int i = 0; i < piece->nitems; i++)
		if (piece->items[i].home == ONSIDE_IN_ASIDE)
			sender->held_aside += sign;
}

/* A piece that is in no collection any more is done with. */
static void
drop(OnsideSender *sender, OnsidePiece *piece)
{
	count_held(sender, piece, -1);
	onside_piece_free(piece);
}

/* A piece that was not tried in this form waits for its next request. */
static void
put_untried(OnsideSender *sender, OnsidePiece *piece)
{
	dlist_push_head(piece->from_end ? &sender->untried_end : &sender->untried,
					&piece->node);
}

/* A lone event that was tried waits until it is due. */
static void
put_back(OnsideSender *sender, OnsidePiece *piece)
{
	Assert(is_lone(piece));
	onside_heap_add(sender->context, &sender->lone, piece);
}

static void
take_out(OnsideSender *sender, OnsidePiece *piece)
{
	if (piece->heap_index >= 0)
		onside_heap_remove(&sender->lone, piece);
	else
		dlist_delete(&piece->node);
}

/* What of a piece is behind its first n events waits as one of its own. */
static void
cut_rest(OnsideSender *sender, OnsidePiece *piece, int n)
{
	if (n < piece->nitems)
		put_untried(sender, onside_piece_cut(sender->context, piece, n));
}

/* Cuts a piece in two, neither of which was tried in this form. */
static void
halve(OnsideSender *sender, OnsidePiece *piece)
{
	cut_rest(sender, piece, (piece->nitems + 1) / 2);
	put_untried(sender, piece);
}

static void
add_fate(OnsideSender *sender, OnsideFateKind kind, const OnsideItem *item,
		 const OnsidePiece *piece)
{
	OnsideFate *fate;

	if (sender->nfates == sender->fates_capacity)
		sender->fates = onside_array_enlarge(sender->context, sender->fates,
											 &sender->fates_capacity,
											 sizeof(OnsideFate));
	fate = &sender->fates[sender->nfates++];
	fate->kind = kind;
	fate->item = *item;
	fate->tries = piece->tries;
	fate->words = NULL;
	if (kind != ONSIDE_FATE_ACCEPTED)
	{
		fate->words = piece->words;
		fate->words->refcount++;
	}
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

/* A lone event is refused for good. */
static void
give_up(OnsideSender *sender, OnsidePiece *piece)
{
	add_fate(sender, ONSIDE_FATE_REFUSED, &piece->items[0], piece);
	sender->refused++;
	drop(sender, piece);
}

void
onside_sender_review_at(OnsideSender *sender, int64 at)
{
	if (sender->judge_at_us == 0 || at < sender->judge_at_us)
		sender->judge_at_us = at;
}

/* ----------
 * Verdicts
 * ----------
 */

/* The last failure counts if something was accepted that was sent after it. */
static void
count_failure(OnsideSender *sender, OnsidePiece *piece)
{
	if (!piece->undecided || sender->accepted_sent <= piece->last_failed)
		return;
	piece->undecided = false;
	if (piece->against++ == 0)
		piece->against_since_us = piece->first_failed_us;
}

/* Is it the event that does not pass? */
static bool
is_condemned(const OnsideSender *sender, const OnsidePiece *piece, int64 now)
{
	double		share = onside_pace_failing_share(&sender->pace);
	double		chance = 1.0;

	if (piece->against >= VERDICT_MAX)
		return true;
	if (piece->against < VERDICT_FAILURES ||
		now - piece->against_since_us < VERDICT_TIME)
		return false;
	for (int i = 0; i < piece->against; i++)
		chance *= share;
	return chance <= VERDICT_CHANCE;
}

/*
 * A lone event was refused, by the documented word for that.  Twice is enough,
 * on two connections, if something was accepted in between; if nothing was, a
 * few events are given up, and then it is the endpoint that refuses everything.
 */
static bool
is_refused_for_good(OnsideSender *sender, OnsidePiece *piece,
					const OnsideInFlight *request, int64 now)
{
	if (piece->refusals == 0)
	{
		piece->refusals = 1;
		piece->refused = sender->tick;
		piece->refused_us = now;
		return false;
	}
	if (!request->fresh_connection ||
		now - piece->refused_us < REFUSED_TWICE)
		return false;
	piece->refusals = 2;
	if (sender->accepted > piece->refused)
		return true;
	if (sender->refused_in_row >= REFUSED_IN_ROW)
		return false;
	sender->refused_in_row++;
	return true;
}

/* ----------
 * Answers
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
regroup(OnsideSender *sender)
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
					drop(sender, model);
				model = piece;
			}
			else
				drop(sender, piece);
		}
		if (n == OUTAGE_GROUP || (i == nall - 1 && n > 0))
		{
			OnsidePiece *group = onside_piece_create(sender->context, items, n);

			qsort(group->items, n, sizeof(OnsideItem),
				  onside_item_compare);
			group->tries = model->tries;
			group->failures = model->failures;
			group->first_failed = model->first_failed;
			group->first_failed_us = model->first_failed_us;
			group->last_failed = model->last_failed;
			group->words = model->words;
			group->words->refcount++;
			count_held(sender, group, 1);
			drop(sender, model);
			model = NULL;
			n = 0;
			put_untried(sender, group);
		}
	}
	sender->lone.n = kept;
	onside_heap_reorder(&sender->lone);
}

/* Everything in the request is delivered. */
static void
answer_accepted(OnsideSender *sender, OnsideInFlight *request,
				const OnsideAnswer *answer, int64 now)
{
	OnsidePiece *piece = request->piece;
	bool		newest = request->kind == ONSIDE_SEND_NEWEST;

	for (int i = 0; i < piece->nitems; i++)
	{
		if (piece->items[i].home != ONSIDE_IN_LOG)
			add_fate(sender, ONSIDE_FATE_ACCEPTED, &piece->items[i], piece);
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
			now - sender->trouble_us >= REFUSED_TWICE)
		{
			sender->recovered = true;
			sender->recovered_us = sender->trouble_us;
		}
		if (outage)
			regroup(sender);
		sender->trouble = 0;
		sender->failure = ONSIDE_RESPONSE_DELIVERED;
		sender->probe_newest = sender->probe_failed = false;
		onside_sender_review_at(sender, now + REVIEW_INTERVAL);
	}
	drop(sender, piece);
}

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
		count_held(sender, piece, 1);
	}
	onside_words_release(piece->words);
	snprintf(status, sizeof(status), "HTTP %d", answer->status);
	piece->words = onside_words_create(sender->context, answer->status,
									   answer->words[0] != '\0' ?
									   answer->words : status);
	onside_sender_review_at(sender, now + ASIDE_AFTER);
}

/* A dead letter that was tried again waits for its next chance. */
static void
chance_failed(OnsideSender *sender, OnsidePiece *piece, OnsideFateKind kind)
{
	sender->chance_tries = sender->pace.failures > 0 ? 0 :
		Max(sender->chance_tries - 1, 0);
	add_fate(sender, kind, &piece->items[0], piece);
	drop(sender, piece);
}

/* Everybody is to wait; it says nothing about what was sent. */
static void
answer_throttled(OnsideSender *sender, OnsideInFlight *request,
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
	if (!is_lone(piece))
	{
		halve(sender, piece);
		return;
	}

	/* Others go first; but until one is accepted, it is a probe as well. */
	piece->throttled++;
	piece->due_us = sender->pace.not_before +
		Min(US_PER_S << Min(piece->throttled, 20), THROTTLED_WAIT_MAX);
	if (sender->accepted < piece->first_failed)
		piece->due_us = Min(piece->due_us,
							Max(sender->pace.not_before,
								now + sender->pace.settings.retry_max_delay *
								US_PER_MS));
	put_back(sender, piece);
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

	if (class == ONSIDE_RESPONSE_TOO_LARGE && !is_lone(piece) &&
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
static void
answer_failed(OnsideSender *sender, OnsideInFlight *request,
			  OnsideResponseClass class, const OnsideAnswer *answer, int64 now)
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
	if (!is_lone(piece))
	{
		halve(sender, piece);
		return;
	}

	piece->failures++;
	count_failure(sender, piece);
	piece->last_failed = sender->tick;
	piece->undecided = current && !refused;
	if (current && (refused ?
					is_refused_for_good(sender, piece, request, now) :
					is_condemned(sender, piece, now)))
	{
		give_up(sender, piece);
		return;
	}
	piece->due_us = now + onside_pace_lone_wait(&sender->pace, piece->failures);
	if (piece->refusals == 1)
		piece->due_us = Max(piece->due_us, piece->refused_us + REFUSED_TWICE);
	put_back(sender, piece);
}

static bool
probe_is_in_flight(const OnsideSender *sender)
{
	for (int i = 0; i < ONSIDE_SENDER_MAX_REQUESTS; i++)
		if (sender->requests[i].id != 0 && sender->requests[i].probe)
			return true;
	return false;
}

/* Is this round of probes over, with nothing accepted? */
static void
end_round(OnsideSender *sender, const OnsideInFlight *request, int64 now)
{
	if (request->probe && onside_pace_waits(&sender->pace) &&
		!sender->probe_newest && !sender->probe_failed &&
		!probe_is_in_flight(sender))
		onside_pace_wait(&sender->pace, now);
}

void
onside_sender_answer(OnsideSender *sender, int64 id,
					 const OnsideAnswer *answer, int64 now)
{
	OnsideInFlight *slot = find_request(sender, id);
	OnsideInFlight request;
	OnsideResponseClass class = onside_response_classify(answer);

	Assert(slot != NULL);
	request = *slot;
	slot->id = 0;
	sender->in_flight--;
	sender->tick++;
	if (request.kind == ONSIDE_SEND_CHANCE)
		sender->chances_in_flight--;

	if (class == ONSIDE_RESPONSE_DELIVERED)
	{
		answer_accepted(sender, &request, answer, now);
		return;
	}
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
	if (class == ONSIDE_RESPONSE_THROTTLED)
		answer_throttled(sender, &request, answer, now);
	else
		answer_failed(sender, &request, class, answer, now);
	end_round(sender, &request, now);
}

/* ----------
 * What to send
 * ----------
 */

static int
count_in_flight(const OnsideSender *sender, OnsideOrderKind kind)
{
	int			n = 0;

	for (int i = 0; i < ONSIDE_SENDER_MAX_REQUESTS; i++)
		n += sender->requests[i].id != 0 && sender->requests[i].kind == kind;
	return n;
}

/*
 * May one more go of what has failed, or of what has not?  The former take at
 * most half of the requests in flight.  If only one may be in flight, they have
 * one of their own, or a hanging one would hold up all others.
 */
static bool
has_room(const OnsideSender *sender, bool again)
{
	int			nagain = count_in_flight(sender, ONSIDE_SEND_AGAIN) +
		sender->chances_in_flight;
	int			allowed = sender->pace.allowed;

	if (sender->pace.settings.max_in_flight == 1)
		return again ? nagain == 0 : sender->in_flight - nagain == 0;
	return sender->in_flight < allowed &&
		(!again || nagain < Max(allowed / 2, 1));
}

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

static OnsidePiece *
first_due(const OnsideSender *sender, int64 now)
{
	if (sender->lone.n == 0 || sender->lone.pieces[0]->due_us > now)
		return NULL;
	return sender->lone.pieces[0];
}

/*
 * Of what has failed, in turn: the youngest piece, so that what is good in a
 * request soon gets away from what is not; the largest; and the lone event that
 * has waited longest.  First of all those from the log's end, which may be the
 * only good ones.
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
 * Has each request with never-sent events been out for longer than is usual?
 * The moment from which on that is so.
 */
static int64
partial_from(const OnsideSender *sender)
{
	int64		from = 0;

	for (int i = 0; i < ONSIDE_SENDER_MAX_REQUESTS; i++)
	{
		const OnsideInFlight *request = &sender->requests[i];

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
 * Which never-sent events may go: there has to be memory in case that they
 * fail.  Of those at the log's end some always may, to end this.
 */
static int
fresh_offers(const OnsideSender *sender, int offers)
{
	int64		held = sender->held - sender->held_aside;

	if (held >= ONSIDE_SENDER_MAX_HELD)
		offers &= ~ONSIDE_OFFER_OLDEST;
	if (held >= ONSIDE_SENDER_MAX_HELD + ONSIDE_SENDER_MAX_HELD / 10)
		offers &= ~ONSIDE_OFFER_NEWEST;
	return offers & (ONSIDE_OFFER_OLDEST | ONSIDE_OFFER_NEWEST);
}

static void
order_fresh(OnsideSender *sender, int64 now, int offers, OnsideOrder *order)
{
	bool		newest = (offers & ONSIDE_OFFER_OLDEST) == 0 ||
		((offers & ONSIDE_OFFER_NEWEST) != 0 && !sender->newest_was_last &&
		 sender->oldest_failures >= OLDEST_FAILURES &&
		 dlist_is_empty(&sender->untried_end));
	int64		from = partial_from(sender);

	order->kind = newest ? ONSIDE_SEND_NEWEST : ONSIDE_SEND_OLDEST;
	order->max_events = onside_pace_events(&sender->pace, newest);
	order->max_bytes = onside_pace_bytes(&sender->pace);
	order->full = !newest && from > now;
}

/* The settings may have been others when the piece was made. */
static void
fit(OnsideSender *sender, OnsidePiece *piece)
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
	cut_rest(sender, piece, n);
}

static void
order_again(OnsideSender *sender, OnsidePiece *piece, int64 now,
			OnsideOrder *order)
{
	fit(sender, piece);
	order->kind = ONSIDE_SEND_AGAIN;
	order->piece = piece;
	if (piece->timed_out && (piece->failures_since < SHORT_FAILURES ||
							 now - piece->first_failed_us < SHORT_TIME))
		order->timeout = onside_pace_short_timeout(&sender->pace);
	if (piece->refusals > 0)
		order->fresh_connection = true;
}

/*
 * After failures chances wait for an acceptance, which may never come if there is
 * nothing else to send.  Then one goes as a probe.
 */
bool
onside_sender_may_take_chance(const OnsideSender *sender, int offers)
{
	return (offers & ONSIDE_OFFER_CHANCE) != 0 &&
		(sender->pace.failures == 0 ||
		 (sender->in_flight == 0 && sender->held == 0 &&
		  fresh_offers(sender, offers) == 0)) &&
		sender->chances_in_flight < sender->chance_tries &&
		has_room(sender, true);
}

/* While failures are few: everything goes on. */
static bool
next_at_once(OnsideSender *sender, int64 now, int offers, OnsideOrder *order)
{
	OnsidePiece *piece = NULL;
	int			fresh = has_room(sender, false) ?
		fresh_offers(sender, offers) : 0;

	/* The log's end alone is looked at only if its next events fail. */
	if (sender->oldest_failures < OLDEST_FAILURES)
		fresh &= ONSIDE_OFFER_OLDEST;
	if (onside_sender_may_take_chance(sender, offers) &&
		sender->since_chance >= CHANCE_EVERY)
	{
		order->kind = ONSIDE_SEND_CHANCE;
		return true;
	}
	if (has_room(sender, true) && !(fresh != 0 && sender->again_was_last))
		piece = next_again(sender, now);
	if (piece != NULL)
		order_again(sender, piece, now, order);
	else if (fresh)
		order_fresh(sender, now, fresh, order);
	else if (onside_sender_may_take_chance(sender, offers))
		order->kind = ONSIDE_SEND_CHANCE;
	else
		return false;
	return true;
}

/* What has failed, to probe with: a lone event, each time another. */
static OnsidePiece *
probe_piece(OnsideSender *sender)
{
	OnsidePiece *piece = youngest_piece(sender);

	if (piece == NULL)
		return sender->lone.n > 0 ? sender->lone.pieces[0] : NULL;
	cut_rest(sender, piece, 1);
	return piece;
}

/* After many failures: never-sent ones alone, or probes after a common wait. */
static bool
next_in_wait(OnsideSender *sender, int64 now, int offers, OnsideOrder *order)
{
	OnsidePiece *piece;
	int			fresh = has_room(sender, false) ?
		fresh_offers(sender, offers) : 0;

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
		if (probe_is_in_flight(sender))
			return false;
		sender->probe_newest = sender->probe_failed = true;
	}
	order->probe = true;
	if (sender->probe_newest && fresh != 0)
	{
		order->kind = (fresh & ONSIDE_OFFER_NEWEST) != 0 ?
			ONSIDE_SEND_NEWEST : ONSIDE_SEND_OLDEST;
		return true;
	}
	sender->probe_newest = false;
	if (sender->probe_failed && has_room(sender, true) &&
		(piece = probe_piece(sender)) != NULL)
	{
		order_again(sender, piece, now, order);
		return true;
	}
	sender->probe_failed = false;
	return false;
}

bool
onside_sender_next(OnsideSender *sender, int64 now, int offers,
				   OnsideOrder *order)
{
	memset(order, 0, sizeof(*order));
	order->timeout = sender->pace.settings.request_timeout;
	if (now < sender->pace.not_before ||
		!(onside_pace_waits(&sender->pace) ?
		  next_in_wait(sender, now, offers, order) :
		  next_at_once(sender, now, offers, order)))
		return false;
	order->fresh_connection |= sender->fresh_connection || sender->renew;
	order->renew = sender->renew;
	return true;
}

int64
onside_sender_sent(OnsideSender *sender, const OnsideOrder *order,
				   const OnsideItem *items, int n, int bytes, int64 now)
{
	OnsideInFlight *request = find_request(sender, 0);
	OnsidePiece *piece = order->piece;

	Assert(request != NULL);
	if (order->kind == ONSIDE_SEND_AGAIN)
		take_out(sender, piece);
	else
	{
		piece = onside_piece_create(sender->context, items, n);
		piece->from_end = order->kind == ONSIDE_SEND_NEWEST;
		if (order->kind != ONSIDE_SEND_CHANCE)
			for (int i = 0; i < n; i++)
				piece->items[i].seq = ++sender->last_seq;
	}
	piece->tries++;

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

	if (order->fresh_connection)
		sender->fresh_connection = false;
	sender->renew = false;
	if (order->probe && order->kind == ONSIDE_SEND_AGAIN)
		sender->probe_failed = false;
	else if (order->probe)
		sender->probe_newest = false;
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

void
onside_sender_nothing(OnsideSender *sender, const OnsideOrder *order)
{
	if (order->kind == ONSIDE_SEND_CHANCE)
		sender->chance_tries = 0;
	else if (order->probe)
		sender->probe_newest = false;
}

/* Removes events that are no longer there from a piece that waits. */
static bool
withdraw(OnsideSender *sender, OnsidePiece *piece, const bool *gone)
{
	int			before = piece->nitems;

	count_held(sender, piece, -1);
	onside_piece_remove(piece, gone);
	sender->withdrawn += before - piece->nitems;
	if (piece->nitems > 0)
	{
		count_held(sender, piece, 1);
		return true;
	}
	take_out(sender, piece);
	onside_piece_free(piece);
	return false;
}

bool
onside_sender_gone(OnsideSender *sender, OnsideOrder *order, const bool *gone)
{
	if (withdraw(sender, order->piece, gone))
		return true;
	order->piece = NULL;
	if (order->probe)
		sender->probe_failed = true;
	return false;
}

/* ----------
 * What time decides
 * ----------
 */

typedef void (*PieceVisit) (OnsideSender *sender, OnsidePiece *piece, void *arg);

/*
 * Calls "visit", which may take the piece out, for each lone one: of a copy, since
 * the heap moves others about then.
 */
static void
visit_lone(OnsideSender *sender, PieceVisit visit, void *arg)
{
	int			n = sender->lone.n;
	OnsidePiece **pieces;

	if (n == 0)
		return;
	pieces = palloc(n * sizeof(OnsidePiece *));
	memcpy(pieces, sender->lone.pieces, n * sizeof(OnsidePiece *));
	for (int i = 0; i < n; i++)
		visit(sender, pieces[i], arg);
	pfree(pieces);
}

/* Calls "visit" for each piece; those that are in flight, too, if so wanted. */
static void
visit_pieces(OnsideSender *sender, bool in_flight, PieceVisit visit, void *arg)
{
	dlist_mutable_iter iter;

	for (int i = 0; in_flight && i < ONSIDE_SENDER_MAX_REQUESTS; i++)
		if (sender->requests[i].id != 0)
			visit(sender, sender->requests[i].piece, arg);
	dlist_foreach_modify(iter, &sender->untried)
		visit(sender, dlist_container(OnsidePiece, node, iter.cur), arg);
	dlist_foreach_modify(iter, &sender->untried_end)
		visit(sender, dlist_container(OnsidePiece, node, iter.cur), arg);
	visit_lone(sender, visit, arg);
}

typedef struct Review
{
	int64		now;
	OnsideLeaving *items;
	int			n;
	int			max;
	int64		next_us;
} Review;

/* Should it leave the log?  Its events are noted, or when to look again. */
static void
review_piece(OnsideSender *sender, OnsidePiece *piece, void *arg)
{
	Review	   *review = arg;
	int64		at = sender->ends ? review->now :
		piece->first_failed_us + ASIDE_AFTER;
	bool		waits = false;

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
			waits = true;
	}
	if (waits)
		review->next_us = Min(review->next_us,
							  Max(at, review->now + REVIEW_INTERVAL));
}

/* Likewise, when the process ends, of one that has not failed yet. */
static void
review_request(OnsideSender *sender, const OnsideInFlight *request,
			   Review *review)
{
	OnsidePiece *piece = request->piece;

	if (piece->first_failed != 0 || request->sent >= sender->accepted_sent ||
		review->now - request->sent_us < LONG_IN_FLIGHT)
		return;
	for (int i = 0; i < piece->nitems && review->n < review->max; i++)
	{
		if (piece->items[i].home != ONSIDE_IN_LOG)
			continue;
		review->items[review->n].item = &piece->items[i];
		review->items[review->n++].words = NULL;
	}
}

static void
judge_piece(OnsideSender *sender, OnsidePiece *piece, void *arg)
{
	Review	   *review = arg;

	count_failure(sender, piece);
	if (is_condemned(sender, piece, review->now))
	{
		onside_heap_remove(&sender->lone, piece);
		give_up(sender, piece);
	}
}

int
onside_sender_review(OnsideSender *sender, int64 now, OnsideLeaving *items,
					 int max)
{
	Review		review = {now, items, 0, max, PG_INT64_MAX};

	if (sender->judge_at_us == 0 || now < sender->judge_at_us)
		return 0;
	visit_lone(sender, judge_piece, &review);
	visit_pieces(sender, true, review_piece, &review);
	for (int i = 0; sender->ends && i < ONSIDE_SENDER_MAX_REQUESTS; i++)
		if (sender->requests[i].id != 0)
			review_request(sender, &sender->requests[i], &review);
	sender->judge_at_us = review.next_us == PG_INT64_MAX ? 0 : review.next_us;
	return review.n;
}

void
onside_sender_end(OnsideSender *sender, int64 now)
{
	sender->ends = true;
	sender->judge_at_us = now;
}

static void
count_aside(OnsideSender *sender, OnsidePiece *piece, void *arg)
{
	count_held(sender, piece, 1);
}

/* It is in the table, from where it comes again. */
static void
drop_one_too_many(OnsideSender *sender, OnsidePiece *piece, void *arg)
{
	if (sender->held_aside <= ONSIDE_SENDER_MAX_ASIDE ||
		piece->items[0].home != ONSIDE_IN_ASIDE)
		return;
	onside_heap_remove(&sender->lone, piece);
	drop(sender, piece);
	sender->dropped++;
}

void
onside_sender_is_aside(OnsideSender *sender)
{
	sender->held = sender->held_aside = 0;
	visit_pieces(sender, true, count_aside, NULL);
	visit_lone(sender, drop_one_too_many, NULL);
}

void
onside_sender_add_aside(OnsideSender *sender, const OnsideItem *item,
						int64 now)
{
	OnsidePiece *piece = onside_piece_create(sender->context, item, 1);

	piece->items[0].home = ONSIDE_IN_ASIDE;
	piece->first_failed = ++sender->tick;
	piece->first_failed_us = now;
	piece->due_us = now;
	count_held(sender, piece, 1);
	put_back(sender, piece);
}

int
onside_sender_aside_room(const OnsideSender *sender)
{
	return (int) Max(ONSIDE_SENDER_MAX_ASIDE / 2 - sender->held_aside, 0);
}

void
onside_sender_begin_chance(OnsideSender *sender)
{
	sender->chance_tries = CHANCE_TRIES;
}

/* ----------
 * Looking at all of it
 * ----------
 */

typedef struct Check
{
	OnsideIsThere is_there;
	void	   *arg;
} Check;

static void
check_piece(OnsideSender *sender, OnsidePiece *piece, void *arg)
{
	Check	   *check = arg;
	bool	   *gone = palloc(piece->nitems * sizeof(bool));
	bool		any = false;

	for (int i = 0; i < piece->nitems; i++)
		any |= gone[i] = !check->is_there(&piece->items[i], check->arg);
	if (any)
		(void) withdraw(sender, piece, gone);
	pfree(gone);
}

void
onside_sender_check(OnsideSender *sender, OnsideIsThere is_there, void *arg)
{
	Check		check = {is_there, arg};

	visit_pieces(sender, false, check_piece, &check);
}

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

	visit_pieces(sender, true, visit_items, &all);
}

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

	visit_pieces(sender, true, find_lowest, &lowest);
	return lowest - 1;
}

/* ----------
 * How things stand
 * ----------
 */

int64
onside_sender_wake_at(const OnsideSender *sender, int64 now, int offers)
{
	const OnsidePace *pace = &sender->pace;
	int64		at = sender->judge_at_us != 0 ? sender->judge_at_us :
		PG_INT64_MAX;

	if (now < pace->not_before)
		at = Min(at, pace->not_before);
	else if (onside_pace_waits(pace))
	{
		if (now < pace->wait_until &&
			(sender->held > 0 || fresh_offers(sender, offers) != 0))
			at = Min(at, pace->wait_until);
	}
	else
	{
		int64		from = partial_from(sender);

		if (sender->lone.n > 0 && has_room(sender, true))
			at = Min(at, sender->lone.pieces[0]->due_us);
		if (fresh_offers(sender, offers) != 0 && has_room(sender, false) &&
			from > now)
			at = Min(at, from);
	}
	return at == PG_INT64_MAX ? -1 : at;
}

int
onside_sender_would_take(const OnsideSender *sender, int64 now, bool *full)
{
	*full = !onside_pace_waits(&sender->pace) && partial_from(sender) > now;
	if (now < sender->pace.not_before || !has_room(sender, false) ||
		fresh_offers(sender, ONSIDE_OFFER_OLDEST) == 0 ||
		(onside_pace_only_probes(&sender->pace) &&
		 now < sender->pace.wait_until))
		return 0;
	return onside_pace_events(&sender->pace, false);
}

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
			break;
		case ONSIDE_RESPONSE_REFUSED:
		case ONSIDE_RESPONSE_TOO_LARGE:
			if (sender->refused_in_row >= REFUSED_IN_ROW ||
				onside_pace_waits(&sender->pace))
				return ONSIDE_TROUBLE_REFUSING;
			break;
		case ONSIDE_RESPONSE_THROTTLED:
			return ONSIDE_TROUBLE_WAITS;
		case ONSIDE_RESPONSE_UNAUTHORIZED:
			return ONSIDE_TROUBLE_UNAUTHORIZED;
		case ONSIDE_RESPONSE_MISCONFIGURED:
			return sender->failure_kind == ONSIDE_ANSWER_PROXY_REFUSED ?
				ONSIDE_TROUBLE_PROXY :
				sender->failure_kind == ONSIDE_ANSWER_NOT_TRUSTED ?
				ONSIDE_TROUBLE_CERTIFICATE : ONSIDE_TROUBLE_MISCONFIGURED;
		case ONSIDE_RESPONSE_RETRY:
			return ONSIDE_TROUBLE_FAILS;
	}
	return ONSIDE_TROUBLE_NONE;
}

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
