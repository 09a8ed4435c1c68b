/*-------------------------------------------------------------------------
 *
 * attach.h
 *		The triggers that report a table's rows.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_ATTACH_H
#define ONSIDE_ATTACH_H

#include "postgres.h"

#include "commands/trigger.h"
#include "nodes/pg_list.h"
#include "utils/rel.h"

/* Raises 42501 without USAGE on the schema of a relation. */
extern void onside_check_schema_privilege(Oid relid);

/* Likewise, without a privilege on the relation itself. */
extern void onside_check_privilege(Oid relid, AclMode mode);

/*
 * A shard of Citus is attached and detached with its table: raises 42809 otherwise.
 * "what" is the function's name.
 */
extern void onside_refuse_shard(const char *what, Oid relid);

/*
 * OID of track_row(), for who names it: raises 42501 without USAGE on its
 * schema, and 42883 if there is none.
 */
extern Oid	onside_track_row_oid(void);

/*
 * The same for what happens to any table, whoever does it: no privilege is
 * looked at, and there may be none (InvalidOid).
 */
extern Oid	onside_find_track_row(void);

/*
 * The table's own triggers that report this event, as pointers into its
 * relcache entry.
 */
extern List *onside_attached_triggers(Relation rel, const char *event_name);

#endif							/* ONSIDE_ATTACH_H */
