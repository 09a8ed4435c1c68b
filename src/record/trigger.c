/*-------------------------------------------------------------------------
 *
 * trigger.c
 *		track_row: rows of a source table become events.
 *
 * PostgreSQL calls a row-level trigger once for each row, and a statement-level
 * trigger once with the whole transition table.  row_cache.c has the reader,
 * which knows what the trigger's arguments mean, and row.c records rows.  For a
 * deferred trigger, deferred.c reads the row again.
 *
 * Whoever writes to the table may not know that its rows are reported.  So
 * every error names the trigger and the table in its context.  An error about
 * a row also has the table and the column in its own fields (row_outcome.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/trigger.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"

#include "log/outbox.h"
#include "record/column.h"
#include "record/deferred.h"
#include "record/row.h"
#include "record/row_cache.h"

PG_FUNCTION_INFO_V1(onside_track_row);

/* Kept from one row of a statement to the next. */
typedef struct TriggerCall
{
	OnsideRowReader *reader;
	OnsideDeferred *deferred;	/* of a constraint trigger; or NULL */
	TriggerData *trigdata;		/* of the present call */
	char	   *schema;			/* of the table, for errors */
} TriggerCall;

/*
 * Raises an error if the trigger cannot report rows: somebody may have made it
 * by hand.
 */
static void
check_fired_right(TriggerData *trigdata)
{
	if (!TRIGGER_FIRED_AFTER(trigdata->tg_event) ||
		!(TRIGGER_FIRED_BY_INSERT(trigdata->tg_event) ||
		  TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event)))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("track_row must be fired AFTER INSERT or AFTER UPDATE"),
				 errhint("Make the trigger with onside_attribution.attach()."),
				 errtable(trigdata->tg_relation)));

	/* Without a transition table there are no rows to read. */
	if (TRIGGER_FIRED_FOR_STATEMENT(trigdata->tg_event) &&
		trigdata->tg_newtable == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("track_row FOR EACH STATEMENT needs a transition table"),
				 errhint("Add REFERENCING NEW TABLE AS new_rows to the trigger."),
				 errtable(trigdata->tg_relation)));
}

/*
 * Names the trigger in whatever goes wrong while it is at work.  The schema's
 * name is looked up before, since an error is no time to read the catalog.
 */
static void
trigger_error(void *arg)
{
	TriggerCall *call = (TriggerCall *) arg;

	errcontext("trigger \"%s\" on table \"%s.%s\"",
			   call->trigdata->tg_trigger->tgname, call->schema,
			   RelationGetRelationName(call->trigdata->tg_relation));
	if (geterrcode() == ERRCODE_CONNECTION_FAILURE &&
		GetConfigOption("citus.enable_local_execution", true, false) != NULL)
		errhint("If Citus is inserting what it selects here into other servers, too: SET citus.enable_local_execution = off, or attach with deferred => true.");
}

/*
 * The row that a trigger at row level is about; NULL if it is no event any
 * more.
 */
static TupleTableSlot *
find_trigger_row(TriggerData *trigdata, TriggerCall *call)
{
	if (call->deferred != NULL)
		return onside_deferred_row(call->deferred, trigdata);
	if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
		return trigdata->tg_newslot;
	return trigdata->tg_trigslot;
}

/*
 * Records the rows that the trigger was fired for.  The settings of the session
 * are fixed meanwhile if a mapped column's text depends on them.
 */
static void
record_call(TriggerData *trigdata, TriggerCall *call)
{
	OnsideRowReader *reader = call->reader;
	OnsideAppend *append = NULL;
	int			nestlevel = 0;

	if (reader->needs_settings)
		nestlevel = onside_column_fix_settings();

	/* All rows at once, or this one. */
	if (TRIGGER_FIRED_FOR_STATEMENT(trigdata->tg_event))
		onside_row_record_all(reader, trigdata, &append);
	else
	{
		TupleTableSlot *row = find_trigger_row(trigdata, call);

		reader->deferred = call->deferred;
		if (row != NULL)
			onside_row_record(reader, trigdata->tg_relation, row, &append);
	}

	/* Without an event the outbox was not opened. */
	if (append != NULL)
		onside_append_end(append);
	if (reader->needs_settings)
		AtEOXact_GUC(true, nestlevel);
}

/*
 * The trigger function.  The first call of a statement gets a reader, which
 * fn_extra keeps for the calls for further rows.
 */
Datum
onside_track_row(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	ErrorContextCallback callback;
	TriggerCall *call = fcinfo->flinfo->fn_extra;
	MemoryContext old;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("track_row must be called as a trigger"),
				 errhint("Make the trigger with onside_attribution.attach().")));
	if (call == NULL)
	{
		old = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
		call = palloc0(sizeof(TriggerCall));
		call->schema =
			get_namespace_name(RelationGetNamespace(trigdata->tg_relation));
		MemoryContextSwitchTo(old);
	}
	call->trigdata = trigdata;

	/* From here on every error's context has the trigger's name. */
	callback.callback = trigger_error;
	callback.arg = call;
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	check_fired_right(trigdata);

	/* What is needed for all rows of the statement. */
	if (call->reader == NULL)
	{
		call->reader = onside_row_cache_get(trigdata->tg_trigger,
											trigdata->tg_relation,
											fcinfo->flinfo->fn_mcxt);
		call->reader->many = TRIGGER_FIRED_FOR_STATEMENT(trigdata->tg_event);
		if (trigdata->tg_trigger->tgdeferrable)
			call->deferred =
				onside_deferred_make(trigdata,
									 text_to_cstring(call->reader->event_name),
									 fcinfo->flinfo->fn_mcxt);
		fcinfo->flinfo->fn_extra = call;
	}

	/* A statement may write one row, or more. */
	record_call(trigdata, call);
	call->reader->many = true;	/* if there is another row */

	error_context_stack = callback.previous;
	return PointerGetDatum(NULL);
}
