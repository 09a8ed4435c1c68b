/*-------------------------------------------------------------------------
 *
 * second_chance.c
 *		Dead letters that get another chance by themselves.
 *
 * An API that was wrong for a while has refused good events.  So a dead letter
 * that was sent has a retry_at, and the worker sends it again from then on.
 * send/chances.c decides which group has a chance and when, chance.c carries
 * that out, and this file reads and writes the table for them: which dead
 * letters are due, the event of a dead letter, and what a chance has come to.
 *
 * A group is all dead letters with the same http_status (or none) and the same
 * event_name.  The index dead_letter_chances_idx is on (http_status,
 * event_name, retry_at, id).  So a group is a range of the index: its least
 * retry_at comes first, and rows without a retry_at come last.  A search jumps
 * from the end of one group to the beginning of the next, and a million dead
 * letters in between cost nothing.  A scan of the table could not do that:
 * while the index is missing there are no second chances, and doctor() says
 * why.
 *
 * All functions run in a transaction of the worker, which has locked
 * dead_letter (see txn.c).  Nothing here waits for a row: a dead letter that a
 * session is changing (retry_dead_letters(), a DELETE) is passed over, and a
 * dead letter that a session has changed since it was read keeps what that
 * session wrote.
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

/* How many dead letters of a range are looked at in one search, at most. */
#define MAX_LOOKED_AT	1000

/* ----------
 * Looking at the index
 * ----------
 */

/* The table, its index, and the scan of a range of the index. */
typedef struct Look
{
	Relation	rel;
	Relation	index;
	IndexScanDesc scan;			/* NULL before the first one */
	ScanDirection direction;
	TupleTableSlot *row;		/* what the scan has found */
} Look;

/* Opens table and index.  If there is no index, opens nothing: false. */
static bool
open_look(Look *look)
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

/* Closes what open_look() has opened. */
static void
close_look(Look *look)
{
	if (look->scan != NULL)
		index_endscan(look->scan);
	ExecDropSingleTupleTableSlot(look->row);
	index_close(look->index, AccessShareLock);
	table_close(look->rel, AccessShareLock);
}

/* Puts the next row of the range into the slot. */
static bool
next_row(Look *look)
{
	CHECK_FOR_INTERRUPTS();
	return index_getnext_slot(look->scan, look->direction, look->row);
}

/*
 * Begins a scan, and puts the first row of its range into the slot; the last
 * one, if the direction is backward.
 */
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

/* A time in the row; the column is not null. */
static TimestampTz
row_time(TupleTableSlot *row, int column)
{
	bool		isnull;

	return DatumGetTimestampTz(slot_getattr(row, column, &isnull));
}

/* The retry_at of the row that was found; the caller knows that it has one. */
static TimestampTz
row_retry_at(Look *look)
{
	return row_time(look->row, Anum_dead_letter_retry_at);
}

/* The id of the row that was found. */
static pg_uuid_t *
row_id(Look *look)
{
	slot_getsomeattrs(look->row, Anum_dead_letter_id);
	return DatumGetUUIDP(look->row->tts_values[Anum_dead_letter_id - 1]);
}

/* The key for rows with this http_status, or for those without any. */
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

/* The first two keys of a scan within this group. */
static void
group_keys(ScanKey keys, const OnsideChanceGroup *group)
{
	status_key(&keys[0], group->has_status, group->http_status);
	ScanKeyInit(&keys[1], Anum_chances_index_event_name,
				BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(group->event_name));
}

/* How many chances the dead letter has had. */
static int
row_chances(TupleTableSlot *row)
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
 * A place between groups in the index: behind all rows of this status and name.
 * Without a name it is behind all rows of the status, since rows without a name
 * come last.
 */
typedef struct Place
{
	bool		has_status;
	int			http_status;
	text	   *event_name;		/* or NULL */
} Place;

/*
 * Puts the first row behind the place into the slot.  Three ranges can have it,
 * and the index has them in this order: the other names of the same status, the
 * higher statuses, and the rows without a status.
 */
