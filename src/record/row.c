/*-------------------------------------------------------------------------
 *
 * row.c
 *		A source table's row becomes an event.
 *
 * For track_row, which is given rows as they are written, and for backfill,
 * which reads those that are there.  An event is made of columns, or by a mapper
 * (mapper.c), which makes any number of a row.
 *
 * The purchase comes first: a row without an installation_id was bought outside
 * the app and is skipped, and with on_invalid_event = dead_letter a row that is
 * no valid event, or whose mapper fails, goes to dead_letter with a warning.
 *
 * A mapper that fails for all rows of a statement is called again for each, so
 * that the bad ones alone become dead letters.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/xact.h"
#include "catalog/partition.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/formatting.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/relcache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "log/dead_letter.h"
#include "log/event.h"
#include "log/namespace.h"
#include "log/shmem.h"
#include "record/mapping.h"
#include "record/repeats.h"
#include "record/row.h"
#include "settings.h"

/*
 * A payload beyond this is not even made: far more than a request holds, and
 * less than what jsonb takes.
 */
#define PAYLOAD_LIMIT	(100 * ONSIDE_API_MAX_BYTES)

/* Rows of a statement for which a mapper is called one by one. */
#define FEW_ROWS	10

/* What precedes the key in an event_id: namespace, event_name, source. */
#define ID_NAMES	3

/* Places for event_ids of a statement: see repeats.c. */
#define REPEATS_PLACES	1024

/* How long a purchase waits for somebody who has locked dead_letter; ms. */
#define DEAD_LETTER_PATIENCE	1000

static void
resolve(OnsideRowReader *reader, OnsideColumn *column, const char *field,
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

Oid
onside_row_root(Oid relid)
{
	List	   *ancestors = NIL;

	if (get_rel_relispartition(relid))
		ancestors = get_partition_ancestors(relid);

	/* A partition that is being detached has none. */
	return ancestors != NIL ? llast_oid(ancestors) : relid;
}

char *
onside_row_source(Oid relid)
{
	Oid			root = onside_row_root(relid);

	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(root)),
									  get_rel_name(root));
}

/* Which names have to be quoted depends on a setting, and on the version. */
char *
onside_row_id_source(Oid relid)
{
	Oid			root = onside_row_root(relid);

	return psprintf("%s.%s", get_namespace_name(get_rel_namespace(root)),
					get_rel_name(root));
}

/*
 * A column that cannot be used does not fail here but makes every row invalid, so
 * that on_invalid_event decides what happens.
 */
static void
resolve_columns(OnsideRowReader *reader, const OnsideMapping *mapping,
				Relation rel)
{
	resolve(reader, &reader->installation_id, "installation_id", rel,
			mapping->installation_id);
	reader->has_event_datetime = mapping->event_datetime != NULL;
	if (reader->has_event_datetime)
		resolve(reader, &reader->event_datetime, "event_datetime", rel,
				mapping->event_datetime);
	reader->has_event_id = mapping->event_id != NULL;
	if (reader->has_event_id)
	{
		resolve(reader, &reader->event_id, "event_id", rel,
				mapping->event_id);
		if (mapping->id_namespace != NULL)
			reader->id_namespace = pstrdup(mapping->id_namespace);
		if (mapping->id_source != NULL)
			reader->id_source = pstrdup(mapping->id_source);
	}

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
		if (reader->payload[i].kind == ONSIDE_COLUMN_OTHER)
			reader->keepable = false;
	}
	if (reader->broken != NULL)
		reader->keepable = false;
}

