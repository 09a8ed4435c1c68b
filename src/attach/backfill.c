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
 * An event_id must be mapped, which a row keeps.  So an event is the same one
 * whoever records it and however often: the trigger, this call, another one.
 * The API recognizes a repetition by the event_id, and nothing has to be
 * remembered about rows.  A row whose event_id is NULL is left out and counted:
 * the trigger made one up for it, which nobody knows afterwards.
 *
 * A trigger's condition is evaluated as the trigger does.  There is no OLD row;
 * it is taken to be all NULL, as PL/pgSQL does for INSERT, and a row for which
 * the condition is then unknown is left out, too.
 *
 * The rows are those that a SELECT of the caller's would return, and the
 * functions in a condition run as in an INSERT of his.  Nothing here has any
 * other rights; see backfill_state.c for the one table of ours that is written.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "attach/attach.h"
#include "attach/backfill_state.h"
#include "attach/source.h"
#include "compat.h"
#include "record/column.h"
#include "record/row.h"
#include "shmem.h"

PG_FUNCTION_INFO_V1(onside_backfill);

/* A chunk: ONSIDE_CHUNK_ROWS rows, or about so many bytes of them. */
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

/* ----------
 * Recording a chunk
 * ----------
 */

/* Records one row, or counts why not. */
static void
record_row(OnsideSource *source, OnsideVerdict verdict, OnsideAppend **append,
		   OnsideBackfillState *state)
{
	OnsideRowReader *reader = source->reader;

	if (verdict == ONSIDE_NOT_DUE)
	{
		state->not_due++;
		return;
	}

	/* Without an installation_id it is no event in any case. */
	if (verdict == ONSIDE_UNDECIDED ||
		(reader->mapper == NULL && onside_column_is_empty(&reader->event_id, source->row) &&
		 !onside_column_is_empty(&reader->installation_id, source->row)))
	{
		state->left_out++;
		return;
	}

	switch (onside_row_record(reader, source->rel, source->row, append))
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
record_fetched(OnsideSource *source, const OnsideBackfillKey *key,
			   OnsideAppend **append, OnsideBackfillState *state)
{
	int			n = SPI_processed;
	OnsideVerdict *verdicts = palloc(n * sizeof(OnsideVerdict));
	char	   *texts[INDEX_MAX_KEYS];
	Datum		position[INDEX_MAX_KEYS];
	Size		size = 0;
	int			nestlevel;

	for (int i = 0; i < n; i++)
	{
		onside_source_store(source, i);
		verdicts[i] = onside_source_judge(source, key);
	}

	nestlevel = onside_column_fix_settings();
	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		onside_source_store(source, i);
		onside_source_read_key(source, texts);
		record_row(source, verdicts[i], append, state);
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
	OnsideSource *source = (OnsideSource *) arg;

	if (source->current != NULL)
		errcontext("backfill of \"%s\", row with the key (%s)",
				   RelationGetRelationName(source->rel), source->current);
}

/* One chunk, within the current transaction. */
static OnsideBackfillState *
record_chunk(const OnsideBackfillKey *key)
{
	OnsideSource source;
	OnsideBackfillState *state;
	OnsideAppend *append = NULL;
	ErrorContextCallback callback;
	Portal		portal;
	Datum		before;
	int			nrows = 0;
	Size		size = 0;

	state = onside_backfill_lock(key);
	if (state->finished)
		return state;
	onside_source_open(&source, key->source, key->event_name);
	onside_source_check_key(&source, state);

	callback.callback = chunk_error;
	callback.arg = &source;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	before = state->position;
	portal = onside_source_scan(&source, state);
	while (nrows < ONSIDE_CHUNK_ROWS && size < CHUNK_BYTES && !state->finished)
	{
		onside_source_fetch(portal, FETCH_ROWS);
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
	if (nrows > 0)
		onside_source_check_advance(&source, before, state->position);

	onside_source_close(&source);
	onside_backfill_save(key, state);
	return state;
}

/* ----------
 * backfill
 * ----------
 */

/* Whether it can be done, and what there is to say about it. */
static void
check_source(const OnsideBackfillKey *key)
{
	bool		bounded = !TIMESTAMP_IS_NOBEGIN(key->since) ||
		!TIMESTAMP_IS_NOEND(key->until);
	OnsideSource source;

	onside_source_open(&source, key->source, key->event_name);
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
	onside_source_close(&source);
}

/*
 * Waits until not too many events are pending.  Without a worker that counts
 * them there is no saying how many they are.
 */
static void
wait_for_room(void)
{
	OnsideSlot *slot = onside_slot_find(MyDatabaseId);
	uint32		wait_event = onside_wait_event("OnsideAttributionBackfill");
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
										   wait_event);
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
			 errhint("Left out are rows that the trigger may have recorded under an event_id that nobody knows, because theirs is NULL; and rows for which a condition on OLD is unknown.")));
}

/* What ended earlier begins anew, and what did not is gone on with. */
static void
begin(const OnsideBackfillKey *key)
{
	OnsideBackfillState *state = onside_backfill_lock(key);

	if (state->finished)
		onside_backfill_reset(state);
	onside_backfill_save(key, state);
}

/*
 * All that is left, chunk by chunk.  What a chunk takes is freed with it: SPI's
 * own memory, to which each of its calls switches, lives until the last one has
 * been recorded.
 */
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

	onside_backfill_forget_dropped();
	SPI_commit();
	key.role = progress_of(key.source);
	check_source(&key);
	begin(&key);
	SPI_commit();
	record_all(&key, AllocSetContextCreate(CurrentMemoryContext,
										   "onside_attribution backfill",
										   ALLOCSET_DEFAULT_SIZES));
	SPI_finish();
	PG_RETURN_VOID();
}
