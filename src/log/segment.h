/*-------------------------------------------------------------------------
 *
 * segment.h
 *		The outbox's segments: moving on and emptying.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_SEGMENT_H
#define ONSIDE_SEGMENT_H

#include "log/delivery.h"
#include "log/window.h"

/*
 * Moves writing to another segment if that is due and another segment is
 * empty: changes delivery->segment and its times.  Returns true if writing has
 * moved.  "drained" says that nothing is pending.  Needs a transaction.
 */
extern bool onside_segment_move_on(OnsideDelivery *delivery, bool drained);

/*
 * Empties the segments that are not written to, hold nothing but settled
 * events past their retention, and whose locks are free at once.  *delivery
 * and the dead letters up to its cursor have to be on disk by now: emptying
 * cannot be undone.  Needs a transaction with an active snapshot.  Returns how
 * many segments were emptied, and sets their times in *delivery to 0.
 * *blocked says what keeps a settled segment from being emptied; NULL if
 * nothing does.
 */
extern int	onside_segment_empty(OnsideDelivery *delivery,
								 const char **blocked);

/* What doctor() says about a segment. */
typedef struct OnsideSegmentReport
{
	uint64		bytes;			/* heap and TOAST */
	bool		unsettled;		/* the cursor does not cover all of it */
	bool		retained;		/* it is settled, and retention keeps it */
	bool		waiting;		/* neither, but it is too small and young */
} OnsideSegmentReport;

/*
 * Looks at a segment with the active snapshot.  Takes an AccessShareLock, and
 * releases it.
 */
extern void onside_segment_report(int segment, const OnsideDelivery *delivery,
								  OnsideSegmentReport *report);

#endif							/* ONSIDE_SEGMENT_H */
