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

#include "log/event.h"

typedef struct OnsideDeferred OnsideDeferred;

/*
 * For the calls of one trigger on one table, in one statement.  Lives in the
 * given memory context.
 */
extern OnsideDeferred *onside_deferred_make(TriggerData *trigdata,
											const char *event_name,
											MemoryContext context);

/*
 * The row that the trigger was fired for, as it is now, in the trigger's
 * table's layout.  NULL if the row is gone, no longer meets the trigger's
 * condition, or was returned in this version before in this transaction.
 */
extern TupleTableSlot *onside_deferred_row(OnsideDeferred *deferred,
										   TriggerData *trigdata);

/*
 * To be called for each event that a mapper has made of the row, valid or not.
 */
extern void onside_deferred_next_event(OnsideDeferred *deferred);

/*
 * Is this event of that row new?  False if this transaction has recorded it
 * before.
 */
extern bool onside_deferred_is_new(OnsideDeferred *deferred,
								   const OnsideEvent *event);

#endif							/* ONSIDE_DEFERRED_H */
