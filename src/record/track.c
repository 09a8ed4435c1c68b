/*-------------------------------------------------------------------------
 *
 * track.c
 *		The SQL functions that record events: track, track_purchase,
 *		track_batch.
 *
 * Each function fills in an OnsideEvent, checks it and appends it to the
 * outbox.  An invalid event is always an error here, whatever on_invalid_event
 * says.  The caller needs EXECUTE on the function, and no privilege on the
 * extension's tables.  No locks are taken but those of outbox.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "compat.h"
#include "log/event.h"
#include "log/outbox.h"
#include "record/purchase.h"

PG_FUNCTION_INFO_V1(onside_track);
PG_FUNCTION_INFO_V1(onside_track_purchase);
PG_FUNCTION_INFO_V1(onside_track_batch);

/* An event without an event_id gets one; then the rules are checked. */
static void
complete_event(OnsideEvent *event)
{
	OnsideEventError error;

	if (!event->has_event_id)
		onside_event_new_id(&event->event_id);
	event->has_event_id = true;
	if (!onside_event_check(event, &error))
		onside_event_throw(&error);
}

/* Records one event and returns its event_id. */
static Datum
record_event(OnsideEvent *event)
{
	OnsideAppend *append;
	pg_uuid_t  *result;

	complete_event(event);
	append = onside_append_begin();
	onside_append(append, event);
	onside_append_end(append);

	result = palloc(sizeof(pg_uuid_t));
	*result = event->event_id;
	return UUIDPGetDatum(result);
}

static void
set_uuid(FunctionCallInfo fcinfo, int arg, pg_uuid_t *uuid, bool *has)
{
	*has = !PG_ARGISNULL(arg);
	if (*has)
		*uuid = *PG_GETARG_UUID_P(arg);
}

static void
set_datetime(FunctionCallInfo fcinfo, int arg, OnsideEvent *event)
{
	event->has_event_datetime = !PG_ARGISNULL(arg);
	if (event->has_event_datetime)
		event->event_datetime = PG_GETARG_TIMESTAMPTZ(arg);
}

/* track(event_name, installation_id, payload, event_datetime, event_id) */
Datum
onside_track(PG_FUNCTION_ARGS)
{
	OnsideEvent event = {0};

	if (!PG_ARGISNULL(0))
		event.event_name = PG_GETARG_TEXT_PP(0);
	set_uuid(fcinfo, 1, &event.installation_id, &event.has_installation_id);
	if (!PG_ARGISNULL(2))
		event.payload = PG_GETARG_JSONB_P(2);
	set_datetime(fcinfo, 3, &event);
	set_uuid(fcinfo, 4, &event.event_id, &event.has_event_id);

	return record_event(&event);
}

/* track_purchase(installation_id, amount, currency, datetime, id, extra) */
Datum
onside_track_purchase(PG_FUNCTION_ARGS)
{
	OnsideEvent event = {0};

	set_uuid(fcinfo, 0, &event.installation_id, &event.has_installation_id);
	event.event_name = cstring_to_text("purchase_completed");
	event.payload = onside_purchase_payload(fcinfo);
	set_datetime(fcinfo, 3, &event);
	set_uuid(fcinfo, 4, &event.event_id, &event.has_event_id);

	return record_event(&event);
}

/* ----------
 * track_batch
 * ----------
 */

/* Names the event that an error is about. */
static void
batch_error_context(void *arg)
{
	errcontext("event %d of the batch", *(int *) arg);
}

/* A string member of an event; NULL if it is absent or null. */
static char *
string_member(const char *field, const JsonbValue *v)
{
	if (v->type == jbvNull)
		return NULL;
	if (v->type != jbvString)
		onside_event_throw_field(field, ERRCODE_INVALID_PARAMETER_VALUE,
								 "must be a JSON string",
								 "Pass the event as the API's documentation shows it.");
	return pnstrdup(v->val.string.val, v->val.string.len);
}

/* The same for a member that must be a UUID. */
static void
uuid_member(const char *field, const JsonbValue *v, pg_uuid_t *uuid,
			bool *has)
{
	char	   *str = string_member(field, v);

	*has = str != NULL;
	if (*has && !onside_parse_uuid(str, uuid))
		onside_event_throw_field(field, ERRCODE_INVALID_PARAMETER_VALUE,
								 "must be a UUID",
								 "Pass it as 8-4-4-4-12 hexadecimal digits.");
}

/*
 * Reads an event in the API's own shape.  A field of another name, or of
 * another type, is an error.
 */
