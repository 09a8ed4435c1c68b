/*-------------------------------------------------------------------------
 *
 * backfill_state.c
 *		How far each backfill has come: the table backfill_state.
 *
 * backfill() alone writes this table, and its callers have no privilege on it.
 * So the rows are read and written here, without SQL: no privilege is looked at,
 * and no trigger, rule or policy that somebody has put on the table takes part.
 * What PostgreSQL would check is thereby ours: the key and the NOT NULL columns
 * are filled in below, and the index is maintained by insert.c, which finds a
 * duplicate.  A row is replaced, rather than updated, so that insert.c is all
 * that writes.
 *
 * The row of one backfill is read and written by one session at a time.  It
 * takes turns with others by an object lock whose number is a hash of the row's
 * key; two keys with one hash merely wait for each other.  No SQL command takes
 * such a lock, as pg_advisory_lock() takes its own, so no role can be in the way
 * that is not in backfill() itself.
 *
 * A state that is wrong does no harm, because an event has the same event_id
 * whenever its row is read: if the row is missing, a backfill begins anew.
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
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "attach/backfill_state.h"
#include "compat.h"
#include "insert.h"
#include "outbox.h"
#include "shape.h"

enum
{
	Anum_state_source = 1,
	Anum_state_event_name,
	Anum_state_role,
	Anum_state_since,
	Anum_state_until,
	Anum_state_key_columns,
	Anum_state_position,
	Anum_state_recorded,
	Anum_state_skipped,
	Anum_state_dead_lettered,
	Anum_state_not_due,
	Anum_state_left_out,
	Anum_state_started_at,
	Anum_state_updated_at,
	Anum_state_finished_at
};

static uint32
hash_key(const OnsideBackfillKey *key)
{
	uint32		hash = hash_bytes((const unsigned char *) key->event_name,
								  strlen(key->event_name));

	hash = hash_combine(hash, hash_bytes_uint32(key->source));
	hash = hash_combine(hash, hash_bytes_uint32(key->role));
	hash = hash_combine(hash, hash_bytes((const unsigned char *) &key->since,
										 sizeof(key->since)));
	return hash_combine(hash, hash_bytes((const unsigned char *) &key->until,
										 sizeof(key->until)));
}

/* Is this the row?  Its columns in question are never null. */
static bool
is_row_of(TupleTableSlot *slot, const OnsideBackfillKey *key)
{
	Datum	   *values = slot->tts_values;

	return DatumGetObjectId(values[Anum_state_source - 1]) == key->source &&
		DatumGetObjectId(values[Anum_state_role - 1]) == key->role &&
		DatumGetTimestampTz(values[Anum_state_since - 1]) == key->since &&
		DatumGetTimestampTz(values[Anum_state_until - 1]) == key->until &&
		strcmp(TextDatumGetCString(values[Anum_state_event_name - 1]),
			   key->event_name) == 0;
}

static Datum
copy_array(TupleTableSlot *slot, AttrNumber attnum)
{
	if (slot->tts_isnull[attnum - 1])
		return (Datum) 0;
	return datumCopy(slot->tts_values[attnum - 1], false, -1);
}

static void
read_row(TupleTableSlot *slot, OnsideBackfillState *state)
{
	Datum	   *values = slot->tts_values;

	state->key_columns = copy_array(slot, Anum_state_key_columns);
	state->position = copy_array(slot, Anum_state_position);
	state->finished = !slot->tts_isnull[Anum_state_finished_at - 1];
	state->recorded = DatumGetInt64(values[Anum_state_recorded - 1]);
	state->skipped = DatumGetInt64(values[Anum_state_skipped - 1]);
	state->dead_lettered = DatumGetInt64(values[Anum_state_dead_lettered - 1]);
	state->not_due = DatumGetInt64(values[Anum_state_not_due - 1]);
	state->left_out = DatumGetInt64(values[Anum_state_left_out - 1]);
	state->started_at = DatumGetTimestampTz(values[Anum_state_started_at - 1]);
	state->tid = slot->tts_tid;
}

void
onside_backfill_reset(OnsideBackfillState *state)
{
	ItemPointerData tid = state->tid;

	memset(state, 0, sizeof(*state));
	state->started_at = GetCurrentTimestamp();
	state->tid = tid;
}

