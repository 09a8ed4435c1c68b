/*-------------------------------------------------------------------------
 *
 * item.c
 *		What the key of an event that the sender knows means.
 *
 * The sender knows an event by its home (log, aside or dead_letter) and a key
 * of two numbers, which mean nothing to the sender.  In the log they are the
 * event's position, in aside and dead_letter they are the id of its row.
 * Pure.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "worker/item.h"

OnsidePosition
onside_item_position(const OnsideItem *item)
{
	OnsidePosition pos;

	Assert(item->home == ONSIDE_IN_LOG);
	pos.xid = FullTransactionIdFromU64(item->key[0]);
	pos.id = (int64) item->key[1];
	return pos;
}

const pg_uuid_t *
onside_item_id(const OnsideItem *item)
{
	Assert(item->home != ONSIDE_IN_LOG);
	return (const pg_uuid_t *) item->key;
}

void
onside_item_set_id(OnsideItem *item, const pg_uuid_t *id)
{
	memcpy(item->key, id->data, UUID_LEN);
}

OnsideItem
onside_item_at(const OnsidePosition *pos, TimestampTz recorded_at)
{
	OnsideItem	item = {0};

	item.home = ONSIDE_IN_LOG;
	item.key[0] = U64FromFullTransactionId(pos->xid);
	item.key[1] = (uint64) pos->id;
	item.recorded_at = recorded_at;
	return item;
}
