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
#include "send/chances.h"

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

/*
 * Second chances.  A group is all dead letters with a retry_at that have the
 * same http_status (or none) and the same event_name.  The caller of these
 * functions has a transaction and an active snapshot.  They wait for nobody.
 *
 * Without the table's index dead_letter_chances_idx there are no groups.
 */

/* The group that comes after this one (NULL: the first); false for none. */
extern bool onside_dead_letter_next_group(const OnsideChanceGroup *after,
										  OnsideChanceGroup *group);

/* The least retry_at of the group that is later than that; 0 for none. */
extern TimestampTz onside_dead_letter_next_due(const OnsideChanceGroup *group,
											   TimestampTz later_than);

/*
 * Finds dead letters with a retry_at that have failed since then, at most
 * "max".  Returns how many.
 */
extern int	onside_dead_letter_failed_since(TimestampTz since, pg_uuid_t *ids,
											int max);

/* Oldest and newest by retry_at. */
typedef enum OnsidePick
{
	ONSIDE_PICK_OLDEST,
	ONSIDE_PICK_NEWEST,
	ONSIDE_PICK_RANDOM
} OnsidePick;

/*
 * Picks a dead letter of the group with retry_at <= due_by.  It is not one of
 * not_these, has all fields, and no other session is changing it.  False if
 * there is none among the first thousand that were looked at.
 */
extern bool onside_dead_letter_pick(const OnsideChanceGroup *group,
									TimestampTz due_by, OnsidePick pick,
									const pg_uuid_t *not_these,
									int n_not_these, pg_uuid_t *id);

/*
 * Copies the event into the current memory context.  False if it is gone, has
 * no more chances, or cannot be sent: postpone it then.
 */
extern bool onside_dead_letter_fetch(const pg_uuid_t *id, OnsideEvent *event,
									 TimestampTz *recorded_at);

/*
 * Deletes a dead letter that was accepted.  False if it is gone, or another
 * session is changing it.
 */
extern bool onside_dead_letter_delete(const pg_uuid_t *id);

/*
 * Writes when a dead letter whose chance has failed gets the next one (see
 * onside_chances_count()).  error NULL: the answer said nothing about the
 * event, and the chance does not count.  accepted_at: when any event was
 * accepted last; 0 if that is not known.  False as for
 * onside_dead_letter_delete().
 */
extern bool onside_dead_letter_postpone(const pg_uuid_t *id, int http_status,
										const char *error,
										TimestampTz failed_at,
										TimestampTz accepted_at);

#endif							/* ONSIDE_DEAD_LETTER_H */
