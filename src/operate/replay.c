/*-------------------------------------------------------------------------
 *
 * replay.c
 *		replay: delivered events are recorded again.
 *
 * replay() records each event_id again once, as its oldest row in the given
 * time has it.  An event_id with a pending row, or with a dead letter, is
 * left out.  So outbox, aside and dead_letter are read whole, and each row's
 * event_id and place is noted.  Sorted by event_id, the notes say which rows
 * to record.  The places of these rows are sorted again, in the order of the
 * log, and the rows are read by their place.  However many rows there are,
 * the memory that this takes is work_mem.
 *
 * As in retry_dead_letters() (dead_letter.c), tables are read and written by
 * the access method, without SQL, as the caller: EXECUTE on the function is
 * the privilege, and no user's code is executed.
 *
 * Locks: the second of two calls must see what the first has recorded, or it
 * would record the same.  So a call holds a ShareUpdateExclusiveLock on the
 * outbox to the end of the transaction.  That lock conflicts with itself, and
 * with nothing that recording and sending need.  Whoever wants to hold up a
 * call needs a privilege: UPDATE, DELETE or TRUNCATE on the outbox for LOCK
 * TABLE (17 and later: or MAINTAIN), its ownership for VACUUM and ANALYZE,
 * EXECUTE for replay(); an advisory lock would need none.  The snapshot is
 * taken under the lock, whatever the isolation level, so it shows what an
 * earlier call has recorded.  The segments are locked before that, so that
 * none is emptied meanwhile.
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
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "utils/xid8.h"

#include "compat.h"
#include "log/delivery.h"
#include "log/outbox.h"
#include "log/shape.h"
#include "log/shmem.h"
#include "log/sort.h"
#include "log/tables.h"
#include "log/window.h"

PG_FUNCTION_INFO_V1(onside_replay);

/*
 * What is noted of a row, by event_id.  A row that keeps its event from being
 * replayed comes before the others of the event, and has nothing but the first
 * two columns.
 */
enum
{
	NOTE_EVENT_ID,
	NOTE_IS_DELIVERED,
	NOTE_RECORDED_AT,
	NOTE_XID,
	NOTE_ID,
	NOTE_NKEYS,
	NOTE_SEGMENT = NOTE_NKEYS,
	NOTE_TID,
	NOTE_NCOLUMNS
};

static const Oid note_types[NOTE_NCOLUMNS] = {
	UUIDOID, BOOLOID, TIMESTAMPTZOID, XID8OID, INT8OID, INT2OID, TIDOID
};

/* The notes about a row to be recorded, in the order of the log. */
enum
{
	PLACE_XID,
	PLACE_ID,
	PLACE_NKEYS,
	PLACE_SEGMENT = PLACE_NKEYS,
	PLACE_TID,
	PLACE_NCOLUMNS
};

static const Oid place_types[PLACE_NCOLUMNS] = {
	XID8OID, INT8OID, INT2OID, TIDOID
};

/* Notes that an event is not to be replayed. */
static void
note_blocker(OnsideSort *notes, Datum event_id)
{
	Datum		values[NOTE_NCOLUMNS] = {0};
	bool		nulls[NOTE_NCOLUMNS];

	memset(nulls, true, sizeof(nulls));
	values[NOTE_EVENT_ID] = event_id;
	values[NOTE_IS_DELIVERED] = BoolGetDatum(false);
	nulls[NOTE_EVENT_ID] = nulls[NOTE_IS_DELIVERED] = false;
	onside_sort_put(notes, values, nulls);
}

/*
 * Notes a row of the outbox.  A pending row keeps its event from being
 * replayed.  A delivered row can be replayed if it was recorded in the given
 * time.  Returns whether this row can be.
 */
