/*-------------------------------------------------------------------------
 *
 * insert.c
 *		Inserting rows into one of the extension's tables, without SQL.
 *
 * Recording an event must work for a role that has no privilege on the
 * extension's tables and must not cost a plan, so it goes to the table access
 * method directly, in the way COPY does: rows are collected and written page
 * by page, with one WAL record for a page, which makes many rows cheaper than
 * an INSERT makes them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/rel.h"

#include "compat.h"
#include "insert.h"

/* As COPY: a table_multi_insert() of so many rows or bytes gains no more. */
#define MAX_ROWS	1000
#define MAX_BYTES	65535

/*
 * Has an index columns alone, which need no executor?  Those of the outbox have;
 * a DBA may have added others.
 */
static bool
is_plain(const IndexInfo *index)
{
	return index->ii_Expressions == NIL && index->ii_Predicate == NIL &&
		index->ii_ExclusionOps == NULL && !index->ii_Unique;
}

void
onside_insert_begin(OnsideInsert *insert, Oid relid)
{
	PreventCommandIfReadOnly("recording an event");
	PreventCommandIfParallelMode("recording an event");

	memset(insert, 0, sizeof(*insert));
	insert->context = CurrentMemoryContext;
	insert->rel = table_open(relid, RowExclusiveLock);

	/* As CatalogOpenIndexes(): no more of a ResultRelInfo than this is used. */
	insert->rri = makeNode(ResultRelInfo);
	insert->rri->ri_RelationDesc = insert->rel;
	ExecOpenIndices(insert->rri, false);
	for (int i = 0; i < insert->rri->ri_NumIndices; i++)
		if (insert->estate == NULL &&
			!is_plain(insert->rri->ri_IndexRelationInfo[i]))
			insert->estate = CreateExecutorState();
}

TupleTableSlot *
onside_insert_slot(OnsideInsert *insert)
{
	MemoryContext old;

	if (insert->nrows < insert->nslots)
		return insert->slots[insert->nrows];

	old = MemoryContextSwitchTo(insert->context);
	if (insert->nslots == 0)
		insert->slots = palloc(sizeof(TupleTableSlot *));
	else if (insert->nslots == 1)
		insert->slots = repalloc(insert->slots,
								 MAX_ROWS * sizeof(TupleTableSlot *));
	insert->slots[insert->nslots++] = table_slot_create(insert->rel, NULL);
	MemoryContextSwitchTo(old);
	return insert->slots[insert->nrows];
}

/* Many rows at once. */
static void
insert_rows(OnsideInsert *insert)
{
	MemoryContext old;

	if (insert->bistate == NULL)
	{
		old = MemoryContextSwitchTo(insert->context);
		insert->bistate = GetBulkInsertState();
		insert->flush_context =
			AllocSetContextCreate(insert->context, "onside_attribution insert",
								  ALLOCSET_DEFAULT_SIZES);
		MemoryContextSwitchTo(old);
	}

	/* table_multi_insert() leaves its scratch memory behind. */
	old = MemoryContextSwitchTo(insert->flush_context);
	table_multi_insert(insert->rel, insert->slots, insert->nrows,
					   GetCurrentCommandId(true), 0, insert->bistate);
	MemoryContextSwitchTo(old);
	MemoryContextReset(insert->flush_context);
}

static void
insert_index_entries(OnsideInsert *insert, TupleTableSlot *slot)
{
	ResultRelInfo *rri = insert->rri;
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];

	if (insert->estate != NULL)
	{
		(void) onside_insert_index_entries(rri, slot, insert->estate);
		ResetPerTupleExprContext(insert->estate);
		return;
	}

	for (int i = 0; i < rri->ri_NumIndices; i++)
	{
		IndexInfo  *info = rri->ri_IndexRelationInfo[i];

		if (!info->ii_ReadyForInserts)
			continue;
		FormIndexDatum(info, slot, NULL, values, isnull);
		index_insert(rri->ri_IndexRelationDescs[i], values, isnull,
					 &slot->tts_tid, insert->rel, UNIQUE_CHECK_NO, false,
					 info);
	}
}

static void
flush(OnsideInsert *insert)
{
	if (insert->nrows == 0)
		return;
	if (insert->nrows == 1)
		table_tuple_insert(insert->rel, insert->slots[0],
						   GetCurrentCommandId(true), 0, NULL);
	else
		insert_rows(insert);

	for (int i = 0; i < insert->nrows; i++)
	{
		insert_index_entries(insert, insert->slots[i]);
		ExecClearTuple(insert->slots[i]);
	}
	insert->nrows = 0;
	insert->nbytes = 0;
}

void
onside_insert_row(OnsideInsert *insert)
{
	TupleTableSlot *slot = insert->slots[insert->nrows++];

	ExecStoreVirtualTuple(slot);
	insert->nbytes += ExecFetchSlotHeapTuple(slot, true, NULL)->t_len;
	if (insert->nrows == MAX_ROWS || insert->nbytes >= MAX_BYTES)
		flush(insert);
}

void
onside_insert_end(OnsideInsert *insert)
{
	flush(insert);
	if (insert->bistate != NULL)
	{
		FreeBulkInsertState(insert->bistate);
		MemoryContextDelete(insert->flush_context);
		table_finish_bulk_insert(insert->rel, 0);
	}
	for (int i = 0; i < insert->nslots; i++)
		ExecDropSingleTupleTableSlot(insert->slots[i]);
	ExecCloseIndices(insert->rri);
	if (insert->estate != NULL)
		FreeExecutorState(insert->estate);
	table_close(insert->rel, NoLock);
}
