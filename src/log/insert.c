/*-------------------------------------------------------------------------
 *
 * insert.c
 *		Inserting rows into one of the extension's tables, without SQL.
 *
 * Recording an event must work for a role that has no privilege on the
 * extension's tables, and must not cost a plan.  So rows go to the table access
 * method directly, in the way of COPY: they are collected and written page by
 * page, with one WAL record for a page.  That makes many rows cheaper than an
 * INSERT makes them.
 *
 * Everything that records an event calls this file, and everything that writes
 * one of our tables.  onside_insert_begin() takes a RowExclusiveLock, which is
 * kept to the end of the transaction.  Errors are raised: a table that was
 * altered, a full disk, no memory.
 *
 * Users may have added columns and indexes to a table of ours (see shape.c).
 * Most of them need no executor: such a column is NULL, and an index on columns
 * is maintained.  While this library was not loaded, more may have been added:
 * a column with a default, a generated column, or an index that is unique, on
 * an expression or has a condition.  The session that records an event has not
 * asked for that code.  So the code runs as PostgreSQL runs it when it builds
 * an index: as the table's owner, in a security-restricted operation, with a
 * safe search_path.
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
#include "executor/nodeModifyTable.h"
#include "miscadmin.h"
#include "rewrite/rewriteHandler.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/rel.h"

#include "attempt.h"
#include "compat.h"
#include "log/insert.h"
#include "log/shape.h"
#include "log/tables.h"

/* COPY's bounds: more rows or bytes at once make nothing cheaper. */
#define MAX_ROWS	1000
#define MAX_BYTES	65535

/* ----------
 * What others have added
 * ----------
 */

/* Who we were before we became the table's owner. */
typedef struct Self
{
	Oid			user;
	int			context;
	int			nestlevel;
} Self;

/* Becomes the owner.  After an error, the abort restores the user. */
static void
become_owner(const OnsideInsert *insert, Self *self)
{
	GetUserIdAndSecContext(&self->user, &self->context);
	SetUserIdAndSecContext(insert->rel->rd_rel->relowner,
						   self->context | SECURITY_RESTRICTED_OPERATION);
	self->nestlevel = NewGUCNestLevel();
	onside_set_for_now("search_path", "pg_catalog, pg_temp");
}

/* Undoes become_owner(). */
static void
restore_user(const Self *self)
{
	AtEOXact_GUC(false, self->nestlevel);
	SetUserIdAndSecContext(self->user, self->context);
}

/* Does the index need no executor, since it is on columns alone? */
static bool
is_plain(const IndexInfo *index)
{
	return index->ii_Expressions == NIL && index->ii_Predicate == NIL &&
		index->ii_ExclusionOps == NULL && !index->ii_Unique;
}

/*
 * Looks for others' columns that need a value, and prepares their defaults.
 * Makes an executor's state if a column or an index needs it.
 */
static void
prepare_others(OnsideInsert *insert, int ncolumns)
{
	TupleDesc	tupdesc = RelationGetDescr(insert->rel);
	Self		self;

	/* Look for an index or a column that has to be computed. */
	for (int i = 0; i < insert->rri->ri_NumIndices; i++)
		insert->computes |= !is_plain(insert->rri->ri_IndexRelationInfo[i]);
	for (int i = ncolumns; i < tupdesc->natts; i++)
	{
		Form_pg_attribute attr = TupleDescAttr(tupdesc, i);

		insert->computes |= !attr->attisdropped &&
			(attr->attnotnull || attr->atthasdef || attr->attidentity != '\0');
	}
	if (!insert->computes)
		return;

	/* Prepare the defaults as the owner: that can run code already. */
	insert->estate = CreateExecutorState();
	insert->defaults = palloc0(tupdesc->natts * sizeof(ExprState *));
	insert->first_other = ncolumns;
	become_owner(insert, &self);
	for (int i = ncolumns; i < tupdesc->natts; i++)
	{
		Form_pg_attribute attr = TupleDescAttr(tupdesc, i);
		Node	   *expr = attr->attisdropped || attr->attgenerated != '\0' ?
			NULL : build_column_default(insert->rel, i + 1);

		/* Without a default, the column stays NULL. */
		if (expr != NULL)
			insert->defaults[i] = ExecPrepareExpr((Expr *) expr,
												  insert->estate);
	}
	restore_user(&self);
}

