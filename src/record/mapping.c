/*-------------------------------------------------------------------------
 *
 * mapping.c
 *		Which column of a source table becomes which field of an event.
 *
 * A trigger's arguments are strings "target=column".  The targets are the API's
 * names of an event's fields, and payload.KEY for a key of the payload.  The
 * event's name itself is a literal, and so is what attach() adds: a mapper's
 * name, and what an event_id is made of.
 *
 * attach() writes the arguments (onside_mapping_args()).  track_row, backfill
 * and all that shows what is attached read them.  Somebody may have made the
 * trigger by hand, so arguments can be anything.  No error is raised here: the
 * caller decides.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/partition.h"
#include "catalog/pg_trigger.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "record/mapping.h"

#define PAYLOAD_PREFIX "payload."

#define EXAMPLE_HINT "For example track_row('event_name=purchase_completed', 'installation_id=install_id', 'payload.amount=total')."

/* Fills in *error for an argument that has no meaning.  Returns false. */
static bool
refuse_argument(OnsideEventError *error, char *message, const char *hint)
{
	return onside_event_invalid(error, NULL, ERRCODE_INVALID_PARAMETER_VALUE,
								message, hint);
}

/* The same for a target that two arguments set. */
static bool
refuse_repetition(OnsideEventError *error, const char *target)
{
	return refuse_argument(error, psprintf("\"%s\" is given twice", target),
						   EXAMPLE_HINT);
}

