/*-------------------------------------------------------------------------
 *
 * follow.c
 *		Attached tables change.
 *
 * PostgreSQL does not know that a trigger's arguments name columns.  So when a
 * column is renamed, the arguments of track_row's triggers are rewritten, as
 * an index or a view would follow the new name.  A warning says that a mapped
 * column is dropped, or that a table with a trigger at statement level gets
 * inheritance children.
 *
 * A table that becomes a partition is written to through its parent, which
 * fires none of the table's triggers at statement level.  They are made
 * triggers at row level, which are fired; the function is the same.  If the
 * table is itself partitioned, that would not help, since its rows fire only
 * clones of a trigger in its partitions.  Then there is a warning.
 *
 * The object access hook calls these functions for every table and every role.
 * Most tables have nothing to do with us: without triggers, a look into the
 * caches is all.  No privilege of ours is needed or looked at.
 *
 * PostgreSQL does not know, either, that a trigger calls its mapper.  So each
 * new trigger, made by attach() or by a restore, gets a dependency on its
 * mapper, and DROP FUNCTION is refused while the trigger exists.  A trigger
 * has no dependency if it was made before its mapper, or without the library,
 * or in a database with Citus: Citus refuses to distribute or alter a table if
 * it depends on a function that depends on the table.
 *
 * Whoever gave the command has locked the table by it, so nobody fires the
 * table's triggers meanwhile.  The session needs the library, which
 * shared_preload_libraries loads: without it, nothing here is called.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_trigger.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "attach/attached.h"
#include "attach/follow.h"
#include "record/citus.h"
#include "record/mapper.h"
#include "record/mapping.h"

/* What is done with each of a table's triggers; NULL leaves it as it is. */
typedef HeapTuple (*TriggerChange) (Relation triggers, HeapTuple trigger,
									void *arg);

/* A look into a cache, which is all that most tables cost. */
static bool
has_triggers(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return false;
	result = ((Form_pg_class) GETSTRUCT(tuple))->relhastriggers;
	ReleaseSysCache(tuple);
	return result;
}

/*
 * Applies a change to each track_row trigger of a table, in the catalog
 * itself: no command changes a trigger's arguments or level.  The command that
 * we follow has checked the user's privileges on the table.
 */
static void
for_each_trigger(Oid relid, TriggerChange change, void *arg)
{
	Oid			function;
	Relation	rel;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	if (!has_triggers(relid))
		return;

	/* Without the extension no trigger is ours. */
	function = onside_find_track_row();
	if (!OidIsValid(function))
		return;
	rel = table_open(TriggerRelationId, RowExclusiveLock);
	ScanKeyInit(&key, Anum_pg_trigger_tgrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	scan = systable_beginscan(rel, TriggerRelidNameIndexId, true, NULL, 1,
							  &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		HeapTuple	changed;

		if (((Form_pg_trigger) GETSTRUCT(tuple))->tgfoid != function)
			continue;

		/*
		 * Other sessions read the triggers again at their next use of the
		 * table.
		 */
		changed = change(rel, tuple, arg);
		if (changed != NULL)
		{
			CatalogTupleUpdate(rel, &tuple->t_self, changed);
			CacheInvalidateRelcacheByRelid(relid);
		}
	}
	systable_endscan(scan);
	table_close(rel, RowExclusiveLock);
}

static const char *
name_of_trigger(HeapTuple trigger)
{
	return NameStr(((Form_pg_trigger) GETSTRUCT(trigger))->tgname);
}

/* ----------
 * Columns
 * ----------
 */

typedef struct Renaming
{
	const char *from;
	const char *to;				/* NULL: dropped */
} Renaming;

/*
 * The arguments, each with its final zero byte, with the new name in place of
 * the old one.  *found says whether an argument had the old name.
 */
static Datum
rename_in_args(bytea *args, int nargs, const Renaming *renaming, bool *found)
{
	StringInfoData buf;
	const char *arg = VARDATA_ANY(args);

	*found = false;
	initStringInfo(&buf);
	for (int i = 0; i < nargs; i++, arg += strlen(arg) + 1)
	{
		const char *equals = strchr(arg, '=');

		/*
		 * Only what names a column: a mapper or an event may be called alike.
		 */
		if (equals != NULL && strcmp(equals + 1, renaming->from) == 0 &&
			onside_mapping_is_column(arg))
		{
			*found = true;
			appendBinaryStringInfo(&buf, arg, equals + 1 - arg);
			if (renaming->to != NULL)
				appendStringInfoString(&buf, renaming->to);
		}
		else
			appendStringInfoString(&buf, arg);
		appendStringInfoChar(&buf, '\0');
	}
	return PointerGetDatum(cstring_to_text_with_len(buf.data, buf.len));
}

/* Renames a column in the trigger's arguments, or warns if it is dropped. */
static HeapTuple
rename_column(Relation triggers, HeapTuple trigger, void *arg)
{
	Renaming   *renaming = (Renaming *) arg;
	Datum		values[Natts_pg_trigger] = {0};
	bool		nulls[Natts_pg_trigger] = {0};
	bool		replace[Natts_pg_trigger] = {0};
	bool		found;
	Datum		args;

	/* The catalog has all arguments in one bytea. */
	args = heap_getattr(trigger, Anum_pg_trigger_tgargs,
						RelationGetDescr(triggers), &found);
	args = rename_in_args(DatumGetByteaPP(args),
						  ((Form_pg_trigger) GETSTRUCT(trigger))->tgnargs,
						  renaming, &found);

	/* Not mapped by this trigger, or dropped: then only a warning. */
	if (!found)
		return NULL;
	if (renaming->to == NULL)
	{
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("column \"%s\" is mapped by trigger \"%s\"",
						renaming->from, name_of_trigger(trigger)),
				 errdetail("Rows that are written without it are no valid events."),
				 errhint("Detach the event with onside_attribution.detach(), and attach it again without the column.")));
		return NULL;
	}

	/* The arguments alone change. */
	values[Anum_pg_trigger_tgargs - 1] = args;
	replace[Anum_pg_trigger_tgargs - 1] = true;
	return heap_modify_tuple(trigger, RelationGetDescr(triggers), values, nulls,
							 replace);
}

