/*-------------------------------------------------------------------------
 *
 * mapper.c
 *		Calling a user's function that makes events of a table's rows.
 *
 * A mapper is called in a query, by SPI, because PostgreSQL can then inline
 * it: over a transition table its joins are made for all rows at once.
 *
 * For one row the plan is generic, and kept.  SPI plans again when anything in
 * the plan has changed, also by ALTER FUNCTION.  The plan is part of the row
 * reader, which is forgotten when the table has changed.  For a transition
 * table the query is planned each time, for the number of rows that there are:
 * a plan for ten rows would scan the joined table a million times for a
 * million rows.
 *
 * Rights: the mapper runs with the rights of whoever writes the row, like any
 * trigger's code.  A kept plan, in which the mapper is inlined, can be older
 * than a SET ROLE, so EXECUTE is checked in each call.
 *
 * Names: the search_path is the one that attach() has noted, with pg_temp
 * last.  So the session that writes the row does not decide what a name in the
 * mapper means.
 *
 * Errors: a call is a subtransaction.  The results are collected in it, and
 * appended to the outbox when it has ended, so it takes no transaction number
 * unless the mapper writes.  An error that says nothing about the row
 * (passes_through()) is raised again.
 *
 * Memory: the results are in a tuplestore, beyond work_mem on disk.  It is
 * made outside of the subtransaction, whose end would delete its file.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/tupconvert.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "executor/tstoreReceiver.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/value.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/expandedrecord.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/regproc.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#include "attempt.h"
#include "compat.h"
#include "log/tables.h"
#include "record/citus.h"
#include "record/mapper.h"

/* Columns of the type "event", in order. */
enum
{
	Anum_event_installation_id = 1,
	Anum_event_payload,
	Anum_event_event_datetime,
	Anum_event_event_id,
	Natts_event = Anum_event_event_id
};

struct OnsideMapper
{
	char	   *name;
	char	   *search_path;
	Oid			relid;			/* whose rows it takes */
	Oid			row_type;
	TupleConversionMap *map;	/* from a partition's rows; or NULL */
	SPIPlanPtr	plan;			/* for one row; NULL until then */
	MemoryContextCallback free_plan;
};

/* ----------
 * The function
 * ----------
 */

Oid
onside_mapper_event_type(void)
{
	Oid			schema = get_namespace_oid(ONSIDE_SCHEMA, true);

	if (!OidIsValid(schema))
		return InvalidOid;
	return GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid,
						   CStringGetDatum("event"),
						   ObjectIdGetDatum(schema));
}

/*
 * The schema of a mapper, and its name in that schema.  InvalidOid if there is
 * no such schema.
 */
static Oid
find_schema(const char *name, char **function_name)
{
	char	   *schema_name;
	List	   *names = textToQualifiedNameList(cstring_to_text(name));

	DeconstructQualifiedName(names, &schema_name, function_name);
	return schema_name == NULL ? InvalidOid :
		get_namespace_oid(schema_name, true);
}

Oid
onside_mapper_find(const char *name, Oid row_type)
{
	char	   *function_name;
	Oid			schema = find_schema(name, &function_name);

	if (!OidIsValid(schema) || !OidIsValid(row_type))
		return InvalidOid;
	return GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
						   CStringGetDatum(function_name),
						   PointerGetDatum(buildoidvector(&row_type, 1)),
						   ObjectIdGetDatum(schema));
}

/*
 * The shard of a table of Citus whose rows a function of this name takes.
 * When Citus takes in a table without distributing it, that table becomes the
 * shard, with its row type, and another one gets its name.
 */
static Oid
find_shard_taken(const char *name, Oid relid)
{
	char	   *function_name;
	Oid			schema = find_schema(name, &function_name);
	Oid			shard = InvalidOid;
	CatCList   *functions;

	if (!OidIsValid(schema))
		return InvalidOid;

	/*
	 * Whatever function of this name has one argument may take a shard's
	 * rows.
	 */
	functions = SearchSysCacheList1(PROCNAMEARGSNSP,
									CStringGetDatum(function_name));
	for (int i = 0; i < functions->n_members && !OidIsValid(shard); i++)
	{
		Form_pg_proc proc =
			(Form_pg_proc) GETSTRUCT(&functions->members[i]->tuple);
		Oid			taken;

		if (proc->pronamespace != schema || proc->pronargs != 1)
			continue;
		taken = get_typ_typrelid(proc->proargtypes.values[0]);
		if (OidIsValid(taken) && onside_citus_table_of_shard(taken) == relid)
			shard = taken;
	}
	ReleaseSysCacheList(functions);
	return shard;
}

