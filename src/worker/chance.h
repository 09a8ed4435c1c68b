/*-------------------------------------------------------------------------
 *
 * chance.h
 *		Second chances of dead letters.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_CHANCE_H
#define ONSIDE_CHANCE_H

#include "postgres.h"

#include "log/batch.h"
#include "send/sender.h"

/* Whose chances these are. */
extern void onside_chance_init(OnsideSender *sender);

/* Dead letters may have come that have their chance at this time. */
extern void onside_chance_expect(TimestampTz retry_at);

/* Begins a chance if one is due, and none is under way. */
extern void onside_chance_look(void);

/* The next dead letter of the present chance, alone in a sealed batch; or NULL. */
extern OnsideBatch *onside_chance_pick(void);

/* Milliseconds until there is one to begin; -1 for never. */
extern long onside_chance_timeout(void);

#endif							/* ONSIDE_CHANCE_H */
