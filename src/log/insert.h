/*-------------------------------------------------------------------------
 *
 * insert.h
 *		Inserting rows into one of the extension's tables, without SQL.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_INSERT_H
#define ONSIDE_INSERT_H

#include "access/heapam.h"
#include "nodes/execnodes.h"

#include "compat.h"

typedef struct OnsideInsert
{
	Relation	rel;
	MemoryContext context;
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
 * transaction.  No privilege is checked, no trigger fires, and no constraint
 * is checked: that is up to the caller.  All indexes are maintained.  Others'
 * columns are NULL, or have their default.
 */
extern void onside_insert_begin(OnsideInsert *insert, Oid relid);

/* The slot for the next row, all NULL: fill tts_values and tts_isnull. */
extern TupleTableSlot *onside_insert_slot(OnsideInsert *insert);

/*
 * Copies that row, to be inserted.  Rows go into the table in the order of the
 * calls.
 */
extern void onside_insert_row(OnsideInsert *insert);

/*
 * Makes the index entries for an updated row, as table_tuple_update() has
 * asked for them.
 */
extern void onside_insert_moved(OnsideInsert *insert, TupleTableSlot *slot,
								OnsideUpdateIndexes indexes);

/* Inserts what is left, and closes the table. */
extern void onside_insert_end(OnsideInsert *insert);

#endif							/* ONSIDE_INSERT_H */
