/*-------------------------------------------------------------------------
 *
 * forget.c
 *		forget: everything about an installation is deleted.
 *
 * An event is in the outbox, in aside, or in dead_letter, and can move while
 * forget() looks: the worker moves events in this order, and
 * retry_dead_letters() moves them from dead_letter into the outbox.  No event
 * must slip through.
 *
 * - The worker moves an event in a transaction that has aside locked for
 *	 writing (see locks.c), and it does not wait for that lock.  forget() begins
 *	 with a lock on aside that conflicts with it, and keeps the lock: from then
 *	 on the worker moves nothing.  Sending, recording and putting dead letters
 *	 back need no such lock.  Two calls of forget() come one after the other.
 *
 * - dead_letter is read first.  If retry_dead_letters() is moving an event out
 *	 of it, forget() waits for the event's row and finds it deleted.  Then all
 *	 tables are read once more.
 *
 * forget() deletes what is committed when it runs, whatever the isolation
 * level; the transaction's own snapshot may be older.  It does not see rows of
 * open transactions.  It waits for a session that is changing a row to be
 * deleted, as a DELETE would.
 *
 * As in retry_dead_letters() (dead_letter.c), EXECUTE on the function is the
 * privilege, and no user's code is executed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

#include "compat.h"
#include "log/commit.h"
#include "log/dead_letter.h"
#include "log/shape.h"
#include "log/shmem.h"
#include "log/sort.h"
#include "log/tables.h"
#include "log/take.h"

PG_FUNCTION_INFO_V1(onside_forget);

/* Does the row belong to this installation? */
static bool
is_of(TupleTableSlot *row, const pg_uuid_t *installation_id)
{
	bool		isnull;
	Datum		value = slot_getattr(row, Anum_outbox_installation_id, &isnull);

	return !isnull &&
		memcmp(DatumGetUUIDP(value), installation_id, UUID_LEN) == 0;
}

/*
 * Notes where the installation's rows are, and when they came.  The rows are
 * deleted in the order in which they came.  retry_dead_letters() takes them in
 * the same order, so the two do not deadlock.
 */
static void
note_rows(Relation rel, const pg_uuid_t *installation_id, AttrNumber since,
		  OnsideSort *sort)
{
	TupleTableSlot *row = table_slot_create(rel, NULL);
	ScanKeyData key;
	TableScanDesc scan;

	/* The column has the same number in all of these tables. */
	ScanKeyInit(&key, Anum_outbox_installation_id, BTEqualStrategyNumber,
				F_UUID_EQ, UUIDPGetDatum(installation_id));
	scan = onside_table_beginscan(rel, onside_reading_snapshot(), 1, &key);
	while (table_scan_getnextslot(scan, ForwardScanDirection, row))
	{
		Datum		values[2];
		bool		nulls[2] = {false, false};

		CHECK_FOR_INTERRUPTS();

		/* sort by time, and then by place */
		values[0] = slot_getattr(row, since, &nulls[0]);
		values[1] = PointerGetDatum(&row->tts_tid);
		onside_sort_put(sort, values, nulls);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(row);
}

/*
 * Deletes the installation's rows of a table.  *moved is set if another
 * session has deleted one meanwhile: the event may now be in another table.
 */
static int64
forget_in(const char *name, const pg_uuid_t *installation_id,
		  AttrNumber since, bool *moved)
{
	static const Oid columns[] = {TIMESTAMPTZOID, TIDOID};
	Relation	rel = table_open(onside_table_oid(name), RowExclusiveLock);
	TupleTableSlot *row = table_slot_create(rel, NULL);
	OnsideSort *sort = onside_sort_begin(columns, lengthof(columns),
										 lengthof(columns));
	TupleTableSlot *noted;
	int64		count = 0;

	/* Read with a snapshot of now, whatever the isolation level. */
	(void) onside_shape_require(rel, true);
	PushActiveSnapshot(GetLatestSnapshot());
	note_rows(rel, installation_id, since, sort);
	while ((noted = onside_sort_next(sort)) != NULL)
	{
		ItemPointerData tid;
		OnsideTaken taken;

		/*
		 * Wait for whoever is changing the row.  Is it still there, and ours?
		 */
		CHECK_FOR_INTERRUPTS();
		tid = *(ItemPointer) DatumGetPointer(noted->tts_values[1]);
		taken = onside_take_lock(rel, &tid, LockWaitBlock, row);
		*moved |= taken == ONSIDE_TAKE_GONE;
		if (taken == ONSIDE_TAKE_GONE ||
			(taken == ONSIDE_TAKEN_CHANGED && !is_of(row, installation_id)))
			continue;
		simple_table_tuple_delete(rel, &row->tts_tid, GetActiveSnapshot());
		count++;
	}

	/* The lock on the table is kept to the end of the transaction. */
	PopActiveSnapshot();
	onside_sort_end(sort);
	ExecDropSingleTupleTableSlot(row);
	table_close(rel, NoLock);
	return count;
}

/* Looks through all tables once; returns how many rows it has deleted. */
static int64
forget_everywhere(const pg_uuid_t *installation_id, bool *moved)
{
	int64		count;

	*moved = false;
	count = forget_in("dead_letter", installation_id,
					  Anum_dead_letter_failed_at, moved);
	for (int segment = 1; segment <= ONSIDE_SEGMENTS; segment++)
		count += forget_in(psprintf("outbox_%d", segment), installation_id,
						   Anum_outbox_recorded_at, moved);
	return count + forget_in("aside", installation_id,
							 Anum_outbox_recorded_at, moved);
}

/* forget(installation_id uuid) */
Datum
onside_forget(PG_FUNCTION_ARGS)
{
	int64		count = 0;
	bool		moved;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("installation_id must not be null"),
				 errhint("Pass the identifier of the installation whose events are to be deleted.")));
	PreventCommandIfReadOnly("forget()");
	PreventCommandIfParallelMode("forget()");

	/* The worker moves nothing from now to the end of the transaction. */
	LockRelationOid(onside_table_oid("aside"), ShareRowExclusiveLock);

	/*
	 * See what this transaction has recorded until now; repeat if one moved.
	 */
	CommandCounterIncrement();
	do
	{
		count += forget_everywhere(PG_GETARG_UUID_P(0), &moved);
		CommandCounterIncrement();
	} while (moved);

	/* At commit the worker learns that what it holds may be gone. */
	if (count > 0)
		onside_commit_wake(ONSIDE_WAKE_WITHDRAWN);
	PG_RETURN_INT64(count);
}
