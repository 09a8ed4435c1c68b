/*-------------------------------------------------------------------------
 *
 * when.c
 *		The condition of attach: what becomes a trigger's WHEN clause.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_trigger.h"
#include "nodes/makefuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_clause.h"
#include "parser/parse_collate.h"
#include "parser/parse_relation.h"
#include "parser/parser.h"
#include "rewrite/prs2lock.h"

#include "attach/when.h"

#define CONDITION_HINT "It is a trigger's WHEN clause, e.g. NEW.status = 'paid'."

/* For errors in the condition. */
typedef struct ConditionContext
{
	const char *query;
	bool		parsing;
} ConditionContext;

/*
 * They point into it, and not at whatever the caller's own query has at that
 * place.
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
	errcontext("condition of attach");
}

/*
 * Parses the condition, and nothing but one expression: it must not be able to
 * close its parentheses and go on with something else.
 */
static Node *
parse_condition(const char *query)
{
	List	   *parsed = raw_parser(query, RAW_PARSE_DEFAULT);
	SelectStmt *select;
	ResTarget  *target;

	if (list_length(parsed) == 1 &&
		IsA(linitial_node(RawStmt, parsed)->stmt, SelectStmt))
	{
		select = (SelectStmt *) linitial_node(RawStmt, parsed)->stmt;
		if (list_length(select->targetList) == 1 &&
			select->distinctClause == NIL && select->intoClause == NULL &&
			select->fromClause == NIL && select->whereClause == NULL &&
			select->groupClause == NIL && select->havingClause == NULL &&
			select->windowClause == NIL && select->valuesLists == NIL &&
			select->sortClause == NIL && select->limitOffset == NULL &&
			select->limitCount == NULL && select->lockingClause == NIL &&
			select->withClause == NULL && select->op == SETOP_NONE)
		{
			target = linitial_node(ResTarget, select->targetList);
			if (target->name == NULL && target->indirection == NIL)
				return target->val;
		}
	}
	ereport(ERROR,
			(errcode(ERRCODE_SYNTAX_ERROR),
			 errmsg("attach: condition is not an expression")));
}

/* There is no OLD row when one is inserted. */
static void
check_old_rows(ParseState *pstate, Node *when, int16 events)
{
	ListCell   *lc;

	if (!(events & TRIGGER_TYPE_INSERT))
		return;
	foreach(lc, pull_var_clause(when, 0))
	{
		Var		   *var = lfirst_node(Var, lc);

		if (var->varno == PRS2_OLD_VARNO)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
					 errmsg("attach: condition of an INSERT must not refer to OLD"),
					 errhint("Attach the event to UPDATE alone."),
					 parser_errposition(pstate, var->location)));
	}
}

/*
 * Understands the condition as CREATE TRIGGER will, to see which columns it
 * refers to, and to find what is wrong with it.  It is not evaluated, and
 * nothing in it is.
 */
Node *
onside_when_transform(Relation rel, const char *condition, int16 events)
{
	ConditionContext context = {psprintf("SELECT (%s\n)", condition), true};
	ParseState *pstate = make_parsestate(NULL);
	ParseNamespaceItem *nsitem;
	ErrorContextCallback callback;
	Node	   *when;

	callback.callback = condition_error;
	callback.arg = &context;
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	when = parse_condition(context.query);
	context.parsing = false;

	/* CREATE TRIGGER's order: OLD is the first, NEW the second. */
	pstate->p_sourcetext = context.query;
	nsitem = addRangeTableEntryForRelation(pstate, rel, AccessShareLock,
										   makeAlias("old", NIL), false, false);
	addNSItemToQuery(pstate, nsitem, false, true, true);
	nsitem = addRangeTableEntryForRelation(pstate, rel, AccessShareLock,
										   makeAlias("new", NIL), false, false);
	addNSItemToQuery(pstate, nsitem, false, true, true);

	when = transformWhereClause(pstate, when, EXPR_KIND_TRIGGER_WHEN, "WHEN");
	assign_expr_collations(pstate, when);
	check_old_rows(pstate, when, events);

	free_parsestate(pstate);
	error_context_stack = callback.previous;
	return when;
}
