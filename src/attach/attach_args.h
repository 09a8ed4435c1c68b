/*-------------------------------------------------------------------------
 *
 * attach_args.h
 *		attach's arguments.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_ATTACH_ARGS_H
#define ONSIDE_ATTACH_ARGS_H

#include "postgres.h"

#include "fmgr.h"

#include "record/mapping.h"

/* What attach() was asked for. */
typedef struct OnsideWanted
{
	Oid			relid;
	OnsideMapping *mapping;
	int16		events;			/* TRIGGER_TYPE_* bits */
	const char *condition;		/* or NULL */
	const char *becomes;		/* instead of events and condition; or NULL */
	bool		deferred;
} OnsideWanted;

/* Raises 22004 if source, operation or deferred is NULL. */
extern void onside_attach_args_require(FunctionCallInfo fcinfo);

/*
 * Reads the arguments, and raises 22004 or 22023 for what is wrong with them,
 * apart from the table.  A mapper is looked up and planned, which can meet
 * locks.
 */
extern void onside_attach_args_read(FunctionCallInfo fcinfo,
									OnsideWanted *wanted);

#endif							/* ONSIDE_ATTACH_ARGS_H */
