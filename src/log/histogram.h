/*-------------------------------------------------------------------------
 *
 * histogram.h
 *		How long things took, as counts in fixed buckets.
 *
 * The buckets grow by a quarter of a power of two, so that a quantile is off
 * by a quarter at most wherever it lies, from 64 microseconds to a day and a
 * half.  Their bounds never change: histograms of different servers, and of
 * one before and after an update, can be added up.
 *
 * Pure: no backend function, no clock, no allocation.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_HISTOGRAM_H
#define ONSIDE_HISTOGRAM_H

#include "postgres.h"

#include "port/pg_bitutils.h"

/* The first bucket holds what took up to 2^6 us, the last what took > 2^37. */
#define ONSIDE_HISTOGRAM_MIN_BITS	6
#define ONSIDE_HISTOGRAM_MAX_BITS	37
#define ONSIDE_HISTOGRAM_BUCKETS \
	((ONSIDE_HISTOGRAM_MAX_BITS - ONSIDE_HISTOGRAM_MIN_BITS) * 4 + 2)

/* All in microseconds. */
typedef struct OnsideHistogram
{
	int64		count;
	int64		sum;
	int64		max;
	int64		buckets[ONSIDE_HISTOGRAM_BUCKETS];
} OnsideHistogram;

/*
 * The bucket of a value: bucket i holds the values above the bound of i - 1
 * up to and including its own.  What is below 0 counts as 0.
 */
static inline int
onside_histogram_bucket(int64 us)
{
	uint64		v;
	int			bits;

	if (us <= (INT64CONST(1) << ONSIDE_HISTOGRAM_MIN_BITS))
		return 0;
	if (us > (INT64CONST(1) << ONSIDE_HISTOGRAM_MAX_BITS))
		return ONSIDE_HISTOGRAM_BUCKETS - 1;
	v = (uint64) us - 1;
	bits = pg_leftmost_one_pos64(v);
	return 1 + (bits - ONSIDE_HISTOGRAM_MIN_BITS) * 4 +
		(int) ((v >> (bits - 2)) & 3);
}

static inline void
onside_histogram_add(OnsideHistogram *histogram, int64 us)
{
	us = Max(us, 0);
	histogram->count++;
	histogram->sum += us;
	histogram->max = Max(histogram->max, us);
	histogram->buckets[onside_histogram_bucket(us)]++;
}

/* The upper bound of a bucket; PG_INT64_MAX for the last one. */
extern int64 onside_histogram_bound(int bucket);

/* Adds what is in another one. */
extern void onside_histogram_merge(OnsideHistogram *to,
								   const OnsideHistogram *from);

/*
 * The value that a fraction q (0 to 1) of all do not exceed, interpolated
 * within its bucket and never above the largest; 0 if there are none.
 */
extern double onside_histogram_quantile(const OnsideHistogram *histogram,
										double q);

#endif							/* ONSIDE_HISTOGRAM_H */
