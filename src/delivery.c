/*-------------------------------------------------------------------------
 *
 * delivery.c
 *		What of delivery survives a restart: the tables delivery_cursor and
 *		control.
 *
 * delivery_cursor has one row, which the worker updates as delivery goes on.
 * While somebody holds a snapshot, none of its old versions can be removed, so
 * the worker does that seldom then; see worker.c.  Reading the row never costs
 * more than a scan of those few versions.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "compat.h"
#include "delivery.h"
#include "outbox.h"
#include "shape.h"

enum
{
	Anum_cursor_settled = 2,
	Anum_cursor_settled_window,
	Anum_cursor_settled_xid,
	Anum_cursor_settled_id,
	Anum_cursor_segment,
	Anum_cursor_delivered,
	Anum_cursor_dead_lettered,
	Anum_cursor_requests,
	Anum_cursor_retries,
	Anum_cursor_not_before
};

enum
{
	Anum_control_paused = 2,
	Anum_control_pause_reason
};

typedef void (*RowReader) (TupleTableSlot *slot, void *arg);

/* Calls reader, if there is one, for the one row of a table.  Is it there? */
static bool
scan_singleton(Oid relid, Snapshot snapshot, RowReader reader, void *arg)
{
	Relation	rel;
	TableScanDesc scan;
	TupleTableSlot *slot;
	bool		found;

	if (snapshot == NULL)
		snapshot = GetActiveSnapshot();
	rel = table_open(relid, AccessShareLock);
	(void) onside_shape_require(rel, true);
	slot = table_slot_create(rel, NULL);
	scan = onside_table_beginscan(rel, snapshot, 0, NULL);
	found = table_scan_getnextslot(scan, ForwardScanDirection, slot);
	if (found && reader != NULL)
	{
		slot_getallattrs(slot);
		reader(slot, arg);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	return found;
}

static void
read_singleton(const char *name, Snapshot snapshot, RowReader reader,
			   void *arg)
{
	if (!scan_singleton(onside_table_oid(name), snapshot, reader, arg))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("table \"%s.%s\" has lost its row", ONSIDE_SCHEMA,
						name),
				 errhint("Restore it from a backup, or discard what is pending with TRUNCATE onside_attribution.outbox, drop the extension and create it again.")));
}

static OnsideSnapshot *
snapshot_from_datum(Datum datum)
{
	return onside_snapshot_parse(DatumGetCString(DirectFunctionCall1(pg_snapshot_out,
																	 datum)));
}

static void
read_cursor(TupleTableSlot *slot, void *arg)
{
	OnsideDelivery *delivery = (OnsideDelivery *) arg;
	Datum	   *values = slot->tts_values;
	bool	   *nulls = slot->tts_isnull;

	onside_cursor_release(&delivery->settled);
	memset(delivery, 0, sizeof(*delivery));
	delivery->settled.done =
		snapshot_from_datum(values[Anum_cursor_settled - 1]);
	if (!nulls[Anum_cursor_settled_window - 1])
	{
		delivery->settled.window =
			snapshot_from_datum(values[Anum_cursor_settled_window - 1]);
		delivery->settled.pos.xid =
			DatumGetFullTransactionId(values[Anum_cursor_settled_xid - 1]);
		delivery->settled.pos.id =
			DatumGetInt64(values[Anum_cursor_settled_id - 1]);
	}
	delivery->segment = DatumGetInt16(values[Anum_cursor_segment - 1]);
	delivery->delivered = DatumGetInt64(values[Anum_cursor_delivered - 1]);
	delivery->dead_lettered =
		DatumGetInt64(values[Anum_cursor_dead_lettered - 1]);
	delivery->requests = DatumGetInt64(values[Anum_cursor_requests - 1]);
	delivery->retries = DatumGetInt64(values[Anum_cursor_retries - 1]);
	if (!nulls[Anum_cursor_not_before - 1])
		delivery->not_before =
			DatumGetTimestampTz(values[Anum_cursor_not_before - 1]);
}

