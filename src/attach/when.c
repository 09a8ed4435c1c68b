/*-------------------------------------------------------------------------
 *
 * when.c
 *		The condition of attach: what becomes a trigger's WHEN clause.
 *
 * attach() checks a condition before CREATE TRIGGER sees it, for errors that
 * point into the condition (onside_when_transform()).  Called by attach_plan.c
 * under the table's lock, and by look.c.  Nothing of the condition is
 * evaluated.
 *
 * "becomes" is one expression over NEW.  The trigger for UPDATE needs the same
 * expression over OLD, too, and a WHEN clause is a text.  So NEW is replaced in
 * the text where the parser has found references to it, and nowhere else
 * (onside_when_of_old()).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_clause.h"
#include "parser/parse_collate.h"
#include "parser/parse_relation.h"
#include "parser/parser.h"
#include "rewrite/prs2lock.h"

#include "attach/when.h"

#define CONDITION_HINT "It is a trigger's WHEN clause, e.g. NEW.status = 'paid'."

/* Around the condition, for the parser. */
#define QUERY_HEAD	"SELECT ("
#define QUERY_TAIL	"\n)"

/* For errors in the condition. */
typedef struct ConditionContext
{
	const char *argument;
	const char *query;
	bool		parsing;
} ConditionContext;

/*
 * Error context: moves an error's position from the caller's query, where it
 * would point at something else, into ours.
 */
static void
condition_error(void *arg)
{
	ConditionContext *context = (ConditionContext *) arg;
	int			position = geterrposition();

	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(context->query);
	}
	if (context->parsing)
		errhint(CONDITION_HINT);
	errcontext("%s of attach", context->argument);
}

/*
 * Parses the condition, and nothing but one expression: it must not be able to
 * close its parentheses and go on with something else.
 */
static Node *
parse_condition(const char *argument, const char *query)
{
	List	   *parsed = raw_parser(query, RAW_PARSE_DEFAULT);
	SelectStmt *select;
	ResTarget  *target;

	/* One command, and that a SELECT. */
	if (list_length(parsed) == 1 &&
		IsA(linitial_node(RawStmt, parsed)->stmt, SelectStmt))
	{
		select = (SelectStmt *) linitial_node(RawStmt, parsed)->stmt;

		/* A SELECT of one expression, with no other clause. */
		if (list_length(select->targetList) == 1 &&
			select->distinctClause == NIL && select->intoClause == NULL &&
			select->fromClause == NIL && select->whereClause == NULL &&
			select->groupClause == NIL && select->havingClause == NULL &&
			select->windowClause == NIL && select->valuesLists == NIL &&
			select->sortClause == NIL && select->limitOffset == NULL &&
			select->limitCount == NULL && select->lockingClause == NIL &&
			select->withClause == NULL && select->op == SETOP_NONE)
		{
			/* An alias would not be part of the expression. */
			target = linitial_node(ResTarget, select->targetList);
			if (target->name == NULL && target->indirection == NIL)
				return target->val;
		}
	}
	ereport(ERROR,
			(errcode(ERRCODE_SYNTAX_ERROR),
			 errmsg("attach: %s is not an expression", argument)));
}

/* The first reference to OLD, or NULL. */
static Var *
find_old(Node *when)
{
	ListCell   *lc;

	foreach(lc, pull_var_clause(when, 0))
	{
		Var		   *var = lfirst_node(Var, lc);

		if (var->varno == PRS2_OLD_VARNO)
			return var;
	}
	return NULL;
}

bool
onside_when_has_old(Node *when)
{
	return find_old(when) != NULL;
}

/* Raises an error if the condition of an INSERT refers to OLD. */
static void
check_old_rows(ParseState *pstate, const char *argument, Node *when)
{
	Var		   *var = find_old(when);

	if (var == NULL)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
			 errmsg("attach: %s must not refer to OLD", argument),
			 errhint("A row that is inserted has no OLD. Attach the event to UPDATE, or to INSERT OR UPDATE, with a condition, which then binds the UPDATE alone."),
			 parser_errposition(pstate, var->location)));
}

