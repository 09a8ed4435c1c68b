/*-------------------------------------------------------------------------
 *
 * row_cache.c
 *		Row readers, kept from one statement to the next.
 *
 * Working out what a trigger's arguments mean costs as much as writing one
 * row's event.  So the readers of the triggers that fired last are kept.  A
 * reader is forgotten when the relation cache says that its table, and so a
 * column or a trigger, has changed.  A statement pins the reader that it uses;
 * a pinned reader is freed only when it is unpinned.
 *
 * Only a reader that depends on nothing but the table is kept.  So a reader
 * with a column that its type's output function renders is made again for each
 * statement.  A mapper is looked up again in each call (mapper.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/ilist.h"
#include "utils/inval.h"
#include "utils/memutils.h"

#include "record/row_cache.h"

/* Each takes about 10 kB. */
#define MAX_KEPT	32

typedef struct Entry
{
	dlist_node	node;			/* in "kept", if it is there */
	bool		is_kept;
	int			pins;
	Oid			trigger;
	Oid			relid;
	OnsideRowReader *reader;
	MemoryContext context;		/* of all of this */
} Entry;

/* The last used one first. */
static dlist_head kept = DLIST_STATIC_INIT(kept);
static int	nkept;

static void
free_unless_used(Entry *entry)
{
	if (!entry->is_kept && entry->pins == 0)
		MemoryContextDelete(entry->context);
}

static void
forget(Entry *entry)
{
	dlist_delete(&entry->node);
	nkept--;
	entry->is_kept = false;
	free_unless_used(entry);
}

/* Relation cache callback; InvalidOid stands for all. */
static void
forget_table(Datum arg, Oid relid)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &kept)
	{
		Entry	   *entry = dlist_container(Entry, node, iter.cur);

		if (!OidIsValid(relid) || entry->relid == relid ||
			(entry->reader->mapper != NULL &&
			 onside_mapper_table(entry->reader->mapper) == relid))
			forget(entry);
	}
}

static void
keep(Entry *entry)
{
	if (nkept == MAX_KEPT)
		forget(dlist_tail_element(Entry, node, &kept));
	dlist_push_head(&kept, &entry->node);
	nkept++;
	entry->is_kept = true;
}

static void
unpin(void *arg)
{
	Entry	   *entry = arg;

	entry->pins--;

	/* An invalid row leaves there what was made of it. */
	if (entry->is_kept && entry->pins == 0)
		MemoryContextReset(entry->reader->per_row);
	free_unless_used(entry);
}

static Entry *
find(Oid trigger, Oid relid)
{
	dlist_iter	iter;

	dlist_foreach(iter, &kept)
	{
		Entry	   *entry = dlist_container(Entry, node, iter.cur);

		if (entry->trigger == trigger && entry->relid == relid)
		{
			dlist_move_head(&kept, &entry->node);
			return entry;
		}
	}
	return NULL;
}

static Entry *
make(Trigger *trigger, Relation rel)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "onside_attribution row reader",
												  ALLOCSET_SMALL_SIZES);
	Entry	   *entry = MemoryContextAllocZero(context, sizeof(Entry));

	entry->trigger = trigger->tgoid;
	entry->relid = RelationGetRelid(rel);
	entry->context = context;
	entry->reader = onside_row_reader(trigger, rel, context);

	/* From here on nothing fails. */
	MemoryContextSetParent(context, CacheMemoryContext);
	return entry;
}

/*
 * Pins the reader.  "context" is the statement's memory context, whose end
 * unpins it; a reader that is not kept is freed then.
 */
OnsideRowReader *
onside_row_cache_get(Trigger *trigger, Relation rel, MemoryContext context)
{
	static bool registered = false;
	MemoryContextCallback *callback =
		MemoryContextAlloc(context, sizeof(MemoryContextCallback));
	Entry	   *entry = find(trigger->tgoid, RelationGetRelid(rel));

	if (!registered)
	{
		CacheRegisterRelcacheCallback(forget_table, (Datum) 0);
		registered = true;
	}
	if (entry == NULL)
	{
		entry = make(trigger, rel);
		if (entry->reader->keepable)
			keep(entry);
	}

	/*
	 * The relation cache tells nothing of its root's name, and its schema's.
	 */
	onside_row_forget_id(entry->reader);
	entry->pins++;
	callback->func = unpin;
	callback->arg = entry;
	MemoryContextRegisterResetCallback(context, callback);
	return entry->reader;
}
