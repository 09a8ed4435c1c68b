/*-------------------------------------------------------------------------
 *
 * row_outcome.h
 *		What becomes of a row's event: recorded, a dead letter, an error.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_ROW_OUTCOME_H
#define ONSIDE_ROW_OUTCOME_H

#include "postgres.h"

#include "log/outbox.h"
#include "record/row_reader.h"

/* What would become of a row. */
typedef enum OnsideRowOutcome
{
	ONSIDE_ROW_RECORDED,
	ONSIDE_ROW_SKIPPED,			/* no installation_id, or the mapper makes no
								 * event */
	ONSIDE_ROW_DEAD_LETTER,		/* not a valid event */
} OnsideRowOutcome;

/*
 * Appends the event if error is NULL, or does what on_invalid_event says.
 * *append is opened, in append_context, with the first event: a statement
 * without events leaves no trace.
 */
extern void onside_row_settle(OnsideRowReader *reader, Relation rel,
							  const OnsideEvent *event,
							  const OnsideEventError *error,
							  OnsideAppend **append,
							  MemoryContext append_context);

/*
 * Lets a row through that is not a valid event: a WARNING, and the event goes
 * into dead_letter.
 */
extern void onside_row_let_through(OnsideRowReader *reader, Relation rel,
								   const OnsideEvent *event,
								   const OnsideEventError *error);

/* Counts rows that have no event. */
extern void onside_row_count_skipped(OnsideRowReader *reader, int64 rows);

/*
 * Does an event of this time lie between backfill's since and until?  True for
 * a trigger's rows.  True without a time, too: recording then reports that the
 * time is missing or invalid.
 */
extern bool onside_row_is_due(OnsideRowReader *reader, bool has_datetime,
							  TimestampTz t);

/* The primary key of a row, "(id)=(51)"; NULL if the user may not see it. */
extern char *onside_row_key(Relation rel, TupleTableSlot *row);

#endif							/* ONSIDE_ROW_OUTCOME_H */
