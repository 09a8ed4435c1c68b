/*-------------------------------------------------------------------------
 *
 * backfill_state.c
 *		How far each backfill has come: the table backfill_state.
 *
 * backfill() alone writes this table, and its callers have no privilege on it.
 * So this file reads and writes the rows without SQL: no privilege is checked,
 * and no trigger, rule or policy that somebody has put on the table takes part.
 * Then we have to do what PostgreSQL would do: onside_backfill_save() fills in
 * the key and the NOT NULL columns, and insert.c maintains the index and finds
 * a duplicate.  A row is replaced, rather than updated, so that insert.c alone
 * writes rows.
 *
 * One session at a time reads and writes the row of a backfill.  Sessions take
 * turns by an object lock whose number is a hash of table and event; backfills
 * with the same hash merely wait for each other.  No SQL command takes such a
 * lock, unlike an advisory lock, so only a session in backfill() itself can
 * hold it.
 *
 * A wrong state does no harm, because an event has the same event_id whenever
 * its row is read.  If the row is missing, the backfill begins again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "attach/backfill_state.h"
#include "compat.h"
#include "log/insert.h"
#include "log/shape.h"
#include "log/tables.h"

enum
{
	Anum_state_source = 1,
	Anum_state_event_name,
	Anum_state_since,
	Anum_state_until,
	Anum_state_pass,
	Anum_state_done,
	Anum_state_partition,
	Anum_state_file,
	Anum_state_place,
	Anum_state_estimated,
	Anum_state_rows_read,
	Anum_state_recorded,
	Anum_state_skipped,
	Anum_state_dead_lettered,
	Anum_state_not_due,
	Anum_state_started_at,
	Anum_state_updated_at,
	Anum_state_before,
	Anum_state_now,
	Anum_state_finished_at
};

/* Is this the row of that backfill?  The columns of the key are NOT NULL. */
static bool
is_row_of(TupleTableSlot *slot, const OnsideBackfillKey *key)
{
	Datum	   *values = slot->tts_values;

	return DatumGetObjectId(values[Anum_state_source - 1]) == key->source &&
		DatumGetTimestampTz(values[Anum_state_since - 1]) == key->since &&
		DatumGetTimestampTz(values[Anum_state_until - 1]) == key->until &&
		strcmp(TextDatumGetCString(values[Anum_state_event_name - 1]),
			   key->event_name) == 0;
}

/* An array that stays when the slot is gone; 0 for NULL. */
static Datum
copy_array(TupleTableSlot *slot, AttrNumber attnum)
{
	if (slot->tts_isnull[attnum - 1])
		return (Datum) 0;
	return PointerGetDatum(DatumGetArrayTypePCopy(slot->tts_values[attnum - 1]));
}

/*
 * Copies a row of the table into the C struct.  Only what is NULL at first can
 * be NULL here.
 */
static void
read_state_row(TupleTableSlot *slot, OnsideBackfillState *state)
{
	Datum	   *values = slot->tts_values;
	Datum	   *done;
	int			ndone;

	/* Where backfill is: pass, partition, and place in it. */
	state->pass = DatumGetInt16(values[Anum_state_pass - 1]);
	deconstruct_array(DatumGetArrayTypeP(values[Anum_state_done - 1]), OIDOID,
					  sizeof(Oid), true, TYPALIGN_INT, &done, NULL, &ndone);
	for (int i = 0; i < ndone; i++)
		state->done = lappend_oid(state->done, DatumGetObjectId(done[i]));
	state->partition = DatumGetObjectId(values[Anum_state_partition - 1]);
	state->file = DatumGetObjectId(values[Anum_state_file - 1]);
	ItemPointerCopy((ItemPointer) DatumGetPointer(values[Anum_state_place - 1]),
					&state->place);

	/* What has become of the rows so far. */
	state->estimated = DatumGetInt64(values[Anum_state_estimated - 1]);
	state->read = DatumGetInt64(values[Anum_state_rows_read - 1]);
	state->rows.recorded = DatumGetInt64(values[Anum_state_recorded - 1]);
	state->rows.skipped = DatumGetInt64(values[Anum_state_skipped - 1]);
	state->rows.dead_lettered =
		DatumGetInt64(values[Anum_state_dead_lettered - 1]);
	state->rows.not_due = DatumGetInt64(values[Anum_state_not_due - 1]);
	state->started_at = DatumGetTimestampTz(values[Anum_state_started_at - 1]);

	/* NULL in the first pass, or in the last. */
	state->before = copy_array(slot, Anum_state_before);
	state->now = copy_array(slot, Anum_state_now);
	state->finished = !slot->tts_isnull[Anum_state_finished_at - 1];
	state->tid = slot->tts_tid;
}

/*
 * Waits for its turn, and reads the row.  The snapshot is taken under the lock,
 * whatever the transaction's isolation level is, so it shows what the session
 * before us has written.  The table stays locked, so that the row is still in
 * its place when it is replaced.
 */
