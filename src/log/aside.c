/*-------------------------------------------------------------------------
 *
 * aside.c
 *		Pending events that have failed while others were accepted.
 *
 * An event that is not decided soon must not hold up the log.  So the worker
 * moves the event from the log into the table aside, in the transaction that
 * moves the cursor past the event.  The event stays pending.  It leaves when it
 * is accepted, or goes to dead_letter.  Its row is not updated in between: the
 * worker counts its tries in memory.
 *
 * Rows also come by SQL, from a dump and by logical replication.  A trigger
 * (incoming.c) checks that they are valid events, and tells the worker when
 * rows come or go.
 *
 * The worker calls this file, and so does what counts pending events or waits
 * for them.  The table is read and written by the access method, as in insert.c
 * and take.c.  It is read in the order of its index on (recorded_at, id).
 * Without a usable index we read the whole table, and sort if the order
 * matters: that costs more and gives the same result.
 *
 * Reading releases its AccessShareLock at once; writing keeps a
 * RowExclusiveLock to the end of the transaction.  A table that is missing or
 * was altered is an error.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/genam.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "log/aside.h"
#include "log/dead_letter.h"
#include "log/insert.h"
#include "log/outbox.h"
#include "log/shape.h"
#include "log/sort.h"
#include "log/tables.h"
#include "log/take.h"

#define KEY		"aside_pkey"
#define INDEX	"aside_recorded_at_id_idx"

/*
 * What the JSON of an event has besides event_name and payload: the names of
 * the fields, quotes, and the other three values; bytes.
 */
#define RENDERED_FRAME	250

/* ----------
 * One event
 * ----------
 */

/* Opens the table.  An error if its columns are not as we made them. */
static Relation
open_aside(LOCKMODE mode)
{
	Relation	rel = table_open(onside_table_oid("aside"), mode);

	(void) onside_shape_require(rel, true);
	return rel;
}

/* The event's columns come first in this table, as in the outbox. */
void
onside_aside_insert(const pg_uuid_t *id, const OnsideEvent *event,
					int http_status, const char *error,
					TimestampTz recorded_at, TimestampTz failed_at)
{
	OnsideInsert insert;
	TupleTableSlot *slot;
	Datum	   *values;

	onside_insert_begin(&insert, onside_table_oid("aside"));

	/* The table has the event's columns where the outbox has them. */
	slot = onside_insert_slot(&insert);
	values = slot->tts_values;
	memset(slot->tts_isnull, false, Natts_aside * sizeof(bool));

	/* All columns have a value, but perhaps http_status. */
	onside_outbox_set_event(slot, event);
	values[Anum_outbox_recorded_at - 1] = TimestampTzGetDatum(recorded_at);
	values[Anum_aside_failed_at - 1] = TimestampTzGetDatum(failed_at);
	values[Anum_aside_http_status - 1] = Int32GetDatum(http_status);
	slot->tts_isnull[Anum_aside_http_status - 1] = http_status == 0;
	values[Anum_aside_error - 1] =
		PointerGetDatum(onside_dead_letter_clip(error));
	values[Anum_aside_id - 1] = UUIDPGetDatum(id);

	onside_insert_row(&insert);
	onside_insert_end(&insert);
}

