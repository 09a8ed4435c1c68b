/*-------------------------------------------------------------------------
 *
 * row_mapped.c
 *		Rows whose events a mapper makes.
 *
 * A mapper is a user's function that returns any number of events for a row
 * (mapper.c calls it).  This file turns what it returns into events and
 * records them.
 *
 * The rows of a statement go to the mapper in one query, which PostgreSQL can
 * inline and join set-wise.  If that query fails, the mapper is called again
 * for each row, so that only the rows that it fails for become dead letters.
 *
 * A mapper can write to the very table whose trigger calls it, and that
 * trigger then uses the same reader.  So while a mapper runs, nothing of ours
 * is in the reader's per_row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "log/event.h"
#include "log/shmem.h"
#include "record/repeats.h"
#include "record/row_mapped.h"
#include "settings.h"

/*
 * Places for event_ids of a statement, to find those that several events have;
 * see repeats.c.
 */
#define REPEATS_PLACES	1024

/*
 * Fills in *error from what the mapper has raised.  "key" is the row's key, or
 * NULL.
 */
static void
explain_mapper_error(const ErrorData *mapper_error, const char *key,
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

	/* The mapper's own hint comes first. */
	error->hint = mapper_error->hint != NULL ? mapper_error->hint :
		mapper_error->sqlerrcode == ERRCODE_INSUFFICIENT_PRIVILEGE ?
		"A mapper runs with the rights of whoever writes the row. Grant them, or declare the mapper SECURITY DEFINER." :
		psprintf("Mend the mapper with CREATE OR REPLACE FUNCTION%s.",
				 onside_mapper_error_place(mapper_error));
}

/*
 * The mapper has failed for this row.  With on_invalid_event = error its own
 * error is raised again, with the row's key and the table added.  Otherwise a
 * dead letter is written, which has no more of the event than its name.
 */
static void
refuse_row(OnsideRowReader *reader, Relation rel, TupleTableSlot *row,
		   ErrorData *mapper_error)
{
	char	   *key = onside_row_key(rel, row);
	OnsideEvent event = {0};
	OnsideEventError error = {0};

	/* The mapper's own error, with the row in its context. */
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

	/* Let the row through, without an event. */
	event.event_name = reader->event_name;
	event.name_is_checked = reader->name_is_valid;
	explain_mapper_error(mapper_error, key, &error);
	onside_row_let_through(reader, rel, &event, &error);
}

/*
 * Does the event have the fields that backfill needs?  A trigger needs none.
 */
static bool
has_own_fields(OnsideRowReader *reader, const OnsideEvent *event)
{
	return reader->backfill == NULL ||
		(event->has_event_id && event->has_event_datetime);
}

/*
 * Raises an error if backfill's event lacks a field that belongs to the row,
 * whatever on_invalid_event says: see require_own_id() in row.c.
 */
static void
require_own_fields(OnsideRowReader *reader, Relation rel,
				   const OnsideEvent *event)
{
	char	   *key;

	if (has_own_fields(reader, event))
		return;

	/* The row's key helps to find what the mapper makes NULL. */
	key = onside_row_key(rel, reader->row);
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

/*
 * Fills in what the mapper may leave out, and checks the event.  False if it
 * is not valid.
 */
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
		onside_row_fresh_id(reader, event);
	if (onside_event_check(event, error))
		return true;

	/* The check names a field; who reads this looks for the mapper. */
	if (event->payload == NULL && strcmp(error->field, "payload") == 0)
		error->message = psprintf("payload, made by mapper %s, must not be null",
								  onside_mapper_name(reader->mapper));
	return false;
}

/*
 * Warns if events of one statement have the same event_id: the API would
 * ignore all of these but one.  A backfill is warned once.
 */
