/*-------------------------------------------------------------------------
 *
 * attachable.c
 *		Can this relation be attached?
 *
 * attach() refuses what can never become an event, with a hint that names a way
 * that works.  What may be a mistake is a warning, and the table is attached.
 *
 * attach.c checks a relation's kind and the caller's privileges before it waits
 * for a lock: the kind cannot change, and a table cannot become a shard.  It
 * checks columns under its lock.  detach and backfill ask here for privileges
 * and shards, too.  No lock is taken here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/formatting.h"
#include "utils/lsyscache.h"

#include "attach/attachable.h"
#include "compat.h"
#include "log/event.h"
#include "log/tables.h"
#include "record/citus.h"

/* ----------
 * Relations
 * ----------
 */

/*
 * Why the relation cannot be attached, to be read after its name, and what to
 * do about it.  NULL if it can be attached.
 */
static const char *
find_refusal(Oid relid, const char **hint)
{
	/* What PostgreSQL has made fires no triggers. */
	if (relid < FirstNormalObjectId)
	{
		*hint = "Attach a table of your own.";
		return "is a system catalog";
	}

	/* Our own tables would report what is reported. */
	if (getExtensionOfObject(RelationRelationId, relid) ==
		get_extension_oid(ONSIDE_SCHEMA, true))
	{
		*hint = "Attach the table of your own whose rows are to be reported.";
		return "belongs to the extension " ONSIDE_SCHEMA;
	}

	/* A trigger needs a table that stores the rows. */
	switch (get_rel_relkind(relid))
	{
		case RELKIND_RELATION:
		case RELKIND_PARTITIONED_TABLE:
			break;
		case RELKIND_VIEW:
			*hint = "Attach the table that the view reads. What the view joins to it, a mapper can join: attach(..., mapper => 'function').";
			return "is not a table but a view";
		case RELKIND_MATVIEW:
			*hint = "REFRESH fires no triggers. Attach the table that the materialized view reads. What it joins to it, a mapper can join: attach(..., mapper => 'function').";
			return "is not a table but a materialized view";
		case RELKIND_FOREIGN_TABLE:
			*hint = "Rows that are written at its server would not be seen. Attach the table there, with the extension in that database.";
			return "is not a table but a foreign table";
		default:
			*hint = "Attach the table in which the rows are stored.";
			return "is not a table";
	}

	/* The trigger of a temporary table ends with the session. */
	if (get_rel_persistence(relid) == RELPERSISTENCE_TEMP)
	{
		*hint = "It ends with its session, and its trigger does. Attach the table where its rows go, or call onside_attribution.track() where they are written.";
		return "is a temporary table";
	}
	return NULL;
}

void
onside_attachable_check(Oid relid)
{
	const char *hint;
	const char *problem;
	char	   *name = get_rel_name(relid);

	/* The check of privileges, which follows, says that it does not exist. */
	if (name == NULL)
		return;
	problem = find_refusal(relid, &hint);
	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("attach: \"%s\" %s", name, problem),
				 errhint("%s", hint)));
}

/*
 * A crash empties an unlogged table, but not what was reported of it.  Rows of
 * inheritance children fire triggers of their own tables alone.
 */
void
onside_attachable_warn(Relation rel)
{
	if (rel->rd_rel->relpersistence == RELPERSISTENCE_UNLOGGED)
		ereport(NOTICE,
				(errmsg("table \"%s\" is unlogged",
						RelationGetRelationName(rel)),
				 errdetail("A crash empties it, but takes back no event of it.")));

	/* has_subclass() can be true for a table that has had children. */
	if (rel->rd_rel->relkind == RELKIND_RELATION &&
		find_inheritance_children(RelationGetRelid(rel), NoLock) != NIL)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("rows of the tables that inherit from \"%s\" are not reported",
						RelationGetRelationName(rel)),
				 errdetail("PostgreSQL fires a trigger for the rows of its own table alone."),
				 errhint("Attach each of these tables, too.")));
}

/* ----------
 * Columns
 * ----------
 */

/* The type under all domains and arrays. */
static Oid
innermost_type(Oid type)
{
	for (;;)
	{
		Oid			element;

		type = getBaseType(type);
		element = get_element_type(type);
		if (!OidIsValid(element))
			return type;
		type = element;
	}
}

/* Raises the error for a column whose values mean nothing to the API. */
static void
refuse_type(Relation rel, const char *column, Oid type, const char *what,
			const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATATYPE_MISMATCH),
			 errmsg("attach: column \"%s\" of relation \"%s\" has type %s, %s",
					column, RelationGetRelationName(rel), format_type_be(type),
					what),
			 errhint("%s", hint),
			 errtablecolname(rel, column)));
}

