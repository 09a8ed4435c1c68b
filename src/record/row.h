/*-------------------------------------------------------------------------
 *
 * row.h
 *		A source table's row becomes an event.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_ROW_H
#define ONSIDE_ROW_H

#include "postgres.h"

#include "commands/trigger.h"
#include "executor/tuptable.h"
#include "utils/rel.h"

#include "log/outbox.h"
#include "record/row_outcome.h"

/*
 * Records one row of this table: the event that its columns make, or all
 * events that the mapper makes of it.  An event without an event_id gets a new
 * event_id.  For *append see onside_row_settle().
 */
extern void onside_row_record(OnsideRowReader *reader, Relation rel,
							  TupleTableSlot *row, OnsideAppend **append);

/* Records all rows of a statement's transition table. */
extern void onside_row_record_all(OnsideRowReader *reader,
								  TriggerData *trigdata,
								  OnsideAppend **append);

/*
 * What would become of the row?  Records and counts nothing.  *error says why
 * the row is no event; error->field is NULL if the mapper returns no event.
 * The error's strings live in the reader's per_row, which the caller resets.
 */
extern OnsideRowOutcome onside_row_try(OnsideRowReader *reader,
									   Relation rel,
									   TupleTableSlot *row,
									   OnsideEventError *error);

#endif							/* ONSIDE_ROW_H */
