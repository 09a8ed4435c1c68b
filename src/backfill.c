/*-------------------------------------------------------------------------
 *
 * backfill.c
 *		backfill: the rows that an attached table already holds become events.
 *
 * Rows are read in the order of a key, so many at a time, each chunk in a
 * transaction of its own: no snapshot and no lock is held for long, and a chunk
 * costs the same wherever it begins.  How far it has come is committed together
 * with a chunk's events, so whatever ends it, the next call goes on behind the
 * last row that was recorded.  Several sessions can do it at once; they take
 * turns, by a lock on the row that says how far it has come.
 *
 * Never the same row twice, also not what the trigger has recorded or records
 * meanwhile:
 *
 * - A row with an event_id of its own is the same event whoever records it.
 *	 The API tells a repetition by the event_id.
 *
 * - For any other row the trigger makes up an event_id that nobody can know
 *	 afterwards.  So such a row is recorded only if it is known to be untouched
 *	 since before the trigger was there: if its xmin is visible in the snapshot
 *	 that attach() has taken under its lock (see attachment.c).  A row that was
 *	 written after that may have been reported; it is left out, and counted.
 *	 Detaching the event and attaching it again does not change that snapshot:
 *	 it is of the first time.  Where there is none, for a trigger that was made
 *	 by hand or restored from a dump, such rows are refused.
 *
 * - The event_id of such a row is derived from the table, the event and the
 *	 row's key: a server that lost the end of what it had committed (a failover,
 *	 a point in time) repeats it with the same event_id.  It has the form of a
 *	 UUIDv4, whose other bits are anybody's to choose; these are of a SHA-256,
 *	 and as unlikely to meet another one as random ones are.
 *
 * The trigger could derive its event_ids from the key likewise, and all rows
 * would be the same event whoever records them.  It does not, since a key can be
 * used again: after a DELETE, or by a server that took over without the last
 * transactions and gives their numbers to other purchases.  Their events would
 * be taken for repetitions and be lost, which is worse than leaving rows out
 * here and saying so.
 *
 * A trigger's condition is evaluated as the trigger does.  There is no OLD row;
 * it is taken to be all NULL, as PL/pgSQL does for INSERT, and a row for which
 * the condition is then unknown is left out, too.
 *
 * All is done with the rights of the caller, but what attachment.c does: the
 * rows are those that a SELECT of his would return, and the functions in a
 * condition run as in an INSERT of his.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "optimizer/optimizer.h"
#include "rewrite/prs2lock.h"
#include "rewrite/rewriteManip.h"
#include "storage/condition_variable.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"
#include "utils/xid8.h"

#include "attach.h"
#include "attachment.h"
#include "column.h"
#include "compat.h"
#include "mapping.h"
#include "row.h"
#include "shmem.h"

PG_FUNCTION_INFO_V1(onside_backfill);

/* A chunk: no more rows than this, and about so many bytes of them. */
#define CHUNK_ROWS		1000
#define CHUNK_BYTES		(4 * 1024 * 1024)
#define FETCH_ROWS		100

/*
 * While so many events are pending, it waits: they are the outbox's business,
 * which should not take the disk when the API is away.  That is a hundred full
 * requests, enough to keep the worker busy.
 */
#define PENDING_MAX		100000

/* How often it says how far it has come; ms. */
#define NOTICE_INTERVAL	10000

/* What it reads, resolved for one transaction. */
typedef struct Source
{
	Relation	rel;
	OnsideRowReader *reader;
	OnsideAttachment *attachment;	/* or NULL if nothing is known */
	bool		same_id;		/* the trigger always took this event_id */
	int			nkeys;
	AttrNumber	keys[INDEX_MAX_KEYS];
	FmgrInfo	outputs[INDEX_MAX_KEYS];
	EState	   *estate;
	ExprState  *condition;		/* or NULL */
	TupleTableSlot *row;
	TupleTableSlot *old;		/* all NULL */
	const char *current;		/* the row's key, for messages */
} Source;

/* A row that is about to be recorded. */
typedef enum Verdict
{
	DUE,
	NOT_DUE,
	UNDECIDED,					/* by its condition */
	OLD,						/* due, and not written since it was attached */
} Verdict;

/* ----------
 * The source
 * ----------
 */

