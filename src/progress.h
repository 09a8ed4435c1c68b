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

#include "delivery.h"
#include "shmem.h"
#include "window.h"

/* Loads what a predecessor has left. */
extern void onside_progress_init(OnsideSlot *slot, const char *database_name);

/* Everything up to here is settled; there was nothing to send. */
extern void onside_progress_advance(const OnsideCursor *settled);

/* Takes what the sender has settled; moves dead letters. */
extern void onside_progress_settle(void);

/* Is there room to remember what the API might refuse? */
extern bool onside_progress_may_send(void);

/*
 * Somebody may have put another row into delivery_cursor, or taken it away:
 * looks, and has it written anew.
 */
extern void onside_progress_check_row(void);

/* Writes the cursor, and looks after the segments, if that is due. */
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

extern const OnsideCursor *onside_progress_settled(void);
extern TimestampTz onside_progress_not_before(void);

/* Events settled since the slot was taken, and those refused in dead_letter. */
extern int64 onside_progress_settled_count(void);

/* Since when refused events wait to be written to dead_letter; 0 for none. */
extern TimestampTz onside_progress_unwritten_since(void);

/* Is nothing of what is settled kept from being written down? */
extern bool onside_progress_is_written(void);

/* Fills in the cumulative counters. */
extern void onside_progress_report(OnsideStatus *status);

#endif							/* ONSIDE_PROGRESS_H */
