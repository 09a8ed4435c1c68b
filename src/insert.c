/*-------------------------------------------------------------------------
 *
 * insert.c
 *		Inserting rows into one of the extension's tables, without SQL.
 *
 * Recording an event must work for a role that has no privilege on the
 * extension's tables and must not cost a plan, so it goes to the table access
 * method directly, in the way COPY does.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/rel.h"

#include "compat.h"
#include "insert.h"

void
onside_insert_begin(OnsideInsert *insert, Oid relid)
{
	PreventCommandIfReadOnly("recording an event");
	PreventCommandIfParallelMode("recording an event");

	insert->rel = table_open(relid, RowExclusiveLock);
	insert->estate = CreateExecutorState();
	insert->rri = makeNode(ResultRelInfo);
	InitResultRelInfo(insert->rri, insert->rel, 1, NULL, 0);
	ExecOpenIndices(insert->rri, false);
	insert->slot = table_slot_create(insert->rel, NULL);
	insert->bistate = GetBulkInsertState();
}

void
onside_insert_row(OnsideInsert *insert)
{
	ExecStoreVirtualTuple(insert->slot);
	table_tuple_insert(insert->rel, insert->slot, GetCurrentCommandId(true), 0,
					   insert->bistate);
	if (insert->rri->ri_NumIndices > 0)
		(void) onside_insert_index_entries(insert->rri, insert->slot,
										   insert->estate);
	ResetPerTupleExprContext(insert->estate);
	ExecClearTuple(insert->slot);
}

void
onside_insert_end(OnsideInsert *insert)
{
	FreeBulkInsertState(insert->bistate);
	ExecDropSingleTupleTableSlot(insert->slot);
	ExecCloseIndices(insert->rri);
	FreeExecutorState(insert->estate);
	table_close(insert->rel, NoLock);
}
