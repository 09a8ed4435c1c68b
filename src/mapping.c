/*-------------------------------------------------------------------------
 *
 * mapping.c
 *		Which column of a source table becomes which field of an event.
 *
 * A trigger's arguments are strings "target=column"; the targets are the API's
 * names of an event's fields, and payload.KEY for a key of the payload.  The
 * event's name itself is a literal.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mapping.h"

#define PAYLOAD_PREFIX "payload."

#define HINT "For example track_row('event_name=purchase_completed', 'installation_id=install_id', 'payload.amount=total')."

static void
set_once(char **target, const char *name, const char *value)
{
	if (*target != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("track_row: \"%s\" is given twice", name),
				 errhint(HINT)));
	*target = pstrdup(value);
}

static void
add_payload_key(OnsideMapping *mapping, const char *key, const char *column)
{
	for (int i = 0; i < mapping->npayload; i++)
		if (strcmp(mapping->payload[i].key, key) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("track_row: \"payload.%s\" is given twice", key),
					 errhint(HINT)));

	if (mapping->payload == NULL)
		mapping->payload = palloc(sizeof(OnsidePayloadKey));
	else
		mapping->payload = repalloc(mapping->payload,
									(mapping->npayload + 1) *
									sizeof(OnsidePayloadKey));
	mapping->payload[mapping->npayload].key = pstrdup(key);
	mapping->payload[mapping->npayload].column = pstrdup(column);
	mapping->npayload++;
}

static void
require(const char *value, const char *name)
{
	if (value == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("track_row: \"%s\" is missing", name),
				 errhint(HINT)));
}

OnsideMapping *
onside_mapping_parse(int nargs, char **args)
{
	OnsideMapping *mapping = palloc0(sizeof(OnsideMapping));

	for (int i = 0; i < nargs; i++)
	{
		char	   *equals = strchr(args[i], '=');
		char	   *target;
		char	   *value;

		if (equals == NULL || equals[1] == '\0')
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("track_row: argument \"%s\" is not of the form target=column",
							args[i]),
					 errhint(HINT)));
		target = pnstrdup(args[i], equals - args[i]);
		value = equals + 1;

		if (strcmp(target, "event_name") == 0)
			set_once(&mapping->event_name, target, value);
		else if (strcmp(target, "installation_id") == 0)
			set_once(&mapping->installation_id, target, value);
		else if (strcmp(target, "event_datetime") == 0)
			set_once(&mapping->event_datetime, target, value);
		else if (strcmp(target, "event_id") == 0)
			set_once(&mapping->event_id, target, value);
		else if (strncmp(target, PAYLOAD_PREFIX, strlen(PAYLOAD_PREFIX)) == 0)
			add_payload_key(mapping, target + strlen(PAYLOAD_PREFIX), value);
		else
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("track_row: \"%s\" is not a field of an event",
							target),
					 errhint("The fields are event_name, installation_id, event_datetime, event_id and payload.KEY.")));
		pfree(target);
	}

	require(mapping->event_name, "event_name");
	require(mapping->installation_id, "installation_id");
	return mapping;
}

List *
onside_mapping_args(const OnsideMapping *mapping)
{
	List	   *args;

	args = list_make2(psprintf("event_name=%s", mapping->event_name),
					  psprintf("installation_id=%s", mapping->installation_id));
	for (int i = 0; i < mapping->npayload; i++)
		args = lappend(args, psprintf(PAYLOAD_PREFIX "%s=%s",
									  mapping->payload[i].key,
									  mapping->payload[i].column));
	if (mapping->event_datetime != NULL)
		args = lappend(args, psprintf("event_datetime=%s",
									  mapping->event_datetime));
	if (mapping->event_id != NULL)
		args = lappend(args, psprintf("event_id=%s", mapping->event_id));
	return args;
}
