/*-------------------------------------------------------------------------
 *
 * shape.c
 *		What the extension's tables have to look like.
 *
 * The tables belong to whoever made the extension, and a DBA alters tables: adds
 * a column for notes, an index for a report, a trigger for an audit.  We read
 * and write these tables directly, by the number of a column, without triggers,
 * rules, policies and constraints.  So this file says what each table looks
 * like, and what else it may get:
 *
 * - columns that may be null and have no default; we write NULL into them;
 * - indexes on columns, not unique, for all rows; we keep them up;
 * - whatever does not change how rows are written and read: an owner, storage
 *	 parameters, a tablespace, a replica identity, statistics, comments.
 *
 * Anything else would run code, change or refuse rows: it would be ignored by
 * what we write directly, or fail in it.  shape_guard.c refuses it in the
 * statement that does it, and doctor() names what was done where this library
 * was not loaded.  What then must not happen is a crash: whoever opens one of
 * the tables calls onside_shape_require(), which compares the types of the
 * columns and costs some nanoseconds, and insert.c computes what must be.
 *
 * The catalogs are read with a snapshot of the caller's choice, directly and
 * not by way of the relation cache, because shape_guard.c asks how a table was
 * before a statement.  No lock on the tables is needed for that.
 *
 * Whoever changes a table in the installation script changes it here, too;
 * test/t/224_altered_tables.pl fails otherwise.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
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
#include "utils/syscache.h"

#include "outbox.h"
#include "shape.h"

/* ----------
 * The tables
 * ----------
 */

#define MAX_KEYS		5
#define MAX_CONSTRAINTS	4

typedef struct OwnColumn
{
	const char *name;
	Oid			type;
	bool		not_null;
	bool		has_default;	/* must have one; any other may */
} OwnColumn;

/* An index that we need. */
typedef struct OwnIndex
{
	const char *name;
	bool		primary;
	AttrNumber	keys[MAX_KEYS]; /* ends with a 0 if there are fewer */
} OwnIndex;

/* A trigger of ours, which has to be enabled ALWAYS. */
typedef struct OwnTrigger
{
	const char *name;
	const char *function;
	int16		type;
} OwnTrigger;

typedef struct Shape
{
	const char *name;
	char		relkind;
	const char *parent;			/* partitioned table, or NULL */
	int			ncolumns;
	const OwnColumn *columns;
	OwnIndex	index;			/* no name: none */
	OwnTrigger	trigger;		/* no name: none */
	const char *checks[MAX_CONSTRAINTS];
} Shape;

#define NULLABLE(name, type) {name, type, false, false}
#define NOT_NULL(name, type) {name, type, true, false}
#define DEFAULTED(name, type) {name, type, true, true}
#define COLUMNS(array) .ncolumns = lengthof(array), .columns = array

static const OwnColumn outbox_columns[] = {
	NOT_NULL("event_id", UUIDOID),
	NOT_NULL("event_name", TEXTOID),
	NOT_NULL("payload", JSONBOID),
	DEFAULTED("event_datetime", TIMESTAMPTZOID),
	NOT_NULL("installation_id", UUIDOID),
	NOT_NULL("recorded_at", TIMESTAMPTZOID),
	NOT_NULL("xid", XID8OID),
	NOT_NULL("id", INT8OID),
	DEFAULTED("segment", INT2OID),
};

#define OUTBOX_CHECKS {"xid_is_the_recording_transaction"}

#define SEGMENT(segment) \
{ \
	.name = segment, .relkind = RELKIND_RELATION, .parent = "outbox", \
	COLUMNS(outbox_columns), \
	.index = {segment "_xid_id_idx", false, \
	{Anum_outbox_xid, Anum_outbox_id}}, \
	.trigger = {"onside_outbox_before_insert", "outbox_before_insert", \
	TRIGGER_TYPE_ROW | TRIGGER_TYPE_BEFORE | TRIGGER_TYPE_INSERT | \
	TRIGGER_TYPE_UPDATE}, \
	.checks = OUTBOX_CHECKS \
}

