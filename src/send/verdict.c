/*-------------------------------------------------------------------------
 *
 * verdict.c
 *		Is it the event that does not pass?
 *
 * A failure is about the endpoint or about what was sent, and only comparison
 * tells which: it is about what was sent if a request that was sent after the
 * failure is accepted.  So a lone event is given up after several failures,
 * over some time, after each of which other events were accepted; and only if
 * so many failures are unlikely by chance, given the share of requests that
 * fail.
 *
 * A refusal by a status that says so (400, 413) needs less; see
 * onside_verdict_is_refused().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "send/verdict.h"

/* A lone event is given up after so many failures, over so long, ... */
#define VERDICT_FAILURES	4
#define VERDICT_TIME		(30 * USECS_PER_SEC)
/*
 * ... and only if chance would make all of them with this probability at
 * most.
 */
#define VERDICT_CHANCE		0.001
/* So many are enough, whatever the share of requests that fail. */
#define VERDICT_MAX			20

/* A failure counts once, however much is accepted after it. */
void
onside_verdict_count_failure(OnsideSender *sender, OnsidePiece *piece)
{
	if (!piece->undecided || sender->accepted_sent <= piece->last_failed)
		return;
	piece->undecided = false;
	if (piece->against++ == 0)
		piece->against_since_us = piece->first_failed_us;
}

/* VERDICT_* above say how often, and over how long. */
bool
onside_verdict_is_condemned(const OnsideSender *sender,
							const OnsidePiece *piece, int64 now)
{
	double		share = onside_pace_failing_share(&sender->pace);
	double		chance = 1.0;

	if (piece->against >= VERDICT_MAX)
		return true;
	if (piece->against < VERDICT_FAILURES ||
		now - piece->against_since_us < VERDICT_TIME)
		return false;

	/* The probability that any event would fail so often. */
	for (int i = 0; i < piece->against; i++)
		chance *= share;
	return chance <= VERDICT_CHANCE;
}

/*
 * A lone event was refused by 400 or 413.  Two refusals on two connections are
 * enough if something was accepted in between.  If nothing was, only a few
 * events are given up: after these the endpoint seems to refuse everything.
 */
bool
onside_verdict_is_refused(OnsideSender *sender, OnsidePiece *piece,
						  const OnsideInFlight *request, int64 now)
{
	if (piece->refusals == 0)
	{
		piece->refusals = 1;
		piece->refused = sender->tick;
		piece->refused_us = now;
		return false;
	}

	/* This refusal came too soon, or by the same way as the first. */
	if (!request->fresh_connection ||
		now - piece->refused_us < ONSIDE_REFUSED_TWICE)
		return false;

	/* It is the second one.  Was anything accepted since the first? */
	piece->refusals = 2;
	if (sender->accepted > piece->refused)
		return true;
	if (sender->refused_in_row >= ONSIDE_REFUSED_IN_ROW)
		return false;
	sender->refused_in_row++;
	return true;
}