/*
 * A column's name as the command has left it.  The command is not over, so only
 * SnapshotSelf shows the name.
 */
static char *
new_name(Oid relid, AttrNumber attnum)
{
	Relation	rel = table_open(AttributeRelationId, AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	char	   *name = NULL;

	ScanKeyInit(&keys[0], Anum_pg_attribute_attrelid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(relid));
	ScanKeyInit(&keys[1], Anum_pg_attribute_attnum, BTEqualStrategyNumber,
				F_INT2EQ, Int16GetDatum(attnum));

	/* Not from the cache, which still has the old name. */
	scan = systable_beginscan(rel, AttributeRelidNumIndexId, true,
							  SnapshotSelf, 2, keys);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		name = pstrdup(NameStr(((Form_pg_attribute) GETSTRUCT(tuple))->attname));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return name;
}

void
onside_follow_column(Oid relid, AttrNumber attnum)
{
	Renaming	renaming = {0};

	if (!has_triggers(relid))
		return;
	renaming.from = get_attname(relid, attnum, true);
	renaming.to = new_name(relid, attnum);
	if (renaming.from != NULL && renaming.to != NULL &&
		strcmp(renaming.from, renaming.to) != 0)
		for_each_trigger(relid, rename_column, &renaming);
}

void
onside_follow_drop_column(Oid relid, AttrNumber attnum)
{
	Renaming	renaming = {get_attname(relid, attnum, true), NULL};

	if (renaming.from != NULL)
		for_each_trigger(relid, rename_column, &renaming);
}

/* ----------
 * Mappers
 * ----------
 */

/*
 * Makes a new trigger depend on its mapper.  Nobody else sees the trigger yet.
 * Its clones in partitions go with it.
 */
void
onside_follow_trigger(Oid trigger)
{
	Oid			function = onside_find_track_row();
	OnsideMapping *mapping;
	HeapTuple	tuple;
	Form_pg_trigger form;
	Oid			taken;
	ObjectAddress mapper;
	ObjectAddress dependent;

	if (!OidIsValid(function) || onside_citus_is_here())
		return;

	/* Most new triggers have no mapper. */
	tuple = onside_mapping_find(trigger, SnapshotSelf, &mapping);
	if (mapping == NULL || mapping->mapper == NULL)
		return;
	form = (Form_pg_trigger) GETSTRUCT(tuple);
	if (form->tgfoid != function || OidIsValid(form->tgparentid))
		return;

	/* A mapper that is made later gets no dependency. */
	taken = onside_mapper_takes(mapping->mapper, form->tgrelid);
	ObjectAddressSet(mapper, ProcedureRelationId,
					 onside_mapper_find(mapping->mapper,
										get_rel_type_id(taken)));
	if (!OidIsValid(mapper.objectId))
		return;
	ObjectAddressSet(dependent, TriggerRelationId, trigger);
	recordDependencyOn(&dependent, &mapper, DEPENDENCY_NORMAL);
}

/* ----------
 * Partitions and inheritance
 * ----------
 */

/* Is the trigger FOR EACH STATEMENT? */
static bool
is_at_statement_level(HeapTuple trigger)
{
	return !TRIGGER_FOR_ROW(((Form_pg_trigger) GETSTRUCT(trigger))->tgtype);
}

/*
 * Makes a trigger at statement level one at row level.  Its function stays:
 * track_row serves both levels.
 */
static HeapTuple
make_row_level(Relation triggers, HeapTuple trigger, void *arg)
{
	Datum		values[Natts_pg_trigger] = {0};
	bool		nulls[Natts_pg_trigger] = {0};
	bool		replace[Natts_pg_trigger] = {0};

	/* At row level it is fired for rows that come in through the parent. */
	if (!is_at_statement_level(trigger))
		return NULL;
	ereport(NOTICE,
			(errmsg("trigger \"%s\" is now FOR EACH ROW, since rows come in through \"%s\", too",
					name_of_trigger(trigger), (const char *) arg)));

	/* A trigger at row level has no transition tables. */
	values[Anum_pg_trigger_tgtype - 1] =
		Int16GetDatum(((Form_pg_trigger) GETSTRUCT(trigger))->tgtype |
					  TRIGGER_TYPE_ROW);
	replace[Anum_pg_trigger_tgtype - 1] = true;
	nulls[Anum_pg_trigger_tgnewtable - 1] = true;
	replace[Anum_pg_trigger_tgnewtable - 1] = true;
	nulls[Anum_pg_trigger_tgoldtable - 1] = true;
	replace[Anum_pg_trigger_tgoldtable - 1] = true;
	return heap_modify_tuple(trigger, RelationGetDescr(triggers), values, nulls,
							 replace);
}

/*
 * Warns that a table gets an inheritance child.  Its triggers stay as they are:
 * the command's lock lets others write to the parent.
 */
static HeapTuple
warn_of_child(Relation triggers, HeapTuple trigger, void *arg)
{
	if (is_at_statement_level(trigger))
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("trigger \"%s\" is FOR EACH STATEMENT, and \"%s\" gets an inheritance child",
						name_of_trigger(trigger), (const char *) arg),
				 errhint("Detach the event with onside_attribution.detach(), and attach it again.")));
	return NULL;
}

