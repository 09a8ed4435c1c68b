/*-------------------------------------------------------------------------
 *
 * progress.h
 *		How far delivery has come, in memory and on disk.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_PROGRESS_H
#define ONSIDE_PROGRESS_H

#include "postgres.h"

#include "worker/state.h"

/* Loads what a predecessor has left. */
extern void onside_progress_init(OnsideWorker *worker);

/* Notes how far the sender has come, and tells everybody. */
extern void onside_progress_settle(OnsideWorker *worker);

/*
 * Somebody may have put another row into delivery_cursor, or taken it away:
 * looks, and has it written anew.
 */
extern void onside_progress_check_row(OnsideWorker *worker);

/*
 * Writes what has become of events and the cursor: now; if that is due; or, at the
 * end of the process, if a successor would repeat or miscount anything otherwise.
 */
extern void onside_progress_persist(OnsideWorker *worker);
extern void onside_progress_persist_if_due(OnsideWorker *worker);
extern void onside_progress_persist_at_exit(OnsideWorker *worker);

/*
 * For another transaction that is to move the cursor: writes the row; and, once
 * that has been committed, tells everybody.
 */
extern void onside_progress_store(OnsideWorker *worker);
extern void onside_progress_is_stored(OnsideWorker *worker);

/* Looks after the segments: now, or if that is due. */
extern void onside_progress_maintain(OnsideWorker *worker, bool drained);
extern void onside_progress_maintain_if_due(OnsideWorker *worker,
											bool drained);

/* Have the segments looked after soon (settings have changed). */
extern void onside_progress_request_maintenance(OnsideWorker *worker);

/* Milliseconds until persisting or maintenance is due; -1 for never. */
extern long onside_progress_timeout(OnsideWorker *worker);

/* Events settled since the slot was taken, and those refused in dead_letter. */
extern int64 onside_progress_settled_count(OnsideWorker *worker);

/* Is nothing of what is settled kept from being written down? */
extern bool onside_progress_is_written(OnsideWorker *worker);

/* Fills in the cumulative counters. */
extern void onside_progress_report(OnsideWorker *worker, OnsideStatus *status);

#endif							/* ONSIDE_PROGRESS_H */
