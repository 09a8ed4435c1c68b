/*-------------------------------------------------------------------------
 *
 * attach.c
 *		attach: makes the triggers that report a table's rows.
 *
 * The result is a plain trigger that calls track_row, so that pg_dump, psql
 * and DROP TRIGGER treat it as any other.  The trigger is at statement level
 * where that sees every row, because that is far cheaper.  It is at row level
 * if there is a condition on rows, if both INSERT and UPDATE fire it, or if
 * rows come in through another table (partitions, inheritance).
 *
 * The trigger is made by a CREATE TRIGGER command, as the caller.  So
 * PostgreSQL checks the privileges: TRIGGER on the table and its partitions,
 * EXECUTE on track_row.  Event triggers and other extensions see the command.
 *
 * No step here has other rights than the caller's.  That matters, because to
 * look at somebody's table is to run his code: PostgreSQL evaluates the
 * immutable parts of a partition key or an index expression when it reads them,
 * and a literal in the condition can be of a type whose input runs the CHECK
 * of a domain.  Whoever calls attach runs that code anyway, with his CREATE
 * TRIGGER.
 *
 * Before CREATE TRIGGER we look at everything that can be wrong with the
 * arguments, for the sake of messages that name them.  We look at the caller's
 * privileges first of all: who may not make the trigger must not make others
 * wait for his lock.  The lock is waited for at most lock_timeout, or
 * LOCK_TIMEOUT if that is not set, since purchases queue behind whoever waits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/sysattr.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "optimizer/optimizer.h"
#include "parser/parse_func.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/syscache.h"

#include "attach/attach.h"
#include "attach/attachable.h"
#include "attach/look.h"
#include "attach/mapper_check.h"
#include "attach/when.h"
#include "compat.h"
#include "log/event.h"
#include "log/namespace.h"
#include "log/tables.h"
#include "record/citus.h"
#include "record/column.h"
#include "record/mapping.h"
#include "record/row.h"

PG_FUNCTION_INFO_V1(onside_attach);

/* Of the triggers; an attachment that takes two has one of each. */
#define TRIGGER_PREFIX			"onside_"
#define UPDATE_TRIGGER_PREFIX	"onside2_"

/* How long to wait for a lock if lock_timeout is not set. */
#define LOCK_TIMEOUT	"2s"

/* What attach() was asked for. */
typedef struct Wanted
{
	Oid			relid;
	OnsideMapping *mapping;
	int16		events;			/* TRIGGER_TYPE_* bits */
	const char *condition;		/* or NULL */
	const char *becomes;		/* instead of events and condition; or NULL */
	bool		deferred;
	int			lock_timeout;	/* of the session */
} Wanted;

/* A trigger that is to be made. */
typedef struct NewTrigger
{
	char	   *name;
	int16		events;
	const char *condition;		/* or NULL */
} NewTrigger;

Oid
onside_track_row_oid(void)
{
	return LookupFuncName(list_make2(makeString(ONSIDE_SCHEMA),
									 makeString("track_row")),
						  0, NULL, false);
}

Oid
onside_find_track_row(void)
{
	Oid			schema = get_namespace_oid(ONSIDE_SCHEMA, true);

	if (!OidIsValid(schema))
		return InvalidOid;
	return GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
						   CStringGetDatum("track_row"),
						   PointerGetDatum(buildoidvector(NULL, 0)),
						   ObjectIdGetDatum(schema));
}

/* ----------
 * attach's arguments
 * ----------
 */

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

/* Reads the object of keys and columns; each entry is checked for its form. */
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

	mapping->payload = palloc(Max(JB_ROOT_COUNT(payload), 1) *
							  sizeof(OnsidePayloadKey));
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
		if (strchr(entry->key, '=') != NULL)
			throw_bad("a key of payload must not contain \"=\"",
					  "It separates key and column in the trigger's arguments.");
	}
}

