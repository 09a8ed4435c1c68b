/*-------------------------------------------------------------------------
 *
 * citus.c
 *		Tables whose rows are on other servers.
 *
 * With the extension citus a table can be distributed: the table is empty, and
 * its rows are in shards, tables of their own on several servers.  Citus makes
 * the table's triggers on each shard, too, with the same arguments, and each
 * server reports the rows that it writes.  So little else in this tree knows
 * of Citus: what cannot work is refused.
 *
 * Its catalogs are documented.  In pg_dist_partition, partmethod 'n' is a
 * table without a distribution column, and repmodel 't' a table that each node
 * has a copy of.  A shard's name is its table's, cut if it is too long, with
 * "_" and the shardid.  Each node has pg_dist_shard, which tells the table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_namespace.h"
#include "commands/extension.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "record/citus.h"

bool
onside_citus_is_here(void)
{
	return OidIsValid(get_extension_oid("citus", true));
}

/*
 * Reads two columns of a row of Citus's catalog, by the row's key.  False if
 * there is no such row.  The columns' types are passed by value, and never
 * NULL.
 */
static bool
read_catalog_row(const char *catalog, const char *key_column,
				 RegProcedure equal, Datum key,
				 const char *const columns[2], Datum values[2])
{
	Oid			relid = get_relname_relid(catalog, PG_CATALOG_NAMESPACE);
	Relation	rel;
	ScanKeyData scan_key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found;
	bool		isnull;

	if (!OidIsValid(relid))
		return false;

	/* Without an index, whose name we would have to know. */
	rel = table_open(relid, AccessShareLock);
	ScanKeyInit(&scan_key, get_attnum(relid, key_column), BTEqualStrategyNumber,
				equal, key);
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 1, &scan_key);
	tuple = systable_getnext(scan);
	found = HeapTupleIsValid(tuple);
	for (int i = 0; found && i < 2; i++)
		values[i] = heap_getattr(tuple, get_attnum(relid, columns[i]),
								 RelationGetDescr(rel), &isnull);
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

OnsideCitusTable
onside_citus_table(Oid relid)
{
	static const char *const columns[] = {"partmethod", "repmodel"};
	Datum		values[2];

	if (!onside_citus_is_here() ||
		!read_catalog_row("pg_dist_partition", "logicalrelid", F_OIDEQ,
						  ObjectIdGetDatum(relid), columns, values))
		return ONSIDE_CITUS_NONE;
	return DatumGetChar(values[0]) == 'n' && DatumGetChar(values[1]) == 't' ?
		ONSIDE_CITUS_REFERENCE : ONSIDE_CITUS_SHARDS;
}

/*
 * A shard's name ends in "_" and the shardid, by which Citus's catalog has the
 * shard's table.
 */
Oid
onside_citus_table_of_shard(Oid relid)
{
	static const char *const columns[] = {"logicalrelid", "shardid"};
	char	   *name = get_rel_name(relid);
	char	   *end = name != NULL ? strrchr(name, '_') : NULL;
	Datum		values[2];

	if (end == NULL || end[1] == '\0' || strlen(end + 1) > 18 ||
		strspn(end + 1, "0123456789") != strlen(end + 1) ||
		!onside_citus_is_here() ||
		!read_catalog_row("pg_dist_shard", "shardid", F_INT8EQ,
						  Int64GetDatum(strtoll(end + 1, NULL, 10)), columns,
						  values))
		return InvalidOid;

	/*
	 * A table that is no shard can have such a name; and a table is not its
	 * own shard.
	 */
	if (DatumGetObjectId(values[0]) == relid ||
		get_rel_namespace(DatumGetObjectId(values[0])) !=
		get_rel_namespace(relid))
		return InvalidOid;
	return DatumGetObjectId(values[0]);
}

void
onside_citus_trigger_error(void *arg)
{
	const char *allowed = GetConfigOption("citus.enable_unsafe_triggers",
										  true, false);

	/* Its error has no code of its own. */
	if (allowed != NULL && strcmp(allowed, "off") == 0 &&
		(geterrcode() == ERRCODE_INTERNAL_ERROR ||
		 geterrcode() == ERRCODE_FEATURE_NOT_SUPPORTED))
		errhint("Citus makes and drops triggers on its tables if citus.enable_unsafe_triggers is on.");
	else if (geterrcode() == ERRCODE_INSUFFICIENT_PRIVILEGE &&
			 *(OnsideCitusTable *) arg != ONSIDE_CITUS_NONE)
		errhint("Citus makes the triggers on all nodes, and takes no GRANT on functions of an extension to them: on each node, GRANT EXECUTE ON FUNCTION onside_attribution.track_row TO the table's owner and to whoever calls this.");
}
