/*-------------------------------------------------------------------------
 *
 * shape_check.c
 *		Comparing the extension's tables with what they have to look like.
 *
 * shape.c says what the tables have to look like, and why.  shape_guard.c calls
 * this file after a statement, doctor() and "status" when somebody asks.
 *
 * The catalogs are read directly, with a snapshot of the caller's choice,
 * because shape_guard.c asks how a table was before a statement; the relation
 * cache knows only how it is now.  That needs no lock on our tables.  The
 * catalogs are locked with AccessShareLock while they are read.
 *
 * A problem is a string.  shape_guard.c compares the strings of two moments, so
 * the same problem must always have the same words.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_policy.h"
#include "catalog/pg_rewrite.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "log/shape.h"
#include "log/tables.h"

/* The comparison of one table. */
typedef struct Check
{
	const OnsideTables *tables;
	const OnsideShape *shape;
	Oid			relid;
	Snapshot	snapshot;
	List	   *problems;
	bool		unusable;		/* rows cannot be read or written */
	char	   *name;			/* for relation_name() */

	/* Which parts of the shape were found in the catalogs. */
	int			ncolumns;
	bool		has_index[ONSIDE_SHAPE_INDEXES];
	bool		has_trigger[ONSIDE_SHAPE_TRIGGERS];
	bool		has_parent;
	bool		has_check[ONSIDE_SHAPE_CHECKS];
} Check;

/* Compares one row of a catalog with the shape. */
typedef void (*Visitor) (Check *check, Relation catalog, HeapTuple tuple);

/* Notes 'table onside_attribution.x WHAT', or 'WHAT "name"'. */
static void
table_problem(Check *check, const char *what, const char *name)
{
	char	   *words = psprintf("table %s.%s %s", ONSIDE_SCHEMA,
								 check->shape->name, what);

	if (name != NULL)
		words = psprintf("%s \"%s\"", words, name);
	check->problems = lappend(check->problems, words);
}

/* Notes 'KIND "name" of table onside_attribution.x WHAT'. */
static void
part_problem(Check *check, const char *kind, const char *name,
			 const char *what)
{
	check->problems = lappend(check->problems,
							  psprintf("%s \"%s\" of table %s.%s %s", kind,
									   name, ONSIDE_SCHEMA,
									   check->shape->name, what));
}

