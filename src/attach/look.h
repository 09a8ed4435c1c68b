/*-------------------------------------------------------------------------
 *
 * look.h
 *		What would have become of the rows that a table already has?
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_LOOK_H
#define ONSIDE_LOOK_H

#include "postgres.h"

#include "record/mapping.h"

typedef struct OnsideLook OnsideLook;

/*
 * Looks at up to 1,000 recent rows, in the current memory context.
 * "condition" is attach()'s, or NULL; "events" are its TRIGGER_TYPE_* bits.
 * Waits for no lock, keeps none, and changes nothing.  Only a cancel raises
 * an error.
 */
extern OnsideLook *onside_look(Oid relid, const OnsideMapping *mapping,
							   const char *condition, int16 events);

/* Warns of rows that would have been no event. */
extern void onside_look_warn(const OnsideLook *look);

#endif							/* ONSIDE_LOOK_H */