OnsideRowReader *
onside_row_reader(Trigger *trigger, Relation rel, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	OnsideMapping *mapping = onside_mapping_parse(trigger->tgnargs,
												  trigger->tgargs, rel);
	OnsideRowReader *reader = palloc0(sizeof(OnsideRowReader));
	OnsideEventError error;

	reader->event_name = cstring_to_text(mapping->event_name);
	reader->name_is_valid = onside_event_check_name(reader->event_name,
													&error);
	reader->keepable = true;
	if (mapping->mapper != NULL)
		reader->mapper = onside_mapper_make(trigger, rel, mapping, context);
	else
		resolve_columns(reader, mapping, rel);
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
read_payload(OnsideRowReader *reader, TupleTableSlot *row,
			 OnsideEventError *error, bool *valid)
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
			this_error.field = reader->payload[i].field;
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

static void
set_fresh_id(OnsideRowReader *reader, OnsideEvent *event)
{
	if (reader->many)
		onside_event_next_id(&event->event_id);
	else
		onside_event_new_id(&event->event_id);
	event->has_event_id = true;
	event->id_is_fresh = true;
}

/* False if the text is none in UTF-8. */
static bool
set_id_part(OnsideRowReader *reader, int i, char *text, OnsideEventError *error)
{
	char	   *utf8 = onside_as_utf8(text, strlen(text));

	if (utf8 == NULL)
		return onside_event_not_utf8(error, "event_id");
	reader->id_parts[i].data = utf8;
	reader->id_parts[i].len = strlen(utf8);
	return true;
}

/*
 * Sets what precedes a row's key.  A trigger that somebody made by hand may not say
 * it: then it is what attach() would say now, in this statement.
 */
static bool
know_id(OnsideRowReader *reader, Relation rel, OnsideEventError *error)
{
	MemoryContext context = GetMemoryChunkContext(reader);
	char	   *event_name = text_to_cstring(reader->event_name);
	char	   *id_namespace = reader->id_namespace;
	char	   *source = reader->id_source;
	pg_uuid_t	uuid;

	if (id_namespace == NULL)
	{
		if (!onside_namespace_read(&uuid))
			return onside_event_invalid(error, "event_id",
										ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
										pstrdup("event_id cannot be made: " ONSIDE_NAMESPACE_LOST),
										ONSIDE_NAMESPACE_HINT);
		id_namespace = DatumGetCString(DirectFunctionCall1(uuid_out,
														   UUIDPGetDatum(&uuid)));
	}
	if (source == NULL)
		source = onside_row_id_source(RelationGetRelid(rel));
	if (!set_id_part(reader, 0, id_namespace, error) ||
		!set_id_part(reader, 1, asc_tolower(event_name, strlen(event_name)),
					 error) ||
		!set_id_part(reader, 2, source, error))
		return false;
	for (int i = 0; i < ID_NAMES; i++)
		reader->id_parts[i].data = MemoryContextStrdup(context,
													   reader->id_parts[i].data);
	reader->id_is_known = true;
	return true;
}

void
onside_row_forget_id(OnsideRowReader *reader)
{
	if (!reader->id_is_known ||
		(reader->id_namespace != NULL && reader->id_source != NULL))
		return;
	reader->id_is_known = false;
	for (int i = 0; i < ID_NAMES; i++)
		pfree(unconstify(char *, reader->id_parts[i].data));
}

static bool
set_id_of_key(OnsideRowReader *reader, Relation rel, char *key,
			  OnsideEvent *event, OnsideEventError *error)
{
	if ((!reader->id_is_known && !know_id(reader, rel, error)) ||
		!set_id_part(reader, ID_NAMES, key, error))
		return false;
	onside_event_id_require(reader->id_parts, lengthof(reader->id_parts),
							&event->event_id);
	event->has_event_id = true;
	return true;
}

/*
 * Makes a row's event.  On false *error says why it is not valid, and the
 * event has what there is of it.
 */
static bool
read_row(OnsideRowReader *reader, Relation rel, TupleTableSlot *row,
		 OnsideEvent *event, OnsideEventError *error)
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
		char	   *key;

		ok = onside_column_to_event_id(&reader->event_id, row,
									   &event->event_id, &event->has_event_id,
									   &key, &this_error);
		if (ok && key != NULL)
			ok = set_id_of_key(reader, rel, key, event, &this_error);
		note(ok, error, &this_error, &valid);
	}
	if (ok && !event->has_event_id)
		set_fresh_id(reader, event);

	event->payload = read_payload(reader, row, error, &valid);

	if (valid)
		valid = onside_event_check(event, error);
	return valid;
}

static void
count_skipped(OnsideRowReader *reader, int64 rows)
{
	OnsideSlot *slot = onside_slot_find(MyDatabaseId);

	if (slot != NULL)
		pg_atomic_fetch_add_u64(&slot->skipped, rows);
	if (reader->backfill != NULL)
		reader->backfill->skipped += rows;
}

