/*-------------------------------------------------------------------------
 *
 * shape_guard.c
 *		Statements that would make the extension's tables useless.
 *
 * shape.c says what the tables have to look like.  Many statements can alter a
 * table, by themselves, by CASCADE or from inside a function, and each version
 * of PostgreSQL brings new ones.  So we interpret no statement.  Whatever the
 * statement is, we look at the tables when it has ended.  If a table has a
 * problem that it did not have before, the statement fails, and all that it has
 * done is undone.
 *
 * utility_hook.c calls this file before and after each utility statement.  We
 * take no lock on our tables.
 *
 * Before the statement we do not know what it will alter, and it would cost too
 * much to read the catalogs before each CREATE TEMP TABLE.  So we keep only the
 * tables' OIDs and the number of the current command.
 *
 * After the statement, a session that has altered a table holds at least
 * ShareUpdateExclusiveLock on it; without that lock there is nothing to look
 * at.  Only an index can be renamed without a lock on its table.  If a table
 * has problems now, we read the catalogs again as they were before the
 * statement, with a snapshot that is set back to the number of the command.  A
 * problem that the table had before is no reason to refuse the statement, which
 * may repair another problem.
 *
 * We refuse a few statements beforehand by what they say: those that commit in
 * between (CONCURRENTLY), and so could not be undone; DROP COLUMN of a column
 * of ours, for which PostgreSQL would recommend CASCADE, which drops the
 * extension; ALTER EXTENSION DROP; and ALTER SCHEMA RENAME.
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

/* Raises the error that all changes of a table of ours have in common. */
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

/* The number of a table of ours by what a statement calls it, or -1. */
static int
find_table(const OnsideTables *tables, RangeVar *name)
{
	Oid			relid = RangeVarGetRelid(name, NoLock, true);

	for (int i = 0; OidIsValid(relid) && i < ONSIDE_TABLES; i++)
		if (tables->relid[i] == relid)
			return i;
	return -1;
}

/* Refuses CREATE INDEX CONCURRENTLY, unless the index would be plain. */
static void
check_create_index(const OnsideTables *tables, IndexStmt *stmt)
{
	int			table;
	bool		plain = !stmt->unique && stmt->whereClause == NULL;
	ListCell   *lc;

	if (!stmt->concurrent)
		return;

	/* An element without a name is an expression. */
	foreach(lc, stmt->indexParams)
		plain &= lfirst_node(IndexElem, lc)->name != NULL;
	table = plain ? -1 : find_table(tables, stmt->relation);
	if (table >= 0)
		refuse_change(table, "the table has an index that is unique, on an expression or has a condition");
}

/* Refuses DROP INDEX CONCURRENTLY of an index of ours. */
static void
check_drop_index(const OnsideTables *tables, DropStmt *stmt)
{
	ListCell   *lc;

	if (stmt->removeType != OBJECT_INDEX || !stmt->concurrent)
		return;
	foreach(lc, stmt->objects)
	{
		/* Find the index as the statement will find it. */
		RangeVar   *name = makeRangeVarFromNameList(lfirst(lc));
		Oid			index = RangeVarGetRelid(name, NoLock, true);

		/* Our indexes are in our schema. */
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

/* Has the shape of a table a column of this name? */
static bool
is_own_column(int table, const char *name)
{
	for (int i = 0; i < onside_shapes[table].ncolumns; i++)
		if (strcmp(onside_shapes[table].columns[i].name, name) == 0)
			return true;
	return false;
}

/* Refuses DROP COLUMN of ours, and DETACH PARTITION CONCURRENTLY. */
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

		/* One statement can have many commands. */
		if (cmd->subtype == AT_DropColumn &&
			is_own_column(table, cmd->name))
			refuse_change(table, psprintf("column \"%s\" of table %s.%s is gone",
										  cmd->name, ONSIDE_SCHEMA,
										  onside_shapes[table].name));

		/* Without CONCURRENTLY it can be undone afterwards. */
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

/* Refuses to rename our schema while the extension is in it. */
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

/* Does a script of this extension run now? */
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
	/* Other statements cannot alter a table. */
	guard->on = GetCommandLogLevel(stmt) == LOGSTMT_DDL &&
		IsTransactionState() && onside_shape_find(&guard->tables);
	if (!guard->on)
		return;

	/* Note what tells us afterwards how the tables were. */
	guard->command = GetCurrentCommandId(false);
	guard->renames = IsA(stmt, RenameStmt);

	/* These cannot be undone, or have a better error beforehand. */
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

	/*
	 * CheckRelationLockedByMe() looks at nothing else of a relation, and to
	 * open all tables would cost too much.
	 */
	rel.rd_lockInfo.lockRelId.dbId = MyDatabaseId;
	rel.rd_lockInfo.lockRelId.relId = guard->tables.relid[table];
	return OidIsValid(guard->tables.relid[table]) &&
		(guard->renames ||
		 CheckRelationLockedByMe(&rel, ShareUpdateExclusiveLock, true));
}

/* The first problem that the table did not have before the statement. */
static const char *
new_problem(const OnsideShapeGuard *guard, int table)
{
	bool		ignored;
	List	   *now = onside_shape_problems(&guard->tables, table, NULL,
											&ignored);
	List	   *then;
	ListCell   *lc;
	ListCell   *lc2;

	/* The usual case: nothing is wrong. */
	if (now == NIL)
		return NULL;

	/* Look again, at the catalogs as they were before the statement. */
	PushCopiedSnapshot(GetLatestSnapshot());
	GetActiveSnapshot()->curcid = guard->command;
	then = onside_shape_problems(&guard->tables, table, GetActiveSnapshot(),
								 &ignored);
	PopActiveSnapshot();

	/* Which of the present problems is not among the former ones? */
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

	/* Nearly every statement ends here: it has no lock on our tables. */
	while (first < ONSIDE_TABLES && !may_have_altered(guard, first))
		first++;
	if (first == ONSIDE_TABLES)
		return;

	/*
	 * DROP EXTENSION may drop our tables, and so may our own scripts alter
	 * them.  The tables of another version may look different.
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
