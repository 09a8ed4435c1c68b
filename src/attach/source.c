/*-------------------------------------------------------------------------
 *
 * source.c
 *		An attached table, as backfill reads it.
 *
 * Rows are read from the heap, in the order in which they lie there, each
 * partition by itself.  No key and no index is used.  So a table needs none,
 * and nothing depends on an index's collation, operators and order.  Blocks
 * are read one after another, not a block for each row; and only columns that
 * the condition or the mapping uses are read.
 *
 * A chunk is a transaction with a snapshot of its own, so that no snapshot is
 * held for long.  Between two chunks a row can move: an UPDATE writes its new
 * version anywhere in the table, also where we have been, or into another
 * partition.  So there are three passes.  Each reads all of the table, and by
 * a version's xmin takes only
 *
 *		1. versions that were visible when the first pass began;
 *		2. those that were not, and were visible when the second began;
 *		3. those that were not.
 *
 * The first and the second pass take many chunks; the third is one transaction
 * with one snapshot.  The third shows that nothing is lost.  Take any row that
 * its snapshot shows.  If its version is one of the third kind, it is read
 * there.  If it is older, it has not changed since the pass of its kind began,
 * so it was in its place, and visible, when that pass came to that place.  So
 * every row is read, in the version that the third pass sees, and no version
 * is read twice.  The second pass keeps the third one small: the third has
 * only rows that were written during the second, which is short.
 *
 * The rows of a partition that is attached meanwhile were written before.  It
 * is not in the list of partitions that were read in full, so each pass reads
 * all of its rows that the pass may see.  The list has OIDs: a partition that
 * was detached and attached again is not read again.  A partition that was
 * dropped or detached before its turn is passed over.
 *
 * A command that rewrites a table (VACUUM FULL, ALTER TABLE, TRUNCATE) gives
 * it a new file: then its rows are read from the beginning, or, if that has
 * been done, in a later pass, because ALTER TABLE makes them new versions.
 * (VACUUM FULL keeps xmin.)
 *
 * Rights: the caller needs SELECT on the attached table and, as for a query,
 * no privilege on its partitions.  Row security is not evaluated here, so a
 * caller to whom it applies is refused.  The condition's functions run as the
 * caller, as in an INSERT.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/sysattr.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/tupconvert.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "attach/attachable.h"
#include "attach/attached.h"
#include "attach/source.h"
#include "compat.h"
#include "log/snapshot.h"

/* Blocks of one scan. */
#define RANGE_BLOCKS	64

/* No transaction reads more blocks, however few rows it has found. */
#define CHUNK_BLOCKS	(128 * RANGE_BLOCKS)

/* ----------
 * Resolving it
 * ----------
 */

/*
 * Finds the trigger that reports the event, or raises an error.  Where INSERT
 * and UPDATE have a trigger each, the one of INSERT is taken: its condition is
 * about the row as it is.  The trigger gets the name of the transition table
 * that a chunk's rows are put into.
 */
static Trigger *
find_trigger(Relation rel, const char *event_name)
{
	List	   *triggers = onside_attached_triggers(rel, event_name);
	Trigger    *found = NULL;
	bool		ambiguous = false;
	ListCell   *lc;

	/* Prefer the trigger of INSERT; two of one kind are ambiguous. */
	foreach(lc, triggers)
	{
		Trigger    *this = lfirst(lc);

		if (found != NULL && !TRIGGER_FOR_INSERT(found->tgtype) ==
			!TRIGGER_FOR_INSERT(this->tgtype))
			ambiguous = true;
		if (found == NULL || TRIGGER_FOR_INSERT(this->tgtype))
			found = this;
	}

	/* There must be one, and only one of its kind. */
	if (found == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("backfill: event \"%s\" is not attached to \"%s\"",
						event_name, RelationGetRelationName(rel)),
				 errhint("The view onside_attribution.attached lists what is. A partitioned table is attached as a whole.")));
	if (ambiguous)
		ereport(ERROR,
				(errcode(ERRCODE_AMBIGUOUS_PARAMETER),
				 errmsg("backfill: more than one trigger of \"%s\" reports the event \"%s\"",
						RelationGetRelationName(rel), event_name),
				 errhint("Drop one of them; see the view onside_attribution.attached.")));

	found->tgnewtable = "new_rows";
	return found;
}