Oid
onside_mapper_takes(const char *name, Oid relid)
{
	Oid			other;

	if (OidIsValid(onside_mapper_find(name, get_rel_type_id(relid))))
		return relid;

	/* A shard whose table has the mapper, or the other way round. */
	other = onside_citus_table_of_shard(relid);
	if (!OidIsValid(other) && onside_citus_table(relid) != ONSIDE_CITUS_NONE)
		other = find_shard_taken(name, relid);
	return OidIsValid(other) ? other : relid;
}

/*
 * Raises an error if the mapper does not exist, or the current user may not
 * call it.  Looked up in each call: either can change between two calls.
 */
static void
check_function(const OnsideMapper *mapper)
{
	Oid			function = onside_mapper_find(mapper->name, mapper->row_type);

	/* Dropped, renamed, moved, or its argument's type has changed. */
	if (!OidIsValid(function))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("mapper %s(%s) does not exist", mapper->name,
						format_type_be(mapper->row_type)),
				 onside_citus_is_here() ?
				 errhint("Where Citus made the table's shards before it knew of the mapper, or has made the table anew, CREATE OR REPLACE FUNCTION at the coordinator makes it on all nodes. Or detach the event with onside_attribution.detach().") :
				 errhint("Create it again, or detach the event with onside_attribution.detach().")));

	/* The caller is whoever writes the row. */
	if (onside_function_aclcheck(function, ACL_EXECUTE) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for mapper %s", mapper->name),
				 errhint("Whoever writes the row calls it: GRANT EXECUTE ON FUNCTION %s(%s) TO %s;",
						 mapper->name, format_type_be(mapper->row_type),
						 quote_identifier(GetUserNameFromId(GetUserId(), false)))));
}

/* ----------
 * Making it
 * ----------
 */

/*
 * The table to which the event was attached: the trigger of a partition can be
 * a clone of a clone, and the table a partition itself.
 */
static Oid
table_of_trigger(Trigger *trigger, Oid relid)
{
	Oid			parent = trigger->tgisclone ? trigger->tgoid : InvalidOid;

	/* Up to the trigger that is no clone. */
	while (OidIsValid(parent))
	{
		HeapTuple	tuple = onside_mapping_find(parent, NULL, NULL);

		if (tuple == NULL)
			elog(ERROR, "trigger %u does not exist", parent);
		parent = ((Form_pg_trigger) GETSTRUCT(tuple))->tgparentid;
		relid = ((Form_pg_trigger) GETSTRUCT(tuple))->tgrelid;
	}
	return relid;
}

/* SPI keeps a plan in a memory context of its own. */
static void
free_plan(void *arg)
{
	OnsideMapper *mapper = arg;

	if (mapper->plan != NULL)
		SPI_freeplan(mapper->plan);
}

/*
 * Nothing is looked up that a later ALTER or DROP FUNCTION could change.  If
 * the table or the partition changes, the caller makes another mapper.
 */
OnsideMapper *
onside_mapper_make(Trigger *trigger, Relation rel,
				   const OnsideMapping *mapping, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	OnsideMapper *mapper = palloc0(sizeof(OnsideMapper));

	mapper->name = pstrdup(mapping->mapper);
	mapper->search_path = pstrdup(onside_mapping_search_path(mapping));
	mapper->relid =
		onside_mapper_takes(mapper->name,
							table_of_trigger(trigger, RelationGetRelid(rel)));
	mapper->row_type = get_rel_type_id(mapper->relid);
	if (mapper->relid != RelationGetRelid(rel))
	{
		/* An ancestor of a table that is open cannot be altered. */
		Relation	table = relation_open(mapper->relid, AccessShareLock);

		mapper->map = convert_tuples_by_name(RelationGetDescr(rel),
											 RelationGetDescr(table));
		relation_close(table, AccessShareLock);
	}

	/* The plan comes with the first row, and goes with the context. */
	mapper->free_plan.func = free_plan;
	mapper->free_plan.arg = mapper;
	MemoryContextRegisterResetCallback(context, &mapper->free_plan);
	MemoryContextSwitchTo(old);
	return mapper;
}

const char *
onside_mapper_name(const OnsideMapper *mapper)
{
	return mapper->name;
}

Oid
onside_mapper_table(const OnsideMapper *mapper)
{
	return mapper->relid;
}

