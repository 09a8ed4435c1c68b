/*-------------------------------------------------------------------------
 *
 * dead_letter.c
 *		Events that were refused for good.
 *
 * The worker moves an event here in the transaction that moves the cursor past
 * the event.  track_row() puts the event of an invalid row here if
 * on_invalid_event says so.  Logical replication puts an invalid event here
 * (incoming.c). An event leaves by retry_dead_letters(), or, if it was sent, by
 * a second chance (second_chance.c).
 *
 * retry_dead_letters() reads and deletes the rows by the table access method,
 * with no SQL and as whoever calls it.  So it matters neither who owns the
 * table nor what is on it.  EXECUTE on the function is the privilege.  This is
 * safe because no user's code is executed: no trigger, rule, policy, default or
 * operator but PostgreSQL's own for uuid, timestamptz and tid.  We have to
 * check what PostgreSQL's executor would have checked:
 *
 * - that the transaction may write, and is in no parallel worker;
 *
 * - that a row which another session has changed meanwhile is judged anew, or
 *	 under REPEATABLE READ and SERIALIZABLE ends the transaction
 *	 (take_letter()); take.c waits for that session;
 *
 * - that the event keeps the rules, which the outbox's trigger checks
 *	 otherwise.
 *
 * We leave out two of the executor's checks deliberately.  A foreign key that
 * references dead_letter would be a trigger, which we do not fire.  A table
 * that is published needs a replica identity for a DELETE. dead_letter has its
 * primary key; if somebody has taken that away, decoding passes over the
 * DELETE, which is better than a dead letter that cannot leave.
 *
 * The rows' payloads can be more than memory holds.  So the function notes only
 * where each row is, sorts its notes by failed_at, and then reads the rows one
 * by one.
 *
 * Locks: RowExclusiveLock on dead_letter to the end of the transaction; for
 * reading alone AccessShareLock, which is released at once.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "lib/qunique.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "compat.h"
#include "log/dead_letter.h"
#include "log/insert.h"
#include "log/outbox.h"
#include "log/shape.h"
#include "log/sort.h"
#include "log/tables.h"
#include "log/take.h"

PG_FUNCTION_INFO_V1(onside_retry_dead_letters);

/* How long we sleep before we try a lock again that is not free; ms. */
#define LOCK_POLL	10

/* ----------
 * In
 * ----------
 */

text *
onside_dead_letter_clip(const char *error)
{
	int			len = strlen(error);

	if (len > ONSIDE_DEAD_LETTER_ERROR_MAX)
		len = pg_mbcliplen(error, len, ONSIDE_DEAD_LETTER_ERROR_MAX);
	return cstring_to_text_with_len(error, len);
}

/*
 * Cuts a name to the longest that an event can have.  The event_name of a
 * trigger can be longer, even too long for our index.
 */
static text *
clipped_name(text *name)
{
	Datum		max = Int32GetDatum(ONSIDE_API_NAME_MAX);

	return DatumGetTextPP(DirectFunctionCall2(text_left, PointerGetDatum(name),
											  max));
}

/*
 * Tries again and again.  If we queued for the lock, other sessions would queue
 * behind us.
 */
