/*-------------------------------------------------------------------------
 *
 * drop_guard.h
 *		DROP EXTENSION does not take events along that are still to be sent.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_DROP_GUARD_H
#define ONSIDE_DROP_GUARD_H

#include "postgres.h"

/*
 * A relation is about to be dropped.  If it is the extension's, and events are
 * pending, raises an error.
 */
extern void onside_drop_guard_check(Oid relid);

#endif							/* ONSIDE_DROP_GUARD_H */
