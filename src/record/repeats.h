/*-------------------------------------------------------------------------
 *
 * repeats.h
 *		Several events of a mapper with one event_id.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_REPEATS_H
#define ONSIDE_REPEATS_H

#include "postgres.h"

#include "utils/uuid.h"

/* What to do about it. */
#define ONSIDE_REPEATS_HINT "Make an event_id of all that tells one event from another, such as the order and its line. If the mapper joins, see that no join makes several rows of one."

typedef struct OnsideRepeats OnsideRepeats;

/*
 * Lives in the current memory context.  "places" is a power of two.  Half of
 * the places are used, and an event_id is remembered for at least that many
 * further events.
 */
extern OnsideRepeats *onside_repeats_make(int places);

/*
 * Counts an event, and notes its event_id.  Does nothing if "repeats" is NULL.
 */
extern void onside_repeats_add(OnsideRepeats *repeats,
							   const pg_uuid_t *event_id);

/*
 * How many events have the event_id of an earlier one, and how many events
 * there were.  0 if "repeats" is NULL.
 */
extern int64 onside_repeats_found(const OnsideRepeats *repeats, int64 *events);

/* The first repeated event_id, as text. */
extern char *onside_repeats_example(const OnsideRepeats *repeats);

#endif							/* ONSIDE_REPEATS_H */