static const OwnColumn delivery_cursor_columns[] = {
	DEFAULTED("singleton", BOOLOID),
	NOT_NULL("settled", PG_SNAPSHOTOID),
	NULLABLE("settled_window", PG_SNAPSHOTOID),
	NULLABLE("settled_xid", XID8OID),
	NULLABLE("settled_id", INT8OID),
	NOT_NULL("segment", INT2OID),
	NOT_NULL("delivered", INT8OID),
	NOT_NULL("dead_lettered", INT8OID),
	NOT_NULL("requests", INT8OID),
	NOT_NULL("retries", INT8OID),
	NULLABLE("not_before", TIMESTAMPTZOID),
};

static const OwnColumn control_columns[] = {
	DEFAULTED("singleton", BOOLOID),
	NOT_NULL("paused", BOOLOID),
	NULLABLE("pause_reason", TEXTOID),
	NULLABLE("paused_at", TIMESTAMPTZOID),
};

static const OwnColumn dead_letter_columns[] = {
	NULLABLE("event_id", UUIDOID),
	NULLABLE("event_name", TEXTOID),
	NULLABLE("payload", JSONBOID),
	NULLABLE("event_datetime", TIMESTAMPTZOID),
	NULLABLE("installation_id", UUIDOID),
	NULLABLE("http_status", INT4OID),
	NOT_NULL("error", TEXTOID),
	NOT_NULL("attempts", INT4OID),
	NOT_NULL("recorded_at", TIMESTAMPTZOID),
	NOT_NULL("failed_at", TIMESTAMPTZOID),
};

static const OwnColumn attachment_columns[] = {
	NOT_NULL("source", OIDOID),
	NOT_NULL("event_name", TEXTOID),
	NOT_NULL("event_id", INT2OID),
	NOT_NULL("rows_before", PG_SNAPSHOTOID),
	NOT_NULL("attached_by", XID8OID),
	DEFAULTED("attached_at", TIMESTAMPTZOID),
	NOT_NULL("namespace", UUIDOID),
};

static const OwnColumn backfill_state_columns[] = {
	NOT_NULL("source", OIDOID),
	NOT_NULL("event_name", TEXTOID),
	NOT_NULL("role", OIDOID),
	NOT_NULL("since", TIMESTAMPTZOID),
	NOT_NULL("until", TIMESTAMPTZOID),
	NULLABLE("key_columns", INT2ARRAYOID),
	NULLABLE("position", TEXTARRAYOID),
	DEFAULTED("recorded", INT8OID),
	DEFAULTED("skipped", INT8OID),
	DEFAULTED("dead_lettered", INT8OID),
	DEFAULTED("not_due", INT8OID),
	DEFAULTED("left_out", INT8OID),
	DEFAULTED("started_at", TIMESTAMPTZOID),
	DEFAULTED("updated_at", TIMESTAMPTZOID),
	NULLABLE("finished_at", TIMESTAMPTZOID),
};

static const Shape shapes[] = {
	{
		.name = "outbox", .relkind = RELKIND_PARTITIONED_TABLE,
		COLUMNS(outbox_columns),
		.checks = OUTBOX_CHECKS
	},
	SEGMENT("outbox_1"),
	SEGMENT("outbox_2"),
	SEGMENT("outbox_3"),
	{
		.name = "delivery_cursor", .relkind = RELKIND_RELATION,
		COLUMNS(delivery_cursor_columns),
		.index = {"delivery_cursor_pkey", true, {1}},
		.checks = {"delivery_cursor_singleton_check", "delivery_cursor_check",
		"delivery_cursor_check1"}
	},
	{
		.name = "control", .relkind = RELKIND_RELATION,
		COLUMNS(control_columns),
		.index = {"control_pkey", true, {1}},
		.checks = {"control_singleton_check"}
	},
	{
		.name = "dead_letter", .relkind = RELKIND_RELATION,
		COLUMNS(dead_letter_columns),
		.index = {"dead_letter_event_id_idx", false, {Anum_outbox_event_id}}
	},
	{
		.name = "attachment", .relkind = RELKIND_RELATION,
		COLUMNS(attachment_columns),
		.index = {"attachment_pkey", true, {1, 2}}
	},
	{
		.name = "backfill_state", .relkind = RELKIND_RELATION,
		COLUMNS(backfill_state_columns),
		.index = {"backfill_state_pkey", true, {1, 2, 3, 4, 5}}
	},
};

