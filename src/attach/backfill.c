/*-------------------------------------------------------------------------
 *
 * backfill.c
 *		backfill: the rows that an attached table already holds become events.
 *
 * Rows are read as they lie in the table (source.c says why no row is lost),
 * in chunks.  Each chunk is a transaction of its own, so no snapshot and no
 * lock is held for long.  A chunk's events and the place that backfill has
 * reached are committed together: whatever ends backfill, the next call goes
 * on behind the last recorded row.  Several sessions can call backfill at
 * once.  They take turns, by a lock on the row that holds that place.
 *
 * The mapping gets a chunk's rows as a trigger gets the rows of an INSERT, in
 * a transition table.  So a mapper gets all of them in one query.
 *
 * The event_id belongs to the row.  So the trigger, this call and any later
 * call record the same event, and the API ignores a repetition.  Nothing has
 * to be remembered about rows.  An event without an event_id is an error
 * (row.c).
 *
 * A trigger's condition is evaluated as the trigger would.  OLD is all NULL,
 * as PL/pgSQL has it for INSERT.
 *
 * All of it runs with the caller's rights.  backfill_state.c says how the one
 * table of ours is written.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xact.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/readfuncs.h"
#include "pgstat.h"
#include "storage/condition_variable.h"
#include "tcop/tcopprot.h"
#include "utils/backend_status.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "attach/attachable.h"
#include "attach/backfill_state.h"
#include "attach/source.h"
#include "attach/when.h"
#include "compat.h"
#include "log/shmem.h"
#include "record/citus.h"
#include "record/column.h"
#include "record/row.h"

PG_FUNCTION_INFO_V1(onside_backfill);

/* Rows of a chunk. */
#define CHUNK_ROWS		1000

/*
 * backfill() waits while this many events are pending, so that the outbox does
 * not fill the disk when the API is away.  A hundred full requests are enough
 * to keep the worker busy.
 */
#define PENDING_MAX		100000

/* How often a NOTICE tells the progress; ms. */
#define NOTICE_INTERVAL	5000

/* ----------
 * Recording a chunk
 * ----------
 */

/* Error context: names the table, and the row that is being read. */
static void
chunk_error(void *arg)
{
	OnsideSource *source = (OnsideSource *) arg;

	if (source->place == NULL)
		errcontext("backfill of \"%s\"",
				   RelationGetRelationName(source->rel));
	else
		errcontext("backfill of \"%s\", row with the ctid (%u,%u) of \"%s\"",
				   RelationGetRelationName(source->rel),
				   ItemPointerGetBlockNumberNoCheck(source->place),
				   ItemPointerGetOffsetNumberNoCheck(source->place),
				   source->part_name);
}

/*
 * Records the rows, as the trigger would have done if they had been inserted
 * by one statement.  What is stored depends on none of the session's settings.
 */
static void
record_rows(OnsideSource *source, Tuplestorestate *rows,
			OnsideAppend **append)
{
	TriggerData trigdata = {
		.type = T_TriggerData,
		.tg_event = TRIGGER_EVENT_INSERT | TRIGGER_EVENT_AFTER,
		.tg_relation = source->rel,
		.tg_trigger = source->trigger,
		.tg_newtable = rows
	};
	int			nestlevel = 0;

	if (source->reader->needs_settings)
		nestlevel = onside_column_fix_settings();
	onside_row_record_all(source->reader, &trigdata, append);
	if (source->reader->needs_settings)
		AtEOXact_GUC(true, nestlevel);
}

/*
 * One chunk, within the current transaction; all that is left in the last
 * pass.  The snapshot is taken under the lock, so it shows what had been
 * committed when the pass began.  *told_repeats: was the caller warned of
 * several events with one event_id?
 */
