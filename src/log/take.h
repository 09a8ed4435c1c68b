/*-------------------------------------------------------------------------
 *
 * take.h
 *		Finding and locking rows of the extension's tables, without SQL.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_TAKE_H
#define ONSIDE_TAKE_H

#include "executor/tuptable.h"
#include "nodes/lockoptions.h"
#include "utils/relcache.h"
#include "utils/uuid.h"

/*
 * Finds the row that has this UUID in this column, by
 * onside_reading_snapshot(), and leaves it in the slot.  Uses the index of
 * that name if it is usable; otherwise reads the whole table.
 */
extern bool onside_take_find(Relation rel, const char *index,
							 AttrNumber column, const pg_uuid_t *value,
							 TupleTableSlot *slot);

/* What onside_take_lock() has found. */
typedef enum OnsideTaken
{
	ONSIDE_TAKEN,				/* it is as it was */
	ONSIDE_TAKEN_CHANGED,		/* somebody has changed it meanwhile */
	ONSIDE_TAKE_GONE,			/* somebody has deleted it meanwhile */
	ONSIDE_TAKE_BUSY,			/* somebody has it locked (with LockWaitSkip) */
} OnsideTaken;

/*
 * Locks a row that the active snapshot sees, so that we can delete it, and
 * leaves its last version in the slot.  Waits for a session that is changing
 * the row, unless "wait" is LockWaitSkip.  The caller deletes the row with
 * simple_table_tuple_delete().
 */
extern OnsideTaken onside_take_lock(Relation rel, ItemPointer tid,
									LockWaitPolicy wait, TupleTableSlot *slot);

/*
 * Deletes the row that has this UUID in this column.  Waits for nobody: false
 * if the row is missing, or another session is changing it.
 */
extern bool onside_take_away(Relation rel, const char *index,
							 AttrNumber column, const pg_uuid_t *value);

#endif							/* ONSIDE_TAKE_H */
