/*-------------------------------------------------------------------------
 *
 * version.h
 *		Do the library and the extension's SQL objects belong together?
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_VERSION_H
#define ONSIDE_VERSION_H

#include "postgres.h"

/* The version of the SQL objects that this library works with. */
#define ONSIDE_SQL_VERSION	"1.0"

typedef enum OnsideVersionMatch
{
	ONSIDE_VERSION_SAME,
	ONSIDE_SQL_OLDER,			/* ALTER EXTENSION ... UPDATE is missing */
	ONSIDE_SQL_NEWER,			/* the server has not loaded the new library */
} OnsideVersionMatch;

/*
 * Compares the version in pg_extension with the library's.  If they differ,
 * *problem says so and what to do about it, in the current memory context;
 * otherwise it is NULL.  Needs a transaction, and the extension to be there.
 */
extern OnsideVersionMatch onside_version_match(char **problem);

#endif							/* ONSIDE_VERSION_H */
