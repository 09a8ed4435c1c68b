/*-------------------------------------------------------------------------
 *
 * aside.c
 *		Pending events that have failed while others were accepted.
 *
 * An event that is not decided soon must not hold up the log.  So the worker
 * moves the event from the log into the table aside, in the transaction that
 * moves the cursor past it.  The event stays pending.  It leaves when it is
 * accepted, or goes to dead_letter.  Its row is not updated in between: the
 * worker counts its tries in memory.
 *
 * Rows also come by SQL, from a dump and by logical replication.  A trigger
 * checks that they are valid events (incoming.c), and tells the worker when
 * rows come or go.
 *
 * The table is read and written by the access method, as in insert.c and
 * take.c.  It is read in the order of its index on (recorded_at, id).  Without
 * a usable index, the whole table is read, and sorted if need be: that costs
 * more and gives the same result.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
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

/* Columns of INDEX. */
enum
{
	Anum_aside_index_recorded_at = 1,
	Anum_aside_index_id
};

/*
 * What JSON adds to the values of an event: names, quotes, four of its values.
 */
#define RENDERED_FRAME	250

/* ----------
 * One event
 * ----------
 */

/* The table, fit to be read. */
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
	slot = onside_insert_slot(&insert);
	values = slot->tts_values;
	memset(slot->tts_isnull, false, Natts_aside * sizeof(bool));

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

/* About how many bytes the event in a row takes in a request. */
static int
estimate_bytes(TupleTableSlot *row)
{
	Size		size = toast_raw_datum_size(row->tts_values[Anum_outbox_payload - 1]) +
		toast_raw_datum_size(row->tts_values[Anum_outbox_event_name - 1]);

	return (int) Min(size, INT_MAX / 2) + RENDERED_FRAME;
}

static bool
call_back(TupleTableSlot *row, OnsideAsideCallback callback, void *arg)
{
	slot_getallattrs(row);
	return callback(DatumGetUUIDP(row->tts_values[Anum_aside_id - 1]),
					DatumGetUUIDP(row->tts_values[Anum_outbox_event_id - 1]),
					DatumGetTimestampTz(row->tts_values[Anum_outbox_recorded_at - 1]),
					estimate_bytes(row), arg);
}

