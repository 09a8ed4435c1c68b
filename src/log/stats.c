/*-------------------------------------------------------------------------
 *
 * stats.c
 *		What delivery has done so far: the views "stats" and "stats_histogram".
 *
 * The worker counts in memory of its own, without a lock, and adds what it has
 * counted to its slot once in a turn of its loop, under the slot's lock.  So an
 * event costs a few instructions, whoever reads sees numbers that belong
 * together, and stats_reset() can zero them from any session.
 *
 * Statistics are kept as those of PostgreSQL are: in shared memory, written to
 * a file in pg_stat when the server is shut down, and read and removed when it
 * starts.  A row in a table would have been the alternative.  It would cost WAL
 * and, while somebody holds a snapshot, dead versions; CREATE DATABASE ...
 * TEMPLATE would copy it, and a standby would inherit numbers of requests that
 * another server made.  The price is that a crash begins them anew, which
 * stats_reset shows.  They end with the slot: with the database, or the
 * extension.
 *
 * A slot that has statistics in the file is taken when the server starts, and
 * wants a worker, as it did when the server was shut down.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <unistd.h>

#include "access/htup_details.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/float.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "log/shmem.h"
#include "log/stats.h"
#include "settings.h"

PG_FUNCTION_INFO_V1(onside_stats);
PG_FUNCTION_INFO_V1(onside_stats_histogram);
PG_FUNCTION_INFO_V1(onside_stats_reset);

#define STATS_FILE		PGSTAT_STAT_PERMANENT_DIRECTORY "/onside_attribution.stat"
#define STATS_FILE_TMP	STATS_FILE ".tmp"
#define STATS_MAGIC		0x4f415331	/* to change with SavedStats */

/* What the file holds for each database, behind magic number and count. */
typedef struct SavedStats
{
	Oid			database;
	OnsideStats stats;
} SavedStats;

/* Behind the counters, in the view: two histograms and the time of reset. */
#define HISTOGRAM_COLUMNS	6
#define STATS_COLUMNS		(ONSIDE_COUNTERS + 2 * HISTOGRAM_COLUMNS + 1)

OnsideStats onside_stats_unpublished;

/* ----------
 * Counting
 * ----------
 */

OnsideCounter
onside_stats_of_status(int http_status)
{
	switch (http_status)
	{
		case 204:
			return ONSIDE_COUNT_204;
		case 400:
			return ONSIDE_COUNT_400;
		case 401:
		case 403:
			return ONSIDE_COUNT_401_403;
		case 408:
		case 425:
			return ONSIDE_COUNT_408_425;
		case 413:
			return ONSIDE_COUNT_413;
		case 429:
			return ONSIDE_COUNT_429;
		case 503:
			return ONSIDE_COUNT_503;
	}
	switch (http_status / 100)
	{
		case 2:
			return ONSIDE_COUNT_OTHER_2XX;
		case 3:
			return ONSIDE_COUNT_3XX;
		case 4:
			return ONSIDE_COUNT_OTHER_4XX;
		case 5:
			return ONSIDE_COUNT_OTHER_5XX;
	}
	return ONSIDE_COUNT_MALFORMED;
}

static void
merge(OnsideStats *to, const OnsideStats *from)
{
	for (int i = 0; i < ONSIDE_COUNTERS; i++)
		to->counters[i] += from->counters[i];
	onside_histogram_merge(&to->delivery, &from->delivery);
	onside_histogram_merge(&to->request, &from->request);
}

void
onside_stats_publish(OnsideSlot *slot)
{
	static const OnsideStats nothing = {0};

	if (memcmp(&onside_stats_unpublished, &nothing, sizeof(nothing)) == 0)
		return;
	LWLockAcquire(slot->lock, LW_EXCLUSIVE);
	merge(&slot->stats, &onside_stats_unpublished);
	LWLockRelease(slot->lock);
	memset(&onside_stats_unpublished, 0, sizeof(onside_stats_unpublished));
}

void
onside_stats_clear(OnsideSlot *slot)
{
	memset(&slot->stats, 0, sizeof(slot->stats));
	slot->stats.counters[ONSIDE_COUNT_RECORDED] =
		-(int64) pg_atomic_read_u64(&slot->recorded);
	slot->stats.counters[ONSIDE_COUNT_SKIPPED] =
		-(int64) pg_atomic_read_u64(&slot->skipped);
	slot->stats.reset_at = GetCurrentTimestamp();
}

/* The slot's statistics as they are shown, and saved. */
static void
read_stats(OnsideSlot *slot, OnsideStats *stats)
{
	*stats = slot->stats;
	stats->counters[ONSIDE_COUNT_RECORDED] +=
		(int64) pg_atomic_read_u64(&slot->recorded);
	stats->counters[ONSIDE_COUNT_SKIPPED] +=
		(int64) pg_atomic_read_u64(&slot->skipped);
}

/* ----------
 * The file
 * ----------
 */

