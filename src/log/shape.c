/*-------------------------------------------------------------------------
 *
 * shape.c
 *		What the extension's tables have to look like.
 *
 * The tables belong to the role that has made the extension, and DBAs alter
 * tables: they add a column for notes, an index for a report, a trigger for an
 * audit.  We read and write these tables directly, by the number of a column,
 * without triggers, rules, policies and constraints.  So this file says what
 * each table looks like, and what else it may get:
 *
 * - columns that may be null and have no default; we write NULL into them;
 *
 * - indexes on columns, not unique, for all rows; we maintain them;
 *
 * - whatever does not change how rows are written and read: an owner, storage
 *	 parameters, a tablespace, a replica identity, statistics, comments.
 *
 * Anything else would run code, or change or refuse rows.  Our direct writing
 * would ignore it, or fail because of it.  shape_guard.c refuses the statement
 * that makes such a change.  doctor() names the changes that were made while
 * this library was not loaded.  shape_check.c compares for both.
 *
 * An altered table must not crash us.  So whoever opens one of the tables calls
 * onside_shape_require(), which compares the columns' types and costs some
 * nanoseconds.  insert.c computes what a row needs.
 *
 * Nothing here takes a lock on a table.  The caller has the table open.
 *
 * Whoever changes a table in the installation script changes it here, too;
 * test/t/225_altered_tables.pl fails otherwise.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_index.h"
#include "catalog/pg_opclass.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "log/shape.h"
#include "log/tables.h"

/* ----------
 * The tables
 * ----------
 */

#define NULLABLE(name, type) {name, type, false, false}
#define NOT_NULL(name, type) {name, type, true, false}
#define DEFAULTED(name, type) {name, type, true, true}
#define COLUMNS(array) .ncolumns = lengthof(array), .columns = array

static const OnsideShapeColumn outbox_columns[] = {
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
	.needs_index = true, \
	.indexes = {{segment "_xid_id_idx", false, \
	{Anum_outbox_xid, Anum_outbox_id}}}, \
	.triggers = {EVENT_TRIGGER, RESCUE_TRIGGERS}, \
	.checks = OUTBOX_CHECKS \
}

#define BEFORE_ANY_ROW \
	(TRIGGER_TYPE_ROW | TRIGGER_TYPE_BEFORE | TRIGGER_TYPE_INSERT | \
	 TRIGGER_TYPE_UPDATE | TRIGGER_TYPE_DELETE)

#define EVENT_TRIGGER {"onside_before_change", "before_change", BEFORE_ANY_ROW}
#define STATE_TRIGGER {"onside_keep_state", "keep_state", BEFORE_ANY_ROW}
#define RESCUE_TRIGGERS \
	{"onside_before_truncate", "before_truncate", \
	TRIGGER_TYPE_BEFORE | TRIGGER_TYPE_TRUNCATE}, \
	{"onside_after_truncate", "after_truncate", TRIGGER_TYPE_TRUNCATE}

static const OnsideShapeColumn delivery_cursor_columns[] = {
	DEFAULTED("singleton", BOOLOID),
	NULLABLE("written_by", XID8OID),
	NOT_NULL("settled", PG_SNAPSHOTOID),
	NULLABLE("settled_window", PG_SNAPSHOTOID),
	NULLABLE("settled_xid", XID8OID),
	NULLABLE("settled_id", INT8OID),
	NOT_NULL("segment", INT2OID),
	NULLABLE("begun_at", TIMESTAMPTZARRAYOID),
	NULLABLE("left_at", TIMESTAMPTZARRAYOID),
	NOT_NULL("delivered", INT8OID),
	NOT_NULL("dead_lettered", INT8OID),
	NOT_NULL("requests", INT8OID),
	NOT_NULL("retries", INT8OID),
	NOT_NULL("refused_in_row", INT4OID),
	NULLABLE("trouble_since", TIMESTAMPTZOID),
	NULLABLE("not_before", TIMESTAMPTZOID),
};

static const OnsideShapeColumn control_columns[] = {
	DEFAULTED("singleton", BOOLOID),
	NULLABLE("written_by", XID8OID),
	NOT_NULL("paused", BOOLOID),
	NULLABLE("pause_reason", TEXTOID),
	NULLABLE("paused_at", TIMESTAMPTZOID),
};