/*
 * The trigger that reports the event; there must be one.  It is a copy: our lock
 * does not keep other triggers from being made, and the relcache from changing.
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
	if (list_length(triggers) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_AMBIGUOUS_PARAMETER),
				 errmsg("backfill: more than one trigger of \"%s\" reports the event \"%s\"",
						RelationGetRelationName(rel), event_name),
				 errhint("Drop one of them; see the view onside_attribution.attached.")));

	trigger = palloc(sizeof(Trigger));
	*trigger = *(Trigger *) linitial(triggers);
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
			!TupleDescAttr(tupdesc, form->indkey.values[i] - 1)->attnotnull)
			return false;
	return true;
}

/* By what rows are read: the primary key, another one, or the event_id. */
static void
find_key(Source *source)
{
	TupleDesc	tupdesc = RelationGetDescr(source->rel);
	AttrNumber	event_id = source->reader->has_event_id ?
		source->reader->event_id.attnum : InvalidAttrNumber;
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
		TupleDescAttr(tupdesc, event_id - 1)->attnotnull)
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

/* Prepares the trigger's WHEN clause; its NEW is the outer row, OLD the inner. */
static void
prepare_condition(Source *source, Trigger *trigger)
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
	ChangeVarNodes(when, PRS2_OLD_VARNO, INNER_VAR, 0);
	ChangeVarNodes(when, PRS2_NEW_VARNO, OUTER_VAR, 0);
	source->condition = ExecPrepareExpr((Expr *) when, source->estate);
}

static bool
same_column(const char *a, const char *b)
{
	return a != NULL && b != NULL && strcmp(a, b) == 0;
}

static void
open_source(Source *source, Oid relid, const char *event_name)
{
	Trigger    *trigger;
	OnsideMapping *mapping;

	memset(source, 0, sizeof(*source));
	source->rel = relation_open(relid, AccessShareLock);
	trigger = find_trigger(source->rel, event_name);
	mapping = onside_mapping_parse(trigger->tgnargs, trigger->tgargs);
	source->reader = onside_row_reader(trigger, source->rel,
									   CurrentMemoryContext);
	source->reader->many = true;
	find_key(source);
	prepare_condition(source, trigger);

	source->attachment = onside_attachment_load(relid, event_name);
	source->same_id = source->attachment == NULL ||
		same_column(source->attachment->event_id, mapping->event_id);
	if (source->attachment == NULL && mapping->event_id == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("backfill: it is not known which rows of \"%s\" the trigger \"%s\" has recorded",
						RelationGetRelationName(source->rel), trigger->tgname),
				 errdetail("It was made by hand, restored from a dump, or attached by an older version, and its rows have no event_id of their own."),
				 errhint("If it has recorded none of them, detach the event and attach it again.")));
}

static void
close_source(Source *source)
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
 * Whole rows, as the table's row type has them, behind the position; with what
 * says when they were written.  The alias is one that no column should have.
 */
#define ROW_ALIAS "\"onside source row\""

static char *
make_query(Source *source, bool has_position)
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
						 format_type_be_qualified(att->atttypid));
		if (operator != NULL && strcmp(operator, this_operator) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("backfill: columns of the key of \"%s\" are not ordered by the same operator",
							RelationGetRelationName(rel)),
					 errhint("Add a unique index on columns of PostgreSQL's own types.")));
		operator = this_operator;
	}

	initStringInfo(&query);
	appendStringInfo(&query, "SELECT " ROW_ALIAS ", " ROW_ALIAS ".xmin, "
					 ROW_ALIAS ".tableoid FROM %s%s AS " ROW_ALIAS,
					 rel->rd_rel->relkind == RELKIND_RELATION ? "ONLY " : "",
					 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
												RelationGetRelationName(rel)));
	if (has_position)
		appendStringInfo(&query, " WHERE ROW(%s) %s ROW(%s)", keys.data,
						 operator, bounds.data);
	appendStringInfo(&query, " ORDER BY %s LIMIT %d", keys.data, CHUNK_ROWS);
	return query.data;
}

/* The columns by which rows are read must be those of the chunks before. */
static void
check_key(Source *source, OnsideBackfillState *state)
{
	Datum		columns[INDEX_MAX_KEYS];
	ArrayType  *array;

	for (int i = 0; i < source->nkeys; i++)
		columns[i] = Int16GetDatum(source->keys[i]);
	array = construct_array(columns, source->nkeys, INT2OID, sizeof(int16),
							true, TYPALIGN_SHORT);
	if (state->key_columns == (Datum) 0)
		state->key_columns = PointerGetDatum(array);
	else if (!DatumGetBool(OidFunctionCall2Coll(F_ARRAY_EQ, InvalidOid,
												state->key_columns,
												PointerGetDatum(array))))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("backfill: the key of \"%s\" has changed since it was begun",
						RelationGetRelationName(source->rel)),
				 errhint("To begin anew, delete the row of onside_attribution.backfill_state; without an event_id of their own, rows get others then.")));
}