static void
read_event(JsonbContainer *object, OnsideEvent *event)
{
	JsonbIterator *it = JsonbIteratorInit(object);
	JsonbValue	key;
	JsonbValue	v;

	/* A JSON null counts as a missing field. */
	(void) JsonbIteratorNext(&it, &key, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		char	   *name = pnstrdup(key.val.string.val, key.val.string.len);

		(void) JsonbIteratorNext(&it, &v, true);

		/* The API's five fields. */
		if (strcmp(name, "event_name") == 0)
		{
			char	   *str = string_member("event_name", &v);

			if (str != NULL)
				event->event_name = cstring_to_text(str);
		}
		else if (strcmp(name, "payload") == 0)
		{
			/* event.c checks that it is an object. */
			if (v.type != jbvNull)
				event->payload = JsonbValueToJsonb(&v);
		}
		else if (strcmp(name, "event_datetime") == 0)
		{
			char	   *str = string_member("event_datetime", &v);

			if (str != NULL &&
				!onside_parse_datetime(str, &event->event_datetime))
				onside_event_throw_field("event_datetime",
										 ERRCODE_INVALID_PARAMETER_VALUE,
										 "must be an ISO 8601 date and time with a UTC offset",
										 "For example 2026-05-05T12:00:00Z.");
			event->has_event_datetime = str != NULL;
		}
		else if (strcmp(name, "event_id") == 0)
			uuid_member("event_id", &v, &event->event_id,
						&event->has_event_id);
		else if (strcmp(name, "installation_id") == 0)
			uuid_member("installation_id", &v, &event->installation_id,
						&event->has_installation_id);
		else
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg(ONSIDE_INVALID_EVENT "\"%s\" is not a field of an event",
							name),
					 errhint("Put an event's own properties into its payload.")));
	}
}

/*
 * The array of events: the argument itself, or in a request's body the only
 * member, "events".  *v holds the array in the second case.
 */
static JsonbContainer *
events_array(Jsonb *events, JsonbValue *v)
{
	if (JB_ROOT_IS_ARRAY(events) && !JB_ROOT_IS_SCALAR(events))
		return &events->root;

	if (JB_ROOT_IS_OBJECT(events) && JB_ROOT_COUNT(events) == 1 &&
		getKeyJsonValueFromContainer(&events->root, "events",
									 strlen("events"), v) != NULL &&
		v->type == jbvBinary && JsonContainerIsArray(v->val.binary.data))
		return v->val.binary.data;

	onside_event_throw_field("events", ERRCODE_INVALID_PARAMETER_VALUE,
							 "must be a JSON array of events or an object with just that as \"events\"",
							 "Pass what the API's documentation shows as a request's body.");
	return NULL;
}

/*
 * track_batch(events jsonb): records all events or none.  Returns how many.
 */
Datum
onside_track_batch(PG_FUNCTION_ARGS)
{
	JsonbValue	holder;
	JsonbContainer *array;
	OnsideAppend *append;
	MemoryContext per_event;
	MemoryContext old;
	ErrorContextCallback callback;
	int			n;
	int			i;

	if (PG_ARGISNULL(0))
		onside_event_throw_field("events", ERRCODE_NULL_VALUE_NOT_ALLOWED,
								 "must not be null", "Pass a JSON array of events.");

	/* A batch without events records none, and is no error. */
	array = events_array(PG_GETARG_JSONB_P(0), &holder);
	n = JsonContainerSize(array);
	if (n == 0)
		PG_RETURN_INT64(0);

	/* From here on errors name the event by its number. */
	append = onside_append_begin();
	per_event = AllocSetContextCreate(CurrentMemoryContext,
									  "onside_attribution batch event",
									  ALLOCSET_DEFAULT_SIZES);
	callback.callback = batch_error_context;
	callback.arg = &i;
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	/* The context counts events from 1, as people do. */
	for (i = 1; i <= n; i++)
	{
		OnsideEvent event = {0};
		JsonbValue *element;

		CHECK_FOR_INTERRUPTS();
		old = MemoryContextSwitchTo(per_event);

		/* Each event is read, completed and checked by itself. */
		element = getIthJsonbValueFromContainer(array, i - 1);
		if (element->type != jbvBinary ||
			!JsonContainerIsObject(element->val.binary.data))
			onside_event_throw_field("events", ERRCODE_INVALID_PARAMETER_VALUE,
									 "must contain JSON objects alone",
									 "Pass each event as the API's documentation shows it.");

		read_event(element->val.binary.data, &event);
		complete_event(&event);
		MemoryContextSwitchTo(old);

		/* The outbox copies what it keeps. */
		onside_append(append, &event);
		MemoryContextReset(per_event);
	}

	error_context_stack = callback.previous;
	MemoryContextDelete(per_event);
	onside_append_end(append);

	PG_RETURN_INT64(n);
}
