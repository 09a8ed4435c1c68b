/*-------------------------------------------------------------------------
 *
 * stats_file.c
 *		The statistics survive a restart of the server.
 *
 * Statistics are kept as PostgreSQL keeps its own: they are in shared memory,
 * are written to a file in pg_stat at shutdown, and are read from there at the
 * start, which removes the file.  A row in a table would cost WAL and, while
 * somebody holds a snapshot, dead versions.  CREATE DATABASE ... TEMPLATE
 * would copy the row, and a standby would show requests that another server
 * has made.  The price is that a crash sets the statistics to zero;
 * stats_reset shows when.  A database's statistics end with its slot, when the
 * database or the extension is dropped.
 *
 * Each database in the file gets a slot when the server starts, and its slot
 * wants a worker, as it did when the server was shut down.
 *
 * The postmaster alone runs this code, when no other process uses the shared
 * memory.  So no lock is needed.  Nothing here stops the server: a file that
 * cannot be read or written gets a line in the log.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <unistd.h>

#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "storage/ipc.h"

#include "log/shmem.h"
#include "log/stats_file.h"
#include "settings.h"

#define STATS_FILE		PGSTAT_STAT_PERMANENT_DIRECTORY "/onside_attribution.stat"
#define STATS_FILE_TMP	STATS_FILE ".tmp"
#define STATS_MAGIC		0x4f415331	/* to change with SavedStats */

/* What the file holds for each database, after the header. */
typedef struct SavedStats
{
	Oid			database;
	OnsideStats stats;
} SavedStats;

static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

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

/*
 * Reads the whole file: *n databases.  Returns NULL, with *n = -1, if this is
 * no intact file of this version of the library.
 */
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

/*
 * Called by the postmaster at its start, and again after a backend has
 * crashed.  After a crash there is no file, and the statistics begin anew.
 */
static void
load_stats(void)
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

	/* If the server crashes later, these numbers must not come back. */
	unlink(STATS_FILE);

	for (int i = 0; i < Min(n, onside_max_databases); i++)
		onside_slot_restore(i, saved[i].database, &saved[i].stats);
	if (saved != NULL)
		pfree(saved);
}

/*
 * Has this slot statistics to keep?  If no worker has confirmed the slot and
 * no session has recorded, nobody knows whether the database has the extension.
 */
static bool
is_worth_saving(OnsideSlot *slot)
{
	return OidIsValid(onside_slot_database(slot)) &&
		(slot->service.found || pg_atomic_read_u64(&slot->recorded) > 0 ||
		 pg_atomic_read_u64(&slot->skipped) > 0);
}

/*
 * Writes the header, a SavedStats for each database, and a checksum of both.
 */
static bool
write_file(FILE *file)
{
	uint32		header[3] = {STATS_MAGIC, sizeof(SavedStats), 0};
	pg_crc32c	crc;
	bool		ok;

	for (int i = 0; i < onside_max_databases; i++)
		if (is_worth_saving(onside_slot_get(i)))
			header[2]++;

	INIT_CRC32C(crc);
	ok = checked_write(file, header, sizeof(header), &crc);
	for (int i = 0; ok && i < onside_max_databases; i++)
	{
		OnsideSlot *slot = onside_slot_get(i);
		SavedStats	saved;

		if (!is_worth_saving(slot))
			continue;
		memset(&saved, 0, sizeof(saved));
		saved.database = onside_slot_database(slot);
		onside_slot_read_stats(slot, &saved.stats);
		ok = checked_write(file, &saved, sizeof(saved), &crc);
	}
	FIN_CRC32C(crc);
	return ok && fwrite(&crc, sizeof(crc), 1, file) == 1;
}

/*
 * Exit callback of the postmaster, when all other processes have ended.  After
 * a crash, "code" is not 0.
 */
static void
save_stats(int code, Datum arg)
{
	FILE	   *file;
	bool		ok;
	int			save_errno;

	if (code != 0)
		return;

	file = AllocateFile(STATS_FILE_TMP, PG_BINARY_W);
	ok = file != NULL && write_file(file);
	save_errno = errno;
	if (file != NULL && FreeFile(file) != 0 && ok)
	{
		ok = false;
		save_errno = errno;
	}
	if (!ok)
	{
		errno = save_errno;		/* of the first step that failed */
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", STATS_FILE_TMP)));
		unlink(STATS_FILE_TMP);
		return;
	}
	(void) durable_rename(STATS_FILE_TMP, STATS_FILE, LOG);
}

/* The previous hook is that of shmem.c, which makes the slots. */
static void
shmem_startup(void)
{
	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();
	if (IsUnderPostmaster)
		return;
	load_stats();
	on_shmem_exit(save_stats, (Datum) 0);
}

void
onside_stats_file_init(void)
{
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
}
