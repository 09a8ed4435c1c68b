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

/*
 * Decides what time alone decides: verdicts, and which events of the log are to
 * be set aside.  The latter are put into items[0 .. max); returns how many.
 * They are to be written, and then onside_review_is_aside().
 */
typedef struct OnsideLeaving
{
	OnsideItem *item;
	const OnsideWords *words;	/* of its last failure; NULL for none */
} OnsideLeaving;

extern int	onside_review_pieces(OnsideSender *sender, int64 now,
								 OnsideLeaving *items, int max);

/* Items of which home and key were changed have left the log. */
extern void onside_review_is_aside(OnsideSender *sender);

/*
 * The process is about to end.  What has failed while something else was accepted
 * leaves the log at the next review, and so does what is in flight for long: else a
 * successor would begin there, and repeat all that was accepted since.
 */
extern void onside_review_end(OnsideSender *sender, int64 now);

/* They could not be written: they are to be reviewed again then. */
extern void onside_review_at(OnsideSender *sender, int64 at);

/* Events of aside that are not known yet, each alone. */
extern void onside_review_add_aside(OnsideSender *sender,
									const OnsideItem *item, int64 now);

/* How many of them there is room for. */
extern int	onside_review_aside_room(const OnsideSender *sender);

#endif							/* ONSIDE_REVIEW_H */