StaticAssertDecl(lengthof(shapes) <= ONSIDE_MAX_TABLES,
				 "ONSIDE_MAX_TABLES is too small");

int
onside_shape_count(void)
{
	return lengthof(shapes);
}

const char *
onside_shape_name(int n)
{
	return shapes[n].name;
}

bool
onside_shape_find(OnsideTables *tables)
{
	tables->schema = get_namespace_oid(ONSIDE_SCHEMA, true);
	if (!OidIsValid(tables->schema))
		return false;
	for (int i = 0; i < (int) lengthof(shapes); i++)
		tables->relid[i] = get_relname_relid(shapes[i].name, tables->schema);
	return true;
}

bool
onside_shape_has_column(int n, const char *column)
{
	for (int i = 0; i < shapes[n].ncolumns; i++)
		if (strcmp(shapes[n].columns[i].name, column) == 0)
			return true;
	return false;
}

bool
onside_shape_has_index(int n, const char *index)
{
	return shapes[n].index.name != NULL &&
		strcmp(shapes[n].index.name, index) == 0;
}

/* ----------
 * Comparing a table with what it has to look like
 * ----------
 */

typedef struct Check
{
	const OnsideTables *tables;
	const Shape *shape;
	Oid			relid;
	Snapshot	snapshot;
	List	   *problems;
	bool		unusable;		/* nobody can read or write it */

	/* which of these have been seen */
	int			ncolumns;
	bool		has_index;
	bool		has_trigger;
	bool		has_parent;
	bool		has_check[MAX_CONSTRAINTS];
} Check;

typedef void (*Visitor) (Check *check, Relation catalog, HeapTuple tuple);

#define problem(check, ...) \
	((check)->problems = lappend((check)->problems, psprintf(__VA_ARGS__)))

