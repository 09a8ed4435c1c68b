/*-------------------------------------------------------------------------
 *
 * row.c
 *		A source table's row becomes an event.
 *
 * track_row() (trigger.c) passes rows as they are written, backfill.c rows
 * that the table already has, and look.c recent rows that attach() tries.
 * This file reads the columns of a row and makes the event.  row_mapped.c
 * makes the events of a row that has a mapper.  row_outcome.c appends a valid
 * event to the outbox, and decides what becomes of an invalid one.
 *
 * A row without an installation_id stands for a purchase outside of the app.
 * The row is skipped and counted.
 *
 * All that is made of a row lives in the reader's memory context per_row.  It
 * is reset after each row, and after an error by row_cache.c.
 *
 * No locks are taken here.  A row that is no valid event makes the statement
 * fail only if on_invalid_event says so, or if backfill meets a row without an
 * event_id; see row_outcome.c for the locks on dead_letter.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "compat.h"
#include "log/event.h"
#include "record/purchase.h"
#include "record/row.h"
#include "record/row_mapped.h"
#include "settings.h"

/*
 * No payload is made that is larger than this; bytes.  The limit is far more
 * than a request holds, and less than what jsonb takes.
 */
#define PAYLOAD_LIMIT	(100 * ONSIDE_API_MAX_BYTES)

/*
 * If a statement has no more rows than this, the mapper gets them one by one:
 * its plan for one row is kept, and a plan for all rows would be made anew.
 */
#define FEW_ROWS	10

/* About how many bytes of a payload this value takes; 0 for a small one. */
static Size
value_size(const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvString:
			return value->val.string.len;
		case jbvBinary:
			return value->val.binary.len;
		default:
			return 0;
	}
}

/*
 * Makes the payload.  Returns NULL if it would be larger than PAYLOAD_LIMIT.
 * For an invalid value *valid becomes false; *error is filled in only for the
 * first invalid field of the row.
 */
static Jsonb *
make_payload(OnsideRowReader *reader, TupleTableSlot *row,
			 OnsideEventError *error, bool *valid)
{
	OnsideJsonbBuilder builder = {0};
	OnsideEventError dropped;
	Size		size = 0;

	/* A value that cannot be sent is kept as text, for the dead letter. */
	onside_jsonb_push(&builder, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < reader->npayload; i++)
	{
		JsonbValue	value;

		*valid &= onside_column_to_json(&reader->payload[i], row, &value,
										*valid ? error : &dropped);

		/* The limit is checked before the value is copied. */
		size += value_size(&value);
		if (size > PAYLOAD_LIMIT)
		{
			*valid = onside_event_invalid(*valid ? error : &dropped,
										  reader->payload[i].field,
										  ERRCODE_PROGRAM_LIMIT_EXCEEDED,
										  psprintf("payload is too large: %s takes it beyond %d bytes",
												   reader->payload[i].field,
												   PAYLOAD_LIMIT),
										  ONSIDE_TOO_LARGE_HINT);
			return NULL;
		}
		onside_push_string(&builder, WJB_KEY, reader->keys[i]);
		onside_jsonb_push(&builder, WJB_VALUE, &value);
	}
	onside_jsonb_push(&builder, WJB_END_OBJECT, NULL);
	return JsonbValueToJsonb(builder.result);
}

/*
 * Makes a row's event.  On false *error has the first reason why the event is
 * not valid.  An invalid field does not stop us: the event has as many fields
 * as could be read, for the dead letter.
 */
static bool
make_event(OnsideRowReader *reader, Relation rel, TupleTableSlot *row,
		   OnsideEvent *event, OnsideEventError *error)
{
	OnsideEventError dropped;
	bool		valid = reader->broken == NULL;
	bool		id_is_valid;
	char	   *key;

	if (!valid)
		*error = *reader->broken;
	event->event_name = reader->event_name;
	event->name_is_checked = reader->name_is_valid;

	/* Field by field; only the first invalid one is told. */
	valid &= onside_column_to_uuid(&reader->installation_id, row,
								   &event->installation_id,
								   &event->has_installation_id,
								   valid ? error : &dropped);

	/* Without a mapped time the event occurs now. */
	event->event_datetime = GetCurrentTransactionStartTimestamp();
	event->has_event_datetime = true;
	if (reader->event_datetime.name != NULL)
		valid &= onside_column_to_datetime(&reader->event_datetime, row,
										   &event->event_datetime,
										   &event->has_event_datetime,
										   valid ? error : &dropped);

	/* A dead letter gets an event_id, too, unless the row's own is invalid. */
	id_is_valid = onside_column_to_event_id(&reader->event_id, row,
											&event->event_id,
											&event->has_event_id, &key,
											valid ? error : &dropped);
	if (id_is_valid && key != NULL)
		id_is_valid = onside_row_id_of_key(reader, rel, key, event,
										   valid ? error : &dropped);
	if (id_is_valid && !event->has_event_id)
		onside_row_fresh_id(reader, event);
	valid &= id_is_valid;

	/* The rules for a whole event apply to one that is valid so far. */
	event->payload = make_payload(reader, row, error, &valid);
	return valid && onside_event_check(event, error);
}

