/*-------------------------------------------------------------------------
 *
 * attach_plan.c
 *		Which triggers an attachment takes.
 *
 * A statement-level trigger is far cheaper, so we make one wherever it sees
 * every row.  We make a row-level trigger if there is a condition on rows, if
 * both INSERT and UPDATE fire the trigger, if it is deferred, or if rows come
 * in through another table (partitions, inheritance).
 *
 * An attachment takes two triggers where INSERT and UPDATE have different
 * conditions: for "becomes", and for a condition on OLD, since an INSERT has
 * no OLD.
 *
 * Called by attach.c, which has locked the table and its partitions, and
 * carries out the command that onside_attach_command() returns.  This file
 * changes nothing.  It raises an error for a condition or "becomes" that
 * cannot be used.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_inherits.h"
#include "catalog/pg_trigger.h"
#include "common/hashfn.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "attach/attach_plan.h"
#include "attach/when.h"
#include "compat.h"
#include "log/tables.h"

/* How triggers' names begin; the second trigger's differs. */
#define TRIGGER_PREFIX			"onside_"
#define UPDATE_TRIGGER_PREFIX	"onside2_"

/*
 * The trigger's name, which is the same for the same event.  A name that is
 * too long is cut, and ends in a hash of the event's name.
 */
static char *
make_trigger_name(const char *prefix, const char *event_name)
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

/*
 * Does a statement-level trigger on this table see every row?  It does not see
 * rows that a statement on a parent writes.
 */
static bool
all_rows_come_in_here(Relation rel)
{
	return rel->rd_rel->relkind == RELKIND_RELATION &&
		!rel->rd_rel->relispartition &&
		!has_superclass(RelationGetRelid(rel)) &&
		!has_subclass(RelationGetRelid(rel));
}

/*
 * Warns of UPDATEs that move a row to another partition.  To row-level
 * triggers they are a DELETE here and an INSERT there.  An event of UPDATE is
 * not reported then, though the move may be what its condition waits for.  An
 * event of INSERT is reported again, which the API recognizes by a mapped
 * event_id alone.
 */
static void
warn_of_moves(Relation rel, const OnsideMapping *mapping, int16 events)
{
	bool		again = events == TRIGGER_TYPE_INSERT &&
		mapping->event_id == NULL && mapping->mapper == NULL;

	if (rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE ||
		!(again || events == TRIGGER_TYPE_UPDATE))
		return;
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 again ?
			 errmsg("an UPDATE that moves a row of \"%s\" to another partition is reported as another event",
					RelationGetRelationName(rel)) :
			 errmsg("an UPDATE that moves a row of \"%s\" to another partition is not reported",
					RelationGetRelationName(rel)),
			 errdetail("To triggers it is a DELETE here and an INSERT there."),
			 again ?
			 errhint("Map event_id to the table's key, by which a repetition is recognized.") :
			 errhint("Attach the event to INSERT OR UPDATE, with a condition on NEW alone, and with event_id, by which a repetition is recognized.")));
}

/* Appends a trigger to the plan. */
static List *
add_trigger(List *triggers, const OnsideWanted *wanted, const char *prefix,
			int16 events, const char *condition)
{
	OnsideNewTrigger *trigger = palloc(sizeof(OnsideNewTrigger));

	trigger->name = make_trigger_name(prefix, wanted->mapping->event_name);
	trigger->events = events;
	trigger->condition = condition;
	return lappend(triggers, trigger);
}

/*
 * A row that moves to another partition is inserted there, and for "becomes"
 * the INSERT trigger reports the row again.  With an event_id the API ignores
 * the repetition, so we insist on an event_id.
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
 * For "becomes", the INSERT trigger's condition is the expression.  The UPDATE
 * trigger's condition is that the expression is true of NEW and was not true
 * of OLD.
 */
List *
onside_attach_plan(Relation rel, const OnsideWanted *wanted)
{
	const int16 both = TRIGGER_TYPE_INSERT | TRIGGER_TYPE_UPDATE;
	List	   *triggers = NIL;
	Node	   *when = NULL;

	/* Two triggers: a row becomes so by an INSERT, or by an UPDATE. */
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

	/* Without OLD, one trigger will do for all. */
	if (wanted->condition != NULL)
		when = onside_when_transform(rel, "condition", wanted->condition,
									 (wanted->events & TRIGGER_TYPE_UPDATE) != 0);
	warn_of_moves(rel, wanted->mapping, wanted->events);
	if (wanted->events != both || when == NULL || !onside_when_has_old(when))
		return add_trigger(NIL, wanted, TRIGGER_PREFIX, wanted->events,
						   wanted->condition);

	/* With OLD, which an INSERT lacks, the condition is for UPDATE alone. */
	triggers = add_trigger(NIL, wanted, TRIGGER_PREFIX, TRIGGER_TYPE_INSERT,
						   NULL);
	return add_trigger(triggers, wanted, UPDATE_TRIGGER_PREFIX,
					   TRIGGER_TYPE_UPDATE, wanted->condition);
}

/*
 * onside_attach_plan() has found the condition to be one expression by itself,
 * so its text cannot close the parenthesis and go on with something else.
 */
char *
onside_attach_command(Relation rel, const OnsideWanted *wanted,
					  const OnsideNewTrigger *trigger)
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
					 onside_mapping_table_name(RelationGetRelid(rel)),
					 wanted->deferred ? " DEFERRABLE INITIALLY DEFERRED" : "");

	/* A statement-level trigger reads all rows from a transition table. */
	appendStringInfoString(&command, for_each_row ? " FOR EACH ROW" :
						   " REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT");

	/* The line end ends a comment that the condition may end in. */
	if (trigger->condition != NULL)
		appendStringInfo(&command, " WHEN (%s\n)", trigger->condition);
	appendStringInfoString(&command,
						   " EXECUTE FUNCTION " ONSIDE_SCHEMA ".track_row(");

	/* The mapping: a trigger's arguments are all that is stored of it. */
	foreach(lc, onside_mapping_args(wanted->mapping))
	{
		appendStringInfo(&command, "%s%s", separator,
						 quote_literal_cstr(lfirst(lc)));
		separator = ", ";
	}
	appendStringInfoChar(&command, ')');
	return command.data;
}