/*
 * Parses and analyzes the condition as CREATE TRIGGER will, to find what is
 * wrong with it.  Nothing is evaluated.
 */
Node *
onside_when_transform(Relation rel, const char *argument,
					  const char *condition, bool allow_old)
{
	ConditionContext context = {argument,
		psprintf(QUERY_HEAD "%s" QUERY_TAIL, condition), true
	};
	ParseState *pstate = make_parsestate(NULL);
	ParseNamespaceItem *nsitem;
	ErrorContextCallback callback;
	Node	   *when;

	callback.callback = condition_error;
	callback.arg = &context;
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	/* Only a syntax error gets the hint that shows the form. */
	when = parse_condition(argument, context.query);
	context.parsing = false;

	/* CREATE TRIGGER's order: OLD is the first, NEW the second. */
	pstate->p_sourcetext = context.query;
	nsitem = addRangeTableEntryForRelation(pstate, rel, AccessShareLock,
										   makeAlias("old", NIL), false, false);
	addNSItemToQuery(pstate, nsitem, false, true, true);
	nsitem = addRangeTableEntryForRelation(pstate, rel, AccessShareLock,
										   makeAlias("new", NIL), false, false);
	addNSItemToQuery(pstate, nsitem, false, true, true);

	/* Columns, types and operators are looked up here. */
	when = transformWhereClause(pstate, when, EXPR_KIND_TRIGGER_WHEN, "WHEN");
	assign_expr_collations(pstate, when);
	if (!allow_old)
		check_old_rows(pstate, argument, when);

	free_parsestate(pstate);
	error_context_stack = callback.previous;
	return when;
}

/* Collects the positions of references to NEW in the query. */
static bool
collect_new(Node *node, void *arg)
{
	List	  **locations = arg;

	if (node == NULL)
		return false;
	if (IsA(node, ColumnRef))
	{
		ColumnRef  *ref = (ColumnRef *) node;

		if (IsA(linitial(ref->fields), String) &&
			strcmp(strVal(linitial(ref->fields)), "new") == 0)
			*locations = lappend_int(*locations, ref->location);
		return false;
	}

	/* Until 15 it is declared with a callback without parameters. */
	return raw_expression_tree_walker(node, (void *) collect_new, arg);
}

/*
 * How many bytes the word NEW takes at this place: new, or "new".  0 if it is
 * written in another way.
 */
static int
length_of_new(const char *text)
{
	if (pg_strncasecmp(text, "new", 3) == 0)
		return 3;
	return strncmp(text, "\"new\"", 5) == 0 ? 5 : 0;
}

/*
 * Copies the condition with OLD in place of each NEW.  The condition has been
 * transformed before, so it is an expression.
 */
char *
onside_when_of_old(const char *condition)
{
	char	   *query = psprintf(QUERY_HEAD "%s" QUERY_TAIL, condition);
	List	   *locations = NIL;
	StringInfoData result;
	const char *rest = query + strlen(QUERY_HEAD);
	ListCell   *lc;

	(void) collect_new(parse_condition("becomes", query), &locations);

	/* The parser's tree is walked in any order. */
	list_sort(locations, list_int_cmp);
	initStringInfo(&result);
	foreach(lc, locations)
	{
		const char *at = query + lfirst_int(lc);
		int			len = length_of_new(at);

		/* The parser reads U&"\006eew" as NEW, too. */
		if (len == 0)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("attach: becomes must refer to the row as NEW"),
					 errhint("Write it without a Unicode escape.")));
		appendBinaryStringInfo(&result, rest, at - rest);
		appendStringInfoString(&result, "OLD");
		rest = at + len;
	}

	/* What follows the last NEW. */
	appendBinaryStringInfo(&result, rest,
						   strlen(rest) - strlen(QUERY_TAIL));
	return result.data;
}
