/*-------------------------------------------------------------------------
 *
 * fate.h
 *		Writes into the tables what has become of events.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_FATE_H
#define ONSIDE_FATE_H

#include "postgres.h"

#include "log/event.h"
#include "worker/state.h"

/* A copy of an event that is about to leave the log, or aside. */
typedef struct OnsideCopy
{
	bool		found;			/* false: somebody has deleted the event */
	OnsideEvent event;
	TimestampTz recorded_at;
} OnsideCopy;

/* Copies an event from where it is kept; returns whether it is there. */
extern bool onside_fate_fetch(const OnsideItem *item, OnsideCopy *copy);

/*
 * Carries out fates of the sender, as many as go into one transaction, which
 * the caller has begun.  Returns whether these were all.
 */
extern bool onside_fate_carry_out(OnsideWorker *worker);

/*
 * That transaction has been committed: counts and logs what was carried out,
 * and forgets those fates.
 */
extern void onside_fate_forget(OnsideWorker *worker);

/* How many refused events are not in dead_letter yet, and so still pending. */
extern int	onside_fate_count_unburied(OnsideWorker *worker);

#endif							/* ONSIDE_FATE_H */
