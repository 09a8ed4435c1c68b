/*-------------------------------------------------------------------------
 *
 * review.h
 *		What time decides: verdicts, and what leaves the log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_REVIEW_H
#define ONSIDE_REVIEW_H

#include "postgres.h"

#include "send/sender_state.h"

/* An undecided event leaves the log after so long. */
#define ONSIDE_ASIDE_AFTER		(5 * USECS_PER_SEC)

/* Those that wait are reviewed no more often than this. */
#define ONSIDE_REVIEW_INTERVAL	(100 * ONSIDE_US_PER_MS)

/* An event that leaves the log. */
typedef struct OnsideLeaving
{
	OnsideItem *item;
	const OnsideWords *words;	/* of its last failure; NULL for none */
} OnsideLeaving;

/*
 * Decides what time alone decides: verdicts, and which events of the log are
 * to be set aside.  Puts the latter into items[0 .. max) and returns how many
 * they are.  The caller writes them, changes their home and key, and calls
 * onside_review_is_aside().
 */
extern int	onside_review_pieces(OnsideSender *sender, int64 now,
								 OnsideLeaving *items, int max);

/* The items whose home and key the caller has changed have left the log. */
extern void onside_review_is_aside(OnsideSender *sender);

/*
 * The process is about to end.  At the next review, everything leaves the log
 * that has failed while something else was accepted, and what is in flight for
 * long: a successor would begin there, and repeat all that was accepted since.
 */
extern void onside_review_end(OnsideSender *sender, int64 now);

/* Asks for a review at this time, if none is due before. */
extern void onside_review_at(OnsideSender *sender, int64 at);

/*
 * Adds an event of the table aside that is not known yet; it is tried alone.
 */
extern void onside_review_add_aside(OnsideSender *sender,
									const OnsideItem *item, int64 now);

/* How many events of the table aside there is room for. */
extern int	onside_review_aside_room(const OnsideSender *sender);

#endif							/* ONSIDE_REVIEW_H */