static Portal
open_chunk(Source *source, OnsideBackfillState *state)
{
	Datum	   *values = NULL;
	Oid			types[INDEX_MAX_KEYS];
	int			n = 0;

	if (state->position != (Datum) 0)
		deconstruct_array(DatumGetArrayTypeP(state->position), TEXTOID, -1,
						  false, TYPALIGN_INT, &values, NULL, &n);
	for (int i = 0; i < n; i++)
		types[i] = TEXTOID;
	return SPI_cursor_open_with_args(NULL, make_query(source, n > 0), n, types,
									 values, NULL, false, 0);
}

/* Puts row i of what was fetched into the slot. */
static TransactionId
store_row(Source *source, int i)
{
	HeapTuple	result = SPI_tuptable->vals[i];
	TupleDesc	tupdesc = SPI_tuptable->tupdesc;
	HeapTuple	tuple;
	HeapTupleHeader header;
	Datum		datum;
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
	tuple->t_tableOid = DatumGetObjectId(SPI_getbinval(result, tupdesc, 3,
													   &isnull));
	ExecStoreHeapTuple(tuple, source->row, false);
	source->row->tts_tableOid = tuple->t_tableOid;

	datum = SPI_getbinval(result, tupdesc, 2, &isnull);
	return isnull ? InvalidTransactionId : DatumGetTransactionId(datum);
}

/* ----------
 * Judging a row
 * ----------
 */

/* Was this transaction over when the event was attached? */
static bool
was_there_before(Source *source, TransactionId xmin)
{
	FullTransactionId next = ReadNextFullTransactionId();
	uint32		epoch = EpochFromFullTransactionId(next);

	if (source->attachment == NULL || xmin == InvalidTransactionId)
		return false;
	if (!TransactionIdIsNormal(xmin))
		return true;

	/*
	 * The number of a frozen row may be older than this by some four thousand
	 * millions.  Then this takes the row to be younger than it is, which errs
	 * on the safe side.
	 */
	if (xmin >= XidFromFullTransactionId(next))
		epoch--;
	return DatumGetBool(DirectFunctionCall2(pg_visible_in_snapshot,
											FullTransactionIdGetDatum(FullTransactionIdFromEpochAndXid(epoch, xmin)),
											source->attachment->rows_before));
}

/* Does the row meet the trigger's condition? */
static Verdict
judge_condition(Source *source)
{
	ExprContext *context = GetPerTupleExprContext(source->estate);
	Datum		value;
	bool		isnull;

	if (source->condition == NULL)
		return DUE;
	ResetExprContext(context);
	context->ecxt_innertuple = source->old;
	context->ecxt_outertuple = source->row;
	value = ExecEvalExprSwitchContext(source->condition, context, &isnull);
	if (isnull)
		return UNDECIDED;
	return DatumGetBool(value) ? DUE : NOT_DUE;
}

/* A time that is none is the event's own fault, not that of since and until. */
static bool
is_in_range(Source *source, const OnsideBackfillKey *key)
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

/* The texts of the row's key, under fixed settings. */
static void
read_key(Source *source, char **texts)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < source->nkeys; i++)
	{
		bool		isnull;
		Datum		datum = slot_getattr(source->row, source->keys[i], &isnull);

		texts[i] = isnull ? pstrdup("") :
			OutputFunctionCall(&source->outputs[i], datum);
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "", texts[i]);
	}
	source->current = buf.data;
}

/* The event_id of a row that has none of its own. */
static void
derive_id(Source *source, char **texts, pg_uuid_t *id)
{
	uint8		digest[PG_SHA256_DIGEST_LENGTH];
	pg_cryptohash_ctx *hash = pg_cryptohash_create(PG_SHA256);
	bool		ok;

	ok = hash != NULL && pg_cryptohash_init(hash) >= 0 &&
		pg_cryptohash_update(hash, source->attachment->namespace.data,
							 UUID_LEN) >= 0;
	for (int i = 0; i < source->nkeys && ok; i++)
		ok = pg_cryptohash_update(hash, (const uint8 *) texts[i],
								  strlen(texts[i]) + 1) >= 0;
	if (!ok || pg_cryptohash_final(hash, digest, sizeof(digest)) < 0)
		elog(ERROR, "could not compute SHA-256");
	pg_cryptohash_free(hash);

	memcpy(id->data, digest, UUID_LEN);
	id->data[6] = (id->data[6] & 0x0f) | 0x40;
	id->data[8] = (id->data[8] & 0x3f) | 0x80;
}