/* The column that this field of an event is taken from; NULL if not from one. */
static const char *
column_of(OnsideRowReader *reader, const char *field)
{
	if (strcmp(field, "installation_id") == 0)
		return reader->installation_id.name;
	if (strcmp(field, "event_datetime") == 0)
		return reader->event_datetime.name;
	if (strcmp(field, "event_id") == 0)
		return reader->event_id.name;
	for (int i = 0; i < reader->npayload; i++)
		if (strcmp(field, reader->payload[i].field) == 0)
			return reader->payload[i].name;
	return NULL;
}

/* The primary key of a row, "(id)=(51)", if whoever wrote it may see that. */
static char *
key_of_row(Relation rel, TupleTableSlot *row)
{
	Relation	index;
	Datum		values[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];
	char	   *key;

	list_free(RelationGetIndexList(rel));
	if (!OidIsValid(rel->rd_pkindex))
		return NULL;
	index = index_open(rel->rd_pkindex, AccessShareLock);
	for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index); i++)
		values[i] = slot_getattr(row, index->rd_index->indkey.values[i],
								 &nulls[i]);
	key = BuildIndexValueDescription(index, values, nulls);
	index_close(index, AccessShareLock);
	return key;
}

/*
 * Says what is wrong with a row, to somebody who wrote to a table of his and may
 * not know that its rows are reported.
 */
static void
report(int elevel, OnsideRowReader *reader, Relation rel,
	   const OnsideEventError *error, const char *outcome)
{
	const char *column = reader->mapper != NULL ? NULL :
		column_of(reader, error->field);
	char	   *key = NULL;
	StringInfoData detail;

	initStringInfo(&detail);
	appendStringInfo(&detail,
					 "Rows of table \"%s\" are reported as event \"%s\"",
					 RelationGetRelationName(rel),
					 text_to_cstring(reader->event_name));
	if (reader->mapper != NULL)
		appendStringInfo(&detail, ", by the mapper %s",
						 onside_mapper_name(reader->mapper));
	if (column != NULL)
		appendStringInfo(&detail, ", with column \"%s\" as %s", column,
						 error->field);
	if (reader->backfill != NULL && reader->row != NULL)
		key = key_of_row(rel, reader->row);
	if (key != NULL)
		appendStringInfo(&detail, ". This is the row %s", key);
	appendStringInfo(&detail, ".%s", outcome);

	ereport(elevel,
			(errcode(error->sqlstate),
			 errmsg(ONSIDE_INVALID_EVENT "%s", error->message),
			 errdetail_internal("%s", detail.data),
			 elevel < ERROR ? errhint("%s", error->hint) :
			 errhint("%s To let such rows through, set onside_attribution.on_invalid_event to dead_letter.",
					 error->hint),
			 column != NULL ? errtablecolname(rel, column) : errtable(rel)));
}

/* What there is of an event, for a person. */
static char *
describe(const OnsideEvent *event)
{
	StringInfoData text;

	initStringInfo(&text);
	if (event->has_event_id)
		appendStringInfo(&text, "event_id %s, ",
						 DatumGetCString(DirectFunctionCall1(uuid_out,
															 UUIDPGetDatum(&event->event_id))));
	if (event->has_installation_id)
		appendStringInfo(&text, "installation_id %s, ",
						 DatumGetCString(DirectFunctionCall1(uuid_out,
															 UUIDPGetDatum(&event->installation_id))));
	if (event->has_event_datetime)
		appendStringInfo(&text, "event_datetime %s, ",
						 timestamptz_to_str(event->event_datetime));
	appendStringInfo(&text, "payload %s", event->payload == NULL ? "unknown" :
					 JsonbToCString(NULL, &event->payload->root,
									VARSIZE(event->payload)));
	return text.data;
}

/*
 * Lets a row through that is no valid event.  Somebody may have locked
 * dead_letter for an hour: the purchase does not wait that long, and the event
 * is kept in the log.
 */
