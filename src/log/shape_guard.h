/*-------------------------------------------------------------------------
 *
 * shape_guard.h
 *		Statements that would make the extension's tables useless.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_SHAPE_GUARD_H
#define ONSIDE_SHAPE_GUARD_H

#include "nodes/nodes.h"

#include "log/shape.h"

/* What onside_shape_guard_before() notes for onside_shape_guard_after(). */
typedef struct OnsideShapeGuard
{
	bool		on;
	bool		renames;
	OnsideTables tables;
	CommandId	command;
} OnsideShapeGuard;

/*
 * Called before and after a utility statement.  Either raises an error if the
 * statement changes a table of ours in a way that we cannot live with.
 */
extern void onside_shape_guard_before(OnsideShapeGuard *guard, Node *stmt);
extern void onside_shape_guard_after(const OnsideShapeGuard *guard);

#endif							/* ONSIDE_SHAPE_GUARD_H */
