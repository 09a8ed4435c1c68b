/*-------------------------------------------------------------------------
 *
 * attach.c
 *		attach: makes the triggers that report a table's rows.
 *
 * The result is a plain trigger that calls track_row, so that pg_dump, psql
 * and DROP TRIGGER treat it as any other.  attach_args.c reads the arguments,
 * attach_plan.c says which triggers they take.
 *
 * The trigger is made by a CREATE TRIGGER command, as the caller.  So
 * PostgreSQL checks the privileges: TRIGGER on the table and its partitions,
 * EXECUTE on track_row.  Event triggers and other extensions see the command.
 *
 * No step here has other rights than the caller's.  That matters, because
 * looking at a table can run its owner's code: PostgreSQL evaluates the
 * immutable parts of a partition key or an index expression when it reads
 * them, and a literal in the condition can be of a type whose input runs the
 * CHECK of a domain.  CREATE TRIGGER would run that code, too.
 *
 * Before CREATE TRIGGER everything that can be wrong with the arguments is
 * checked, so that error messages name the argument.  The caller's privileges
 * are checked first: a caller who may not make the trigger must not make
 * purchases wait.  Purchases queue behind a session that waits for a lock, so
 * attach() waits for lock_timeout at most, or for LOCK_TIMEOUT if lock_timeout
 * is not set.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relation.h"
#include "access/xact.h"
#include "catalog/pg_inherits.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"

#include "attach/attach_args.h"
#include "attach/attach_plan.h"
#include "attach/attachable.h"
#include "attach/look.h"
#include "attempt.h"
#include "compat.h"
#include "log/event.h"
#include "log/namespace.h"
#include "record/citus.h"
#include "record/column.h"
#include "record/row_reader.h"

PG_FUNCTION_INFO_V1(onside_attach);

/* How long attach() waits for a lock if lock_timeout is not set. */
#define LOCK_TIMEOUT	"2s"

/* Raises an error if the column cannot become the field. */
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

/* Checks each column that the mapping names. */
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

		/* Neither a partial index nor one that is checked later will do. */
		result |= form->indisunique && form->indisvalid && form->indimmediate &&
			form->indnkeyatts == 1 && form->indkey.values[0] == attnum &&
			RelationGetIndexPredicate(index) == NIL;
		index_close(index, AccessShareLock);
	}
	list_free(indexes);
	return result;
}

/*
 * Notes in the mapping what an event_id made of a key begins with: the
 * database's namespace and the table's name, as they are now.  A table that is
 * renamed, or restored elsewhere, reports the same events.
 */
static void
note_key(Relation rel, OnsideMapping *mapping)
{
	pg_uuid_t	id;

	if (mapping->event_id == NULL)
		return;

	/* The namespace of the database, from its table of one row. */
	if (!onside_namespace_read(&id))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("attach: " ONSIDE_NAMESPACE_LOST),
				 errhint(ONSIDE_NAMESPACE_HINT)));
	mapping->id_namespace = onside_column_uuid_text(&id);
	mapping->id_source = onside_row_id_source(RelationGetRelid(rel));

	/* It is no error: several rows can be meant to be one event. */
	if (!is_unique(rel, mapping->event_id))
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("column \"%s\" of \"%s\", mapped to event_id, is not unique",
						mapping->event_id, RelationGetRelationName(rel)),
				 errdetail("Rows with the same value are one event to the API: it takes the first and ignores the others."),
				 errhint("Map the primary key, or add a unique index on the column.")));
}

/* A deferred trigger knows by the primary key which rows it has seen. */
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

/* Error context: the hint for a lock that was not to be had. */
static void
lock_error(void *arg)
{
	if (geterrcode() == ERRCODE_LOCK_NOT_AVAILABLE)
		errhint("Another session uses the table; see pg_locks. Try again, or set lock_timeout to wait longer.");
}

/* Error context: the hint for a privilege that the caller lacks. */
static void
privilege_error(void *arg)
{
	if (geterrcode() == ERRCODE_INSUFFICIENT_PRIVILEGE)
		errhint("attach makes a trigger, as whoever calls it. That takes TRIGGER on the table, and on the partitions that it has, and USAGE on its schema: have the owner GRANT them, or call attach as the owner.");
}

/*
 * Raises 42501 for a caller who may not make the trigger, before any lock is
 * taken: such a caller must not make others wait.  CREATE TRIGGER checks the
 * privileges again, under its locks.
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

	/* The trigger gets a clone in each partition. */
	onside_attachable_require_schema(relid);
	onside_attachable_require(relid, ACL_TRIGGER);
	if (get_rel_relkind(relid) == RELKIND_PARTITIONED_TABLE)
		foreach(lc, find_all_inheritors(relid, NoLock, NULL))
			onside_attachable_require(lfirst_oid(lc), ACL_TRIGGER);
	error_context_stack = callback.previous;
}

/*
 * Each node reports each row of a reference table.  So each event needs an
 * event_id, by which the API sees that these are the same event.
 */
static void
check_reference_table(const OnsideWanted *wanted)
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
 * Sets lock_timeout in Citus's sessions on other nodes, too: they wait for
 * locks as we do, and meanwhile purchases queue.  Citus sends a SET LOCAL
 * command to them if the command is in a transaction block, which a DO block
 * counts as.  Here the setting is saved before, so that it ends with attach();
 * there it has to be set back.
 */
