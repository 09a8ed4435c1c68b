/*-------------------------------------------------------------------------
 *
 * condition.h
 *		A trigger's WHEN clause, evaluated for rows that we have read.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_CONDITION_H
#define ONSIDE_CONDITION_H

#include "postgres.h"

#include "executor/tuptable.h"
#include "utils/rel.h"

typedef struct OnsideCondition OnsideCondition;

/*
 * Prepares a clause as the relcache has it (tgqual), for rows of this table.
 * Lives in the current memory context.  NULL, for no clause, is a condition
 * that every row meets.
 */
extern OnsideCondition *onside_condition_make(const char *clause,
											  Relation rel);

/*
 * Is the clause true, and not NULL?  "old" is NULL for a row that was inserted; then each
 * column of OLD is NULL.
 */
extern bool onside_condition_is_met(OnsideCondition *condition,
									TupleTableSlot *row, TupleTableSlot *old);

#endif							/* ONSIDE_CONDITION_H */