static bool
jump_behind(Look *look, const Place *place)
{
	ScanKeyData keys[2];

	/* The other names of this status. */
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

	/* The higher statuses. */
	ScanKeyInit(&keys[0], Anum_chances_index_http_status,
				BTGreaterStrategyNumber, F_INT4GT,
				Int32GetDatum(place->http_status));
	if (first_row(look, keys, 1, ForwardScanDirection))
		return true;

	/* The rows without a status. */
	status_key(&keys[0], false, 0);
	return first_row(look, keys, 1, ForwardScanDirection);
}

/*
 * Moves the place behind the rows that are like the one in the slot, which is
 * the first of them.  True if they are a group: the first row has a retry_at,
 * and a name that an event can have.
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

	/* What a person has edited may be no group. */
	if (place->event_name == NULL ||
		row->tts_isnull[Anum_dead_letter_retry_at - 1] ||
		VARSIZE_ANY_EXHDR(place->event_name) == 0 ||
		VARSIZE_ANY_EXHDR(place->event_name) >= sizeof(group->event_name))
		return false;
	group->has_status = place->has_status;
	group->http_status = place->has_status ? place->http_status : 0;
	text_to_cstring_buffer(place->event_name, group->event_name,
						   sizeof(group->event_name));
	group->due = row_retry_at(look);
	return true;
}

/*
 * The group behind "after", or the first one for NULL.  Jumps from one status
 * and name to the next, until they are a group.
 */
static bool
next_group(const OnsideChanceGroup *after, OnsideChanceGroup *group)
{
	Look		look;
	Place		place;
	bool		any;
	bool		found = false;

	if (!open_look(&look))
		return false;

	/* "after" and "group" may be the same struct. */
	if (after != NULL)
	{
		place.has_status = after->has_status;
		place.http_status = after->http_status;
		place.event_name = cstring_to_text(after->event_name);
	}
	any = after == NULL ? first_row(&look, NULL, 0, ForwardScanDirection) :
		jump_behind(&look, &place);
	while (any && !(found = read_group(&look, &place, group)))
		any = jump_behind(&look, &place);
	close_look(&look);
	return found;
}

/* The least retry_at of the group that is later than that; 0 for none. */
static TimestampTz
next_due(const OnsideChanceGroup *group, TimestampTz later_than)
{
	Look		look;
	ScanKeyData keys[3];
	TimestampTz due = 0;

	if (!open_look(&look))
		return 0;
	group_keys(keys, group);
	ScanKeyInit(&keys[2], Anum_chances_index_retry_at,
				BTGreaterStrategyNumber, F_TIMESTAMPTZ_GT,
				TimestampTzGetDatum(later_than));
	if (first_row(&look, keys, 3, ForwardScanDirection))
		due = row_retry_at(&look);
	close_look(&look);
	return due;
}

/*
 * Finds dead letters of one group that have had so many chances and have failed
 * since then.  The index knows no failed_at.  But a dead letter's retry_at
 * follows from its last failure and its number of chances, unless a person has
 * changed it, so a range of retry_at has all of them.
 */
static int
failed_in_group(const OnsideChanceGroup *group, int chances, TimestampTz since,
				pg_uuid_t *ids, int max)
{
	Look		look;
	ScanKeyData keys[4];
	TimestampTz from = onside_chances_retry_at(since, chances);
	TimestampTz to = onside_chances_retry_at(GetCurrentTimestamp(), chances);
	int			n = 0;
	int			looked_at = 0;

	if (!open_look(&look))
		return 0;

	/* From the retry_at of a failure then, to that of a failure now. */
	group_keys(keys, group);
	ScanKeyInit(&keys[2], Anum_chances_index_retry_at,
				BTGreaterEqualStrategyNumber, F_TIMESTAMPTZ_GE,
				TimestampTzGetDatum(from));
	ScanKeyInit(&keys[3], Anum_chances_index_retry_at,
				BTLessEqualStrategyNumber, F_TIMESTAMPTZ_LE,
				TimestampTzGetDatum(to));

	/* The range also has dead letters with another number of chances. */
	for (bool any = first_row(&look, keys, 4, ForwardScanDirection);
		 any && n < max && looked_at++ < MAX_LOOKED_AT; any = next_row(&look))
		if (row_time(look.row, Anum_dead_letter_failed_at) >= since &&
			row_chances(look.row) == chances)
			ids[n++] = *row_id(&look);
	close_look(&look);
	return n;
}