/* ----------
 * Results
 * ----------
 */

/*
 * The type "event" as this library knows it, made once in a session.  The type
 * in the catalog may have been altered.
 */
static TupleDesc
event_tupdesc(void)
{
	static TupleDesc tupdesc = NULL;

	if (tupdesc == NULL)
	{
		/* It must outlive the transaction. */
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
		List	   *names = list_make4(makeString("installation_id"),
									   makeString("payload"),
									   makeString("event_datetime"),
									   makeString("event_id"));

		tupdesc = BuildDescFromLists(names,
									 list_make4_oid(UUIDOID, JSONBOID,
													TIMESTAMPTZOID, UUIDOID),
									 list_make4_int(-1, -1, -1, -1),
									 list_make4_oid(InvalidOid, InvalidOid,
													InvalidOid, InvalidOid));
		MemoryContextSwitchTo(old);
	}
	return tupdesc;
}

Tuplestorestate *
onside_mapper_results(TupleTableSlot **slot)
{
	*slot = MakeSingleTupleTableSlot(event_tupdesc(), &TTSOpsMinimalTuple);
	return tuplestore_begin_heap(false, false, work_mem);
}

/* Column by column.  A column that is NULL is a field that the event lacks. */
void
onside_mapper_read_event(TupleTableSlot *slot, OnsideEvent *event)
{
	Datum	   *values = slot->tts_values;
	bool	   *nulls = slot->tts_isnull;

	slot_getallattrs(slot);
	memset(event, 0, sizeof(*event));

	/* The payload is not copied: it is in the slot, or detoasted. */
	event->has_installation_id = !nulls[Anum_event_installation_id - 1];
	if (event->has_installation_id)
		event->installation_id =
			*DatumGetUUIDP(values[Anum_event_installation_id - 1]);
	if (!nulls[Anum_event_payload - 1])
		event->payload = DatumGetJsonbP(values[Anum_event_payload - 1]);
	event->has_event_datetime = !nulls[Anum_event_event_datetime - 1];
	if (event->has_event_datetime)
		event->event_datetime =
			DatumGetTimestampTz(values[Anum_event_event_datetime - 1]);
	event->has_event_id = !nulls[Anum_event_event_id - 1];
	if (event->has_event_id)
		event->event_id = *DatumGetUUIDP(values[Anum_event_event_id - 1]);
}

/* ----------
 * Calling it
 * ----------
 */

/*
 * The row as a value of the type that the mapper takes.  Nothing is detoasted:
 * the mapper may not need the large values.
 */
static Datum
make_row_value(OnsideMapper *mapper, TupleTableSlot *row)
{
	HeapTuple	tuple = ExecFetchSlotHeapTuple(row, false, NULL);
	ExpandedRecordHeader *record =
		make_expanded_record_from_typeid(mapper->row_type, -1,
										 CurrentMemoryContext);

	if (mapper->map != NULL)
		tuple = execute_attr_map_tuple(tuple, mapper->map);
	expanded_record_set_tuple(record, tuple, false, false);
	return ExpandedRecordGetRODatum(record);
}

/*
 * Calls the mapper for one row.  The plan is generic, since to make a plan for
 * each row would cost more than the row itself.
 */
static void
call_for_row(OnsideMapper *mapper, TupleTableSlot *row, DestReceiver *dest)
{
	SPIExecuteOptions options = {0};

	if (mapper->plan == NULL)
	{
		char	   *query = psprintf("SELECT e.* FROM %s($1) e", mapper->name);
		SPIPlanPtr	plan = SPI_prepare_cursor(query, 1, &mapper->row_type,
											  CURSOR_OPT_GENERIC_PLAN);

		if (plan == NULL)
			elog(ERROR, "could not prepare \"%s\": %s", query,
				 SPI_result_code_string(SPI_result));

		/* Kept only now that it is complete: an error leaves nothing behind. */
		SPI_keepplan(plan);
		mapper->plan = plan;
	}

	/* The row is the only parameter. */
	options.params = makeParamList(1);
	options.params->params[0].value = make_row_value(mapper, row);
	options.params->params[0].isnull = false;
	options.params->params[0].pflags = PARAM_FLAG_CONST;
	options.params->params[0].ptype = mapper->row_type;
	options.dest = dest;
	if (SPI_execute_plan_extended(mapper->plan, &options) != SPI_OK_SELECT)
		elog(ERROR, "could not call mapper %s", mapper->name);
}

