/*-------------------------------------------------------------------------
 *
 * bisect.c
 *	  Finds the bad events of a refused batch.
 *
 * This is group testing by binary splitting, from left to right: all before
 * "pos" is settled, and of the rest only one thing is ever remembered, how
 * far a range reaches that starts at pos and must hold a bad event.  Hence no
 * tree and no stack.
 *
 * - Nothing is known at pos: send the next group of events.  Accepted: the
 *	 next is twice as large.  Refused: the range is suspect.
 * - [pos, suspect_end) is suspect: send its left half.  Accepted: the bad one
 *	 is in the right half, which is therefore not sent whole but split in its
 *	 turn.  Refused: the left half is what is suspect, and of the right half
 *	 nothing is known any more.
 * - One event is left of the suspect range: send it alone.
 *
 * How many good events lie between two bad ones tells how large the next
 * group should be: too large, and it is refused and has to be split all the
 * way down; too small, and good events are sent one by one.
 *
 * No event is declared bad by inference.  It takes a refusal of the event
 * alone, beside the one of the whole batch, so that a 400 which passes costs
 * requests and no event: if a suspect range is accepted piece by piece, all
 * of it is delivered.
 *
 * As long as nothing has been accepted, a refusal may be about the endpoint
 * (another version of the contract, another product's URL) instead of about
 * the event.  So after the first event that is refused alone, others are
 * tried alone, spread over the batch since neighbours tend to share their
 * fault.  The first to be accepted lets the search go on as above, with those
 * that were refused until then sent once more when their turn comes.  If
 * ONSIDE_BISECT_REFUSING_AFTER of them are refused, the verdict is
 * "refusing".  Halving a batch of 1000 down to the first lone event takes 9
 * requests, the other lone events 9: with the batch itself, 19.
 *
 * Requests, with the one of the whole batch, to settle 1000 events k of which
 * are bad: 3000 random placements of each k, the worst that hill climbing
 * found from structured ones, and 2 k log2(1000 / k) + 20 to compare with.
 *
 *		k		mean	most	worst	to compare
 *		1		  13	  22	   22	   40
 *		2		  24	  32	   33	   56
 *		5		  53	  61	   67	   96
 *		10		  94	 103	  117	  153
 *		20		 166	 179	  200	  246
 *		50		 341	 363	  404	  452
 *		100		 569	 598	  704	  684
 *		200		 888	 928	 1108	  949
 *		300		1026	1044	 1095	 1062
 *		500		1026	1026	 1060	 1020
 *
 * Further on the comparison asks for what cannot be: from k = 529 on it is
 * below log2 of the number of placements, which no search by yes and no can
 * beat, and from k = 715 on below the k lone refusals alone.  What holds there
 * is about one request an event.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "send/bisect.h"

/*
 * The sizes that a group can have.  The smallest come twice, so that two of
 * them in a row have to be accepted before a larger one is tried: among many
 * bad events a good one does not mean much.
 */
static const int group_sizes[] = {
	1, 1, 2, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024
};

#define MAX_LEVEL	((int) lengthof(group_sizes) - 1)

/*
 * Groups have cost more requests than lone events would have, by so many, and
 * at least one event in so many is bad: send them alone for a while.
 */
#define OVERDRAWN_REQUESTS	24
#define OVERDRAWN_DENSITY	4

void
onside_bisect_init(OnsideBisect *bisect, int n, OnsideBisectAnswer answer,
				   bool trusted)
{
	memset(bisect, 0, sizeof(*bisect));
	bisect->n = Max(0, Min(n, ONSIDE_BISECT_MAX_EVENTS));
	bisect->level = MAX_LEVEL;
	bisect->cap = bisect->n;
	bisect->trusted = trusted;
	if (answer == ONSIDE_BISECT_REFUSED)
		bisect->suspect_end = bisect->n;
	else if (answer == ONSIDE_BISECT_TOO_LARGE)
		bisect->cap = Max(bisect->n / 2, 1);
}

void
onside_bisect_distrust(OnsideBisect *bisect)
{
	bisect->trusted = false;
	bisect->accepting = false;
	bisect->refusing = false;
	bisect->lone_refusals = 0;
	bisect->lone_too_large = 0;
}

void
onside_bisect_too_large_before(OnsideBisect *bisect, int events)
{
	bisect->lone_too_large = events;
}

/*
 * An event to try out of turn, or -1 if each has been refused alone.  The
 * places follow each other like the bits of a counter reversed: the middle,
 * the quarters, the eighths, ...
 */
