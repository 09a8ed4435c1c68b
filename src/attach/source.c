/*-------------------------------------------------------------------------
 *
 * source.c
 *		An attached table, as backfill reads it.
 *
 * Its rows are read in the order of a key by an SQL query of the caller's,
 * which checks his privileges and applies row security.  Whole rows, as the
 * table's row type has them: so the mapping and the trigger's condition find
 * their columns by number, also in rows of partitions.
 *
 * See backfill.c for which rows are to be recorded, and why.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "catalog/pg_am.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "optimizer/optimizer.h"
#include "rewrite/prs2lock.h"
#include "rewrite/rewriteManip.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/relcache.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "attach/attach.h"
#include "attach/source.h"
#include "compat.h"
#include "record/column.h"

/* ----------
 * Resolving it
 * ----------
 */

/* One attachment has two, with the same arguments, for INSERT and for UPDATE. */
static bool
is_pair(const Trigger *a, const Trigger *b)
{
	if (a->tgnargs != b->tgnargs ||
		TRIGGER_FOR_INSERT(a->tgtype) == TRIGGER_FOR_INSERT(b->tgtype))
		return false;
	for (int i = 0; i < a->tgnargs; i++)
		if (strcmp(a->tgargs[i], b->tgargs[i]) != 0)
			return false;
	return true;
}

/*
 * The trigger that reports the event, of two that for INSERT, whose condition a row
 * as it is has to meet; there must be one.  It is a copy: our
 * lock does not keep other triggers from being made, which changes the relcache.
 */
static Trigger *
find_trigger(Relation rel, const char *event_name)
{
	List	   *triggers = onside_attached_triggers(rel, event_name);
	Trigger    *trigger;

	if (triggers == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("backfill: event \"%s\" is not attached to \"%s\"",
						event_name, RelationGetRelationName(rel)),
				 errhint("The view onside_attribution.attached lists what is. A partitioned table is attached as a whole.")));
	trigger = linitial(triggers);
	if (list_length(triggers) == 2 && is_pair(linitial(triggers), lsecond(triggers)))
		trigger = TRIGGER_FOR_INSERT(trigger->tgtype) ? trigger :
			lsecond(triggers);
	else if (list_length(triggers) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_AMBIGUOUS_PARAMETER),
				 errmsg("backfill: more than one trigger of \"%s\" reports the event \"%s\"",
						RelationGetRelationName(rel), event_name),
				 errhint("Drop one of them; see the view onside_attribution.attached.")));

	trigger = memcpy(palloc(sizeof(Trigger)), trigger, sizeof(Trigger));
	trigger->tgname = pstrdup(trigger->tgname);
	if (trigger->tgqual != NULL)
		trigger->tgqual = pstrdup(trigger->tgqual);
	trigger->tgargs = memcpy(palloc(trigger->tgnargs * sizeof(char *)),
							 trigger->tgargs,
							 trigger->tgnargs * sizeof(char *));
	for (int i = 0; i < trigger->tgnargs; i++)
		trigger->tgargs[i] = pstrdup(trigger->tgargs[i]);
	return trigger;
}

/* Can this index tell rows apart, and give them an order? */
static bool
is_key(Relation index, TupleDesc tupdesc)
{
	Form_pg_index form = index->rd_index;

	if (!form->indisunique || !form->indisvalid || !form->indimmediate ||
		index->rd_rel->relam != BTREE_AM_OID ||
		RelationGetIndexPredicate(index) != NIL)
		return false;
	for (int i = 0; i < form->indnkeyatts; i++)
		if (form->indkey.values[i] <= 0 ||
			!onside_never_null(tupdesc, form->indkey.values[i] - 1))
			return false;
	return true;
}