bool
onside_dead_letter_lock(int patience)
{
	static TimestampTz waited_in = 0;	/* the start of a transaction */
	Oid			relid = onside_relation_oid("dead_letter");

	/* A transaction waits once, however many rows it has. */
	if (waited_in == GetCurrentTransactionStartTimestamp())
		patience = 0;
	for (int waited = 0; OidIsValid(relid) &&
		 !ConditionalLockRelationOid(relid, RowExclusiveLock);
		 waited += LOCK_POLL)
	{
		if (waited >= patience)
		{
			waited_in = GetCurrentTransactionStartTimestamp();
			return false;
		}

		/* Sleep, but answer a cancel at once. */
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 LOCK_POLL, onside_wait_event("OnsideAttributionDeadLetter"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return true;
}

/* The row is written by the access method: see insert.c. */
void
onside_dead_letter_insert(const pg_uuid_t *id, const OnsideEvent *event,
						  int http_status, const char *error, int attempts,
						  TimestampTz recorded_at, TimestampTz retry_at,
						  const char *source)
{
	OnsideInsert insert;
	TupleTableSlot *slot;
	Datum	   *values;
	bool	   *nulls;
	pg_uuid_t	fresh;

	/* Most columns have a value; those that can be NULL say so below. */
	onside_insert_begin(&insert, onside_table_oid("dead_letter"));
	slot = onside_insert_slot(&insert);
	values = slot->tts_values;
	nulls = slot->tts_isnull;
	memset(nulls, false, Natts_dead_letter * sizeof(bool));

	/* The event, whatever fields it has. */
	onside_outbox_set_event(slot, event);
	if (event->event_name != NULL)
		values[Anum_outbox_event_name - 1] =
			PointerGetDatum(clipped_name(event->event_name));

	/* Why it is here, and from when it is tried again. */
	values[Anum_dead_letter_http_status - 1] = Int32GetDatum(http_status);
	nulls[Anum_dead_letter_http_status - 1] = http_status == 0;
	values[Anum_dead_letter_error - 1] =
		PointerGetDatum(onside_dead_letter_clip(error));
	values[Anum_dead_letter_attempts - 1] = Int32GetDatum(attempts);
	values[Anum_dead_letter_recorded_at - 1] = TimestampTzGetDatum(recorded_at);
	values[Anum_dead_letter_failed_at - 1] =
		TimestampTzGetDatum(GetCurrentTimestamp());
	values[Anum_dead_letter_retry_at - 1] = TimestampTzGetDatum(retry_at);
	nulls[Anum_dead_letter_retry_at - 1] = retry_at == 0;
	nulls[Anum_dead_letter_source - 1] = source == NULL;
	if (source != NULL)
		values[Anum_dead_letter_source - 1] = CStringGetTextDatum(source);
	values[Anum_dead_letter_chances - 1] = Int16GetDatum(0);
	nulls[Anum_dead_letter_chances - 1] = retry_at == 0;

	/* The row has the id that it was given, or a new one. */
	if (id == NULL)
		onside_event_next_id(&fresh);
	values[Anum_dead_letter_id - 1] = UUIDPGetDatum(id == NULL ? &fresh : id);

	onside_insert_row(&insert);
	onside_insert_end(&insert);
}

/* Have two texts, or two payloads, the same bytes, or are both missing? */
static bool
are_equal_bytes(const void *a, const void *b)
{
	return a == NULL || b == NULL ? a == b :
		VARSIZE_ANY_EXHDR(a) == VARSIZE_ANY_EXHDR(b) &&
		memcmp(VARDATA_ANY(a), VARDATA_ANY(b), VARSIZE_ANY_EXHDR(a)) == 0;
}

/* Have the two events the same four fields, besides event_id? */
static bool
are_equal_events(const OnsideEvent *a, const OnsideEvent *b)
{
	return a->has_event_datetime == b->has_event_datetime &&
		a->event_datetime == b->event_datetime &&
		a->has_installation_id == b->has_installation_id &&
		memcmp(&a->installation_id, &b->installation_id, UUID_LEN) == 0 &&
		are_equal_bytes(a->event_name, b->event_name) &&
		are_equal_bytes(a->payload, b->payload);
}

/*
 * Compares all five fields, since a mapper can give one event_id to different
 * events.
 */
bool
onside_dead_letter_holds(const OnsideEvent *event)
{
	Relation	rel = table_open(onside_table_oid("dead_letter"),
								 RowExclusiveLock);
	Oid			index = onside_shape_find_index(rel, "dead_letter_event_id_idx");
	OnsideEvent wanted = *event;
	bool		found = false;
	ScanKeyData key;
	SysScanDesc scan;

	/* The stored name may have been cut. */
	if (wanted.event_name != NULL)
		wanted.event_name = clipped_name(wanted.event_name);
	ScanKeyInit(&key, Anum_outbox_event_id, BTEqualStrategyNumber, F_UUID_EQ,
				UUIDPGetDatum(&event->event_id));

	/* SnapshotSelf also shows what this very command has put here. */
	scan = systable_beginscan(rel, index, OidIsValid(index), SnapshotSelf, 1,
							  &key);
	while (!found && HeapTupleIsValid(systable_getnext(scan)))
	{
		OnsideEvent other;

		/* Compare with the row of the same event_id. */
		onside_outbox_read_event(scan->slot, &other);
		found = are_equal_events(&wanted, &other);
	}
	systable_endscan(scan);
	table_close(rel, NoLock);
	return found;
}

/* Reads the table itself, in any order. */
int64
onside_dead_letter_count(int64 max, TimestampTz *newest)
{
	Relation	rel = table_open(onside_table_oid("dead_letter"),
								 AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false,
										  GetActiveSnapshot(), 0, NULL);
	int64		n = 0;

	if (newest != NULL)
		*newest = DT_NOBEGIN;
	for (; n < max && HeapTupleIsValid(systable_getnext(scan)); n++)
	{
		bool		isnull;
		Datum		failed_at;

		CHECK_FOR_INTERRUPTS();

		/* Without "newest" no column is read. */
		if (newest == NULL)
			continue;

		/* The column is NOT NULL, unless somebody has altered the table. */
		failed_at = slot_getattr(scan->slot, Anum_dead_letter_failed_at,
								 &isnull);
		if (!isnull)
			*newest = Max(*newest, DatumGetTimestampTz(failed_at));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return n;
}

/* ----------
 * Out
 * ----------
 */

/* Which dead letters: of these events, or all that were sent. */
typedef struct Wanted
{
	bool		all_sent;
	int			nids;
	pg_uuid_t  *ids;			/* ascending, each once */
} Wanted;

static int
compare_uuids(const void *a, const void *b)
{
	return memcmp(a, b, UUID_LEN);
}

/* Reads the function's argument.  NULLs in the array are ignored. */
static void
read_wanted(Wanted *wanted, ArrayType *array)
{
	Datum	   *elements;
	bool	   *nulls;
	int			n;

	memset(wanted, 0, sizeof(*wanted));
	wanted->all_sent = array == NULL;
	if (array == NULL)
		return;

	/* The elements of a uuid array, whatever its dimensions. */
	deconstruct_array(array, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR,
					  &elements, &nulls, &n);

	/* Copy the ids that are not NULL, and sort them for is_wanted(). */
	wanted->ids = palloc(Max(n, 1) * sizeof(pg_uuid_t));
	for (int i = 0; i < n; i++)
		if (!nulls[i])
			wanted->ids[wanted->nids++] = *DatumGetUUIDP(elements[i]);
	qsort(wanted->ids, wanted->nids, sizeof(pg_uuid_t), compare_uuids);
	wanted->nids = qunique(wanted->ids, wanted->nids, sizeof(pg_uuid_t),
						   compare_uuids);
}

/* Was the event sent?  If not, the dead letter is of an invalid row. */
static bool
was_sent(TupleTableSlot *letter)
{
	bool		isnull;

	return !slot_attisnull(letter, Anum_dead_letter_http_status) ||
		DatumGetInt32(slot_getattr(letter, Anum_dead_letter_attempts,
								   &isnull)) > 0;
}

/* Does the caller want this dead letter back, in its present version? */
static bool
is_wanted(const Wanted *wanted, TupleTableSlot *letter)
{
	Datum		event_id;
	bool		isnull;

	if (wanted->all_sent)
		return was_sent(letter);

	/* An invalid row may have no event_id. */
	event_id = slot_getattr(letter, Anum_outbox_event_id, &isnull);
	return !isnull && bsearch(DatumGetUUIDP(event_id), wanted->ids,
							  wanted->nids, sizeof(pg_uuid_t),
							  compare_uuids) != NULL;
}

/*
 * Notes the failed_at and the place of each dead letter with this event_id, or,
 * if event_id is NULL, of each one that was sent.  Reads with the active
 * snapshot.
 */
static void
note_letters(Relation rel, const pg_uuid_t *event_id, OnsideSort *sort)
{
	Oid			index = onside_shape_find_index(rel, "dead_letter_event_id_idx");
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	if (event_id != NULL)
		ScanKeyInit(&key, Anum_outbox_event_id, BTEqualStrategyNumber,
					F_UUID_EQ, UUIDPGetDatum(event_id));

	/* All of them need the whole table; some have an index. */
	scan = systable_beginscan(rel, index,
							  event_id != NULL && OidIsValid(index),
							  GetActiveSnapshot(), event_id != NULL ? 1 : 0,
							  &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Datum		values[2];
		bool		nulls[2] = {false, false};

		/* A million dead letters take a while. */
		CHECK_FOR_INTERRUPTS();
		if (event_id == NULL && !was_sent(scan->slot))
			continue;

		/* The columns of the sort: failed_at, and the row's place. */
		values[0] = heap_getattr(tuple, Anum_dead_letter_failed_at,
								 RelationGetDescr(rel), &nulls[0]);
		values[1] = PointerGetDatum(&tuple->t_self);
		onside_sort_put(sort, values, nulls);
	}
	systable_endscan(scan);
}

/*
 * Deletes a dead letter and leaves its last version in the slot.  Waits for a
 * session that is changing the row.  At READ COMMITTED the version that this
 * session leaves decides, as with a DELETE.  Returns false if the row is gone,
 * or is not wanted any more.
 */
static bool
take_letter(Relation rel, ItemPointer tid, const Wanted *wanted,
			TupleTableSlot *slot)
{
	OnsideTaken taken = onside_take_lock(rel, tid, LockWaitBlock, slot);

	/* A snapshot of the whole transaction does not allow a newer version. */
	if (taken != ONSIDE_TAKEN && IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 taken == ONSIDE_TAKEN_CHANGED ?
				 errmsg("could not serialize access due to concurrent update") :
				 errmsg("could not serialize access due to concurrent delete"),
				 errhint("The transaction might succeed if retried.")));

	/* Judge a changed row anew. */
	if (taken == ONSIDE_TAKE_GONE ||
		(taken == ONSIDE_TAKEN_CHANGED && !is_wanted(wanted, slot)))
		return false;

	simple_table_tuple_delete(rel, &slot->tts_tid, GetActiveSnapshot());
	return true;
}

/* Error context callback: names the dead letter that cannot be put back. */
static void
letter_error_context(void *arg)
{
	TupleTableSlot *letter = (TupleTableSlot *) arg;
	bool		isnull;
	Datum		id = slot_getattr(letter, Anum_dead_letter_id, &isnull);

	if (!isnull)
		errcontext("dead letter with id %s",
				   DatumGetCString(DirectFunctionCall1(uuid_out, id)));
}

/* Raises an error if the dead letter is not a valid event. */
static void
check_letter(TupleTableSlot *letter, const OnsideEvent *event)
{
	OnsideEventError error;
	ErrorContextCallback callback;

	callback.callback = letter_error_context;
	callback.arg = letter;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	if (!onside_event_check(event, &error))
		onside_event_throw(&error);
	error_context_stack = callback.previous;
}

/* Moves the noted dead letters into the outbox, and returns their number. */
static int64
put_back_letters(Relation rel, OnsideSort *sort, const Wanted *wanted)
{
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	MemoryContext per_letter =
		AllocSetContextCreate(CurrentMemoryContext,
							  "onside_attribution dead letter",
							  ALLOCSET_DEFAULT_SIZES);
	OnsideAppend *append = NULL;
	TupleTableSlot *noted;
	int64		count = 0;

	while ((noted = onside_sort_next(sort)) != NULL)
	{
		Datum	   *values = noted->tts_values;
		ItemPointerData tid = *(ItemPointer) DatumGetPointer(values[1]);
		MemoryContext old = MemoryContextSwitchTo(per_letter);
		OnsideEvent event;
		bool		taken;

		CHECK_FOR_INTERRUPTS();

		/* Another session may have taken or changed it since it was noted. */
		taken = take_letter(rel, &tid, wanted, slot);
		if (taken)
		{
			onside_outbox_read_event(slot, &event);
			check_letter(slot, &event);
		}
		MemoryContextSwitchTo(old);
		if (taken)
		{
			/*
			 * The outbox is opened for the first event, in the memory context
			 * that lives on.
			 */
			if (append == NULL)
				append = onside_append_begin();
			onside_append(append, &event);
			count++;
		}
		MemoryContextReset(per_letter);
	}

	if (append != NULL)
		onside_append_end(append);
	MemoryContextDelete(per_letter);
	ExecDropSingleTupleTableSlot(slot);
	return count;
}

/* retry_dead_letters(event_ids uuid[]) */
Datum
onside_retry_dead_letters(PG_FUNCTION_ARGS)
{
	static const Oid columns[] = {TIMESTAMPTZOID, TIDOID};
	Wanted		wanted;
	Relation	rel;
	OnsideSort *sort;
	int64		count;

	/* Check what the executor would check. */
	PreventCommandIfReadOnly("retry_dead_letters()");
	PreventCommandIfParallelMode("retry_dead_letters()");
	read_wanted(&wanted, PG_ARGISNULL(0) ? NULL : PG_GETARG_ARRAYTYPE_P(0));
	rel = table_open(onside_table_oid("dead_letter"), RowExclusiveLock);
	(void) onside_shape_require(rel, true);

	/* See what the statement that calls us has done so far. */
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());

	/* Note where the wanted rows are, then move them one by one. */
	sort = onside_sort_begin(columns, lengthof(columns), lengthof(columns));
	if (wanted.all_sent)
		note_letters(rel, NULL, sort);
	for (int i = 0; i < wanted.nids; i++)
		note_letters(rel, &wanted.ids[i], sort);
	count = put_back_letters(rel, sort, &wanted);
	onside_sort_end(sort);

	PopActiveSnapshot();
	table_close(rel, NoLock);
	PG_RETURN_INT64(count);
}
