/*-------------------------------------------------------------------------
 *
 * utility_hook.c
 *		Commands that concern the workers.
 *
 * Five kinds:
 *
 * - CREATE, ALTER and DROP EXTENSION, in whatever form they come (CASCADE,
 *	 DROP OWNED, a restore): seen by the object access hook, acted on at commit.
 *	 See drop_guard.c for what DROP is refused for.
 *
 * - Commands on a database that fail while somebody is connected to it: DROP
 *	 DATABASE, ALTER DATABASE RENAME and SET TABLESPACE, CREATE DATABASE with it
 *	 as template.  Its worker is asked to leave, and kept out until the command
 *	 has ended, one way or the other.  A worker that does not notice, because it
 *	 waits for a lock, is told to by SIGTERM.  Waiting for it is bounded: if it
 *	 does not leave, the command says itself that somebody is connected.
 *
 * - ALTER TABLE of an attached table: see follow.c.
 *
 * - Whatever alters the extension's own tables: see shape_guard.c.
 *
 * - COMMIT PREPARED, which runs in a session that did not record the events
 *	 and so has no callback for them.  The last of them has their number.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_trigger.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "attach/follow.h"
#include "attempt.h"
#include "compat.h"
#include "log/commit.h"
#include "log/shape_guard.h"
#include "log/service.h"
#include "log/window.h"
#include "operate/control.h"
#include "operate/drop_guard.h"
#include "operate/utility_hook.h"

/* How long a command waits for a worker to leave, asked and told to; ms. */
#define ASK_TIMEOUT		500
#define LEAVE_TIMEOUT	5000

/* Hooks that were there before ours, which we call. */
static ProcessUtility_hook_type prev_process_utility;
static object_access_hook_type prev_object_access;

/* ----------
 * The extension comes and goes
 * ----------
 */

/* The name of an extension whose row this command has just made. */
static bool
is_our_extension(Oid extension)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		result = false;

	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extension));
	scan = systable_beginscan(rel, ExtensionOidIndexId, true, SnapshotSelf, 1,
							  &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		result = strcmp(NameStr(((Form_pg_extension) GETSTRUCT(tuple))->extname),
						"onside_attribution") == 0;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}

/* What an attached table may have to follow. */
static void
follow_change(ObjectAccessType access, Oid class_id, Oid object_id, int sub_id,
			  void *arg)
{
	if (class_id == RelationRelationId && sub_id > 0)
	{
		if (access == OAT_POST_ALTER)
			onside_follow_column(object_id, sub_id);
		else if (access == OAT_DROP)
			onside_follow_drop_column(object_id, sub_id);
	}
	if (class_id == TriggerRelationId && access == OAT_POST_CREATE)
		onside_follow_trigger(object_id);
	if (class_id == InheritsRelationId && access == OAT_POST_ALTER)
		onside_follow_parent(object_id,
							 ((ObjectAccessPostAlter *) arg)->auxiliary_id);
}

/* The object access hook: what a command makes, alters or drops. */
static void
object_access(ObjectAccessType access, Oid class_id, Oid object_id,
			  int sub_id, void *arg)
{
	if (prev_object_access)
		prev_object_access(access, class_id, object_id, sub_id, arg);

	if (access == OAT_DROP && class_id == RelationRelationId && sub_id == 0)
		onside_drop_guard_check(object_id);
	follow_change(access, class_id, object_id, sub_id, arg);

	if (class_id != ExtensionRelationId ||
		(access != OAT_POST_CREATE && access != OAT_POST_ALTER &&
		 access != OAT_DROP) ||
		!is_our_extension(object_id))
		return;

	if (access == OAT_POST_CREATE)
		onside_commit_want_worker();
	else
		onside_commit_wake(ONSIDE_WAKE_CHECK);
	if (access == OAT_DROP)
		onside_commit_wake_launcher(false);
}

/* ----------
 * Commands on a database
 * ----------
 */

/* The database that nobody may be connected to, or NULL. */
static const char *
exclusive_database(Node *stmt)
{
	ListCell   *lc;

	if (IsA(stmt, DropdbStmt))
		return ((DropdbStmt *) stmt)->dbname;

	if (IsA(stmt, RenameStmt) &&
		((RenameStmt *) stmt)->renameType == OBJECT_DATABASE)
		return ((RenameStmt *) stmt)->subname;

	if (IsA(stmt, AlterDatabaseStmt))
	{
		foreach(lc, ((AlterDatabaseStmt *) stmt)->options)
			if (strcmp(((DefElem *) lfirst(lc))->defname, "tablespace") == 0)
				return ((AlterDatabaseStmt *) stmt)->dbname;
	}

	if (IsA(stmt, CreatedbStmt))
	{
		foreach(lc, ((CreatedbStmt *) stmt)->options)
		{
			DefElem    *option = (DefElem *) lfirst(lc);

			if (strcmp(option->defname, "template") == 0 && option->arg != NULL)
				return defGetString(option);
		}
		return "template1";
	}
	return NULL;
}

