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

#include "fmgr.h"
#include "utils/relcache.h"

#include "compat.h"
#include "record/mapping.h"

#define PAYLOAD_PREFIX "payload."

#define HINT "For example track_row('event_name=purchase_completed', 'installation_id=install_id', 'payload.amount=total')."

/* Why the arguments are not understood. */
typedef struct Problem
{
	int			sqlstate;
	char	   *message;
	const char *hint;
} Problem;

static bool
bad(Problem *problem, int sqlstate, char *message, const char *hint)
{
	problem->sqlstate = sqlstate;
	problem->message = message;
	problem->hint = hint;
	return false;
}

static bool
given_twice(Problem *problem, const char *target)
{
	return bad(problem, ERRCODE_INVALID_PARAMETER_VALUE,
			   psprintf("\"%s\" is given twice", target), HINT);
}

static bool
add_payload_key(OnsideMapping *mapping, const char *target, const char *column,
				Problem *problem)
{
	OnsidePayloadKey *entry = &mapping->payload[mapping->npayload];

	entry->field = target;
	entry->key = target + strlen(PAYLOAD_PREFIX);
	entry->column = column;
	for (int i = 0; i < mapping->npayload; i++)
		if (strcmp(mapping->payload[i].key, entry->key) == 0)
			return given_twice(problem, target);
	mapping->npayload++;
	return true;
}

/* What an argument can set, besides a key of the payload. */
static const struct
{
	const char *name;
	size_t		field;			/* of OnsideMapping */
}			targets[] = {
	{"event_name", offsetof(OnsideMapping, event_name)},
	{"installation_id", offsetof(OnsideMapping, installation_id)},
	{"event_datetime", offsetof(OnsideMapping, event_datetime)},
	{"event_id", offsetof(OnsideMapping, event_id)},
	{"event_id.namespace", offsetof(OnsideMapping, id_namespace)},
	{"event_id.source", offsetof(OnsideMapping, id_source)},
	{"mapper", offsetof(OnsideMapping, mapper)},
	{"search_path", offsetof(OnsideMapping, search_path)},
};

/* One "target=column"; the column may contain further signs "=". */
static bool
read_argument(OnsideMapping *mapping, const char *arg, Problem *problem)
{
	const char *equals = strchr(arg, '=');
	const char *value;
	char	   *target;

	if (equals == NULL || equals[1] == '\0')
		return bad(problem, ERRCODE_INVALID_PARAMETER_VALUE,
				   psprintf("argument \"%s\" is not of the form target=column",
							arg),
				   HINT);
	target = pnstrdup(arg, equals - arg);
	value = equals + 1;

	for (int i = 0; i < (int) lengthof(targets); i++)
	{
		const char **field = (const char **) ((char *) mapping + targets[i].field);

		if (strcmp(target, targets[i].name) != 0)
			continue;
		if (*field != NULL)
			return given_twice(problem, target);
		*field = value;
		return true;
	}
	if (strncmp(target, PAYLOAD_PREFIX, strlen(PAYLOAD_PREFIX)) == 0)
		return add_payload_key(mapping, target, value, problem);
	return bad(problem, ERRCODE_INVALID_PARAMETER_VALUE,
			   psprintf("\"%s\" is not a field of an event", target),
			   "The fields are event_name, and installation_id, event_datetime, event_id and payload.KEY, or mapper.");
}

static bool
require(const char *value, const char *name, Problem *problem)
{
	if (value != NULL)
		return true;
	return bad(problem, ERRCODE_NULL_VALUE_NOT_ALLOWED,
			   psprintf("\"%s\" is missing", name), HINT);
}

/*
 * Reads all arguments, then looks whether they belong together.  NULL with
 * *problem filled in if they do not.
 */
static OnsideMapping *
parse(int nargs, char **args, Problem *problem)
{
	OnsideMapping *mapping = palloc0(sizeof(OnsideMapping));

	mapping->payload = palloc(Max(nargs, 1) * sizeof(OnsidePayloadKey));
	for (int i = 0; i < nargs; i++)
		if (!read_argument(mapping, args[i], problem))
			return NULL;
	if (!require(mapping->event_name, "event_name", problem))
		return NULL;
	if (mapping->mapper == NULL)
		return require(mapping->installation_id, "installation_id", problem) ?
			mapping : NULL;
	if (mapping->installation_id != NULL || mapping->event_datetime != NULL ||
		mapping->event_id != NULL || mapping->npayload > 0)
	{
		(void) bad(problem, ERRCODE_INVALID_PARAMETER_VALUE,
				   "mapper and columns exclude each other", HINT);
		return NULL;
	}
	return mapping;
}

OnsideMapping *
onside_mapping_parse(int nargs, char **args, Relation rel)
{
	Problem		problem;
	OnsideMapping *mapping = parse(nargs, args, &problem);

	if (mapping == NULL)
		ereport(ERROR,
				(errcode(problem.sqlstate),
				 errmsg("track_row: %s", problem.message),
				 errhint("%s", problem.hint), errtable(rel)));
	return mapping;
}

OnsideMapping *
onside_mapping_try_parse(int nargs, char **args)
{
	Problem		problem;

	return parse(nargs, args, &problem);
}

OnsideMapping *
onside_mapping_of_trigger(int nargs, Datum tgargs)
{
	char	   *p = VARDATA_ANY(DatumGetByteaPCopy(tgargs));
	char	  **args = palloc(Max(nargs, 1) * sizeof(char *));

	for (int i = 0; i < nargs; i++, p += strlen(p) + 1)
		args[i] = p;
	return onside_mapping_try_parse(nargs, args);
}

const char *
onside_mapping_search_path(const OnsideMapping *mapping)
{
	return mapping->search_path != NULL ? mapping->search_path :
		"pg_catalog, pg_temp";
}

/* All others are taken as they are written, whatever a column is called. */
bool
onside_mapping_is_column(const char *arg)
{
	static const char *const columns[] = {
		"installation_id=", "event_datetime=", "event_id=", PAYLOAD_PREFIX
	};

	for (int i = 0; i < (int) lengthof(columns); i++)
		if (strncmp(arg, columns[i], strlen(columns[i])) == 0)
			return true;
	return false;
}

static List *
add(List *args, const char *target, const char *value)
{
	return value == NULL ? args :
		lappend(args, psprintf("%s=%s", target, value));
}

/* In the order in which docs/reference.md lists them. */
List *
onside_mapping_args(const OnsideMapping *mapping)
{
	List	   *args = add(NIL, "event_name", mapping->event_name);

	args = add(args, "installation_id", mapping->installation_id);
	for (int i = 0; i < mapping->npayload; i++)
		args = add(args, psprintf(PAYLOAD_PREFIX "%s", mapping->payload[i].key),
				   mapping->payload[i].column);
	args = add(args, "event_datetime", mapping->event_datetime);
	args = add(args, "event_id", mapping->event_id);
	args = add(args, "event_id.namespace", mapping->id_namespace);
	args = add(args, "event_id.source", mapping->id_source);
	args = add(args, "mapper", mapping->mapper);
	return add(args, "search_path", mapping->search_path);
}
