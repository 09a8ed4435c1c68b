/*-------------------------------------------------------------------------
 *
 * attach_args.c
 *		attach's arguments.
 *
 * This file reads the arguments, and raises an error for what is wrong with
 * them by themselves; the message names the argument.  attach.c, attachable.c
 * and when.c find what is wrong with them for this table.  Called by attach.c
 * before it locks the table.
 *
 * The arguments, from 0: source, event_name, installation_id, payload (3),
 * event_datetime, event_id, operation (6), condition, mapper, becomes (9),
 * deferred.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_trigger.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "attach/attach_args.h"
#include "attach/mapper_check.h"
#include "log/event.h"

static void
throw_missing(const char *arg)
{
	ereport(ERROR,
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
			 errmsg("attach: %s must not be null", arg),
			 errhint("installation_id and payload are needed unless there is a mapper; event_datetime, event_id, condition and becomes may be left out.")));
}

static void
throw_bad(const char *message, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("attach: %s", message), errhint("%s", hint)));
}

/* Reads the object of keys and columns, and checks each entry's form. */
static void
read_payload(Jsonb *payload, OnsideMapping *mapping)
{
	JsonbIterator *it;
	JsonbValue	key;
	JsonbValue	v;

	if (!JB_ROOT_IS_OBJECT(payload))
		throw_bad("payload must be a JSON object",
				  "It maps keys to column names, e.g. {\"amount\": \"total\"}.");
	if (JB_ROOT_COUNT(payload) > MaxHeapAttributeNumber)
		throw_bad(psprintf("payload must not have more than %d keys",
						   MaxHeapAttributeNumber),
				  "A table has no more columns than that.");

	/* An empty object is a payload, too. */
	mapping->payload = palloc(Max(JB_ROOT_COUNT(payload), 1) *
							  sizeof(OnsidePayloadKey));

	/* The object itself, then keys and values in turn. */
	it = JsonbIteratorInit(&payload->root);
	(void) JsonbIteratorNext(&it, &key, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		OnsidePayloadKey *entry = &mapping->payload[mapping->npayload++];

		(void) JsonbIteratorNext(&it, &v, true);
		if (v.type != jbvString || v.val.string.len == 0)
			throw_bad("payload must map each key to a column name",
					  "For example {\"amount\": \"total\"}.");
		entry->key = pnstrdup(key.val.string.val, key.val.string.len);
		entry->column = pnstrdup(v.val.string.val, v.val.string.len);

		/* A trigger's argument is "payload.KEY=column". */
		if (strchr(entry->key, '=') != NULL)
			throw_bad("a key of payload must not contain \"=\"",
					  "It separates key and column in the trigger's arguments.");
	}
}

/* Reads what an event is made of: columns, or what a mapper returns. */
static OnsideMapping *
read_mapping(FunctionCallInfo fcinfo)
{
	OnsideMapping *mapping = palloc0(sizeof(OnsideMapping));

	if (PG_ARGISNULL(1))
		throw_missing("event_name");
	mapping->event_name = text_to_cstring(PG_GETARG_TEXT_PP(1));

	/* A mapper takes the place of all columns. */
	if (!PG_ARGISNULL(8))
	{
		for (int i = 2; i <= 5; i++)
			if (!PG_ARGISNULL(i))
				throw_bad("mapper and columns exclude each other",
						  "What the mapper returns has installation_id, payload, event_datetime and event_id.");
		onside_mapper_check(PG_GETARG_OID(8), PG_GETARG_OID(0), mapping);
		return mapping;
	}

	/* Without a mapper, these two must be given. */
	if (PG_ARGISNULL(2))
		throw_missing("installation_id");
	if (PG_ARGISNULL(3))
		throw_missing("payload");

	/* Names of columns are taken as they are written. */
	mapping->installation_id = pstrdup(NameStr(*PG_GETARG_NAME(2)));
	read_payload(PG_GETARG_JSONB_P(3), mapping);
	if (!PG_ARGISNULL(4))
		mapping->event_datetime = pstrdup(NameStr(*PG_GETARG_NAME(4)));
	if (!PG_ARGISNULL(5))
		mapping->event_id = pstrdup(NameStr(*PG_GETARG_NAME(5)));
	return mapping;
}

/* "INSERT", "UPDATE" or "INSERT OR UPDATE" as TRIGGER_TYPE_* bits. */
static int16
read_operation(text *operation)
{
	char	   *str = text_to_cstring(operation);

	if (pg_strcasecmp(str, "INSERT") == 0)
		return TRIGGER_TYPE_INSERT;
	if (pg_strcasecmp(str, "UPDATE") == 0)
		return TRIGGER_TYPE_UPDATE;
	if (pg_strcasecmp(str, "INSERT OR UPDATE") == 0)
		return TRIGGER_TYPE_INSERT | TRIGGER_TYPE_UPDATE;
	throw_bad(psprintf("operation \"%s\" is not known", str),
			  "It is INSERT, UPDATE or INSERT OR UPDATE.");
	return 0;
}

/* These arguments have defaults, so a NULL was passed. */
void
onside_attach_args_require(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(0))
		throw_missing("source");
	if (PG_ARGISNULL(6))
		throw_missing("operation");
	if (PG_ARGISNULL(10))
		throw_missing("deferred");
}

/*
 * Each check raises its own error, so their order is what a user meets first.
 */
void
onside_attach_args_read(FunctionCallInfo fcinfo, OnsideWanted *wanted)
{
	OnsideEventError error;

	/* What the event is made of, and its name. */
	wanted->mapping = read_mapping(fcinfo);
	if (!onside_event_check_name(cstring_to_text(wanted->mapping->event_name),
								 &error))
		onside_event_throw(&error);

	/* When it is reported. */
	wanted->events = read_operation(PG_GETARG_TEXT_PP(6));
	if (!PG_ARGISNULL(7))
		wanted->condition = text_to_cstring(PG_GETARG_TEXT_PP(7));
	if (!PG_ARGISNULL(9))
		wanted->becomes = text_to_cstring(PG_GETARG_TEXT_PP(9));
	wanted->deferred = PG_GETARG_BOOL(10);

	/* "becomes" implies both operations, with a condition for each. */
	if (wanted->becomes != NULL && (wanted->condition != NULL ||
									wanted->events != TRIGGER_TYPE_INSERT))
		throw_bad("becomes takes the place of operation and condition",
				  "It is an event when a row is inserted or updated, the expression is true now, and it was not before.");
}
