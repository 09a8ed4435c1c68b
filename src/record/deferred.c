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
 * have fired the trigger, and the way from each leads over all later ones.  So
 * we remember the versions that we have passed, and where the way leads
 * (follow_heap()).  A row with one version costs no memory.
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
 * - each event that was recorded, by the row's primary key and the event_id, if
 *   the row or its mapper has an event_id of its own, otherwise by its place
 *   among the row's events.  A later version of the row is looked at, but its
 *   event is not recorded twice.
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
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "record/condition.h"
#include "record/deferred.h"
#include "record/event_id.h"
#include "record/mapping.h"

struct OnsideDeferred
{
	Relation	rel;
	OnsideCondition *condition;
	TupleTableSlot *row;		/* what onside_deferred_row() returns */
	Oid			root;			/* the table, or of a partition its root */
	const char *event_name;
	int			nkeys;			/* 0 if somebody has dropped the primary key */
	AttrNumber	keys[INDEX_MAX_KEYS];	/* of the primary key, in its order */
	MemoryContext per_row;
	int			nparts;			/* which row of which table it is */

	/* root, event_name, the key's columns; and room for which event */
	OnsideKeyPart parts[INDEX_MAX_KEYS + 3];
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

/*
 * NULL if nothing is remembered.  These tables live as long as the
 * transaction, whose end resets the pointers to them.
 */
static HTAB *seen;				/* of Seen */
static HTAB *passed;			/* of Passed */

/*
 * The subtransaction in which "passed" was changed last.  If it is rolled back,
 * or one around it, a way in "passed" may lead over versions that are undone.
 */
static SubTransactionId passed_subid;

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

/* A version that was passed, and how far the way from it has led. */
typedef struct Passed
{
	Version		version;
	ItemPointerData end;
} Passed;

/* Called at the end of the transaction. */
static void
forget_transaction(void *arg)
{
	seen = NULL;
	last_seen = NULL;
	passed = NULL;
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
		/* What it has remembered is its parent's now. */
		for (Seen *entry = last_seen; entry != NULL && entry->subid == subid;
			 entry = entry->before)
			entry->subid = parent;
	}
	else if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		if (passed != NULL && passed_subid >= subid)
		{
			hash_destroy(passed);
			passed = NULL;
		}

		/* What it has recorded is undone, and may be recorded again. */
		while (last_seen != NULL && last_seen->subid == subid)
		{
			Seen	   *entry = last_seen;

			last_seen = entry->before;
			(void) hash_search(seen, &entry->key, HASH_REMOVE, NULL);
		}
	}
}

