/*-------------------------------------------------------------------------
 *
 * version.c
 *		Do the library and the extension's SQL objects belong together?
 *
 * A new package brings both, but each takes effect by itself: the library when
 * the server is restarted, the objects with ALTER EXTENSION ... UPDATE.  In
 * between the worker must not touch tables that may have another shape, so it
 * asks here before it does anything, and idles with what this file says.
 * Recording does not ask: it goes on meanwhile, since the columns that a
 * purchase writes are the same in all versions.
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

/* Is version a ("1.0") before (< 0), the same as or after b? */
static int
compare_versions(const char *a, const char *b)
{
	while (*a != '\0' || *b != '\0')
	{
		char	   *a_end;
		char	   *b_end;
		unsigned long x = strtoul(a, &a_end, 10);
		unsigned long y = strtoul(b, &b_end, 10);

		if (x != y)
			return x < y ? -1 : 1;
		if (a_end == a && b_end == b)
			return strcmp(a, b);
		a = *a_end == '.' ? a_end + 1 : a_end;
		b = *b_end == '.' ? b_end + 1 : b_end;
	}
	return 0;
}

/* The extension's extversion; NULL if it is not there. */
static char *
installed_version(void)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	char	   *result = NULL;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber,
				F_NAMEEQ, CStringGetDatum("onside_attribution"));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
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

OnsideVersionMatch
onside_version_match(char **problem)
{
	char	   *version = installed_version();
	int			cmp = version == NULL ? 0 :
		compare_versions(version, ONSIDE_SQL_VERSION);

	*problem = NULL;
	if (cmp < 0)
	{
		*problem = psprintf("the library is version %s and the extension's objects are still version %s: run ALTER EXTENSION onside_attribution UPDATE in this database",
							ONSIDE_SQL_VERSION, version);
		return ONSIDE_SQL_OLDER;
	}
	if (cmp > 0)
	{
		*problem = psprintf("the extension's objects are version %s and the server still runs version %s of the library: install the new one if it is not, and restart the server",
							version, ONSIDE_SQL_VERSION);
		return ONSIDE_SQL_NEWER;
	}
	return ONSIDE_VERSION_SAME;
}
