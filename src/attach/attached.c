/*-------------------------------------------------------------------------
 *
 * attached.c
 *		What is attached, and detach.
 *
 * An attached event is nothing but a trigger that calls track_row.  So the view
 * "attached" reads everything from triggers, by trigger_mapping(), and detach
 * drops triggers.  DROP TRIGGER is executed as the caller, and takes the lock.
 * Reading takes AccessShareLock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "catalog/namespace.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "nodes/value.h"
#include "parser/parse_func.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "attach/attachable.h"
#include "attach/attached.h"
#include "compat.h"
#include "log/tables.h"
#include "record/citus.h"
#include "record/mapping.h"
#include "record/purchase.h"

PG_FUNCTION_INFO_V1(onside_detach);
PG_FUNCTION_INFO_V1(onside_trigger_mapping);

/* ----------
 * Finding the triggers
 * ----------
 */

/*
 * OID of track_row(), for a caller who names it: raises 42501 without USAGE on
 * its schema, and 42883 if there is no such function.
 */
static Oid
track_row_oid(void)
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

/*
 * Finds the table's own triggers that report this event.  A clone in a
 * partition belongs to the partitioned table's trigger, and a trigger whose
 * arguments are not understood reports no event.
 */
List *
onside_attached_triggers(Relation rel, const char *event_name)
{
	List	   *triggers = NIL;
	Oid			function = track_row_oid();
	TriggerDesc *desc = CopyTriggerDesc(rel->trigdesc);

	for (int i = 0; desc != NULL && i < desc->numtriggers; i++)
	{
		Trigger    *trigger = &desc->triggers[i];
		OnsideMapping *mapping;
		OnsideEventError error;

		/*
		 * A trigger of a constraint, or a clone, cannot be dropped by itself.
		 */
		if (trigger->tgfoid != function || trigger->tgisinternal ||
			trigger->tgisclone)
			continue;
		mapping = onside_mapping_parse(trigger->tgnargs, trigger->tgargs,
									   &error);
		if (mapping != NULL && strcmp(mapping->event_name, event_name) == 0)
			triggers = lappend(triggers, trigger);
	}
	return triggers;
}

/* ----------
 * detach
 * ----------
 */

/*
 * Raises an error if this transaction still has rows to report at its end:
 * PostgreSQL would drop the trigger together with them.  Other sessions' rows
 * need no check, since their locks keep DROP TRIGGER waiting.
 */
static void
refuse_pending(Relation rel, const char *event_name)
{
	List	   *relids = find_all_inheritors(RelationGetRelid(rel), NoLock,
											 NULL);
	ListCell   *lc;

	foreach(lc, relids)
	{
		if (!AfterTriggerPendingOnRel(lfirst_oid(lc)))
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("event \"%s\" cannot be detached from table \"%s\": this transaction has rows that are reported at its end",
						event_name, RelationGetRelationName(rel)),
				 errhint("Commit first, or have them reported now by SET CONSTRAINTS ALL IMMEDIATE."),
				 errtable(rel)));
	}
}

/*
 * detach(source, event_name): drops the triggers, as the caller, who must own
 * the table.  Returns false if there are none.
 */
Datum
onside_detach(PG_FUNCTION_ARGS)
{
	Relation	rel;
	char	   *event_name;
	char	   *table;
	List	   *names = NIL;
	ListCell   *lc;
	OnsideCitusTable citus;
	ErrorContextCallback callback;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("detach: %s must not be null",
						PG_ARGISNULL(0) ? "source" : "event_name"),
				 errhint("See the view onside_attribution.attached.")));

	/* Find the triggers.  Their names are copies, so no lock is kept. */
	event_name = text_to_cstring(PG_GETARG_TEXT_PP(1));
	onside_attachable_refuse_shard("detach", PG_GETARG_OID(0));
	citus = onside_citus_table(PG_GETARG_OID(0));
	rel = relation_open(PG_GETARG_OID(0), AccessShareLock);
	foreach(lc, onside_attached_triggers(rel, event_name))
	{
		Trigger    *trigger = lfirst(lc);

		names = lappend(names, trigger->tgname);

		/*
		 * A deferred event may still have to be recorded in this transaction.
		 */
		if (trigger->tgdeferrable)
			refuse_pending(rel, event_name);
	}
	table = onside_mapping_table_name(RelationGetRelid(rel));
	relation_close(rel, AccessShareLock);

	/* An event that takes two triggers loses both. */
	callback.callback = onside_citus_trigger_error;
	callback.arg = &citus;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	SPI_connect();
	foreach(lc, names)
	{
		char	   *command = psprintf("DROP TRIGGER %s ON %s",
									   quote_identifier(lfirst(lc)), table);

		if (SPI_execute(command, false, 0) != SPI_OK_UTILITY)
			elog(ERROR, "could not execute \"%s\"", command);
	}
	SPI_finish();
	error_context_stack = callback.previous;

	PG_RETURN_BOOL(names != NIL);
}

/* ----------
 * attached
 * ----------
 */

/* The mapping of the payload as attach() takes it: keys and columns. */
static Datum
payload_mapping(const OnsideMapping *mapping)
{
	OnsideJsonbBuilder builder = {0};

	onside_jsonb_push(&builder, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < mapping->npayload; i++)
	{
		onside_push_string(&builder, WJB_KEY, mapping->payload[i].key);
		onside_push_string(&builder, WJB_VALUE, mapping->payload[i].column);
	}
	onside_jsonb_push(&builder, WJB_END_OBJECT, NULL);
	return JsonbPGetDatum(JsonbValueToJsonb(builder.result));
}

/* Sets a column of the result. */
static void
set_column_text(Datum *values, bool *nulls, int i, const char *text)
{
	nulls[i] = text == NULL;
	if (!nulls[i])
		values[i] = CStringGetTextDatum(text);
}

/*
 * trigger_mapping(trigger oid).  NULL if there is no such trigger, or its
 * arguments are not understood: somebody may have made it by hand.
 */
Datum
onside_trigger_mapping(PG_FUNCTION_ARGS)
{
	TupleDesc	tupdesc;
	OnsideMapping *mapping;
	Datum		values[6] = {0};
	bool		nulls[6] = {0};

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	(void) onside_mapping_find(PG_GETARG_OID(0), NULL, &mapping);

	/* The view then shows a trigger without an event. */
	if (mapping == NULL)
		PG_RETURN_NULL();

	/* Either columns or a mapper; the other part is NULL. */
	set_column_text(values, nulls, 0, mapping->event_name);
	set_column_text(values, nulls, 1, mapping->installation_id);
	nulls[2] = mapping->mapper != NULL;
	if (!nulls[2])
		values[2] = payload_mapping(mapping);
	set_column_text(values, nulls, 3, mapping->event_datetime);
	set_column_text(values, nulls, 4, mapping->event_id);
	set_column_text(values, nulls, 5, mapping->mapper);

	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc),
													  values, nulls)));
}
