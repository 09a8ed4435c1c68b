/*-------------------------------------------------------------------------
 *
 * deferred.c
 *		Rows of deferred triggers, as they are at the end of the transaction.
 *
 * PostgreSQL evaluates a constraint trigger's WHEN when the row is written, and
 * hands over the version of then.  But what makes an event complete, such as a
 * reference to another table, can be written after the row's state, and what
 * was paid can be refunded before the commit.  So we look at the row again.
 *
 * From the version that fired the trigger we follow the row's versions to the
 * last one: all of them were written by this transaction, so none has been
 * removed.  A row that was moved to another partition was deleted here and inserted
 * there, to triggers as well as to us.
 *
 * The condition is the trigger's WHEN.  Of a "becomes" (two triggers with the same
 * arguments) it is that of the INSERT, which says nothing of OLD.  OLD stays what
 * it was when the trigger fired.
 *
 * A row that fired the trigger several times is one event.  What was returned is
 * remembered by its primary key until the transaction ends, or until the
 * subtransaction is rolled back in which SET CONSTRAINTS ... IMMEDIATE had the
 * trigger called early.
 *
 * No privilege is looked at, as with NEW of any trigger: the row is the writer's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/partition.h"
#include "catalog/pg_trigger.h"
#include "executor/executor.h"
#include "nodes/readfuncs.h"
#include "optimizer/optimizer.h"
#include "rewrite/prs2lock.h"
#include "rewrite/rewriteManip.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "record/deferred.h"
#include "record/event_id.h"

struct OnsideDeferred
{
	Relation	rel;
	EState	   *estate;
	ExprState  *condition;		/* or NULL */
	TupleTableSlot *row;
	TupleTableSlot *no_old;		/* all NULL, for an INSERT */
	int			nkeys;
	AttrNumber	keys[INDEX_MAX_KEYS];	/* of the primary key */
	MemoryContext per_row;
};

/* ----------
 * What was returned
 * ----------
 */

typedef struct Seen
{
	pg_uuid_t	key;			/* a digest of the table, the event and its key */
	SubTransactionId subid;
} Seen;

static HTAB *seen;				/* in this transaction; or NULL */

static void
forget_all(void *arg)
{
	seen = NULL;
}

/* What a subtransaction has returned is its parent's, or was never returned. */
static void
end_subtransaction(SubXactEvent event, SubTransactionId subid,
				   SubTransactionId parent, void *arg)
{
	HASH_SEQ_STATUS scan;
	Seen	   *entry;

	if (seen == NULL || (event != SUBXACT_EVENT_ABORT_SUB &&
						 event != SUBXACT_EVENT_COMMIT_SUB))
		return;
	hash_seq_init(&scan, seen);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (entry->subid != subid)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			entry->subid = parent;
		else
			(void) hash_search(seen, &entry->key, HASH_REMOVE, NULL);
	}
}

