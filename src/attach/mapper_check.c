/*-------------------------------------------------------------------------
 *
 * mapper_check.c
 *		Can this function be a mapper of this table?
 *
 * A mapper takes a row of the table and returns onside_attribution.event, or a
 * set of it.  PostgreSQL inlines it if its declaration allows that, which can
 * be read from pg_proc, and its body: one SELECT that ends in columns.  The
 * body is judged by the planner itself.  Planning evaluates immutable
 * functions in the body, so attach() alone does it: whoever calls it may call
 * the mapper, too.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "nodes/plannodes.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/syscache.h"

#include "attach/mapper_check.h"
#include "attempt.h"
#include "compat.h"
#include "log/event.h"
#include "record/mapper.h"

/* More schemas than this in a search_path are not kept. */
#define MAX_SCHEMAS 100

/* The function's row of pg_proc, to be released; an error if there is none. */
static HeapTuple
get_function(Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function with OID %u does not exist", function)));
	return tuple;
}

/* ----------
 * The signature
 * ----------
 */

/* Says, for messages, what kind of table has this row type. */
static const char *
owner_of_type(Oid type)
{
	Oid			relid = get_typ_typrelid(type);

	if (!OidIsValid(relid) || get_rel_relkind(relid) == RELKIND_COMPOSITE_TYPE)
		return "";
	return get_rel_relispartition(relid) ? ", the row type of a partition," :
		", the row type of another table,";
}

/* What is wrong with the function's argument, or NULL. */
static char *
problem_of_argument(Form_pg_proc proc, Oid row_type)
{
	Oid			type;

	/* Arguments with defaults count: a mapper is called with one. */
	if (proc->pronargs != 1)
		return psprintf("takes %d arguments and not one of type %s",
						proc->pronargs, format_type_be(row_type));
	type = proc->proargtypes.values[0];
	if (type == row_type)
		return NULL;
	return psprintf("takes %s%s and not %s, the row type of the table",
					format_type_be(type), owner_of_type(type),
					format_type_be(row_type));
}

/*
 * Looks at the kind of the function first, since it says most, then at its
 * argument and its result.
 */
char *
onside_mapper_problem(Oid function, Oid row_type, int *sqlstate)
{
	HeapTuple	tuple = get_function(function);
	Form_pg_proc proc = (Form_pg_proc) GETSTRUCT(tuple);
	char	   *problem = NULL;

	*sqlstate = ERRCODE_WRONG_OBJECT_TYPE;

	/* These can never be a mapper, whatever they take and return. */
	if (proc->prokind == PROKIND_AGGREGATE)
		problem = "is an aggregate";
	else if (proc->prokind == PROKIND_WINDOW)
		problem = "is a window function";
	else if (proc->prokind == PROKIND_PROCEDURE)
		problem = "is a procedure";
	else if (proc->prorettype == TRIGGEROID ||
			 proc->prorettype == EVENT_TRIGGEROID)
		problem = "is a trigger function";
	else
	{
		*sqlstate = ERRCODE_INVALID_FUNCTION_DEFINITION;

		/* The kind is right; the argument or the result may not be. */
		problem = problem_of_argument(proc, row_type);
		if (problem == NULL && proc->prorettype != onside_mapper_event_type())
			problem = psprintf("returns %s%s and not onside_attribution.event",
							   proc->proretset ? "SETOF " : "",
							   format_type_be(proc->prorettype));
		if (problem == NULL && isAnyTempNamespace(proc->pronamespace))
			problem = "is in pg_temp, where no other session finds it";
	}
	ReleaseSysCache(tuple);
	return problem;
}

/*
 * A mapper for this table, as a hint.  Whoever copies it has to replace the
 * names of the joined table and its columns.
 */
