/*-------------------------------------------------------------------------
 *
 * sort.h
 *		Sorting small rows of any number.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_SORT_H
#define ONSIDE_SORT_H

#include "executor/tuptable.h"

typedef struct OnsideSort OnsideSort;

/*
 * Begins to sort rows with columns of these types, by the first nkeys of them,
 * ascending, NULLs last.  Takes work_mem, and temporary files beyond.
 */
extern OnsideSort *onside_sort_begin(const Oid *types, int ncolumns,
									 int nkeys);

/* Takes a row, and copies it.  All rows are put before the first is taken. */
extern void onside_sort_put(OnsideSort *sort, const Datum *values,
							const bool *nulls);

/* The next row, its columns extracted; NULL after the last one. */
extern TupleTableSlot *onside_sort_next(OnsideSort *sort);

extern void onside_sort_end(OnsideSort *sort);

#endif							/* ONSIDE_SORT_H */