/* Gives others' columns their values in a row, and checks NOT NULL. */
static void
compute_others(OnsideInsert *insert, TupleTableSlot *slot)
{
	TupleDesc	tupdesc = RelationGetDescr(insert->rel);
	ExprContext *econtext = GetPerTupleExprContext(insert->estate);
	Self		self;

	/* Run the code of defaults and generated columns as the table's owner. */
	become_owner(insert, &self);

	/* Defaults come first: a generated column can depend on them. */
	for (int i = insert->first_other; i < tupdesc->natts; i++)
		if (insert->defaults[i] != NULL)
			slot->tts_values[i] =
				ExecEvalExprSwitchContext(insert->defaults[i], econtext,
										  &slot->tts_isnull[i]);
	if (tupdesc->constr != NULL && tupdesc->constr->has_generated_stored)
		ExecComputeStoredGenerated(insert->rri, insert->estate, slot,
								   CMD_INSERT);
	restore_user(&self);

	/* Check what PostgreSQL's executor would check. */
	for (int i = insert->first_other; i < tupdesc->natts; i++)
	{
		Form_pg_attribute attr = TupleDescAttr(tupdesc, i);

		if (attr->attnotnull && !attr->attisdropped && slot->tts_isnull[i])
			ereport(ERROR,
					(errcode(ERRCODE_NOT_NULL_VIOLATION),
					 errmsg("column \"%s\" of table \"%s.%s\" is NOT NULL and has no value",
							NameStr(attr->attname), ONSIDE_SCHEMA,
							RelationGetRelationName(insert->rel)),
					 errdetail("The extension onside_attribution writes this table and does not know the column."),
					 errhint("ALTER TABLE %s.%s ALTER COLUMN %s DROP NOT NULL;",
							 ONSIDE_SCHEMA,
							 onside_shape_is_segment(insert->rel) ? "outbox" :
							 RelationGetRelationName(insert->rel),
							 quote_identifier(NameStr(attr->attname))),
					 errtablecol(insert->rel, i + 1)));
	}
}

/* ----------
 * Inserting
 * ----------
 */

/* Opens the table and its indexes, once for any number of rows. */
void
onside_insert_begin(OnsideInsert *insert, Oid relid)
{
	int			ncolumns;

	PreventCommandIfReadOnly("recording an event");
	PreventCommandIfParallelMode("recording an event");

	memset(insert, 0, sizeof(*insert));

	/* The caller's memory context holds everything until the end. */
	insert->context = CurrentMemoryContext;
	insert->rel = table_open(relid, RowExclusiveLock);
	ncolumns = onside_shape_require(insert->rel, false);

	/*
	 * Only these fields of a ResultRelInfo are used, as in
	 * CatalogOpenIndexes().
	 */
	insert->rri = makeNode(ResultRelInfo);
	insert->rri->ri_RelationDesc = insert->rel;
	ExecOpenIndices(insert->rri, false);
	prepare_others(insert, ncolumns);
}

/*
 * Slots are kept, and used again after each flush.  A single event, which is
 * the usual case, takes one slot and no array for more.
 */
TupleTableSlot *
onside_insert_slot(OnsideInsert *insert)
{
	MemoryContext old;
	TupleTableSlot *slot;

	if (insert->nrows == insert->nslots)
	{
		/* No spare slot is left: make another one. */
		old = MemoryContextSwitchTo(insert->context);
		if (insert->nslots == 0)
			insert->slots = palloc(sizeof(TupleTableSlot *));
		else if (insert->nslots == 1)
			insert->slots = repalloc(insert->slots,
									 MAX_ROWS * sizeof(TupleTableSlot *));
		insert->slots[insert->nslots++] = table_slot_create(insert->rel, NULL);
		MemoryContextSwitchTo(old);
	}
	slot = insert->slots[insert->nrows];

	/* The caller sets what is not NULL. */
	memset(slot->tts_isnull, true,
		   slot->tts_tupleDescriptor->natts * sizeof(bool));
	return slot;
}

