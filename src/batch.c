/*-------------------------------------------------------------------------
 *
 * batch.c
 *		Events on their way: a request's body and what is in it.
 *
 * Events are rendered straight into the body.  Where each of them lies is
 * remembered, so that a part of a refused batch can be sent without reading
 * or rendering anything again, and with the same bytes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "batch.h"
#include "clock.h"

OnsideBatch *
onside_batch_create(void)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "onside_attribution batch",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	OnsideBatch *batch = palloc0(sizeof(OnsideBatch));

	batch->context = context;
	batch->capacity = 16;
	batch->events = palloc(batch->capacity * sizeof(OnsideBatchEvent));
	batch->opened_at = onside_clock();
	initStringInfo(&batch->body);
	appendStringInfoString(&batch->body, ONSIDE_BODY_OPEN);
	MemoryContextSwitchTo(old);
	return batch;
}

void
onside_batch_free(OnsideBatch *batch)
{
	onside_cursor_release(&batch->end);
	MemoryContextDelete(batch->context);
}

/*
 * The place of an event_id in the hash table: where it is, or where it belongs.
 * The table is never more than half full.
 */
static uint16 *
find_seen(OnsideBatch *batch, const pg_uuid_t *event_id)
{
	uint32		i = hash_bytes(event_id->data, UUID_LEN) %
		lengthof(batch->seen);

	while (batch->seen[i] != 0 &&
		   memcmp(&batch->events[batch->seen[i] - 1].event_id, event_id,
				  UUID_LEN) != 0)
		i = (i + 1) % lengthof(batch->seen);
	return &batch->seen[i];
}

bool
onside_batch_add(OnsideBatch *batch, const OnsideEvent *event,
				 const OnsidePosition *pos, TimestampTz recorded_at,
				 int max_events, int max_bytes)
{
	StringInfo	body = &batch->body;
	int			start = body->len;
	OnsideBatchEvent *entry;
	uint16	   *seen;

	if (batch->nevents >= max_events)
		return false;
	seen = find_seen(batch, &event->event_id);
	if (*seen != 0)
		return false;

	if (batch->nevents == batch->capacity)
	{
		batch->capacity = Min(batch->capacity * 4, ONSIDE_API_MAX_EVENTS);
		batch->events = repalloc(batch->events,
								 batch->capacity * sizeof(OnsideBatchEvent));
	}

	if (batch->nevents > 0)
		appendStringInfoChar(body, ',');
	entry = &batch->events[batch->nevents];
	entry->offset = body->len;
	onside_event_render(body, event);
	entry->length = body->len - entry->offset;

	if (batch->nevents > 0 &&
		body->len + (int) sizeof(ONSIDE_BODY_CLOSE) - 1 >= max_bytes)
	{
		body->len = start;
		body->data[start] = '\0';
		return false;
	}

	entry->pos = *pos;
	entry->recorded_at = recorded_at;
	entry->event_id = event->event_id;
	*seen = ++batch->nevents;
	return true;
}

void
onside_batch_seal(OnsideBatch *batch)
{
	appendStringInfoString(&batch->body, ONSIDE_BODY_CLOSE);
}

char *
onside_batch_part(OnsideBatch *batch, int first, int count, size_t *len)
{
	const OnsideBatchEvent *from = &batch->events[first];
	const OnsideBatchEvent *to = &batch->events[first + count - 1];
	StringInfoData part;
	MemoryContext old = MemoryContextSwitchTo(batch->context);

	Assert(first >= 0 && count > 0 && first + count <= batch->nevents);

	initStringInfo(&part);
	MemoryContextSwitchTo(old);
	appendStringInfoString(&part, ONSIDE_BODY_OPEN);
	appendBinaryStringInfo(&part, batch->body.data + from->offset,
						   to->offset + to->length - from->offset);
	appendStringInfoString(&part, ONSIDE_BODY_CLOSE);
	*len = part.len;
	return part.data;
}