/* ----------
 * Recording a chunk
 * ----------
 */

static void
record_row(Source *source, Verdict verdict, char **texts, OnsideAppend **append,
		   OnsideBackfillState *state)
{
	bool		has_id = source->reader->has_event_id &&
		!onside_column_is_null(&source->reader->event_id, source->row);
	pg_uuid_t	id;

	if (verdict == NOT_DUE)
	{
		state->not_due++;
		return;
	}
	if (verdict == UNDECIDED ||
		(verdict != OLD && !(has_id && source->same_id)))
	{
		state->left_out++;
		return;
	}

	if (!has_id)
		derive_id(source, texts, &id);
	switch (onside_row_record(source->reader, source->row, has_id ? NULL : &id,
							  append))
	{
		case ONSIDE_ROW_RECORDED:
			state->recorded++;
			break;
		case ONSIDE_ROW_SKIPPED:
			state->skipped++;
			break;
		case ONSIDE_ROW_DEAD_LETTER:
			state->dead_lettered++;
			break;
	}
}

/*
 * Records the rows that were fetched, and sets the position to the last one.
 * Returns their size.  The condition is evaluated with the session's settings,
 * and what is stored depends on none of them.
 */
static Size
record_fetched(Source *source, const OnsideBackfillKey *key,
			   OnsideAppend **append, OnsideBackfillState *state)
{
	int			n = SPI_processed;
	Verdict    *verdicts = palloc(n * sizeof(Verdict));
	char	   *texts[INDEX_MAX_KEYS];
	Datum		position[INDEX_MAX_KEYS];
	Size		size = 0;
	int			nestlevel;

	for (int i = 0; i < n; i++)
	{
		TransactionId xmin = store_row(source, i);

		verdicts[i] = is_in_range(source, key) ? judge_condition(source) :
			NOT_DUE;
		if (verdicts[i] == DUE && was_there_before(source, xmin))
			verdicts[i] = OLD;
	}

	nestlevel = onside_column_fix_settings();
	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		(void) store_row(source, i);
		read_key(source, texts);
		record_row(source, verdicts[i], texts, append, state);
		size += SPI_tuptable->vals[i]->t_len;
	}
	onside_column_restore_settings(nestlevel);

	for (int i = 0; i < source->nkeys; i++)
		position[i] = CStringGetTextDatum(texts[i]);
	state->position = PointerGetDatum(construct_array(position, source->nkeys,
													  TEXTOID, -1, false,
													  TYPALIGN_INT));
	source->current = NULL;
	return size;
}

static void
chunk_error(void *arg)
{
	Source	   *source = (Source *) arg;

	if (source->current != NULL)
		errcontext("backfill of \"%s\", row with the key (%s)",
				   RelationGetRelationName(source->rel), source->current);
}

/* One chunk, within the current transaction. */
static OnsideBackfillState *
record_chunk(const OnsideBackfillKey *key)
{
	Source		source;
	OnsideBackfillState *state;
	OnsideAppend *append = NULL;
	ErrorContextCallback callback;
	Portal		portal;
	int			nrows = 0;
	Size		size = 0;

	state = onside_backfill_lock(key);
	if (state->finished)
		return state;
	open_source(&source, key->source, key->event_name);
	check_key(&source, state);

	callback.callback = chunk_error;
	callback.arg = &source;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	portal = open_chunk(&source, state);
	while (nrows < CHUNK_ROWS && size < CHUNK_BYTES && !state->finished)
	{
		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		state->finished = SPI_processed == 0;
		nrows += SPI_processed;
		if (SPI_processed > 0)
			size += record_fetched(&source, key, &append, state);
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(portal);
	if (append != NULL)
		onside_append_end(append);
	error_context_stack = callback.previous;

	close_source(&source);
	onside_backfill_save(key, state);
	return state;
}

/* ----------
 * backfill
 * ----------
 */

/* What it is about to do, and whether it can. */
static void
check_source(const OnsideBackfillKey *key)
{
	bool		bounded = !TIMESTAMP_IS_NOBEGIN(key->since) ||
		!TIMESTAMP_IS_NOEND(key->until);
	Source		source;

	open_source(&source, key->source, key->event_name);
	if (!source.reader->has_event_datetime)
	{
		if (bounded)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("backfill: since and until need a mapped event_datetime"),
					 errhint("They say when the events occurred, and no column of \"%s\" does. Leave them out, or attach the event with event_datetime.",
							 RelationGetRelationName(source.rel))));
		ereport(NOTICE,
				(errmsg("the events of \"%s\" are dated now, since no event_datetime is mapped",
						RelationGetRelationName(source.rel))));
	}
	close_source(&source);
}

