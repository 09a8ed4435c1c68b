/*-------------------------------------------------------------------------
 *
 * condition.c
 *		A trigger's WHEN clause, evaluated for rows that we have read.
 *
 * PostgreSQL evaluates a trigger's WHEN when a row is written.  deferred.c
 * reads the row again at the end of the transaction, and backfill (source.c)
 * reads rows that were there before the trigger.  Both ask here whether the
 * row meets the clause.  Its functions run as the current user, as they do in
 * an INSERT.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "nodes/readfuncs.h"
#include "optimizer/optimizer.h"
#include "rewrite/prs2lock.h"
#include "rewrite/rewriteManip.h"

#include "compat.h"
#include "record/condition.h"

struct OnsideCondition
{
	EState	   *estate;
	ExprState  *clause;
	TupleTableSlot *no_old;		/* all NULL */
};

/*
 * In the prepared clause OLD is the inner row, and NEW the outer one.  The
 * steps are those of PostgreSQL's TriggerEnabled().
 */
OnsideCondition *
onside_condition_make(const char *clause, Relation rel)
{
	OnsideCondition *condition;
	Node	   *when;

	if (clause == NULL)
		return NULL;
	condition = palloc(sizeof(OnsideCondition));
	when = stringToNode(clause);
	when = onside_expand_generated_columns(when, rel, PRS2_OLD_VARNO);
	when = onside_expand_generated_columns(when, rel, PRS2_NEW_VARNO);
	ChangeVarNodes(when, PRS2_OLD_VARNO, INNER_VAR, 0);
	ChangeVarNodes(when, PRS2_NEW_VARNO, OUTER_VAR, 0);

	/* It is freed with the memory context, and holds nothing else. */
	condition->estate = CreateExecutorState();
	condition->clause = ExecPrepareQual(make_ands_implicit((Expr *) when),
										condition->estate);

	/* A copy of the descriptor, since nobody releases the slot. */
	condition->no_old =
		MakeSingleTupleTableSlot(CreateTupleDescCopy(RelationGetDescr(rel)),
								 &TTSOpsVirtual);
	ExecStoreAllNullTuple(condition->no_old);
	return condition;
}

bool
onside_condition_is_met(OnsideCondition *condition, TupleTableSlot *row,
						TupleTableSlot *old)
{
	ExprContext *context;

	if (condition == NULL)
		return true;
	context = GetPerTupleExprContext(condition->estate);
	ResetExprContext(context);
	context->ecxt_innertuple = old != NULL ? old : condition->no_old;
	context->ecxt_outertuple = row;
	return ExecQual(condition->clause, context);
}
