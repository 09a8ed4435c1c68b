/*-------------------------------------------------------------------------
 *
 * sort.c
 *		Sorting small rows of any number.
 *
 * retry_dead_letters() and replay() first find out which rows to record, and
 * in which order; then they read the events.  Their notes about the rows are
 * sorted here, by PostgreSQL's tuplesort, so a million rows need no more
 * memory than work_mem.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/tuplesort.h"
#include "utils/typcache.h"

#include "log/sort.h"

/* No caller has more columns. */
#define MAX_COLUMNS	8

struct OnsideSort
{
	Tuplesortstate *state;
	TupleTableSlot *in;
	TupleTableSlot *out;
	bool		sorted;
};

/*
 * tuplesort needs a row type.  We make it from a target list of constants,
 * whose types are those of the columns.
 */
OnsideSort *
onside_sort_begin(const Oid *types, int ncolumns, int nkeys)
{
	OnsideSort *sort = palloc0(sizeof(OnsideSort));
	AttrNumber	columns[MAX_COLUMNS];
	Oid			operators[MAX_COLUMNS];
	Oid			collations[MAX_COLUMNS] = {InvalidOid};
	bool		nulls_first[MAX_COLUMNS] = {false};
	List	   *targets = NIL;
	TupleDesc	tupdesc;

	Assert(nkeys <= ncolumns && ncolumns <= MAX_COLUMNS);
	for (int i = 0; i < ncolumns; i++)
	{
		/* The column: its type, its default order, NULLs last. */
		Const	   *value = makeNullConst(types[i], -1, InvalidOid);

		targets = lappend(targets,
						  makeTargetEntry((Expr *) value, i + 1, NULL, false));
		columns[i] = i + 1;
		operators[i] = lookup_type_cache(types[i], TYPECACHE_LT_OPR)->lt_opr;
	}
	tupdesc = ExecTypeFromTL(targets);

	/* What does not fit into work_mem goes into temporary files. */
	sort->state = tuplesort_begin_heap(tupdesc, nkeys, columns, operators,
									   collations, nulls_first, work_mem,
									   NULL, TUPLESORT_NONE);

	/* Rows go in by one slot and come out by another. */
	sort->in = MakeSingleTupleTableSlot(tupdesc, &TTSOpsVirtual);
	sort->out = MakeSingleTupleTableSlot(tupdesc, &TTSOpsMinimalTuple);
	return sort;
}

/* tuplesort copies the row. */
void
onside_sort_put(OnsideSort *sort, const Datum *values, const bool *nulls)
{
	TupleTableSlot *slot = sort->in;
	int			ncolumns = slot->tts_tupleDescriptor->natts;

	ExecClearTuple(slot);
	memcpy(slot->tts_values, values, ncolumns * sizeof(Datum));
	memcpy(slot->tts_isnull, nulls, ncolumns * sizeof(bool));
	ExecStoreVirtualTuple(slot);
	tuplesort_puttupleslot(sort->state, slot);
}

TupleTableSlot *
onside_sort_next(OnsideSort *sort)
{
	/* The first call sorts. */
	if (!sort->sorted)
		tuplesort_performsort(sort->state);
	sort->sorted = true;
	if (!tuplesort_gettupleslot(sort->state, true, false, sort->out, NULL))
		return NULL;

	/* Callers read the arrays of the slot directly. */
	slot_getallattrs(sort->out);
	return sort->out;
}

void
onside_sort_end(OnsideSort *sort)
{
	ExecDropSingleTupleTableSlot(sort->in);
	ExecDropSingleTupleTableSlot(sort->out);
	tuplesort_end(sort->state);
	pfree(sort);
}