static bool
note_row(OnsideSort *notes, TupleTableSlot *row, int segment,
		 const OnsideCursor *settled, TimestampTz since, TimestampTz until)
{
	Datum		values[NOTE_NCOLUMNS];
	bool		nulls[NOTE_NCOLUMNS] = {false};
	TimestampTz recorded_at;

	/* If somebody has taken NOT NULL away, there can be NULLs: no crash. */
	slot_getsomeattrs(row, Anum_outbox_id);
	if (row->tts_isnull[Anum_outbox_event_id - 1] ||
		row->tts_isnull[Anum_outbox_recorded_at - 1] ||
		row->tts_isnull[Anum_outbox_xid - 1] ||
		row->tts_isnull[Anum_outbox_id - 1])
		return false;

	values[NOTE_EVENT_ID] = row->tts_values[Anum_outbox_event_id - 1];
	values[NOTE_IS_DELIVERED] = BoolGetDatum(true);
	values[NOTE_RECORDED_AT] = row->tts_values[Anum_outbox_recorded_at - 1];
	values[NOTE_XID] = row->tts_values[Anum_outbox_xid - 1];
	values[NOTE_ID] = row->tts_values[Anum_outbox_id - 1];
	values[NOTE_SEGMENT] = Int16GetDatum(segment);
	values[NOTE_TID] = PointerGetDatum(&row->tts_tid);

	/* Above the cursor it is pending. */
	if (!onside_cursor_covers(settled,
							  DatumGetFullTransactionId(values[NOTE_XID]),
							  DatumGetInt64(values[NOTE_ID])))
	{
		note_blocker(notes, values[NOTE_EVENT_ID]);
		return false;
	}

	/*
	 * The oldest such row of an event comes first when the notes are sorted.
	 */
	recorded_at = DatumGetTimestampTz(values[NOTE_RECORDED_AT]);
	if (recorded_at < since || recorded_at > until)
		return false;
	onside_sort_put(notes, values, nulls);
	return true;
}