/*
 * Finds at most "max" dead letters that have failed since then and have a
 * chance to come: in each group, for each number of chances.
 */
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

/* What send/chances.c calls. */
const OnsideChanceStorage onside_second_chance_storage = {
	.next_group = next_group,
	.next_due = next_due,
	.failed_since = failed_since
};

/* ----------
 * Picking one of a group
 * ----------
 */

/* The search for a dead letter that can be sent. */
typedef struct Choice
{
	Look		look;
	const pg_uuid_t *not_these; /* ids of dead letters that are being tried */
	int			n_not_these;
	int			looked_at;		/* rows, in all ranges */
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

/*
 * May the row in the slot be picked?  It is not being tried, has all that an
 * event needs, and no session is changing it.
 */
static bool
may_pick_row(Choice *choice)
{
	TupleTableSlot *row = choice->look.row;
	const pg_uuid_t *id;

	slot_getallattrs(row);
	id = row_id(&choice->look);
	for (int i = 0; i < choice->n_not_these; i++)
		if (memcmp(id, &choice->not_these[i], UUID_LEN) == 0)
			return false;
	for (int i = 0; i < Anum_outbox_installation_id; i++)
		if (row->tts_isnull[i])
			return false;
	return !is_being_changed(&choice->look);
}

/*
 * Puts the first row of a range that may be picked into the slot.
 * MAX_LOOKED_AT bounds all ranges of a search together.
 */
static bool
choose_from_range(Choice *choice, ScanKey keys, int nkeys,
				  ScanDirection direction)
{
	bool		any = first_row(&choice->look, keys, nkeys, direction);

	while (any && choice->looked_at++ < MAX_LOOKED_AT)
	{
		if (may_pick_row(choice))
			return true;
		any = next_row(&choice->look);
	}
	return false;
}

/*
 * Chooses a random row of a range, which due_keys describe.  Draws a time
 * between the first and the last retry_at of the range.  Many rows can have
 * the same retry_at, so it also draws an id.  If no row from there on may be
 * picked, the rows before that place are tried, too.
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

	/* Draw a time. */
	if (!first_row(look, due_keys, 3, ForwardScanDirection))
		return false;
	first = row_retry_at(look);
	if (!first_row(look, due_keys, 3, BackwardScanDirection))
		return false;
	last = row_retry_at(look);
	at = first + (TimestampTz) pg_prng_uint64_range(&pg_global_prng_state, 0,
													(uint64) last - (uint64) first);

	/* Take the retry_at that is the next one from there. */
	memcpy(keys, due_keys, 3 * sizeof(ScanKeyData));
	ScanKeyInit(&keys[3], Anum_chances_index_retry_at,
				BTGreaterEqualStrategyNumber, F_TIMESTAMPTZ_GE,
				TimestampTzGetDatum(at));
	if (!first_row(look, keys, 4, ForwardScanDirection))
		return choose_from_range(choice, due_keys, 3, ForwardScanDirection);
	at = row_retry_at(look);

	/* Among the rows of that retry_at, begin with a random id. */
	ScanKeyInit(&keys[2], Anum_chances_index_retry_at,
				BTEqualStrategyNumber, F_TIMESTAMPTZ_EQ,
				TimestampTzGetDatum(at));
	for (int i = 0; i < UUID_LEN; i++)
		id.data[i] = pg_prng_uint32(&pg_global_prng_state) & 0xFF;
	ScanKeyInit(&keys[3], Anum_chances_index_id,
				BTGreaterEqualStrategyNumber, F_UUID_GE, UUIDPGetDatum(&id));
	if (choose_from_range(choice, keys, 4, ForwardScanDirection))
		return true;

	/* All rows from that retry_at on; then all rows. */
	keys[2] = due_keys[2];
	ScanKeyInit(&keys[3], Anum_chances_index_retry_at,
				BTGreaterEqualStrategyNumber, F_TIMESTAMPTZ_GE,
				TimestampTzGetDatum(at));
	return choose_from_range(choice, keys, 4, ForwardScanDirection) ||
		choose_from_range(choice, due_keys, 3, ForwardScanDirection);
}