static void
set_lock_timeout_elsewhere(int timeout)
{
	char	   *command = psprintf("DO LANGUAGE plpgsql 'BEGIN SET LOCAL lock_timeout = %d; END'",
								   timeout);
	char	   *value = psprintf("%d", LockTimeout);

	onside_set_for_now("citus.propagate_set_commands", "local");
	onside_set_for_now("lock_timeout", value);
	if (SPI_execute(command, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not execute \"%s\"", command);
}

/* Executes one CREATE TRIGGER command, and checks that it has worked. */
static void
make_trigger(Oid relid, const char *name, const char *command)
{
	if (SPI_execute(command, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not execute \"%s\"", command);

	/*
	 * The table's lock does not keep its schema from being renamed, and an
	 * event trigger can do anything.
	 */
	if (!OidIsValid(get_trigger_oid(relid, name, true)))
		elog(ERROR, "\"%s\" has made no trigger on the table", command);
}

/*
 * Plans the triggers under the table's lock, and returns their commands in the
 * same order.  The table stays locked.
 */
static List *
plan_triggers(const OnsideWanted *wanted, List **commands)
{
	Relation	rel = relation_open(wanted->relid, ShareRowExclusiveLock);
	List	   *triggers;
	ListCell   *lc;

	/* The locks that CREATE TRIGGER takes, too. */
	onside_attachable_warn(rel);
	if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
		(void) find_all_inheritors(wanted->relid, ShareRowExclusiveLock, NULL);

	/* Now that the table cannot change, check what is mapped. */
	if (wanted->mapping->mapper == NULL)
	{
		check_columns(rel, wanted->mapping);
		note_key(rel, wanted->mapping);
	}
	if (wanted->deferred)
		check_primary_key(rel);

	/*
	 * If there is such a trigger, CREATE TRIGGER would raise the same error,
	 * without a hint.
	 */
	triggers = onside_attach_plan(rel, wanted);
	foreach(lc, triggers)
	{
		OnsideNewTrigger *trigger = lfirst(lc);

		if (OidIsValid(get_trigger_oid(wanted->relid, trigger->name, true)))
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("trigger \"%s\" for relation \"%s\" already exists",
							trigger->name, RelationGetRelationName(rel)),
					 rel->rd_rel->relispartition ?
					 errhint("If it is one of the partitioned table, the rows of its partitions are reported already. To attach the event in another way, detach it first.") :
					 errhint("To attach the event in another way, detach it first.")));
		*commands = lappend(*commands,
							onside_attach_command(rel, wanted, trigger));
	}
	relation_close(rel, NoLock);
	return triggers;
}

/*
 * Executes the commands.  "lock_timeout" is the session's own, for Citus's
 * other nodes to go back to.
 */
static void
make_triggers(const OnsideWanted *wanted, OnsideCitusTable citus,
			  List *triggers, List *commands, int lock_timeout)
{
	ErrorContextCallback callback;
	ListCell   *lc;
	ListCell   *lc2;

	/* Other nodes must not wait for locks longer than we do. */
	SPI_connect();
	if (citus != ONSIDE_CITUS_NONE)
		set_lock_timeout_elsewhere(LockTimeout);

	/* Citus passes the commands on to the other nodes. */
	callback.callback = onside_citus_trigger_error;
	callback.arg = &citus;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	forboth(lc, triggers, lc2, commands)
		make_trigger(wanted->relid, ((OnsideNewTrigger *) lfirst(lc))->name,
					 lfirst(lc2));
	error_context_stack = callback.previous;

	/* Their sessions go on after this, with the caller's lock_timeout. */
	if (citus != ONSIDE_CITUS_NONE)
		set_lock_timeout_elsewhere(lock_timeout);
	SPI_finish();
}

/*
 * Looks at recent rows, makes the triggers, and then warns of what the look has
 * found: the warnings come last, where they are seen.  Returns the name of the
 * first trigger.
 */
static char *
attach_event(const OnsideWanted *wanted, int lock_timeout)
{
	OnsideCitusTable citus = onside_citus_table(wanted->relid);
	OnsideLook *look = NULL;
	List	   *triggers;
	List	   *commands = NIL;

	/*
	 * Nobody must wait for the look at recent rows, so it precedes the locks.
	 */
	if (citus == ONSIDE_CITUS_REFERENCE)
		check_reference_table(wanted);
	else if (citus == ONSIDE_CITUS_NONE)
		look = onside_look(wanted->relid, wanted->mapping,
						   wanted->becomes != NULL ? wanted->becomes :
						   wanted->condition, wanted->events);

	triggers = plan_triggers(wanted, &commands);
	make_triggers(wanted, citus, triggers, commands, lock_timeout);
	if (look != NULL)
		onside_look_warn(look);
	return ((OnsideNewTrigger *) linitial(triggers))->name;
}

/*
 * attach().  What needs no lock is checked first.  Then the waits begin: for
 * the locks of a mapper's tables, which is planned, and for the table's own.
 */
Datum
onside_attach(PG_FUNCTION_ARGS)
{
	OnsideWanted wanted = {0};
	ErrorContextCallback callback;
	char	   *name;
	int			nestlevel = NewGUCNestLevel();
	int			lock_timeout = LockTimeout;

	onside_attach_args_require(fcinfo);
	PreventCommandIfReadOnly("attach()");

	/* Whatever needs no lock is checked first. */
	wanted.relid = PG_GETARG_OID(0);
	onside_attachable_check(wanted.relid);
	onside_attachable_refuse_shard("attach", wanted.relid);
	check_privileges(wanted.relid);

	/* From here on there may be locks to wait for. */
	callback.callback = lock_error;
	callback.arg = NULL;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	if (lock_timeout == 0)
		onside_set_for_now("lock_timeout", LOCK_TIMEOUT);

	/* A mapper is planned, which locks the tables that it reads. */
	onside_attach_args_read(fcinfo, &wanted);
	name = attach_event(&wanted, lock_timeout);
	AtEOXact_GUC(true, nestlevel);
	error_context_stack = callback.previous;

	PG_RETURN_DATUM(DirectFunctionCall1(namein, CStringGetDatum(name)));
}