/*
 * Everything is resolved again for each chunk: between two chunks the table is
 * not locked, and may change.
 */
void
onside_source_open(OnsideSource *source, Oid relid, const char *event_name)
{
	memset(source, 0, sizeof(*source));
	source->next_xid = ReadNextFullTransactionId();
	source->rel = relation_open(relid, AccessShareLock);

	/* We read past the executor, so its checks are ours to make. */
	onside_attachable_require(relid, ACL_SELECT);
	if (check_enable_rls(relid, InvalidOid, false) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("backfill: row security of \"%s\" applies to %s",
						RelationGetRelationName(source->rel),
						GetUserNameFromId(GetUserId(), false)),
				 errhint("Have a role call it that sees all rows: the table's owner, or one with BYPASSRLS.")));

	/* The reader is the trigger's, so both make the same event of a row. */
	source->trigger = find_trigger(source->rel, event_name);
	source->reader = onside_row_reader(source->trigger, source->rel,
									   CurrentMemoryContext);
	source->reader->many = true;
	if (source->reader->broken != NULL)
		onside_event_throw(source->reader->broken);

	/* A mapper can return an event_id; row_mapped.c sees to it. */
	if (source->reader->mapper == NULL && source->reader->event_id.name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("backfill: no column of \"%s\" is mapped to the event_id of \"%s\"",
						RelationGetRelationName(source->rel), event_name),
				 errdetail("The trigger makes up an event_id for each row, so a row that it has reported would become another event."),
				 errhint("Detach the event, and attach it with event_id => the name of a column that tells the rows apart, such as the primary key. Leave out what the trigger has reported before that with the argument \"until\".")));
	source->condition = onside_condition_make(source->trigger->tgqual,
											  source->rel);
	source->converted = MakeSingleTupleTableSlot(RelationGetDescr(source->rel),
												 &TTSOpsVirtual);
}

void
onside_source_close(OnsideSource *source)
{
	ExecDropSingleTupleTableSlot(source->converted);
	relation_close(source->rel, NoLock);
}

/* ----------
 * Partitions
 * ----------
 */

/*
 * The table itself, or its partitions in the order of their OIDs, with "first"
 * before all others.
 */
static List *
find_partitions(Relation rel, Oid first)
{
	Oid			relid = RelationGetRelid(rel);
	List	   *partitions;

	if (rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		return list_make1_oid(relid);

	/* By OID, so that a pass can go on behind the last one. */
	partitions = find_all_inheritors(relid, NoLock, NULL);
	list_sort(partitions, list_oid_cmp);
	if (list_member_oid(partitions, first))
		partitions = lcons_oid(first, list_delete_oid(partitions, first));
	return partitions;
}

/*
 * Adds up what ANALYZE and VACUUM have counted last in each partition.  Foreign
 * tables among the partitions cannot be read by place: a WARNING says so.
 */
int64
onside_source_estimate(Relation rel)
{
	double		rows = 0;
	ListCell   *lc;

	foreach(lc, find_partitions(rel, InvalidOid))
	{
		HeapTuple	tuple = SearchSysCache1(RELOID,
											ObjectIdGetDatum(lfirst_oid(lc)));
		Form_pg_class form;

		if (!HeapTupleIsValid(tuple))
			continue;

		/* reltuples is -1 if nothing was counted. */
		form = (Form_pg_class) GETSTRUCT(tuple);

		/* A partitioned table has no rows of its own. */
		if (form->relkind == RELKIND_RELATION)
			rows += Max(form->reltuples, 0);
		else if (form->relkind == RELKIND_FOREIGN_TABLE)
			ereport(WARNING,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("backfill: rows of the foreign table \"%s\" are not read",
							NameStr(form->relname))));
		ReleaseSysCache(tuple);
	}
	return (int64) rows;
}

/*
 * Opens and locks a partition.  NULL if it has no rows of its own, or is not a
 * partition any more.
 */
