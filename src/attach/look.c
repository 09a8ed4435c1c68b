/*-------------------------------------------------------------------------
 *
 * look.c
 *		What would have become of the rows that a table already has?
 *
 * attach() cannot know what a column means, but a thousand rows show whether
 * the installation_id is in the column that was named, and whether the values
 * can be sent.  So attach() looks at the last rows of the table, and warns.
 * The look must never do harm:
 *
 * Locks.  Writers queue for the lock that attach() takes, and a mapper can run
 * for any time.  So the look comes before that lock.  The look takes
 * AccessShareLock, which no writer waits for, if it is free at once.  It gives
 * the lock back: two sessions that hold it and ask for a stronger one would
 * deadlock.  The table may change between the look and attach()'s lock; the
 * checks come under that lock.
 *
 * Time.  The rows are found by ctid, in the last blocks, so neither an index
 * nor statistics nor dead rows at the end of a key can make the look slow.
 * The look ends after MAX_BLOCKS blocks, or after MAX_MS by a timer.  What
 * was seen until then counts.  A thousand rows take 2 ms with columns and 10
 * ms with a mapper that joins a table.  The timer cancels the query as a
 * person would.  A cancel by a person at the same moment is lost.
 *
 * Rights.  The rows are found by a query with the caller's rights, row
 * security included.  Without SELECT on the table there is no look.
 *
 * Traces.  The condition, a policy and a mapper are users' code, which can do
 * anything.  So the look is a subtransaction that is always rolled back, which
 * also releases its locks.  An error only ends the look.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/tableam.h"
#include "access/tupconvert.h"
#include "access/xact.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "attach/look.h"
#include "attach/when.h"
#include "attempt.h"
#include "compat.h"
#include "record/repeats.h"
#include "record/row.h"

#define MAX_ROWS	1000
#define MAX_BLOCKS	1024
#define MAX_MS		200

/* The first window; each one is twice as large as the one before. */
#define FIRST_BLOCKS	8

/* Places for event_ids: enough for eight events a row. */
#define REPEATS_PLACES	16384

/* What the look has found. */
struct OnsideLook
{
	char	   *name;			/* of the table; NULL if there was no look */
	bool		has_mapper;
	int			rows;
	int			without_id;		/* installation_id is NULL */
	int			without_event;	/* the mapper returns none */
	int			invalid;
	char	   *problem;		/* of the first that is invalid */
	char	   *hint;
	int64		events;			/* that a mapper gives an event_id */
	int64		repeated;		/* of these, that of another one */
};

/* The table that is looked at, and what reads its rows. */
typedef struct Source
{
	Relation	rel;
	const char *condition;		/* or NULL */
	OnsideRowReader *reader;
	TupleTableSlot *row;		/* as the table's rows are, not a partition's */
	BlockNumber blocks;			/* that are still to be read */
} Source;

/* ----------
 * The timer
 * ----------
 */

static volatile sig_atomic_t timed_out = false;
static TimeoutId timer = MAX_TIMEOUTS;

/* The timer's handler, in a signal: ends the query as a cancel does. */
static void
cancel_look(void)
{
	timed_out = true;
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
}

static void
start_timer(void)
{
	if (timer == MAX_TIMEOUTS)
		timer = RegisterTimeout(USER_TIMEOUT, cancel_look);
	timed_out = false;
	enable_timeout_after(timer, MAX_MS);
}

/* If the timer went off after the last check for a cancel, forget it. */
static void
stop_timer(void)
{
	disable_timeout(timer, false);
	if (timed_out)
		QueryCancelPending = false;
}

/*
 * Is there time for a look?  A statement_timeout that comes soon could be taken
 * for our timer.
 */
static bool
has_time(void)
{
	return !get_timeout_active(STATEMENT_TIMEOUT) ||
		get_timeout_finish_time(STATEMENT_TIMEOUT) >
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 2 * MAX_MS);
}

/* ----------
 * Judging rows
 * ----------
 */

/*
 * Counts a row by what would become of it.  The first problem is kept, to be
 * shown.  A lock that a mapper meets ends the look.
 */
