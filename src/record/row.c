/*-------------------------------------------------------------------------
 *
 * row.c
 *		A source table's row becomes an event.
 *
 * track_row() gives rows as they are written; backfill gives those that a
 * table already has.  This file reads the columns of a row and makes the
 * event; rows of a mapper go to row_mapped.c, and row_outcome.c says what
 * becomes of an event.
 *
 * A row without an installation_id was bought outside of the app: it is
 * skipped and counted.
 *
 * What is made of a row lives in the reader's memory context per_row, which is
 * reset after each row.
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
#include "record/row.h"
#include "record/row_mapped.h"
#include "settings.h"

/*
 * A payload beyond this is not even made: far more than a request holds, and
 * less than what jsonb takes.
 */
#define PAYLOAD_LIMIT	(100 * ONSIDE_API_MAX_BYTES)

/* For so few rows of a statement a mapper is called row by row. */
#define FEW_ROWS	10

/* Keeps the first error of a row; later ones are dropped. */
static void
note(bool ok, OnsideEventError *first, const OnsideEventError *error,
	 bool *valid)
{
	if (!ok && *valid)
	{
		*first = *error;
		*valid = false;
	}
}

/* About how many bytes of a payload this value takes. */
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

/* Makes the payload; NULL if it is too large to be made. */
static Jsonb *
read_payload(OnsideRowReader *reader, TupleTableSlot *row,
			 OnsideEventError *error, bool *valid)
{
	OnsideJsonbBuilder builder = {0};
	Size		size = 0;

	/* A value that cannot be sent is kept as text, for the dead letter. */
	onside_jsonb_push(&builder, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < reader->npayload; i++)
	{
		OnsideEventError this_error;
		JsonbValue	key;
		JsonbValue	value;
		bool		ok;

		ok = onside_column_to_json(&reader->payload[i], row, &value,
								   &this_error);
		note(ok, error, &this_error, valid);

		size += value_size(&value);
		if (size > PAYLOAD_LIMIT)
		{
			this_error.field = reader->payload[i].field;
			this_error.sqlstate = ERRCODE_PROGRAM_LIMIT_EXCEEDED;
			this_error.message = psprintf("payload is too large: %s takes it beyond %d bytes",
										  reader->payload[i].field,
										  PAYLOAD_LIMIT);
			this_error.hint = pstrdup(ONSIDE_TOO_LARGE_HINT);
			note(false, error, &this_error, valid);
			return NULL;
		}

		key.type = jbvString;
		key.val.string.val = unconstify(char *, reader->keys[i]);
		key.val.string.len = strlen(reader->keys[i]);
		onside_jsonb_push(&builder, WJB_KEY, &key);
		onside_jsonb_push(&builder, WJB_VALUE, &value);
	}
	onside_jsonb_push(&builder, WJB_END_OBJECT, NULL);
	return JsonbValueToJsonb(builder.result);
}

/*
 * Makes a row's event.  On false *error says why the event is not valid; the
 * event has as many fields as could be read, for the dead letter.
 */
static bool
read_row(OnsideRowReader *reader, Relation rel, TupleTableSlot *row,
		 OnsideEvent *event, OnsideEventError *error)
{
	OnsideEventError this_error;
	bool		valid = true;
	bool		ok;

	note(reader->broken == NULL, error, reader->broken, &valid);

	/*
	 * Each field by itself: a dead letter shows as many of them as there are.
	 */
	event->event_name = reader->event_name;
	event->name_is_checked = reader->name_is_valid;

	ok = onside_column_to_uuid(&reader->installation_id, row,
							   &event->installation_id,
							   &event->has_installation_id, &this_error);
	note(ok, error, &this_error, &valid);

	if (reader->has_event_datetime)
	{
		ok = onside_column_to_datetime(&reader->event_datetime, row,
									   &event->event_datetime,
									   &event->has_event_datetime,
									   &this_error);
		note(ok, error, &this_error, &valid);
	}
	else
	{
		event->event_datetime = GetCurrentTransactionStartTimestamp();
		event->has_event_datetime = true;
	}

	/* A dead letter gets an event_id, too, unless the row's own is invalid. */
	ok = true;
	if (reader->has_event_id)
	{
		char	   *key;

		ok = onside_column_to_event_id(&reader->event_id, row,
									   &event->event_id, &event->has_event_id,
									   &key, &this_error);
		if (ok && key != NULL)
			ok = onside_row_id_of_key(reader, rel, key, event, &this_error);
		note(ok, error, &this_error, &valid);
	}
	if (ok && !event->has_event_id)
		onside_row_fresh_id(reader, event);

	event->payload = read_payload(reader, row, error, &valid);

	if (valid)
		valid = onside_event_check(event, error);
	return valid;
}

