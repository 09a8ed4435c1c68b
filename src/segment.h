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

#include "window.h"

/*
 * Which segment should be written to, given the present one?  Another if this
 * one is full (or if "move_on", and it holds anything) and one is empty.
 * Needs a transaction.
 */
extern int	onside_segment_choose(int current, bool move_on);

/*
 * Empties the segments other than "current" that hold nothing but settled
 * events past their retention, and whose lock is free at once.  Needs a
 * transaction that has written *settled to delivery_cursor.  Returns how many
 * were emptied.  *blocked says what keeps a segment that is settled from being
 * emptied, or is NULL.
 */
extern int	onside_segment_empty(int current, const OnsideCursor *settled,
								 const char **blocked);

/* What is to be said about a segment. */
typedef struct OnsideSegmentReport
{
	uint64		bytes;			/* heap and TOAST */
	bool		unsettled;		/* it has events that the cursor does not cover */
	bool		retained;		/* and if not, retention keeps it */
} OnsideSegmentReport;

/* Looks at a segment with the active snapshot.  Keeps no lock. */
extern void onside_segment_report(int segment, const OnsideCursor *settled,
								  OnsideSegmentReport *report);

#endif							/* ONSIDE_SEGMENT_H */
