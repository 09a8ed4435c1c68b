/*-------------------------------------------------------------------------
 *
 * utility_hook.c
 *		Commands that concern the workers.
 *
 * Two hooks see all commands of all sessions: the utility hook and the object
 * access hook.  Five kinds of commands concern us:
 *
 * - CREATE, ALTER and DROP EXTENSION, in whatever form they come (CASCADE,
 *	 DROP OWNED, a restore).  The object access hook sees them, and what they
 *	 ask for is done at commit.  drop_guard.c says what DROP is refused for.
 *
 * - Commands on a database that fail while anybody is connected to it: DROP
 *	 DATABASE, ALTER DATABASE RENAME and SET TABLESPACE, CREATE DATABASE with
 *	 the database as template.  The database's worker is asked to leave, and is
 *	 kept out until the command has ended, one way or the other.  A worker that
 *	 does not notice, because it waits for a lock, gets a SIGTERM.  The command
 *	 waits for a bounded time.  If the worker has not left by then, the command
 *	 itself says that somebody is connected.
 *
 * - ALTER TABLE of an attached table: see follow.c.
 *
 * - Whatever alters the extension's own tables: see shape_guard.c.
 *
 * - COMMIT PREPARED, which runs in a session that did not record the events
 * and
 *	 so has no callback for them.  The id of the last event says how many they
 *	 are.
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

/*
 * Is it our extension?  Its row may be one that this command has just made,
 * which the catalog caches do not have yet.
 */
static bool
is_our_extension(Oid extension)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		result = false;

	/* SnapshotSelf sees what the present command has written. */
	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extension));
	scan = systable_beginscan(rel, ExtensionOidIndexId, true, SnapshotSelf, 1,
							  &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		result = namestrcmp(&((Form_pg_extension) GETSTRUCT(tuple))->extname,
							"onside_attribution") == 0;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}

/*
 * Tells follow.c of changes that an attached table's trigger may have to
 * follow.
 */
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

	/* A whole relation is dropped: is it ours, and are events pending? */
	if (access == OAT_DROP && class_id == RelationRelationId && sub_id == 0)
		onside_drop_guard_check(object_id);
	follow_change(access, class_id, object_id, sub_id, arg);

	/* All the rest is about extensions. */
	if (class_id != ExtensionRelationId ||
		(access != OAT_POST_CREATE && access != OAT_POST_ALTER &&
		 access != OAT_DROP) ||
		!is_our_extension(object_id))
		return;

	/*
	 * At commit a new extension wants a worker; else the worker looks again.
	 */
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

/*
 * The database to which nobody may be connected during the command, or NULL.
 */
