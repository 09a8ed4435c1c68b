/*-------------------------------------------------------------------------
 *
 * second_chance.c
 *		Dead letters that get another chance by themselves.
 *
 * An API that was wrong for a while has refused what was fine.  So a dead letter
 * that was sent has a retry_at, and the worker tries it again from then on.  What
 * it tries is its own business; here it finds out what is due, and writes down
 * what has come of it.
 *
 * Alike are dead letters of one http_status and one event_name.  The index
 * dead_letter_chances_idx is on (http_status, event_name, retry_at, id), so a group
 * is a range of it that begins with its least retry_at and ends with those that
 * have none.  The groups are found by jumping from the end of one to the beginning
 * of the next; a million dead letters in between cost nothing.  No scan could stand
 * in for that index.  While it is missing there are no second chances, and doctor()
 * says why.
 *
 * A dead letter that a session is changing (retry_dead_letters(), a DELETE) is
 * passed over, and one that it has changed meanwhile is left to it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "log/dead_letter.h"
#include "log/insert.h"
#include "log/outbox.h"
#include "log/shape.h"
#include "log/tables.h"
#include "log/take.h"
#include "worker/second_chance.h"

#define KEY		"dead_letter_pkey"
#define INDEX	"dead_letter_chances_idx"

/* Columns of INDEX. */
enum
{
	Anum_chances_index_http_status = 1,
	Anum_chances_index_event_name,
	Anum_chances_index_retry_at,
	Anum_chances_index_id
};

/* No more dead letters than this are looked at to pick one. */
#define MAX_LOOKED_AT	1000

/* ----------
 * Looking at the index
 * ----------
 */

/* The table and its index, and a scan of a range of that. */
typedef struct Look
{
	Relation	rel;
	Relation	index;
	IndexScanDesc scan;			/* or NULL */
	ScanDirection direction;
	TupleTableSlot *row;
} Look;

/* False, and nothing is open, if there is no index. */
static bool
begin_look(Look *look)
{
	Oid			index;

	look->rel = table_open(onside_table_oid("dead_letter"), AccessShareLock);
	(void) onside_shape_require(look->rel, true);
	index = onside_shape_find_index(look->rel, INDEX);
	if (!OidIsValid(index))
	{
		table_close(look->rel, AccessShareLock);
		return false;
	}
	look->index = index_open(index, AccessShareLock);
	look->row = table_slot_create(look->rel, NULL);
	look->scan = NULL;
	return true;
}

static void
end_look(Look *look)
{
	if (look->scan != NULL)
		index_endscan(look->scan);
	ExecDropSingleTupleTableSlot(look->row);
	index_close(look->index, AccessShareLock);
	table_close(look->rel, AccessShareLock);
}

static bool
next_row(Look *look)
{
	CHECK_FOR_INTERRUPTS();
	return index_getnext_slot(look->scan, look->direction, look->row);
}

/* Leaves the first row of a range in the slot, or the last one if backward. */
static bool
first_row(Look *look, ScanKey keys, int nkeys, ScanDirection direction)
{
	if (look->scan != NULL)
		index_endscan(look->scan);
	look->direction = direction;
	look->scan = onside_index_beginscan(look->rel, look->index,
										onside_reading_snapshot(), nkeys);
	index_rescan(look->scan, keys, nkeys, NULL, 0);
	return next_row(look);
}

/* A column that is not null. */
static TimestampTz
time_at(TupleTableSlot *row, int column)
{
	bool		isnull;

	return DatumGetTimestampTz(slot_getattr(row, column, &isnull));
}

static TimestampTz
retry_at_of(Look *look)
{
	return time_at(look->row, Anum_dead_letter_retry_at);
}

static void
status_key(ScanKey key, bool has_status, int http_status)
{
	if (has_status)
		ScanKeyInit(key, Anum_chances_index_http_status,
					BTEqualStrategyNumber, F_INT4EQ,
					Int32GetDatum(http_status));
	else
		ScanKeyEntryInitialize(key, SK_ISNULL | SK_SEARCHNULL,
							   Anum_chances_index_http_status,
							   InvalidStrategy, InvalidOid, InvalidOid,
							   InvalidOid, (Datum) 0);
}

