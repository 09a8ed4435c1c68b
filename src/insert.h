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

typedef struct OnsideInsert
{
	Relation	rel;
	EState	   *estate;
	ResultRelInfo *rri;
	TupleTableSlot *slot;		/* fill tts_values and tts_isnull */
	BulkInsertState bistate;
} OnsideInsert;

/*
 * Opens a table with RowExclusiveLock, which is kept to the end of the
 * transaction.  No privilege is checked, no trigger fired and no constraint
 * looked at: that is the caller's business.  All indexes are kept up.
 */
extern void onside_insert_begin(OnsideInsert *insert, Oid relid);

/* Inserts the row that the caller has put into insert->slot. */
extern void onside_insert_row(OnsideInsert *insert);

extern void onside_insert_end(OnsideInsert *insert);

#endif							/* ONSIDE_INSERT_H */