/* What an event is made of: columns, or what a mapper returns. */
static OnsideMapping *
read_mapping(FunctionCallInfo fcinfo)
{
	OnsideMapping *mapping = palloc0(sizeof(OnsideMapping));

	if (PG_ARGISNULL(1))
		throw_missing("event_name");
	mapping->event_name = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (!PG_ARGISNULL(8))
	{
		for (int i = 2; i <= 5; i++)
			if (!PG_ARGISNULL(i))
				throw_bad("mapper and columns exclude each other",
						  "What the mapper returns has installation_id, payload, event_datetime and event_id.");
		onside_mapper_check(PG_GETARG_OID(8), PG_GETARG_OID(0), mapping);
		return mapping;
	}
	if (PG_ARGISNULL(2))
		throw_missing("installation_id");
	if (PG_ARGISNULL(3))
		throw_missing("payload");
	mapping->installation_id = pstrdup(NameStr(*PG_GETARG_NAME(2)));
	read_payload(PG_GETARG_JSONB_P(3), mapping);
	if (!PG_ARGISNULL(4))
		mapping->event_datetime = pstrdup(NameStr(*PG_GETARG_NAME(4)));
	if (!PG_ARGISNULL(5))
		mapping->event_id = pstrdup(NameStr(*PG_GETARG_NAME(5)));
	return mapping;
}

/* TRIGGER_TYPE_* bits of "INSERT", "UPDATE", "INSERT OR UPDATE". */
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

/* ----------
 * attach
 * ----------
 */

/* A name for the trigger, the same for the same event. */
static char *
trigger_name(const char *prefix, const char *event_name)
{
	char	   *name = psprintf("%s%s", prefix, event_name);

	if (strlen(name) >= NAMEDATALEN)
	{
		uint32		hash = hash_bytes((const unsigned char *) event_name,
									  strlen(event_name));
		int			keep = pg_mbcliplen(name, strlen(name), NAMEDATALEN - 10);

		name = psprintf("%.*s_%08x", keep, name, hash);
	}
	return name;
}

static void
check_event_name(const char *event_name)
{
	OnsideEvent event = {0};
	OnsideEventError error;

	/* The name is looked at first, so another error is none of its. */
	event.event_name = cstring_to_text(event_name);
	if (!onside_event_check(&event, &error) &&
		strcmp(error.field, "event_name") == 0)
		onside_event_throw(&error);
}

static void
check_column(Relation rel, const char *field, const char *name)
{
	OnsideColumn column;
	OnsideEventError error;

	if (!onside_column_resolve(&column, field, RelationGetDescr(rel),
							   RelationGetRelationName(rel), name, &error))
		ereport(ERROR,
				(errcode(error.sqlstate),
				 errmsg("attach: %s", error.message),
				 error.sqlstate == ERRCODE_UNDEFINED_COLUMN ?
				 errhint("Names of columns are taken as written; upper and lower case differ.") :
				 errhint("%s", error.hint),
				 errtablecolname(rel, name)));
}

static void
check_columns(Relation rel, const OnsideMapping *mapping)
{
	check_column(rel, "installation_id", mapping->installation_id);
	for (int i = 0; i < mapping->npayload; i++)
	{
		char	   *field = psprintf("payload.%s", mapping->payload[i].key);

		check_column(rel, field, mapping->payload[i].column);
		onside_attachable_column(rel, field, mapping->payload[i].column);
	}
	if (mapping->event_datetime != NULL)
		check_column(rel, "event_datetime", mapping->event_datetime);
	if (mapping->event_id != NULL)
		check_column(rel, "event_id", mapping->event_id);
}

/* Is there an index by which the column alone tells rows apart? */
static bool
is_unique(Relation rel, const char *name)
{
	AttrNumber	attnum = get_attnum(RelationGetRelid(rel), name);
	List	   *indexes = RelationGetIndexList(rel);
	bool		result = false;
	ListCell   *lc;

	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);
		Form_pg_index form = index->rd_index;

		result |= form->indisunique && form->indisvalid && form->indimmediate &&
			form->indnkeyatts == 1 && form->indkey.values[0] == attnum &&
			RelationGetIndexPredicate(index) == NIL;
		index_close(index, AccessShareLock);
	}
	list_free(indexes);
	return result;
}

/*
 * An event_id that is made of a key says whose key it is.  That is noted as it is
 * now: what is renamed or restored elsewhere reports the same events.
 */
static void
note_key(Relation rel, OnsideMapping *mapping)
{
	pg_uuid_t	id;

	if (mapping->event_id == NULL)
		return;
	if (!onside_namespace_read(&id))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("attach: " ONSIDE_NAMESPACE_LOST),
				 errhint(ONSIDE_NAMESPACE_HINT)));
	mapping->id_namespace = DatumGetCString(DirectFunctionCall1(uuid_out,
																UUIDPGetDatum(&id)));
	mapping->id_source = onside_row_id_source(RelationGetRelid(rel));
	if (!is_unique(rel, mapping->event_id))
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("column \"%s\" of \"%s\", mapped to event_id, is not unique",
						mapping->event_id, RelationGetRelationName(rel)),
				 errdetail("Rows with the same value are one event to the API: it takes the first and ignores the others."),
				 errhint("Map the primary key, or add a unique index on the column.")));
}