static int
next_probe(const OnsideBisect *bisect)
{
	unsigned int bits = (unsigned int) bisect->probes + 1;
	double		place = 0.0;
	double		part = 0.5;
	int			start;
	int			i;

	for (; bits > 0; bits >>= 1, part /= 2)
	{
		if (bits & 1)
			place += part;
	}
	start = (int) (place * bisect->n);

	for (i = 0; i < bisect->n; i++)
	{
		int			event = (start + i) % bisect->n;

		if (bisect->verdict[event] == ONSIDE_VERDICT_UNKNOWN)
			return event;
	}
	return -1;
}

/* Nothing is accepted, and at least one event has been refused alone. */
static bool
is_doubtful(const OnsideBisect *bisect)
{
	return !bisect->accepting && bisect->lone_refusals > 0;
}

static int
group_size(const OnsideBisect *bisect)
{
	if (bisect->requests > bisect->pos + OVERDRAWN_REQUESTS &&
		bisect->bad * OVERDRAWN_DENSITY > bisect->pos)
		return 1;
	return group_sizes[bisect->level];
}


static void
hand_out(OnsideBisect *bisect, int first, int count)
{
	bisect->range_first = first;
	bisect->range_count = count;
}

/* The first event from pos on that is not settled becomes pos. */
static void
advance(OnsideBisect *bisect)
{
	while (bisect->pos < bisect->n &&
		   (bisect->verdict[bisect->pos] == ONSIDE_VERDICT_DELIVERED ||
			bisect->verdict[bisect->pos] == ONSIDE_VERDICT_BAD))
		bisect->pos++;
}

bool
onside_bisect_next(OnsideBisect *bisect, int *first, int *count)
{
	if (bisect->range_count == 0)
	{
		int			probe = -1;

		advance(bisect);
		if (onside_bisect_done(bisect))
			return false;

		if (is_doubtful(bisect))
			probe = next_probe(bisect);

		if (probe >= 0)
			hand_out(bisect, probe, 1);
		else
		{
			int			size;
			int			run = 0;

			if (bisect->suspect_end > bisect->pos)
				size = (bisect->suspect_end - bisect->pos) / 2;
			else
				size = group_size(bisect);
			size = Min(size, Min(bisect->cap, bisect->n - bisect->pos));

			/* what was tried out of turn bounds a range */
			while (run < size &&
				   bisect->verdict[bisect->pos + run] == ONSIDE_VERDICT_UNKNOWN)
				run++;
			hand_out(bisect, bisect->pos, Max(run, 1));
		}
	}

	*first = bisect->range_first;
	*count = bisect->range_count;
	return true;
}

/*
 * The first sign that events are accepted.  What was refused alone before it
 * is in doubt; after a long time of refusing it is as good as unknown, and
 * more likely good than not.
 */
static void
begin_accepting(OnsideBisect *bisect)
{
	OnsideBisectVerdict again = bisect->refusing ?
		ONSIDE_VERDICT_UNKNOWN : ONSIDE_VERDICT_DOUBTED;
	int			i;

	if (bisect->refusing)
		bisect->level = MAX_LEVEL;
	if (bisect->lone_refusals > 0)
	{
		for (i = 0; i < bisect->n; i++)
		{
			if (bisect->verdict[i] == ONSIDE_VERDICT_BAD)
				bisect->verdict[i] = again;
		}
		bisect->pos = 0;
		bisect->suspect_end = 0;
		bisect->run_start = 0;
		bisect->bad = 0;
	}
	bisect->accepting = true;
	bisect->refusing = false;
	bisect->lone_refusals = 0;
}

/*
 * A bad event was found at pos, so many good ones after the last: the next
 * group is about half way, in doublings, between what was tried and what
 * would have been right.
 */
static void
adapt_level(OnsideBisect *bisect)
{
	int			right_size = bisect->pos - bisect->run_start + 1;
	int			right = 0;

	while (right < MAX_LEVEL && group_sizes[right + 1] <= right_size)
		right++;

	if (right < bisect->level)
		bisect->level = (bisect->level + right) / 2;
	else
		bisect->level = Max(bisect->level - 1, 0);

	bisect->run_start = bisect->pos + 1;
	bisect->bad++;
}

/* Of everything that was refused, nothing is known any more. */
static void
begin_refusing(OnsideBisect *bisect)
{
	for (int i = 0; i < bisect->n; i++)
		if (bisect->verdict[i] != ONSIDE_VERDICT_DELIVERED)
			bisect->verdict[i] = ONSIDE_VERDICT_UNKNOWN;
	bisect->pos = 0;
	bisect->run_start = 0;
	bisect->bad = 0;
	bisect->refusing = true;
}