/* Takes "payload.KEY=column".  There is room for all arguments. */
static bool
add_payload_key(OnsideMapping *mapping, const char *target, const char *column,
				OnsideEventError *error)
{
	OnsidePayloadKey *entry = &mapping->payload[mapping->npayload];

	entry->field = target;
	entry->key = target + strlen(PAYLOAD_PREFIX);
	entry->column = column;
	for (int i = 0; i < mapping->npayload; i++)
		if (strcmp(mapping->payload[i].key, entry->key) == 0)
			return refuse_repetition(error, target);
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
read_argument(OnsideMapping *mapping, const char *arg, OnsideEventError *error)
{
	const char *equals = strchr(arg, '=');
	const char *value;
	char	   *target;

	if (equals == NULL || equals[1] == '\0')
		return refuse_argument(error,
							   psprintf("argument \"%s\" is not of the form target=column",
										arg),
							   EXAMPLE_HINT);

	/* The first "=" ends the target. */
	target = pnstrdup(arg, equals - arg);
	value = equals + 1;

	/* A field of an event, or what attach() adds. */
	for (int i = 0; i < (int) lengthof(targets); i++)
	{
		const char **field =
			(const char **) ((char *) mapping + targets[i].field);

		if (strcmp(target, targets[i].name) != 0)
			continue;
		if (*field != NULL)
			return refuse_repetition(error, target);
		*field = value;
		return true;
	}
	if (strncmp(target, PAYLOAD_PREFIX, strlen(PAYLOAD_PREFIX)) == 0)
		return add_payload_key(mapping, target, value, error);

	/* Whoever writes a trigger by hand finds the names in the hint. */
	return refuse_argument(error,
						   psprintf("\"%s\" is not a field of an event", target),
						   "The fields are event_name, and installation_id, event_datetime, event_id and payload.KEY, or mapper.");
}

/* The same for a target that no argument sets. */
static bool
require_target(const char *value, const char *target, OnsideEventError *error)
{
	return value != NULL ||
		onside_event_invalid(error, NULL, ERRCODE_NULL_VALUE_NOT_ALLOWED,
							 psprintf("\"%s\" is missing", target),
							 EXAMPLE_HINT);
}

/* Reads each argument, then checks that the arguments belong together. */
OnsideMapping *
onside_mapping_parse(int nargs, char **args, OnsideEventError *error)
{
	OnsideMapping *mapping = palloc0(sizeof(OnsideMapping));
	bool		ok = true;

	/* Each argument can be a key of the payload. */
	mapping->payload = palloc(Max(nargs, 1) * sizeof(OnsidePayloadKey));
	for (int i = 0; i < nargs && ok; i++)
		ok = read_argument(mapping, args[i], error);
	ok = ok && require_target(mapping->event_name, "event_name", error);

	/* A mapper takes the place of all columns. */
	if (ok && mapping->mapper == NULL)
		ok = require_target(mapping->installation_id, "installation_id",
							error);
	else if (ok && (mapping->installation_id != NULL ||
					mapping->event_datetime != NULL ||
					mapping->event_id != NULL || mapping->npayload > 0))
		ok = refuse_argument(error, "mapper and columns exclude each other",
							 EXAMPLE_HINT);
	return ok ? mapping : NULL;
}

OnsideMapping *
onside_mapping_of_trigger(int nargs, Datum tgargs)
{
	char	   *p = VARDATA_ANY(DatumGetByteaPCopy(tgargs));
	char	  **args = palloc(Max(nargs, 1) * sizeof(char *));
	OnsideEventError error;

	/* Each argument ends with a zero byte. */
	for (int i = 0; i < nargs; i++, p += strlen(p) + 1)
		args[i] = p;
	return onside_mapping_parse(nargs, args, &error);
}

/* Scans pg_trigger by OID, for which the server has no cache. */
HeapTuple
onside_mapping_find(Oid trigger, Snapshot snapshot, OnsideMapping **mapping)
{
	Relation	rel = table_open(TriggerRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	/* heap_copytuple() returns NULL for NULL. */
	ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(trigger));
	scan = systable_beginscan(rel, TriggerOidIndexId, true, snapshot, 1, &key);
	tuple = heap_copytuple(systable_getnext(scan));
	systable_endscan(scan);

	if (mapping != NULL)
		*mapping = NULL;
	if (mapping != NULL && tuple != NULL)
	{
		Form_pg_trigger form = (Form_pg_trigger) GETSTRUCT(tuple);
		bool		isnull;
		Datum		args = heap_getattr(tuple, Anum_pg_trigger_tgargs,
										RelationGetDescr(rel), &isnull);

		*mapping = onside_mapping_of_trigger(form->tgnargs, args);
	}
	table_close(rel, AccessShareLock);
	return tuple;
}

const char *
onside_mapping_search_path(const OnsideMapping *mapping)
{
	return mapping->search_path != NULL ? mapping->search_path :
		"pg_catalog, pg_temp";
}

Oid
onside_mapping_root(Oid relid)
{
	List	   *ancestors = NIL;

	if (get_rel_relispartition(relid))
		ancestors = get_partition_ancestors(relid);

	/* A partition that is being detached has none. */
	return ancestors != NIL ? llast_oid(ancestors) : relid;
}

char *
onside_mapping_table_name(Oid relid)
{
	char	   *name = get_rel_name(relid);
	char	   *schema = get_namespace_name(get_rel_namespace(relid));

	return name == NULL ? NULL : quote_qualified_identifier(schema, name);
}

/* The value of any other target is no column, whatever it looks like. */
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

/* Appends "target=value", or nothing if the value is NULL. */
static List *
add_argument(List *args, const char *target, const char *value)
{
	return value == NULL ? args :
		lappend(args, psprintf("%s=%s", target, value));
}

/* In the order in which docs/reference.md lists them. */
List *
onside_mapping_args(const OnsideMapping *mapping)
{
	List	   *args = add_argument(NIL, "event_name", mapping->event_name);

	args = add_argument(args, "installation_id", mapping->installation_id);
	for (int i = 0; i < mapping->npayload; i++)
		args = add_argument(args,
							psprintf(PAYLOAD_PREFIX "%s",
									 mapping->payload[i].key),
							mapping->payload[i].column);
	args = add_argument(args, "event_datetime", mapping->event_datetime);
	args = add_argument(args, "event_id", mapping->event_id);
	args = add_argument(args, "event_id.namespace", mapping->id_namespace);
	args = add_argument(args, "event_id.source", mapping->id_source);
	args = add_argument(args, "mapper", mapping->mapper);
	return add_argument(args, "search_path", mapping->search_path);
}
