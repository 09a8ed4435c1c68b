/*-------------------------------------------------------------------------
 *
 * chance.h
 *		Gives dead letters their second chances.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_CHANCE_H
#define ONSIDE_CHANCE_H

#include "postgres.h"

#include "worker/state.h"

/* Once, before all else. */
extern void onside_chance_init(OnsideWorker *worker);

/* There may be dead letters that have their chance at this time. */
extern void onside_chance_expect(OnsideWorker *worker, TimestampTz retry_at);

/* Begins a chance, if one is due and none is under way. */
extern void onside_chance_look(OnsideWorker *worker);

/*
 * The next dead letter of the present chance, alone in a sealed batch, which
 * is the caller's; NULL if there is none now.
 */
extern OnsideBatch *onside_chance_pick(OnsideWorker *worker);

/* Milliseconds until a chance may begin; -1 for never. */
extern long onside_chance_timeout(OnsideWorker *worker);

#endif							/* ONSIDE_CHANCE_H */