/*
 * The snapshot is taken under the lock, whatever the transaction's isolation
 * level is: only so it shows what the session before us has written.  The table
 * stays locked, so that the row is still in its place when it is replaced.
 */
OnsideBackfillState *
onside_backfill_lock(const OnsideBackfillKey *key)
{
	OnsideBackfillState *state = palloc(sizeof(OnsideBackfillState));
	Oid			relid = onside_table_oid("backfill_state");
	Relation	rel;
	Snapshot	snapshot;
	TableScanDesc scan;
	TupleTableSlot *slot;
	bool		found = false;

	ItemPointerSetInvalid(&state->tid);
	onside_backfill_reset(state);
	LockDatabaseObject(relid, hash_key(key), 0, ExclusiveLock);

	rel = table_open(relid, RowExclusiveLock);
	(void) onside_shape_require(rel, true);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	slot = table_slot_create(rel, NULL);
	scan = onside_table_beginscan(rel, snapshot, 0, NULL);
	while (!found && table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		slot_getallattrs(slot);
		found = is_row_of(slot, key);
		if (found)
			read_row(slot, state);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	UnregisterSnapshot(snapshot);
	table_close(rel, NoLock);
	return state;
}

/*
 * Replaces the row.  Columns that somebody has added are filled with NULL.
 */
void
onside_backfill_save(const OnsideBackfillKey *key,
					 const OnsideBackfillState *state)
{
	OnsideInsert insert;
	TupleTableSlot *slot;
	Datum	   *values;
	bool	   *nulls;

	onside_insert_begin(&insert, onside_table_oid("backfill_state"));
	if (ItemPointerIsValid(&state->tid))
		simple_heap_delete(insert.rel,
						   unconstify(ItemPointerData *, &state->tid));

	slot = onside_insert_slot(&insert);
	values = slot->tts_values;
	nulls = slot->tts_isnull;
	memset(nulls, true, slot->tts_tupleDescriptor->natts * sizeof(bool));
	memset(nulls, false, Anum_state_finished_at * sizeof(bool));

	values[Anum_state_source - 1] = ObjectIdGetDatum(key->source);
	values[Anum_state_event_name - 1] = CStringGetTextDatum(key->event_name);
	values[Anum_state_role - 1] = ObjectIdGetDatum(key->role);
	values[Anum_state_since - 1] = TimestampTzGetDatum(key->since);
	values[Anum_state_until - 1] = TimestampTzGetDatum(key->until);
	values[Anum_state_key_columns - 1] = state->key_columns;
	nulls[Anum_state_key_columns - 1] = state->key_columns == (Datum) 0;
	values[Anum_state_position - 1] = state->position;
	nulls[Anum_state_position - 1] = state->position == (Datum) 0;
	values[Anum_state_recorded - 1] = Int64GetDatum(state->recorded);
	values[Anum_state_skipped - 1] = Int64GetDatum(state->skipped);
	values[Anum_state_dead_lettered - 1] = Int64GetDatum(state->dead_lettered);
	values[Anum_state_not_due - 1] = Int64GetDatum(state->not_due);
	values[Anum_state_left_out - 1] = Int64GetDatum(state->left_out);
	values[Anum_state_started_at - 1] = TimestampTzGetDatum(state->started_at);
	values[Anum_state_updated_at - 1] =
		TimestampTzGetDatum(GetCurrentTimestamp());
	values[Anum_state_finished_at - 1] = values[Anum_state_updated_at - 1];
	nulls[Anum_state_finished_at - 1] = !state->finished;

	onside_insert_row(&insert);
	onside_insert_end(&insert);
}

/*
 * The OID of a dropped table may be that of another one some day.  Nobody writes
 * while we hold the lock, so each row that we see can be deleted.
 */
void
onside_backfill_forget_dropped(void)
{
	Oid			relid = onside_table_oid("backfill_state");
	Relation	rel;
	Snapshot	snapshot;
	TableScanDesc scan;
	TupleTableSlot *slot;

	if (!ConditionalLockRelationOid(relid, ShareRowExclusiveLock))
		return;
	rel = table_open(relid, NoLock);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	slot = table_slot_create(rel, NULL);
	scan = onside_table_beginscan(rel, snapshot, 0, NULL);
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
