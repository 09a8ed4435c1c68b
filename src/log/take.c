/*-------------------------------------------------------------------------
 *
 * take.c
 *		Finding and locking rows of the extension's tables, without SQL.
 *
 * The counterpart of insert.c: aside and dead_letter lose their rows one by
 * one, and forget() deletes from all tables.  Rows are read and deleted by the
 * table access method, as the caller.  So it matters neither who owns the table
 * nor what is on it: no trigger, rule or policy runs, and no operator but
 * PostgreSQL's own for uuid and tid.
 *
 * The caller has the table open and locked.  The worker waits for nobody: it
 * passes LockWaitSkip, and leaves for later what another session has locked.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "log/shape.h"
#include "log/tables.h"
#include "log/take.h"

/* The slot gets a copy, which outlives the scan. */
bool
onside_take_find(Relation rel, const char *index, AttrNumber column,
				 const pg_uuid_t *value, TupleTableSlot *slot)
{
	Oid			oid = onside_shape_find_index(rel, index);
	ScanKeyData key;
	SysScanDesc scan;
	bool		found;

	ScanKeyInit(&key, column, BTEqualStrategyNumber, F_UUID_EQ,
				UUIDPGetDatum(value));
	scan = systable_beginscan(rel, oid, OidIsValid(oid),
							  onside_reading_snapshot(), 1, &key);
	found = HeapTupleIsValid(systable_getnext(scan));
	if (found)
		ExecCopySlot(slot, scan->slot);
	systable_endscan(scan);
	return found;
}

/* Follows the row to its last version, as a DELETE does at READ COMMITTED. */
OnsideTaken
onside_take_lock(Relation rel, ItemPointer tid, LockWaitPolicy wait,
				 TupleTableSlot *slot)
{
	TM_FailureData failure;
	TM_Result	result;

	/* The lock also keeps others from changing the row until we delete it. */
	result = table_tuple_lock(rel, tid, GetActiveSnapshot(), slot,
							  GetCurrentCommandId(true), LockTupleExclusive,
							  wait, TUPLE_LOCK_FLAG_FIND_LAST_VERSION,
							  &failure);

	/* With FIND_LAST_VERSION, an updated row is no result of its own. */
	switch (result)
	{
		case TM_Ok:
			return failure.traversed ? ONSIDE_TAKEN_CHANGED : ONSIDE_TAKEN;
		case TM_Deleted:
		case TM_SelfModified:
			return ONSIDE_TAKE_GONE;
		case TM_WouldBlock:
			return ONSIDE_TAKE_BUSY;
		default:
			elog(ERROR, "unexpected result of locking a row of table \"%s\": %d",
				 RelationGetRelationName(rel), (int) result);
	}
}

/* Deletes a changed row, too: what counts is that it is there. */
bool
onside_take_away(Relation rel, const char *index, AttrNumber column,
				 const pg_uuid_t *value)
{
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	bool		taken = false;

	if (onside_take_find(rel, index, column, value, slot))
	{
		/* Lock the row before deleting it: that tells whether it is there. */
		ItemPointerData tid = slot->tts_tid;
		OnsideTaken result = onside_take_lock(rel, &tid, LockWaitSkip, slot);

		taken = result == ONSIDE_TAKEN || result == ONSIDE_TAKEN_CHANGED;
		if (taken)
			simple_table_tuple_delete(rel, &slot->tts_tid, GetActiveSnapshot());
	}
	ExecDropSingleTupleTableSlot(slot);
	return taken;
}
