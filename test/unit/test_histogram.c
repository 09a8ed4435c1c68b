/*-------------------------------------------------------------------------
 *
 * test_histogram.c
 *	  The histogram of the statistics, without a server.
 *
 * The promise held here: every value is in the bucket whose bounds are around
 * it, buckets are a quarter of a power of two wide, and a quantile is off by no
 * more than its bucket's width.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <stdio.h>

#include "log/histogram.h"

/* postgres.h points it at the server's own */
#undef printf

static int	passed = 0;
static int	failed = 0;

static void
ok(bool condition, const char *what)
{
	if (condition)
		passed++;
	else
		failed++;
	printf("%sok %d - %s\n", condition ? "" : "not ", passed + failed, what);
}

/* Is v above the bound below its bucket and not above its own? */
static bool
in_its_bucket(int64 v)
{
	int			i = onside_histogram_bucket(v);

	return i >= 0 && i < ONSIDE_HISTOGRAM_BUCKETS &&
		v <= onside_histogram_bound(i) &&
		(i == 0 || v > onside_histogram_bound(i - 1));
}

static void
test_buckets(void)
{
	bool		good = true;
	bool		narrow = true;

	for (int64 v = 0; v < 2000000; v++)
		good &= in_its_bucket(v);
	ok(good, "every value up to two seconds is in its bucket");

	for (int i = 0; i < ONSIDE_HISTOGRAM_BUCKETS - 1; i++)
	{
		int64		bound = onside_histogram_bound(i);

		good &= onside_histogram_bucket(bound) == i &&
			onside_histogram_bucket(bound + 1) == i + 1;
		if (i > 0)
			narrow &= bound * 4 <= onside_histogram_bound(i - 1) * 5;
	}
	ok(good, "bounds are inclusive and the next value is in the next bucket");
	ok(narrow, "no bucket is wider than a quarter of its lower bound");
	ok(onside_histogram_bound(0) == 64, "the first ends at 64 us");
	ok(onside_histogram_bound(ONSIDE_HISTOGRAM_BUCKETS - 2) ==
	   INT64CONST(1) << 37, "the last but one at a day and a half");
	ok(onside_histogram_bound(ONSIDE_HISTOGRAM_BUCKETS - 1) == PG_INT64_MAX,
	   "the last one never");
	ok(onside_histogram_bucket(PG_INT64_MAX) == ONSIDE_HISTOGRAM_BUCKETS - 1 &&
	   onside_histogram_bucket(PG_INT64_MIN) == 0,
	   "the extremes have buckets");
}

static bool
about(double value, double wanted)
{
	return value >= wanted * 0.8 && value <= wanted * 1.25;
}

static void
test_quantiles(void)
{
	static OnsideHistogram h;
	static OnsideHistogram other;
	int64		n = 0;

	ok(onside_histogram_quantile(&h, 0.5) == 0, "nothing has no quantile");

	onside_histogram_add(&h, 300000);
	ok(h.count == 1 && h.sum == 300000 && h.max == 300000, "one value");
	ok(about(onside_histogram_quantile(&h, 0.5), 300000) &&
	   onside_histogram_quantile(&h, 0.99) <= 300000,
	   "is every quantile, and none is above it");
	onside_histogram_add(&h, -5);
	ok(h.count == 2 && h.sum == 300000 && h.buckets[0] == 1,
	   "what is below zero is zero");

	memset(&h, 0, sizeof(h));
	for (int64 v = 1; v <= 100000; v++)
		onside_histogram_add(v % 2 == 0 ? &h : &other, v * 10);
	onside_histogram_merge(&h, &other);
	ok(h.count == 100000 && h.max == 1000000 &&
	   h.sum == INT64CONST(50000500000), "merged: count, maximum and sum");
	for (int i = 0; i < ONSIDE_HISTOGRAM_BUCKETS; i++)
		n += h.buckets[i];
	ok(n == h.count, "the buckets have all of them");
	ok(about(onside_histogram_quantile(&h, 0.5), 500000), "p50");
	ok(about(onside_histogram_quantile(&h, 0.9), 900000), "p90");
	ok(about(onside_histogram_quantile(&h, 0.99), 990000), "p99");
	ok(onside_histogram_quantile(&h, 1) == 1000000, "p100 is the maximum");
	ok(onside_histogram_quantile(&h, 0) <= 64, "p0 is in the first bucket");

	memset(&h, 0, sizeof(h));
	onside_histogram_add(&h, INT64CONST(1) << 40);
	ok(onside_histogram_quantile(&h, 0.5) <= (double) (INT64CONST(1) << 40) &&
	   onside_histogram_quantile(&h, 0.5) > (double) (INT64CONST(1) << 36),
	   "what is off the scale is between its end and the maximum");
}

int
main(void)
{
	test_buckets();
	test_quantiles();

	printf("1..%d\n", passed + failed);
	printf("%d passed, %d failed\n", passed, failed);
	return failed == 0 ? 0 : 1;
}
