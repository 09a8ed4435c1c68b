/*-------------------------------------------------------------------------
 *
 * delivery.c
 *		What of delivery survives a restart: the tables delivery_cursor and
 *		control.
 *
 * Each table has one row.  The worker updates the row of delivery_cursor as
 * delivery goes on; pause() and resume() write the row of control.  While
 * somebody holds a snapshot, old versions of the cursor's row cannot be
 * removed, so the worker then writes the row seldom; see progress.c.  Reading
 * a row never costs more than a scan of those few versions.
 *
 * Another server's cursor must never be used here: its transaction IDs mean
 * something else, and events that nobody has sent would count as settled.
 * Rows with another server's cursor come by logical replication of all tables,
 * and can come by a user's SQL.  Two things keep them out:
 *
 * - A BEFORE ROW trigger on both tables, ENABLE ALWAYS, drops every row that
 *	 SQL or an apply worker would write.  Our own writes fire no trigger.
 *
 * - The row says which transaction wrote it, in the column "written_by".  That
 *	 must be the xmin of the row's version: a copy of the row, however it was
 *	 made, has another xmin.  VACUUM, CLUSTER and pg_upgrade keep xmin (also of
 *	 a frozen row).  A copy of the whole cluster or database keeps it, too, and
 *	 there the cursor is as right as in the original.  CREATE EXTENSION makes a
 *	 row whose written_by is NULL, which stands for "nothing is settled" and
 *	 "not paused".
 *
 * If the row is missing or foreign, nothing counts as settled: all events in
 * the segments are sent again, with their event_ids, and none is skipped.  The
 * worker then writes a row of its own.
 *
 * Rows are written by the table access method, as in insert.c.  So no trigger,
 * rule or policy fires, no privilege on the table is needed, and the table's
 * owner does not matter.  write_state() checks what PostgreSQL would check:
 * that the server and the transaction are not read-only, and that no parallel
 * operation is under way.  The tables' constraints hold by construction.
 * EXECUTE is the privilege to call pause() and resume().
 *
 * Each function needs a transaction.  Reading releases its AccessShareLock on
 * the table at once; writing keeps a RowExclusiveLock to the transaction's
 * end.  A table that is missing or has another shape is an error.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "replication/logicalworker.h"
#include "storage/procarray.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "compat.h"
#include "log/delivery.h"
#include "log/insert.h"
#include "log/shape.h"
#include "log/tables.h"

PG_FUNCTION_INFO_V1(onside_keep_state);

/* Both tables begin with these two columns. */
enum
{
	Anum_state_singleton = 1,
	Anum_state_written_by
};

enum
{
	Anum_cursor_settled = Anum_state_written_by + 1,
	Anum_cursor_settled_window,
	Anum_cursor_settled_xid,
	Anum_cursor_settled_id,
	Anum_cursor_segment,
	Anum_cursor_begun_at,
	Anum_cursor_left_at,
	Anum_cursor_delivered,
	Anum_cursor_dead_lettered,
	Anum_cursor_requests,
	Anum_cursor_retries,
	Anum_cursor_refused_in_row,
	Anum_cursor_trouble_since,
	Anum_cursor_not_before,
	Natts_cursor = Anum_cursor_not_before
};

enum
{
	Anum_control_paused = Anum_state_written_by + 1,
	Anum_control_pause_reason,
	Anum_control_paused_at,
	Natts_control = Anum_control_paused_at
};

/* ----------
 * One row
 * ----------
 */

/* Opens a table of ours to read it. */
static Relation
open_table(const char *name)
{
	Relation	rel = table_open(onside_table_oid(name), AccessShareLock);

	(void) onside_shape_require(rel, true);
	return rel;
}

/* Puts the first row that the snapshot sees into the slot; false if none. */
static bool
find_row(Relation rel, Snapshot snapshot, TupleTableSlot *slot)
{
	TableScanDesc scan = onside_table_beginscan(rel, snapshot, 0, NULL);
	bool		found = table_scan_getnextslot(scan, ForwardScanDirection,
											   slot);

	if (found)
		ExecMaterializeSlot(slot);
	table_endscan(scan);
	return found;
}

/*
 * Was this version of the row written by the transaction that written_by
 * names?  The slot returns xmin as it is stored, even if the row is frozen.
 */
static bool
is_our_own(TupleTableSlot *slot)
{
	bool		isnull;
	FullTransactionId written_by =
		DatumGetFullTransactionId(slot_getattr(slot, Anum_state_written_by,
											   &isnull));
	TransactionId xmin =
		DatumGetTransactionId(slot_getsysattr(slot,
											  MinTransactionIdAttributeNumber,
											  &isnull));

	return TransactionIdEquals(XidFromFullTransactionId(written_by), xmin) &&
		FullTransactionIdPrecedes(written_by, ReadNextFullTransactionId());
}

