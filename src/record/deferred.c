/*-------------------------------------------------------------------------
 *
 * deferred.c
 *		Rows of deferred triggers, as they are at the end of the transaction.
 *
 * PostgreSQL evaluates a constraint trigger's WHEN when the row is written,
 * and hands over the row as it was then.  But what makes an event complete,
 * such as a reference to another table, can be written later in the
 * transaction, and a payment can be refunded before the commit.  So we read
 * the row again.
 *
 * From the version that fired the trigger we follow the row's versions to the
 * last one: this transaction has written all of them, so none has been
 * removed.  A row that was moved to another partition was deleted here and
 * inserted there, to triggers as well as to us.  Each version of a row can
 * have fired the trigger.  So we remember which versions we have passed, and
 * where that led: the chain is followed once.  A row with one version costs no
 * memory.
 *
 * The condition is the trigger's WHEN.  "becomes" makes two triggers with the
 * same arguments; then it is the WHEN of the INSERT trigger, which does not
 * use OLD.  OLD stays what it was when the trigger fired.
 *
 * A row that fired the trigger several times is one event.  SET CONSTRAINTS
 * ... IMMEDIATE can call the trigger early, and the transaction or another
 * deferred trigger can write the row again afterwards.  So two things are
 * remembered:
 *
 * - each version that was looked at, whatever came of it;
 * - each event that was recorded, by the row's primary key and the event_id, if the
 *   row or its mapper has one of its own, otherwise by its place among the row's
 *   events.  A later version of the row is looked at, but its event is not
 *   recorded twice.
 *
 * If a version makes no event, or an invalid one, the row's next version is
 * tried.  What a subtransaction has remembered becomes its parent's when it
 * ends, and is forgotten if it is rolled back.
 *
 * No privilege is looked at, as with NEW of any trigger: the row is the
 * writer's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/tableam.h"
#include "access/xact.h"
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
	Oid			root;			/* the table, or of a partition its root */
	const char *event_name;
	int			nkeys;
	AttrNumber	keys[INDEX_MAX_KEYS];	/* of the primary key */
	MemoryContext per_row;
	int			nparts;			/* which row of which table it is */
	OnsideKeyPart parts[INDEX_MAX_KEYS + 3];	/* and room for which event */
	int			nevents;		/* of the row, so far */
};

/* ----------
 * What is remembered
 * ----------
 */

typedef struct Seen
{
	pg_uuid_t	key;			/* a digest of what it is about */
	SubTransactionId subid;
	struct Seen *before;		/* was remembered before this one */
} Seen;

static MemoryContext remembered;	/* all of it, of this transaction; or NULL */
static HTAB *seen;				/* or NULL */

/*
 * The newest entry of "seen".  A subtransaction has a higher number than the
 * ones around it.  So the numbers descend from here, and when a subtransaction
 * ends, its entries come first.
 */
static Seen *last_seen;

/*
 * A version of a row.  Its place alone does not tell: the table may have been
 * emptied or rewritten in between.
 */
typedef struct Version
{
	Oid			relid;
	Oid			file;
	BlockNumber block;
	OffsetNumber offset;
	CommandId	command;
} Version;

/* How far the way along the versions of a row has led. */
typedef struct Chain
{
	ItemPointerData end;
} Chain;

/* A version that was passed on this way. */
typedef struct Passed
{
	Version		version;
	Chain	   *chain;
} Passed;

static HTAB *passed;			/* or NULL, and what it is in */
static MemoryContext passed_context;

/*
 * The subtransaction in which "passed" got its last entry.  If that one, or
 * one around it, is rolled back, "passed" may be wrong.
 */
static SubTransactionId passed_subid;

static void
forget_all(void *arg)
{
	remembered = NULL;
	seen = NULL;
	last_seen = NULL;
	passed = NULL;
	passed_context = NULL;
}

static void
forget_passed(void)
{
	MemoryContextDelete(passed_context);
	passed = NULL;
	passed_context = NULL;
}

/*
 * Called for every subtransaction, and each mapper's call is one.  So it takes
 * time only for what was remembered in that subtransaction.
 */
static void
end_subtransaction(SubXactEvent event, SubTransactionId subid,
				   SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (Seen *entry = last_seen; entry != NULL && entry->subid == subid;
			 entry = entry->before)
			entry->subid = parent;
	}
	else if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		if (passed != NULL && passed_subid >= subid)
			forget_passed();
		while (last_seen != NULL && last_seen->subid == subid)
		{
			Seen	   *entry = last_seen;

			last_seen = entry->before;
			(void) hash_search(seen, &entry->key, HASH_REMOVE, NULL);
		}
	}
}

/*
 * All of it lives as long as the transaction, and its end resets the pointers
 * to it.
 */
