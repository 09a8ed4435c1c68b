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

/* Starts counting what is not settled; onside_backlog_count_some does it. */
extern void onside_backlog_start_counting(OnsideWorker *worker);

/* Counts some of it, if there is any left, in a transaction of its own. */
extern void onside_backlog_count_some(OnsideWorker *worker);

/*
 * When the oldest event was recorded that was aside at the last count; 0 if none
 * was.
 */
extern TimestampTz onside_backlog_aside_oldest(OnsideWorker *worker);

/* Milliseconds until there is more to count; -1 for never. */
extern long onside_backlog_timeout(OnsideWorker *worker);

/*
 * Nothing was pending when slot->recorded was "recorded": whatever the
 * counters say, they start from there.
 */
extern void onside_backlog_is_empty(OnsideWorker *worker, uint64 recorded);

#endif							/* ONSIDE_BACKLOG_H */
