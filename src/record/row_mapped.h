/*-------------------------------------------------------------------------
 *
 * row_mapped.h
 *		Rows whose events a mapper makes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_ROW_MAPPED_H
#define ONSIDE_ROW_MAPPED_H

#include "postgres.h"

#include "commands/trigger.h"

#include "record/row_outcome.h"

/* Records the events that the mapper makes of one row. */
extern void onside_row_mapped_record(OnsideRowReader *reader, Relation rel,
									 TupleTableSlot *row,
									 OnsideAppend **append);

/*
 * Records the events of all rows of a statement's transition table, made by
 * one query.  False if that query fails: nothing is recorded then.
 */
extern bool onside_row_mapped_record_all(OnsideRowReader *reader,
										 TriggerData *trigdata,
										 OnsideAppend **append);

/* The same as onside_row_try(), for a reader with a mapper. */
extern OnsideRowOutcome onside_row_mapped_try(OnsideRowReader *reader,
											  TupleTableSlot *row,
											  OnsideEventError *error);

#endif							/* ONSIDE_ROW_MAPPED_H */
