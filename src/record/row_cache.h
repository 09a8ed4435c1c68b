/*-------------------------------------------------------------------------
 *
 * row_cache.h
 *		Row readers, kept from one statement to the next.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_ROW_CACHE_H
#define ONSIDE_ROW_CACHE_H

#include "postgres.h"

#include "commands/trigger.h"
#include "utils/rel.h"

#include "record/row_reader.h"

/*
 * The reader of a trigger's mapping; it lives until the memory context is
 * reset.  "rel", the trigger's table, is locked.  Raises the errors of
 * onside_row_reader().
 */
extern OnsideRowReader *onside_row_cache_get(Trigger *trigger, Relation rel,
											 MemoryContext context);

#endif							/* ONSIDE_ROW_CACHE_H */