static void
judge_row(OnsideLook *look, Source *source, MemoryContext context)
{
	OnsideEventError error;

	switch (onside_row_try(source->reader, source->rel, source->row,
						   &error))
	{
		case ONSIDE_ROW_RECORDED:
			break;
		case ONSIDE_ROW_SKIPPED:
			if (error.field != NULL)
				look->without_id++;
			else
				look->without_event++;
			break;
		case ONSIDE_ROW_DEAD_LETTER:
			/* Another session holds what the mapper reads. */
			if (error.sqlstate == ERRCODE_LOCK_NOT_AVAILABLE)
				ereport(ERROR,
						(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
						 errmsg_internal("the mapper of a look met a lock")));

			/* One problem is told, with its hint. */
			look->invalid++;
			if (look->problem != NULL)
				break;
			look->problem = MemoryContextStrdup(context, error.message);
			look->hint = MemoryContextStrdup(context, error.hint);
			break;
	}
	look->rows++;

	/* The reader has counted repeated event_ids by itself. */
	look->repeated = onside_repeats_found(source->reader->repeats,
										  &look->events);
	MemoryContextReset(source->reader->per_row);
}

/* ----------
 * Finding rows
 * ----------
 */

/*
 * The query for the last rows in a range of blocks for which the condition is
 * true, with OLD all NULL.  The condition is known to be one expression by
 * itself, so it cannot end the query.
 */
static char *
make_query(Relation part, BlockNumber first, BlockNumber end,
		   const char *condition, int limit)
{
	char	   *name = onside_mapping_table_name(RelationGetRelid(part));
	StringInfoData query;

	/* The names that a trigger's condition has for its rows. */
	initStringInfo(&query);
	appendStringInfo(&query, "SELECT new.ctid FROM ONLY %s AS new", name);
	if (condition != NULL)
		appendStringInfo(&query, " LEFT JOIN ONLY %s AS old ON false", name);

	/* Operators by their schema: search_path is the caller's. */
	appendStringInfo(&query,
					 " WHERE new.ctid OPERATOR(pg_catalog.>=) '(%u,0)'::pg_catalog.tid"
					 " AND new.ctid OPERATOR(pg_catalog.<) '(%u,0)'::pg_catalog.tid",
					 first, end);
	if (condition != NULL)
		appendStringInfo(&query, " AND (%s\n)", condition);
	appendStringInfo(&query,
					 " ORDER BY new.ctid USING OPERATOR(pg_catalog.>) LIMIT %d",
					 limit);
	return query.data;
}

/*
 * Looks at the rows of a range of blocks, up to MAX_ROWS in all.  The query
 * finds places; then each row is read as a trigger would get it.
 */
static void
look_at_blocks(OnsideLook *look, Source *source, Relation part,
			   BlockNumber first, BlockNumber end, MemoryContext context)
{
	TupleConversionMap *map = convert_tuples_by_name(RelationGetDescr(part),
													 RelationGetDescr(source->rel));
	TupleTableSlot *slot = table_slot_create(part, NULL);
	SPITupleTable *found;
	uint64		nfound;
	Portal		portal;

	/* Read-only: the query sees what the active snapshot shows. */
	SPI_connect();
	portal = SPI_cursor_open_with_args(NULL,
									   make_query(part, first, end,
												  source->condition,
												  MAX_ROWS - look->rows),
									   0, NULL, NULL, NULL, true, 0);
	SPI_cursor_fetch(portal, true, MAX_ROWS);
	found = SPI_tuptable;
	nfound = SPI_processed;
	for (uint64 i = 0; i < nfound; i++)
	{
		bool		isnull;
		Datum		ctid = SPI_getbinval(found->vals[i], found->tupdesc, 1,
										 &isnull);

		CHECK_FOR_INTERRUPTS();
		if (!table_tuple_fetch_row_version(part,
										   (ItemPointer) DatumGetPointer(ctid),
										   GetActiveSnapshot(), slot))
			continue;

		/* A mapping is about the table's columns, not a partition's. */
		if (map != NULL)
			(void) execute_attr_map_slot(map->attrMap, slot, source->row);
		else
			ExecCopySlot(source->row, slot);
		judge_row(look, source, context);
	}
	SPI_cursor_close(portal);
	SPI_finish();
	ExecDropSingleTupleTableSlot(slot);
}

/*
 * Looks at one table or partition, from its end on.  Each range of blocks is
 * twice as large as the one before: a few blocks do where most rows count.
 */