/*
 * Warns that a partitioned table becomes a partition.  Its triggers stay as
 * they are: at row level they would need clones in partitions that nobody has
 * locked.
 */
static HeapTuple
warn_of_parent(Relation triggers, HeapTuple trigger, void *arg)
{
	if (is_at_statement_level(trigger))
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("trigger \"%s\" is FOR EACH STATEMENT, and does not see rows that come in through \"%s\"",
						name_of_trigger(trigger), (const char *) arg),
				 errhint("Detach the event with onside_attribution.detach(), and attach it again.")));
	return NULL;
}

/*
 * Is the table now a child of this parent?  The hook is called when a table
 * leaves its parent, too.  The command is not over: see new_name().
 */
static bool
is_child_of(Oid relid, Oid parent)
{
	Relation	rel = table_open(InheritsRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		result = false;

	ScanKeyInit(&key, Anum_pg_inherits_inhrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	scan = systable_beginscan(rel, InheritsRelidSeqnoIndexId, true,
							  SnapshotSelf, 1, &key);
	while (!result && HeapTupleIsValid(tuple = systable_getnext(scan)))
		result = ((Form_pg_inherits) GETSTRUCT(tuple))->inhparent == parent;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}

/*
 * A table has become a child of another one: rows may come in through the
 * parent from now on, which statement-level triggers of the child do not see.
 */
void
onside_follow_parent(Oid relid, Oid parent)
{
	char	   *name;

	if ((!has_triggers(relid) && !has_triggers(parent)) ||
		!is_child_of(relid, parent))
		return;
	name = get_rel_name(parent);
	if (name == NULL)
		return;

	/* First the child's own triggers, then those of its parent. */
	for_each_trigger(relid,
					 get_rel_relkind(relid) == RELKIND_PARTITIONED_TABLE ?
					 warn_of_parent : make_row_level, name);
	if (get_rel_relkind(parent) == RELKIND_RELATION)
		for_each_trigger(parent, warn_of_child, name);
}
