/*-------------------------------------------------------------------------
 *
 * attached.h
 *		What is attached, and detach.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_ATTACHED_H
#define ONSIDE_ATTACHED_H

#include "postgres.h"

#include "nodes/pg_list.h"
#include "utils/rel.h"

/*
 * OID of track_row(), for a caller who names it: raises 42501 without USAGE on
 * its schema, and 42883 if there is no such function.
 */
extern Oid	onside_track_row_oid(void);

/*
 * The same where a table changes, whoever changes it: no privilege is looked
 * at, and without the function the result is InvalidOid.
 */
extern Oid	onside_find_track_row(void);

/*
 * The table's own triggers that report this event, as pointers into its
 * relcache entry.
 */
extern List *onside_attached_triggers(Relation rel, const char *event_name);

#endif							/* ONSIDE_ATTACHED_H */
