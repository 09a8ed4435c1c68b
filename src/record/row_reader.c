/*-------------------------------------------------------------------------
 *
 * row_reader.c
 *		A trigger's mapping, resolved against its table.
 *
 * A reader holds what a trigger's arguments mean for its table: which column
 * is which field, or which mapper makes the events.  trigger.c and backfill
 * use a reader for each row; row_cache.c keeps readers from one statement to
 * the next.
 *
 * A mapping that does not fit the table (any more) raises no error here.  The
 * reader is "broken", and every row is invalid, so that on_invalid_event
 * decides whether the purchase fails.
 *
 * A row without a version 4 UUID of its own gets an event_id that is computed
 * of its key (event_id.c).  What precedes the key stands in the trigger's
 * arguments.  A trigger that was made by hand may lack it: then it is looked
 * up for each row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/formatting.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "log/namespace.h"
#include "record/event_id.h"
#include "record/mapping.h"
#include "record/row_reader.h"

/* Resolves one column; notes the first column that cannot be used. */
static void
resolve_column(OnsideRowReader *reader, OnsideColumn *column, const char *field,
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

char *
onside_row_id_source(Oid relid)
{
	Oid			root = onside_mapping_root(relid);

	return psprintf("%s.%s", get_namespace_name(get_rel_namespace(root)),
					get_rel_name(root));
}

/*
 * Resolves the columns of a mapping without a mapper.  The reader gets copies
 * of what it needs from the mapping.
 */
static void
resolve_columns(OnsideRowReader *reader, const OnsideMapping *mapping,
				Relation rel)
{
	resolve_column(reader, &reader->installation_id, "installation_id", rel,
				   mapping->installation_id);
	if (mapping->event_datetime != NULL)
		resolve_column(reader, &reader->event_datetime, "event_datetime", rel,
					   mapping->event_datetime);
	if (mapping->event_id != NULL)
		resolve_column(reader, &reader->event_id, "event_id", rel,
					   mapping->event_id);

	/* What precedes a row's key, if attach() has made the trigger. */
	if (mapping->id_namespace != NULL)
		reader->id_namespace = pstrdup(mapping->id_namespace);
	if (mapping->id_source != NULL)
		reader->id_source = pstrdup(mapping->id_source);

	/* The payload's columns, in the order of the arguments. */
	reader->npayload = mapping->npayload;
	reader->keys = palloc(mapping->npayload * sizeof(char *));
	reader->payload = palloc0(mapping->npayload * sizeof(OnsideColumn));
	for (int i = 0; i < mapping->npayload; i++)
	{
		reader->keys[i] = mapping->payload[i].key;
		resolve_column(reader, &reader->payload[i],
					   mapping->payload[i].field, rel,
					   mapping->payload[i].column);

		/* An output function can depend on settings, and on other objects. */
		if (reader->payload[i].needs_settings)
			reader->needs_settings = true;
		if (reader->payload[i].kind == ONSIDE_COLUMN_OTHER)
			reader->keepable = false;
	}
	if (reader->broken != NULL)
		reader->keepable = false;
}

/*
 * The event's name is checked here, once, so that the rows need no check of
 * it.
 */
OnsideRowReader *
onside_row_reader(Trigger *trigger, Relation rel, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	OnsideEventError error;
	OnsideMapping *mapping = onside_mapping_parse(trigger->tgnargs,
												  trigger->tgargs, &error);
	OnsideRowReader *reader = palloc0(sizeof(OnsideRowReader));

	if (mapping == NULL)
		ereport(ERROR,
				(errcode(error.sqlstate),
				 errmsg("track_row: %s", error.message),
				 errhint("%s", error.hint), errtable(rel)));

	/* The name is the same for all rows; an invalid one makes all invalid. */
	reader->event_name = cstring_to_text(mapping->event_name);
	reader->name_is_valid = onside_event_check_name(reader->event_name,
													&error);
	reader->keepable = true;

	/* Either a mapper or columns; mapping.c has seen to it. */
	if (mapping->mapper != NULL)
		reader->mapper = onside_mapper_make(trigger, rel, mapping, context);
	else
		resolve_columns(reader, mapping, rel);

	/* What is made of a row is thrown away with it. */
	reader->per_row = AllocSetContextCreate(context,
											"onside_attribution row",
											ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(old);
	return reader;
}

/* For one of many events the random bytes are drawn in bulk. */
void
onside_row_fresh_id(OnsideRowReader *reader, OnsideEvent *event)
{
	if (reader->many)
		onside_event_next_id(&event->event_id);
	else
		onside_event_new_id(&event->event_id);
	event->has_event_id = true;
	event->id_is_fresh = true;
}

/*
 * The event_id stands for namespace, event_name, source and the row's key.  If
 * the trigger's arguments lack the namespace or the source, we take what
 * attach() would write into them now.
 */
bool
onside_row_id_of_key(OnsideRowReader *reader, Relation rel, char *key,
					 OnsideEvent *event, OnsideEventError *error)
{
	char	   *name = text_to_cstring(reader->event_name);
	char	   *texts[] = {reader->id_namespace,
		asc_tolower(name, strlen(name)), reader->id_source, key
	};
	OnsideKeyPart parts[lengthof(texts)];
	pg_uuid_t	uuid;

	/* A trigger that somebody made by hand names no namespace. */
	if (texts[0] == NULL)
	{
		if (!onside_namespace_read(&uuid))
			return
				onside_event_invalid(error, "event_id",
									 ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
									 pstrdup("event_id cannot be made: " ONSIDE_NAMESPACE_LOST),
									 ONSIDE_NAMESPACE_HINT);
		texts[0] = onside_column_uuid_text(&uuid);
	}
	if (texts[2] == NULL)
		texts[2] = onside_row_id_source(RelationGetRelid(rel));

	/* All parts are hashed in UTF-8, whatever the database's encoding is. */
	for (int i = 0; i < (int) lengthof(texts); i++)
	{
		parts[i].data = onside_as_utf8(texts[i], strlen(texts[i]));
		if (parts[i].data == NULL)
			return onside_event_not_utf8(error, "event_id");
		parts[i].len = strlen(parts[i].data);
	}
	onside_event_id_require(parts, lengthof(parts), &event->event_id);
	event->has_event_id = true;
	return true;
}