static Relation
open_partition(OnsideSource *source, Oid relid)
{
	Relation	part = try_relation_open(relid, AccessShareLock);

	if (part == NULL)
		return NULL;

	/* A partitioned partition has no rows; its own partitions are listed. */
	if (part->rd_rel->relkind != RELKIND_RELATION ||
		(relid != RelationGetRelid(source->rel) &&
		 !(part->rd_rel->relispartition &&
		   list_member_oid(get_partition_ancestors(relid),
						   RelationGetRelid(source->rel)))))
	{
		relation_close(part, AccessShareLock);
		return NULL;
	}

	/* Another access method need not keep rows by place. */
	if (part->rd_tableam->scan_set_tidrange == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("backfill: the rows of \"%s\" cannot be read by their place",
						RelationGetRelationName(part)),
				 errhint("Its access method is not PostgreSQL's own. Detach this partition, or record its rows with onside_attribution.track_batch().")));
	return part;
}

/* ----------
 * Passes
 * ----------
 */

/*
 * The latest snapshot, as an array of the next transaction number and of those
 * that are running, subtransactions included.  If not all of these are known,
 * everything from the oldest running transaction on counts as running.
 */
static Datum
take_snapshot(void)
{
	Snapshot	snapshot = GetLatestSnapshot();
	FullTransactionId next = ReadNextFullTransactionId();
	int			n = snapshot->suboverflowed ? 0 :
		snapshot->xcnt + snapshot->subxcnt;
	FullTransactionId *xids = palloc((n + 1) * sizeof(FullTransactionId));
	Datum	   *values = palloc((n + 1) * sizeof(Datum));

	/* The first element, then the running transactions in order. */
	xids[0] = onside_widen_xid(snapshot->suboverflowed ? snapshot->xmin :
							   snapshot->xmax, next);

	/* Subtransactions, too: a row's xmin can be one. */
	for (int i = 0; i < n; i++)
		xids[i + 1] = onside_widen_xid(i < (int) snapshot->xcnt ?
									   snapshot->xip[i] :
									   snapshot->subxip[i - snapshot->xcnt],
									   next);
	qsort(xids + 1, n, sizeof(FullTransactionId), onside_compare_xids);
	for (int i = 0; i <= n; i++)
		values[i] = Int64GetDatum((int64) U64FromFullTransactionId(xids[i]));
	return PointerGetDatum(construct_array(values, n + 1, INT8OID,
										   sizeof(int64), FLOAT8PASSBYVAL,
										   TYPALIGN_DOUBLE));
}

/* Had the transaction ended when the snapshot was taken? */
static bool
was_over(Datum snapshot, FullTransactionId xid)
{
	ArrayType  *array = DatumGetArrayTypeP(snapshot);
	FullTransactionId *xids =
		(FullTransactionId *) ((char *) array + ARR_OVERHEAD_NONULLS(1));

	return FullTransactionIdPrecedes(xid, xids[0]) &&
		bsearch(&xid, xids + 1, ARR_DIMS(array)[0] - 1,
				sizeof(FullTransactionId), onside_compare_xids) == NULL;
}

/* What this pass may see is what the next one leaves out. */
void
onside_source_begin_pass(OnsideBackfillState *state)
{
	state->pass++;
	state->before = state->now;
	state->now = state->pass == ONSIDE_PASS_LAST ? (Datum) 0 : take_snapshot();
	state->partition = InvalidOid;
	state->file = InvalidOid;
	ItemPointerSet(&state->place, 0, 0);
}

/* Is the row's version one of this pass? */
static bool
is_of_pass(OnsideSource *source, const OnsideBackfillState *state, bool known,
		   TupleTableSlot *slot)
{
	bool		isnull;
	Datum		xmin = slot_getsysattr(slot, MinTransactionIdAttributeNumber,
									   &isnull);
	FullTransactionId xid = onside_widen_xid(DatumGetTransactionId(xmin),
											 source->next_xid);

	if (state->now != (Datum) 0 && !was_over(state->now, xid))
		return false;
	return !known || state->before == (Datum) 0 ||
		!was_over(state->before, xid);
}

/* ----------
 * Reading
 * ----------
 */

/*
 * Converts a partition's row into one of the attached table.  Without a map,
 * the columns have the same places.  The row is copied then, since the value
 * of a column that was added later is known to the partition alone.
 */
static TupleTableSlot *
convert_row(OnsideSource *source, Relation part, TupleConversionMap *map,
			TupleTableSlot *slot)
{
	if (RelationGetRelid(part) == RelationGetRelid(source->rel))
		return slot;
	if (map != NULL)
		(void) execute_attr_map_slot(map->attrMap, slot, source->converted);
	else
		ExecCopySlot(source->converted, slot);
	source->converted->tts_tableOid = slot->tts_tableOid;
	source->converted->tts_tid = slot->tts_tid;
	return source->converted;
}