/* Returns false if the callback has stopped. */
static bool
read_range(Relation rel, Relation index, ScanKey keys, int nkeys,
		   OnsideAsideCallback callback, void *arg)
{
	TupleTableSlot *row = table_slot_create(rel, NULL);
	IndexScanDesc scan = onside_index_beginscan(rel, index,
												onside_reading_snapshot(),
												nkeys);
	bool		goes_on = true;

	index_rescan(scan, keys, nkeys, NULL, 0);
	while (goes_on && index_getnext_slot(scan, ForwardScanDirection, row))
	{
		CHECK_FOR_INTERRUPTS();
		goes_on = call_back(row, callback, arg);
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(row);
	return goes_on;
}

/* The rest of those recorded at the same time, and then all later ones. */
static void
read_by_index(Relation rel, Oid index_oid, TimestampTz after_recorded_at,
			  const pg_uuid_t *after_id, OnsideAsideCallback callback,
			  void *arg)
{
	Relation	index = index_open(index_oid, AccessShareLock);
	ScanKeyData keys[2];
	bool		goes_on = true;

	if (after_id != NULL)
	{
		ScanKeyInit(&keys[0], Anum_aside_index_recorded_at,
					BTEqualStrategyNumber, F_TIMESTAMPTZ_EQ,
					TimestampTzGetDatum(after_recorded_at));
		ScanKeyInit(&keys[1], Anum_aside_index_id, BTGreaterStrategyNumber,
					F_UUID_GT, UUIDPGetDatum(after_id));
		goes_on = read_range(rel, index, keys, 2, callback, arg);
		ScanKeyInit(&keys[0], Anum_aside_index_recorded_at,
					BTGreaterStrategyNumber, F_TIMESTAMPTZ_GT,
					TimestampTzGetDatum(after_recorded_at));
	}
	if (goes_on)
		(void) read_range(rel, index, keys, after_id != NULL ? 1 : 0, callback,
						  arg);
	index_close(index, AccessShareLock);
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

static void
sort_row(OnsideSort *sort, TupleTableSlot *row, TimestampTz after_recorded_at,
		 const pg_uuid_t *after_id)
{
	Datum		values[SORTED_NCOLUMNS];
	bool		nulls[SORTED_NCOLUMNS] = {false};
	TimestampTz recorded_at;

	slot_getallattrs(row);
	values[SORTED_RECORDED_AT] = row->tts_values[Anum_outbox_recorded_at - 1];
	values[SORTED_ID] = row->tts_values[Anum_aside_id - 1];
	values[SORTED_EVENT_ID] = row->tts_values[Anum_outbox_event_id - 1];
	values[SORTED_BYTES] = Int32GetDatum(estimate_bytes(row));
	recorded_at = DatumGetTimestampTz(values[SORTED_RECORDED_AT]);
	if (after_id == NULL || recorded_at > after_recorded_at ||
		(recorded_at == after_recorded_at &&
		 memcmp(DatumGetUUIDP(values[SORTED_ID]), after_id, UUID_LEN) > 0))
		onside_sort_put(sort, values, nulls);
}

/* Reads the whole table and sorts it, for want of a usable index. */
static void
read_sorted(Relation rel, TimestampTz after_recorded_at,
			const pg_uuid_t *after_id, OnsideAsideCallback callback, void *arg)
{
	static const Oid types[SORTED_NCOLUMNS] = {
		TIMESTAMPTZOID, UUIDOID, UUIDOID, INT4OID
	};
	OnsideSort *sort = onside_sort_begin(types, SORTED_NCOLUMNS, SORTED_NKEYS);
	TupleTableSlot *row = table_slot_create(rel, NULL);
	TableScanDesc scan = onside_table_beginscan(rel, onside_reading_snapshot(),
												0, NULL);
	TupleTableSlot *sorted;

	while (table_scan_getnextslot(scan, ForwardScanDirection, row))
	{
		CHECK_FOR_INTERRUPTS();
		sort_row(sort, row, after_recorded_at, after_id);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(row);

	onside_sort_perform(sort);
	while ((sorted = onside_sort_next(sort)) != NULL &&
		   callback(DatumGetUUIDP(sorted->tts_values[SORTED_ID]),
					DatumGetUUIDP(sorted->tts_values[SORTED_EVENT_ID]),
					DatumGetTimestampTz(sorted->tts_values[SORTED_RECORDED_AT]),
					DatumGetInt32(sorted->tts_values[SORTED_BYTES]), arg))
		CHECK_FOR_INTERRUPTS();
	onside_sort_end(sort);
}

void
onside_aside_read(TimestampTz after_recorded_at, const pg_uuid_t *after_id,
				  OnsideAsideCallback callback, void *arg)
{
	Relation	rel = open_aside(AccessShareLock);
	Oid			index = onside_shape_find_index(rel, INDEX);

	if (OidIsValid(index))
		read_by_index(rel, index, after_recorded_at, after_id, callback, arg);
	else
		read_sorted(rel, after_recorded_at, after_id, callback, arg);
	table_close(rel, AccessShareLock);
}

/* ----------
 * How many
 * ----------
 */

/* A walk over recorded_at, by the index if that is usable. */
typedef struct Walk
{
	Relation	rel;
	Relation	index;			/* or NULL */
	IndexScanDesc index_scan;
	TableScanDesc table_scan;
	TupleTableSlot *row;
} Walk;

/* Begins at the oldest row, if the index is usable; at any row otherwise. */
static void
begin_walk(Walk *walk)
{
	Oid			index;

	memset(walk, 0, sizeof(*walk));
	walk->rel = open_aside(AccessShareLock);
	walk->row = table_slot_create(walk->rel, NULL);
	index = onside_shape_find_index(walk->rel, INDEX);
	if (!OidIsValid(index))
	{
		walk->table_scan = onside_table_beginscan(walk->rel,
												  onside_reading_snapshot(),
												  0, NULL);
		return;
	}
	walk->index = index_open(index, AccessShareLock);
	walk->index_scan = onside_index_beginscan(walk->rel, walk->index,
											  onside_reading_snapshot(), 0);
	index_rescan(walk->index_scan, NULL, 0, NULL, 0);
}

static void
end_walk(Walk *walk)
{
	if (walk->table_scan != NULL)
		table_endscan(walk->table_scan);
	else
	{
		index_endscan(walk->index_scan);
		index_close(walk->index, AccessShareLock);
	}
	ExecDropSingleTupleTableSlot(walk->row);
	table_close(walk->rel, AccessShareLock);
}

/* Takes recorded_at of the next row; by the index that is the next in time. */
static bool
walk_on(Walk *walk, TimestampTz *recorded_at)
{
	bool		isnull;

	CHECK_FOR_INTERRUPTS();
	if (!(walk->table_scan != NULL ?
		  table_scan_getnextslot(walk->table_scan, ForwardScanDirection,
								 walk->row) :
		  index_getnext_slot(walk->index_scan, ForwardScanDirection,
							 walk->row)))
		return false;
	*recorded_at = DatumGetTimestampTz(slot_getattr(walk->row,
													Anum_outbox_recorded_at,
													&isnull));
	return true;
}

int64
onside_aside_count(int64 max, TimestampTz *oldest)
{
	Walk		walk;
	TimestampTz recorded_at;
	int64		n = 0;

	*oldest = 0;
	begin_walk(&walk);
	while (n < max && walk_on(&walk, &recorded_at))
		if (n++ == 0 || recorded_at < *oldest)
			*oldest = recorded_at;
	end_walk(&walk);
	return n;
}

/* By the index the first row decides, since it is the oldest. */
bool
onside_aside_holds(TimestampTz until)
{
	Walk		walk;
	TimestampTz recorded_at;
	bool		holds = false;

	begin_walk(&walk);
	while (!holds && walk_on(&walk, &recorded_at))
	{
		holds = recorded_at <= until;

		/* Those that follow in the index are later still. */
		if (walk.index != NULL)
			break;
	}
	end_walk(&walk);
	return holds;
}
