/*-------------------------------------------------------------------------
 *
 * counting.h
 *		What the worker has counted and not yet published.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_COUNTING_H
#define ONSIDE_COUNTING_H

#include "postgres.h"

#include "worker/state.h"

static inline void
onside_count(OnsideWorker *worker, OnsideCounter counter, int64 n)
{
	worker->counted.counters[counter] += n;
}

/* The counter for requests that ended with this HTTP status.  Pure. */
extern OnsideCounter onside_counting_of_status(int http_status);

/* Adds what was counted to the slot, where the views see it. */
extern void onside_counting_publish(OnsideWorker *worker);

#endif							/* ONSIDE_COUNTING_H */