/* The first two keys of a scan of this group. */
static void
group_keys(ScanKey keys, const OnsideChanceGroup *group)
{
	status_key(&keys[0], group->has_status, group->http_status);
	ScanKeyInit(&keys[1], Anum_chances_index_event_name,
				BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(group->event_name));
}

/* How many chances has it had? */
static int
had_chances(TupleTableSlot *row)
{
	bool		isnull;
	Datum		chances = slot_getattr(row, Anum_dead_letter_chances, &isnull);

	return isnull ? 0 : DatumGetInt16(chances);
}

/* ----------
 * Groups
 * ----------
 */

/*
 * Where the jump from group to group has come to: behind all of this status and
 * name, or behind all names of this status, which those that have none follow.
 */
typedef struct Place
{
	bool		has_status;
	int			http_status;
	text	   *event_name;		/* NULL: behind all of the status */
} Place;

/* Leaves the first row behind the place in the slot. */
static bool
jump(Look *look, const Place *place)
{
	ScanKeyData keys[2];

	status_key(&keys[0], place->has_status, place->http_status);
	if (place->event_name != NULL)
	{
		ScanKeyInit(&keys[1], Anum_chances_index_event_name,
					BTGreaterStrategyNumber, F_TEXT_GT,
					PointerGetDatum(place->event_name));
		if (first_row(look, keys, 2, ForwardScanDirection))
			return true;
	}
	if (!place->has_status)
		return false;
	ScanKeyInit(&keys[0], Anum_chances_index_http_status,
				BTGreaterStrategyNumber, F_INT4GT,
				Int32GetDatum(place->http_status));
	if (first_row(look, keys, 1, ForwardScanDirection))
		return true;
	status_key(&keys[0], false, 0);
	return first_row(look, keys, 1, ForwardScanDirection);
}

/*
 * Moves the place behind the group of the row in the slot.  True if it is one:
 * its first row has a retry_at, and a name that an event can have.
 */
static bool
read_group(Look *look, Place *place, OnsideChanceGroup *group)
{
	TupleTableSlot *row = look->row;

	slot_getsomeattrs(row, Anum_dead_letter_retry_at);
	place->has_status = !row->tts_isnull[Anum_dead_letter_http_status - 1];
	place->http_status =
		DatumGetInt32(row->tts_values[Anum_dead_letter_http_status - 1]);
	place->event_name = row->tts_isnull[Anum_outbox_event_name - 1] ? NULL :
		DatumGetTextPCopy(row->tts_values[Anum_outbox_event_name - 1]);

	if (place->event_name == NULL ||
		row->tts_isnull[Anum_dead_letter_retry_at - 1] ||
		VARSIZE_ANY_EXHDR(place->event_name) == 0 ||
		VARSIZE_ANY_EXHDR(place->event_name) >= sizeof(group->event_name))
		return false;
	group->has_status = place->has_status;
	group->http_status = place->has_status ? place->http_status : 0;
	text_to_cstring_buffer(place->event_name, group->event_name,
						   sizeof(group->event_name));
	group->due = retry_at_of(look);
	return true;
}

/* Jumps from group to group until one has a row that is due at any time. */
static bool
next_group(const OnsideChanceGroup *after, OnsideChanceGroup *group)
{
	Look		look;
	Place		place;
	bool		any;
	bool		found = false;

	if (!begin_look(&look))
		return false;
	if (after != NULL)
	{
		place.has_status = after->has_status;
		place.http_status = after->http_status;
		place.event_name = cstring_to_text(after->event_name);
	}
	any = after == NULL ? first_row(&look, NULL, 0, ForwardScanDirection) :
		jump(&look, &place);
	while (any && !(found = read_group(&look, &place, group)))
		any = jump(&look, &place);
	end_look(&look);
	return found;
}

