/*-------------------------------------------------------------------------
 *
 * aside.h
 *		Pending events that have failed while others were accepted.
 *
 * The caller of each function has a transaction and an active snapshot.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_ASIDE_H
#define ONSIDE_ASIDE_H

#include "log/event.h"

/*
 * Puts an event aside.  http_status 0 becomes NULL; the error is cut as in
 * dead_letter.
 */
extern void onside_aside_insert(const pg_uuid_t *id, const OnsideEvent *event,
								int http_status, const char *error,
								TimestampTz recorded_at,
								TimestampTz failed_at);

/* Copies the event into the current memory context.  False if it is gone. */
extern bool onside_aside_fetch(const pg_uuid_t *id, OnsideEvent *event,
							   TimestampTz *recorded_at);

/*
 * Deletes the event.  Waits for nobody: false if it is gone, or another
 * session is deleting it.
 */
extern bool onside_aside_delete(const pg_uuid_t *id);

/*
 * Gets an event's place, and about how many bytes the event takes in a
 * request.  Returns false to stop after this event.
 */
typedef bool (*OnsideAsideCallback) (const pg_uuid_t *id,
									 const pg_uuid_t *event_id,
									 TimestampTz recorded_at,
									 int bytes_estimate, void *arg);

/*
 * Reads the events behind this place, in the order of (recorded_at, id).  With
 * after_id NULL, reads from the first event on.
 */
extern void onside_aside_read(TimestampTz after_recorded_at,
							  const pg_uuid_t *after_id,
							  OnsideAsideCallback callback, void *arg);

/*
 * How many events are aside, counted up to "max", and the least recorded_at
 * among them (0 for none; *oldest is exact if the table has its index).
 */
extern int64 onside_aside_count(int64 max, TimestampTz *oldest);

/* Is any event aside that was recorded at that time or before? */
extern bool onside_aside_holds(TimestampTz until);

#endif							/* ONSIDE_ASIDE_H */