/* By what rows are read: the primary key, another one, or the event_id. */
static void
find_key(OnsideSource *source)
{
	TupleDesc	tupdesc = RelationGetDescr(source->rel);
	AttrNumber	event_id = source->reader->event_id.attnum;
	bool		primary = false;
	ListCell   *lc;

	foreach(lc, RelationGetIndexList(source->rel))
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);

		if (is_key(index, tupdesc) && !primary &&
			(source->nkeys == 0 || index->rd_index->indisprimary))
		{
			primary = index->rd_index->indisprimary;
			source->nkeys = index->rd_index->indnkeyatts;
			for (int i = 0; i < source->nkeys; i++)
				source->keys[i] = index->rd_index->indkey.values[i];
		}
		index_close(index, AccessShareLock);
	}

	/* Rows with one event_id are one event, so it need not be unique. */
	if (source->nkeys == 0 && event_id != InvalidAttrNumber &&
		onside_never_null(tupdesc, event_id - 1))
	{
		source->nkeys = 1;
		source->keys[0] = event_id;
	}
	if (source->nkeys == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("backfill: table \"%s\" has no key",
						RelationGetRelationName(source->rel)),
				 errdetail("Without one its rows cannot be told apart, and would be recorded again by another call."),
				 errhint("Add a primary key, or a unique index on columns that are NOT NULL.")));

	for (int i = 0; i < source->nkeys; i++)
	{
		Oid			output;
		bool		is_varlena;

		getTypeOutputInfo(TupleDescAttr(tupdesc, source->keys[i] - 1)->atttypid,
						  &output, &is_varlena);
		fmgr_info(output, &source->outputs[i]);
	}
}

/* Prepares the WHEN clause; its NEW is the outer row, OLD the inner. */
static void
prepare_condition(OnsideSource *source, Trigger *trigger)
{
	TupleDesc	tupdesc = RelationGetDescr(source->rel);
	Node	   *when;

	source->row = MakeSingleTupleTableSlot(tupdesc, &TTSOpsHeapTuple);
	source->old = MakeSingleTupleTableSlot(tupdesc, &TTSOpsHeapTuple);
	ExecStoreAllNullTuple(source->old);
	source->estate = CreateExecutorState();
	if (trigger->tgqual == NULL)
		return;

	when = stringToNode(trigger->tgqual);
	source->has_old = bms_is_member(PRS2_OLD_VARNO, pull_varnos(NULL, when));
	ChangeVarNodes(when, PRS2_OLD_VARNO, INNER_VAR, 0);
	ChangeVarNodes(when, PRS2_NEW_VARNO, OUTER_VAR, 0);
	source->condition = ExecPrepareExpr((Expr *) when, source->estate);
}

/*
 * Everything is resolved anew for each chunk: between two of them there is no
 * lock on the table, and it may have changed.
 */
void
onside_source_open(OnsideSource *source, Oid relid, const char *event_name)
{
	Trigger    *trigger;

	memset(source, 0, sizeof(*source));
	source->rel = relation_open(relid, AccessShareLock);
	trigger = find_trigger(source->rel, event_name);
	source->reader = onside_row_reader(trigger, source->rel,
									   CurrentMemoryContext);
	source->reader->many = source->reader->of_old_rows = true;
	if (!source->reader->has_event_id && source->reader->mapper == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("backfill: no column of \"%s\" is mapped to the event_id of \"%s\"",
						RelationGetRelationName(source->rel), event_name),
				 errdetail("The trigger makes up an event_id for each row, so a row that it has reported would become another event."),
				 errhint("Detach the event, and attach it with event_id => the name of a column that has a version 4 UUID for each row. Leave out what the trigger has reported before that with the argument \"until\".")));
	find_key(source);
	prepare_condition(source, trigger);
}

void
onside_source_close(OnsideSource *source)
{
	ExecDropSingleTupleTableSlot(source->row);
	ExecDropSingleTupleTableSlot(source->old);
	FreeExecutorState(source->estate);
	relation_close(source->rel, NoLock);
}

/* ----------
 * Reading a chunk
 * ----------
 */

/* The operator that sorts a type's values as its default index does. */
static char *
greater_operator(Oid type)
{
	TypeCacheEntry *entry = lookup_type_cache(type, TYPECACHE_GT_OPR);
	HeapTuple	tuple = SearchSysCache1(OPEROID,
										ObjectIdGetDatum(entry->gt_opr));
	Form_pg_operator form;
	char	   *result;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator %u", entry->gt_opr);
	form = (Form_pg_operator) GETSTRUCT(tuple);
	result = psprintf("OPERATOR(%s.%s)",
					  quote_identifier(get_namespace_name(form->oprnamespace)),
					  NameStr(form->oprname));
	ReleaseSysCache(tuple);
	return result;
}