static void
let_through(OnsideRowReader *reader, Relation rel, const OnsideEvent *event,
			const OnsideEventError *error)
{
	if (reader->backfill != NULL)
		reader->backfill->dead_lettered++;
	if (!onside_dead_letter_lock(DEAD_LETTER_PATIENCE))
	{
		report(WARNING, reader, rel, error,
			   psprintf(" This row was let through. Its event is kept in this message alone, since dead_letter is locked by another session: %s.",
						describe(event)));
		return;
	}
	report(WARNING, reader, rel, error,
		   " This row was let through and its event put into dead_letter.");
	onside_dead_letter_insert(NULL, event, 0, error->message, 0,
							  GetCurrentTimestamp(), 0,
							  onside_row_source(RelationGetRelid(rel)));
}

/* Appends the event if it is valid, or does what on_invalid_event says. */
static OnsideRowOutcome
settle(OnsideRowReader *reader, Relation rel, const OnsideEvent *event,
	   const OnsideEventError *error, OnsideAppend **append,
	   MemoryContext append_context)
{
	if (error == NULL)
	{
		if (reader->deferred != NULL &&
			!onside_deferred_is_new(reader->deferred, event))
			return ONSIDE_ROW_RECORDED;
		if (*append == NULL)
		{
			MemoryContext old = MemoryContextSwitchTo(append_context);

			*append = onside_append_begin();
			MemoryContextSwitchTo(old);
		}
		onside_append(*append, event);
		if (reader->backfill != NULL)
			reader->backfill->recorded++;
		return ONSIDE_ROW_RECORDED;
	}
	if (onside_on_invalid_event != ONSIDE_INVALID_DEAD_LETTER)
		report(ERROR, reader, rel, error, "");
	let_through(reader, rel, event, error);
	return ONSIDE_ROW_DEAD_LETTER;
}

/* ----------
 * For backfill
 * ----------
 */

/*
 * Does the event lie between backfill's since and until?  A time that cannot be read
 * is the event's own fault, not theirs.
 */
static bool
is_due(OnsideRowReader *reader, bool has_datetime, TimestampTz t)
{
	if (reader->backfill == NULL || !has_datetime ||
		(t >= reader->backfill->since && t <= reader->backfill->until))
		return true;
	reader->backfill->not_due++;
	return false;
}

/* The same for a row that columns are read of, before anything else is. */
static bool
is_row_due(OnsideRowReader *reader, TupleTableSlot *row)
{
	OnsideEventError error;
	TimestampTz t;
	bool		has;

	return reader->backfill == NULL || !reader->has_event_datetime ||
		!onside_column_to_datetime(&reader->event_datetime, row, &t, &has,
								   &error) ||
		is_due(reader, has, t);
}

/*
 * An event without an event_id of the row's own would be another event than the one
 * that the trigger has recorded, or will record.  So whoever called backfill gets an
 * error, whatever on_invalid_event says.
 */
static void
require_own_id(OnsideRowReader *reader, Relation rel, TupleTableSlot *row)
{
	char	   *key;

	if (reader->backfill == NULL ||
		!onside_column_is_empty(&reader->event_id, row))
		return;
	key = key_of_row(rel, row);
	ereport(ERROR,
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
			 errmsg("backfill: column \"%s\", the event_id, is NULL or empty",
					reader->event_id.name),
			 key == NULL ? 0 : errdetail("This is the row %s.", key),
			 errhint("Without an event_id of the row's own, the trigger and backfill report two events. Give such rows one, or attach the event with event_id => the name of a column that is NOT NULL, such as the primary key."),
			 errtablecolname(rel, reader->event_id.name)));
}

/* Has the event what backfill needs of a mapper?  That is also when it occurred. */
static bool
has_own_fields(OnsideRowReader *reader, const OnsideEvent *event)
{
	return reader->backfill == NULL ||
		(event->has_event_id && event->has_event_datetime);
}

