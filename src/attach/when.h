/*-------------------------------------------------------------------------
 *
 * when.h
 *		The condition of attach: what becomes a trigger's WHEN clause.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_WHEN_H
#define ONSIDE_WHEN_H

#include "postgres.h"

#include "nodes/nodes.h"
#include "utils/rel.h"

/*
 * Parses a condition as CREATE TRIGGER will; NEW is PRS2_NEW_VARNO and OLD
 * PRS2_OLD_VARNO.  "argument" is the name of attach()'s argument, for errors.
 * Raises 42601 if the condition is not one expression, 42P17 if it refers to
 * OLD without allow_old, and whatever PostgreSQL's parser raises.
 */
extern Node *onside_when_transform(Relation rel, const char *argument,
								   const char *condition, bool allow_old);
extern bool onside_when_has_old(Node *when);

/* The same condition with OLD in place of NEW. */
extern char *onside_when_of_old(const char *condition);

#endif							/* ONSIDE_WHEN_H */