static const OnsideShapeColumn aside_columns[] = {
	NOT_NULL("event_id", UUIDOID),
	NOT_NULL("event_name", TEXTOID),
	NOT_NULL("payload", JSONBOID),
	NOT_NULL("event_datetime", TIMESTAMPTZOID),
	NOT_NULL("installation_id", UUIDOID),
	NOT_NULL("recorded_at", TIMESTAMPTZOID),
	NOT_NULL("failed_at", TIMESTAMPTZOID),
	NULLABLE("http_status", INT4OID),
	NOT_NULL("error", TEXTOID),
	DEFAULTED("id", UUIDOID),
};

static const OnsideShapeColumn dead_letter_columns[] = {
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
	NULLABLE("retry_at", TIMESTAMPTZOID),
	NULLABLE("source", TEXTOID),
	NULLABLE("chances", INT2OID),
	DEFAULTED("id", UUIDOID),
};

static const OnsideShapeColumn namespace_columns[] = {
	DEFAULTED("singleton", BOOLOID),
	DEFAULTED("id", UUIDOID),
};

static const OnsideShapeColumn backfill_state_columns[] = {
	NOT_NULL("source", OIDOID),
	NOT_NULL("event_name", TEXTOID),
	NOT_NULL("since", TIMESTAMPTZOID),
	NOT_NULL("until", TIMESTAMPTZOID),
	NOT_NULL("pass", INT2OID),
	NOT_NULL("done", OIDARRAYOID),
	NOT_NULL("partition", OIDOID),
	NOT_NULL("file", OIDOID),
	NOT_NULL("place", TIDOID),
	NOT_NULL("estimated", INT8OID),
	NOT_NULL("rows_read", INT8OID),
	NOT_NULL("recorded", INT8OID),
	NOT_NULL("skipped", INT8OID),
	NOT_NULL("dead_lettered", INT8OID),
	NOT_NULL("not_due", INT8OID),
	NOT_NULL("started_at", TIMESTAMPTZOID),
	NOT_NULL("updated_at", TIMESTAMPTZOID),
	NULLABLE("before", INT8ARRAYOID),
	NULLABLE("now", INT8ARRAYOID),
	NULLABLE("finished_at", TIMESTAMPTZOID),
};

const OnsideShape onside_shapes[] = {
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
		.needs_index = true,
		.indexes = {{"delivery_cursor_pkey", true, {1}}},
		.triggers = {STATE_TRIGGER},
		.checks = {"delivery_cursor_singleton_check", "delivery_cursor_check",
		"delivery_cursor_check1"}
	},
	{
		.name = "control", .relkind = RELKIND_RELATION,
		COLUMNS(control_columns),
		.needs_index = true,
		.indexes = {{"control_pkey", true, {1}}},
		.triggers = {STATE_TRIGGER, RESCUE_TRIGGERS},
		.checks = {"control_singleton_check"}
	},
	{
		.name = "aside", .relkind = RELKIND_RELATION,
		COLUMNS(aside_columns),
		.indexes = {
			{"aside_recorded_at_id_idx", false,
			{Anum_outbox_recorded_at, Anum_aside_id}},
			{"aside_pkey", true, {Anum_aside_id}}
		},
		.triggers = {EVENT_TRIGGER, RESCUE_TRIGGERS}
	},
	{
		.name = "dead_letter", .relkind = RELKIND_RELATION,
		COLUMNS(dead_letter_columns),
		.indexes = {
			{"dead_letter_event_id_idx", false, {Anum_outbox_event_id}},
			{"dead_letter_chances_idx", false, {
				Anum_dead_letter_http_status, Anum_outbox_event_name,
				Anum_dead_letter_retry_at, Anum_dead_letter_id
			}},
			{"dead_letter_pkey", true, {Anum_dead_letter_id}}
		}
	},
	{
		.name = "namespace", .relkind = RELKIND_RELATION,
		COLUMNS(namespace_columns),
		.indexes = {{"namespace_pkey", true, {1}}},
		.triggers = {
			{"onside_take_namespace", "take_namespace", BEFORE_ANY_ROW},
			RESCUE_TRIGGERS
		},
		.checks = {"namespace_singleton_check"}
	},
	{
		.name = "backfill_state", .relkind = RELKIND_RELATION,
		COLUMNS(backfill_state_columns),
		.needs_index = true,
		.indexes = {{"backfill_state_pkey", true, {1, 2, 3, 4}}},
		.triggers = {STATE_TRIGGER}
	},
};