/*
 * Waits until not too many events are pending.  Without a worker that counts
 * them there is no saying how many they are.
 */
static void
wait_for_room(void)
{
	OnsideSlot *slot = onside_slot_find(MyDatabaseId);
	bool		told = false;

	while (slot != NULL && onside_slot_pending(slot) > PENDING_MAX)
	{
		if (!told)
			ereport(NOTICE,
					(errmsg("backfill waits until no more than %d events are pending",
							PENDING_MAX)));
		told = true;
		ConditionVariablePrepareToSleep(&slot->settled_cv);
		(void) ConditionVariableTimedSleep(&slot->settled_cv, 1000,
										   onside_wait_event("OnsideAttributionBackfill"));
		ConditionVariableCancelSleep();
	}
}

static void
tell_end(const OnsideBackfillKey *key, const OnsideBackfillState *state)
{
	ereport(NOTICE,
			(errmsg("backfill of \"%s\" has come to its end: " INT64_FORMAT " events recorded in all",
					get_rel_name(key->source), state->recorded),
			 errdetail("Rows without an installation_id: " INT64_FORMAT "; invalid: " INT64_FORMAT "; not due: " INT64_FORMAT "; left out: " INT64_FORMAT ".",
					   state->skipped, state->dead_lettered, state->not_due,
					   state->left_out),
			 state->left_out == 0 ? 0 :
			 errhint("Left out are rows that the trigger may have recorded: those written since the event was attached first that have no event_id of their own, or whose condition on OLD is unknown.")));
}

/* All that is left, chunk by chunk. */
static void
record_all(const OnsideBackfillKey *key, MemoryContext per_chunk)
{
	TimestampTz told_at = GetCurrentTimestamp();
	bool		finished = false;

	while (!finished)
	{
		MemoryContext old = MemoryContextSwitchTo(per_chunk);
		OnsideBackfillState *state;

		PushActiveSnapshot(GetTransactionSnapshot());
		state = record_chunk(key);
		PopActiveSnapshot();
		MemoryContextSwitchTo(old);

		finished = state->finished;
		SPI_commit();
		if (finished)
			tell_end(key, state);
		else if (TimestampDifferenceExceeds(told_at, GetCurrentTimestamp(),
											NOTICE_INTERVAL))
		{
			told_at = GetCurrentTimestamp();
			ereport(NOTICE,
					(errmsg("backfill of \"%s\": " INT64_FORMAT " events recorded so far",
							get_rel_name(key->source), state->recorded)));
		}
		MemoryContextReset(per_chunk);
		if (!finished)
			wait_for_room();
	}
}

/* Whose progress it is: row security lets roles see different rows. */
static Oid
progress_of(Oid relid)
{
	return check_enable_rls(relid, InvalidOid, false) == RLS_ENABLED ?
		GetUserId() : InvalidOid;
}

static void
read_arguments(FunctionCallInfo fcinfo, OnsideBackfillKey *key)
{
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("backfill: event_name must not be null"),
				 errhint("See the view onside_attribution.attached.")));
	key->event_name = text_to_cstring(PG_GETARG_TEXT_PP(1));
	key->since = PG_ARGISNULL(2) ? DT_NOBEGIN : PG_GETARG_TIMESTAMPTZ(2);
	key->until = PG_ARGISNULL(3) ? DT_NOEND : PG_GETARG_TIMESTAMPTZ(3);
}

/* backfill(source, event_name, since, until) */
Datum
onside_backfill(PG_FUNCTION_ARGS)
{
	bool		atomic = fcinfo->context == NULL ||
		!IsA(fcinfo->context, CallContext) ||
		castNode(CallContext, fcinfo->context)->atomic;
	OnsideBackfillKey key = {0};

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("backfill: source must not be null"),
				 errhint("See the view onside_attribution.attached.")));
	key.source = PG_GETARG_OID(0);
	onside_check_schema_privilege(key.source);
	onside_check_privilege(key.source, ACL_SELECT);

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	read_arguments(fcinfo, &key);
	PreventCommandIfReadOnly("backfill()");
	if (atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("backfill cannot be called in a transaction block"),
				 errhint("It commits what it has recorded, chunk by chunk. Call it by itself.")));

	key.role = progress_of(key.source);
	check_source(&key);
	onside_backfill_begin(&key);
	SPI_commit();
	record_all(&key, AllocSetContextCreate(CurrentMemoryContext,
										   "onside_attribution backfill",
										   ALLOCSET_DEFAULT_SIZES));
	SPI_finish();
	PG_RETURN_VOID();
}