static TimestampTz
next_due(const OnsideChanceGroup *group, TimestampTz later_than)
{
	Look		look;
	ScanKeyData keys[3];
	TimestampTz due = 0;

	if (!begin_look(&look))
		return 0;
	group_keys(keys, group);
	ScanKeyInit(&keys[2], Anum_chances_index_retry_at,
				BTGreaterStrategyNumber, F_TIMESTAMPTZ_GT,
				TimestampTzGetDatum(later_than));
	if (first_row(&look, keys, 3, ForwardScanDirection))
		due = retry_at_of(&look);
	end_look(&look);
	return due;
}

/*
 * Of one group, and of those that had so many chances: their retry_at says when
 * they failed, unless somebody has changed it.
 */
static int
failed_in_group(const OnsideChanceGroup *group, int chances, TimestampTz since,
				pg_uuid_t *ids, int max)
{
	Look		look;
	ScanKeyData keys[4];
	int			n = 0;
	int			looked_at = 0;

	if (!begin_look(&look))
		return 0;
	group_keys(keys, group);
	ScanKeyInit(&keys[2], Anum_chances_index_retry_at,
				BTGreaterEqualStrategyNumber, F_TIMESTAMPTZ_GE,
				TimestampTzGetDatum(onside_chances_retry_at(since,
																chances)));
	ScanKeyInit(&keys[3], Anum_chances_index_retry_at,
				BTLessEqualStrategyNumber, F_TIMESTAMPTZ_LE,
				TimestampTzGetDatum(onside_chances_retry_at(GetCurrentTimestamp(),
																chances)));
	for (bool any = first_row(&look, keys, 4, ForwardScanDirection);
		 any && n < max && looked_at++ < MAX_LOOKED_AT; any = next_row(&look))
	{
		slot_getallattrs(look.row);
		if (time_at(look.row, Anum_dead_letter_failed_at) >= since &&
			had_chances(look.row) == chances)
			ids[n++] = *DatumGetUUIDP(look.row->tts_values[Anum_dead_letter_id - 1]);
	}
	end_look(&look);
	return n;
}

static int
failed_since(TimestampTz since, pg_uuid_t *ids, int max)
{
	OnsideChanceGroup *group = palloc(sizeof(OnsideChanceGroup));
	int			n = 0;

	for (bool found = next_group(NULL, group); found && n < max;
		 found = next_group(group, group))
		for (int chances = 0; onside_chances_retry_at(since, chances) != 0;
			 chances++)
			n += failed_in_group(group, chances, since, ids + n, max - n);
	return n;
}

const OnsideChanceStorage onside_second_chance_storage = {
	.next_group = next_group,
	.next_due = next_due,
	.failed_since = failed_since
};

/* ----------
 * One of a group
 * ----------
 */

typedef struct Choice
{
	Look		look;
	const pg_uuid_t *not_these;
	int			n_not_these;
	int			looked_at;
} Choice;

/* Is another session changing the row in the slot, or has it just done so? */
static bool
is_being_changed(Look *look)
{
	SnapshotData dirty;

	InitDirtySnapshot(dirty);
	return !table_tuple_satisfies_snapshot(look->rel, look->row, &dirty) ||
		TransactionIdIsValid(dirty.xmax);
}

static bool
may_be_picked(Choice *choice)
{
	TupleTableSlot *row = choice->look.row;
	const pg_uuid_t *id;

	slot_getallattrs(row);
	id = DatumGetUUIDP(row->tts_values[Anum_dead_letter_id - 1]);
	for (int i = 0; i < choice->n_not_these; i++)
		if (memcmp(id, &choice->not_these[i], UUID_LEN) == 0)
			return false;
	for (int i = 0; i < Anum_outbox_installation_id; i++)
		if (row->tts_isnull[i])
			return false;
	return !is_being_changed(&choice->look);
}

/* Leaves the first row of a range that may be picked in the slot. */
static bool
choose(Choice *choice, ScanKey keys, int nkeys, ScanDirection direction)
{
	bool		any = first_row(&choice->look, keys, nkeys, direction);

	while (any && choice->looked_at++ < MAX_LOOKED_AT)
	{
		if (may_be_picked(choice))
			return true;
		any = next_row(&choice->look);
	}
	return false;
}