typedef void (*RowReader) (TupleTableSlot *slot, void *arg);

/*
 * Calls "reader" for the table's row if this server has written the row.
 * Returns what is wrong with the row, or NULL.  The row that CREATE EXTENSION
 * has made is not passed to "reader", and nothing is wrong with it.
 */
static const char *
read_state(const char *name, Snapshot snapshot, RowReader reader, void *arg)
{
	Relation	rel = open_table(name);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	const char *problem = NULL;

	if (snapshot == NULL)
		snapshot = onside_reading_snapshot();
	if (!find_row(rel, snapshot, slot))
		problem = "it has lost its row";
	else if (!slot_attisnull(slot, Anum_state_written_by))
	{
		if (is_our_own(slot))
		{
			slot_getallattrs(slot);
			reader(slot, arg);
		}
		else
			problem = "its row was not written by this server";
	}
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	return problem;
}

/* The current (sub)transaction: the xmin of a row that is written now. */
static FullTransactionId
current_xid(void)
{
	TransactionId xid = GetCurrentTransactionId();

	return onside_widen_xid(xid, ReadNextFullTransactionId());
}

/*
 * Replaces a version of the row.  If another transaction is replacing the row,
 * waits for its end.  If that transaction has then replaced the row, returns
 * false, or raises an error under REPEATABLE READ.  The worker waits for
 * nobody: there a locked row is an error.
 */
static bool
update_row(OnsideInsert *insert, ItemPointer tid, TupleTableSlot *slot)
{
	Relation	rel = insert->rel;
	TM_FailureData failure;
	LockTupleMode lock_mode;
	OnsideUpdateIndexes indexes;
	TM_Result	result;

	result = onside_table_tuple_update(rel, tid, slot,
									   GetCurrentCommandId(true),
									   GetActiveSnapshot(),
									   MyBgworkerEntry == NULL, &failure,
									   &lock_mode, &indexes);
	if (result == TM_Ok)
	{
		onside_insert_moved(insert, slot, indexes);
		return true;
	}
	if (result == TM_BeingModified)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("the row of table \"%s.%s\" is locked by another transaction",
						ONSIDE_SCHEMA, RelationGetRelationName(rel))));
	if (result != TM_Updated && result != TM_Deleted)
		elog(ERROR, "could not update table \"%s\": %d",
			 RelationGetRelationName(rel), (int) result);
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent update"),
				 errhint("Try again.")));
	return false;
}

/*
 * Replaces the one row, or inserts it if it is missing.  Returns false if
 * another session has replaced the row meanwhile; the caller tries again.
 * Columns that somebody has added keep their values.
 */
static bool
replace_row(OnsideInsert *insert, Datum *values, bool *nulls, bool *replace)
{
	Relation	rel = insert->rel;
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	bool		done = true;

	PushActiveSnapshot(IsolationUsesXactSnapshot() ?
					   GetTransactionSnapshot() : GetLatestSnapshot());
	if (find_row(rel, GetActiveSnapshot(), slot))
	{
		ItemPointerData tid = slot->tts_tid;
		HeapTuple	tuple =
			heap_modify_tuple(ExecFetchSlotHeapTuple(slot, true, NULL),
							  RelationGetDescr(rel), values, nulls, replace);

		ExecForceStoreHeapTuple(tuple, slot, false);
		done = update_row(insert, &tid, slot);
	}
	else
	{
		TupleTableSlot *row = onside_insert_slot(insert);

		for (int i = 0; i < RelationGetDescr(rel)->natts; i++)
			if (replace[i])
			{
				row->tts_values[i] = values[i];
				row->tts_isnull[i] = nulls[i];
			}
		onside_insert_row(insert);
	}
	PopActiveSnapshot();
	ExecDropSingleTupleTableSlot(slot);
	return done;
}

/* Writes the one row of a table; natts is the number of values given. */
static void
write_state(const char *name, const Datum *values, const bool *nulls,
			int natts)
{
	OnsideInsert insert;
	int			all;
	Datum	   *row_values;
	bool	   *row_nulls;
	bool	   *replace;

	PreventCommandIfReadOnly("writing the state of delivery");
	PreventCommandIfParallelMode("writing the state of delivery");
	onside_insert_begin(&insert, onside_table_oid(name));
	all = RelationGetDescr(insert.rel)->natts;
	row_values = palloc0(all * sizeof(Datum));
	row_nulls = palloc0(all * sizeof(bool));
	replace = palloc0(all * sizeof(bool));
	memcpy(row_values, values, natts * sizeof(Datum));
	memcpy(row_nulls, nulls, natts * sizeof(bool));
	memset(replace, true, natts * sizeof(bool));
	row_values[Anum_state_singleton - 1] = BoolGetDatum(true);
	row_values[Anum_state_written_by - 1] =
		FullTransactionIdGetDatum(current_xid());

	while (!replace_row(&insert, row_values, row_nulls, replace))
		CHECK_FOR_INTERRUPTS();
	onside_insert_end(&insert);
	CommandCounterIncrement();
}

