/*-------------------------------------------------------------------------
 *
 * batch.h
 *		A request's body, and which events are in it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_BATCH_H
#define ONSIDE_BATCH_H

#include "log/event.h"
#include "send/piece.h"
#include "settings.h"

typedef struct OnsideBatch
{
	MemoryContext context;		/* holds all of this */
	StringInfoData body;		/* as it is sent, once sealed */
	int64		opened_at;		/* by onside_clock() */
	uint16		seen[ONSIDE_API_MAX_EVENTS * 2 + 1];	/* see find_seen() */
	int			nitems;
	OnsideItem	items[ONSIDE_API_MAX_EVENTS];
} OnsideBatch;

/* An empty batch in a memory context of its own below the current one. */
extern OnsideBatch *onside_batch_create(void);
extern void onside_batch_free(OnsideBatch *batch);

/*
 * Adds an event; "where" has its place and recorded_at.  Returns false, and
 * changes nothing, if the batch would have more than max_events events, if its
 * body would reach max_bytes (a first event is always added), or if the batch
 * has an event with this event_id already.  max_events is at most
 * ONSIDE_API_MAX_EVENTS.
 */
extern bool onside_batch_add(OnsideBatch *batch, const OnsideEvent *event,
							 const OnsideItem *where,
							 int max_events, int max_bytes);

/* Completes the body; after that no event can be added. */
extern void onside_batch_seal(OnsideBatch *batch);

#endif							/* ONSIDE_BATCH_H */