static void
begin_remembering(void)
{
	static bool registered = false;
	MemoryContextCallback *callback;
	HASHCTL		info = {0};

	remembered = AllocSetContextCreate(TopTransactionContext,
									   "onside_attribution deferred rows",
									   ALLOCSET_SMALL_SIZES);
	callback = MemoryContextAllocZero(remembered,
									  sizeof(MemoryContextCallback));
	if (!registered)
		RegisterSubXactCallback(end_subtransaction, NULL);
	registered = true;
	info.keysize = sizeof(pg_uuid_t);
	info.entrysize = sizeof(Seen);
	info.hcxt = remembered;
	seen = hash_create("onside_attribution deferred rows", 64, &info,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	callback->func = forget_all;
	MemoryContextRegisterResetCallback(remembered, callback);
}

/* Is it the first time in this transaction? */
static bool
remember(const OnsideKeyPart *parts, int nparts)
{
	pg_uuid_t	key;
	Seen	   *entry;
	bool		found;

	onside_event_id_require(parts, nparts, &key);
	if (remembered == NULL)
		begin_remembering();
	entry = hash_search(seen, &key, HASH_ENTER, &found);
	if (!found)
	{
		entry->subid = GetCurrentSubTransactionId();
		entry->before = last_seen;
		last_seen = entry;
	}
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

/*
 * Without a primary key, since somebody has dropped it, a row is known by its
 * place.
 */
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

/*
 * Prepares the condition and the primary key, once for all rows of the
 * statement.
 */
OnsideDeferred *
onside_deferred_make(TriggerData *trigdata, Oid root, const char *event_name,
					 MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	OnsideDeferred *deferred = palloc0(sizeof(OnsideDeferred));
	TupleDesc	tupdesc;

	/* A copy, since nobody releases a slot's descriptor here. */
	tupdesc = CreateTupleDescCopy(RelationGetDescr(trigdata->tg_relation));
	deferred->rel = trigdata->tg_relation;
	deferred->root = root;
	deferred->event_name = pstrdup(event_name);
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

/*
 * The command that wrote the version.  In a heap, the system column cmin
 * changes when an update of the row is undone, so the tuple's header is read.
 */
static CommandId
command_of(TupleTableSlot *row)
{
	bool		isnull;

	if (TTS_IS_BUFFERTUPLE(row))
		return HeapTupleHeaderGetCmin(((HeapTupleTableSlot *) row)->tuple->t_data);
	return DatumGetCommandId(slot_getsysattr(row, MinCommandIdAttributeNumber,
											 &isnull));
}

/* The version in the slot; the padding is zero, so that it can be a key. */
static void
get_version(OnsideDeferred *deferred, Version *version)
{
	TupleTableSlot *row = deferred->row;

	memset(version, 0, sizeof(*version));
	version->relid = RelationGetRelid(deferred->rel);
	version->file = deferred->rel->rd_rel->relfilenode;
	version->block = ItemPointerGetBlockNumber(&row->tts_tid);
	version->offset = ItemPointerGetOffsetNumber(&row->tts_tid);
	version->command = command_of(row);
}

/* Notes that a version was passed, in this chain, or in a new one. */
static void
pass(const Version *version, Chain **chain)
{
	Passed	   *entry;

	if (passed == NULL)
	{
		HASHCTL		info = {0};

		if (remembered == NULL)
			begin_remembering();
		passed_context = AllocSetContextCreate(remembered,
											   "onside_attribution deferred versions",
											   ALLOCSET_DEFAULT_SIZES);
		info.keysize = sizeof(Version);
		info.entrysize = sizeof(Passed);
		info.hcxt = passed_context;
		passed = hash_create("onside_attribution deferred versions", 256,
							 &info, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	if (*chain == NULL)
		*chain = MemoryContextAlloc(passed_context, sizeof(Chain));
	entry = hash_search(passed, version, HASH_ENTER, NULL);
	entry->chain = *chain;
	passed_subid = GetCurrentSubTransactionId();
}

/*
 * The place of the version that has replaced the one in the slot.  False if
 * the slot has the last version, if it was deleted, or if the replacement was
 * undone.
 */
static bool
get_next(TupleTableSlot *row, ItemPointer next)
{
	HeapTupleHeader header = ((HeapTupleTableSlot *) row)->tuple->t_data;

	if ((header->t_infomask & HEAP_XMAX_INVALID) != 0 ||
		HEAP_XMAX_IS_LOCKED_ONLY(header->t_infomask) ||
		HeapTupleHeaderIndicatesMovedPartitions(header) ||
		ItemPointerEquals(&header->t_ctid, &row->tts_tid) ||
		!TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetUpdateXid(header)))
		return false;
	*next = header->t_ctid;
	return true;
}

/* Follows the versions in a heap, from *tid to the last one. */
static void
follow_heap(OnsideDeferred *deferred, ItemPointer tid)
{
	Chain	   *first = NULL;
	Chain	   *chain = NULL;

	while (table_tuple_fetch_row_version(deferred->rel, tid, SnapshotAny,
										 deferred->row))
	{
		Version		version;
		ItemPointerData next;
		Passed	   *entry = NULL;

		CHECK_FOR_INTERRUPTS();
		get_version(deferred, &version);
		if (passed != NULL)
			entry = hash_search(passed, &version, HASH_FIND, NULL);
		if (entry != NULL)
		{
			chain = entry->chain;
			next = chain->end;
		}
		else if (get_next(deferred->row, &next))
			pass(&version, &chain);
		else
			break;
		if (first == NULL)
			first = chain;
		*tid = next;
	}
	if (first != NULL)
	{
		first->end = *tid;
		chain->end = *tid;
	}
}

/* The last version of the row, in the slot.  False if there is none here. */
static bool
find_last_version(OnsideDeferred *deferred, ItemPointer version,
				  Snapshot snapshot)
{
	ItemPointerData tid = *version;

	if (TTS_IS_BUFFERTUPLE(deferred->row))
		follow_heap(deferred, &tid);
	else
	{
		TableScanDesc scan = onside_table_beginscan(deferred->rel, snapshot,
													0, NULL);

		table_tuple_get_latest_tid(scan, &tid);
		table_endscan(scan);
	}
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

/* Was the version in the slot not looked at before? */
static bool
is_new_version(OnsideDeferred *deferred)
{
	Version		version;
	OnsideKeyPart parts[2];

	get_version(deferred, &version);
	parts[0].data = (const char *) &version;
	parts[0].len = sizeof(version);
	parts[1].data = deferred->event_name;
	parts[1].len = strlen(deferred->event_name);
	return remember(parts, lengthof(parts));
}

static void
add_part(OnsideDeferred *deferred, const char *data, int len)
{
	OnsideKeyPart *part = &deferred->parts[deferred->nparts++];

	part->data = data;
	part->len = len;
}

/* Which row of which table it is. */
static void
identify_row(OnsideDeferred *deferred)
{
	TupleTableSlot *row = deferred->row;

	deferred->nparts = 0;
	deferred->nevents = 0;
	add_part(deferred, (char *) &deferred->root, sizeof(deferred->root));
	add_part(deferred, deferred->event_name, strlen(deferred->event_name));
	for (int i = 0; i < deferred->nkeys; i++)
	{
		AttrNumber	attnum = deferred->keys[i];
		Oid			output;
		bool		is_varlena;
		bool		isnull;
		char	   *text;

		getTypeOutputInfo(TupleDescAttr(RelationGetDescr(deferred->rel),
										attnum - 1)->atttypid,
						  &output, &is_varlena);
		text = OidOutputFunctionCall(output,
									 slot_getattr(row, attnum, &isnull));
		add_part(deferred, text, strlen(text));
	}
	if (deferred->nkeys == 0)
		add_part(deferred, (char *) &row->tts_tid, sizeof(row->tts_tid));
}

/*
 * Finds the last version of the row, and checks that it meets the condition
 * and was not looked at before.
 */
TupleTableSlot *
onside_deferred_row(OnsideDeferred *deferred, TriggerData *trigdata)
{
	TupleTableSlot *fired = TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event) ?
		trigdata->tg_newslot : trigdata->tg_trigslot;
	MemoryContext old;
	Snapshot	snapshot;
	bool		found;

	MemoryContextReset(deferred->per_row);
	old = MemoryContextSwitchTo(deferred->per_row);
	ExecClearTuple(deferred->row);

	/* The snapshot must show all that this transaction has written. */
	CommandCounterIncrement();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	found = find_last_version(deferred, &fired->tts_tid, snapshot);
	UnregisterSnapshot(snapshot);

	/* The slot must not keep a buffer pinned. */
	if (found)
		ExecMaterializeSlot(deferred->row);
	else
		ExecClearTuple(deferred->row);

	found = found && meets_condition(deferred, trigdata) &&
		is_new_version(deferred);
	if (found)
		identify_row(deferred);
	MemoryContextSwitchTo(old);
	return found ? deferred->row : NULL;
}

void
onside_deferred_next_event(OnsideDeferred *deferred)
{
	deferred->nevents++;
}

bool
onside_deferred_is_new(OnsideDeferred *deferred, const OnsideEvent *event)
{
	OnsideKeyPart *which = &deferred->parts[deferred->nparts];

	if (event->id_is_fresh)
	{
		which->data = (const char *) &deferred->nevents;
		which->len = sizeof(deferred->nevents);
	}
	else
	{
		which->data = (const char *) &event->event_id;
		which->len = sizeof(event->event_id);
	}
	return remember(deferred->parts, deferred->nparts + 1);
}