/*
 * BEFORE INSERT OR UPDATE OR DELETE trigger of both tables and of
 * backfill_state, ENABLE ALWAYS: it keeps SQL from changing their rows.
 * Logical replication goes on as if it had changed the row; a person gets a
 * NOTICE.
 */
Datum
onside_keep_state(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("this function is a trigger of the extension's tables")));
	if (!IsLogicalWorker())
	{
		const char *table =
			RelationGetRelationName(((TriggerData *) fcinfo->context)->tg_relation);

		ereport(NOTICE,
				(errmsg("a row of table \"%s\" is left as it is", table),
				 errdetail("The extension alone writes this table."),
				 strcmp(table, "control") == 0 ?
				 errhint("Use onside_attribution.pause() and resume().") : 0));
	}
	return PointerGetDatum(NULL);
}

/* ----------
 * delivery_cursor
 * ----------
 */

static OnsideSnapshot *
snapshot_from_datum(Datum datum)
{
	return onside_snapshot_parse(DatumGetCString(DirectFunctionCall1(pg_snapshot_out,
																	 datum)));
}

static Datum
snapshot_to_datum(const OnsideSnapshot *snapshot)
{
	return DirectFunctionCall1(pg_snapshot_in,
							   CStringGetDatum(onside_snapshot_print(snapshot)));
}

static TimestampTz
time_of(TupleTableSlot *slot, int attnum)
{
	return slot->tts_isnull[attnum - 1] ? 0 :
		DatumGetTimestampTz(slot->tts_values[attnum - 1]);
}

/* Stores a time; 0, which means unknown or none, as NULL. */
static void
set_time(Datum *values, bool *nulls, int attnum, TimestampTz t)
{
	values[attnum - 1] = TimestampTzGetDatum(t);
	nulls[attnum - 1] = t == 0;
}

/* A stored Retry-After is cut to this, in case the clock was set back; ms. */
#define MAX_NOT_BEFORE	(3600 * 1000)

/* Reads an array with one time for each segment; NULL becomes 0. */
static void
read_times(TupleTableSlot *slot, int attnum, TimestampTz *times)
{
	Datum	   *elements;
	bool	   *nulls;
	int			n;

	if (slot->tts_isnull[attnum - 1])
		return;
	deconstruct_array(DatumGetArrayTypeP(slot->tts_values[attnum - 1]),
					  TIMESTAMPTZOID, sizeof(TimestampTz), FLOAT8PASSBYVAL,
					  TYPALIGN_DOUBLE, &elements, &nulls, &n);
	for (int i = 0; i < Min(n, ONSIDE_SEGMENTS); i++)
		times[i] = nulls[i] ? 0 : DatumGetTimestampTz(elements[i]);
}

/* The array for a column of times; 0 becomes a NULL element. */
static Datum
times_to_datum(const TimestampTz *times)
{
	Datum		elements[ONSIDE_SEGMENTS];
	bool		nulls[ONSIDE_SEGMENTS];
	int			dims[1] = {ONSIDE_SEGMENTS};
	int			lbs[1] = {1};

	for (int i = 0; i < ONSIDE_SEGMENTS; i++)
	{
		elements[i] = TimestampTzGetDatum(times[i]);
		nulls[i] = times[i] == 0;
	}
	return PointerGetDatum(construct_md_array(elements, nulls, 1, dims, lbs,
											  TIMESTAMPTZOID,
											  sizeof(TimestampTz),
											  FLOAT8PASSBYVAL,
											  TYPALIGN_DOUBLE));
}

/*
 * Copies the row into the C struct.  A Retry-After further away than
 * MAX_NOT_BEFORE is cut to that: if the clock was set back since, the stored
 * time could be years ahead.
 */
static void
read_cursor(TupleTableSlot *slot, void *arg)
{
	OnsideDelivery *delivery = (OnsideDelivery *) arg;
	Datum	   *values = slot->tts_values;
	bool	   *nulls = slot->tts_isnull;
	TimestampTz latest = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													 MAX_NOT_BEFORE);

	/* The cursor has a position only within a window. */
	onside_cursor_release(&delivery->settled);
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
	delivery->segment = Max(1, Min(delivery->segment, ONSIDE_SEGMENTS));
	read_times(slot, Anum_cursor_begun_at, delivery->begun_at);
	read_times(slot, Anum_cursor_left_at, delivery->left_at);
	delivery->delivered = DatumGetInt64(values[Anum_cursor_delivered - 1]);
	delivery->dead_lettered =
		DatumGetInt64(values[Anum_cursor_dead_lettered - 1]);
	delivery->requests = DatumGetInt64(values[Anum_cursor_requests - 1]);
	delivery->retries = DatumGetInt64(values[Anum_cursor_retries - 1]);
	delivery->refused_in_row =
		DatumGetInt32(values[Anum_cursor_refused_in_row - 1]);
	delivery->trouble_since = time_of(slot, Anum_cursor_trouble_since);
	delivery->not_before = time_of(slot, Anum_cursor_not_before);
	if (delivery->not_before > latest)
		delivery->not_before = latest;
	delivery->written_by =
		DatumGetFullTransactionId(values[Anum_state_written_by - 1]);
}