/* Calls visit for the rows of a catalog that have this OID in this column. */
static void
walk(Check *check, Oid catalog, Oid index, AttrNumber column, Oid value,
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

/* The name of a relation in our snapshot; NULL if it is not there. */
static char *
relation_name(Check *check, Oid relid)
{
	Relation	rel = table_open(RelationRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	char	   *name = NULL;

	ScanKeyInit(&key, Anum_pg_class_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	scan = systable_beginscan(rel, ClassOidIndexId, true, check->snapshot, 1,
							  &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		name = pstrdup(NameStr(((Form_pg_class) GETSTRUCT(tuple))->relname));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return name;
}

static void
visit_class(Check *check, Relation catalog, HeapTuple tuple)
{
	Form_pg_class form = (Form_pg_class) GETSTRUCT(tuple);
	const Shape *shape = check->shape;

	if (strcmp(NameStr(form->relname), shape->name) != 0 ||
		form->relnamespace != check->tables->schema ||
		form->relkind != shape->relkind)
		return;
	check->relid = form->oid;
	if (form->relpersistence != RELPERSISTENCE_PERMANENT)
		problem(check, "table %s.%s is unlogged, so a crash would empty it",
				ONSIDE_SCHEMA, shape->name);
	if (form->relrowsecurity || form->relforcerowsecurity)
		problem(check, "table %s.%s has row security", ONSIDE_SCHEMA,
				shape->name);
}

/* A column of ours has to be the same, in all that matters to us. */
static void
check_own_column(Check *check, Form_pg_attribute form)
{
	const char *table = check->shape->name;
	const OwnColumn *column = &check->shape->columns[form->attnum - 1];

	check->unusable |= form->attisdropped || form->atttypid != column->type ||
		(column->not_null && !form->attnotnull);
	if (form->attisdropped)
		problem(check, "column \"%s\" of table %s.%s was dropped",
				column->name, ONSIDE_SCHEMA, table);
	else if (strcmp(NameStr(form->attname), column->name) != 0)
		problem(check, "column \"%s\" of table %s.%s was renamed to \"%s\"",
				column->name, ONSIDE_SCHEMA, table, NameStr(form->attname));
	else if (form->atttypid != column->type || form->atttypmod != -1)
		problem(check, "column \"%s\" of table %s.%s has another type than %s",
				column->name, ONSIDE_SCHEMA, table,
				format_type_be(column->type));
	else if (form->attnotnull != column->not_null)
		problem(check, column->not_null ?
				"column \"%s\" of table %s.%s has lost its NOT NULL" :
				"column \"%s\" of table %s.%s has become NOT NULL",
				column->name, ONSIDE_SCHEMA, table);
	else if (column->has_default && !form->atthasdef)
		problem(check, "column \"%s\" of table %s.%s has lost its default",
				column->name, ONSIDE_SCHEMA, table);
	else if (form->attidentity != '\0' || form->attgenerated != '\0')
		problem(check, "column \"%s\" of table %s.%s is generated",
				column->name, ONSIDE_SCHEMA, table);
}

static void
visit_column(Check *check, Relation catalog, HeapTuple tuple)
{
	Form_pg_attribute form = (Form_pg_attribute) GETSTRUCT(tuple);
	const char *table = check->shape->name;
	const char *wrong = NULL;

	if (form->attnum <= 0)
		return;
	if (form->attnum <= check->shape->ncolumns)
	{
		check->ncolumns++;
		check_own_column(check, form);
		return;
	}
	if (form->attisdropped)
		return;

	/* The rules for others' columns. */
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
		problem(check, "column \"%s\" of table %s.%s %s",
				NameStr(form->attname), ONSIDE_SCHEMA, table, wrong);
}

static bool
has_keys(Form_pg_index form, const OwnIndex *index)
{
	for (int i = 0; i < MAX_KEYS; i++)
	{
		AttrNumber	key = i < form->indnkeyatts ? form->indkey.values[i] : 0;

		if (key != index->keys[i])
			return false;
	}
	return form->indnkeyatts <= MAX_KEYS;
}

/* Can our index be read by, in ascending order, and has it all rows? */
static bool
is_usable(Relation catalog, HeapTuple tuple, const OwnIndex *index)
{
	Form_pg_index form = (Form_pg_index) GETSTRUCT(tuple);
	Datum		datum;
	bool		isnull;
	int2vector *options;

	if (!form->indisvalid || !form->indisready || !form->indislive ||
		!has_keys(form, index) ||
		!heap_attisnull(tuple, Anum_pg_index_indexprs, NULL) ||
		!heap_attisnull(tuple, Anum_pg_index_indpred, NULL))
		return false;
	datum = fastgetattr(tuple, Anum_pg_index_indoption,
						RelationGetDescr(catalog), &isnull);
	options = (int2vector *) DatumGetPointer(datum);
	for (int i = 0; i < form->indnkeyatts; i++)
		if (options->values[i] != 0)
			return false;
	return true;
}

static void
visit_index(Check *check, Relation catalog, HeapTuple tuple)
{
	Form_pg_index form = (Form_pg_index) GETSTRUCT(tuple);
	const OwnIndex *ours = &check->shape->index;
	char	   *name = relation_name(check, form->indexrelid);
	const char *wrong = NULL;

	if (name == NULL)
		return;
	if (ours->name != NULL && strcmp(name, ours->name) == 0 &&
		form->indisunique == ours->primary)
	{
		check->has_index = is_usable(catalog, tuple, ours);
		return;
	}
	if (form->indisexclusion)
		wrong = "is an exclusion constraint's";
	else if (form->indisunique)
		wrong = "is unique";
	else if (!heap_attisnull(tuple, Anum_pg_index_indexprs, NULL))
		wrong = "is on an expression";
	else if (!heap_attisnull(tuple, Anum_pg_index_indpred, NULL))
		wrong = "has a condition";
	if (wrong != NULL)
		problem(check, "index \"%s\" of table %s.%s %s", name, ONSIDE_SCHEMA,
				check->shape->name, wrong);
}

static bool
is_own_trigger(Check *check, Form_pg_trigger form)
{
	const OwnTrigger *ours = &check->shape->trigger;
	char	   *function = get_func_name(form->tgfoid);

	return ours->name != NULL &&
		strcmp(NameStr(form->tgname), ours->name) == 0 &&
		form->tgtype == ours->type && function != NULL &&
		strcmp(function, ours->function) == 0 &&
		get_func_namespace(form->tgfoid) == check->tables->schema;
}

static void
visit_trigger(Check *check, Relation catalog, HeapTuple tuple)
{
	Form_pg_trigger form = (Form_pg_trigger) GETSTRUCT(tuple);
	const char *table = check->shape->name;

	if (!is_own_trigger(check, form))
		problem(check, form->tgisinternal ?
				"table %s.%s has a foreign key or a deferrable constraint, or is referred to by a foreign key" :
				"table %s.%s has the trigger \"%s\"",
				ONSIDE_SCHEMA, table, NameStr(form->tgname));
	else
	{
		check->has_trigger = true;
		if (form->tgenabled != TRIGGER_FIRES_ALWAYS)
			problem(check, "trigger \"%s\" of table %s.%s is not enabled ALWAYS; no restore needs --disable-triggers for it",
					NameStr(form->tgname), ONSIDE_SCHEMA, table);
		if (!heap_attisnull(tuple, Anum_pg_trigger_tgqual,
							RelationGetDescr(catalog)))
			problem(check, "trigger \"%s\" of table %s.%s has a condition",
					NameStr(form->tgname), ONSIDE_SCHEMA, table);
	}
}

/* Others than check constraints are seen by their indexes and triggers. */
static void
visit_constraint(Check *check, Relation catalog, HeapTuple tuple)
{
	Form_pg_constraint form = (Form_pg_constraint) GETSTRUCT(tuple);

	if (form->contype != CONSTRAINT_CHECK)
		return;
	for (int i = 0; i < MAX_CONSTRAINTS; i++)
		if (check->shape->checks[i] != NULL &&
			strcmp(NameStr(form->conname), check->shape->checks[i]) == 0)
		{
			check->has_check[i] = true;
			return;
		}
	problem(check, "table %s.%s has the check constraint \"%s\"",
			ONSIDE_SCHEMA, check->shape->name, NameStr(form->conname));
}

static void
visit_rule(Check *check, Relation catalog, HeapTuple tuple)
{
	problem(check, "table %s.%s has the rule \"%s\"", ONSIDE_SCHEMA,
			check->shape->name,
			NameStr(((Form_pg_rewrite) GETSTRUCT(tuple))->rulename));
}

static void
visit_policy(Check *check, Relation catalog, HeapTuple tuple)
{
	problem(check, "table %s.%s has the policy \"%s\"", ONSIDE_SCHEMA,
			check->shape->name,
			NameStr(((Form_pg_policy) GETSTRUCT(tuple))->polname));
}

static void
visit_child(Check *check, Relation catalog, HeapTuple tuple)
{
	Form_pg_inherits form = (Form_pg_inherits) GETSTRUCT(tuple);
	char	   *name;

	for (int i = 0; i < (int) lengthof(shapes); i++)
		if (form->inhrelid == check->tables->relid[i] &&
			shapes[i].parent != NULL &&
			strcmp(shapes[i].parent, check->shape->name) == 0)
			return;
	name = relation_name(check, form->inhrelid);
	problem(check, "table \"%s\" is a child of table %s.%s",
			name != NULL ? name : "?", ONSIDE_SCHEMA, check->shape->name);
}

static void
visit_parent(Check *check, Relation catalog, HeapTuple tuple)
{
	Form_pg_inherits form = (Form_pg_inherits) GETSTRUCT(tuple);
	char	   *name = relation_name(check, form->inhparent);

	if (check->shape->parent != NULL && name != NULL &&
		strcmp(name, check->shape->parent) == 0 && !form->inhdetachpending)
		check->has_parent = true;
	else
		problem(check, "table %s.%s is a child of table \"%s\"",
				ONSIDE_SCHEMA, check->shape->name, name != NULL ? name : "?");
}

List *
onside_shape_problems(const OnsideTables *tables, int n, Snapshot snapshot,
					  bool *usable)
{
	const Shape *shape = &shapes[n];
	Oid			relid = tables->relid[n];
	Check		check = {.tables = tables, .shape = shape, .snapshot = snapshot};

	/* visit_class() finds out whether it is there, by its name. */
	walk(&check, RelationRelationId, ClassOidIndexId, Anum_pg_class_oid,
		 relid, visit_class);
	*usable = false;
	if (!OidIsValid(check.relid))
	{
		problem(&check, "table %s.%s is not there", ONSIDE_SCHEMA, shape->name);
		return check.problems;
	}

	walk(&check, AttributeRelationId, AttributeRelidNumIndexId,
		 Anum_pg_attribute_attrelid, relid, visit_column);
	walk(&check, IndexRelationId, IndexIndrelidIndexId,
		 Anum_pg_index_indrelid, relid, visit_index);
	walk(&check, TriggerRelationId, TriggerRelidNameIndexId,
		 Anum_pg_trigger_tgrelid, relid, visit_trigger);
	walk(&check, ConstraintRelationId, ConstraintRelidTypidNameIndexId,
		 Anum_pg_constraint_conrelid, relid, visit_constraint);
	walk(&check, RewriteRelationId, RewriteRelRulenameIndexId,
		 Anum_pg_rewrite_ev_class, relid, visit_rule);
	walk(&check, PolicyRelationId, PolicyPolrelidPolnameIndexId,
		 Anum_pg_policy_polrelid, relid, visit_policy);
	walk(&check, InheritsRelationId, InheritsParentIndexId,
		 Anum_pg_inherits_inhparent, relid, visit_child);
	walk(&check, InheritsRelationId, InheritsRelidSeqnoIndexId,
		 Anum_pg_inherits_inhrelid, relid, visit_parent);

	/* What has not come by. */
	if (check.ncolumns < shape->ncolumns)
		problem(&check, "table %s.%s lacks columns", ONSIDE_SCHEMA,
				shape->name);
	if (shape->index.name != NULL && !check.has_index)
		problem(&check, "table %s.%s lacks the index \"%s\", or it is not usable",
				ONSIDE_SCHEMA, shape->name, shape->index.name);
	if (shape->trigger.name != NULL && !check.has_trigger)
		problem(&check, "table %s.%s lacks the trigger \"%s\"", ONSIDE_SCHEMA,
				shape->name, shape->trigger.name);
	if (shape->parent != NULL && !check.has_parent)
		problem(&check, "table %s.%s is no partition of %s any more",
				ONSIDE_SCHEMA, shape->name, shape->parent);
	for (int i = 0; i < MAX_CONSTRAINTS; i++)
		if (shape->checks[i] != NULL && !check.has_check[i])
			problem(&check, "table %s.%s lacks the check constraint \"%s\"",
					ONSIDE_SCHEMA, shape->name, shape->checks[i]);
	*usable = !check.unusable && check.ncolumns == shape->ncolumns &&
		(shape->index.name == NULL || check.has_index);
	return check.problems;
}

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
	for (int i = 0; i < (int) lengthof(shapes); i++)
	{
		List	   *problems = onside_shape_problems(&tables, i, NULL,
													 &this_one);

		*usable &= this_one;
		foreach(lc, problems)
			appendStringInfo(&buf, "%s%s", buf.len > 0 ? "; " : "",
							 (char *) lfirst(lc));
	}
	return buf.len > 0 ? buf.data : NULL;
}

/* ----------
 * Before a table is read or written
 * ----------
 */

bool
onside_shape_is_segment(Relation rel)
{
	for (int i = 0; i < (int) lengthof(shapes); i++)
		if (shapes[i].parent != NULL &&
			strcmp(shapes[i].name, RelationGetRelationName(rel)) == 0)
			return true;
	return false;
}

static const Shape *
shape_of(Relation rel)
{
	for (int i = 0; i < (int) lengthof(shapes); i++)
		if (strcmp(shapes[i].name, RelationGetRelationName(rel)) == 0)
			return &shapes[i];
	elog(ERROR, "\"%s\" is not a table of " ONSIDE_SCHEMA,
		 RelationGetRelationName(rel));
}

int
onside_shape_require(Relation rel, bool to_read)
{
	const Shape *shape = shape_of(rel);
	TupleDesc	tupdesc = RelationGetDescr(rel);

	for (int i = 0; i < shape->ncolumns; i++)
	{
		const OwnColumn *column = &shape->columns[i];
		Form_pg_attribute attr = i < tupdesc->natts ?
			TupleDescAttr(tupdesc, i) : NULL;

		if (attr != NULL && !attr->attisdropped &&
			attr->atttypid == column->type &&
			(!to_read || !column->not_null || attr->attnotnull))
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s.%s\" was altered: its column \"%s\" is not as the extension made it",
						ONSIDE_SCHEMA, shape->name, column->name),
				 errdetail("The column should have the type %s%s.",
						   format_type_be(column->type),
						   column->not_null ? " and be NOT NULL" : ""),
				 errhint("Undo that with ALTER TABLE; the check \"tables\" of %s.doctor() lists all that was altered.",
						 ONSIDE_SCHEMA),
				 errtable(rel)));
	}
	return shape->ncolumns;
}

