/*-------------------------------------------------------------------------
 *
 * dead_letter.h
 *		Events that were refused for good.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_DEAD_LETTER_H
#define ONSIDE_DEAD_LETTER_H

#include "postgres.h"

#include "event.h"

/* Columns of dead_letter; the event's own are those of the outbox. */
enum
{
	Anum_dead_letter_http_status = 6,
	Anum_dead_letter_error,
	Anum_dead_letter_attempts,
	Anum_dead_letter_recorded_at,
	Anum_dead_letter_failed_at,
	Anum_dead_letter_retry_at,
	Anum_dead_letter_source,
	Anum_dead_letter_id,
	Natts_dead_letter = Anum_dead_letter_id
};

/* Most that is kept of what the API said, in bytes. */
#define ONSIDE_DEAD_LETTER_ERROR_MAX	1024

/*
 * Locks dead_letter for that, to the end of the transaction, but waits no longer
 * than so many milliseconds.  False if somebody else has it locked for longer.
 */
extern bool onside_dead_letter_lock(int patience);

/*
 * Puts an event into dead_letter, within the current transaction.  Fields that
 * it lacks become null, and so does http_status 0 (it was never sent).  "source"
 * is schema.table of the row that was to become the event, or NULL.
 */
extern void onside_dead_letter_insert(const OnsideEvent *event,
									  int http_status, const char *error,
									  int attempts, TimestampTz recorded_at,
									  const char *source);

#endif							/* ONSIDE_DEAD_LETTER_H */
