/*-------------------------------------------------------------------------
 *
 * version.c
 *		Do the library and the extension's SQL objects belong together?
 *
 * A new package brings both, but each takes effect at a time of its own: the
 * library when the server is restarted, the objects with ALTER EXTENSION ...
 * UPDATE.  In between, the tables may have a shape that this library does not
 * know, and the worker must not touch them.  So the worker asks here first,
 * and does nothing but show the answer in its status.  doctor(), status and
 * other functions that a person calls ask here, too.  Recording does not ask,
 * and goes on: the columns that a purchase writes are the same in all
 * versions.
 *
 * The only lock is an AccessShareLock on pg_extension, released at once.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_extension.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"

#include "version.h"

/* extversion from pg_extension; NULL if the extension is not there. */
static char *
installed_version(void)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	char	   *result = NULL;

	/* There is no cache for this catalog, but an index on the name. */
	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber,
				F_NAMEEQ, CStringGetDatum("onside_attribution"));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		/* A column behind the fixed ones is not in the struct. */
		bool		isnull;
		Datum		version = heap_getattr(tuple,
										   Anum_pg_extension_extversion,
										   RelationGetDescr(rel), &isnull);

		if (!isnull)
			result = TextDatumGetCString(version);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}

/*
 * A missing extension is not this function's problem: callers find that out by
 * themselves.
 */
char *
onside_version_problem(void)
{
	char	   *version = installed_version();

	if (version == NULL || strcmp(version, ONSIDE_SQL_VERSION) == 0)
		return NULL;
	return psprintf("the library is version %s and the extension's objects in this database are version %s: restart the server if a newer package is installed, and run ALTER EXTENSION onside_attribution UPDATE",
					ONSIDE_SQL_VERSION, version);
}
