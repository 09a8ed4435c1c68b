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

/*
 * What the table is to the extension citus in this database.  To be called within
 * SPI_connect().  Errors: those of a query of the caller's on pg_dist_partition.
 */
extern OnsideCitusTable onside_citus_table(Oid relid);

/* An error context callback that tells how to have triggers on such tables. */
extern void onside_citus_trigger_error(void *arg);

#endif							/* ONSIDE_CITUS_H */
