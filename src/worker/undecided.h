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

/* If due, moves undecided events to aside, and reads events of aside. */
extern void onside_undecided_exchange(OnsideWorker *worker);

/* Rows of aside may have come by SQL: has the whole table read again. */
extern void onside_undecided_look_again(OnsideWorker *worker);

/* Is everything settled and written, in the log and aside? */
extern bool onside_undecided_is_drained(OnsideWorker *worker);

/* Milliseconds until events of aside are to be read; -1 for never. */
extern long onside_undecided_timeout(OnsideWorker *worker);

/*
 * At the end of the process: saves how far delivery has come, so that a
 * successor sends little or nothing again.  Waits for nothing.
 */
extern void onside_undecided_save_at_exit(OnsideWorker *worker);

#endif							/* ONSIDE_UNDECIDED_H */
