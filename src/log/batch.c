/*-------------------------------------------------------------------------
 *
 * batch.c
 *		A request's body, and which events are in it.
 *
 * The worker adds events until a bound is reached or no event is left, and
 * then sends the body as it is; reader.c and chance.c call this file.  All of
 * a batch is in a memory context of its own.
 *
 * The batch has a hash table of its event_ids, which keeps two events with the
 * same event_id out of one request: the API would ignore one of them as a
 * repetition.
 *
 * No SQL and no locks.  A function fails only for lack of memory.  The caller
 * must then free the batch: it can end in the middle of an event.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "log/batch.h"

/* The batch, its body and what grows with it are in one context. */
OnsideBatch *
onside_batch_create(void)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "onside_attribution batch",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	OnsideBatch *batch = palloc(sizeof(OnsideBatch));

	/* The items need no zeros. */
	memset(batch, 0, offsetof(OnsideBatch, items));
	batch->context = context;
	batch->opened_at = onside_clock();

	/* The body begins with what surrounds the events. */
	initStringInfo(&batch->body);
	appendStringInfoString(&batch->body, ONSIDE_API_BODY_OPEN);
	MemoryContextSwitchTo(old);
	return batch;
}

void
onside_batch_free(OnsideBatch *batch)
{
	MemoryContextDelete(batch->context);
}

/*
 * The place in the hash table where an event_id is, or where it belongs.  The
 * table is never more than half full, so the search ends.
 */
static uint16 *
find_seen(OnsideBatch *batch, const pg_uuid_t *event_id)
{
	uint32		i = hash_bytes(event_id->data, UUID_LEN) %
		lengthof(batch->seen);

	while (batch->seen[i] != 0 &&
		   memcmp(batch->items[batch->seen[i] - 1].event_id, event_id,
				  UUID_LEN) != 0)
		i = (i + 1) % lengthof(batch->seen);
	return &batch->seen[i];
}

/*
 * Renders the event before it checks max_bytes, since only then we know the
 * event's size.  If the event does not fit, it is cut off again.
 */
bool
onside_batch_add(OnsideBatch *batch, const OnsideEvent *event,
				 const OnsideItem *where, int max_events, int max_bytes)
{
	StringInfo	body = &batch->body;
	int			start = body->len;
	OnsideItem *item;
	uint16	   *seen;

	/* Two events with one event_id never share a request. */
	if (batch->nitems >= max_events)
		return false;
	seen = find_seen(batch, &event->event_id);
	if (*seen != 0)
		return false;

	/* Render the event behind the others. */
	if (batch->nitems > 0)
		appendStringInfoChar(body, ',');
	item = &batch->items[batch->nitems];
	*item = *where;
	item->bytes = -body->len;
	onside_event_render(body, event);
	item->bytes += body->len;

	/* Cut the event off if it does not fit, unless it is the only one. */
	if (batch->nitems > 0 &&
		body->len + (int) sizeof(ONSIDE_API_BODY_CLOSE) - 1 >= max_bytes)
	{
		body->len = start;
		body->data[start] = '\0';
		return false;
	}

	/* The event is in the batch: remember its event_id. */
	memcpy(item->event_id, event->event_id.data, UUID_LEN);
	*seen = ++batch->nitems;
	return true;
}

void
onside_batch_seal(OnsideBatch *batch)
{
	appendStringInfoString(&batch->body, ONSIDE_API_BODY_CLOSE);
}