static char *
example_mapper(Oid relid)
{
	return psprintf("For example:\n"
					"CREATE FUNCTION to_event(o %s) RETURNS SETOF onside_attribution.event\n"
					"LANGUAGE sql STABLE AS $$\n"
					"    SELECT p.* FROM users u, LATERAL onside_attribution.purchase(u.installation_id, o.total, o.currency, o.paid_at) p\n"
					"    WHERE u.id = o.user_id\n"
					"$$;", onside_mapping_table_name(relid));
}

/*
 * Raises an error for a function that is no mapper, or that the caller may not
 * call.
 */
static void
check_signature(Oid function, const char *name, Oid relid, Oid row_type)
{
	int			sqlstate;
	char	   *problem = onside_mapper_problem(function, row_type, &sqlstate);

	/* With an example, since the form is easier to see than to describe. */
	if (problem != NULL)
		ereport(ERROR,
				(errcode(sqlstate),
				 errmsg("attach: mapper %s %s", name, problem),
				 errdetail("A mapper is a function that takes a row of the table and returns onside_attribution.event, or SETOF it."),
				 errhint("%s", example_mapper(relid))));

	/* Planning the function, below, may run what is in it. */
	if (onside_function_aclcheck(function, ACL_EXECUTE) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s", name),
				 errhint("Have its owner GRANT EXECUTE ON FUNCTION %s(%s) to you, and to whoever writes rows.",
						 name, format_type_be(row_type))));
}

/* ----------
 * Inlining
 * ----------
 */

/* Appends an obstacle if it is there. */
static void
add_obstacle(StringInfo obstacles, bool there, const char *obstacle)
{
	if (there)
		appendStringInfo(obstacles, "%s%s", obstacles->len > 0 ? ", " : "",
						 obstacle);
}

/*
 * PostgreSQL's conditions for inlining a function in FROM, as far as pg_proc
 * has them.
 */
char *
onside_mapper_obstacles(Oid function)
{
	HeapTuple	tuple = get_function(function);
	Form_pg_proc proc = (Form_pg_proc) GETSTRUCT(tuple);
	StringInfoData obstacles;

	initStringInfo(&obstacles);

	/* Each of these alone keeps PostgreSQL from inlining the function. */
	add_obstacle(&obstacles, proc->prolang != SQLlanguageId,
				 "is not LANGUAGE sql");
	add_obstacle(&obstacles, proc->provolatile == PROVOLATILE_VOLATILE,
				 "is VOLATILE, which is the default");
	add_obstacle(&obstacles, !proc->proretset, "does not return SETOF");
	add_obstacle(&obstacles, proc->proisstrict, "is STRICT");
	add_obstacle(&obstacles, proc->prosecdef, "is SECURITY DEFINER");
	add_obstacle(&obstacles,
				 !heap_attisnull(tuple, Anum_pg_proc_proconfig, NULL),
				 "has SET options");
	ReleaseSysCache(tuple);
	return obstacles.len > 0 ? obstacles.data : NULL;
}

/*
 * Does the planner inline the function?  The first entry of a plan's range
 * table is the query's own FROM item: a function, or what has replaced it.
 */
static bool
is_inlined(const char *name, Oid row_type)
{
	SPIPlanPtr	plan;
	CachedPlan *cached;
	PlannedStmt *stmt;
	bool		result;

	SPI_connect();

	/* The query that mapper.c makes for a row. */
	plan = SPI_prepare(psprintf("SELECT e.* FROM %s($1) e", name), 1,
					   &row_type);
	if (plan == NULL)
		elog(ERROR, "could not plan a call of %s: %s", name,
			 SPI_result_code_string(SPI_result));

	/* SPI holds the plan; we look at its only statement. */
	cached = SPI_plan_get_cached_plan(plan);
	stmt = linitial_node(PlannedStmt, cached->stmt_list);
	result =
		linitial_node(RangeTblEntry, stmt->rtable)->rtekind != RTE_FUNCTION;
	ReleaseCachedPlan(cached, NULL);
	SPI_finish();
	return result;
}

