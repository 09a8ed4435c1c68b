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

#include "log/delivery.h"
#include "log/shmem.h"
#include "log/window.h"

/* Loads what a predecessor has left. */
extern void onside_progress_init(OnsideSlot *slot, const char *database_name);

/*
 * From here on a sender decides what becomes of events.  Called once, after
 * onside_progress_init.
 */
extern void onside_progress_begin(void);

/* Notes how far the sender has come, and tells everybody. */
extern void onside_progress_settle(void);

/* Rows of aside may have come by SQL: looks through all of it. */
extern void onside_progress_look_aside(void);

/* Is every event that is aside known to the sender? */
extern bool onside_progress_knows_all(void);

/*
 * Somebody may have put another row into delivery_cursor, or taken it away:
 * looks, and has it written anew.
 */
extern void onside_progress_check_row(void);

/*
 * Writes what has become of events and the cursor, sets aside what is not
 * decided, takes in what is aside, and looks after the segments, if that is due.
 */
extern void onside_progress_keep(bool drained);

/* Looks after the segments now. */
extern void onside_progress_maintain(bool drained);

/* Have the segments looked after soon (settings have changed). */
extern void onside_progress_request_maintenance(void);

/* Milliseconds until onside_progress_keep has something to do; -1 for never. */
extern long onside_progress_timeout(void);

/*
 * At the end of the process: saves how far we are, so that a successor sends
 * little or nothing again.  Waits for nothing.
 */
extern void onside_progress_save_at_exit(void);

/* What cannot be written, or keeps a segment from being emptied; or NULL. */
extern const char *onside_progress_blocked(void);

/* What is, or is about to be, in delivery_cursor. */
extern const OnsideDelivery *onside_progress_delivery(void);

/* Events settled since the slot was taken, and those refused in dead_letter. */
extern int64 onside_progress_settled_count(void);

/* Refused events that are not in dead_letter yet. */
extern int	onside_progress_unburied(void);

/* Since when what has become of events waits to be written; 0 for none. */
extern TimestampTz onside_progress_unwritten_since(void);

/* Is nothing of what is settled kept from being written down? */
extern bool onside_progress_is_written(void);

/* Fills in the cumulative counters. */
extern void onside_progress_report(OnsideStatus *status);

#endif							/* ONSIDE_PROGRESS_H */