/* The same as require_own_id(), for what a mapper has made of the row. */
static void
require_own_fields(OnsideRowReader *reader, Relation rel,
				   const OnsideEvent *event)
{
	char	   *key;

	if (has_own_fields(reader, event))
		return;
	key = key_of_row(rel, reader->row);
	ereport(ERROR,
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
			 errmsg("backfill: mapper %s has returned an event whose %s is NULL",
					onside_mapper_name(reader->mapper),
					event->has_event_id ? "event_datetime" : "event_id"),
			 key == NULL ? 0 : errdetail("This is the row %s.", key),
			 event->has_event_id ?
			 errhint("Have it return when the event occurred. For a trigger NULL means now, which is another time whenever the row is read.") :
			 errhint("Have it return an id made of the row's key, such as onside_attribution.event_id('%s', id::text). Without one the trigger and backfill report two events.",
					 RelationGetRelationName(rel)),
			 errtable(rel)));
}

/* ----------
 * By a mapper
 * ----------
 */

/* What a mapper's error says about the event of the row with this key, or NULL. */
static void
understand(const ErrorData *mapper_error, const char *key,
		   OnsideEventError *error)
{
	char	   *message = mapper_error->message;

	/* What the mapper has called may say it as we do. */
	if (strncmp(message, ONSIDE_INVALID_EVENT,
				strlen(ONSIDE_INVALID_EVENT)) == 0)
		message += strlen(ONSIDE_INVALID_EVENT);
	error->field = "mapper";
	error->sqlstate = mapper_error->sqlerrcode;
	error->message = key == NULL ? message :
		psprintf("%s, in row %s", message, key);
	error->hint = mapper_error->hint != NULL ? mapper_error->hint :
		mapper_error->sqlerrcode == ERRCODE_INSUFFICIENT_PRIVILEGE ?
		"A mapper runs with the rights of whoever writes the row. Grant them, or declare the mapper SECURITY DEFINER." :
		psprintf("Mend the mapper with CREATE OR REPLACE FUNCTION%s.",
				 onside_mapper_error_place(mapper_error));
}

/*
 * The mapper has failed for this row.  Its own error names the row by its key, and
 * the table; a dead letter has no more of the event than that.
 */
static void
refuse_row(OnsideRowReader *reader, Relation rel, TupleTableSlot *row,
		   ErrorData *mapper_error)
{
	char	   *key = key_of_row(rel, row);
	OnsideEvent event = {0};
	OnsideEventError error = {0};

	if (onside_on_invalid_event != ONSIDE_INVALID_DEAD_LETTER)
	{
		mapper_error->context =
			psprintf("mapper %s%s%s%s%s", onside_mapper_name(reader->mapper),
					 key != NULL ? ", row " : "", key != NULL ? key : "",
					 mapper_error->context != NULL ? "\n" : "",
					 mapper_error->context != NULL ? mapper_error->context : "");
		if (mapper_error->table_name == NULL)
		{
			mapper_error->schema_name =
				get_namespace_name(RelationGetNamespace(rel));
			mapper_error->table_name = pstrdup(RelationGetRelationName(rel));
		}
		ReThrowError(mapper_error);
	}

	event.event_name = reader->event_name;
	event.name_is_checked = reader->name_is_valid;
	understand(mapper_error, key, &error);
	let_through(reader, rel, &event, &error);
}

/* A result that has an installation_id becomes an event; false if it is none. */
static bool
check_result(OnsideRowReader *reader, OnsideEvent *event,
			 OnsideEventError *error)
{
	event->event_name = reader->event_name;
	event->name_is_checked = reader->name_is_valid;
	if (!event->has_event_datetime)
		event->event_datetime = GetCurrentTransactionStartTimestamp();
	event->has_event_datetime = true;
	if (!event->has_event_id)
		set_fresh_id(reader, event);
	if (onside_event_check(event, error))
		return true;
	if (event->payload == NULL && strcmp(error->field, "payload") == 0)
		error->message = psprintf("payload, made by mapper %s, must not be null",
								  onside_mapper_name(reader->mapper));
	return false;
}

/* Says that events of one statement have one event_id; of a backfill once. */
static void
warn_of_repeats(OnsideRowReader *reader, Relation rel,
				const OnsideRepeats *repeats)
{
	int64		events;
	int64		found = onside_repeats_found(repeats, &events);
	OnsideSlot *slot = onside_slot_find(MyDatabaseId);

	if (found == 0)
		return;
	if (slot != NULL)
		pg_atomic_fetch_add_u64(&slot->repeated, found);
	if (reader->told_repeats)
		return;
	reader->told_repeats = reader->backfill != NULL;
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 errmsg("mapper %s gives the event_id of another event to " INT64_FORMAT " of " INT64_FORMAT " events",
					onside_mapper_name(reader->mapper), found, events),
			 errdetail("The API takes these for repetitions, and ignores them. The first event_id is %s.",
					   onside_repeats_example(repeats)),
			 errhint(ONSIDE_REPEATS_HINT),
			 errtable(rel)));
}

