/*-------------------------------------------------------------------------
 *
 * sending.h
 *		What the sender orders, carried out.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_SENDING_H
#define ONSIDE_SENDING_H

#include "postgres.h"

#include "worker/state.h"

/* Starts with what a predecessor has left. */
extern void onside_sending_init(OnsideWorker *worker,
								const OnsideDelivery *delivery);

/*
 * Settings may have changed.  resume: a person says that all is well again, or
 * it goes another way now; elsewhere: endpoint or credentials are others.
 */
extern void onside_sending_configure(OnsideWorker *worker, bool resume,
									 bool elsewhere);

/* Takes what has been answered. */
extern void onside_sending_collect(OnsideWorker *worker);

/* Sends what may be sent now. */
extern void onside_sending_pump(OnsideWorker *worker);

/* Did an answer ask for the credentials to be read again?  Resets it. */
extern bool onside_sending_take_unauthorized(OnsideWorker *worker);

/*
 * Somebody has deleted events: those that wait and are gone are never sent.
 * False if that cannot be found out now.
 */
extern bool onside_sending_check(OnsideWorker *worker);

/*
 * What is in flight now may have been deleted.  Whether it waits again is known
 * when its request has ended: is that so of one of them?  Resets it.
 */
extern void onside_sending_suspect(OnsideWorker *worker);
extern bool onside_sending_take_suspect(OnsideWorker *worker);

/* Is everything that we know of settled, in the log and aside? */
extern bool onside_sending_drained(OnsideWorker *worker);

/*
 * How many more events would let another batch go, before any other thing
 * happens; 0 if none would.
 */
extern uint64 onside_sending_wants(OnsideWorker *worker);

/* When the oldest event was recorded that is known; 0 for none. */
extern TimestampTz onside_sending_oldest(OnsideWorker *worker);

/* Milliseconds until there may be something to send; -1 for never. */
extern long onside_sending_timeout(OnsideWorker *worker);

/* The end of a wait that the API has asked for; 0 for none. */
extern TimestampTz onside_sending_not_before(OnsideWorker *worker);

extern const OnsideSendingStatus *onside_sending_status(OnsideWorker *worker);

#endif							/* ONSIDE_SENDING_H */