static bool
may_create_databases(void)
{
	HeapTuple	tuple;
	bool		result = superuser();

	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (HeapTupleIsValid(tuple))
	{
		result |= ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	return result;
}

static bool
is_template(Oid database)
{
	HeapTuple	tuple;
	bool		result = false;

	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
		ReleaseSysCache(tuple);
	}
	return result;
}

/*
 * May this command be run on that database, here and by this role?  It checks
 * that itself, but only after we have disturbed the worker.
 */
static bool
may_run(Node *stmt, ProcessUtilityContext context, Oid database)
{
	if (!IsA(stmt, RenameStmt) &&
		(context != PROCESS_UTILITY_TOPLEVEL || IsTransactionBlock()))
		return false;
	if (IsA(stmt, CreatedbStmt))
		return may_create_databases() &&
			(is_template(database) || onside_owns_database(database));
	return onside_owns_database(database);
}

/*
 * Waits so many milliseconds until the slot's worker has left it and is not
 * connected to the database any more.  The former alone is not enough: DROP
 * DATABASE ... WITH (FORCE) would see it there and refuse to terminate a
 * superuser's process for an owner who is none.
 */
static bool
wait_for_exit(OnsideSlot *slot, int timeout)
{
	TimestampTz deadline =
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout);
	long		left = timeout;
	bool		over;

	ConditionVariablePrepareToSleep(&slot->worker_cv);
	while (!(over = onside_service_is_over(slot)) && left > 0)
	{
		(void) ConditionVariableTimedSleep(&slot->worker_cv, left,
										   onside_wait_event("OnsideAttributionWorkerExit"));
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
											   deadline);
	}
	ConditionVariableCancelSleep();
	return over;
}

/* Has the worker of a slot that we hold leave. */
static void
clear_slot(OnsideSlot *slot)
{
	onside_slot_wake(slot, ONSIDE_WAKE_CHECK);
	if (wait_for_exit(slot, ASK_TIMEOUT))
		return;
	onside_service_terminate(slot);
	(void) wait_for_exit(slot, LEAVE_TIMEOUT - ASK_TIMEOUT);
}

/* The slot that a command holds; volatile, since an error may come in between. */
typedef struct Hold
{
	OnsideSlot *volatile slot;	/* or NULL */
} Hold;

/*
 * Lets workers in again.  This is before the command's transaction ends.  A worker
 * that the launcher starts at once waits for the lock on the database, which the
 * command has until then, and finds the database as the command leaves it.
 */
static void
let_go(int code, Datum arg)
{
	OnsideSlot *slot = ((Hold *) DatumGetPointer(arg))->slot;

	if (slot == NULL)
		return;
	onside_service_let_go(slot);
	onside_launcher_wake(false);
}

/* Does the command name our extension to drop it? */
static bool
drops_extension(Node *stmt)
{
	ListCell   *lc;

	if (!IsA(stmt, DropStmt) ||
		((DropStmt *) stmt)->removeType != OBJECT_EXTENSION)
		return false;
	foreach(lc, ((DropStmt *) stmt)->objects)
		if (strcmp(strVal(lfirst(lc)), "onside_attribution") == 0)
			return true;
	return false;
}

/*
 * The transaction that is prepared under this name, or an invalid one.  Asks the
 * function beneath the view pg_prepared_xacts, past the privileges: a role that
 * may not call it may still commit what it has prepared.
 */
static FullTransactionId
find_prepared(const char *gid)
{
	LOCAL_FCINFO(fcinfo, 0);
	FmgrInfo	flinfo;
	ReturnSetInfo rsinfo = {.type = T_ReturnSetInfo};
	FullTransactionId next = ReadNextFullTransactionId();
	FullTransactionId result = InvalidFullTransactionId;

	rsinfo.allowedModes = SFRM_ValuePerCall;
	rsinfo.returnMode = SFRM_ValuePerCall;
	rsinfo.econtext = CreateStandaloneExprContext();
	fmgr_info(F_PG_PREPARED_XACT, &flinfo);
	InitFunctionCallInfoData(*fcinfo, &flinfo, 0, InvalidOid, NULL,
							 (Node *) &rsinfo);
	for (;;)
	{
		Datum		row = FunctionCallInvoke(fcinfo);
		bool		isnull;
		text	   *name;

		if (rsinfo.isDone != ExprMultipleResult)
			break;
		name = DatumGetTextPP(GetAttributeByNum(DatumGetHeapTupleHeader(row),
												2, &isnull));
		if (strcmp(text_to_cstring(name), gid) == 0)
			result = onside_widen_xid(DatumGetTransactionId(GetAttributeByNum(DatumGetHeapTupleHeader(row),
																			  1, &isnull)),
									  next);
	}
	FreeExprContext(rsinfo.econtext, true);
	return result;
}

