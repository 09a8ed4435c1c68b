/*-------------------------------------------------------------------------
 *
 * clock.h
 *		How long the worker may sleep.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_CLOCK_H
#define ONSIDE_CLOCK_H

#include "postgres.h"

#include "utils/timestamp.h"

/* Milliseconds from now until "interval" (ms) after "since"; 0 if it is over. */
static inline long
onside_ms_until(TimestampTz since, long interval)
{
	return TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
										   TimestampTzPlusMilliseconds(since,
																	   interval));
}

/* The smaller of two timeouts, of which -1 means never. */
static inline long
onside_sooner(long a, long b)
{
	if (a < 0 || b < 0)
		return Max(a, b);
	return Min(a, b);
}

#endif							/* ONSIDE_CLOCK_H */
