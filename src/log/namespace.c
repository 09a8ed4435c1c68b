/*-------------------------------------------------------------------------
 *
 * namespace.c
 *		What distinguishes the keys of this database.
 *
 * Two databases that report to one account can have the same tables and the
 * same keys.  So the key of a mapped column is preceded by the database's
 * namespace, a random UUID in a table of one row.
 *
 * A dump has the row, and a restored row replaces the row that CREATE EXTENSION
 * has made: a restored database is the same shop.  A row that logical
 * replication brings is another database's, and is dropped.  rescue.c undoes a
 * replicated TRUNCATE.
 *
 * The row is read with the latest snapshot: a transaction must not use a
 * namespace that another transaction has replaced.  Reading releases its
 * AccessShareLock at once.  A table that is missing or was altered is an error.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "replication/logicalworker.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "log/event.h"
#include "log/insert.h"
#include "log/namespace.h"
#include "log/shape.h"
#include "log/tables.h"

PG_FUNCTION_INFO_V1(onside_take_namespace);

enum
{
	Anum_namespace_singleton = 1,
	Anum_namespace_id
};

/*
 * Reads with the latest snapshot, not the transaction's: a namespace that was
 * put back meanwhile counts at once.
 */
bool
onside_namespace_read(pg_uuid_t *id)
{
	Relation	rel = table_open(onside_table_oid("namespace"),
								 AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan;
	bool		found;
	bool		isnull;

	(void) onside_shape_require(rel, true);

	/* The table has one row. */
	scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
	found = HeapTupleIsValid(systable_getnext(scan));

	/* The slot is valid only until the scan ends. */
	if (found)
		*id = *DatumGetUUIDP(slot_getattr(scan->slot, Anum_namespace_id,
										  &isnull));
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	return found;
}

void
onside_namespace_put_back(const pg_uuid_t *id)
{
	OnsideInsert insert;
	TupleTableSlot *row;

	onside_insert_begin(&insert, onside_table_oid("namespace"));
	row = onside_insert_slot(&insert);
	row->tts_values[Anum_namespace_singleton - 1] = BoolGetDatum(true);
	row->tts_isnull[Anum_namespace_singleton - 1] = false;
	row->tts_values[Anum_namespace_id - 1] = UUIDPGetDatum(id);
	row->tts_isnull[Anum_namespace_id - 1] = false;
	onside_insert_row(&insert);
	onside_insert_end(&insert);
}

/*
 * Replaces the row, with the rights of the user who inserts.  Returns false if
 * the table is empty.
 */
static bool
replace_namespace(Datum id)
{
	Oid			types[] = {UUIDOID};
	bool		replaced;

	SPI_connect();
	if (SPI_execute_with_args("UPDATE " ONSIDE_SCHEMA ".namespace SET id = $1",
							  1, types, &id, NULL, false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not update the namespace");
	replaced = SPI_processed > 0;
	SPI_finish();
	return replaced;
}

/*
 * BEFORE INSERT OR UPDATE OR DELETE trigger of the table, ENABLE ALWAYS: an
 * inserted row replaces the present one, and logical replication changes
 * nothing.
 */
Datum
onside_take_namespace(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	Datum		id;
	bool		isnull;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(trigdata->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("this function is a trigger of the extension's tables")));

	/* Another database's row, or its deletion, changes nothing here. */
	if (IsLogicalWorker())
		return PointerGetDatum(NULL);

	/* A person may change or delete the row. */
	if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
		return PointerGetDatum(trigdata->tg_newtuple);
	if (!TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		return PointerGetDatum(trigdata->tg_trigtuple);

	/* Replace the row, or insert it.  A NULL is left to the NOT NULL. */
	id = slot_getattr(trigdata->tg_trigslot, Anum_namespace_id, &isnull);
	return PointerGetDatum(!isnull && replace_namespace(id) ? NULL :
						   trigdata->tg_trigtuple);
}