/*
 * Whole rows, as the table's row type has them, behind the position, and of
 * which partition they are.  The alias is one that no column should have.
 *
 * The position is of the column's type without a modifier, and such a type's
 * name says so: "character" and "bit" alone are of length 1 to the parser.
 */
#define ROW_ALIAS "\"onside source row\""

static char *
make_query(OnsideSource *source, bool has_position)
{
	Relation	rel = source->rel;
	StringInfoData keys;
	StringInfoData bounds;
	StringInfoData query;
	char	   *operator = NULL;

	initStringInfo(&keys);
	initStringInfo(&bounds);
	for (int i = 0; i < source->nkeys; i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel),
											  source->keys[i] - 1);
		char	   *this_operator = greater_operator(att->atttypid);

		appendStringInfo(&keys, "%s" ROW_ALIAS ".%s", i > 0 ? ", " : "",
						 quote_identifier(NameStr(att->attname)));
		appendStringInfo(&bounds, "%sCAST($%d AS %s)", i > 0 ? ", " : "", i + 1,
						 format_type_extended(att->atttypid, -1,
											  FORMAT_TYPE_TYPEMOD_GIVEN |
											  FORMAT_TYPE_FORCE_QUALIFY));
		if (operator != NULL && strcmp(operator, this_operator) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("backfill: columns of the key of \"%s\" are not ordered by the same operator",
							RelationGetRelationName(rel)),
					 errhint("Add a unique index on columns of PostgreSQL's own types.")));
		operator = this_operator;
	}

	initStringInfo(&query);
	appendStringInfo(&query, "SELECT " ROW_ALIAS ", " ROW_ALIAS
					 ".tableoid FROM %s%s AS " ROW_ALIAS,
					 rel->rd_rel->relkind == RELKIND_RELATION ? "ONLY " : "",
					 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
												RelationGetRelationName(rel)));
	if (has_position)
		appendStringInfo(&query, " WHERE ROW(%s) %s ROW(%s)", keys.data,
						 operator, bounds.data);
	appendStringInfo(&query, " ORDER BY %s LIMIT %d", keys.data, ONSIDE_CHUNK_ROWS);
	return query.data;
}

/* The columns by which rows are read must be those of the chunks before. */
void
onside_source_check_key(OnsideSource *source, OnsideBackfillState *state)
{
	Datum		columns[INDEX_MAX_KEYS];
	ArrayType  *array;

	for (int i = 0; i < source->nkeys; i++)
		columns[i] = Int16GetDatum(source->keys[i]);
	array = construct_array(columns, source->nkeys, INT2OID, sizeof(int16),
							true, TYPALIGN_SHORT);
	if (state->key_columns != (Datum) 0 &&
		!DatumGetBool(OidFunctionCall2Coll(F_ARRAY_EQ, InvalidOid,
										   state->key_columns,
										   PointerGetDatum(array))))
	{
		ereport(NOTICE,
				(errmsg("backfill begins anew, since the key of \"%s\" has changed",
						RelationGetRelationName(source->rel))));
		onside_backfill_reset(state);
	}
	state->key_columns = PointerGetDatum(array);
}

/* SPI switches to its own memory context; we stay in the caller's. */
Portal
onside_source_scan(OnsideSource *source, OnsideBackfillState *state)
{
	MemoryContext old = CurrentMemoryContext;
	Datum	   *values = NULL;
	Oid			types[INDEX_MAX_KEYS];
	Portal		portal;
	int			n = 0;

	if (state->position != (Datum) 0)
		deconstruct_array(DatumGetArrayTypeP(state->position), TEXTOID, -1,
						  false, TYPALIGN_INT, &values, NULL, &n);
	for (int i = 0; i < n; i++)
		types[i] = TEXTOID;
	portal = SPI_cursor_open_with_args(NULL, make_query(source, n > 0), n,
									   types, values, NULL, false, 0);
	MemoryContextSwitchTo(old);
	return portal;
}