static bool
checked_read(FILE *file, void *data, size_t size, pg_crc32c *crc)
{
	if (fread(data, size, 1, file) != 1)
		return false;
	COMP_CRC32C(*crc, data, size);
	return true;
}

static bool
checked_write(FILE *file, const void *data, size_t size, pg_crc32c *crc)
{
	COMP_CRC32C(*crc, data, size);
	return fwrite(data, size, 1, file) == 1;
}

/* Reads all of the file; NULL, and *n = -1, if it is not one of ours. */
static SavedStats *
read_file(FILE *file, int *n)
{
	uint32		header[3];
	SavedStats *saved;
	pg_crc32c	crc;
	pg_crc32c	expected;
	bool		ok = true;

	*n = -1;
	INIT_CRC32C(crc);
	if (!checked_read(file, header, sizeof(header), &crc) ||
		header[0] != STATS_MAGIC || header[1] != sizeof(SavedStats) ||
		header[2] > 1024)
		return NULL;

	saved = palloc0(Max(header[2], 1) * sizeof(SavedStats));
	for (uint32 i = 0; ok && i < header[2]; i++)
		ok = checked_read(file, &saved[i], sizeof(SavedStats), &crc);
	FIN_CRC32C(crc);
	if (!ok || fread(&expected, sizeof(expected), 1, file) != 1 ||
		!EQ_CRC32C(crc, expected))
	{
		pfree(saved);
		return NULL;
	}
	*n = (int) header[2];
	return saved;
}

void
onside_stats_load(void)
{
	FILE	   *file = AllocateFile(STATS_FILE, PG_BINARY_R);
	SavedStats *saved;
	int			n;

	if (file == NULL)
	{
		if (errno != ENOENT)
			ereport(LOG,
					(errcode_for_file_access(),
					 errmsg("could not read file \"%s\": %m", STATS_FILE)));
		return;
	}
	saved = read_file(file, &n);
	FreeFile(file);
	if (n < 0)
		ereport(LOG,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("ignoring invalid data in file \"%s\"", STATS_FILE)));

	/* After a crash, old numbers must not come back. */
	unlink(STATS_FILE);

	for (int i = 0; i < Min(n, onside_max_databases); i++)
	{
		OnsideSlot *slot = onside_slot_get(i);

		slot->database = saved[i].database;
		slot->state = ONSIDE_SLOT_WANTED;
		slot->found = true;		/* or there would be nothing to keep */
		slot->stats = saved[i].stats;
	}
	if (saved != NULL)
		pfree(saved);
}

static bool
write_file(FILE *file)
{
	uint32		header[3] = {STATS_MAGIC, sizeof(SavedStats), 0};
	pg_crc32c	crc;
	bool		ok;

	for (int i = 0; i < onside_max_databases; i++)
		if (OidIsValid(onside_slot_get(i)->database))
			header[2]++;

	INIT_CRC32C(crc);
	ok = checked_write(file, header, sizeof(header), &crc);
	for (int i = 0; ok && i < onside_max_databases; i++)
	{
		OnsideSlot *slot = onside_slot_get(i);
		SavedStats	saved;

		if (!OidIsValid(slot->database))
			continue;
		memset(&saved, 0, sizeof(saved));
		saved.database = slot->database;
		read_stats(slot, &saved.stats);
		ok = checked_write(file, &saved, sizeof(saved), &crc);
	}
	FIN_CRC32C(crc);
	return ok && fwrite(&crc, sizeof(crc), 1, file) == 1;
}

/* The last of the postmaster: all workers have ended. */
static void
save(int code, Datum arg)
{
	FILE	   *file;
	bool		ok;

	if (code != 0)
		return;

	file = AllocateFile(STATS_FILE_TMP, PG_BINARY_W);
	ok = file != NULL && write_file(file);
	if (file != NULL && FreeFile(file) != 0)
		ok = false;
	if (!ok)
	{
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", STATS_FILE_TMP)));
		unlink(STATS_FILE_TMP);
		return;
	}
	(void) durable_rename(STATS_FILE_TMP, STATS_FILE, LOG);
}

void
onside_stats_save_at_exit(void)
{
	on_shmem_exit(save, (Datum) 0);
}

/* ----------
 * Showing them
 * ----------
 */

static double
ms(double us)
{
	return us / 1000.0;
}

static void
set_histogram(Datum *values, bool *nulls, const OnsideHistogram *histogram)
{
	static const double quantiles[] = {0.5, 0.9, 0.99};

	values[0] = Int64GetDatum(histogram->count);
	values[1] = Float8GetDatum(ms((double) histogram->sum));
	for (int i = 0; i < 3; i++)
	{
		values[2 + i] =
			Float8GetDatum(ms(onside_histogram_quantile(histogram,
														quantiles[i])));
		nulls[2 + i] = histogram->count == 0;
	}
	values[5] = Float8GetDatum(ms((double) histogram->max));
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
	read_stats(slot, stats);
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
								   get_float8_infinity() : ms((double) bound));
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
		onside_stats_clear(slot);
		LWLockRelease(slot->lock);
	}
	PG_RETURN_VOID();
}
