/*-------------------------------------------------------------------------
 *
 * trigger.c
 *		track_row: rows of a source table become events.
 *
 * As a row-level trigger it is called once a row; as a statement-level trigger
 * it walks the transition table itself, tuple by tuple, with the outbox open
 * all the while.  What the trigger's arguments mean is worked out once a
 * statement and kept in fn_extra.
 *
 * The purchase comes first: a row without an installation_id was bought outside
 * the app and is skipped, and with on_invalid_event = dead_letter a row that is
 * no valid event goes to dead_letter with a warning.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "column.h"
#include "compat.h"
#include "dead_letter.h"
#include "event.h"
#include "mapping.h"
#include "outbox.h"
#include "settings.h"
#include "shmem.h"

PG_FUNCTION_INFO_V1(onside_track_row);

/* A trigger's mapping, resolved against its table. */
typedef struct RowReader
{
	text	   *event_name;
	bool		name_is_valid;
	OnsideColumn installation_id;
	OnsideColumn event_datetime;
	OnsideColumn event_id;
	bool		has_event_datetime;
	bool		has_event_id;
	int			npayload;
	const char **keys;
	OnsideColumn *payload;
	bool		needs_settings;
	bool		many;			/* rows of a statement */
	OnsideEventError *broken;	/* why no row can become an event, or NULL */
	MemoryContext per_row;
} RowReader;

/*
 * A payload beyond this is not even made: far more than a request holds, and
 * less than what jsonb takes.
 */
#define PAYLOAD_LIMIT	(100 * ONSIDE_API_MAX_BYTES)

static void
resolve(RowReader *reader, OnsideColumn *column, const char *field,
		Relation rel, const char *name)
{
	OnsideEventError error;

	if (!onside_column_resolve(column, field, RelationGetDescr(rel),
							   RelationGetRelationName(rel), name, &error) &&
		reader->broken == NULL)
	{
		reader->broken = palloc(sizeof(OnsideEventError));
		*reader->broken = error;
	}
}

