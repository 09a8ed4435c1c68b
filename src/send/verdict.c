/*-------------------------------------------------------------------------
 *
 * verdict.c
 *		Is it the event that does not pass?
 *
 * An answer is about the endpoint or about what was sent, and only comparison tells:
 * a failure is about what was sent if a request that was sent after it is accepted.
 * So a lone event is given up after several failures that others have survived, over
 * some time, and only if as many failures would be unlikely by chance, given the share
 * of all requests that fail.
 *
 * A refusal by a status that means it (400, 413) needs less; see
 * onside_verdict_is_refused().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "send/verdict.h"

/* A lone event is given up after so many failures, over so long, ... */
#define VERDICT_FAILURES	4
#define VERDICT_TIME		(30 * USECS_PER_SEC)
/* ... and only if chance would make all of them with this probability at most. */
#define VERDICT_CHANCE		0.001
/* So many are enough, whatever the share of requests that fail. */
#define VERDICT_MAX			20

/* The last failure counts if something was accepted that was sent after it. */
void
onside_verdict_count_failure(OnsideSender *sender, OnsidePiece *piece)
{
	if (!piece->undecided || sender->accepted_sent <= piece->last_failed)
		return;
	piece->undecided = false;
	if (piece->against++ == 0)
		piece->against_since_us = piece->first_failed_us;
}

/* Is it the event that does not pass? */
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
	for (int i = 0; i < piece->against; i++)
		chance *= share;
	return chance <= VERDICT_CHANCE;
}

/*
 * A lone event was refused by 400 or 413.  Twice is enough,
 * on two connections, if something was accepted in between; if nothing was, a
 * few events are given up, and then it is the endpoint that refuses everything.
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
	if (!request->fresh_connection ||
		now - piece->refused_us < ONSIDE_REFUSED_TWICE)
		return false;
	piece->refusals = 2;
	if (sender->accepted > piece->refused)
		return true;
	if (sender->refused_in_row >= ONSIDE_REFUSED_IN_ROW)
		return false;
	sender->refused_in_row++;
	return true;
}