static OnsideBackfillState *
record_chunk(const OnsideBackfillKey *key, bool *told_repeats)
{
	OnsideBackfillState *state = onside_backfill_lock(key);
	OnsideSource source;
	OnsideAppend *append = NULL;
	ErrorContextCallback callback;
	bool		more;

	if (state->finished)
		return state;
	if (state->pass == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("backfill: somebody has deleted the row of backfill_state that says how far it has come"),
				 errhint("Call it again: it then begins anew, and makes no other events.")));

	/* The table may have changed since the last chunk. */
	PushActiveSnapshot(GetTransactionSnapshot());
	onside_source_open(&source, key->source, key->event_name);
	source.reader->backfill = &state->rows;

	/* One WARNING of repeated event_ids is enough for all chunks. */
	source.reader->told_repeats = *told_repeats;

	/* A chunk is what one read returns; the last pass is read to its end. */
	callback.callback = chunk_error;
	callback.arg = &source;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	do
	{
		Tuplestorestate *rows = tuplestore_begin_heap(false, false, work_mem);

		more = onside_source_read(&source, state, rows, CHUNK_ROWS);
		record_rows(&source, rows, &append);
		tuplestore_end(rows);
	} while (more && state->pass == ONSIDE_PASS_LAST);
	if (append != NULL)
		onside_append_end(append);
	*told_repeats = source.reader->told_repeats;
	error_context_stack = callback.previous;

	/* What has been reached is written in the transaction of the events. */
	if (!more && state->pass == ONSIDE_PASS_LAST)
		state->finished = true;
	else if (!more)
		onside_source_begin_pass(state);
	onside_source_close(&source);
	onside_backfill_save(key, state);
	PopActiveSnapshot();
	return state;
}

/* ----------
 * backfill
 * ----------
 */

/*
 * Raises an error if the table cannot be read again, and tells the caller what
 * will be different from what the trigger does.
 */
static void
check_source(const OnsideBackfillKey *key)
{
	bool		bounded = !TIMESTAMP_IS_NOBEGIN(key->since) ||
		!TIMESTAMP_IS_NOEND(key->until);
	OnsideSource source;

	onside_source_open(&source, key->source, key->event_name);

	/*
	 * Without a time of its own, a row is dated now, and has no place in a
	 * span.
	 */
	if (source.reader->event_datetime.name == NULL &&
		source.reader->mapper == NULL)
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

	/* No row that is there has an OLD. */
	if (source.trigger->tgqual != NULL &&
		onside_when_has_old(stringToNode(source.trigger->tgqual)))
		ereport(NOTICE,
				(errmsg("the condition of \"%s\" refers to OLD, which is taken to be all NULL",
						key->event_name)));
	onside_source_close(&source);
}

/*
 * Waits until no more than PENDING_MAX events are pending.  Without a worker,
 * which counts them, we do not know how many there are, and do not wait.
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

		/* Whenever events are settled, and each second, look again. */
		ConditionVariablePrepareToSleep(&slot->settled_cv);
		(void) ConditionVariableTimedSleep(&slot->settled_cv, 1000,
										   wait_event);
		ConditionVariableCancelSleep();
	}
}

/* Tells the caller what has become of all rows. */
static void
tell_end(const OnsideBackfillKey *key, const OnsideBackfillState *state)
{
	ereport(NOTICE,
			(errmsg_plural("backfill of \"%s\" has come to its end: " INT64_FORMAT " event recorded in all",
						   "backfill of \"%s\" has come to its end: " INT64_FORMAT " events recorded in all",
						   (unsigned long) state->rows.recorded,
						   get_rel_name(key->source), state->rows.recorded),
			 errdetail("Not recorded: " INT64_FORMAT " skipped, " INT64_FORMAT " invalid, " INT64_FORMAT " not due.",
					   state->rows.skipped, state->rows.dead_lettered,
					   state->rows.not_due)));
}

/*
 * Says how many rows have been read, and how long the rest may take.  The
 * estimate needs the table's number of rows, and supposes that the rest goes as
 * fast as this call has read so far.
 */
static char *
describe_progress(const OnsideBackfillState *state, int64 read_before,
				  TimestampTz called_at)
{
	int64		left = state->estimated - state->read;
	int64		read = state->read - read_before;
	int64		seconds;

	if (state->pass != ONSIDE_PASS_OLD)
		return psprintf(INT64_FORMAT " rows read, now those that were written meanwhile",
						state->read);
	if (left <= 0 || read <= 0)
		return psprintf(INT64_FORMAT " rows read", state->read);
	seconds = (int64) ((double) (GetCurrentTimestamp() - called_at) /
					   USECS_PER_SEC * left / read);
	return psprintf(INT64_FORMAT " of about " INT64_FORMAT " rows read, " INT64_FORMAT ":%02d:%02d left",
					state->read, state->estimated, seconds / 3600,
					(int) (seconds / 60 % 60), (int) (seconds % 60));
}