/* By the key a deferred trigger knows which rows it has seen. */
static void
check_primary_key(Relation rel)
{
	list_free(RelationGetIndexList(rel));
	if (OidIsValid(rel->rd_pkindex))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("attach: table \"%s\" has no primary key",
					RelationGetRelationName(rel)),
			 errdetail("With deferred, a row is read again by its primary key at the end of the transaction."),
			 errhint("Add one, or leave out deferred.")));
}

/* Whoever names a table needs it; an OID must be no way around it. */
void
onside_check_schema_privilege(Oid relid)
{
	Oid			schema = get_rel_namespace(relid);
	AclResult	acl;

	if (!OidIsValid(schema))
		return;
	acl = onside_namespace_aclcheck(schema, ACL_USAGE);
	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, OBJECT_SCHEMA, get_namespace_name(schema));
}

void
onside_check_privilege(Oid relid, AclMode mode)
{
	AclResult	acl = pg_class_aclcheck(relid, GetUserId(), mode);

	if (acl != ACLCHECK_OK)
	{
		char		relkind = get_rel_relkind(relid);

		aclcheck_error(acl, get_relkind_objtype(relkind), get_rel_name(relid));
	}
}

/* Do all rows pass through statements on this very table? */
static bool
all_rows_come_in_here(Relation rel)
{
	return rel->rd_rel->relkind == RELKIND_RELATION &&
		!rel->rd_rel->relispartition &&
		!has_superclass(RelationGetRelid(rel)) &&
		!has_subclass(RelationGetRelid(rel));
}

/* The columns that the event depends on, as pull_varattnos() has them. */
static Bitmapset *
columns_of_event(Relation rel, const OnsideMapping *mapping, Node *when)
{
	List	   *names = list_make2(unconstify(char *, mapping->installation_id),
								   unconstify(char *, mapping->event_datetime));
	Bitmapset  *columns = NULL;
	ListCell   *lc;

	names = lappend(names, unconstify(char *, mapping->event_id));
	for (int i = 0; i < mapping->npayload; i++)
		names = lappend(names, unconstify(char *, mapping->payload[i].column));
	foreach(lc, names)
		if (lfirst(lc) != NULL)
			columns = bms_add_member(columns,
									 get_attnum(RelationGetRelid(rel), lfirst(lc)) -
									 FirstLowInvalidHeapAttributeNumber);
	pull_varattnos(when, PRS2_OLD_VARNO, &columns);
	pull_varattnos(when, PRS2_NEW_VARNO, &columns);
	return columns;
}

/*
 * Is a column, or the whole row, in the key by which a partition of any level is
 * chosen?  All of them are locked.
 */
static bool
are_in_partition_key(Relation rel, Bitmapset *columns)
{
	bool		result = bms_is_member(-FirstLowInvalidHeapAttributeNumber,
									   columns);
	ListCell   *lc;

	foreach(lc, find_all_inheritors(RelationGetRelid(rel), NoLock, NULL))
	{
		Relation	part = relation_open(lfirst_oid(lc), NoLock);
		Bitmapset  *its = NULL;
		int			i = -FirstLowInvalidHeapAttributeNumber;
		bool		in_expression;

		while ((i = bms_next_member(columns, i)) >= 0)
			its = bms_add_member(its,
								 get_attnum(RelationGetRelid(part),
											get_attname(RelationGetRelid(rel),
														i + FirstLowInvalidHeapAttributeNumber,
														false)) -
								 FirstLowInvalidHeapAttributeNumber);
		if (part->rd_rel->relkind == RELKIND_PARTITIONED_TABLE &&
			has_partition_attrs(part, its, &in_expression))
			result = true;
		relation_close(part, NoLock);
	}
	return result;
}

/*
 * An UPDATE that moves a row to another partition fires no UPDATE trigger at row
 * level.  That is said where it is to be expected: where every update is an
 * event, or where what makes it one, or is in it, decides about the partition.
 */
static void
warn_of_moves(Relation rel, const OnsideMapping *mapping, int16 events,
			  Node *when)
{
	if (rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE ||
		events != TRIGGER_TYPE_UPDATE ||
		(when != NULL &&
		 !are_in_partition_key(rel, columns_of_event(rel, mapping, when))))
		return;
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 errmsg("an UPDATE that moves a row of \"%s\" to another partition is not reported",
					RelationGetRelationName(rel)),
			 errdetail("To triggers it is a DELETE here and an INSERT there."),
			 errhint("Attach the event to INSERT OR UPDATE, with a condition on NEW alone, and with event_id, by which a repetition is recognized.")));
}

