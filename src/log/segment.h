/*-------------------------------------------------------------------------
 *
 * segment.h
 *		The outbox's segments: moving on and emptying.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_SEGMENT_H
#define ONSIDE_SEGMENT_H

#include "postgres.h"

#include "log/delivery.h"
#include "log/window.h"

/*
 * Moves writing to another segment if it is time to and one is empty: changes
 * delivery's segment and the times that belong to it.  True if it has moved.
 * "drained" says that nothing is pending.  Needs a transaction.
 */
extern bool onside_segment_move_on(OnsideDelivery *delivery, bool drained);

/*
 * Empties the segments that are not written to, hold nothing but settled
 * events past their retention, and whose locks are free at once.  *delivery
 * has to be on disk by now, as have the dead letters up to its cursor:
 * emptying cannot be undone.  Needs a transaction with an active snapshot.
 * Returns how many were emptied, whose times in *delivery have changed.
 * *blocked says what keeps a segment that is settled from being emptied, or
 * is NULL.
 */
extern int	onside_segment_empty(OnsideDelivery *delivery,
								 const char **blocked);

/* What doctor() says about a segment. */
typedef struct OnsideSegmentReport
{
	uint64		bytes;			/* heap and TOAST */
	bool		unsettled;		/* it has events that the cursor does not cover */
	bool		retained;		/* and if not, retention keeps it */
	bool		waiting;		/* and if not, it is small and young */
} OnsideSegmentReport;

/* Looks at a segment with the active snapshot.  Keeps no lock. */
extern void onside_segment_report(int segment, const OnsideDelivery *delivery,
								  OnsideSegmentReport *report);

#endif							/* ONSIDE_SEGMENT_H */