static void
look_at_end(OnsideLook *look, Source *source, Relation part,
			MemoryContext context)
{
	BlockNumber end = RelationGetNumberOfBlocks(part);
	BlockNumber window = FIRST_BLOCKS;

	while (end > 0 && look->rows < MAX_ROWS && source->blocks > 0)
	{
		BlockNumber blocks = Min(Min(window, end), source->blocks);

		look_at_blocks(look, source, part, end - blocks, end, context);
		end -= blocks;
		source->blocks -= blocks;
		window *= 2;
	}
}

/*
 * Looks at all partitions, beginning with the newest, or at the table alone:
 * rows of inheritance children are not reported.
 */
static void
look_at_parts(OnsideLook *look, Source *source, MemoryContext context)
{
	bool		parted = source->rel->rd_rel->relkind ==
		RELKIND_PARTITIONED_TABLE;
	Oid			relid = RelationGetRelid(source->rel);
	List	   *parts = parted ? find_all_inheritors(relid, NoLock, NULL) :
		list_make1_oid(relid);

	for (int i = list_length(parts) - 1; i >= 0; i--)
	{
		Oid			part_oid = list_nth_oid(parts, i);
		Relation	part;

		CHECK_FOR_INTERRUPTS();

		/* A partition that somebody has locked is left out. */
		if (!ConditionalLockRelationOid(part_oid, AccessShareLock))
			continue;
		part = try_relation_open(part_oid, NoLock);
		if (part == NULL)
			continue;

		/*
		 * Rows must have places, and the caller must be allowed to read them.
		 */
		if (part->rd_rel->relkind == RELKIND_RELATION &&
			part->rd_tableam->scan_set_tidrange != NULL &&
			pg_class_aclcheck(part_oid, GetUserId(),
							  ACL_SELECT) == ACLCHECK_OK)
			look_at_end(look, source, part, context);
		relation_close(part, NoLock);
	}
}

/* ----------
 * The look
 * ----------
 */

/*
 * Sets what the look needs, whatever the session has set: no JIT, no parallel
 * workers, no long wait for a lock, no scan of the whole table, no message to
 * the client.  With dead_letter, an error in a mapper counts for its row alone.
 * The rollback undoes these settings.
 */
static void
set_settings(void)
{
	static const char *const settings[][2] = {
		{"client_min_messages", "error"},
		{"jit", "off"},
		{"lock_timeout", "10ms"},
		{"max_parallel_workers_per_gather", "0"},
		{"enable_tidscan", "on"},
		{"onside_attribution.on_invalid_event", "dead_letter"},
	};

	(void) NewGUCNestLevel();
	for (int i = 0; i < (int) lengthof(settings); i++)
		onside_set_for_now(settings[i][0], settings[i][1]);
}

/* Makes the reader that a trigger with this mapping would have. */
static OnsideRowReader *
make_reader(Relation rel, const OnsideMapping *mapping)
{
	List	   *args = onside_mapping_args(mapping);
	Trigger    *trigger = palloc0(sizeof(Trigger));

	trigger->tgnargs = list_length(args);
	trigger->tgargs = palloc(trigger->tgnargs * sizeof(char *));
	for (int i = 0; i < trigger->tgnargs; i++)
		trigger->tgargs[i] = list_nth(args, i);
	return onside_row_reader(trigger, rel, CurrentMemoryContext);
}

/* What onside_look() is called with. */
typedef struct Call
{
	OnsideLook *look;
	Oid			relid;
	const OnsideMapping *mapping;
	const char *condition;
	int16		events;
	MemoryContext result_context;
} Call;

/*
 * In the subtransaction: from here on the timer runs.  A table that somebody
 * has locked is not looked at.
 */