/*
 * Records what the mapper has made of so many rows, one of which is reader->row if that
 * is known.  Each result lives in per_row.  Of rows without an event no result tells, so
 * they are counted by what is missing.
 *
 * False if backfill has to end with an error about an event of which nobody knows
 * the row.  What was recorded until then is undone by that error, and if the mapper
 * does not repeat it, these events have event_ids of their own.
 */
static bool
record_results(OnsideRowReader *reader, Relation rel, int64 rows,
			   Tuplestorestate *results, TupleTableSlot *slot,
			   OnsideAppend **append, MemoryContext append_context,
			   OnsideRowOutcome *outcome)
{
	MemoryContext context = CurrentMemoryContext;
	int64		skipped = Max(rows - tuplestore_tuple_count(results), 0);
	OnsideRepeats *repeats = NULL;
	bool		done = true;

	*outcome = ONSIDE_ROW_SKIPPED;
	if (tuplestore_tuple_count(results) > 1)
		repeats = onside_repeats_make(REPEATS_PLACES);
	while (done && tuplestore_gettupleslot(results, true, false, slot))
	{
		OnsideEvent event;
		OnsideEventError error;

		CHECK_FOR_INTERRUPTS();
		MemoryContextSwitchTo(reader->per_row);
		if (reader->deferred != NULL)
			onside_deferred_next_event(reader->deferred);
		onside_mapper_read_event(slot, &event);
		if (!event.has_installation_id)
			skipped++;
		else if (is_due(reader, event.has_event_datetime,
						event.event_datetime))
		{
			OnsideRowOutcome this_one;
			bool		complete = has_own_fields(reader, &event);
			bool		valid;

			if (reader->row != NULL)
				require_own_fields(reader, rel, &event);
			valid = check_result(reader, &event, &error);
			done = reader->backfill == NULL || reader->row != NULL ||
				(complete && (valid || onside_on_invalid_event ==
							  ONSIDE_INVALID_DEAD_LETTER));
			if (done)
			{
				this_one = settle(reader, rel, &event, valid ? NULL : &error,
								  append, append_context);
				if (valid && !event.id_is_fresh)
					onside_repeats_add(repeats, &event.event_id);
				if (*outcome != ONSIDE_ROW_DEAD_LETTER)
					*outcome = this_one;
			}
		}
		MemoryContextSwitchTo(context);
		MemoryContextReset(reader->per_row);
	}
	if (done && skipped > 0)
		count_skipped(reader, skipped);
	if (done)
		warn_of_repeats(reader, rel, repeats);
	if (repeats != NULL)
		pfree(repeats);
	return done;
}

/*
 * The mapper can write to this very table, whose trigger then uses the same reader:
 * while it is called, nothing of ours is in per_row.
 */