/* Does the key's name say that it is an amount of money? */
static bool
is_amount(const char *field)
{
	static const char *const words[] = {"amount", "price", "revenue"};
	char	   *lower = asc_tolower(field, strlen(field));

	for (int i = 0; i < (int) lengthof(words); i++)
		if (strstr(lower, words[i]) != NULL)
			return true;
	return false;
}

/*
 * Warns of a type in which an amount is likely to be wrong.  An integer is most
 * often in minor units (cents), and would be sent as it is: a hundred times
 * what was paid.
 */
static void
warn_of_amount(Relation rel, const char *field, const char *column, Oid type)
{
	const char *quoted = quote_identifier(column);

	/* Values of other types are sent as the shop has stored them. */
	switch (getBaseType(type))
	{
		/* Perhaps cents, perhaps not: only the shop knows. */
		case INT2OID:
		case INT4OID:
		case INT8OID:
			ereport(WARNING,
					(errcode(ERRCODE_WARNING),
					 errmsg("%s is an integer: if it is in cents, use amount(%s, 2)",
							field, quoted),
					 errdetail("Column \"%s\" of \"%s\" is sent as it is: 990 stays 990 and does not become 9.90.",
							   column, RelationGetRelationName(rel)),
					 errhint("Attach a mapper in place of columns: a function that returns onside_attribution.purchase(..., onside_attribution.amount(%s, 2), ...).",
							 quoted),
					 errtablecolname(rel, column)));
			break;
		case FLOAT4OID:
		case FLOAT8OID:
			ereport(WARNING,
					(errcode(ERRCODE_WARNING),
					 errmsg("%s is a floating-point number, which is not exact: use numeric",
							field),
					 errdetail("Column \"%s\" of \"%s\" has type %s: 0.1 + 0.2 is sent as 0.30000000000000004.",
							   column, RelationGetRelationName(rel),
							   format_type_be(type)),
					 errhint("Change the column's type to numeric, or attach a mapper in place of columns, with round(%s::numeric, 2).",
							 quoted),
					 errtablecolname(rel, column)));
			break;
	}
}

/*
 * Checks the type of a column of the payload.  column.c checks the types of the
 * other fields.
 */
void
onside_attachable_column(Relation rel, const char *field, const char *column)
{
	Oid			type = get_atttype(RelationGetRelid(rel),
								   get_attnum(RelationGetRelid(rel), column));
	Oid			inner = innermost_type(type);

	/* Of an array or domain, the type of its elements or values counts. */
	if (inner == CASHOID)
		refuse_type(rel, column, type,
					"which has no currency and reads differently under each lc_monetary",
					psprintf("Map a column of type numeric, or attach a mapper in place of columns: a function that returns onside_attribution.purchase(..., %s::numeric, 'USD', ...), with the currency that the column has.",
							 quote_identifier(column)));

	/* A mapper can take a part of it. */
	if (get_typtype(inner) == TYPTYPE_COMPOSITE)
		refuse_type(rel, column, type,
					"a composite type, for which JSON has no agreed form",
					psprintf("Attach a mapper in place of columns: a function that takes what the event needs out of it, for example (row.%s).amount.",
							 quote_identifier(column)));

	/* The type can be sent, but the value may be wrong. */
	if (is_amount(field))
		warn_of_amount(rel, field, column, type);
}

/* ----------
 * Privileges, and shards
 * ----------
 */

void
onside_attachable_require_schema(Oid relid)
{
	Oid			schema = get_rel_namespace(relid);
	AclResult	acl;

	if (!OidIsValid(schema))
		return;
	acl = onside_namespace_aclcheck(schema, ACL_USAGE);
	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, OBJECT_SCHEMA, get_namespace_name(schema));
}

void
onside_attachable_require(Oid relid, AclMode mode)
{
	AclResult	acl = pg_class_aclcheck(relid, GetUserId(), mode);

	if (acl != ACLCHECK_OK)
	{
		char		relkind = get_rel_relkind(relid);

		aclcheck_error(acl, get_relkind_objtype(relkind), get_rel_name(relid));
	}
}

void
onside_attachable_refuse_shard(const char *what, Oid relid)
{
	Oid			table = onside_citus_table_of_shard(relid);

	if (OidIsValid(table))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("%s: \"%s\" is a shard of Citus", what,
						get_rel_name(relid)),
				 errhint("At the coordinator, %s the table \"%s\": that reaches all of its shards.",
						 what, get_rel_name(table))));
}
