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

/*
 * Compares the version in pg_extension with the library's.  Returns NULL if
 * they are the same or there is no extension, and otherwise a text in the
 * current memory context that says what to do.  Needs a transaction.
 */
extern char *onside_version_problem(void);

#endif							/* ONSIDE_VERSION_H */
