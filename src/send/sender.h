/*-------------------------------------------------------------------------
 *
 * sender.h
 *		Batches in flight.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_SENDER_H
#define ONSIDE_SENDER_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "batch.h"
#include "shmem.h"
#include "window.h"

/* An event that the API has refused for good. */
typedef struct OnsideRefusedEvent
{
	int			event;			/* its place in the batch */
	OnsidePosition pos;
	int			http_status;
	int			attempts;
	char	   *error;			/* the API's words */
} OnsideRefusedEvent;

/* Batches at the head of the queue whose events are all settled. */
typedef struct OnsideSettled
{
	OnsideCursor end;			/* everything up to here is settled */
	int64		delivered;
	List	   *refused;		/* of OnsideRefusedEvent */
} OnsideSettled;

/* What has happened so far, and how things stand. */
typedef struct OnsideSenderStatus
{
	OnsideState state;			/* idle, sending or the failure's state */
	char		reason[ONSIDE_REASON_MAX];
	int			in_flight;
	int64		requests;		/* since the start of this process */
	int64		retries;
	TimestampTz last_success_at;
	TimestampTz last_error_at;
	char		last_error[ONSIDE_ERROR_MAX];
	TimestampTz next_attempt_at;	/* 0 if not waiting */
	TimestampTz not_before;		/* a Retry-After that is to outlive us; or 0 */
} OnsideSenderStatus;

/* not_before: a predecessor's OnsideSenderStatus.not_before, or 0. */
extern void onside_sender_init(TimestampTz not_before);

/* Settings may have changed: they deserve a try now. */
extern void onside_sender_reconfigured(void);

/*
 * The endpoint or the account is another one: that events were accepted before
 * says nothing about it.
 */
extern void onside_sender_elsewhere(void);

/* Ends any wait at once (resume(), reload). */
extern void onside_sender_clear_backoff(void);

/*
 * Most events and bytes that the next batch may have, or 0 events if there is
 * no point in building one now.
 */
extern int	onside_sender_wants(int *max_bytes);

/* Queues a sealed batch behind the others; the sender frees it. */
extern void onside_sender_add(OnsideBatch *batch);

/* Sends what may be sent now.  Returns true if there was anything. */
extern bool onside_sender_pump(void);

/* Takes what has been answered. Returns true if there was anything. */
extern bool onside_sender_collect(void);

/* Did an answer ask for the credentials to be read again?  Resets it. */
extern bool onside_sender_take_unauthorized(void);

/*
 * Takes the settled batches at the head of the queue; false if there is none.
 * The refused events are allocated in the current memory context.
 */
extern bool onside_sender_settle(OnsideSettled *settled);

/*
 * The last batch in the queue ends at this cursor: after its events nothing
 * more was found.  False if the queue is empty.
 */
extern bool onside_sender_extend_last(const OnsideCursor *end);

/* Is there any batch in the queue? */
extern bool onside_sender_busy(void);

/* When the oldest unsettled event in the queue was recorded; 0 for none. */
extern TimestampTz onside_sender_oldest(void);

/* Milliseconds until pump may send again; -1 if it does not wait. */
extern long onside_sender_timeout(void);

extern const OnsideSenderStatus *onside_sender_status(void);

#endif							/* ONSIDE_SENDER_H */
