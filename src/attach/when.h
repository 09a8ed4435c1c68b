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
 * The condition of a trigger for these events (TRIGGER_TYPE_* bits), understood as
 * CREATE TRIGGER will; NEW is PRS2_NEW_VARNO and OLD PRS2_OLD_VARNO.  Raises 42601
 * if it is not one expression, 42P17 if it refers to what there is not, and
 * whatever PostgreSQL's parser raises.
 */
extern Node *onside_when_transform(Relation rel, const char *condition,
								   int16 events);

#endif							/* ONSIDE_WHEN_H */