/*
 * Any of the group, given the keys of those that are due: at a random time between
 * the first and the last of them and, because many can have the same time, with a
 * random id; then what follows, and then what comes before.
 */
static bool
choose_random(Choice *choice, ScanKey due_keys)
{
	Look	   *look = &choice->look;
	ScanKeyData keys[4];
	TimestampTz first;
	TimestampTz last;
	TimestampTz at;
	pg_uuid_t	id;

	if (!first_row(look, due_keys, 3, ForwardScanDirection))
		return false;
	first = retry_at_of(look);
	if (!first_row(look, due_keys, 3, BackwardScanDirection))
		return false;
	last = retry_at_of(look);
	at = first + (TimestampTz) pg_prng_uint64_range(&pg_global_prng_state, 0,
													(uint64) last - (uint64) first);

	memcpy(keys, due_keys, 3 * sizeof(ScanKeyData));
	ScanKeyInit(&keys[3], Anum_chances_index_retry_at,
				BTGreaterEqualStrategyNumber, F_TIMESTAMPTZ_GE,
				TimestampTzGetDatum(at));
	if (!first_row(look, keys, 4, ForwardScanDirection))
		return choose(choice, due_keys, 3, ForwardScanDirection);
	at = retry_at_of(look);

	ScanKeyInit(&keys[2], Anum_chances_index_retry_at,
				BTEqualStrategyNumber, F_TIMESTAMPTZ_EQ,
				TimestampTzGetDatum(at));
	for (int i = 0; i < UUID_LEN; i++)
		id.data[i] = pg_prng_uint32(&pg_global_prng_state) & 0xFF;
	ScanKeyInit(&keys[3], Anum_chances_index_id,
				BTGreaterEqualStrategyNumber, F_UUID_GE, UUIDPGetDatum(&id));
	if (choose(choice, keys, 4, ForwardScanDirection))
		return true;

	keys[2] = due_keys[2];
	ScanKeyInit(&keys[3], Anum_chances_index_retry_at,
				BTGreaterEqualStrategyNumber, F_TIMESTAMPTZ_GE,
				TimestampTzGetDatum(at));
	return choose(choice, keys, 4, ForwardScanDirection) ||
		choose(choice, due_keys, 3, ForwardScanDirection);
}

/*
 * The range of the group that is due by now, from its one end, its other end, or a
 * place in between.
 */
bool
onside_second_chance_pick(const OnsideChanceGroup *group, OnsidePick pick,
						  const pg_uuid_t *not_these, int n_not_these,
						  pg_uuid_t *id)
{
	Choice		choice = {
		.not_these = not_these, .n_not_these = n_not_these
	};
	ScanKeyData keys[3];
	bool		found;

	if (!begin_look(&choice.look))
		return false;
	group_keys(keys, group);
	ScanKeyInit(&keys[2], Anum_chances_index_retry_at,
				BTLessEqualStrategyNumber, F_TIMESTAMPTZ_LE,
				TimestampTzGetDatum(GetCurrentTimestamp()));
	if (pick == ONSIDE_PICK_RANDOM)
		found = choose_random(&choice, keys);
	else
		found = choose(&choice, keys, 3, pick == ONSIDE_PICK_OLDEST ?
					   ForwardScanDirection : BackwardScanDirection);
	if (found)
		*id = *DatumGetUUIDP(choice.look.row->tts_values[Anum_dead_letter_id - 1]);
	end_look(&choice.look);
	return found;
}

/*
 * Checks the event as if it were recorded now: somebody may have edited the row.
 */
bool
onside_second_chance_fetch(const pg_uuid_t *id, OnsideEvent *event,
						   TimestampTz *recorded_at)
{
	Relation	rel = table_open(onside_table_oid("dead_letter"),
								 AccessShareLock);
	TupleTableSlot *row = table_slot_create(rel, NULL);
	OnsideEventError error;
	bool		found;

	(void) onside_shape_require(rel, true);
	found = onside_take_find(rel, KEY, Anum_dead_letter_id, id, row);
	if (found)
	{
		/* Of what has no more chances a person decides. */
		onside_outbox_read_event(row, event);
		found = !slot_attisnull(row, Anum_dead_letter_retry_at) &&
			onside_event_check(event, &error);
	}
	if (found)
	{
		onside_outbox_copy_event(event);
		*recorded_at =
			DatumGetTimestampTz(row->tts_values[Anum_dead_letter_recorded_at - 1]);
	}
	ExecDropSingleTupleTableSlot(row);
	table_close(rel, AccessShareLock);
	return found;
}