/* Has *delivery say that nothing is settled. */
static void
forget_all(OnsideDelivery *delivery)
{
	onside_cursor_release(&delivery->settled);
	memset(delivery, 0, sizeof(*delivery));
	delivery->settled.done = onside_snapshot_parse("1:1:");
	delivery->segment = 1;
}

/*
 * Is the snapshot from beyond this server's transactions?  A superuser who
 * gets past the trigger can write anything into the row.
 */
static bool
is_ahead(const OnsideSnapshot *snapshot)
{
	return snapshot != NULL &&
		FullTransactionIdPrecedes(ReadNextFullTransactionId(), snapshot->xmax);
}

void
onside_delivery_load(OnsideDelivery *delivery, Snapshot snapshot,
					 const char **problem)
{
	forget_all(delivery);
	*problem = read_state("delivery_cursor", snapshot, read_cursor, delivery);
	if (is_ahead(delivery->settled.done) || is_ahead(delivery->settled.window))
	{
		forget_all(delivery);
		*problem = "its row is ahead of this server's transactions";
	}
}

/* The worker alone calls this, so no two sessions ever write the row. */
void
onside_delivery_store(OnsideDelivery *delivery)
{
	const OnsideCursor *settled = &delivery->settled;
	bool		in_window = settled->window != NULL;
	Datum		values[Natts_cursor] = {0};
	bool		nulls[Natts_cursor] = {0};

	values[Anum_cursor_settled - 1] = snapshot_to_datum(settled->done);
	if (in_window)
	{
		values[Anum_cursor_settled_window - 1] =
			snapshot_to_datum(settled->window);
		values[Anum_cursor_settled_xid - 1] =
			FullTransactionIdGetDatum(settled->pos.xid);
		values[Anum_cursor_settled_id - 1] = Int64GetDatum(settled->pos.id);
	}
	nulls[Anum_cursor_settled_window - 1] = !in_window;
	nulls[Anum_cursor_settled_xid - 1] = !in_window;
	nulls[Anum_cursor_settled_id - 1] = !in_window;
	values[Anum_cursor_segment - 1] = Int16GetDatum(delivery->segment);
	values[Anum_cursor_begun_at - 1] = times_to_datum(delivery->begun_at);
	values[Anum_cursor_left_at - 1] = times_to_datum(delivery->left_at);
	values[Anum_cursor_delivered - 1] = Int64GetDatum(delivery->delivered);
	values[Anum_cursor_dead_lettered - 1] =
		Int64GetDatum(delivery->dead_lettered);
	values[Anum_cursor_requests - 1] = Int64GetDatum(delivery->requests);
	values[Anum_cursor_retries - 1] = Int64GetDatum(delivery->retries);
	values[Anum_cursor_refused_in_row - 1] =
		Int32GetDatum(delivery->refused_in_row);
	set_time(values, nulls, Anum_cursor_trouble_since,
			 delivery->trouble_since);
	set_time(values, nulls, Anum_cursor_not_before, delivery->not_before);
	write_state("delivery_cursor", values, nulls, Natts_cursor);
	delivery->written_by = current_xid();
}

bool
onside_delivery_is_held(TransactionId xid)
{
	Relation	rel = open_table("delivery_cursor");
	TransactionId oldest = GetOldestNonRemovableTransactionId(rel);

	table_close(rel, AccessShareLock);
	return !TransactionIdPrecedes(xid, oldest);
}

/* ----------
 * control
 * ----------
 */

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
onside_control_paused(char **reason, const char **problem)
{
	Control		control = {0};

	*problem = read_state("control", NULL, read_control, &control);
	*reason = control.reason;
	return control.paused;
}

void
onside_control_set(bool paused, text *reason)
{
	Datum		values[Natts_control] = {0};
	bool		nulls[Natts_control] = {0};

	values[Anum_control_paused - 1] = BoolGetDatum(paused);
	values[Anum_control_pause_reason - 1] = PointerGetDatum(reason);
	nulls[Anum_control_pause_reason - 1] = reason == NULL;
	set_time(values, nulls, Anum_control_paused_at,
			 paused ? GetCurrentTransactionStartTimestamp() : 0);
	write_state("control", values, nulls, Natts_control);
}