/*
 * The dead letters of a group that are due are one range of the index.  Picks
 * from its beginning, from its end, or from a random place.
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

	if (!open_look(&choice.look))
		return false;

	/* What is due by now. */
	group_keys(keys, group);
	ScanKeyInit(&keys[2], Anum_chances_index_retry_at,
				BTLessEqualStrategyNumber, F_TIMESTAMPTZ_LE,
				TimestampTzGetDatum(GetCurrentTimestamp()));

	if (pick == ONSIDE_PICK_RANDOM)
		found = choose_random(&choice, keys);
	else
		found = choose_from_range(&choice, keys, 3,
								  pick == ONSIDE_PICK_OLDEST ?
								  ForwardScanDirection : BackwardScanDirection);
	if (found)
		*id = *row_id(&choice.look);
	close_look(&choice.look);
	return found;
}

/* Checks the event as if it were recorded now: a person may have edited it. */
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
		/* Without a retry_at, only a person may send it again. */
		onside_outbox_read_event(row, event);
		found = !slot_attisnull(row, Anum_dead_letter_retry_at) &&
			onside_event_check(event, &error);
	}
	if (found)
	{
		/* The slot's memory is about to go. */
		onside_outbox_copy_event(event);
		*recorded_at =
			DatumGetTimestampTz(row->tts_values[Anum_dead_letter_recorded_at - 1]);
	}
	ExecDropSingleTupleTableSlot(row);
	table_close(rel, AccessShareLock);
	return found;
}

/* ----------
 * What a chance has come to
 * ----------
 */

/* The API has accepted it. */
void
onside_second_chance_delete(const pg_uuid_t *id)
{
	Relation	rel = table_open(onside_table_oid("dead_letter"),
								 RowExclusiveLock);

	(void) onside_shape_require(rel, true);
	(void) onside_take_away(rel, KEY, Anum_dead_letter_id, id);
	table_close(rel, NoLock);
}

/*
 * The row as it is after one more failure; see onside_second_chance_postpone().
 * Without an error only the first three of the columns change.
 */
static HeapTuple
row_after_failure(Relation rel, TupleTableSlot *row, int http_status,
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
	int			chances = row_chances(row);
	TimestampTz retry_at;

	slot_getallattrs(row);
	attempts = DatumGetInt32(row->tts_values[Anum_dead_letter_attempts - 1]);

	/*
	 * A failure counts as a chance if the chance was due.  The last chance counts
	 * only if something was accepted since the failure before.
	 */
	if (error != NULL && !row->tts_isnull[Anum_dead_letter_retry_at - 1])
	{
		bool		due = row_time(row, Anum_dead_letter_retry_at) <= now;
		bool		compared = accepted_at >
			row_time(row, Anum_dead_letter_failed_at);

		chances = onside_chances_count(chances, due, compared);
	}
	retry_at = onside_chances_retry_at(now, chances);

	/* attempts and chances stop at the greatest numbers of their types. */
	values[0] =
		Int32GetDatum(attempts < PG_INT32_MAX ? attempts + 1 : attempts);
	values[1] = TimestampTzGetDatum(retry_at);
	nulls[1] = retry_at == 0;
	values[2] = Int16GetDatum(Min(chances, PG_INT16_MAX));

	/* What the API said. */
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
 * Updates the row without SQL, as insert.c inserts.  Does not wait: a row that
 * another session has changed since our snapshot, or is changing, is left to
 * that session.
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

		/* The new version takes the slot of the old one. */
		ExecForceStoreHeapTuple(row_after_failure(insert.rel, row, http_status,
												  error, accepted_at),
								row, false);
		if (onside_table_tuple_update(insert.rel, &tid, row,
									  GetCurrentCommandId(true),
									  GetActiveSnapshot(), false, &failure,
									  &lock_mode, &indexes) == TM_Ok)
			onside_insert_moved(&insert, row, indexes);
	}
	ExecDropSingleTupleTableSlot(row);
	onside_insert_end(&insert);
}