/*
 * Raises a NOTICE if PostgreSQL will not inline the function, and one if its
 * body depends on the table's columns.
 */
static void
notice_shape(Oid function, const char *name, Oid row_type)
{
	char	   *obstacles = onside_mapper_obstacles(function);
	HeapTuple	tuple;

	/* If the declaration allows it, the planner tells about the body. */
	if (obstacles == NULL && !is_inlined(name, row_type))
		obstacles = "has a body that is not one SELECT that ends in columns";
	if (obstacles != NULL)
		ereport(NOTICE,
				(errmsg("mapper %s is not inlined: it %s", name, obstacles),
				 errdetail("It is called once for each row, and a statement that writes many rows takes several times as long."),
				 errhint("Declare it LANGUAGE sql, STABLE, RETURNS SETOF onside_attribution.event, without STRICT, SECURITY DEFINER and SET, and let it end in columns: SELECT p.* FROM ..., LATERAL onside_attribution.purchase(...) p.")));

	/* A parsed body is a dependency on each column that it reads. */
	tuple = get_function(function);
	if (!heap_attisnull(tuple, Anum_pg_proc_prosqlbody, NULL))
		ereport(NOTICE,
				(errmsg("the body of mapper %s keeps the table from being altered",
						name),
				 errdetail("BEGIN ATOMIC, or RETURN, makes it depend on the table's columns: ALTER TABLE fails for those that it uses."),
				 errhint("Write the body as a string: AS $$ SELECT ... $$.")));
	ReleaseSysCache(tuple);
}

/* ----------
 * attach
 * ----------
 */

/*
 * The search_path to call the mapper with: the caller's schemas that exist, by
 * name, and pg_temp last.  PostgreSQL searches pg_temp first if a search_path
 * does not name it: then a temporary table of whoever writes a row would come
 * before the table that the mapper means.  pg_catalog, too, is searched first
 * if it is not named.
 */
static char *
resolved_search_path(void)
{
	Oid			schemas[MAX_SCHEMAS];
	int			n = fetch_search_path_array(schemas, MAX_SCHEMAS);
	StringInfoData path;

	if (n > MAX_SCHEMAS)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("attach: search_path has more than %d schemas",
						MAX_SCHEMAS),
				 errhint("SET search_path to those that the mapper needs.")));
	initStringInfo(&path);
	for (int i = 0; i < n; i++)
	{
		char	   *name = get_namespace_name(schemas[i]);

		/*
		 * A schema may have been dropped; pg_catalog in front goes without
		 * saying.
		 */
		if (name != NULL && (i > 0 || schemas[i] != PG_CATALOG_NAMESPACE))
			appendStringInfo(&path, "%s, ", quote_identifier(name));
	}
	appendStringInfoString(&path, "pg_temp");
	return path.data;
}

/*
 * Checks the function, and notes its name and search_path in the mapping.  The
 * body is planned with that search_path, as it will be when rows are written.
 */
void
onside_mapper_check(Oid function, Oid relid, OnsideMapping *mapping)
{
	HeapTuple	tuple = get_function(function);
	Form_pg_proc proc = (Form_pg_proc) GETSTRUCT(tuple);
	char	   *name = quote_qualified_identifier(get_namespace_name(proc->pronamespace),
												  NameStr(proc->proname));
	Oid			row_type = get_rel_type_id(relid);
	int			nestlevel;

	ReleaseSysCache(tuple);

	/* The table may have been dropped, since it is not locked yet. */
	if (!OidIsValid(row_type))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));

	/* What is noted is resolved, so that no session decides what it means. */
	check_signature(function, name, relid, row_type);
	mapping->mapper = name;
	mapping->search_path = resolved_search_path();

	/* Planned as it will be called. */
	nestlevel = NewGUCNestLevel();
	onside_set_for_now("search_path", mapping->search_path);
	notice_shape(function, name, row_type);
	AtEOXact_GUC(true, nestlevel);
}
