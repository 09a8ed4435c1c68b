/*-------------------------------------------------------------------------
 *
 * batch.h
 *		Events on their way: a request's body and what is in it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_BATCH_H
#define ONSIDE_BATCH_H

#include "postgres.h"

#include "event.h"
#include "settings.h"
#include "window.h"

/* An event in a batch. */
typedef struct OnsideBatchEvent
{
	OnsidePosition pos;
	TimestampTz recorded_at;
	pg_uuid_t	event_id;
	int			offset;			/* of its JSON in the body */
	int			length;
} OnsideBatchEvent;

typedef struct OnsideBatch
{
	MemoryContext context;		/* holds all of this */
	StringInfoData body;		/* as it is sent, once sealed */
	int			nevents;
	int			capacity;
	OnsideBatchEvent *events;
	int64		opened_at;		/* by onside_clock() */
	OnsideCursor end;			/* settled up to here, with all before it */
	uint16		seen[ONSIDE_API_MAX_EVENTS * 2 + 1];	/* hash of event_ids */
} OnsideBatch;

/* An empty batch in a memory context of its own below the current one. */
extern OnsideBatch *onside_batch_create(void);
extern void onside_batch_free(OnsideBatch *batch);

/*
 * Adds an event.  Returns false, and changes nothing, if the batch would have
 * more than max_events events, if its body would reach max_bytes (the first
 * event is always taken), or if an event with this event_id is in it already.
 */
extern bool onside_batch_add(OnsideBatch *batch, const OnsideEvent *event,
							 const OnsidePosition *pos,
							 TimestampTz recorded_at,
							 int max_events, int max_bytes);

/* Completes the body; nothing can be added any more. */
extern void onside_batch_seal(OnsideBatch *batch);

/*
 * A body with count events from the first-th on, in the batch's context: the
 * same bytes as in the whole body.
 */
extern char *onside_batch_part(OnsideBatch *batch, int first, int count,
							   size_t *len);

#endif							/* ONSIDE_BATCH_H */
