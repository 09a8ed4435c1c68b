/*-------------------------------------------------------------------------
 *
 * follow.h
 *		Attached tables change.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_FOLLOW_H
#define ONSIDE_FOLLOW_H

#include "postgres.h"

#include "access/attnum.h"

/*
 * The object access hook calls these.  A column was altered: if it was
 * renamed, mappings follow.
 */
extern void onside_follow_column(Oid relid, AttrNumber attnum);

/* A column is about to be dropped. */
extern void onside_follow_drop_column(Oid relid, AttrNumber attnum);

/* A table has become a partition or an inheritance child of another one. */
extern void onside_follow_parent(Oid relid, Oid parent);

/*
 * A trigger was made, on any table: if it has a mapper, it now depends on
 * that.
 */
extern void onside_follow_trigger(Oid trigger);

#endif							/* ONSIDE_FOLLOW_H */