/* Looks the row up by its primary key. */
bool
onside_aside_fetch(const pg_uuid_t *id, OnsideEvent *event,
				   TimestampTz *recorded_at)
{
	Relation	rel = open_aside(AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	bool		found = onside_take_find(rel, KEY, Anum_aside_id, id, slot);

	if (found)
	{
		onside_outbox_read_event(slot, event);

		/* Text and payload must outlive the slot. */
		onside_outbox_copy_event(event);
		*recorded_at = onside_outbox_recorded_at(slot);
	}
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	return found;
}

bool
onside_aside_delete(const pg_uuid_t *id)
{
	Relation	rel = open_aside(RowExclusiveLock);
	bool		deleted = onside_take_away(rel, KEY, Anum_aside_id, id);

	table_close(rel, NoLock);
	return deleted;
}

/* ----------
 * Many of them
 * ----------
 */

/*
 * Scans the rows that meet the keys, in the order of INDEX, or, if INDEX is not
 * usable, in any order.  The keys have the numbers of the table's columns.
 */
static SysScanDesc
begin_scan(Relation rel, ScanKey keys, int nkeys)
{
	Oid			index = onside_shape_find_index(rel, INDEX);

	return systable_beginscan(rel, index, OidIsValid(index),
							  onside_reading_snapshot(), nkeys, keys);
}

/* Estimates how many bytes the event in a row takes in a request. */
static int
estimate_bytes(TupleTableSlot *row)
{
	Datum	   *values = row->tts_values;
	Size		size =
		toast_raw_datum_size(values[Anum_outbox_payload - 1]) +
		toast_raw_datum_size(values[Anum_outbox_event_name - 1]);

	return (int) Min(size, INT_MAX / 2) + RENDERED_FRAME;
}

/* Calls back for the rows of a scan.  Returns false if the callback stopped. */
static bool
scan_events(Relation rel, ScanKey keys, int nkeys,
			OnsideAsideCallback callback, void *arg)
{
	SysScanDesc scan = begin_scan(rel, keys, nkeys);
	bool		goes_on = true;

	while (goes_on && HeapTupleIsValid(systable_getnext(scan)))
	{
		Datum	   *values = scan->slot->tts_values;

		CHECK_FOR_INTERRUPTS();

		/* The callback gets what it needs to know without the event itself. */
		slot_getallattrs(scan->slot);
		goes_on = callback(DatumGetUUIDP(values[Anum_aside_id - 1]),
						   DatumGetUUIDP(values[Anum_outbox_event_id - 1]),
						   onside_outbox_recorded_at(scan->slot),
						   estimate_bytes(scan->slot), arg);
	}
	systable_endscan(scan);
	return goes_on;
}

/*
 * Scans the events behind a place: the rest of those that were recorded at the
 * same time, and then all that were recorded later.
 */
static void
scan_behind(Relation rel, TimestampTz after_recorded_at,
			const pg_uuid_t *after_id, OnsideAsideCallback callback, void *arg)
{
	ScanKeyData keys[2];

	if (after_id != NULL)
	{
		/* The same recorded_at, and a greater id. */
		ScanKeyInit(&keys[0], Anum_outbox_recorded_at, BTEqualStrategyNumber,
					F_TIMESTAMPTZ_EQ, TimestampTzGetDatum(after_recorded_at));
		ScanKeyInit(&keys[1], Anum_aside_id, BTGreaterStrategyNumber,
					F_UUID_GT, UUIDPGetDatum(after_id));
		if (!scan_events(rel, keys, 2, callback, arg))
			return;

		/* A greater recorded_at. */
		ScanKeyInit(&keys[0], Anum_outbox_recorded_at, BTGreaterStrategyNumber,
					F_TIMESTAMPTZ_GT, TimestampTzGetDatum(after_recorded_at));
	}
	(void) scan_events(rel, keys, after_id != NULL ? 1 : 0, callback, arg);
}

/* The columns of a sorted row. */
enum
{
	SORTED_RECORDED_AT,
	SORTED_ID,
	SORTED_NKEYS,
	SORTED_EVENT_ID = SORTED_NKEYS,
	SORTED_BYTES,
	SORTED_NCOLUMNS
};

/* OnsideAsideCallback for a scan in any order: has each event sorted. */
static bool
sort_event(const pg_uuid_t *id, const pg_uuid_t *event_id,
		   TimestampTz recorded_at, int bytes_estimate, void *arg)
{
	Datum		values[SORTED_NCOLUMNS];
	bool		nulls[SORTED_NCOLUMNS] = {false};

	values[SORTED_RECORDED_AT] = TimestampTzGetDatum(recorded_at);
	values[SORTED_ID] = UUIDPGetDatum(id);
	values[SORTED_EVENT_ID] = UUIDPGetDatum(event_id);
	values[SORTED_BYTES] = Int32GetDatum(bytes_estimate);
	onside_sort_put((OnsideSort *) arg, values, nulls);
	return true;
}

/* Reads by the index, or sorts what it reads. */
void
onside_aside_read(TimestampTz after_recorded_at, const pg_uuid_t *after_id,
				  OnsideAsideCallback callback, void *arg)
{
	static const Oid types[SORTED_NCOLUMNS] = {
		TIMESTAMPTZOID, UUIDOID, UUIDOID, INT4OID
	};
	Relation	rel = open_aside(AccessShareLock);
	OnsideSort *sort;
	TupleTableSlot *row;

	/* systable_beginscan() uses no index under ignore_system_indexes. */
	if (OidIsValid(onside_shape_find_index(rel, INDEX)) && !IgnoreSystemIndexes)
	{
		scan_behind(rel, after_recorded_at, after_id, callback, arg);
		table_close(rel, AccessShareLock);
		return;
	}

	/* Without the index, sort all events, and then hand them out. */
	sort = onside_sort_begin(types, SORTED_NCOLUMNS, SORTED_NKEYS);
	scan_behind(rel, after_recorded_at, after_id, sort_event, sort);
	table_close(rel, AccessShareLock);

	/* The callback may stop, as in a scan. */
	while ((row = onside_sort_next(sort)) != NULL &&
		   callback(DatumGetUUIDP(row->tts_values[SORTED_ID]),
					DatumGetUUIDP(row->tts_values[SORTED_EVENT_ID]),
					DatumGetTimestampTz(row->tts_values[SORTED_RECORDED_AT]),
					DatumGetInt32(row->tts_values[SORTED_BYTES]), arg))
		CHECK_FOR_INTERRUPTS();
	onside_sort_end(sort);
}

/* ----------
 * How many
 * ----------
 */

/* Counts rows, and looks for the oldest among them in any order. */
int64
onside_aside_count(int64 max, TimestampTz *oldest)
{
	Relation	rel = open_aside(AccessShareLock);
	SysScanDesc scan = begin_scan(rel, NULL, 0);
	int64		n = 0;

	*oldest = 0;
	while (n < max && HeapTupleIsValid(systable_getnext(scan)))
	{
		TimestampTz recorded_at = onside_outbox_recorded_at(scan->slot);

		CHECK_FOR_INTERRUPTS();

		/* By the index the first row is the oldest. */
		if (n++ == 0 || recorded_at < *oldest)
			*oldest = recorded_at;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return n;
}

/* Stops at the first such event. */
bool
onside_aside_holds(TimestampTz until)
{
	Relation	rel = open_aside(AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	bool		holds;

	ScanKeyInit(&key, Anum_outbox_recorded_at, BTLessEqualStrategyNumber,
				F_TIMESTAMPTZ_LE, TimestampTzGetDatum(until));
	scan = begin_scan(rel, &key, 1);
	holds = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return holds;
}
