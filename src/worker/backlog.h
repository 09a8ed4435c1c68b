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

#include "datatype/timestamp.h"

#include "log/shmem.h"

extern void onside_backlog_init(OnsideSlot *slot);

/* Starts counting what is not settled; onside_backlog_count_some does it. */
extern void onside_backlog_start_counting(void);

/* Is there anything left to count? */
extern bool onside_backlog_counting(void);

/* Counts some of it, in a transaction of its own. */
extern void onside_backlog_count_some(void);

/*
 * When the oldest event was recorded that was aside at the last count; 0 if none
 * was.
 */
extern TimestampTz onside_backlog_aside_oldest(void);

/* Milliseconds until there is more to count; -1 for never. */
extern long onside_backlog_timeout(void);

/*
 * Nothing was pending when slot->recorded was "recorded": whatever the
 * counters say, they start from there.
 */
extern void onside_backlog_is_empty(uint64 recorded);

#endif							/* ONSIDE_BACKLOG_H */
