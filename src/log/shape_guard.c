/*-------------------------------------------------------------------------
 *
 * shape_guard.c
 *		Statements that would make the extension's tables useless.
 *
 * shape.c says what the tables have to look like.  There are many statements
 * that can alter a table, by itself, by CASCADE or from inside a function, and
 * each version of PostgreSQL brings new ones.  So no statement is interpreted:
 * whatever it is, the tables are looked at when it has ended, and if a table
 * has a problem that it did not have before, the statement fails and all that
 * it has done is undone.
 *
 * Before: what a statement alters is known only afterwards, and reading the
 * catalogs before each CREATE TEMP TABLE would cost too much.  So only the
 * tables' OIDs and the number of the current command are kept.
 *
 * After: a session that has altered a table holds at least
 * ShareUpdateExclusiveLock on it; without that lock there is nothing to look
 * at.  Only an index can be renamed without a lock on its table.  If a table
 * has problems now, the catalogs are read again as they were before the
 * statement: by a snapshot that is set back to the number of the command.  A
 * problem that the table had before is no reason to refuse the statement,
 * which may repair another problem.
 *
 * A few statements are refused beforehand by what they say: those that commit
 * in between (CONCURRENTLY), and so could not be undone; DROP COLUMN of a
 * column of ours, for which PostgreSQL would recommend CASCADE, which drops
 * the extension; and ALTER SCHEMA RENAME.
 *
 * The scripts of CREATE EXTENSION and ALTER EXTENSION UPDATE are not checked.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "log/commit.h"
#include "log/shape_guard.h"
#include "log/shmem.h"
#include "log/tables.h"
#include "version.h"

pg_noreturn static void refuse_change(int table, const char *problem);

static void
refuse_change(int table, const char *problem)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot change table \"%s.%s\" in this way",
					ONSIDE_SCHEMA, onside_shapes[table].name),
			 errdetail("After that, %s.", problem),
			 errhint("The extension onside_attribution writes and reads this table directly. It may get columns that can be null and have no default, and indexes on columns that are not unique; triggers, constraints and rules belong on a table of your own.")));
}

/* ----------
 * Beforehand
 * ----------
 */

/* The number of a table of ours, or -1. */
static int
find_table(const OnsideTables *tables, RangeVar *name)
{
	Oid			relid = RangeVarGetRelid(name, NoLock, true);

	for (int i = 0; OidIsValid(relid) && i < ONSIDE_TABLES; i++)
		if (tables->relid[i] == relid)
			return i;
	return -1;
}

/* CREATE INDEX CONCURRENTLY */
static void
check_create_index(const OnsideTables *tables, IndexStmt *stmt)
{
	int			table;
	bool		plain = !stmt->unique && stmt->whereClause == NULL;
	ListCell   *lc;

	if (!stmt->concurrent)
		return;
	foreach(lc, stmt->indexParams)
		plain &= lfirst_node(IndexElem, lc)->name != NULL;
	table = plain ? -1 : find_table(tables, stmt->relation);
	if (table >= 0)
		refuse_change(table, "the table has an index that is unique, on an expression or has a condition");
}

/* DROP INDEX CONCURRENTLY */
static void
check_drop_index(const OnsideTables *tables, DropStmt *stmt)
{
	ListCell   *lc;

	if (stmt->removeType != OBJECT_INDEX || !stmt->concurrent)
		return;
	foreach(lc, stmt->objects)
	{
		Oid			index = RangeVarGetRelid(makeRangeVarFromNameList(lfirst(lc)),
											 NoLock, true);

		if (!OidIsValid(index) || get_rel_namespace(index) != tables->schema)
			continue;
		for (int i = 0; i < ONSIDE_TABLES; i++)
			for (int j = 0; j < ONSIDE_SHAPE_INDEXES; j++)
			{
				const char *ours = onside_shapes[i].indexes[j].name;

				if (ours != NULL && strcmp(ours, get_rel_name(index)) == 0)
					refuse_change(i, psprintf("the table lacks the index \"%s\"",
											  ours));
			}
	}
}

static bool
is_own_column(int table, const char *name)
{
	for (int i = 0; i < onside_shapes[table].ncolumns; i++)
		if (strcmp(onside_shapes[table].columns[i].name, name) == 0)
			return true;
	return false;
}

/* DROP COLUMN and DETACH PARTITION CONCURRENTLY */
static void
check_alter(const OnsideTables *tables, AlterTableStmt *stmt)
{
	int			table = find_table(tables, stmt->relation);
	ListCell   *lc;

	if (table < 0)
		return;
	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);

		if (cmd->subtype == AT_DropColumn &&
			is_own_column(table, cmd->name))
			refuse_change(table, psprintf("column \"%s\" of table %s.%s is gone",
										  cmd->name, ONSIDE_SCHEMA,
										  onside_shapes[table].name));
		if (cmd->subtype == AT_DetachPartition &&
			castNode(PartitionCmd, cmd->def)->concurrent)
			refuse_change(table, "the table lacks a partition");
	}
}

