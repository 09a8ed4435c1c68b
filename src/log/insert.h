/*-------------------------------------------------------------------------
 *
 * insert.h
 *		Inserting rows into one of the extension's tables, without SQL.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_INSERT_H
#define ONSIDE_INSERT_H

#include "postgres.h"

#include "access/heapam.h"
#include "nodes/execnodes.h"

#include "compat.h"

typedef struct OnsideInsert
{
	Relation	rel;
	MemoryContext context;
	MemoryContext flush_context;
	ResultRelInfo *rri;
	bool		computes;		/* others have added what must be computed */
	EState	   *estate;			/* if it does */
	ExprState **defaults;		/* by column; NULL for none */
	int			first_other;	/* column after ours */
	BulkInsertState bistate;
	TupleTableSlot **slots;		/* rows not yet in the table, and spare ones */
	int			nslots;
	int			nrows;
	Size		nbytes;
} OnsideInsert;

/*
 * Opens a table with RowExclusiveLock, which is kept to the end of the
 * transaction.  No privilege is checked, no trigger fired and no constraint
 * looked at: that is the caller's business.  All indexes are kept up.  Columns
 * that are not ours are NULL, or have their default.
 */
extern void onside_insert_begin(OnsideInsert *insert, Oid relid);

/* The slot for the next row, all NULL: fill tts_values and tts_isnull. */
extern TupleTableSlot *onside_insert_slot(OnsideInsert *insert);

/* Takes that row, and copies it.  Rows go into the table in this order. */
extern void onside_insert_row(OnsideInsert *insert);

/*
 * A row was updated and is somewhere else now: has those indexes lead to it
 * that table_tuple_update() has named.
 */
extern void onside_insert_moved(OnsideInsert *insert, TupleTableSlot *slot,
								OnsideUpdateIndexes indexes);

/* Only now are all rows in the table. */
extern void onside_insert_end(OnsideInsert *insert);

#endif							/* ONSIDE_INSERT_H */
