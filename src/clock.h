/*-------------------------------------------------------------------------
 *
 * clock.h
 *		How long the worker may sleep.
 *
 * Times are measured by a clock that nobody sets.  If the wall clock is set
 * back by an hour, the worker must not sleep for an hour.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_CLOCK_H
#define ONSIDE_CLOCK_H

#include "postgres.h"

#include "portability/instr_time.h"
#include "utils/timestamp.h"

/* Microseconds since some moment. */
static inline int64
onside_clock(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now);
}

/*
 * A moment of this clock as a timestamp, for people and for after a restart.
 */
static inline TimestampTz
onside_clock_timestamp(int64 moment)
{
	return GetCurrentTimestamp() + (moment - onside_clock());
}

/*
 * Milliseconds, rounded up, from now until "interval" (ms) after "since"; 0 if
 * that time is over.
 */
static inline long
onside_ms_until(int64 since, long interval)
{
	int64		left = since + interval * INT64CONST(1000) - onside_clock();

	return left > 0 ? (long) ((left + 999) / 1000) : 0;
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