/*
 * Does the row's time lie between backfill's since and until?  A time that is
 * missing or invalid does not exclude the row.
 */
static bool
is_row_due(OnsideRowReader *reader, TupleTableSlot *row)
{
	OnsideEventError error;
	TimestampTz t;
	bool		has;

	return reader->backfill == NULL || reader->event_datetime.name == NULL ||
		!onside_column_to_datetime(&reader->event_datetime, row, &t, &has,
								   &error) ||
		onside_row_is_due(reader, has, t);
}

/*
 * Raises an error if backfill meets a row without an event_id of its own,
 * whatever on_invalid_event says.  If we gave the row a new event_id, the
 * trigger and backfill would report two events for it.
 */
static void
require_own_id(OnsideRowReader *reader, Relation rel, TupleTableSlot *row)
{
	char	   *key;

	if (reader->backfill == NULL ||
		!onside_column_is_empty(&reader->event_id, row))
		return;
	key = onside_row_key(rel, row);
	ereport(ERROR,
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
			 errmsg("backfill: column \"%s\", the event_id, is NULL or empty",
					reader->event_id.name),
			 key == NULL ? 0 : errdetail("This is the row %s.", key),
			 errhint("Without an event_id of the row's own, the trigger and backfill report two events. Give such rows one, or attach the event with event_id => the name of a column that is NOT NULL, such as the primary key."),
			 errtablecolname(rel, reader->event_id.name)));
}

/*
 * A row outside of backfill's since and until is passed over.  A row without an
 * installation_id is skipped and counted.  Any other row is an event, valid or
 * not.
 */
void
onside_row_record(OnsideRowReader *reader, Relation rel, TupleTableSlot *row,
				  OnsideAppend **append)
{
	MemoryContext old;
	OnsideEvent event = {0};
	OnsideEventError error;

	/* Each event of a mapper is settled by itself. */
	if (reader->mapper != NULL)
	{
		onside_row_mapped_record(reader, rel, row, append);
		return;
	}

	old = MemoryContextSwitchTo(reader->per_row);
	if (!is_row_due(reader, row))
		;						/* onside_row_is_due() has counted it */
	else if (reader->installation_id.attnum != InvalidAttrNumber &&
			 onside_column_is_empty(&reader->installation_id, row))
		onside_row_count_skipped(reader, 1);
	else
	{
		bool		valid;

		/* From here on the row is an event, valid or not. */
		require_own_id(reader, rel, row);
		reader->row = row;
		valid = make_event(reader, rel, row, &event, &error);
		onside_row_settle(reader, rel, &event, valid ? NULL : &error, append,
						  old);
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(reader->per_row);
}

/*
 * Few rows go to the mapper one by one.  Many rows go to it in one query, and
 * one by one if that query fails.
 */
void
onside_row_record_all(OnsideRowReader *reader, TriggerData *trigdata,
					  OnsideAppend **append)
{
	Tuplestorestate *rows = trigdata->tg_newtable;
	TupleTableSlot *row;
	int			pointer;

	if (reader->mapper != NULL && tuplestore_tuple_count(rows) > FEW_ROWS &&
		onside_row_mapped_record_all(reader, trigdata, append))
		return;

	/*
	 * Other triggers may read the store, too, so we read by our own pointer.
	 */
	row = MakeSingleTupleTableSlot(RelationGetDescr(trigdata->tg_relation),
								   &TTSOpsMinimalTuple);

	/* From the first row on, wherever another trigger has stopped. */
	pointer = tuplestore_alloc_read_pointer(rows, EXEC_FLAG_REWIND);
	tuplestore_select_read_pointer(rows, pointer);
	tuplestore_rescan(rows);

	/* Each row by itself, also where the query over all rows has failed. */
	while (tuplestore_gettupleslot(rows, true, false, row))
	{
		CHECK_FOR_INTERRUPTS();
		onside_row_record(reader, trigdata->tg_relation, row, append);
	}
	ExecDropSingleTupleTableSlot(row);
}

/*
 * Takes the same steps as onside_row_record(), but ignores backfill and
 * changes nothing.
 */
OnsideRowOutcome
onside_row_try(OnsideRowReader *reader, Relation rel, TupleTableSlot *row,
			   OnsideEventError *error)
{
	MemoryContext old = MemoryContextSwitchTo(reader->per_row);
	OnsideEvent event = {0};
	OnsideRowOutcome outcome = ONSIDE_ROW_RECORDED;

	memset(error, 0, sizeof(*error));

	/* What onside_row_record() skips, records or refuses. */
	if (reader->mapper != NULL)
		outcome = onside_row_mapped_try(reader, row, error);
	else if (onside_column_is_empty(&reader->installation_id, row))
	{
		error->field = "installation_id";
		outcome = ONSIDE_ROW_SKIPPED;
	}
	else if (!make_event(reader, rel, row, &event, error))
		outcome = ONSIDE_ROW_DEAD_LETTER;
	MemoryContextSwitchTo(old);
	return outcome;
}
