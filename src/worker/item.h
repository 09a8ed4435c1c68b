/*-------------------------------------------------------------------------
 *
 * item.h
 *		What the key of an event that the sender knows means.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_ITEM_H
#define ONSIDE_ITEM_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/uuid.h"

#include "log/position.h"
#include "send/piece.h"

/* The item for an event of the log. */
extern OnsideItem onside_item_at(const OnsidePosition *pos,
								 TimestampTz recorded_at);

/* An event's position, if its home is the log; otherwise the id of its row. */
extern OnsidePosition onside_item_position(const OnsideItem *item);
extern const pg_uuid_t *onside_item_id(const OnsideItem *item);
extern void onside_item_set_id(OnsideItem *item, const pg_uuid_t *id);

#endif							/* ONSIDE_ITEM_H */
