/*-------------------------------------------------------------------------
 *
 * dead_letter.h
 *		Events that were refused for good.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_DEAD_LETTER_H
#define ONSIDE_DEAD_LETTER_H

#include "log/event.h"

/* An error is cut to this number of bytes. */
#define ONSIDE_DEAD_LETTER_ERROR_MAX	1024

/* The error, cut like that. */
extern text *onside_dead_letter_clip(const char *error);

/*
 * Locks dead_letter for inserting, to the end of the transaction.  False if
 * another session has it locked for longer than "patience", in ms.
 */
extern bool onside_dead_letter_lock(int patience);

/*
 * Puts an event into dead_letter, within the current transaction.  "id" is the
 * row's id; NULL makes a new one.  Fields that the event lacks become NULL.
 * So do http_status 0 (no answer, or never sent) and retry_at 0 (no second
 * chance).  "source" is schema.table of the row that was to become the event,
 * or NULL.
 */
extern void onside_dead_letter_insert(const pg_uuid_t *id,
									  const OnsideEvent *event,
									  int http_status, const char *error,
									  int attempts, TimestampTz recorded_at,
									  TimestampTz retry_at,
									  const char *source);

/*
 * Is this event, with all that is in it, a dead letter already?  After a crash
 * it may have been sent and refused again.
 */
extern bool onside_dead_letter_holds(const OnsideEvent *event);

/*
 * How many dead letters there are, counted up to "max", with the active
 * snapshot.  *newest is the greatest failed_at among these, DT_NOBEGIN if
 * there is none.  With NULL in its place no column is read, so the table may
 * have been altered.
 */
extern int64 onside_dead_letter_count(int64 max, TimestampTz *newest);

#endif							/* ONSIDE_DEAD_LETTER_H */
