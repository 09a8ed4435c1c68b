/*-------------------------------------------------------------------------
 *
 * histogram.c
 *		How long things took, as counts in fixed buckets.
 *
 * Pure; histogram.h says which buckets there are and why.  The worker counts
 * into a histogram of its own, and adds it to the slot's under the slot's
 * lock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "log/histogram.h"

int64
onside_histogram_bound(int bucket)
{
	int			bits;
	int			quarter;

	if (bucket <= 0)
		return INT64CONST(1) << ONSIDE_HISTOGRAM_MIN_BITS;
	if (bucket >= ONSIDE_HISTOGRAM_BUCKETS - 1)
		return PG_INT64_MAX;
	bits = ONSIDE_HISTOGRAM_MIN_BITS + (bucket - 1) / 4;
	quarter = (bucket - 1) % 4 + 1;
	return (INT64CONST(1) << bits) + quarter * (INT64CONST(1) << (bits - 2));
}

void
onside_histogram_merge(OnsideHistogram *to, const OnsideHistogram *from)
{
	to->count += from->count;
	to->sum += from->sum;
	to->max = Max(to->max, from->max);
	for (int i = 0; i < ONSIDE_HISTOGRAM_BUCKETS; i++)
		to->buckets[i] += from->buckets[i];
}

/*
 * Finds the bucket in which the quantile lies, and gives its upper end, but
 * never more than the greatest value that was counted.
 */
double
onside_histogram_quantile(const OnsideHistogram *histogram, double q)
{
	double		rank = ceil(q * (double) histogram->count);
	int64		below = 0;

	for (int i = 0; i < ONSIDE_HISTOGRAM_BUCKETS; i++)
	{
		int64		n = histogram->buckets[i];

		if (n > 0 && (double) (below + n) >= rank)
		{
			double		lower = i == 0 ? 0 : (double) onside_histogram_bound(i - 1);
			double		upper = i == ONSIDE_HISTOGRAM_BUCKETS - 1 ?
				(double) histogram->max : (double) onside_histogram_bound(i);
			double		value = lower + (upper - lower) *
				(rank - (double) below) / (double) n;

			return Min(Max(value, 0), (double) histogram->max);
		}
		below += n;
	}
	return 0;
}