/* Writes several rows at once. */
static void
insert_rows(OnsideInsert *insert)
{
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext,
												  "onside_attribution insert",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(insert->context);

	if (insert->bistate == NULL)
		insert->bistate = GetBulkInsertState();

	/* table_multi_insert() leaves its scratch memory behind. */
	MemoryContextSwitchTo(scratch);
	table_multi_insert(insert->rel, insert->slots, insert->nrows,
					   GetCurrentCommandId(true), 0, insert->bistate);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(scratch);
}

/*
 * Makes the index entries of a row.  Plain indexes need no executor.  If
 * anything has to be computed, or an index is unique, the executor's own
 * function makes all entries, as the table's owner.  "summaries" asks for
 * indexes such as BRIN alone.
 */
static void
insert_index_entries(OnsideInsert *insert, TupleTableSlot *slot,
					 bool summaries)
{
	ResultRelInfo *rri = insert->rri;
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];

	if (insert->computes)
	{
		Self		self;

		/* Expressions and conditions are the owner's code. */
		become_owner(insert, &self);
		(void) onside_insert_index_entries(rri, slot, insert->estate,
										   summaries);
		restore_user(&self);
		ResetPerTupleExprContext(insert->estate);
		return;
	}

	/* All indexes are plain, so no entry needs the executor. */
	for (int i = 0; i < rri->ri_NumIndices; i++)
	{
		IndexInfo  *info = rri->ri_IndexRelationInfo[i];

		/* An index that is being made concurrently is not ready at first. */
		if (!info->ii_ReadyForInserts ||
			(summaries && !onside_is_summary(info)))
			continue;
		FormIndexDatum(info, slot, NULL, values, isnull);
		index_insert(rri->ri_IndexRelationDescs[i], values, isnull,
					 &slot->tts_tid, insert->rel, UNIQUE_CHECK_NO, false,
					 info);
	}
}

/* Writes the rows that were collected, and their index entries. */
static void
flush_rows(OnsideInsert *insert)
{
	if (insert->nrows == 0)
		return;

	/* A single row needs no bulk insert. */
	if (insert->nrows == 1)
		table_tuple_insert(insert->rel, insert->slots[0],
						   GetCurrentCommandId(true), 0, NULL);
	else
		insert_rows(insert);

	for (int i = 0; i < insert->nrows; i++)
	{
		/* The rows are in the table; now each index gets its entries. */
		insert_index_entries(insert, insert->slots[i], false);
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
	if (insert->computes)
		compute_others(insert, slot);

	/* This also materializes the row, so the caller may free its values. */
	insert->nbytes += ExecFetchSlotHeapTuple(slot, true, NULL)->t_len;
	if (insert->nrows == MAX_ROWS || insert->nbytes >= MAX_BYTES)
		flush_rows(insert);
}

void
onside_insert_moved(OnsideInsert *insert, TupleTableSlot *slot,
					OnsideUpdateIndexes indexes)
{
	if (onside_update_needs_indexes(indexes))
		insert_index_entries(insert, slot,
							 onside_update_needs_summaries(indexes));
}

void
onside_insert_end(OnsideInsert *insert)
{
	flush_rows(insert);

	/* Give back what was made for several rows at once. */
	if (insert->bistate != NULL)
	{
		FreeBulkInsertState(insert->bistate);
		table_finish_bulk_insert(insert->rel, 0);
	}
	for (int i = 0; i < insert->nslots; i++)
		ExecDropSingleTupleTableSlot(insert->slots[i]);
	ExecCloseIndices(insert->rri);
	if (insert->computes)
		FreeExecutorState(insert->estate);
	table_close(insert->rel, NoLock);
}