/* An empty hash table that lives as long as the transaction. */
static HTAB *
make_table(const char *name, Size key_size, Size entry_size)
{
	HASHCTL		info = {0};

	info.keysize = key_size;
	info.entrysize = entry_size;
	info.hcxt = TopTransactionContext;
	return hash_create(name, 64, &info, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* Called once in a transaction, before anything is remembered. */
static void
begin_remembering(void)
{
	static bool registered = false;
	MemoryContextCallback *callback =
		MemoryContextAlloc(TopTransactionContext,
						   sizeof(MemoryContextCallback));

	if (!registered)
		RegisterSubXactCallback(end_subtransaction, NULL);
	registered = true;
	callback->func = forget_transaction;
	callback->arg = NULL;
	MemoryContextRegisterResetCallback(TopTransactionContext, callback);
	seen = make_table("onside_attribution deferred rows",
					  sizeof(pg_uuid_t), sizeof(Seen));
}

/* Remembers a digest of the parts.  Was it unknown in this transaction? */
static bool
remember_key(const OnsideKeyPart *parts, int nparts)
{
	pg_uuid_t	key;
	Seen	   *entry;
	bool		found;

	onside_event_id_require(parts, nparts, &key);
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

/* Do both triggers report the same event, with the same mapping? */
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

/*
 * The WHEN clause that the row has to meet now, or NULL.  That is the clause of
 * the INSERT trigger with the same arguments, if there is one beside an UPDATE
 * trigger: it is about the row as it is, and does not use OLD.
 */
static char *
find_condition(Relation rel, Trigger *trigger)
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

/*
 * Finds the columns of the primary key in the order of the index, which is the
 * same in all partitions.  The order of a table's columns may not be.
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
onside_deferred_make(TriggerData *trigdata, const char *event_name,
					 MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	OnsideDeferred *deferred = palloc0(sizeof(OnsideDeferred));
	TupleDesc	tupdesc;

	/* A copy, since nobody releases a slot's descriptor here. */
	tupdesc = CreateTupleDescCopy(RelationGetDescr(trigdata->tg_relation));
	deferred->rel = trigdata->tg_relation;
	deferred->root = onside_mapping_root(RelationGetRelid(deferred->rel));
	deferred->event_name = pstrdup(event_name);
	deferred->condition =
		onside_condition_make(find_condition(deferred->rel,
											 trigdata->tg_trigger),
							  deferred->rel);
	find_primary_key(deferred);
	deferred->row =
		MakeSingleTupleTableSlot(tupdesc, table_slot_callbacks(deferred->rel));
	deferred->per_row = AllocSetContextCreate(context,
											  "onside_attribution deferred row",
											  ALLOCSET_SMALL_SIZES);
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
	{
		HeapTuple	tuple = ((HeapTupleTableSlot *) row)->tuple;

		return HeapTupleHeaderGetCmin(tuple->t_data);
	}
	return DatumGetCommandId(slot_getsysattr(row, MinCommandIdAttributeNumber,
											 &isnull));
}

/* Names the version in the slot.  A hash key must have no random padding. */
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

/*
 * The place of the version that has replaced the one in the slot.  False if
 * the slot has the last version, if it was deleted, or if the replacement was
 * undone.
 */
static bool
get_next_place(TupleTableSlot *row, ItemPointer next)
{
	HeapTupleHeader header = ((HeapTupleTableSlot *) row)->tuple->t_data;

	/* Only locked, deleted, moved, or replaced by what was undone. */
	if ((header->t_infomask & HEAP_XMAX_INVALID) != 0 ||
		HEAP_XMAX_IS_LOCKED_ONLY(header->t_infomask) ||
		HeapTupleHeaderIndicatesMovedPartitions(header) ||
		ItemPointerEquals(&header->t_ctid, &row->tts_tid) ||
		!TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetUpdateXid(header)))
		return false;
	*next = header->t_ctid;
	return true;
}

/*
 * Follows the versions in a heap, from *tid to the last one.  Where the way
 * was gone before, it is made shorter: each step then leads as far as two
 * steps did.  So n versions that all fire the trigger take n log n steps.
 */
static void
follow_heap(OnsideDeferred *deferred, ItemPointer tid)
{
	Passed	   *before = NULL;

	passed_subid = GetCurrentSubTransactionId();
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
		if (entry == NULL)
		{
			/* A row with one version costs no memory. */
			if (!get_next_place(deferred->row, &next))
				break;
			if (passed == NULL)
				passed = make_table("onside_attribution deferred versions",
									sizeof(Version), sizeof(Passed));
			entry = hash_search(passed, &version, HASH_ENTER, NULL);
			entry->end = next;
		}

		/* Two steps of the way that was gone become one. */
		if (before != NULL)
			before->end = entry->end;
		before = entry;
		*tid = entry->end;
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

/* Was the version in the slot not looked at before? */
static bool
is_new_version(OnsideDeferred *deferred)
{
	Version		version;
	OnsideKeyPart parts[2];

	/* Another trigger looks at the same version for its own event. */
	get_version(deferred, &version);
	parts[0].data = (const char *) &version;
	parts[0].len = sizeof(version);
	parts[1].data = deferred->event_name;
	parts[1].len = strlen(deferred->event_name);
	return remember_key(parts, lengthof(parts));
}

/* Appends a part to what identifies the row.  The data must stay. */
static void
add_key_part(OnsideDeferred *deferred, const char *data, int len)
{
	OnsideKeyPart *part = &deferred->parts[deferred->nparts++];

	part->data = data;
	part->len = len;
}

/*
 * Says which row of which table it is: by the primary key's values as text, or
 * by its place if somebody has dropped the primary key.
 */
static void
identify_row(OnsideDeferred *deferred)
{
	TupleTableSlot *row = deferred->row;

	deferred->nparts = 0;
	deferred->nevents = 0;

	/* By the root: a row that moves to another partition is the same row. */
	add_key_part(deferred, (char *) &deferred->root, sizeof(deferred->root));
	add_key_part(deferred, deferred->event_name, strlen(deferred->event_name));
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
		add_key_part(deferred, text, strlen(text));
	}
	if (deferred->nkeys == 0)
		add_key_part(deferred, (char *) &row->tts_tid, sizeof(row->tts_tid));
}

/*
 * Finds the last version of the row, and checks that it meets the condition
 * and was not looked at before.
 */
TupleTableSlot *
onside_deferred_row(OnsideDeferred *deferred, TriggerData *trigdata)
{
	bool		updated = TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event);
	TupleTableSlot *fired = updated ? trigdata->tg_newslot :
		trigdata->tg_trigslot;
	MemoryContext old;
	Snapshot	snapshot;
	bool		found;

	if (seen == NULL)
		begin_remembering();
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

	/* Each version that meets the condition is looked at once. */
	found = found &&
		onside_condition_is_met(deferred->condition, deferred->row,
								updated ? trigdata->tg_trigslot : NULL) &&
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

	/* A fresh event_id differs each time; the event's number does not. */
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
	return remember_key(deferred->parts, deferred->nparts + 1);
}