/*
 * Calls the mapper for all rows of a transition table, in one query.
 *
 * The cast is needed where functions of one name are the mappers of several
 * tables: a row of a transition table has no type of its own.  "(n.*)" is the
 * row; "n" alone would be a column of that name, if the table has one.
 *
 * An outer join would tell which rows have no event.  But it keeps the planner
 * from joining first what the mapper joins and calling purchase() afterwards.
 */
static void
call_for_all(OnsideMapper *mapper, TriggerData *trigdata, DestReceiver *dest)
{
	SPIExecuteOptions options = {0};
	char	   *query =
		psprintf("SELECT e.* FROM %s n, LATERAL %s((n.*)::%s) e",
				 quote_identifier(trigdata->tg_trigger->tgnewtable),
				 mapper->name, onside_mapping_table_name(mapper->relid));

	if (SPI_register_trigger_data(trigdata) != SPI_OK_TD_REGISTER)
		elog(ERROR, "could not register the transition table");
	options.dest = dest;
	if (SPI_execute_extended(query, &options) != SPI_OK_SELECT)
		elog(ERROR, "could not call mapper %s", mapper->name);
}

/* A call of the mapper: for a row, or for all rows of a transition table. */
typedef struct Call
{
	OnsideMapper *mapper;
	TupleTableSlot *row;		/* or NULL: all rows of */
	TriggerData *trigdata;
	DestReceiver *dest;
} Call;

/*
 * Calls the mapper, with the search_path that it was attached with.  Runs in a
 * subtransaction; see onside_mapper_call().
 */
static void
with_search_path(void *arg)
{
	Call	   *this = (Call *) arg;
	OnsideMapper *mapper = this->mapper;
	int			nestlevel = 0;

	/* To set it costs more than to compare it. */
	if (strcmp(namespace_search_path, mapper->search_path) != 0)
	{
		nestlevel = NewGUCNestLevel();
		onside_set_for_now("search_path", mapper->search_path);
	}

	/* EXECUTE is checked here, for a plan that is older than a SET ROLE. */
	check_function(mapper);
	SPI_connect();
	if (this->row != NULL)
		call_for_row(mapper, this->row, this->dest);
	else
		call_for_all(mapper, this->trigdata, this->dest);
	SPI_finish();
	if (nestlevel > 0)
		AtEOXact_GUC(true, nestlevel);
}

/*
 * Errors that say nothing about the row: a cancel, a transaction to be
 * repeated, or trouble of the server's.
 */
static bool
passes_through(int sqlstate)
{
	return ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_OPERATOR_INTERVENTION ||
		ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_TRANSACTION_ROLLBACK ||
		ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_INSUFFICIENT_RESOURCES ||
		ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_SYSTEM_ERROR ||
		ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_INTERNAL_ERROR;
}

/*
 * Calls the mapper in a subtransaction, which an error undoes with all that
 * the mapper did.  The results go to a tuplestore that was made before.
 */
ErrorData *
onside_mapper_call(OnsideMapper *mapper, TupleTableSlot *row,
				   TriggerData *trigdata, Tuplestorestate *results)
{
	DestReceiver *dest = CreateDestReceiver(DestTuplestore);
	Call		this = {mapper, row, trigdata, dest};
	ErrorData  *error;

	/* The results go into the tuplestore as rows of the type "event". */
	SetTuplestoreDestReceiverParams(dest, results, CurrentMemoryContext, false,
									event_tupdesc(),
									"a mapper must return onside_attribution.event");
	error = onside_attempt(with_search_path, &this, true);
	dest->rDestroy(dest);

	/* An error that is not the row's fault ends the statement. */
	if (error != NULL && passes_through(error->sqlerrcode))
		ReThrowError(error);
	return error;
}

/*
 * When a row type has lost a column, PostgreSQL says that a table is missing.
 * The error's position, in characters, leads to the name in the mapper's body.
 */
char *
onside_mapper_error_place(const ErrorData *error)
{
	const char *word = error->internalquery;
	int			len = 0;

	if (word == NULL || error->internalpos <= 0)
		return "";

	/* A name with its qualifiers: letters, digits, and what joins them. */
	word += pg_mbcharcliplen(word, strlen(word), error->internalpos - 1);
	while (word[len] != '\0' && (IS_HIGHBIT_SET(word[len]) ||
								 isalnum((unsigned char) word[len]) ||
								 strchr("._$", word[len]) != NULL))
		len++;
	return len == 0 ? "" : psprintf(" at \"%.*s\"", len, word);
}
