/*-------------------------------------------------------------------------
 *
 * take.h
 *		Finding and locking rows of the extension's tables, without SQL.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_TAKE_H
#define ONSIDE_TAKE_H

#include "postgres.h"

#include "executor/tuptable.h"
#include "nodes/lockoptions.h"
#include "utils/relcache.h"
#include "utils/uuid.h"

/*
 * Leaves in the slot the row of an open table that has this UUID in this
 * column, as our tables are read on behalf of somebody
 * (onside_reading_snapshot).  Reads by the index of that name, or the whole
 * table if that is not usable.
 */
extern bool onside_take_find(Relation rel, const char *index,
							 AttrNumber column, const pg_uuid_t *value,
							 TupleTableSlot *slot);

/* What has become of a row that was seen. */
typedef enum OnsideTaken
{
	ONSIDE_TAKEN,				/* it is as it was */
	ONSIDE_TAKEN_CHANGED,		/* somebody has changed it meanwhile */
	ONSIDE_TAKE_GONE,			/* somebody has deleted it meanwhile */
	ONSIDE_TAKE_BUSY,			/* somebody has it locked (with LockWaitSkip) */
} OnsideTaken;

/*
 * Locks a row that the active snapshot sees, so that we can delete it, and
 * leaves its last version in the slot.  Waits for whoever is changing it, or
 * with LockWaitSkip for nobody.
 */
extern OnsideTaken onside_take_lock(Relation rel, ItemPointer tid,
									LockWaitPolicy wait, TupleTableSlot *slot);

/* Deletes a row that onside_take_lock has left in the slot. */
extern void onside_take_delete(Relation rel, TupleTableSlot *slot);

/*
 * Deletes the row that has this UUID in this column.  Waits for nobody: false
 * if it is not there, or if somebody else is changing it.
 */
extern bool onside_take_away(Relation rel, const char *index,
							 AttrNumber column, const pg_uuid_t *value);

#endif							/* ONSIDE_TAKE_H */
