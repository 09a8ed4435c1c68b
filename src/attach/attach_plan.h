/*-------------------------------------------------------------------------
 *
 * attach_plan.h
 *		Which triggers an attachment takes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_ATTACH_PLAN_H
#define ONSIDE_ATTACH_PLAN_H

#include "postgres.h"

#include "nodes/pg_list.h"
#include "utils/rel.h"

#include "attach/attach_args.h"

/* A trigger to be made. */
typedef struct OnsideNewTrigger
{
	char	   *name;
	int16		events;			/* TRIGGER_TYPE_* bits */
	const char *condition;		/* or NULL */
} OnsideNewTrigger;

/*
 * The one or two triggers that the attachment takes, as a list of
 * OnsideNewTrigger.  The table is locked.  Raises an error for a condition
 * that cannot be a WHEN clause, and warns of updates that no trigger sees.
 */
extern List *onside_attach_plan(Relation rel, const OnsideWanted *wanted);

/* The CREATE TRIGGER command for one of these triggers. */
extern char *onside_attach_command(Relation rel, const OnsideWanted *wanted,
								   const OnsideNewTrigger *trigger);

#endif							/* ONSIDE_ATTACH_PLAN_H */
