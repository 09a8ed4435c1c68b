/*-------------------------------------------------------------------------
 *
 * source.h
 *		An attached table, as backfill reads it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_SOURCE_H
#define ONSIDE_SOURCE_H

#include "postgres.h"

#include "access/transam.h"
#include "commands/trigger.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

#include "attach/backfill_state.h"
#include "record/condition.h"
#include "record/row_reader.h"

/* Resolved for one transaction. */
typedef struct OnsideSource
{
	Relation	rel;
	FullTransactionId next_xid; /* after all that our snapshot shows */
	Trigger    *trigger;		/* a copy */
	OnsideRowReader *reader;
	OnsideCondition *condition;
	TupleTableSlot *converted;	/* a row of a partition */
	const char *part_name;		/* where rows are read, for messages */
	ItemPointer place;			/* of the row there; NULL if none is read now */
} OnsideSource;

/*
 * Looks up what reports the event, in the current memory context.  Raises
 * 42704 if nothing does, 42501 without SELECT on the table, 0A000 if row
 * security applies to the caller, and 55000 if no event_id is mapped.
 */
extern void onside_source_open(OnsideSource *source, Oid relid,
							   const char *event_name);
extern void onside_source_close(OnsideSource *source);

/*
 * About how many rows the table has; 0 if they were never counted.  Warns of
 * partitions that are not read.
 */
extern int64 onside_source_estimate(Relation rel);

/* Begins the state's next pass, the first one if "pass" is 0. */
extern void onside_source_begin_pass(OnsideBackfillState *state);

/*
 * Reads on from the state's place, up to max_rows, with the active snapshot.
 * Rows that meet the condition go into "rows", in the attached table's
 * layout.  Returns false at the end of the pass; true can mean that no row was
 * found for a while.
 */
extern bool onside_source_read(OnsideSource *source,
							   OnsideBackfillState *state,
							   Tuplestorestate *rows, int max_rows);

#endif							/* ONSIDE_SOURCE_H */