/*
 * Reads a partition on from the state's place, until the partition ends (true)
 * or the chunk (false).  Each scan covers a range of blocks, so that the place
 * moves on where no row is found.  "known": earlier passes have read all of the
 * partition.
 */
static bool
read_partition(OnsideSource *source, OnsideBackfillState *state, Relation part,
			   bool known, Tuplestorestate *rows, int64 max_rows,
			   BlockNumber *blocks)
{
	TupleConversionMap *map = convert_tuples_by_name(RelationGetDescr(part),
													 RelationGetDescr(source->rel));
	TupleTableSlot *slot = table_slot_create(part, NULL);
	BlockNumber end = RelationGetNumberOfBlocks(part);
	BlockNumber block = ItemPointerGetBlockNumberNoCheck(&state->place);
	bool		full = false;

	/* For the context of an error that a row causes. */
	source->part_name = RelationGetRelationName(part);
	source->place = &state->place;
	while (block < end && !full)
	{
		BlockNumber last = Min(end - block, RANGE_BLOCKS) - 1 + block;
		ItemPointerData first_tid;
		ItemPointerData last_tid;
		TableScanDesc scan;

		/* A range of blocks, from behind the last row that was read. */
		ItemPointerSet(&first_tid, block,
					   ItemPointerGetOffsetNumberNoCheck(&state->place) + 1);
		ItemPointerSet(&last_tid, last, MaxOffsetNumber);
		scan = onside_table_beginscan_tidrange(part, GetActiveSnapshot(),
											   &first_tid, &last_tid);
		while (!full &&
			   table_scan_getnextslot_tidrange(scan, ForwardScanDirection,
											   slot))
		{
			TupleTableSlot *row;

			CHECK_FOR_INTERRUPTS();
			state->place = slot->tts_tid;

			/* Another pass has read this version, or will. */
			if (!is_of_pass(source, state, known, slot))
				continue;
			state->read++;

			/* "read" counts rows; those that are no event are "not due". */
			row = convert_row(source, part, map, slot);
			if (onside_condition_is_met(source->condition, row, NULL))
				tuplestore_puttupleslot(rows, row);
			else
				state->rows.not_due++;
			full = state->read >= max_rows;
		}
		table_endscan(scan);

		/* The place moves on even where no row was found. */
		if (!full)
			ItemPointerSet(&state->place, last + 1, 0);
		*blocks += last - block + 1;
		full |= *blocks >= CHUNK_BLOCKS;
		block = ItemPointerGetBlockNumberNoCheck(&state->place);
	}
	source->place = NULL;
	ExecDropSingleTupleTableSlot(slot);
	return block >= end;
}

/*
 * Reads partition after partition, from the state's place on.  A table without
 * partitions counts as its only partition.  A partition that was rewritten
 * since the last chunk (another relfilenode) is read from its beginning.
 */
bool
onside_source_read(OnsideSource *source, OnsideBackfillState *state,
				   Tuplestorestate *rows, int max_rows)
{
	int64		end = state->read + max_rows;
	Oid			current = state->partition;
	BlockNumber blocks = 0;
	ListCell   *lc;

	foreach(lc, find_partitions(source->rel, state->pass == ONSIDE_PASS_OLD ?
								current : InvalidOid))
	{
		Oid			relid = lfirst_oid(lc);
		bool		known = list_member_oid(state->done, relid);
		int64		before = state->read;
		Relation	part;
		bool		ended;

		/* The first pass knows what it has read; others go by the order. */
		if (state->pass == ONSIDE_PASS_OLD ? known : relid < current)
			continue;
		part = open_partition(source, relid);
		if (part == NULL)
			continue;
		if (relid != state->partition ||
			part->rd_rel->relfilenode != state->file)
			ItemPointerSet(&state->place, 0, 0);
		state->partition = relid;
		state->file = part->rd_rel->relfilenode;
		ended = read_partition(source, state, part, known, rows, end, &blocks);

		/*
		 * Values of the rows that were read may still be in its TOAST table.
		 */
		relation_close(part, state->read > before ? NoLock : AccessShareLock);
		if (!ended)
			return true;
		if (!known)
			state->done = lappend_oid(state->done, relid);
	}
	return false;
}
