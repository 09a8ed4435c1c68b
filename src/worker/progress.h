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

/* Once: reads what a predecessor has left. */
extern void onside_progress_init(OnsideWorker *worker);

/* Takes over how far the sender has come, and publishes it. */
extern void onside_progress_settle(OnsideWorker *worker);

/*
 * Somebody may have changed the row of delivery_cursor, or deleted it: looks,
 * and has it written again.
 */
extern void onside_progress_check_row(OnsideWorker *worker);

/*
 * Writes fates and the cursor: now; if that is due; or, at the end of the
 * process, if a successor would repeat or miscount anything otherwise.
 */
extern void onside_progress_persist(OnsideWorker *worker);
extern void onside_progress_persist_if_due(OnsideWorker *worker);
extern void onside_progress_persist_at_exit(OnsideWorker *worker);

/*
 * For another transaction that moves the cursor: writes the row.  Once that
 * transaction has committed: publishes it.
 */
extern void onside_progress_store(OnsideWorker *worker);
extern void onside_progress_is_stored(OnsideWorker *worker);

/*
 * Looks after the segments: now, or if that is due.  drained: nothing is
 * pending.
 */
extern void onside_progress_maintain(OnsideWorker *worker, bool drained);
extern void onside_progress_maintain_if_due(OnsideWorker *worker,
											bool drained);

/* Has the segments looked after soon. */
extern void onside_progress_request_maintenance(OnsideWorker *worker);

/* Milliseconds until persisting or maintenance is due; -1 for never. */
extern long onside_progress_timeout(OnsideWorker *worker);

/* Events settled since the slot was taken, and those refused in dead_letter. */
extern int64 onside_progress_settled_count(OnsideWorker *worker);

/* Are all fates written, and does nothing keep the row from being written? */
extern bool onside_progress_is_written(OnsideWorker *worker);

/* Fills in the cumulative counters. */
extern void onside_progress_report(OnsideWorker *worker, OnsideStatus *status);

#endif							/* ONSIDE_PROGRESS_H */