/*
 * Counts the events of a transaction that this command has committed.  One that
 * has recorded none costs a look at the index.
 */
static void
count_prepared(void *arg)
{
	FullTransactionId xid = *(FullTransactionId *) arg;

	if (!FullTransactionIdIsValid(xid))
		return;
	PushActiveSnapshot(GetLatestSnapshot());
	onside_commit_count_prepared(onside_window_last_id(xid));
	PopActiveSnapshot();
}

static void
run_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
			ProcessUtilityContext context, ParamListInfo params,
			QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	if (prev_process_utility)
		prev_process_utility(pstmt, queryString, readOnlyTree, context,
							 params, queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context,
								params, queryEnv, dest, qc);
}

/* Runs a command that nobody may be connected to the database for. */
static void
run_without_worker(Oid database, PlannedStmt *pstmt, const char *queryString,
				   bool readOnlyTree, ProcessUtilityContext context,
				   ParamListInfo params, QueryEnvironment *queryEnv,
				   DestReceiver *dest, QueryCompletion *qc)
{
	Hold		hold = {NULL};

	/* Within, so that an error cannot leave the slot held. */
	PG_ENSURE_ERROR_CLEANUP(let_go, PointerGetDatum(&hold));
	{
		hold.slot = onside_service_hold(database);
		if (hold.slot != NULL)
			clear_slot(hold.slot);
		run_utility(pstmt, queryString, readOnlyTree, context, params,
					queryEnv, dest, qc);
	}
	PG_END_ENSURE_ERROR_CLEANUP(let_go, PointerGetDatum(&hold));
	let_go(0, PointerGetDatum(&hold));
}

/*
 * What a prepared transaction may have done that this command has committed.  The
 * client must not be told that it was not: an error here is a warning, somebody's
 * cancel, too.
 */
static void
after_commit_prepared(FullTransactionId prepared)
{
	OnsideSlot *slot = onside_slot_find(MyDatabaseId);
	bool		found = false;

	/* It may have been pause(), resume() or ALTER EXTENSION, too ... */
	onside_commit_wake(ONSIDE_WAKE_COMMIT | ONSIDE_WAKE_CONTROL |
					   ONSIDE_WAKE_CHECK);

	/* ... or CREATE EXTENSION. */
	if (slot != NULL)
	{
		Oid			database;
		ErrorData  *error = onside_attempt(count_prepared, &prepared, true);

		if (error != NULL)
			ereport(WARNING,
					(errmsg("the transaction is committed, but its events could not be counted: %s",
							error->message)));
		if (FullTransactionIdIsValid(prepared) &&
			onside_slot_may_withdraw(slot, prepared))
			onside_commit_wake(ONSIDE_WAKE_WITHDRAWN);
		found = onside_service_look(slot, &database).found &&
			database == MyDatabaseId;
	}
	if (!found && OidIsValid(get_extension_oid("onside_attribution", true)))
		onside_commit_want_worker();
}

/*
 * The utility hook: what is to happen before a command, in its place, and after it.
 */
static void
process_utility(PlannedStmt *pstmt, const char *queryString,
				bool readOnlyTree, ProcessUtilityContext context,
				ParamListInfo params, QueryEnvironment *queryEnv,
				DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *stmt = pstmt->utilityStmt;
	const char *dbname = exclusive_database(stmt);
	Oid			database = dbname == NULL ? InvalidOid :
		get_database_oid(dbname, true);
	OnsideShapeGuard guard = {0};
	bool		commits_prepared = onside_shmem_available() &&
		IsA(stmt, TransactionStmt) &&
		((TransactionStmt *) stmt)->kind == TRANS_STMT_COMMIT_PREPARED;
	FullTransactionId prepared = InvalidFullTransactionId;

	/* The statement that a subcommand belongs to is looked at as a whole. */
	if (context != PROCESS_UTILITY_SUBCOMMAND)
		onside_shape_guard_before(&guard, stmt);

	/* Before it locks the worker out. */
	if (drops_extension(stmt))
		onside_write_settled();

	if (commits_prepared && onside_slot_find(MyDatabaseId) != NULL)
		prepared = find_prepared(((TransactionStmt *) stmt)->gid);

	if (OidIsValid(database) && may_run(stmt, context, database))
		run_without_worker(database, pstmt, queryString, readOnlyTree,
						   context, params, queryEnv, dest, qc);
	else
		run_utility(pstmt, queryString, readOnlyTree, context, params,
					queryEnv, dest, qc);

	onside_shape_guard_after(&guard);
	if (dbname != NULL || IsA(stmt, AlterDatabaseStmt))
		onside_commit_wake_launcher(false);
	if (commits_prepared)
		after_commit_prepared(prepared);
}

void
onside_utility_hook_init(void)
{
	prev_object_access = object_access_hook;
	object_access_hook = object_access;

	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