static void
begin_remembering(void)
{
	static bool registered = false;
	MemoryContext context = AllocSetContextCreate(TopTransactionContext,
												  "onside_attribution deferred rows",
												  ALLOCSET_SMALL_SIZES);
	MemoryContextCallback *callback =
		MemoryContextAllocZero(context, sizeof(MemoryContextCallback));
	HASHCTL		info = {0};

	if (!registered)
		RegisterSubXactCallback(end_subtransaction, NULL);
	registered = true;
	info.keysize = sizeof(pg_uuid_t);
	info.entrysize = sizeof(Seen);
	info.hcxt = context;
	seen = hash_create("onside_attribution deferred rows", 64, &info,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	callback->func = forget_all;
	MemoryContextRegisterResetCallback(context, callback);
}

/* Is it the first time in this transaction? */
static bool
remember(const pg_uuid_t *key)
{
	Seen	   *entry;
	bool		found;

	if (seen == NULL)
		begin_remembering();
	entry = hash_search(seen, key, HASH_ENTER, &found);
	if (!found)
		entry->subid = GetCurrentSubTransactionId();
	return !found;
}

/* ----------
 * The trigger
 * ----------
 */

static bool
has_same_arguments(const Trigger *a, const Trigger *b)
{
	if (a->tgfoid != b->tgfoid || a->tgnargs != b->tgnargs)
		return false;
	for (int i = 0; i < a->tgnargs; i++)
		if (strcmp(a->tgargs[i], b->tgargs[i]) != 0)
			return false;
	return true;
}

/* The WHEN clause that the row has to meet now, or NULL. */
static char *
condition_of(Relation rel, Trigger *trigger)
{
	TriggerDesc *desc = rel->trigdesc;

	for (int i = 0; desc != NULL && i < desc->numtriggers; i++)
	{
		Trigger    *other = &desc->triggers[i];

		if (other->tgoid != trigger->tgoid && other->tgqual != NULL &&
			TRIGGER_FOR_INSERT(other->tgtype) &&
			!TRIGGER_FOR_INSERT(trigger->tgtype) &&
			has_same_arguments(other, trigger))
			return other->tgqual;
	}
	return trigger->tgqual;
}

/* OLD is the inner row, NEW the outer one. */
static void
prepare_condition(OnsideDeferred *deferred, Trigger *trigger)
{
	char	   *text = condition_of(deferred->rel, trigger);
	Node	   *when;

	if (text == NULL)
		return;
	when = stringToNode(text);
	ChangeVarNodes(when, PRS2_OLD_VARNO, INNER_VAR, 0);
	ChangeVarNodes(when, PRS2_NEW_VARNO, OUTER_VAR, 0);
	deferred->condition = ExecPrepareExpr((Expr *) when, deferred->estate);
}

/* If somebody has dropped it, a row is known by its place. */
static void
find_primary_key(OnsideDeferred *deferred)
{
	Relation	rel = deferred->rel;
	Relation	index;

	list_free(RelationGetIndexList(rel));
	if (!OidIsValid(rel->rd_pkindex))
		return;
	index = index_open(rel->rd_pkindex, AccessShareLock);
	deferred->nkeys = IndexRelationGetNumberOfKeyAttributes(index);
	for (int i = 0; i < deferred->nkeys; i++)
		deferred->keys[i] = index->rd_index->indkey.values[i];
	index_close(index, AccessShareLock);
}

OnsideDeferred *
onside_deferred_make(TriggerData *trigdata, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	OnsideDeferred *deferred = palloc0(sizeof(OnsideDeferred));
	TupleDesc	tupdesc;

	/* A copy, since nobody releases a slot's descriptor here. */
	tupdesc = CreateTupleDescCopy(RelationGetDescr(trigdata->tg_relation));
	deferred->rel = trigdata->tg_relation;
	deferred->estate = CreateExecutorState();
	deferred->row = MakeSingleTupleTableSlot(tupdesc,
											 table_slot_callbacks(deferred->rel));
	deferred->no_old = MakeSingleTupleTableSlot(tupdesc, &TTSOpsVirtual);
	ExecStoreAllNullTuple(deferred->no_old);
	deferred->per_row = AllocSetContextCreate(context,
											  "onside_attribution deferred row",
											  ALLOCSET_SMALL_SIZES);
	find_primary_key(deferred);
	prepare_condition(deferred, trigdata->tg_trigger);
	MemoryContextSwitchTo(old);
	return deferred;
}

/* ----------
 * The row
 * ----------
 */

/* The last version of the row, in the slot.  False if there is none here. */
static bool
find_last_version(OnsideDeferred *deferred, ItemPointer version,
				  Snapshot snapshot)
{
	TableScanDesc scan = onside_table_beginscan(deferred->rel, snapshot, 0,
												NULL);
	ItemPointerData tid = *version;

	table_tuple_get_latest_tid(scan, &tid);
	table_endscan(scan);
	return table_tuple_fetch_row_version(deferred->rel, &tid, snapshot,
										 deferred->row);
}

static bool
meets_condition(OnsideDeferred *deferred, TriggerData *trigdata)
{
	ExprContext *context = GetPerTupleExprContext(deferred->estate);

	if (deferred->condition == NULL)
		return true;
	ResetExprContext(context);
	context->ecxt_outertuple = deferred->row;
	context->ecxt_innertuple = TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event) ?
		trigdata->tg_trigslot : deferred->no_old;
	return ExecQual(deferred->condition, context);
}

/* Which row of which table it is, for which event. */
static void
make_key(OnsideDeferred *deferred, const char *event_name, pg_uuid_t *key)
{
	Oid			relid = RelationGetRelid(deferred->rel);
	List	   *ancestors = get_rel_relispartition(relid) ?
		get_partition_ancestors(relid) : NIL;
	OnsideKeyPart parts[INDEX_MAX_KEYS + 3];
	int			n = 0;

	parts[n++].data = psprintf("%u", ancestors == NIL ? relid :
							   llast_oid(ancestors));
	parts[n++].data = event_name;
	for (int i = 0; i < deferred->nkeys; i++)
	{
		Oid			output;
		bool		is_varlena;
		bool		isnull;

		getTypeOutputInfo(TupleDescAttr(RelationGetDescr(deferred->rel),
										deferred->keys[i] - 1)->atttypid,
						  &output, &is_varlena);
		parts[n++].data =
			OidOutputFunctionCall(output, slot_getattr(deferred->row,
													   deferred->keys[i],
													   &isnull));
	}
	if (deferred->nkeys == 0)
		parts[n++].data =
			psprintf("(%u,%u)",
					 ItemPointerGetBlockNumber(&deferred->row->tts_tid),
					 ItemPointerGetOffsetNumber(&deferred->row->tts_tid));
	for (int i = 0; i < n; i++)
		parts[i].len = strlen(parts[i].data);
	onside_event_id_of_key(parts, n, key);
}

TupleTableSlot *
onside_deferred_row(OnsideDeferred *deferred, TriggerData *trigdata,
					const char *event_name)
{
	TupleTableSlot *fired = TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event) ?
		trigdata->tg_newslot : trigdata->tg_trigslot;
	MemoryContext old;
	Snapshot	snapshot;
	bool		found;
	pg_uuid_t	key;

	MemoryContextReset(deferred->per_row);
	old = MemoryContextSwitchTo(deferred->per_row);
	ExecClearTuple(deferred->row);

	/* All that this transaction has written is to be seen. */
	CommandCounterIncrement();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	found = find_last_version(deferred, &fired->tts_tid, snapshot);
	UnregisterSnapshot(snapshot);

	/* The slot must not keep a buffer pinned. */
	if (found)
		ExecMaterializeSlot(deferred->row);
	else
		ExecClearTuple(deferred->row);

	found = found && meets_condition(deferred, trigdata);
	if (found)
	{
		make_key(deferred, event_name, &key);
		found = remember(&key);
	}
	MemoryContextSwitchTo(old);
	return found ? deferred->row : NULL;
}