/* The command that makes an index. */
static char *
index_command(const Shape *shape)
{
	StringInfoData buf;

	initStringInfo(&buf);
	if (shape->index.primary)
		appendStringInfo(&buf, "ALTER TABLE %s.%s ADD CONSTRAINT %s PRIMARY KEY (",
						 ONSIDE_SCHEMA, shape->name, shape->index.name);
	else
		appendStringInfo(&buf, "CREATE INDEX %s ON %s.%s (", shape->index.name,
						 ONSIDE_SCHEMA, shape->name);
	for (int i = 0; i < MAX_KEYS && shape->index.keys[i] != 0; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "",
						 shape->columns[shape->index.keys[i] - 1].name);
	appendStringInfoString(&buf, ");");
	return buf.data;
}

Oid
onside_shape_index(Relation rel)
{
	const Shape *shape = shape_of(rel);
	Oid			index = onside_relation_oid(shape->index.name);
	HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	bool		usable = false;

	if (HeapTupleIsValid(tuple))
	{
		Form_pg_index form = (Form_pg_index) GETSTRUCT(tuple);

		usable = form->indrelid == RelationGetRelid(rel) &&
			form->indisvalid && has_keys(form, &shape->index);
		ReleaseSysCache(tuple);
	}
	if (!usable)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table \"%s.%s\" lacks its index \"%s\", or it is not usable",
						ONSIDE_SCHEMA, shape->name, shape->index.name),
				 errhint("%s%s",
						 OidIsValid(index) ?
						 psprintf("DROP INDEX %s.%s; ", ONSIDE_SCHEMA,
								  shape->index.name) : "",
						 index_command(shape)),
				 errtable(rel)));
	return index;
}
