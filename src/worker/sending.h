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

#include "datatype/timestamp.h"

#include "log/delivery.h"
#include "log/shmem.h"
#include "send/sender.h"

/* How things stand. */
typedef struct OnsideSendingStatus
{
	OnsideState state;			/* idle, sending or the trouble's */
	char		reason[ONSIDE_REASON_MAX];	/* "" for none */
	int			in_flight;
	int64		requests;		/* since the start of this process */
	int64		retries;
	TimestampTz last_success_at;
	TimestampTz last_error_at;
	char		last_error[ONSIDE_ERROR_MAX];
	TimestampTz next_attempt_at;	/* 0 if not waiting */
} OnsideSendingStatus;

/* Starts with what a predecessor has left. */
extern void onside_sending_init(const OnsideDelivery *delivery);

/*
 * Settings may have changed.  resume: a person says that all is well again, or
 * it goes another way now; elsewhere: endpoint or credentials are others.
 */
extern void onside_sending_configure(bool resume, bool elsewhere);

/* Takes what has been answered. */
extern void onside_sending_collect(void);

/* Sends what may be sent now. */
extern void onside_sending_pump(void);

/* Did an answer ask for the credentials to be read again?  Resets it. */
extern bool onside_sending_take_unauthorized(void);

/*
 * Somebody has deleted events: those that wait and are gone are never sent.
 * False if that cannot be found out now.
 */
extern bool onside_sending_check(void);

/* When anything was accepted last; 0 if this worker does not know. */
extern TimestampTz onside_sending_accepted_at(void);

/*
 * What is in flight now may have been deleted.  Whether it waits again is known
 * when its request has ended: is that so of one of them?  Resets it.
 */
extern void onside_sending_suspect(void);
extern bool onside_sending_take_suspect(void);

/* Is everything that we know of settled, in the log and aside? */
extern bool onside_sending_drained(void);

/*
 * How many more events would let another batch go, before any other thing
 * happens; 0 if none would.
 */
extern uint64 onside_sending_wants(void);

/* When the oldest event was recorded that is known; 0 for none. */
extern TimestampTz onside_sending_oldest(void);

/* Milliseconds until there may be something to send; -1 for never. */
extern long onside_sending_timeout(void);

/* The end of a wait that the API has asked for; 0 for none. */
extern TimestampTz onside_sending_not_before(void);

extern const OnsideSendingStatus *onside_sending_status(void);

/* The sender itself, for who carries out what has become of events. */
extern OnsideSender *onside_sending_sender(void);

#endif							/* ONSIDE_SENDING_H */