static const char *
exclusive_database(Node *stmt)
{
	ListCell   *lc;

	if (IsA(stmt, DropdbStmt))
		return ((DropdbStmt *) stmt)->dbname;

	/* These two are about a database only in some of their forms. */
	if (IsA(stmt, RenameStmt) &&
		((RenameStmt *) stmt)->renameType == OBJECT_DATABASE)
		return ((RenameStmt *) stmt)->subname;

	if (IsA(stmt, AlterDatabaseStmt))
	{
		foreach(lc, ((AlterDatabaseStmt *) stmt)->options)
			if (strcmp(((DefElem *) lfirst(lc))->defname, "tablespace") == 0)
				return ((AlterDatabaseStmt *) stmt)->dbname;
	}

	/* The template that is copied, template1 if none is named. */
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

/*
 * May this command be run on the database, here and by this role?  The command
 * checks that itself, but only after we have disturbed the worker.  A role that
 * owns a database may disturb its worker.  Others may only copy it, and only if
 * it is a template, which has no worker.
 */
static bool
may_run(Node *stmt, ProcessUtilityContext context, Oid database)
{
	/* All but RENAME refuse to run within a transaction block. */
	if (!IsA(stmt, RenameStmt) &&
		(context != PROCESS_UTILITY_TOPLEVEL || IsTransactionBlock()))
		return false;
	return onside_owns_database(database);
}

/*
 * Waits up to "timeout" ms until the slot's worker has left the slot and is
 * no longer connected to the database.  Having left the slot is not enough:
 * DROP DATABASE ... WITH (FORCE) would see the connection and refuse to
 * terminate it, since the worker is a superuser's process and the owner need
 * not be one.
 */
static bool
wait_for_exit(OnsideSlot *slot, int timeout)
{
	TimestampTz deadline =
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout);
	long		left = timeout;
	bool		over;

	/* Prepared first, so that no signal is missed between look and sleep. */
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

/* Has the worker leave a slot that we hold: asks first, and then insists. */
static void
clear_slot(OnsideSlot *slot)
{
	onside_slot_wake(slot, ONSIDE_WAKE_CHECK);
	if (wait_for_exit(slot, ASK_TIMEOUT))
		return;
	onside_service_terminate(slot);
	(void) wait_for_exit(slot, LEAVE_TIMEOUT - ASK_TIMEOUT);
}

/*
 * The slot that a command holds; volatile, since an error may come in
 * between.
 */
typedef struct Hold
{
	OnsideSlot *volatile slot;	/* or NULL */
} Hold;

/*
 * Lets workers in again, before the command's transaction ends.  A worker that
 * the launcher starts at once waits for the lock on the database, which the
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
 * Finds the transaction that is prepared under this name; invalid for none.
 * Calls the function beneath the view pg_prepared_xacts directly, which
 * checks no privilege: a role that may not call it may still commit what it
 * has prepared.
 */
static FullTransactionId
find_prepared(const char *gid)
{
	LOCAL_FCINFO(fcinfo, 0);
	FmgrInfo	flinfo;
	ReturnSetInfo rsinfo = {.type = T_ReturnSetInfo};
	FullTransactionId next = ReadNextFullTransactionId();
	FullTransactionId result = InvalidFullTransactionId;

	/* A set-returning function wants an executor's context. */
	rsinfo.allowedModes = SFRM_ValuePerCall;
	rsinfo.returnMode = SFRM_ValuePerCall;
	rsinfo.econtext = CreateStandaloneExprContext();
	fmgr_info(F_PG_PREPARED_XACT, &flinfo);
	InitFunctionCallInfoData(*fcinfo, &flinfo, 0, InvalidOid, NULL,
							 (Node *) &rsinfo);
	for (;;)
	{
		Datum		value = FunctionCallInvoke(fcinfo);
		HeapTupleHeader row;
		bool		isnull;

		if (rsinfo.isDone != ExprMultipleResult)
			break;

		/* columns: 1 transaction, 2 gid */
		row = DatumGetHeapTupleHeader(value);
		value = GetAttributeByNum(row, 2, &isnull);
		if (strcmp(TextDatumGetCString(value), gid) == 0)
		{
			value = GetAttributeByNum(row, 1, &isnull);
			result = onside_widen_xid(DatumGetTransactionId(value), next);
		}
	}
	FreeExprContext(rsinfo.econtext, true);
	return result;
}

/*
 * Counts the events of a transaction that this command has committed.  For
 * onside_attempt().  If the transaction has recorded none, this costs a look
 * at each index.
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

/*
 * Runs the command: by the hook that was there before ours, or PostgreSQL's
 * way.
 */
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

/* Runs a command during which nobody may be connected to the database. */
static void
run_without_worker(Oid database, PlannedStmt *pstmt, const char *queryString,
				   bool readOnlyTree, ProcessUtilityContext context,
				   ParamListInfo params, QueryEnvironment *queryEnv,
				   DestReceiver *dest, QueryCompletion *qc)
{
	Hold		hold = {NULL};

	/* Hold the slot inside, so that no error leaves it held. */
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
 * Body of a subtransaction: what the commit callbacks would have done for the
 * prepared transaction.
 */
static void
make_up_for_prepared(void *arg)
{
	FullTransactionId *prepared = arg;
	OnsideSlot *slot = onside_slot_find(MyDatabaseId);
	Oid			database;

	/* Rows that it has deleted are withdrawn. */
	if (slot != NULL && FullTransactionIdIsValid(*prepared) &&
		onside_slot_may_withdraw(slot, *prepared))
		onside_commit_wake(ONSIDE_WAKE_WITHDRAWN);

	/* If no worker knows the database, it may have run CREATE EXTENSION. */
	if ((slot == NULL || !onside_service_look(slot, &database).found ||
		 database != MyDatabaseId) &&
		OidIsValid(get_extension_oid("onside_attribution", true)))
		onside_commit_want_worker();

	/* Its events count as pending. */
	if (slot != NULL)
		count_prepared(prepared);
}

/*
 * Makes up for the commit callbacks that a prepared transaction lacks.  The
 * transaction is committed, and the client must not be told otherwise: an
 * error becomes a warning here, and so does a cancel.
 */
static void
after_commit_prepared(FullTransactionId prepared)
{
	ErrorData  *error;

	/* It may have recorded events, or called pause() or resume(). */
	onside_commit_wake(ONSIDE_WAKE_COMMIT | ONSIDE_WAKE_CONTROL |
					   ONSIDE_WAKE_CHECK);
	error = onside_attempt(make_up_for_prepared, &prepared, true);
	if (error != NULL)
		ereport(WARNING,
				(errmsg("the transaction is committed, but its events could not be counted: %s",
						error->message)));
}

/*
 * The utility hook: what we do before a command, in its place, and after it.
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
	bool		wakes_launcher = dbname != NULL ||
		IsA(stmt, AlterDatabaseStmt);
	FullTransactionId prepared = InvalidFullTransactionId;

	/* A subcommand is looked at with the statement that it belongs to. */
	if (context != PROCESS_UTILITY_SUBCOMMAND)
		onside_shape_guard_before(&guard, stmt);

	/* DROP EXTENSION keeps the worker from writing what is delivered. */
	if (drops_extension(stmt))
		onside_write_settled();

	/* Afterwards the name is gone. */
	if (commits_prepared && onside_slot_find(MyDatabaseId) != NULL)
		prepared = find_prepared(((TransactionStmt *) stmt)->gid);

	/* The command itself. */
	if (OidIsValid(database) && may_run(stmt, context, database))
		run_without_worker(database, pstmt, queryString, readOnlyTree,
						   context, params, queryEnv, dest, qc);
	else
		run_utility(pstmt, queryString, readOnlyTree, context, params,
					queryEnv, dest, qc);

	/* The statement is not looked at any more: ROLLBACK may have freed it. */
	onside_shape_guard_after(&guard);

	/* Have the launcher look again which databases need a worker. */
	if (wakes_launcher)
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