void
onside_source_fetch(Portal portal, int count)
{
	MemoryContext old = CurrentMemoryContext;

	SPI_cursor_fetch(portal, true, count);
	MemoryContextSwitchTo(old);
}

/* Whatever it is that keeps a chunk in its place, it must not go on for ever. */
void
onside_source_check_advance(OnsideSource *source, Datum before, Datum after)
{
	if (before != (Datum) 0 &&
		DatumGetBool(OidFunctionCall2Coll(F_ARRAY_EQ, C_COLLATION_OID, before,
										  after)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("backfill: reading the rows of \"%s\" behind the key %s has led there again",
						RelationGetRelationName(source->rel),
						OidOutputFunctionCall(F_ARRAY_OUT, after)),
				 errhint("Add a unique index on columns of PostgreSQL's own types.")));
}

/*
 * The row is copied into the current memory context, as one of the root table's
 * row type, and knows from which partition it is.
 */
void
onside_source_store(OnsideSource *source, int i)
{
	HeapTuple	result = SPI_tuptable->vals[i];
	TupleDesc	tupdesc = SPI_tuptable->tupdesc;
	HeapTuple	tuple;
	HeapTupleHeader header;
	bool		isnull;

	if (TupleDescAttr(tupdesc, 0)->atttypid != source->rel->rd_rel->reltype)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_COLUMN),
				 errmsg("backfill: \"%s\" has a column named " ROW_ALIAS,
						RelationGetRelationName(source->rel))));

	header = DatumGetHeapTupleHeader(SPI_getbinval(result, tupdesc, 1,
												   &isnull));
	tuple = palloc0(HEAPTUPLESIZE);
	tuple->t_len = HeapTupleHeaderGetDatumLength(header);
	ItemPointerSetInvalid(&tuple->t_self);
	tuple->t_data = header;
	tuple->t_tableOid = DatumGetObjectId(SPI_getbinval(result, tupdesc, 2,
													   &isnull));
	ExecStoreHeapTuple(tuple, source->row, false);
	source->row->tts_tableOid = tuple->t_tableOid;
}

/* ----------
 * Judging a row
 * ----------
 */

/* Does the row meet the trigger's condition? */
static OnsideVerdict
judge_condition(OnsideSource *source)
{
	ExprContext *context = GetPerTupleExprContext(source->estate);
	Datum		value;
	bool		isnull;

	if (source->condition == NULL)
		return ONSIDE_DUE;
	ResetExprContext(context);
	context->ecxt_innertuple = source->old;
	context->ecxt_outertuple = source->row;
	value = ExecEvalExprSwitchContext(source->condition, context, &isnull);
	if (isnull)
		return source->has_old ? ONSIDE_UNDECIDED : ONSIDE_NOT_DUE;
	return DatumGetBool(value) ? ONSIDE_DUE : ONSIDE_NOT_DUE;
}

/* A time that is none is the event's own fault, not that of since and until. */
static bool
is_in_range(OnsideSource *source, const OnsideBackfillKey *key)
{
	OnsideEventError error;
	TimestampTz t;
	bool		has;

	if (TIMESTAMP_IS_NOBEGIN(key->since) && TIMESTAMP_IS_NOEND(key->until))
		return true;
	if (!onside_column_to_datetime(&source->reader->event_datetime, source->row,
								   &t, &has, &error) || !has)
		return true;
	return t >= key->since && t <= key->until;
}

OnsideVerdict
onside_source_judge(OnsideSource *source, const OnsideBackfillKey *key)
{
	return is_in_range(source, key) ? judge_condition(source) :
		ONSIDE_NOT_DUE;
}

/* The key is also kept as one text, for the context of an error. */
void
onside_source_read_key(OnsideSource *source, char **texts)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < source->nkeys; i++)
	{
		bool		isnull;
		Datum		datum = slot_getattr(source->row, source->keys[i],
										 &isnull);

		texts[i] = isnull ? pstrdup("") :
			OutputFunctionCall(&source->outputs[i], datum);
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "", texts[i]);
	}
	source->current = buf.data;
}
