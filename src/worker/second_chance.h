/*-------------------------------------------------------------------------
 *
 * second_chance.h
 *		Dead letters that get another chance by themselves.
 *
 * The caller of these functions has a transaction and an active snapshot.  They
 * wait for no other session.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_SECOND_CHANCE_H
#define ONSIDE_SECOND_CHANCE_H

#include "postgres.h"

#include "log/event.h"
#include "send/chances.h"

/*
 * What send/chances.c asks of the table.  A group is all dead letters with a
 * retry_at that have the same http_status (or none) and the same event_name.
 * Without the table's index dead_letter_chances_idx there are no groups.
 */
extern const OnsideChanceStorage onside_second_chance_storage;

/* Oldest and newest by retry_at. */
typedef enum OnsidePick
{
	ONSIDE_PICK_OLDEST,
	ONSIDE_PICK_NEWEST,
	ONSIDE_PICK_RANDOM
} OnsidePick;

/*
 * Picks a dead letter of the group that is due.  It is not one of not_these,
 * has all fields, and no other session is changing it.  False if there is none
 * among the first thousand that were looked at.
 */
extern bool onside_second_chance_pick(const OnsideChanceGroup *group,
									  OnsidePick pick,
									  const pg_uuid_t *not_these,
									  int n_not_these, pg_uuid_t *id);

/*
 * Copies the event into the current memory context.  False if it is gone, has
 * no more chances, or cannot be sent: postpone it then.
 */
extern bool onside_second_chance_fetch(const pg_uuid_t *id, OnsideEvent *event,
									   TimestampTz *recorded_at);

/*
 * Deletes a dead letter that was accepted.  A row that is gone, or that another
 * session is changing, stays as it is.
 */
extern void onside_second_chance_delete(const pg_uuid_t *id);

/*
 * A chance has failed: writes when the dead letter gets the next one (see
 * onside_chances_count()).  error NULL: the answer said nothing about the
 * event, and the chance does not count.  accepted_at: when any event was
 * accepted last; 0 if that is not known.  Like onside_second_chance_delete(),
 * it passes over a row that is gone or that another session is changing.
 */
extern void onside_second_chance_postpone(const pg_uuid_t *id, int http_status,
										  const char *error,
										  TimestampTz accepted_at);

#endif							/* ONSIDE_SECOND_CHANCE_H */
