/*-------------------------------------------------------------------------
 *
 * ranges.h
 *		Which transactions' events there are to read.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_RANGES_H
#define ONSIDE_RANGES_H

#include "log/snapshot.h"

/*
 * A range of the log: one transaction from some id on, or several whole ones.
 */
typedef struct OnsideRange
{
	FullTransactionId first;
	FullTransactionId last;		/* inclusive */
	int64		after_id;		/* counts if first = last */
} OnsideRange;

typedef struct OnsideRanges
{
	int			n;
	OnsideRange *range;
} OnsideRanges;

/*
 * Everything that "seen" includes and the cursor does not cover, in ascending
 * order.  There is room for one more range.  If "seen" is the cursor's window,
 * that is what is left to read of the window.
 */
extern void onside_ranges_pending(const OnsideCursor *cursor,
								  const OnsideSnapshot *seen,
								  OnsideRanges *ranges);

/*
 * Every transaction that "seen" includes, and those that are younger than all
 * that the server knows.
 */
extern void onside_ranges_all(const OnsideSnapshot *seen, OnsideRanges *ranges);

/* Adds a range, unless last precedes first. */
extern void onside_ranges_add(OnsideRanges *ranges, FullTransactionId first,
							  FullTransactionId last, int64 after_id);

/* Adds the transactions that are younger than all that "seen" knows. */
extern void onside_ranges_add_beyond(OnsideRanges *ranges,
									 const OnsideSnapshot *seen);

#endif							/* ONSIDE_RANGES_H */
