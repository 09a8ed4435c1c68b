/*-------------------------------------------------------------------------
 *
 * stats.c
 *		The views "stats" and "stats_histogram", and stats_reset().
 *
 * The numbers are this database's slot's.  They are copied under its lock, so
 * those of one row belong together.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/float.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "log/shmem.h"

PG_FUNCTION_INFO_V1(onside_stats);
PG_FUNCTION_INFO_V1(onside_stats_histogram);
PG_FUNCTION_INFO_V1(onside_stats_reset);

/* Behind the counters, in the view: two histograms and the time of reset. */
#define HISTOGRAM_COLUMNS	6
#define STATS_COLUMNS		(ONSIDE_COUNTERS + 2 * HISTOGRAM_COLUMNS + 1)

/* Views have milliseconds, the counters microseconds. */
static double
to_ms(double us)
{
	return us / 1000.0;
}

/* Sets a histogram's columns; without any value, quantiles are NULL. */
static void
set_histogram(Datum *values, bool *nulls, const OnsideHistogram *histogram)
{
	static const double quantiles[] = {0.5, 0.9, 0.99};

	values[0] = Int64GetDatum(histogram->count);
	values[1] = Float8GetDatum(to_ms((double) histogram->sum));
	for (int i = 0; i < 3; i++)
	{
		values[2 + i] =
			Float8GetDatum(to_ms(onside_histogram_quantile(histogram,
														quantiles[i])));
		nulls[2 + i] = histogram->count == 0;
	}
	values[5] = Float8GetDatum(to_ms((double) histogram->max));
	nulls[5] = histogram->count == 0;
}

/* Copies this database's statistics; false if there are none. */
static bool
my_stats(OnsideStats *stats)
{
	OnsideSlot *slot = onside_slot_find(MyDatabaseId);

	if (slot == NULL)
		return false;
	LWLockAcquire(slot->lock, LW_SHARED);
	onside_slot_read_stats(slot, stats);
	LWLockRelease(slot->lock);
	return true;
}

/* delivery_stats() */
Datum
onside_stats(PG_FUNCTION_ARGS)
{
	Datum		values[STATS_COLUMNS] = {0};
	bool		nulls[STATS_COLUMNS] = {0};
	OnsideStats stats;
	TupleDesc	tupdesc;

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	if (!my_stats(&stats))
		memset(nulls, true, sizeof(nulls));
	else
	{
		for (int i = 0; i < ONSIDE_COUNTERS; i++)
			values[i] = Int64GetDatum(stats.counters[i]);
		set_histogram(values + ONSIDE_COUNTERS, nulls + ONSIDE_COUNTERS,
					  &stats.delivery);
		set_histogram(values + ONSIDE_COUNTERS + HISTOGRAM_COLUMNS,
					  nulls + ONSIDE_COUNTERS + HISTOGRAM_COLUMNS,
					  &stats.request);
		values[STATS_COLUMNS - 1] = TimestampTzGetDatum(stats.reset_at);
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc),
													  values, nulls)));
}

/*
 * A row for each bucket, with the number of all values up to its bound, as Prometheus
 * wants it.
 */
static void
put_histogram(ReturnSetInfo *rsinfo, const char *metric,
			  const OnsideHistogram *histogram)
{
	int64		below = 0;

	for (int i = 0; i < ONSIDE_HISTOGRAM_BUCKETS; i++)
	{
		int64		bound = onside_histogram_bound(i);
		Datum		values[3];
		bool		nulls[3] = {0};

		below += histogram->buckets[i];
		values[0] = CStringGetTextDatum(metric);
		values[1] = Float8GetDatum(bound == PG_INT64_MAX ?
								   get_float8_infinity() : to_ms((double) bound));
		values[2] = Int64GetDatum(below);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values,
							 nulls);
	}
}

/* delivery_histogram() */
Datum
onside_stats_histogram(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	OnsideStats stats;

	InitMaterializedSRF(fcinfo, 0);
	if (my_stats(&stats))
	{
		put_histogram(rsinfo, "delivery", &stats.delivery);
		put_histogram(rsinfo, "request", &stats.request);
	}
	return (Datum) 0;
}

/* stats_reset() */
Datum
onside_stats_reset(PG_FUNCTION_ARGS)
{
	OnsideSlot *slot = onside_slot_find(MyDatabaseId);

	if (slot != NULL)
	{
		LWLockAcquire(slot->lock, LW_EXCLUSIVE);
		onside_slot_clear_stats(slot);
		LWLockRelease(slot->lock);
	}
	PG_RETURN_VOID();
}
