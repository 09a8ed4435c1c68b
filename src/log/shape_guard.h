/*-------------------------------------------------------------------------
 *
 * shape_guard.h
 *		Statements that would make the extension's tables useless.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_SHAPE_GUARD_H
#define ONSIDE_SHAPE_GUARD_H

#include "postgres.h"

#include "nodes/nodes.h"

#include "log/shape.h"

/* What onside_shape_guard_after() has to know. */
typedef struct OnsideShapeGuard
{
	bool		on;
	bool		renames;
	OnsideTables tables;
	CommandId	command;
} OnsideShapeGuard;

/*
 * Before a utility statement and after it; in between the caller runs it.
 * Either raises an error if the statement is not to change a table of ours in
 * the way it does.
 */
extern void onside_shape_guard_before(OnsideShapeGuard *guard, Node *stmt);
extern void onside_shape_guard_after(const OnsideShapeGuard *guard);

#endif							/* ONSIDE_SHAPE_GUARD_H */