/* Notes the rows of a segment; returns how many of them can be replayed. */
static int64
note_segment(OnsideSort *notes, Relation rel, int segment,
			 const OnsideCursor *settled, TimestampTz since, TimestampTz until)
{
	TupleTableSlot *row = table_slot_create(rel, NULL);
	TableScanDesc scan = onside_table_beginscan(rel, GetActiveSnapshot(), 0,
												NULL);
	int64		n = 0;

	while (table_scan_getnextslot(scan, ForwardScanDirection, row))
	{
		CHECK_FOR_INTERRUPTS();
		if (note_row(notes, row, segment, settled, since, until))
			n++;
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(row);
	return n;
}

/* Notes all events of aside or dead_letter, which are not replayed. */
static void
note_table(OnsideSort *notes, const char *name)
{
	Relation	rel = table_open(onside_table_oid(name), AccessShareLock);
	TupleTableSlot *row = table_slot_create(rel, NULL);
	TableScanDesc scan = onside_table_beginscan(rel, GetActiveSnapshot(), 0,
												NULL);

	/* The columns are where we expect them, or this is an error. */
	(void) onside_shape_require(rel, true);
	while (table_scan_getnextslot(scan, ForwardScanDirection, row))
	{
		bool		isnull;
		Datum		event_id = slot_getattr(row, Anum_outbox_event_id,
											&isnull);

		CHECK_FOR_INTERRUPTS();
		if (!isnull)
			note_blocker(notes, event_id);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(row);
	table_close(rel, AccessShareLock);
}

/*
 * Reads the sorted notes, and puts down the places of the rows to be recorded.
 * The first note of each event counts: one that blocks it, if there is any.
 */
static void
choose_rows(OnsideSort *notes, OnsideSort *places)
{
	pg_uuid_t	last = {0};
	bool		any = false;
	TupleTableSlot *note;

	while ((note = onside_sort_next(notes)) != NULL)
	{
		Datum	   *noted = note->tts_values;
		pg_uuid_t  *event_id = DatumGetUUIDP(noted[NOTE_EVENT_ID]);
		Datum		values[PLACE_NCOLUMNS];
		bool		nulls[PLACE_NCOLUMNS] = {false};

		/* A further note of the same event? */
		CHECK_FOR_INTERRUPTS();
		if (any && memcmp(event_id, &last, UUID_LEN) == 0)
			continue;
		any = true;
		last = *event_id;
		if (!DatumGetBool(noted[NOTE_IS_DELIVERED]))
			continue;

		/* sort by xid and id, and find the row by its segment and tid */
		values[PLACE_XID] = noted[NOTE_XID];
		values[PLACE_ID] = noted[NOTE_ID];
		values[PLACE_SEGMENT] = noted[NOTE_SEGMENT];
		values[PLACE_TID] = noted[NOTE_TID];
		onside_sort_put(places, values, nulls);
	}
}

/*
 * Reads the rows at these places, and records their events; returns how many.
 */
static int64
record_chosen(Relation *segments, OnsideSort *places)
{
	OnsideAppend *append = NULL;
	MemoryContext per_row = AllocSetContextCreate(CurrentMemoryContext,
												  "onside_attribution replay",
												  ALLOCSET_DEFAULT_SIZES);
	TupleTableSlot *rows[ONSIDE_SEGMENTS];
	TupleTableSlot *place;
	int64		count = 0;

	/* Segments may have columns of others', so each needs its own slot. */
	for (int i = 0; i < ONSIDE_SEGMENTS; i++)
		rows[i] = table_slot_create(segments[i], NULL);

	while ((place = onside_sort_next(places)) != NULL)
	{
		int			i = DatumGetInt16(place->tts_values[PLACE_SEGMENT]) - 1;
		Datum		tid = place->tts_values[PLACE_TID];
		MemoryContext old = MemoryContextSwitchTo(per_row);
		OnsideEvent event;
		OnsideEventError error;

		CHECK_FOR_INTERRUPTS();

		/* The segments are locked, so the row is where it was noted. */
		if (!table_tuple_fetch_row_version(segments[i],
										   (ItemPointer) DatumGetPointer(tid),
										   GetActiveSnapshot(), rows[i]))
			elog(ERROR, "could not find a row of the outbox again");

		/* Somebody may have altered it: it is checked as if it were new. */
		onside_outbox_read_event(rows[i], &event);
		if (!onside_event_check(&event, &error))
			onside_event_throw(&error);

		/* What is appended is opened in the memory context of the call. */
		MemoryContextSwitchTo(old);
		if (append == NULL)
			append = onside_append_begin();
		onside_append(append, &event);
		MemoryContextReset(per_row);
		count++;
	}

	if (append != NULL)
		onside_append_end(append);
	for (int i = 0; i < ONSIDE_SEGMENTS; i++)
		ExecDropSingleTupleTableSlot(rows[i]);
	MemoryContextDelete(per_row);
	return count;
}

/*
 * Replays what was recorded in the given time.  The caller has locked all
 * that is read, and then taken the snapshot.
 */
static int64
replay_period(Relation *segments, TimestampTz since, TimestampTz until)
{
	OnsideSort *notes = onside_sort_begin(note_types, NOTE_NCOLUMNS,
										  NOTE_NKEYS);
	OnsideDelivery delivery = {0};
	const char *problem;
	int64		count = 0;

	/*
	 * Without a cursor to be believed, everything is pending: nothing is
	 * replayed.
	 */
	onside_delivery_load(&delivery, NULL, &problem);
	for (int i = 0; i < ONSIDE_SEGMENTS; i++)
		count += note_segment(notes, segments[i], i + 1, &delivery.settled,
							  since, until);
	onside_cursor_release(&delivery.settled);

	/* The other tables are read only if there is anything to replay. */
	if (count > 0)
	{
		OnsideSort *places = onside_sort_begin(place_types, PLACE_NCOLUMNS,
											   PLACE_NKEYS);

		note_table(notes, "aside");
		note_table(notes, "dead_letter");
		choose_rows(notes, places);
		count = record_chosen(segments, places);
		onside_sort_end(places);
	}
	onside_sort_end(notes);
	return count;
}

/* replay(since timestamptz, until timestamptz) */
Datum
onside_replay(PG_FUNCTION_ARGS)
{
	TimestampTz since = PG_GETARG_TIMESTAMPTZ(0);
	TimestampTz until = PG_GETARG_TIMESTAMPTZ(1);
	Relation	segments[ONSIDE_SEGMENTS];
	Relation	outbox;
	int64		count;

	PreventCommandIfReadOnly("replay()");
	PreventCommandIfParallelMode("replay()");

	/* The lock that two calls conflict on, to the end of the transaction. */
	outbox = table_open(onside_table_oid("outbox"),
						ShareUpdateExclusiveLock);
	for (int i = 0; i < ONSIDE_SEGMENTS; i++)
	{
		segments[i] = table_open(onside_segment_oid(i + 1), AccessShareLock);
		(void) onside_shape_require(segments[i], true);
	}

	/* See what this transaction has recorded until now, too. */
	CommandCounterIncrement();
	PushActiveSnapshot(GetLatestSnapshot());
	count = replay_period(segments, since, until);
	PopActiveSnapshot();

	for (int i = 0; i < ONSIDE_SEGMENTS; i++)
		table_close(segments[i], AccessShareLock);
	table_close(outbox, NoLock);
	PG_RETURN_INT64(count);
}
