/*-------------------------------------------------------------------------
 *
 * row_cache.c
 *		Row readers, kept from one statement to the next.
 *
 * Working out what a trigger's arguments mean costs as much as writing one
 * row's event.  So a session keeps the last MAX_KEPT readers that it has made.
 * A reader is no longer kept when the relation cache says that its table, and
 * so a column or a trigger, has changed.  A statement that still uses it then
 * goes on with it, and the reader is freed when the last such statement ends.
 *
 * Only a reader that depends on nothing but the table is kept.  A reader is
 * made again for each statement if its mapping is broken, or if a column is
 * rendered by its type's output function, which can change.  A mapper is
 * looked up again in each call (mapper.c).
 *
 * trigger.c is the only caller.  No locks are taken: the statement has locked
 * the table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/inval.h"
#include "utils/memutils.h"

#include "record/row_cache.h"

/* Each takes about 10 kB. */
#define MAX_KEPT	32

typedef struct KeptReader
{
	Oid			trigger;
	Oid			relid;
	OnsideRowReader *reader;
	MemoryContext context;		/* of all of this */
	bool		is_kept;		/* is it in "kept"? */
	int			users;			/* statements that use it now */
} KeptReader;

/* NULL is a free place.  The next new reader goes to "next_place". */
static KeptReader *kept[MAX_KEPT];
static int	next_place;

/*
 * Called when a statement has ended, or the reader is not kept any more.  An
 * error leaves in per_row what was made of the row.
 */
static void
tidy_up(KeptReader *entry)
{
	/* The last statement does it. */
	if (entry->users > 0)
		return;
	if (entry->is_kept)
		MemoryContextReset(entry->reader->per_row);
	else
		MemoryContextDelete(entry->context);
}

/* Keeps a reader no longer. */
static void
empty_place(int place)
{
	KeptReader *entry = kept[place];

	if (entry == NULL)
		return;

	/* Not found any more; whoever uses it keeps it. */
	kept[place] = NULL;
	entry->is_kept = false;
	tidy_up(entry);
}

/*
 * Relation cache callback; InvalidOid stands for all.  A reader also depends
 * on the table whose rows its mapper takes.
 */
static void
forget_table(Datum arg, Oid relid)
{
	for (int i = 0; i < MAX_KEPT; i++)
		if (kept[i] != NULL &&
			(!OidIsValid(relid) || kept[i]->relid == relid ||
			 (kept[i]->reader->mapper != NULL &&
			  onside_mapper_table(kept[i]->reader->mapper) == relid)))
			empty_place(i);
}

/* Called when the statement's memory context is reset. */
static void
end_use(void *arg)
{
	KeptReader *entry = arg;

	entry->users--;
	tidy_up(entry);
}

static KeptReader *
find_reader(Oid trigger)
{
	for (int i = 0; i < MAX_KEPT; i++)
		if (kept[i] != NULL && kept[i]->trigger == trigger)
			return kept[i];
	return NULL;
}

/* Makes a reader, and keeps it in place of the oldest if that is possible. */
static KeptReader *
add_reader(Trigger *trigger, Relation rel)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "onside_attribution row reader",
												  ALLOCSET_SMALL_SIZES);
	KeptReader *entry = MemoryContextAllocZero(context, sizeof(KeptReader));

	/* The context is the caller's until the reader is complete. */
	entry->trigger = trigger->tgoid;
	entry->relid = RelationGetRelid(rel);
	entry->context = context;
	entry->reader = onside_row_reader(trigger, rel, context);

	/* From here on nothing fails. */
	MemoryContextSetParent(context, CacheMemoryContext);
	if (entry->reader->keepable)
	{
		empty_place(next_place);
		kept[next_place] = entry;
		entry->is_kept = true;
		next_place = (next_place + 1) % MAX_KEPT;
	}
	return entry;
}

/*
 * "context" is the statement's memory context, whose end ends the use.  Its
 * callback is allocated first, so that nothing fails once the use has begun.
 */
OnsideRowReader *
onside_row_cache_get(Trigger *trigger, Relation rel, MemoryContext context)
{
	static bool registered = false;
	MemoryContextCallback *callback =
		MemoryContextAlloc(context, sizeof(MemoryContextCallback));
	KeptReader *entry = find_reader(trigger->tgoid);

	/* Before the first reader, so that no change of its table is missed. */
	if (!registered)
		CacheRegisterRelcacheCallback(forget_table, (Datum) 0);
	registered = true;
	if (entry == NULL)
		entry = add_reader(trigger, rel);

	entry->users++;
	callback->func = end_use;
	callback->arg = entry;
	MemoryContextRegisterResetCallback(context, callback);
	return entry->reader;
}