/* Visits the rows of a catalog that have this OID in this column. */
static void
visit_rows(Check *check, Oid catalog, Oid index, AttrNumber column, Oid value,
		   Visitor visit)
{
	Relation	rel = table_open(catalog, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, column, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(value));
	scan = systable_beginscan(rel, index, true, check->snapshot, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		visit(check, rel, tuple);
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

/* Visits the row of pg_class that relation_name() looks for. */
static void
visit_name(Check *check, Relation catalog, HeapTuple tuple)
{
	check->name = pstrdup(NameStr(((Form_pg_class) GETSTRUCT(tuple))->relname));
}

/* The name of a relation in our snapshot; NULL if it is not there. */
static char *
relation_name(Check *check, Oid relid)
{
	check->name = NULL;
	visit_rows(check, RelationRelationId, ClassOidIndexId, Anum_pg_class_oid,
			   relid, visit_name);
	return check->name;
}

/* Visits the row of pg_class: is it our table, by its name and schema? */
static void
visit_class(Check *check, Relation catalog, HeapTuple tuple)
{
	Form_pg_class form = (Form_pg_class) GETSTRUCT(tuple);
	const OnsideShape *shape = check->shape;

	if (strcmp(NameStr(form->relname), shape->name) != 0 ||
		form->relnamespace != check->tables->schema ||
		form->relkind != shape->relkind)
		return;
	check->relid = form->oid;

	/* The table is there.  Can it hold our rows? */
	if (form->relpersistence != RELPERSISTENCE_PERMANENT)
		table_problem(check, "is unlogged, so a crash would empty it", NULL);
	if (form->relrowsecurity || form->relforcerowsecurity)
		table_problem(check, "has row security", NULL);
}

/* Compares a column of ours with the shape. */
static void
check_own_column(Check *check, Form_pg_attribute form)
{
	const OnsideShapeColumn *column = &check->shape->columns[form->attnum - 1];
	const char *wrong = NULL;

	/* Reading and writing depend on the place, the type and NOT NULL. */
	check->unusable |= form->attisdropped || form->atttypid != column->type ||
		(column->not_null && !form->attnotnull);

	/* Name the first difference, the worst one first. */
	if (form->attisdropped)
		wrong = "was dropped";
	else if (strcmp(NameStr(form->attname), column->name) != 0)
		wrong = psprintf("was renamed to \"%s\"", NameStr(form->attname));
	else if (form->atttypid != column->type || form->atttypmod != -1)
		wrong = psprintf("has another type than %s",
						 format_type_be(column->type));
	else if (form->attnotnull != column->not_null)
		wrong = column->not_null ? "has lost its NOT NULL" :
			"has become NOT NULL";
	else if (column->has_default && !form->atthasdef)
		wrong = "has lost its default";
	else if (form->attidentity != '\0' || form->attgenerated != '\0')
		wrong = "is generated";
	if (wrong != NULL)
		part_problem(check, "column", column->name, wrong);
}

/*
 * Compares a column of ours with the shape.  A column that others have added
 * may be there if it needs no value from us.
 */
static void
visit_column(Check *check, Relation catalog, HeapTuple tuple)
{
	Form_pg_attribute form = (Form_pg_attribute) GETSTRUCT(tuple);
	const char *wrong = NULL;

	/* System columns have numbers below 0, and ours come first. */
	if (form->attnum <= 0)
		return;
	if (form->attnum <= check->shape->ncolumns)
	{
		check->ncolumns++;
		check_own_column(check, form);
		return;
	}

	/* What others have dropped is gone. */
	if (form->attisdropped)
		return;

	/* A column of others must be one that we can fill with NULL. */
	if (form->attidentity != '\0')
		wrong = "is an identity column";
	else if (form->attgenerated != '\0')
		wrong = "is generated";
	else if (form->atthasdef)
		wrong = "has a default";
	else if (form->attnotnull)
		wrong = "is NOT NULL";
	else if (get_typtype(form->atttypid) == TYPTYPE_DOMAIN)
		wrong = "has a domain as its type";
	if (wrong != NULL)
		part_problem(check, "column", NameStr(form->attname), wrong);
}

/*
 * Recognizes an index of ours by its name.  An index of others may be there if
 * it is plain: see insert.c.
 */
static void
visit_index(Check *check, Relation catalog, HeapTuple tuple)
{
	Form_pg_index form = (Form_pg_index) GETSTRUCT(tuple);
	char	   *name = relation_name(check, form->indexrelid);
	const char *wrong = NULL;

	/* An index that the snapshot does not show is no part of the table. */
	if (name == NULL)
		return;

	/* Is it one of ours?  If it is not usable, it counts as missing. */
	for (int i = 0; i < ONSIDE_SHAPE_INDEXES; i++)
	{
		const OnsideShapeIndex *ours = &check->shape->indexes[i];

		if (ours->name != NULL && strcmp(name, ours->name) == 0 &&
			form->indisprimary == ours->primary &&
			form->indisunique == ours->primary)
		{
			check->has_index[i] =
				onside_shape_index_is_usable(tuple, check->shape, ours);
			return;
		}
	}

	/* An index of others must refuse no row and compute nothing. */
	if (form->indisexclusion)
		wrong = "is an exclusion constraint's";
	else if (form->indisunique)
		wrong = "is unique";
	else if (!heap_attisnull(tuple, Anum_pg_index_indexprs, NULL))
		wrong = "is on an expression";
	else if (!heap_attisnull(tuple, Anum_pg_index_indpred, NULL))
		wrong = "has a condition";
	if (wrong != NULL)
		part_problem(check, "index", name, wrong);
}

/* Is this trigger one of ours, with our own function? */
static bool
is_trigger(Check *check, Form_pg_trigger form,
		   const OnsideShapeTrigger *ours)
{
	char	   *function = get_func_name(form->tgfoid);

	return ours->name != NULL &&
		strcmp(NameStr(form->tgname), ours->name) == 0 &&
		form->tgtype == ours->type && function != NULL &&
		strcmp(function, ours->function) == 0 &&
		get_func_namespace(form->tgfoid) == check->tables->schema;
}

/*
 * Foreign keys, and constraints that are deferrable, show up as internal
 * triggers.  Other triggers may be there only if they are ours.
 */
static void
visit_trigger(Check *check, Relation catalog, HeapTuple tuple)
{
	Form_pg_trigger form = (Form_pg_trigger) GETSTRUCT(tuple);
	const char *name = NameStr(form->tgname);
	bool		ours = false;

	/* Is it one of ours? */
	for (int i = 0; i < ONSIDE_SHAPE_TRIGGERS; i++)
		if (is_trigger(check, form, &check->shape->triggers[i]))
			ours = check->has_trigger[i] = true;

	/* A trigger of ours must fire in each session, for each row. */
	if (form->tgisinternal)
		table_problem(check, "has a foreign key or a deferrable constraint, or a foreign key refers to it",
					  NULL);
	else if (!ours)
		table_problem(check, "has the trigger", name);
	else if (form->tgenabled != TRIGGER_FIRES_ALWAYS)
		part_problem(check, "trigger", name,
					 "is not enabled ALWAYS; no restore needs --disable-triggers for it");
	else if (!heap_attisnull(tuple, Anum_pg_trigger_tgqual,
							 RelationGetDescr(catalog)))
		part_problem(check, "trigger", name, "has a condition");
}

/*
 * Visits check constraints.  Other constraints have indexes or triggers, by
 * which they are found.
 */
static void
visit_constraint(Check *check, Relation catalog, HeapTuple tuple)
{
	Form_pg_constraint form = (Form_pg_constraint) GETSTRUCT(tuple);

	if (form->contype != CONSTRAINT_CHECK)
		return;
	for (int i = 0; i < ONSIDE_SHAPE_CHECKS; i++)
		if (check->shape->checks[i] != NULL &&
			strcmp(NameStr(form->conname), check->shape->checks[i]) == 0)
		{
			check->has_check[i] = true;
			return;
		}
	table_problem(check, "has the check constraint", NameStr(form->conname));
}

/* A rule would change or replace what others write. */
static void
visit_rule(Check *check, Relation catalog, HeapTuple tuple)
{
	table_problem(check, "has the rule",
				  NameStr(((Form_pg_rewrite) GETSTRUCT(tuple))->rulename));
}

/* A policy would hide rows from SQL. */
static void
visit_policy(Check *check, Relation catalog, HeapTuple tuple)
{
	table_problem(check, "has the policy",
				  NameStr(((Form_pg_policy) GETSTRUCT(tuple))->polname));
}

/* A child must be one of our partitions. */
static void
visit_child(Check *check, Relation catalog, HeapTuple tuple)
{
	Form_pg_inherits form = (Form_pg_inherits) GETSTRUCT(tuple);

	for (int i = 0; i < ONSIDE_TABLES; i++)
		if (form->inhrelid == check->tables->relid[i] &&
			onside_shapes[i].parent != NULL &&
			strcmp(onside_shapes[i].parent, check->shape->name) == 0)
			return;
	table_problem(check, "has as a child the table",
				  relation_name(check, form->inhrelid));
}

/* A parent must be the partitioned table that the shape names. */
static void
visit_parent(Check *check, Relation catalog, HeapTuple tuple)
{
	Form_pg_inherits form = (Form_pg_inherits) GETSTRUCT(tuple);
	char	   *name = relation_name(check, form->inhparent);

	if (check->shape->parent != NULL && name != NULL &&
		strcmp(name, check->shape->parent) == 0 && !form->inhdetachpending)
		check->has_parent = true;
	else
		table_problem(check, "is a child of table", name);
}

/*
 * Goes through all catalogs that say something about the table.  The visitors
 * note what must not be there, and what they have found.  What they have not
 * found is noted at the end.
 */
List *
onside_shape_problems(const OnsideTables *tables, int n, Snapshot snapshot,
					  bool *usable)
{
	const OnsideShape *shape = &onside_shapes[n];
	Oid			relid = tables->relid[n];
	Check		check = {
		.tables = tables, .shape = shape, .snapshot = snapshot
	};

	/* Is the table there at all? */
	visit_rows(&check, RelationRelationId, ClassOidIndexId, Anum_pg_class_oid,
			   relid, visit_class);
	*usable = false;
	if (!OidIsValid(check.relid))
	{
		table_problem(&check, "is not there", NULL);
		return check.problems;
	}

	/* Compare everything that belongs to the table. */
	visit_rows(&check, AttributeRelationId, AttributeRelidNumIndexId,
			   Anum_pg_attribute_attrelid, relid, visit_column);
	visit_rows(&check, IndexRelationId, IndexIndrelidIndexId,
			   Anum_pg_index_indrelid, relid, visit_index);
	visit_rows(&check, TriggerRelationId, TriggerRelidNameIndexId,
			   Anum_pg_trigger_tgrelid, relid, visit_trigger);
	visit_rows(&check, ConstraintRelationId, ConstraintRelidTypidNameIndexId,
			   Anum_pg_constraint_conrelid, relid, visit_constraint);
	visit_rows(&check, RewriteRelationId, RewriteRelRulenameIndexId,
			   Anum_pg_rewrite_ev_class, relid, visit_rule);
	visit_rows(&check, PolicyRelationId, PolicyPolrelidPolnameIndexId,
			   Anum_pg_policy_polrelid, relid, visit_policy);
	visit_rows(&check, InheritsRelationId, InheritsParentIndexId,
			   Anum_pg_inherits_inhparent, relid, visit_child);
	visit_rows(&check, InheritsRelationId, InheritsRelidSeqnoIndexId,
			   Anum_pg_inherits_inhrelid, relid, visit_parent);

	/* Note what was not found. */
	if (check.ncolumns < shape->ncolumns)
		table_problem(&check, "lacks columns", NULL);

	/* For an index, the message has the command that makes it. */
	for (int i = 0; i < ONSIDE_SHAPE_INDEXES; i++)
		if (shape->indexes[i].name != NULL && !check.has_index[i])
			table_problem(&check,
						  psprintf("lacks the index \"%s\", or a usable one, which is made by %s",
								   shape->indexes[i].name,
								   onside_shape_index_command(shape,
															  &shape->indexes[i])),
						  NULL);
	for (int i = 0; i < ONSIDE_SHAPE_TRIGGERS; i++)
		if (shape->triggers[i].name != NULL && !check.has_trigger[i])
			table_problem(&check, "lacks the trigger", shape->triggers[i].name);
	if (shape->parent != NULL && !check.has_parent)
		table_problem(&check, "is no partition any more of", shape->parent);
	for (int i = 0; i < ONSIDE_SHAPE_CHECKS; i++)
		if (shape->checks[i] != NULL && !check.has_check[i])
			table_problem(&check, "lacks the check constraint",
						  shape->checks[i]);

	/* Problems that do not touch reading and writing are left out here. */
	*usable = !check.unusable && check.ncolumns == shape->ncolumns &&
		(!shape->needs_index || check.has_index[0]);
	return check.problems;
}

/* Reads the catalogs as they are now, and joins the problems of all tables. */
char *
onside_shape_report(bool *usable)
{
	OnsideTables tables;
	bool		this_one;
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	(void) onside_shape_find(&tables);
	*usable = true;
	for (int i = 0; i < ONSIDE_TABLES; i++)
	{
		/* NULL stands for a snapshot of the present moment. */
		List	   *problems = onside_shape_problems(&tables, i, NULL,
													 &this_one);

		/* One unusable table is enough. */
		*usable &= this_one;
		foreach(lc, problems)
			appendStringInfo(&buf, "%s%s", buf.len > 0 ? "; " : "",
							 (char *) lfirst(lc));
	}
	return buf.len > 0 ? buf.data : NULL;
}