static List *
add_trigger(List *triggers, const Wanted *wanted, const char *prefix,
			int16 events, const char *condition)
{
	NewTrigger *trigger = palloc(sizeof(NewTrigger));

	trigger->name = trigger_name(prefix, wanted->mapping->event_name);
	trigger->events = events;
	trigger->condition = condition;
	return lappend(triggers, trigger);
}

/*
 * A row that moves to another partition is inserted there, so what it has become
 * before is reported again: then it has to be the same event.
 */
static void
check_becomes_of_partitions(Relation rel, const OnsideMapping *mapping)
{
	if (rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE ||
		mapping->event_id != NULL || mapping->mapper != NULL)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("attach: becomes needs an event_id for the partitioned table \"%s\"",
					RelationGetRelationName(rel)),
			 errdetail("A row that moves to another partition is inserted there, and would be reported again as another event."),
			 errhint("Map event_id to the table's key.")));
}

/*
 * The triggers that it takes.  There are two where INSERT and UPDATE have different
 * conditions: for "becomes", and for a condition on OLD, which there is not when a
 * row is inserted.
 */
static List *
plan_triggers(Relation rel, const Wanted *wanted)
{
	const int16 both = TRIGGER_TYPE_INSERT | TRIGGER_TYPE_UPDATE;
	List	   *triggers = NIL;
	Node	   *when = NULL;

	if (wanted->becomes != NULL)
	{
		(void) onside_when_transform(rel, "becomes", wanted->becomes, false);
		check_becomes_of_partitions(rel, wanted->mapping);
		triggers = add_trigger(NIL, wanted, TRIGGER_PREFIX, TRIGGER_TYPE_INSERT,
							   wanted->becomes);
		return add_trigger(triggers, wanted, UPDATE_TRIGGER_PREFIX,
						   TRIGGER_TYPE_UPDATE,
						   psprintf("(%s\n) AND (%s\n) IS NOT TRUE",
									wanted->becomes,
									onside_when_of_old(wanted->becomes)));
	}
	if (wanted->condition != NULL)
		when = onside_when_transform(rel, "condition", wanted->condition,
									 (wanted->events & TRIGGER_TYPE_UPDATE) != 0);
	warn_of_moves(rel, wanted->mapping, wanted->events, when);
	if (wanted->events != both || when == NULL || !onside_when_has_old(when))
		return add_trigger(NIL, wanted, TRIGGER_PREFIX, wanted->events,
						   wanted->condition);
	triggers = add_trigger(NIL, wanted, TRIGGER_PREFIX, TRIGGER_TYPE_INSERT,
						   NULL);
	return add_trigger(triggers, wanted, UPDATE_TRIGGER_PREFIX,
					   TRIGGER_TYPE_UPDATE, wanted->condition);
}

/*
 * The command.  The condition has been found to be one expression by itself, so
 * it cannot close the parenthesis and go on with something else.
 */
static char *
make_command(Relation rel, const Wanted *wanted, const NewTrigger *trigger)
{
	bool		for_each_row = wanted->deferred || trigger->condition != NULL ||
		!all_rows_come_in_here(rel) ||
		(trigger->events != TRIGGER_TYPE_INSERT &&
		 trigger->events != TRIGGER_TYPE_UPDATE);
	StringInfoData command;
	const char *separator = "";
	ListCell   *lc;

	initStringInfo(&command);
	appendStringInfo(&command, "CREATE %sTRIGGER %s AFTER %s ON %s%s",
					 wanted->deferred ? "CONSTRAINT " : "",
					 quote_identifier(trigger->name),
					 trigger->events == TRIGGER_TYPE_INSERT ? "INSERT" :
					 trigger->events == TRIGGER_TYPE_UPDATE ? "UPDATE" :
					 "INSERT OR UPDATE",
					 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
												RelationGetRelationName(rel)),
					 wanted->deferred ? " DEFERRABLE INITIALLY DEFERRED" : "");
	appendStringInfoString(&command, for_each_row ? " FOR EACH ROW" :
						   " REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT");
	if (trigger->condition != NULL)
		appendStringInfo(&command, " WHEN (%s\n)", trigger->condition);
	appendStringInfoString(&command,
						   " EXECUTE FUNCTION " ONSIDE_SCHEMA ".track_row(");
	foreach(lc, onside_mapping_args(wanted->mapping))
	{
		appendStringInfo(&command, "%s%s", separator,
						 quote_literal_cstr(lfirst(lc)));
		separator = ", ";
	}
	appendStringInfoChar(&command, ')');
	return command.data;
}

