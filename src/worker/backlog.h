/*-------------------------------------------------------------------------
 *
 * backlog.h
 *		How many events are pending.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_BACKLOG_H
#define ONSIDE_BACKLOG_H

#include "postgres.h"

#include "worker/state.h"

/* Once, before all else. */
extern void onside_backlog_init(OnsideWorker *worker);

/* Has what is pending counted anew, by onside_backlog_count_some(). */
extern void onside_backlog_start_counting(OnsideWorker *worker);

/* Goes on with a count that is under way, in a transaction of its own. */
extern void onside_backlog_count_some(OnsideWorker *worker);

/* Milliseconds until there is more to count; -1 for never. */
extern long onside_backlog_timeout(OnsideWorker *worker);

/*
 * Nothing was pending when slot->recorded was "recorded": the difference starts
 * from there, whatever it was before.
 */
extern void onside_backlog_is_empty(OnsideWorker *worker, uint64 recorded);

#endif							/* ONSIDE_BACKLOG_H */
