/*-------------------------------------------------------------------------
 *
 * reader.h
 *		From the log into batches.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_READER_H
#define ONSIDE_READER_H

#include "postgres.h"

#include "shmem.h"
#include "window.h"

/* Starts reading behind what is settled. */
extern void onside_reader_init(OnsideSlot *slot, const OnsideCursor *settled);

/* There may be new events. */
extern void onside_reader_wake(void);

/*
 * How many more events would let another batch go, before any other thing
 * happens; 0 if none would.
 */
extern uint64 onside_reader_wants(void);

/* Reads and hands to the sender as much as may be sent now. */
extern void onside_reader_read_and_send(void);

/* Is everything that we know of settled? */
extern bool onside_reader_drained(void);

/* slot->recorded when was last looked for events. */
extern uint64 onside_reader_recorded(void);

/*
 * When the oldest event that is not settled was recorded; 0 for none.  Looks
 * into the log if need be.
 */
extern TimestampTz onside_reader_oldest(void);

/* Why nothing can be read, or NULL. */
extern const char *onside_reader_problem(void);

/*
 * Milliseconds until a batch has lingered long enough, or reading is tried
 * again; -1 for never.
 */
extern long onside_reader_timeout(void);

#endif							/* ONSIDE_READER_H */