/* Tells who met a lock what to do. */
static void
lock_error(void *arg)
{
	if (geterrcode() == ERRCODE_LOCK_NOT_AVAILABLE)
		errhint("Another session uses the table; see pg_locks. Try again, or set lock_timeout to wait longer.");
}

/* Tells who lacks a privilege which ones it takes. */
static void
privilege_error(void *arg)
{
	if (geterrcode() == ERRCODE_INSUFFICIENT_PRIVILEGE)
		errhint("attach makes a trigger, as whoever calls it. That takes TRIGGER on the table, and on the partitions that it has, and USAGE on its schema: have the owner GRANT them, or call attach as the owner.");
}

/*
 * Who may not make the trigger must not make others wait, either: this comes
 * before any lock, and CREATE TRIGGER checks it all again under its own.
 */
static void
check_privileges(Oid relid)
{
	ErrorContextCallback callback;
	ListCell   *lc;

	callback.callback = privilege_error;
	callback.arg = NULL;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	onside_check_schema_privilege(relid);
	onside_check_privilege(relid, ACL_TRIGGER);
	if (get_rel_relkind(relid) == RELKIND_PARTITIONED_TABLE)
		foreach(lc, find_all_inheritors(relid, NoLock, NULL))
			onside_check_privilege(lfirst_oid(lc), ACL_TRIGGER);
	error_context_stack = callback.previous;
}

void
onside_refuse_shard(const char *what, Oid relid)
{
	Oid			table = onside_citus_table_of_shard(relid);

	if (OidIsValid(table))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("%s: \"%s\" is a shard of Citus", what,
						get_rel_name(relid)),
				 errhint("At the coordinator, %s the table \"%s\": that reaches all of its shards.",
						 what, get_rel_name(table))));
}

/*
 * Each node reports each row of a reference table, so that the API has to see that
 * these are the same event.
 */
static void
check_reference_table(const Wanted *wanted)
{
	if (wanted->mapping->mapper == NULL && wanted->mapping->event_id == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("attach: a reference table of Citus needs an event_id"),
				 errdetail("Each node has all rows of \"%s\", and reports each of them.",
						   get_rel_name(wanted->relid)),
				 errhint("Map the primary key to event_id: then what the nodes report is one event to the API.")));
	if (wanted->mapping->mapper != NULL)
		ereport(NOTICE,
				(errmsg("\"%s\" is a reference table of Citus, of which each node reports each row",
						get_rel_name(wanted->relid)),
				 errhint("The mapper has to return an event_id that belongs to the row: then this is one event to the API.")));
}

/*
 * Citus's sessions on other nodes wait for locks, too, and meanwhile purchases queue
 * for ours.  It tells them of a SET LOCAL command, if that is in a transaction block,
 * as which it takes DO.  The setting is saved before, so that here it ends with
 * attach(); there it has to be set back.
 */
