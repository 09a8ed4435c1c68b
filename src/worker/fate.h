/*-------------------------------------------------------------------------
 *
 * fate.h
 *		What has become of events, carried out in the tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_FATE_H
#define ONSIDE_FATE_H

#include "postgres.h"

#include "log/event.h"
#include "worker/state.h"

/* An event that is about to leave the log, or aside. */
typedef struct OnsideCopy
{
	bool		found;			/* or somebody has deleted it meanwhile */
	OnsideEvent event;
	TimestampTz recorded_at;
} OnsideCopy;

/* Copies an event from where it is kept; returns whether it is there. */
extern bool onside_fate_fetch(const OnsideItem *item, OnsideCopy *copy);

/*
 * Carries out fates of the sender, as many as go into one transaction, which the
 * caller has begun.  Are they all?
 */
extern bool onside_fate_carry_out(OnsideWorker *worker);

/*
 * That transaction has been committed: counts and logs what has become of the
 * events, and forgets their fates.
 */
extern void onside_fate_forget(OnsideWorker *worker);

/* Refused events that are not in dead_letter yet: they are as pending as before. */
extern int	onside_fate_count_unburied(OnsideWorker *worker);

#endif							/* ONSIDE_FATE_H */
