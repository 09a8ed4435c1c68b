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
 * For attach(): notes the function's name, and the search_path to call it
 * with, in the mapping.  Raises an error if the function cannot be a mapper,
 * and a NOTICE if PostgreSQL will not inline it.
 */
extern void onside_mapper_check(Oid function, Oid relid,
								OnsideMapping *mapping);

/*
 * What keeps the function from being a mapper for this row type, to be read
 * after its name ("is an aggregate"); NULL if it can be.  *sqlstate goes with
 * it.
 */
extern char *onside_mapper_problem(Oid function, Oid row_type, int *sqlstate);

/*
 * What in its declaration keeps the function from being inlined, to be read
 * after its name ("is VOLATILE"); NULL if nothing does.
 */
extern char *onside_mapper_obstacles(Oid function);

#endif							/* ONSIDE_MAPPER_CHECK_H */