static void
on_refused_alone(OnsideBisect *bisect, int event)
{
	bisect->verdict[event] = ONSIDE_VERDICT_BAD;
	if (event == bisect->pos)
	{
		bisect->suspect_end = 0;
		adapt_level(bisect);
	}
	if (bisect->accepting)
		return;

	/* this one was the first, or one that was tried out of turn */
	if (bisect->lone_refusals > 0)
		bisect->probes++;
	bisect->lone_refusals++;

	if (next_probe(bisect) < 0)
	{
		/* every event is refused alone */
		if (bisect->trusted && !bisect->refusing)
			return;
		begin_refusing(bisect);
	}
	else if (bisect->lone_refusals >= ONSIDE_BISECT_REFUSING_AFTER)
		bisect->refusing = true;
}

/*
 * The event alone is too large, which no other event has to do with: the
 * ranges that were too large may have been so because of it.  But if one after
 * the other is too large and none is accepted, it is not the events.
 */
static void
on_too_large_alone(OnsideBisect *bisect, int event)
{
	bisect->verdict[event] = ONSIDE_VERDICT_BAD;
	if (event == bisect->pos)
		bisect->suspect_end = 0;
	bisect->cap = bisect->n;

	if (!bisect->accepting &&
		++bisect->lone_too_large >= ONSIDE_BISECT_REFUSING_AFTER)
	{
		bisect->lone_refusals = bisect->lone_too_large;
		begin_refusing(bisect);
	}
}

void
onside_bisect_answer(OnsideBisect *bisect, OnsideBisectAnswer answer)
{
	int			first = bisect->range_first;
	int			count = bisect->range_count;

	if (count == 0)
		return;
	bisect->range_count = 0;
	bisect->requests++;

	if (answer == ONSIDE_BISECT_ACCEPTED)
	{
		bool		in_turn = first == bisect->pos;
		bool		was_suspect = bisect->suspect_end > bisect->pos;

		memset(bisect->verdict + first, ONSIDE_VERDICT_DELIVERED, count);
		if (in_turn && !was_suspect && count == group_sizes[bisect->level])
			bisect->level = Min(bisect->level + 1, MAX_LEVEL);
		if (!bisect->accepting)
			begin_accepting(bisect);
		advance(bisect);
	}
	else if (count == 1 && answer == ONSIDE_BISECT_TOO_LARGE)
		on_too_large_alone(bisect, first);
	else if (count == 1)
		on_refused_alone(bisect, first);
	else if (answer == ONSIDE_BISECT_TOO_LARGE)
		bisect->cap = Max(count / 2, 1);
	else if (first == bisect->pos)
		bisect->suspect_end = first + count;
}

void
onside_bisect_accepted_elsewhere(OnsideBisect *bisect)
{
	if (bisect->accepting)
		return;
	begin_accepting(bisect);
}

bool
onside_bisect_refusing(const OnsideBisect *bisect)
{
	return bisect->refusing;
}

bool
onside_bisect_done(const OnsideBisect *bisect)
{
	int			i;

	if (bisect->refusing)
		return false;
	for (i = bisect->pos; i < bisect->n; i++)
	{
		if (bisect->verdict[i] == ONSIDE_VERDICT_UNKNOWN ||
			bisect->verdict[i] == ONSIDE_VERDICT_DOUBTED)
			return false;
	}
	return true;
}

OnsideBisectVerdict
onside_bisect_verdict(const OnsideBisect *bisect, int event)
{
	if (event < 0 || event >= bisect->n)
		return ONSIDE_VERDICT_UNKNOWN;
	return (OnsideBisectVerdict) bisect->verdict[event];
}

void
onside_contract_init(OnsideContract *contract)
{
	memset(contract, 0, sizeof(*contract));
}

void
onside_contract_on_accepted(OnsideContract *contract)
{
	contract->accepted = true;
	contract->lone_refusals = 0;
	contract->lone_too_large = 0;
}

void
onside_contract_on_refused_alone(OnsideContract *contract)
{
	contract->lone_refusals = Min(contract->lone_refusals + 1,
								  ONSIDE_BISECT_REFUSING_AFTER);
}

void
onside_contract_on_too_large_alone(OnsideContract *contract)
{
	contract->lone_too_large = Min(contract->lone_too_large + 1,
								   ONSIDE_BISECT_REFUSING_AFTER);
}

bool
onside_contract_trusted(const OnsideContract *contract)
{
	return contract->accepted &&
		contract->lone_refusals < ONSIDE_BISECT_REFUSING_AFTER;
}
