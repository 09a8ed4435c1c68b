/*-------------------------------------------------------------------------
 *
 * attachable.h
 *		Can this relation be attached?
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_ATTACHABLE_H
#define ONSIDE_ATTACHABLE_H

#include "postgres.h"

#include "nodes/parsenodes.h"
#include "utils/rel.h"

/*
 * Raises 42809 if the relation cannot be attached; the hint says what to
 * attach.  Takes no lock.
 */
extern void onside_attachable_check(Oid relid);

/*
 * Tells what is special about a table that can be attached.  The table is
 * locked.
 */
extern void onside_attachable_warn(Relation rel);

/*
 * Checks a column that is mapped to the field "payload.KEY" and exists: raises
 * 42804 for a type whose values mean nothing to the API, and warns if an
 * amount is likely to be wrong.
 */
extern void onside_attachable_column(Relation rel, const char *field,
									 const char *column);

/*
 * Raises 42501 without USAGE on the schema of a relation.  Naming the table by
 * its OID must not be a way around that privilege.
 */
extern void onside_attachable_require_schema(Oid relid);

/* Raises 42501 without a privilege on the relation itself. */
extern void onside_attachable_require(Oid relid, AclMode mode);

/*
 * A shard of Citus is attached and detached with its table: raises 42809 for a
 * shard.  "what" is the function's name.
 */
extern void onside_attachable_refuse_shard(const char *what, Oid relid);

#endif							/* ONSIDE_ATTACHABLE_H */
