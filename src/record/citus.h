/*-------------------------------------------------------------------------
 *
 * citus.h
 *		Tables whose rows are on other servers.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_CITUS_H
#define ONSIDE_CITUS_H

#include "postgres.h"

typedef enum OnsideCitusTable
{
	ONSIDE_CITUS_NONE,			/* its rows are in it */
	ONSIDE_CITUS_REFERENCE,		/* each node has all rows, in a shard */
	ONSIDE_CITUS_SHARDS,		/* its rows are in shards, of any node */
} OnsideCitusTable;

/* Is the extension citus in this database? */
extern bool onside_citus_is_here(void);

/* What the table is to Citus in this database. */
extern OnsideCitusTable onside_citus_table(Oid relid);

/*
 * The table that this shard belongs to; InvalidOid if relid is not a shard, or
 * this node does not know the table.
 */
extern Oid	onside_citus_table_of_shard(Oid relid);

/*
 * An error context callback that tells how to make and drop triggers there.
 * Its argument is an OnsideCitusTable, what the table is.
 */
extern void onside_citus_trigger_error(void *arg);

#endif							/* ONSIDE_CITUS_H */