OnsideBackfillState *
onside_backfill_lock(const OnsideBackfillKey *key)
{
	OnsideBackfillState *state = palloc0(sizeof(OnsideBackfillState));
	Oid			relid = onside_table_oid("backfill_state");
	Relation	rel;
	Snapshot	snapshot;
	TableScanDesc scan;
	TupleTableSlot *slot;
	bool		found = false;

	/* What there is if the table has no such row. */
	ItemPointerSetInvalid(&state->tid);
	state->rows.since = key->since;
	state->rows.until = key->until;
	LockDatabaseObject(relid,
					   hash_combine(key->source,
									string_hash(key->event_name,
												strlen(key->event_name) + 1)),
					   0, ExclusiveLock);

	/* It is opened to be written, and checked for what somebody altered. */
	rel = table_open(relid, RowExclusiveLock);
	(void) onside_shape_require(rel, true);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	slot = table_slot_create(rel, NULL);
	scan = onside_table_beginscan(rel, snapshot, 0, NULL);

	/* The table has few rows, so it is read from the beginning. */
	while (!found && table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		slot_getallattrs(slot);
		found = is_row_of(slot, key);
		if (found)
			read_state_row(slot, state);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	UnregisterSnapshot(snapshot);
	table_close(rel, NoLock);
	return state;
}

/* A list of OIDs as oid[]. */
static Datum
make_oid_array(List *oids)
{
	Datum	   *values = palloc(list_length(oids) * sizeof(Datum));

	for (int i = 0; i < list_length(oids); i++)
		values[i] = ObjectIdGetDatum(list_nth_oid(oids, i));
	return PointerGetDatum(construct_array(values, list_length(oids), OIDOID,
										   sizeof(Oid), true, TYPALIGN_INT));
}

/* Replaces the row.  Columns that somebody has added are filled with NULL. */
void
onside_backfill_save(const OnsideBackfillKey *key,
					 const OnsideBackfillState *state)
{
	OnsideInsert insert;
	TupleTableSlot *slot;
	Datum	   *values;
	bool	   *nulls;

	/* Replace the row that onside_backfill_lock() has read. */
	onside_insert_begin(&insert, onside_table_oid("backfill_state"));
	if (ItemPointerIsValid(&state->tid))
		simple_heap_delete(insert.rel,
						   unconstify(ItemPointerData *, &state->tid));

	/* The columns up to updated_at are never NULL. */
	slot = onside_insert_slot(&insert);
	values = slot->tts_values;
	nulls = slot->tts_isnull;
	memset(nulls, false, Anum_state_updated_at * sizeof(bool));

	values[Anum_state_source - 1] = ObjectIdGetDatum(key->source);
	values[Anum_state_event_name - 1] = CStringGetTextDatum(key->event_name);
	values[Anum_state_since - 1] = TimestampTzGetDatum(key->since);
	values[Anum_state_until - 1] = TimestampTzGetDatum(key->until);

	/* Where to go on. */
	values[Anum_state_pass - 1] = Int16GetDatum(state->pass);
	values[Anum_state_done - 1] = make_oid_array(state->done);
	values[Anum_state_partition - 1] = ObjectIdGetDatum(state->partition);
	values[Anum_state_file - 1] = ObjectIdGetDatum(state->file);
	values[Anum_state_place - 1] = PointerGetDatum(&state->place);

	/* What has become of the rows, for the view backfill_progress. */
	values[Anum_state_estimated - 1] = Int64GetDatum(state->estimated);
	values[Anum_state_rows_read - 1] = Int64GetDatum(state->read);
	values[Anum_state_recorded - 1] = Int64GetDatum(state->rows.recorded);
	values[Anum_state_skipped - 1] = Int64GetDatum(state->rows.skipped);
	values[Anum_state_dead_lettered - 1] =
		Int64GetDatum(state->rows.dead_lettered);
	values[Anum_state_not_due - 1] = Int64GetDatum(state->rows.not_due);
	values[Anum_state_started_at - 1] = TimestampTzGetDatum(state->started_at);
	values[Anum_state_updated_at - 1] =
		TimestampTzGetDatum(GetCurrentTimestamp());

	/* These three may be NULL. */
	values[Anum_state_before - 1] = state->before;
	nulls[Anum_state_before - 1] = state->before == (Datum) 0;
	values[Anum_state_now - 1] = state->now;
	nulls[Anum_state_now - 1] = state->now == (Datum) 0;
	values[Anum_state_finished_at - 1] = values[Anum_state_updated_at - 1];
	nulls[Anum_state_finished_at - 1] = !state->finished;

	onside_insert_row(&insert);
	onside_insert_end(&insert);
}

/*
 * Deletes the rows of dropped tables: another table may get such an OID some
 * day.  Nobody writes while we hold the lock, so each row that we see can be
 * deleted.
 */
void
onside_backfill_forget_dropped(void)
{
	Oid			relid = onside_table_oid("backfill_state");
	Relation	rel;
	Snapshot	snapshot;
	TableScanDesc scan;
	TupleTableSlot *slot;

	/* If another backfill is at work, another call will do it. */
	if (!ConditionalLockRelationOid(relid, ShareRowExclusiveLock))
		return;
	rel = table_open(relid, NoLock);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	slot = table_slot_create(rel, NULL);
	scan = onside_table_beginscan(rel, snapshot, 0, NULL);

	/* A dropped table has no row in pg_class. */
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		slot_getallattrs(slot);
		if (!SearchSysCacheExists1(RELOID,
								   slot->tts_values[Anum_state_source - 1]))
			simple_heap_delete(rel, &slot->tts_tid);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	UnregisterSnapshot(snapshot);
	table_close(rel, NoLock);
}