static OnsideRowOutcome
record_mapped(OnsideRowReader *reader, Relation rel, TupleTableSlot *row,
			  OnsideAppend **append)
{
	MemoryContext per_call = AllocSetContextCreate(CurrentMemoryContext,
												   "onside_attribution mapper call",
												   ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(per_call);
	TupleTableSlot *slot;
	Tuplestorestate *results = onside_mapper_results(&slot);
	OnsideDeferred *deferred = reader->deferred;
	ErrorData  *error = onside_mapper_call(reader->mapper, row, results);
	OnsideRowOutcome outcome = ONSIDE_ROW_DEAD_LETTER;

	/* What calls within have put there is gone. */
	reader->deferred = deferred;
	reader->row = row;
	if (error != NULL)
		refuse_row(reader, rel, row, error);
	else
		(void) record_results(reader, rel, 1, results, slot, append, old,
							  &outcome);
	ExecDropSingleTupleTableSlot(slot);
	tuplestore_end(results);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(per_call);
	return outcome;
}

/*
 * All rows in one query.  False if that fails: an error of the mapper is not even looked
 * at here, since the row that has it raises it again.
 */
static bool
record_mapped_together(OnsideRowReader *reader, TriggerData *trigdata,
					   OnsideAppend **append)
{
	int64		rows = tuplestore_tuple_count(trigdata->tg_newtable);
	TupleTableSlot *slot;
	Tuplestorestate *results = onside_mapper_results(&slot);
	bool		done = onside_mapper_call_for_all(reader->mapper, trigdata,
												  results) == NULL;
	OnsideRowOutcome outcome;

	reader->row = NULL;
	done = done &&
		record_results(reader, trigdata->tg_relation, rows, results, slot,
					   append, CurrentMemoryContext, &outcome);
	ExecDropSingleTupleTableSlot(slot);
	tuplestore_end(results);
	return done;
}

/* What is made of the row lives in per_row and is gone afterwards. */
OnsideRowOutcome
onside_row_record(OnsideRowReader *reader, Relation rel, TupleTableSlot *row,
				  OnsideAppend **append)
{
	MemoryContext old;
	OnsideEvent event = {0};
	OnsideEventError error;
	OnsideRowOutcome outcome = ONSIDE_ROW_SKIPPED;

	if (reader->mapper != NULL)
		return record_mapped(reader, rel, row, append);

	old = MemoryContextSwitchTo(reader->per_row);
	if (!is_row_due(reader, row))
		;						/* and nothing else is counted */
	else if (reader->installation_id.attnum != InvalidAttrNumber &&
			 onside_column_is_empty(&reader->installation_id, row))
		count_skipped(reader, 1);
	else
	{
		bool		valid;

		require_own_id(reader, rel, row);
		reader->row = row;
		valid = read_row(reader, rel, row, &event, &error);
		outcome = settle(reader, rel, &event, valid ? NULL : &error, append,
						 old);
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(reader->per_row);
	return outcome;
}

void
onside_row_record_all(OnsideRowReader *reader, TriggerData *trigdata,
					  OnsideAppend **append)
{
	Tuplestorestate *rows = trigdata->tg_newtable;
	TupleTableSlot *row;
	int			pointer;

	if (reader->mapper != NULL && tuplestore_tuple_count(rows) > FEW_ROWS &&
		record_mapped_together(reader, trigdata, append))
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

/* ----------
 * Trying
 * ----------
 */

/* One event that is invalid makes the row one that is. */
static OnsideRowOutcome
try_mapper(OnsideRowReader *reader, TupleTableSlot *row,
		   OnsideEventError *error)
{
	TupleTableSlot *slot;
	Tuplestorestate *results = onside_mapper_results(&slot);
	OnsideRowOutcome outcome = ONSIDE_ROW_SKIPPED;
	ErrorData  *mapper_error = onside_mapper_call(reader->mapper, row, results);

	if (mapper_error != NULL)
	{
		understand(mapper_error, NULL, error);
		outcome = ONSIDE_ROW_DEAD_LETTER;
	}
	while (mapper_error == NULL && outcome != ONSIDE_ROW_DEAD_LETTER &&
		   tuplestore_gettupleslot(results, true, false, slot))
	{
		OnsideEvent event;

		onside_mapper_read_event(slot, &event);
		if (!event.has_installation_id)
			error->field = "installation_id";
		else if (check_result(reader, &event, error))
		{
			outcome = ONSIDE_ROW_RECORDED;
			if (!event.id_is_fresh)
				onside_repeats_add(reader->repeats, &event.event_id);
		}
		else
			outcome = ONSIDE_ROW_DEAD_LETTER;
	}
	ExecDropSingleTupleTableSlot(slot);
	tuplestore_end(results);
	return outcome;
}

OnsideRowOutcome
onside_row_try(OnsideRowReader *reader, Relation rel, TupleTableSlot *row,
			   OnsideEventError *error)
{
	MemoryContext old = MemoryContextSwitchTo(reader->per_row);
	OnsideEvent event = {0};
	OnsideRowOutcome outcome = ONSIDE_ROW_RECORDED;

	memset(error, 0, sizeof(*error));
	if (reader->mapper != NULL)
		outcome = try_mapper(reader, row, error);
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