static RowReader *
make_reader(Trigger *trigger, Relation rel, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	OnsideMapping *mapping = onside_mapping_parse(trigger->tgnargs,
												  trigger->tgargs);
	RowReader  *reader = palloc0(sizeof(RowReader));
	OnsideEventError error;

	reader->event_name = cstring_to_text(mapping->event_name);
	reader->name_is_valid = onside_event_check_name(reader->event_name,
													&error);
	resolve(reader, &reader->installation_id, "installation_id", rel,
			mapping->installation_id);
	reader->has_event_datetime = mapping->event_datetime != NULL;
	if (reader->has_event_datetime)
		resolve(reader, &reader->event_datetime, "event_datetime", rel,
				mapping->event_datetime);
	reader->has_event_id = mapping->event_id != NULL;
	if (reader->has_event_id)
		resolve(reader, &reader->event_id, "event_id", rel,
				mapping->event_id);

	reader->npayload = mapping->npayload;
	reader->keys = palloc(mapping->npayload * sizeof(char *));
	reader->payload = palloc0(mapping->npayload * sizeof(OnsideColumn));
	for (int i = 0; i < mapping->npayload; i++)
	{
		reader->keys[i] = mapping->payload[i].key;
		resolve(reader, &reader->payload[i], mapping->payload[i].field, rel,
				mapping->payload[i].column);
		if (onside_column_needs_settings(&reader->payload[i]))
			reader->needs_settings = true;
	}

	reader->per_row = AllocSetContextCreate(context,
											"onside_attribution row",
											ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(old);
	return reader;
}

/* Notes the first error alone. */
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

/* About how much of a payload this value is. */
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

/* The payload, or NULL if it is too large to be made. */
static Jsonb *
read_payload(RowReader *reader, TupleTableSlot *row, OnsideEventError *error,
			 bool *valid)
{
	OnsideJsonbBuilder builder = {0};
	Size		size = 0;

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
			this_error.field = "payload";
			this_error.sqlstate = ERRCODE_PROGRAM_LIMIT_EXCEEDED;
			this_error.message = psprintf("payload is too large: %s takes it beyond %d bytes",
										  reader->payload[i].field,
										  PAYLOAD_LIMIT);
			this_error.hint = pstrdup("A request must stay below 1000000 bytes, and an event cannot be split.");
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
 * Makes a row's event.  On false *error says why it is not valid, and the
 * event has what there is of it.
 */
static bool
read_row(RowReader *reader, TupleTableSlot *row, OnsideEvent *event,
		 OnsideEventError *error)
{
	OnsideEventError this_error;
	bool		valid = true;
	bool		ok;

	note(reader->broken == NULL, error, reader->broken, &valid);

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

	/* A dead letter has an id, too, unless the row's own is none. */
	ok = true;
	if (reader->has_event_id)
	{
		ok = onside_column_to_uuid(&reader->event_id, row, &event->event_id,
								   &event->has_event_id, &this_error);
		note(ok, error, &this_error, &valid);
	}
	if (ok && !event->has_event_id)
	{
		if (reader->many)
			onside_event_next_id(&event->event_id);
		else
			onside_event_new_id(&event->event_id);
		event->has_event_id = true;
	}

	event->payload = read_payload(reader, row, error, &valid);

	if (valid)
		valid = onside_event_check(event, error);
	return valid;
}

static void
count_skipped(void)
{
	OnsideSlot *slot = onside_slot_find(MyDatabaseId);

	if (slot != NULL)
		pg_atomic_fetch_add_u64(&slot->skipped, 1);
}

static void
dead_letter(const OnsideEvent *event, const OnsideEventError *error)
{
	ereport(WARNING,
			(errcode(error->sqlstate),
			 errmsg("invalid event: %s", error->message),
			 errdetail("The row was let through and the event put into dead_letter."),
			 errhint("%s", error->hint)));
	onside_dead_letter_insert(event, 0, error->message, 0,
							  GetCurrentTimestamp());
}

/*
 * Records one row.  *append is opened with the first event: a statement that
 * has none leaves no trace.
 */
static void
record_row(RowReader *reader, TupleTableSlot *row, OnsideAppend **append)
{
	MemoryContext old = MemoryContextSwitchTo(reader->per_row);
	OnsideEvent event = {0};
	OnsideEventError error;

	if (reader->installation_id.attnum != InvalidAttrNumber &&
		onside_column_is_null(&reader->installation_id, row))
		count_skipped();
	else if (read_row(reader, row, &event, &error))
	{
		if (*append == NULL)
		{
			MemoryContextSwitchTo(old);
			*append = onside_append_begin();
			MemoryContextSwitchTo(reader->per_row);
		}
		onside_append(*append, &event);
	}
	else if (onside_on_invalid_event == ONSIDE_INVALID_DEAD_LETTER)
		dead_letter(&event, &error);
	else
		onside_event_throw(&error);

	MemoryContextSwitchTo(old);
	MemoryContextReset(reader->per_row);
}

static void
record_transition_table(RowReader *reader, Relation rel,
						Tuplestorestate *rows, OnsideAppend **append)
{
	TupleTableSlot *row = MakeSingleTupleTableSlot(RelationGetDescr(rel),
												   &TTSOpsMinimalTuple);
	int			pointer = tuplestore_alloc_read_pointer(rows,
														EXEC_FLAG_REWIND);

	/* The store may be read by other triggers of the statement, too. */
	tuplestore_select_read_pointer(rows, pointer);
	tuplestore_rescan(rows);
	while (tuplestore_gettupleslot(rows, true, false, row))
	{
		CHECK_FOR_INTERRUPTS();
		record_row(reader, row, append);
	}
	ExecDropSingleTupleTableSlot(row);
}

static void
check_called_right(FunctionCallInfo fcinfo)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("track_row must be called as a trigger"),
				 errhint("Make the trigger with onside_attribution.attach().")));
	if (!TRIGGER_FIRED_AFTER(trigdata->tg_event) ||
		!(TRIGGER_FIRED_BY_INSERT(trigdata->tg_event) ||
		  TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event)))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("track_row must be fired AFTER INSERT or AFTER UPDATE"),
				 errhint("Make the trigger with onside_attribution.attach().")));
	if (TRIGGER_FIRED_FOR_STATEMENT(trigdata->tg_event) &&
		trigdata->tg_newtable == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("track_row FOR EACH STATEMENT needs a transition table"),
				 errhint("Add REFERENCING NEW TABLE AS new_rows to the trigger.")));
}

Datum
onside_track_row(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	RowReader  *reader;
	OnsideAppend *append = NULL;
	int			nestlevel = 0;

	check_called_right(fcinfo);

	reader = fcinfo->flinfo->fn_extra;
	if (reader == NULL)
	{
		reader = make_reader(trigdata->tg_trigger, trigdata->tg_relation,
							 fcinfo->flinfo->fn_mcxt);
		reader->many = TRIGGER_FIRED_FOR_STATEMENT(trigdata->tg_event);
		fcinfo->flinfo->fn_extra = reader;
	}

	if (reader->needs_settings)
		nestlevel = onside_column_fix_settings();

	if (TRIGGER_FIRED_FOR_STATEMENT(trigdata->tg_event))
		record_transition_table(reader, trigdata->tg_relation,
								trigdata->tg_newtable, &append);
	else if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
		record_row(reader, trigdata->tg_newslot, &append);
	else
		record_row(reader, trigdata->tg_trigslot, &append);

	if (append != NULL)
		onside_append_end(append);
	if (reader->needs_settings)
		onside_column_restore_settings(nestlevel);

	return PointerGetDatum(NULL);
}