/*
 * A table that leaves the extension also leaves the list of tables whose rows
 * pg_dump dumps.  Adding the table again does not add it to that list.
 */
static void
check_contents(AlterExtensionContentsStmt *stmt)
{
	if (stmt->action < 0 && strcmp(stmt->extname, "onside_attribution") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot take objects out of extension onside_attribution"),
				 errdetail("A dump would no longer have what is pending, or would have it twice."),
				 errhint("DROP EXTENSION drops all of it.")));
}

static void
check_rename(RenameStmt *stmt)
{
	if (stmt->renameType == OBJECT_SCHEMA &&
		strcmp(stmt->subname, ONSIDE_SCHEMA) == 0 &&
		OidIsValid(get_extension_oid("onside_attribution", true)))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot rename schema \"%s\"", ONSIDE_SCHEMA),
				 errdetail("The extension onside_attribution finds its tables by the name of this schema.")));
}

/* Is this a script of our own? */
static bool
in_own_script(void)
{
	return creating_extension &&
		CurrentExtensionObject == get_extension_oid("onside_attribution", true);
}

/*
 * Notes what onside_shape_guard_after() needs, and refuses what could not be
 * undone then.
 */
void
onside_shape_guard_before(OnsideShapeGuard *guard, Node *stmt)
{
	guard->on = GetCommandLogLevel(stmt) == LOGSTMT_DDL &&
		IsTransactionState() && onside_shape_find(&guard->tables);
	if (!guard->on)
		return;
	guard->command = GetCurrentCommandId(false);
	guard->renames = IsA(stmt, RenameStmt);

	if (IsA(stmt, IndexStmt))
		check_create_index(&guard->tables, (IndexStmt *) stmt);
	else if (IsA(stmt, DropStmt))
		check_drop_index(&guard->tables, (DropStmt *) stmt);
	else if (IsA(stmt, AlterTableStmt) && !creating_extension)
		check_alter(&guard->tables, (AlterTableStmt *) stmt);
	else if (IsA(stmt, RenameStmt))
		check_rename((RenameStmt *) stmt);
	else if (IsA(stmt, AlterExtensionContentsStmt))
		check_contents((AlterExtensionContentsStmt *) stmt);
}

/* ----------
 * Afterwards
 * ----------
 */

/*
 * Can the statement have altered this table: is it a RENAME, or do we hold a
 * lock that is strong enough?
 */
static bool
may_have_altered(const OnsideShapeGuard *guard, int table)
{
	RelationData rel;

	/* It looks at nothing else, and opening all tables costs too much. */
	rel.rd_lockInfo.lockRelId.dbId = MyDatabaseId;
	rel.rd_lockInfo.lockRelId.relId = guard->tables.relid[table];
	return OidIsValid(guard->tables.relid[table]) &&
		(guard->renames ||
		 CheckRelationLockedByMe(&rel, ShareUpdateExclusiveLock, true));
}

/* Of the table's problems, the first that it had not before the command. */
static const char *
new_problem(const OnsideShapeGuard *guard, int table)
{
	bool		ignored;
	List	   *now = onside_shape_problems(&guard->tables, table, NULL,
											&ignored);
	List	   *then;
	ListCell   *lc;
	ListCell   *lc2;

	if (now == NIL)
		return NULL;
	PushCopiedSnapshot(GetLatestSnapshot());
	GetActiveSnapshot()->curcid = guard->command;
	then = onside_shape_problems(&guard->tables, table, GetActiveSnapshot(),
								 &ignored);
	PopActiveSnapshot();

	foreach(lc, now)
	{
		foreach(lc2, then)
			if (strcmp(lfirst(lc), lfirst(lc2)) == 0)
				break;
		if (lc2 == NULL)
			return lfirst(lc);
	}
	return NULL;
}

/* Refuses a statement that has left a table of ours with a new problem. */
void
onside_shape_guard_after(const OnsideShapeGuard *guard)
{
	int			first = 0;

	if (!guard->on)
		return;
	while (first < ONSIDE_TABLES && !may_have_altered(guard, first))
		first++;
	if (first == ONSIDE_TABLES)
		return;

	/*
	 * Without the extension there is nothing to keep; newer ones may differ.
	 */
	CommandCounterIncrement();
	if (!OidIsValid(get_extension_oid("onside_attribution", true)) ||
		in_own_script() ||
		onside_version_problem() != NULL)
		return;
	for (int i = first; i < ONSIDE_TABLES; i++)
	{
		const char *problem = may_have_altered(guard, i) ?
			new_problem(guard, i) : NULL;

		if (problem != NULL)
			refuse_change(i, problem);
	}

	/* The statement may have been a repair that the worker waits for. */
	onside_commit_wake(ONSIDE_WAKE_CHECK);
}