static void
set_lock_timeout_elsewhere(int timeout)
{
	char	   *command = psprintf("DO LANGUAGE plpgsql 'BEGIN SET LOCAL lock_timeout = %d; END'",
								   timeout);
	char	   *value = psprintf("%d", LockTimeout);

	(void) set_config_option("citus.propagate_set_commands", "local",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true,
							 0, false);
	(void) set_config_option("lock_timeout", value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	if (SPI_execute(command, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not execute \"%s\"", command);
}

/* Executes CREATE TRIGGER. */
static void
make_trigger(Oid relid, const char *name, const char *command)
{
	if (SPI_execute(command, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not execute \"%s\"", command);

	/*
	 * The lock keeps the table's name, but not that of its schema; and an event
	 * trigger can do anything.
	 */
	if (!OidIsValid(get_trigger_oid(relid, name, true)))
		elog(ERROR, "\"%s\" has made no trigger on the table", command);
}

/*
 * Makes the triggers and returns the first one's name.  The table stays locked.
 */
static char *
attach(const Wanted *wanted)
{
	OnsideCitusTable citus = onside_citus_table(wanted->relid);
	OnsideLook *look = NULL;
	Relation	rel;
	List	   *triggers;
	List	   *commands = NIL;
	ListCell   *lc;
	ListCell   *lc2;
	ErrorContextCallback callback;

	/* Nobody must wait for it, so it comes before the locks. */
	if (citus == ONSIDE_CITUS_REFERENCE)
		check_reference_table(wanted);
	else if (citus == ONSIDE_CITUS_NONE)
		look = onside_look(wanted->relid, wanted->mapping,
						   wanted->becomes != NULL ? wanted->becomes :
						   wanted->condition, wanted->events);

	/* The locks that CREATE TRIGGER takes, too. */
	rel = relation_open(wanted->relid, ShareRowExclusiveLock);
	onside_attachable_warn(rel);
	if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
		(void) find_all_inheritors(wanted->relid, ShareRowExclusiveLock, NULL);
	if (wanted->mapping->mapper == NULL)
	{
		check_columns(rel, wanted->mapping);
		note_key(rel, wanted->mapping);
	}
	if (wanted->deferred)
		check_primary_key(rel);
	triggers = plan_triggers(rel, wanted);
	foreach(lc, triggers)
	{
		NewTrigger *trigger = lfirst(lc);

		if (OidIsValid(get_trigger_oid(wanted->relid, trigger->name, true)))
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("trigger \"%s\" for relation \"%s\" already exists",
							trigger->name, RelationGetRelationName(rel)),
					 rel->rd_rel->relispartition ?
					 errhint("If it is one of the partitioned table, the rows of its partitions are reported already. To attach the event in another way, detach it first.") :
					 errhint("To attach the event in another way, detach it first.")));
		commands = lappend(commands, make_command(rel, wanted, trigger));
	}
	relation_close(rel, NoLock);

	SPI_connect();
	if (citus != ONSIDE_CITUS_NONE)
		set_lock_timeout_elsewhere(LockTimeout);
	callback.callback = onside_citus_trigger_error;
	callback.arg = &citus;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	forboth(lc, triggers, lc2, commands)
		make_trigger(wanted->relid, ((NewTrigger *) lfirst(lc))->name,
					 lfirst(lc2));
	error_context_stack = callback.previous;
	if (citus != ONSIDE_CITUS_NONE)
		set_lock_timeout_elsewhere(wanted->lock_timeout);
	SPI_finish();
	if (look != NULL)
		onside_look_warn(look);
	return ((NewTrigger *) linitial(triggers))->name;
}

/*
 * attach(source, event_name, installation_id, payload, event_datetime, event_id,
 *		  operation, condition, mapper, becomes, deferred)
 */
Datum
onside_attach(PG_FUNCTION_ARGS)
{
	Wanted		wanted = {0};
	ErrorContextCallback callback;
	char	   *name;
	int			nestlevel = NewGUCNestLevel();

	if (PG_ARGISNULL(0))
		throw_missing("source");
	if (PG_ARGISNULL(6))
		throw_missing("operation");
	if (PG_ARGISNULL(10))
		throw_missing("deferred");
	PreventCommandIfReadOnly("attach()");
	wanted.relid = PG_GETARG_OID(0);
	onside_attachable_check(wanted.relid);
	onside_refuse_shard("attach", wanted.relid);
	check_privileges(wanted.relid);

	/* From here on others' locks are met: a mapper is planned, too. */
	callback.callback = lock_error;
	callback.arg = NULL;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	wanted.lock_timeout = LockTimeout;
	if (LockTimeout == 0)
		(void) set_config_option("lock_timeout", LOCK_TIMEOUT, PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
								 false);

	wanted.mapping = read_mapping(fcinfo);
	check_event_name(wanted.mapping->event_name);
	wanted.events = read_operation(PG_GETARG_TEXT_PP(6));
	if (!PG_ARGISNULL(7))
		wanted.condition = text_to_cstring(PG_GETARG_TEXT_PP(7));
	if (!PG_ARGISNULL(9))
		wanted.becomes = text_to_cstring(PG_GETARG_TEXT_PP(9));
	wanted.deferred = PG_GETARG_BOOL(10);
	if (wanted.becomes != NULL && (wanted.condition != NULL ||
								   wanted.events != TRIGGER_TYPE_INSERT))
		throw_bad("becomes takes the place of operation and condition",
				  "It is an event when a row is inserted or updated, the expression is true now, and it was not before.");

	name = attach(&wanted);
	AtEOXact_GUC(true, nestlevel);
	error_context_stack = callback.previous;

	PG_RETURN_DATUM(DirectFunctionCall1(namein, CStringGetDatum(name)));
}