/* Does the row's time lie between backfill's since and until? */
static bool
is_row_due(OnsideRowReader *reader, TupleTableSlot *row)
{
	OnsideEventError error;
	TimestampTz t;
	bool		has;

	return reader->backfill == NULL || !reader->has_event_datetime ||
		!onside_column_to_datetime(&reader->event_datetime, row, &t, &has,
								   &error) ||
		onside_row_is_due(reader, has, t);
}

/*
 * Raises an error if backfill meets a row without an event_id of its own,
 * whatever on_invalid_event says.  With a new event_id, the row would be
 * another event than the one that the trigger has recorded, or will record.
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
 * The row is skipped if it has no installation_id, and passed over if it is
 * not of the time that backfill wants.
 */
OnsideRowOutcome
onside_row_record(OnsideRowReader *reader, Relation rel, TupleTableSlot *row,
				  OnsideAppend **append)
{
	MemoryContext old;
	OnsideEvent event = {0};
	OnsideEventError error;
	OnsideRowOutcome outcome = ONSIDE_ROW_SKIPPED;

	if (reader->mapper != NULL)
		return onside_row_mapped_record(reader, rel, row, append);

	old = MemoryContextSwitchTo(reader->per_row);
	if (!is_row_due(reader, row))
		;						/* and nothing else is counted */
	else if (reader->installation_id.attnum != InvalidAttrNumber &&
			 onside_column_is_empty(&reader->installation_id, row))
		onside_row_count_skipped(reader, 1);
	else
	{
		bool		valid;

		require_own_id(reader, rel, row);
		reader->row = row;
		valid = read_row(reader, rel, row, &event, &error);
		outcome = onside_row_settle(reader, rel, &event, valid ? NULL : &error,
									append,
									old);
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(reader->per_row);
	return outcome;
}

/*
 * Few rows go to the mapper one by one, as do all rows if the query over all
 * of them fails.
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

	/* The store may be read by other triggers of the statement, too. */
	row = MakeSingleTupleTableSlot(RelationGetDescr(trigdata->tg_relation),
								   &TTSOpsMinimalTuple);
	pointer = tuplestore_alloc_read_pointer(rows, EXEC_FLAG_REWIND);
	tuplestore_select_read_pointer(rows, pointer);
	tuplestore_rescan(rows);
	while (tuplestore_gettupleslot(rows, true, false, row))
	{
		CHECK_FOR_INTERRUPTS();
		(void) onside_row_record(reader, trigdata->tg_relation, row, append);
	}
	ExecDropSingleTupleTableSlot(row);
}

/*
 * The same steps as onside_row_record(), without backfill and without effects.
 */
OnsideRowOutcome
onside_row_try(OnsideRowReader *reader, Relation rel, TupleTableSlot *row,
			   OnsideEventError *error)
{
	MemoryContext old = MemoryContextSwitchTo(reader->per_row);
	OnsideEvent event = {0};
	OnsideRowOutcome outcome = ONSIDE_ROW_RECORDED;

	memset(error, 0, sizeof(*error));
	if (reader->mapper != NULL)
		outcome = onside_row_mapped_try(reader, row, error);
	else if (onside_column_is_empty(&reader->installation_id, row))
	{
		error->field = "installation_id";
		outcome = ONSIDE_ROW_SKIPPED;
	}
	else if (!read_row(reader, rel, row, &event, error))
		outcome = ONSIDE_ROW_DEAD_LETTER;
	MemoryContextSwitchTo(old);
	return outcome;
}