/* Looks the tables up by their names, which nobody may change. */
bool
onside_shape_find(OnsideTables *tables)
{
	tables->schema = get_namespace_oid(ONSIDE_SCHEMA, true);
	if (!OidIsValid(tables->schema))
		return false;
	for (int i = 0; i < ONSIDE_TABLES; i++)
		tables->relid[i] = get_relname_relid(onside_shapes[i].name,
											 tables->schema);
	return true;
}

/* ----------
 * Before a table is read or written
 * ----------
 */

/* The shape of a table, by its name alone; NULL if it is not ours. */
static const OnsideShape *
find_shape(Relation rel)
{
	for (int i = 0; i < ONSIDE_TABLES; i++)
		if (strcmp(onside_shapes[i].name, RelationGetRelationName(rel)) == 0)
			return &onside_shapes[i];
	return NULL;
}

/* The shape of a table of ours. */
static const OnsideShape *
shape_of(Relation rel)
{
	const OnsideShape *shape = find_shape(rel);

	if (shape == NULL)
		elog(ERROR, "\"%s\" is not a table of " ONSIDE_SCHEMA,
			 RelationGetRelationName(rel));
	return shape;
}

bool
onside_shape_is_segment(Relation rel)
{
	const OnsideShape *shape = find_shape(rel);

	return shape != NULL && shape->parent != NULL;
}

bool
onside_shape_is_aside(Relation rel)
{
	const OnsideShape *shape = find_shape(rel);

	return shape != NULL && shape->columns == aside_columns;
}

/*
 * Compares only what reading and writing depend on: columns, their types, and
 * to read also NOT NULL.  The relation cache has all of that, so this costs
 * next to nothing for each event.
 */