static void
warn_of_repeats(OnsideRowReader *reader, Relation rel,
				const OnsideRepeats *repeats)
{
	int64		events;
	int64		found = onside_repeats_found(repeats, &events);
	OnsideSlot *slot = onside_slot_find(MyDatabaseId);

	if (found == 0)
		return;

	/* The view "stats" counts them, whoever sees the WARNING. */
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
 * Records one event that the mapper has made.  False if the event has to end a
 * backfill with an error, and nobody knows which row the event is of.
 */
static bool
record_result(OnsideRowReader *reader, Relation rel, OnsideEvent *event,
			  OnsideRepeats *repeats, OnsideAppend **append,
			  MemoryContext append_context)
{
	bool		row_is_unknown = reader->backfill != NULL &&
		reader->row == NULL;
	OnsideEventError error;
	bool		valid;

	if (!onside_row_is_due(reader, event->has_event_datetime,
						   event->event_datetime))
		return true;

	/* Before check_result(), which fills in what is missing. */
	if (reader->row != NULL)
		require_own_fields(reader, rel, event);
	else if (!has_own_fields(reader, event))
		return false;

	/* Which row it was is found out when the rows are recorded one by one. */
	valid = check_result(reader, event, &error);
	if (!valid && row_is_unknown &&
		onside_on_invalid_event != ONSIDE_INVALID_DEAD_LETTER)
		return false;

	/* An event_id that was made here just now repeats none. */
	onside_row_settle(reader, rel, event, valid ? NULL : &error, append,
					  append_context);
	if (valid && !event->id_is_fresh)
		onside_repeats_add(repeats, &event->event_id);
	return true;
}

/*
 * Records the events that the mapper has made of this number of rows.  Of one
 * row, reader->row is that row; of several, it is NULL.  A row without an
 * event leaves no result, so such rows are counted by what is missing.
 *
 * False as for record_result(): then the caller has the rows recorded one by
 * one, and the error names the row.  It also undoes what was recorded here.
 */
static bool
record_results(OnsideRowReader *reader, Relation rel, int64 rows,
			   Tuplestorestate *results, TupleTableSlot *slot,
			   OnsideAppend **append, MemoryContext append_context)
{
	MemoryContext context = CurrentMemoryContext;
	int64		skipped = Max(rows - tuplestore_tuple_count(results), 0);
	OnsideRepeats *repeats = NULL;
	bool		done = true;

	/* One event repeats nothing. */
	if (tuplestore_tuple_count(results) > 1)
		repeats = onside_repeats_make(REPEATS_PLACES);

	/* Each result lives in per_row. */
	while (done && tuplestore_gettupleslot(results, true, false, slot))
	{
		OnsideEvent event;

		CHECK_FOR_INTERRUPTS();
		MemoryContextSwitchTo(reader->per_row);
		if (reader->deferred != NULL)
			onside_deferred_next_event(reader->deferred);
		onside_mapper_read_event(slot, &event);
		if (event.has_installation_id)
			done = record_result(reader, rel, &event, repeats, append,
								 append_context);
		else
			skipped++;
		MemoryContextSwitchTo(context);
		MemoryContextReset(reader->per_row);
	}

	/* If the rows are recorded again one by one, that counts. */
	if (done && skipped > 0)
		onside_row_count_skipped(reader, skipped);
	if (done)
		warn_of_repeats(reader, rel, repeats);
	if (repeats != NULL)
		pfree(repeats);
	return done;
}

/*
 * Calls the mapper for one row, and records what it returns.  The results are
 * read when the mapper has returned, and live in a memory context of this
 * call.
 */
void
onside_row_mapped_record(OnsideRowReader *reader, Relation rel,
						 TupleTableSlot *row, OnsideAppend **append)
{
	MemoryContext per_call = AllocSetContextCreate(CurrentMemoryContext,
												   "onside_attribution mapper call",
												   ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(per_call);
	TupleTableSlot *slot;
	Tuplestorestate *results = onside_mapper_results(&slot);
	OnsideDeferred *deferred = reader->deferred;
	ErrorData  *error = onside_mapper_call(reader->mapper, row, NULL, results);

	/*
	 * If the mapper has written to the table, the reader has served those rows
	 * in between, and has to be told again which row this is.
	 */
	reader->deferred = deferred;
	reader->row = row;
	if (error != NULL)
		refuse_row(reader, rel, row, error);
	else
		(void) record_results(reader, rel, 1, results, slot, append, old);
	ExecDropSingleTupleTableSlot(slot);
	tuplestore_end(results);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(per_call);
}

/*
 * Calls the mapper for all rows in one query.  An error of the mapper is
 * dropped here: the caller then has the mapper called for each row, where the
 * error comes again, about a row.
 */
bool
onside_row_mapped_record_all(OnsideRowReader *reader, TriggerData *trigdata,
							 OnsideAppend **append)
{
	int64		rows = tuplestore_tuple_count(trigdata->tg_newtable);
	TupleTableSlot *slot;
	Tuplestorestate *results = onside_mapper_results(&slot);
	bool		done = onside_mapper_call(reader->mapper, NULL, trigdata,
										  results) == NULL;

	reader->row = NULL;
	done = done &&
		record_results(reader, trigdata->tg_relation, rows, results, slot,
					   append, CurrentMemoryContext);
	ExecDropSingleTupleTableSlot(slot);
	tuplestore_end(results);
	return done;
}

/*
 * Calls the mapper for one row of a look.  The row is invalid if one of its
 * events is, and skipped if it has none.
 */
OnsideRowOutcome
onside_row_mapped_try(OnsideRowReader *reader, TupleTableSlot *row,
					  OnsideEventError *error)
{
	TupleTableSlot *slot;
	Tuplestorestate *results = onside_mapper_results(&slot);
	OnsideRowOutcome outcome = ONSIDE_ROW_SKIPPED;
	ErrorData  *mapper_error = onside_mapper_call(reader->mapper, row, NULL,
												  results);

	/* The mapper has failed: that is all there is to say. */
	if (mapper_error != NULL)
	{
		explain_mapper_error(mapper_error, NULL, error);
		outcome = ONSIDE_ROW_DEAD_LETTER;
	}

	/* Its events, up to the first invalid one. */
	while (mapper_error == NULL && outcome != ONSIDE_ROW_DEAD_LETTER &&
		   tuplestore_gettupleslot(results, true, false, slot))
	{
		OnsideEvent event;

		onside_mapper_read_event(slot, &event);

		/* An event without an installation_id is skipped, like such a row. */
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
