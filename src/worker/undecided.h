/*-------------------------------------------------------------------------
 *
 * undecided.h
 *		Events that are not decided soon leave the log for the table aside, and
 *		come back from there.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_UNDECIDED_H
#define ONSIDE_UNDECIDED_H

#include "postgres.h"

#include "worker/state.h"

/* Once, when there is a sender. */
extern void onside_undecided_init(OnsideWorker *worker);

/* Sets aside what is not decided, and takes in what is aside, if that is due. */
extern void onside_undecided_exchange(OnsideWorker *worker);

/* Rows of aside may have come by SQL: looks through all of it. */
extern void onside_undecided_look_again(OnsideWorker *worker);

/* Is every event that is aside known to the sender? */
extern bool onside_undecided_all_known(OnsideWorker *worker);

/* Is everything that we know of settled, and written, and do we know it all? */
extern bool onside_undecided_is_drained(OnsideWorker *worker);

/* Milliseconds until there is something to take in; -1 for never. */
extern long onside_undecided_timeout(OnsideWorker *worker);

/*
 * At the end of the process: saves how far we are, so that a successor sends
 * little or nothing again.  Waits for nothing.
 */
extern void onside_undecided_save_at_exit(OnsideWorker *worker);

#endif							/* ONSIDE_UNDECIDED_H */