void
onside_delivery_load(OnsideDelivery *delivery, Snapshot snapshot)
{
	read_singleton("delivery_cursor", snapshot, read_cursor, delivery);
}

bool
onside_delivery_exists(void)
{
	Oid			relid = onside_relation_oid("delivery_cursor");

	return OidIsValid(relid) && scan_singleton(relid, NULL, NULL, NULL);
}

static Datum
snapshot_to_datum(const OnsideSnapshot *snapshot)
{
	return DirectFunctionCall1(pg_snapshot_in,
							   CStringGetDatum(onside_snapshot_print(snapshot)));
}

void
onside_delivery_store(const OnsideDelivery *delivery)
{
	static const char *const sql =
		"UPDATE onside_attribution.delivery_cursor SET"
		" settled = $1, settled_window = $2, settled_xid = $3,"
		" settled_id = $4, segment = $5, delivered = $6, dead_lettered = $7,"
		" requests = $8, retries = $9, not_before = $10";
	static SPIPlanPtr plan = NULL;
	Oid			types[10] = {PG_SNAPSHOTOID, PG_SNAPSHOTOID, XID8OID, INT8OID,
	INT2OID, INT8OID, INT8OID, INT8OID, INT8OID, TIMESTAMPTZOID};
	const OnsideCursor *settled = &delivery->settled;
	bool		in_window = settled->window != NULL;
	Datum		values[10];
	char		nulls[10];

	memset(nulls, ' ', sizeof(nulls));
	values[0] = snapshot_to_datum(settled->done);
	values[1] = in_window ? snapshot_to_datum(settled->window) : (Datum) 0;
	values[2] = FullTransactionIdGetDatum(settled->pos.xid);
	values[3] = Int64GetDatum(settled->pos.id);
	if (!in_window)
		nulls[1] = nulls[2] = nulls[3] = 'n';
	values[4] = Int16GetDatum(delivery->segment);
	values[5] = Int64GetDatum(delivery->delivered);
	values[6] = Int64GetDatum(delivery->dead_lettered);
	values[7] = Int64GetDatum(delivery->requests);
	values[8] = Int64GetDatum(delivery->retries);
	values[9] = TimestampTzGetDatum(delivery->not_before);
	if (delivery->not_before == 0)
		nulls[9] = 'n';

	SPI_connect();
	if (plan == NULL)
	{
		plan = SPI_prepare(sql, lengthof(types), types);
		if (plan == NULL)
			elog(ERROR, "SPI_prepare failed: %s",
				 SPI_result_code_string(SPI_result));
		SPI_keepplan(plan);
	}
	if (SPI_execute_plan(plan, values, nulls, false, 0) != SPI_OK_UPDATE ||
		SPI_processed != 1)
		elog(ERROR, "could not update delivery_cursor");
	SPI_finish();
}

bool
onside_delivery_is_held(TransactionId xid)
{
	Relation	rel = table_open(onside_relation_oid("delivery_cursor"),
								 AccessShareLock);
	TransactionId oldest = GetOldestNonRemovableTransactionId(rel);

	table_close(rel, AccessShareLock);
	return !TransactionIdPrecedes(xid, oldest);
}

typedef struct Control
{
	bool		paused;
	char	   *reason;
} Control;

static void
read_control(TupleTableSlot *slot, void *arg)
{
	Control    *control = (Control *) arg;

	control->paused = DatumGetBool(slot->tts_values[Anum_control_paused - 1]);
	if (!slot->tts_isnull[Anum_control_pause_reason - 1])
		control->reason =
			TextDatumGetCString(slot->tts_values[Anum_control_pause_reason - 1]);
}

bool
onside_control_paused(char **reason)
{
	Control		control = {0};

	read_singleton("control", NULL, read_control, &control);
	*reason = control.reason;
	return control.paused;
}