/* A backfill that had finished begins again; one that was stopped goes on. */
static void
begin_backfill(const OnsideBackfillKey *key)
{
	OnsideBackfillState *state = onside_backfill_lock(key);
	ItemPointerData tid = state->tid;

	if (state->finished || state->pass == 0)
	{
		Relation	rel = relation_open(key->source, AccessShareLock);

		memset(state, 0, sizeof(*state));
		state->tid = tid;
		state->started_at = GetCurrentTimestamp();
		state->estimated = onside_source_estimate(rel);
		onside_source_begin_pass(state);
		relation_close(rel, NoLock);
		onside_backfill_save(key, state);
	}
}

/*
 * All that is left, chunk by chunk.  What a chunk takes is freed with it:
 * SPI's own memory, to which each of its calls switches, lives until the last
 * one has been recorded.
 */
static void
record_all(const OnsideBackfillKey *key, MemoryContext per_chunk)
{
	TimestampTz called_at = GetCurrentTimestamp();
	TimestampTz told_at = called_at;
	int64		read_before = -1;
	bool		finished = false;
	bool		told_repeats = false;
	while (!finished)
	{
		MemoryContext old = MemoryContextSwitchTo(per_chunk);
		OnsideBackfillState *state = record_chunk(key, &told_repeats);
		char	   *progress;

		/* Each chunk is committed. */
		MemoryContextSwitchTo(old);
		finished = state->finished;
		SPI_commit();
		if (read_before < 0)
			read_before = Max(state->read - CHUNK_ROWS, 0);

		/*
		 * The progress is in pg_stat_activity, and now and then in a NOTICE.
		 */
		MemoryContextSwitchTo(per_chunk);
		progress = describe_progress(state, read_before, called_at);
		pgstat_report_activity(STATE_RUNNING,
							   psprintf("%s -- %s",
										debug_query_string != NULL ? debug_query_string : "backfill",
										progress));
		if (finished)
			tell_end(key, state);
		else if (TimestampDifferenceExceeds(told_at, GetCurrentTimestamp(),
											NOTICE_INTERVAL))
		{
			told_at = GetCurrentTimestamp();
			ereport(NOTICE,
					(errmsg("backfill of \"%s\": %s, " INT64_FORMAT " events recorded",
							get_rel_name(key->source), progress,
							state->rows.recorded)));
		}
		MemoryContextSwitchTo(old);
		MemoryContextReset(per_chunk);
		if (!finished)
			wait_for_room();
	}
}

/* backfill(source, event_name, since, until) */
Datum
onside_backfill(PG_FUNCTION_ARGS)
{
	bool		atomic = fcinfo->context == NULL ||
		!IsA(fcinfo->context, CallContext) ||
		castNode(CallContext, fcinfo->context)->atomic;
	OnsideBackfillKey key = {0};

	/* A caller who may not read the table learns nothing about it. */
	if (!PG_ARGISNULL(0))
	{
		key.source = PG_GETARG_OID(0);
		onside_attachable_require_schema(key.source);
		onside_attachable_require(key.source, ACL_SELECT);
	}
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("backfill: %s must not be null",
						PG_ARGISNULL(0) ? "source" : "event_name"),
				 errhint("See the view onside_attribution.attached.")));

	/* What is allocated from here on outlives each commit. */
	SPI_connect_ext(SPI_OPT_NONATOMIC);
	key.event_name = text_to_cstring(PG_GETARG_TEXT_PP(1));
	key.since = PG_ARGISNULL(2) ? DT_NOBEGIN : PG_GETARG_TIMESTAMPTZ(2);
	key.until = PG_ARGISNULL(3) ? DT_NOEND : PG_GETARG_TIMESTAMPTZ(3);
	PreventCommandIfReadOnly("backfill()");
	if (atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("backfill cannot be called in a transaction block"),
				 errhint("It commits what it has recorded, chunk by chunk. Call it by itself.")));

	/* The table itself has no rows. */
	if (onside_citus_table(key.source) != ONSIDE_CITUS_NONE)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("backfill: the rows of \"%s\" are in shards of Citus",
						get_rel_name(key.source)),
				 errhint("Call it on each node for each of its shards: their names are in citus_shards.")));

	/* Each of these is a transaction of its own. */
	onside_backfill_forget_dropped();
	SPI_commit();
	check_source(&key);
	begin_backfill(&key);
	SPI_commit();
	record_all(&key, AllocSetContextCreate(CurrentMemoryContext,
										   "onside_attribution backfill",
										   ALLOCSET_DEFAULT_SIZES));
	SPI_finish();
	PG_RETURN_VOID();
}