/* ----------
 * What has come of it
 * ----------
 */

void
onside_second_chance_delete(const pg_uuid_t *id)
{
	Relation	rel = table_open(onside_table_oid("dead_letter"),
								 RowExclusiveLock);

	(void) onside_shape_require(rel, true);
	(void) onside_take_away(rel, KEY, Anum_dead_letter_id, id);
	table_close(rel, NoLock);
}

/* The row as it is after one more failure; see onside_second_chance_postpone(). */
static HeapTuple
postponed(Relation rel, TupleTableSlot *row, int http_status,
		  const char *error, TimestampTz accepted_at)
{
	TimestampTz now = GetCurrentTimestamp();
	int			columns[6] = {
		Anum_dead_letter_attempts, Anum_dead_letter_retry_at,
		Anum_dead_letter_chances, Anum_dead_letter_failed_at,
		Anum_dead_letter_http_status, Anum_dead_letter_error
	};
	Datum		values[6];
	bool		nulls[6] = {false};
	int32		attempts;
	int			chances = had_chances(row);
	TimestampTz retry_at;

	slot_getallattrs(row);
	attempts = DatumGetInt32(row->tts_values[Anum_dead_letter_attempts - 1]);
	if (error != NULL && !row->tts_isnull[Anum_dead_letter_retry_at - 1])
		chances = onside_chances_count(chances, time_at(row, Anum_dead_letter_retry_at) <= now,
									   time_at(row, Anum_dead_letter_failed_at) < accepted_at);
	retry_at = onside_chances_retry_at(now, chances);

	values[0] = Int32GetDatum(attempts < PG_INT32_MAX ? attempts + 1 : attempts);
	values[1] = TimestampTzGetDatum(retry_at);
	nulls[1] = retry_at == 0;
	values[2] = Int16GetDatum(Min(chances, PG_INT16_MAX));
	if (error != NULL)
	{
		values[3] = TimestampTzGetDatum(now);
		values[4] = Int32GetDatum(http_status);
		nulls[4] = http_status == 0;
		values[5] = PointerGetDatum(onside_dead_letter_clip(error));
	}
	return heap_modify_tuple_by_cols(ExecFetchSlotHeapTuple(row, true, NULL),
									 RelationGetDescr(rel),
									 error != NULL ? 6 : 3, columns, values,
									 nulls);
}

/*
 * Updates the row in place of the worker's own snapshot; a row that somebody else has
 * changed meanwhile is left to him.
 */
void
onside_second_chance_postpone(const pg_uuid_t *id, int http_status,
							  const char *error, TimestampTz accepted_at)
{
	OnsideInsert insert;
	TupleTableSlot *row;

	onside_insert_begin(&insert, onside_table_oid("dead_letter"));
	(void) onside_shape_require(insert.rel, true);
	row = table_slot_create(insert.rel, NULL);
	if (onside_take_find(insert.rel, KEY, Anum_dead_letter_id, id, row))
	{
		ItemPointerData tid = row->tts_tid;
		TM_FailureData failure;
		LockTupleMode lock_mode;
		OnsideUpdateIndexes indexes;

		ExecForceStoreHeapTuple(postponed(insert.rel, row, http_status, error,
										  accepted_at), row, false);
		if (onside_table_tuple_update(insert.rel, &tid, row,
									  GetCurrentCommandId(true),
									  GetActiveSnapshot(), false, &failure,
									  &lock_mode, &indexes) == TM_Ok)
			onside_insert_moved(&insert, row, indexes);
	}
	ExecDropSingleTupleTableSlot(row);
	onside_insert_end(&insert);
}
