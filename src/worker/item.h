/*-------------------------------------------------------------------------
 *
 * item.h
 *		Where an event is that the sender knows of.
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

/* An event of the log. */
extern OnsideItem onside_item_at(const OnsidePosition *pos,
								 TimestampTz recorded_at);

/* Where in the log an event is, or its id elsewhere. */
extern OnsidePosition onside_item_position(const OnsideItem *item);
extern const pg_uuid_t *onside_item_id(const OnsideItem *item);
extern void onside_item_set_id(OnsideItem *item, const pg_uuid_t *id);

#endif							/* ONSIDE_ITEM_H */
