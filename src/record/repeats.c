/*-------------------------------------------------------------------------
 *
 * repeats.c
 *		Several events of a mapper with one event_id.
 *
 * The API accepts an event whose event_id it knows, and ignores it as a
 * repetition.  So if a mapper gives all lines of an order the same event_id,
 * or its join multiplies rows, all purchases but one are lost, and nothing
 * fails.  It is no error, since it can be meant: one event for each user's
 * first purchase.  So repetitions are counted, and a WARNING tells them.
 *
 * The event_ids are in a hash table of fixed size.  The table is emptied when
 * it is half full: a statement can have any number of events, but the events
 * of one row follow each other closely.  An event_id is random, or made by a
 * hash, and serves as its own hash value.
 *
 * row_mapped.c has such a table for each statement, and look.c one for the rows
 * that attach() tries.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "record/column.h"
#include "record/repeats.h"

struct OnsideRepeats
{
	int64		events;
	int64		found;
	pg_uuid_t	example;		/* the first one that was found */
	uint32		mask;			/* number of places - 1 */
	uint32		used;

	/* A free place is all zeros, which is no valid event_id. */
	pg_uuid_t	places[FLEXIBLE_ARRAY_MEMBER];
};

OnsideRepeats *
onside_repeats_make(int places)
{
	OnsideRepeats *repeats = palloc0(offsetof(OnsideRepeats, places) +
									 places * sizeof(pg_uuid_t));

	repeats->mask = places - 1;
	return repeats;
}

/*
 * Looks the event_id up in the hash table, place after place from where its
 * own bytes point to.
 */
void
onside_repeats_add(OnsideRepeats *repeats, const pg_uuid_t *event_id)
{
	static const pg_uuid_t free_place = {{0}};
	uint32		i;

	if (repeats == NULL)
		return;
	repeats->events++;

	/* Empty the table when it is half full. */
	if (repeats->used > repeats->mask / 2)
	{
		memset(repeats->places, 0,
			   (repeats->mask + 1) * sizeof(pg_uuid_t));
		repeats->used = 0;
	}

	/* The last bytes are random in any kind of version 4. */
	memcpy(&i, &event_id->data[UUID_LEN - sizeof(i)], sizeof(i));
	for (;; i++)
	{
		pg_uuid_t  *place = &repeats->places[i & repeats->mask];

		if (memcmp(place, event_id, UUID_LEN) == 0)
		{
			if (repeats->found == 0)
				repeats->example = *event_id;
			repeats->found++;
			return;
		}

		/* Not seen before, so it is noted. */
		if (memcmp(place, &free_place, UUID_LEN) == 0)
		{
			*place = *event_id;
			repeats->used++;
			return;
		}
	}
}

int64
onside_repeats_found(const OnsideRepeats *repeats, int64 *events)
{
	*events = repeats == NULL ? 0 : repeats->events;
	return repeats == NULL ? 0 : repeats->found;
}

char *
onside_repeats_example(const OnsideRepeats *repeats)
{
	return onside_column_uuid_text(&repeats->example);
}
