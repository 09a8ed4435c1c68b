/*-------------------------------------------------------------------------
 *
 * deferred.h
 *		Rows of deferred triggers, as they are at the end of the transaction.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_DEFERRED_H
#define ONSIDE_DEFERRED_H

#include "postgres.h"

#include "commands/trigger.h"
#include "executor/tuptable.h"

typedef struct OnsideDeferred OnsideDeferred;

/* For the calls of one trigger on one table; lives in the given memory context. */
extern OnsideDeferred *onside_deferred_make(TriggerData *trigdata,
											MemoryContext context);

/*
 * The row that the trigger was fired for, as it is now, laid out like the trigger's
 * table; NULL if it is gone, no longer meets the trigger's condition, or was
 * returned before in this transaction, for this event_name.
 */
extern TupleTableSlot *onside_deferred_row(OnsideDeferred *deferred,
										   TriggerData *trigdata,
										   const char *event_name);

#endif							/* ONSIDE_DEFERRED_H */
