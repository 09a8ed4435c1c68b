/*-------------------------------------------------------------------------
 *
 * sending.h
 *		Carries out what the sender orders.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_SENDING_H
#define ONSIDE_SENDING_H

#include "postgres.h"

#include "worker/state.h"

/* Once: makes the sender, which starts with what a predecessor has left. */
extern void onside_sending_init(OnsideWorker *worker,
								const OnsideDelivery *delivery);

/*
 * Settings may have changed.  resume: ends any wait, since a person has called
 * resume(), or requests are made in another way now.  elsewhere: endpoint or
 * credentials are others.
 */
extern void onside_sending_configure(OnsideWorker *worker, bool resume,
									 bool elsewhere);

/* Takes the answers that have come. */
extern void onside_sending_collect(OnsideWorker *worker);

/* Sends what may be sent now. */
extern void onside_sending_pump(OnsideWorker *worker);

/* Did an answer ask for the credentials to be read again?  Resets it. */
extern bool onside_sending_take_unauthorized(OnsideWorker *worker);

/*
 * Somebody may have deleted events: looks up those that wait, and never sends
 * those that are gone.  False if they cannot be looked up now.
 */
extern bool onside_sending_check(OnsideWorker *worker);

/*
 * Events were deleted, perhaps also events that are in flight now.  These
 * requests are marked.  Has a request with a mark ended since the last call?
 * Then its events may wait again, and have to be looked up.
 */
extern void onside_sending_suspect(OnsideWorker *worker);
extern bool onside_sending_take_suspect(OnsideWorker *worker);

/* Is nothing left to read or to send, of what the worker knows? */
extern bool onside_sending_drained(OnsideWorker *worker);

/*
 * After how many more events another batch may go; 0 if something else has to
 * happen first.
 */
extern uint64 onside_sending_wants(OnsideWorker *worker);

/* When the oldest event that the sender knows was recorded; 0 for none. */
extern TimestampTz onside_sending_oldest(OnsideWorker *worker);

/* Milliseconds until there may be something to send; -1 for never. */
extern long onside_sending_timeout(OnsideWorker *worker);

/* The end of a wait that the API has asked for; 0 for none. */
extern TimestampTz onside_sending_not_before(OnsideWorker *worker);

/* How sending stands now; the struct is overwritten by the next call. */
extern const OnsideSendingStatus *onside_sending_status(OnsideWorker *worker);

#endif							/* ONSIDE_SENDING_H */