static void
look_at_table(void *arg)
{
	const Call *call = (const Call *) arg;
	OnsideLook *look = call->look;
	const char *condition = call->condition;
	Source		source = {0};

	start_timer();
	if (!ConditionalLockRelationOid(call->relid, AccessShareLock))
		return;
	source.rel = try_relation_open(call->relid, NoLock);
	if (source.rel == NULL)
		return;

	/* A condition that binds updates alone says nothing about these rows. */
	set_settings();
	if (condition != NULL &&
		(!onside_when_has_old(onside_when_transform(source.rel, "condition",
													condition, true)) ||
		 !(call->events & TRIGGER_TYPE_INSERT)))
		source.condition = condition;

	/* What reads the rows, and counts what a mapper repeats. */
	source.blocks = MAX_BLOCKS;
	source.reader = make_reader(source.rel, call->mapping);
	if (call->mapping->mapper != NULL)
		source.reader->repeats = onside_repeats_make(REPEATS_PLACES);
	source.row = MakeSingleTupleTableSlot(RelationGetDescr(source.rel),
										  &TTSOpsVirtual);
	look->has_mapper = call->mapping->mapper != NULL;
	look->name = MemoryContextStrdup(call->result_context,
									 RelationGetRelationName(source.rel));

	/* attach() raises an error for a column that cannot be used. */
	if (source.reader->broken == NULL)
		look_at_parts(look, &source, call->result_context);
}

/*
 * Has the look done in a subtransaction, and in a memory context of its own.
 * An error ends the look.  Only a cancel by a person is raised again.
 */
OnsideLook *
onside_look(Oid relid, const OnsideMapping *mapping, const char *condition,
			int16 events)
{
	MemoryContext context = CurrentMemoryContext;
	OnsideLook *look = palloc0(sizeof(OnsideLook));
	Call		call = {look, relid, mapping, condition, events, context};
	MemoryContext look_context;
	ErrorData  *error;

	/* A serializable reader could make another session's transaction fail. */
	if (!has_time() || IsolationIsSerializable())
		return look;

	look_context = AllocSetContextCreate(context, "onside_attribution look",
										 ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(look_context);
	error = onside_attempt(look_at_table, &call, false);
	stop_timer();
	MemoryContextSwitchTo(context);

	/* The timer's cancel is ours.  Any other one is raised again. */
	if (error != NULL && !timed_out &&
		ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_OPERATOR_INTERVENTION)
		ReThrowError(error);
	MemoryContextDelete(look_context);
	return look;
}

/* ----------
 * Telling
 * ----------
 */

/* "980 of 1,000 rows": there are never more than a thousand. */
static char *
row_share(int rows, int of)
{
	return psprintf("%s of %s rows", rows == 1000 ? "1,000" : psprintf("%d", rows),
					of == 1000 ? "1,000" : psprintf("%d", of));
}

/* Warns of one kind of rows, with what would have become of them. */
static void
warn_of_rows(const OnsideLook *look, char *message, const char *consequence,
			 const char *hint)
{
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 errmsg_internal("%s", message),
			 errdetail("attach has looked at recent rows of \"%s\". %s",
					   look->name, consequence),
			 errhint("%s", hint)));
}

/*
 * Each kind of row that would be no event has a WARNING of its own, with its
 * share of the rows that were looked at.
 */
void
onside_look_warn(const OnsideLook *look)
{
	if (look->without_id > 0)
		warn_of_rows(look, psprintf("installation_id is NULL in %s",
									row_share(look->without_id, look->rows)),
					 "They would have been skipped.",
					 look->has_mapper ?
					 "A purchase made outside the app has none. Otherwise look at what the mapper joins." :
					 "A purchase made outside the app has none. If the installation_id is in another table, attach a mapper that joins it: attach(..., mapper => 'function').");

	/* A mapper may mean to return no event, so these two kinds differ. */
	if (look->without_event > 0)
		warn_of_rows(look, psprintf("the mapper returns no event for %s",
									row_share(look->without_event, look->rows)),
					 "They would have been skipped.",
					 "If these rows are no events, all is well. Otherwise look at what the mapper joins, and at its WHERE.");
	if (look->invalid > 0)
		warn_of_rows(look, psprintf("%s would not have been valid events: %s",
									row_share(look->invalid, look->rows),
									look->problem),
					 "They would have been let through, and their events put into dead_letter, unless onside_attribution.on_invalid_event is error.",
					 look->hint);

	/* The events are valid, but the API would take one of them. */
	if (look->repeated > 0)
		warn_of_rows(look, psprintf("the mapper gives the event_id of another event to " INT64_FORMAT " of " INT64_FORMAT " events",
									look->repeated, look->events),
					 "The API would have taken them for repetitions, and ignored them.",
					 ONSIDE_REPEATS_HINT);
}