int
onside_shape_require(Relation rel, bool to_read)
{
	const OnsideShape *shape = shape_of(rel);
	TupleDesc	tupdesc = RelationGetDescr(rel);

	for (int i = 0; i < shape->ncolumns; i++)
	{
		const OnsideShapeColumn *column = &shape->columns[i];
		Form_pg_attribute attr = i < tupdesc->natts ?
			TupleDescAttr(tupdesc, i) : NULL;

		/* Most often this column, and each other one, is as it was. */
		if (attr != NULL && !attr->attisdropped &&
			attr->atttypid == column->type &&
			(!to_read || !column->not_null || attr->attnotnull))
			continue;

		/* The first column that differs is enough for a message. */
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

/* ----------
 * Indexes
 * ----------
 */

/*
 * Does the index compare this column byte by byte?  That is so for a text in an
 * index that is no primary key.  Then a new version of the system's collations
 * does not leave the index in a wrong order.
 */
static bool
is_bytewise(const OnsideShape *shape, const OnsideShapeIndex *index, int i)
{
	return !index->primary &&
		shape->columns[index->keys[i] - 1].type == TEXTOID;
}

/* The command that a person can give to make the index again. */
char *
onside_shape_index_command(const OnsideShape *shape,
						   const OnsideShapeIndex *index)
{
	StringInfoData buf;

	initStringInfo(&buf);

	/* A primary key is a constraint, and made as one. */
	if (index->primary)
		appendStringInfo(&buf, "ALTER TABLE %s.%s ADD CONSTRAINT %s PRIMARY KEY (",
						 ONSIDE_SCHEMA, shape->name, index->name);
	else
		appendStringInfo(&buf, "CREATE INDEX %s ON %s.%s (", index->name,
						 ONSIDE_SCHEMA, shape->name);

	/* The columns, by their names. */
	for (int i = 0; i < ONSIDE_SHAPE_KEYS && index->keys[i] != 0; i++)
		appendStringInfo(&buf, "%s%s%s", i > 0 ? ", " : "",
						 shape->columns[index->keys[i] - 1].name,
						 is_bytewise(shape, index, i) ? " COLLATE \"C\"" : "");
	appendStringInfoString(&buf, ");");
	return buf.data;
}

/* Reads one of the vectors at the end of a row of pg_index. */
static void *
read_vector(HeapTuple tuple, AttrNumber attnum)
{
	bool		isnull;

	return DatumGetPointer(SysCacheGetAttr(INDEXRELID, tuple, attnum, &isnull));
}

/*
 * Is it a btree?  The operator class of its first column says so, also of an
 * index that has just been dropped, and that a snapshot of before shows.
 */
static bool
is_btree(HeapTuple tuple)
{
	oidvector  *classes = read_vector(tuple, Anum_pg_index_indclass);
	HeapTuple	opclass = SearchSysCache1(CLAOID,
										  ObjectIdGetDatum(classes->values[0]));
	bool		result = HeapTupleIsValid(opclass) &&
		((Form_pg_opclass) GETSTRUCT(opclass))->opcmethod == BTREE_AM_OID;

	if (HeapTupleIsValid(opclass))
		ReleaseSysCache(opclass);
	return result;
}

/*
 * An index is usable if it is a btree, finished, on the columns of the shape in
 * this order, ascending, and without expressions and conditions.
 */
bool
onside_shape_index_is_usable(HeapTuple tuple, const OnsideShape *shape,
							 const OnsideShapeIndex *index)
{
	Form_pg_index form = (Form_pg_index) GETSTRUCT(tuple);
	oidvector  *collations;
	int2vector *options;

	if (!form->indisvalid || !form->indisready || !form->indislive ||
		!is_btree(tuple) ||
		form->indnkeyatts > ONSIDE_SHAPE_KEYS ||
		!heap_attisnull(tuple, Anum_pg_index_indexprs, NULL) ||
		!heap_attisnull(tuple, Anum_pg_index_indpred, NULL))
		return false;

	/* Compare column by column; option 0 is ascending, NULLs last. */
	collations = read_vector(tuple, Anum_pg_index_indcollation);
	options = read_vector(tuple, Anum_pg_index_indoption);
	for (int i = 0; i < ONSIDE_SHAPE_KEYS; i++)
	{
		/* The index ends here.  Does the shape, too? */
		if (i >= form->indnkeyatts)
			return index->keys[i] == 0;
		if (form->indkey.values[i] != index->keys[i] ||
			options->values[i] != 0 ||
			(is_bytewise(shape, index, i) &&
			 collations->values[i] != C_COLLATION_OID))
			return false;
	}
	return true;
}

/* The OID of an index of the table; InvalidOid if it is missing or unusable. */
static Oid
usable_index(Relation rel, const OnsideShape *shape,
			 const OnsideShapeIndex *index)
{
	Oid			oid = onside_relation_oid(index->name);
	HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(oid));

	if (!HeapTupleIsValid(tuple))
		return InvalidOid;

	/* An index of this name can be on another table. */
	if (((Form_pg_index) GETSTRUCT(tuple))->indrelid != RelationGetRelid(rel) ||
		!onside_shape_index_is_usable(tuple, shape, index))
		oid = InvalidOid;
	ReleaseSysCache(tuple);
	return oid;
}

/* Knows the indexes of the shape by their names. */
Oid
onside_shape_find_index(Relation rel, const char *name)
{
	const OnsideShape *shape = shape_of(rel);

	for (int i = 0; i < ONSIDE_SHAPE_INDEXES; i++)
		if (shape->indexes[i].name != NULL &&
			strcmp(shape->indexes[i].name, name) == 0)
			return usable_index(rel, shape, &shape->indexes[i]);
	elog(ERROR, "\"%s\" is not an index of table \"%s\"", name, shape->name);
}

/*
 * Nobody can read a segment without its index.  So a missing index is an error,
 * and the hint has the commands that make the index again.
 */
Oid
onside_shape_index(Relation rel)
{
	const OnsideShape *shape = shape_of(rel);
	const OnsideShapeIndex *index = &shape->indexes[0];
	Oid			oid = usable_index(rel, shape, index);

	/* An unusable index of this name has to be dropped first. */
	if (!OidIsValid(oid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table \"%s.%s\" lacks its index \"%s\", or it is not usable",
						ONSIDE_SCHEMA, shape->name, index->name),
				 errhint("%s%s",
						 OidIsValid(onside_relation_oid(index->name)) ?
						 psprintf("DROP INDEX %s.%s; ", ONSIDE_SCHEMA,
								  index->name) : "",
						 onside_shape_index_command(shape, index)),
				 errtable(rel)));
	return oid;
}
