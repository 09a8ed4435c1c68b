/*-------------------------------------------------------------------------
 *
 * counters.h
 *		What delivery counts: the numbers behind the view "stats".
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_COUNTERS_H
#define ONSIDE_COUNTERS_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "log/histogram.h"

/*
 * The counters, in the order of the view's columns.  The first two count in
 * words of the slot that backends touch; here is what to add to those.
 */
typedef enum OnsideCounter
{
	ONSIDE_COUNT_RECORDED,
	ONSIDE_COUNT_SKIPPED,
	ONSIDE_COUNT_DELIVERED,
	ONSIDE_COUNT_DEAD_LETTERED,
	ONSIDE_COUNT_EVENTS_SENT,
	ONSIDE_COUNT_BYTES_SENT,
	ONSIDE_COUNT_CONNECTIONS,
	ONSIDE_COUNT_REQUESTS,
	ONSIDE_COUNT_RETRIES,
	ONSIDE_COUNT_BACK_OFFS,

	/* how requests ended: each in exactly one */
	ONSIDE_COUNT_204,
	ONSIDE_COUNT_OTHER_2XX,
	ONSIDE_COUNT_3XX,
	ONSIDE_COUNT_400,
	ONSIDE_COUNT_401_403,
	ONSIDE_COUNT_408_425,
	ONSIDE_COUNT_413,
	ONSIDE_COUNT_429,
	ONSIDE_COUNT_OTHER_4XX,
	ONSIDE_COUNT_503,
	ONSIDE_COUNT_OTHER_5XX,
	ONSIDE_COUNT_TIMEOUTS,
	ONSIDE_COUNT_CONNECTION_FAILURES,
	ONSIDE_COUNT_MALFORMED,
	ONSIDE_COUNTERS
} OnsideCounter;

/* In a slot, guarded by its lock; and, not yet added there, in its worker. */
typedef struct OnsideStats
{
	int64		counters[ONSIDE_COUNTERS];
	OnsideHistogram delivery;	/* events: recorded to acknowledged */
	OnsideHistogram request;	/* requests that were answered */
	TimestampTz reset_at;
} OnsideStats;

#endif							/* ONSIDE_COUNTERS_H */
