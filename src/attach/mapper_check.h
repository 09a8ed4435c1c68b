/*-------------------------------------------------------------------------
 *
 * mapper_check.h
 *		Can this function be a mapper of this table?
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_MAPPER_CHECK_H
#define ONSIDE_MAPPER_CHECK_H

#include "postgres.h"

#include "record/mapping.h"

/*
 * For attach(): notes the function's name, and the search_path to call it with, in
 * the mapping.  Raises an error for each way in which it cannot be a mapper, and a
 * NOTICE if it can but is not inlined.
 */
extern void onside_mapper_check(Oid function, Oid relid,
								OnsideMapping *mapping);

#endif							/* ONSIDE_MAPPER_CHECK_H */
