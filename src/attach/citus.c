/*-------------------------------------------------------------------------
 *
 * citus.c
 *		Tables whose rows are on other servers.
 *
 * With the extension citus a table can be distributed: its rows are then in shards,
 * tables of their own on other servers, and it is empty itself.  Citus makes on each
 * shard the triggers that CREATE TRIGGER makes on the table, with the same
 * arguments, and each server reports the rows that it writes.  So nothing else here
 * knows of it, but for what cannot work.
 *
 * Its catalog pg_dist_partition is documented: partmethod 'n' is a table without a
 * distribution column, and repmodel 't' one of which each node has a copy.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "utils/guc.h"

#include "attach/citus.h"

#define QUERY \
	"SELECT partmethod OPERATOR(pg_catalog.=) 'n' AND repmodel OPERATOR(pg_catalog.=) 't'" \
	" FROM pg_catalog.pg_dist_partition" \
	" WHERE logicalrelid OPERATOR(pg_catalog.=) $1::pg_catalog.regclass"

OnsideCitusTable
onside_citus_table(Oid relid)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(relid)};
	bool		isnull;

	if (!OidIsValid(get_extension_oid("citus", true)))
		return ONSIDE_CITUS_NONE;
	if (SPI_execute_with_args(QUERY, 1, types, values, NULL, true,
							  1) != SPI_OK_SELECT)
		elog(ERROR, "could not read pg_dist_partition");
	if (SPI_processed == 0)
		return ONSIDE_CITUS_NONE;
	return DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0],
									  SPI_tuptable->tupdesc, 1, &isnull)) ?
		ONSIDE_CITUS_REFERENCE : ONSIDE_CITUS_SHARDS;
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
		errhint("Citus makes triggers on its tables if citus.enable_unsafe_triggers is on, on each node.");
}
