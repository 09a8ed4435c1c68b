/*-------------------------------------------------------------------------
 *
 * chances.h
 *		When dead letters have another chance, and whose turn it is.
 *
 * Alike are dead letters of one HTTP status and one event_name that have a
 * retry_at.  Such a group has its chance when one of its dead letters becomes due.
 * Rounds are made: each visits the groups one after the other, by asking the
 * storage for the next one, so however many there are, each has its turn and
 * nothing has to be remembered of it.  What is due and was not tried has another
 * chance in a later round, an hour after.
 *
 * Pure, as sender.h says; times are microseconds of a clock on the wall.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_CHANCES_H
#define ONSIDE_CHANCES_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/uuid.h"

typedef struct OnsideChanceGroup
{
	bool		has_status;
	int			http_status;
	char		event_name[1024];	/* 255 characters; empty for none */
	TimestampTz due;			/* least retry_at in it */
} OnsideChanceGroup;

/* So many dead letters of an outage have their chance at once. */
#define ONSIDE_CHANCES_AT_ONCE	1000

typedef struct OnsideChances
{
	/* the present round; of the groups it has visited those up to "visited" */
	bool		in_round;
	OnsideChanceGroup visited;
	TimestampTz began;
	TimestampTz due_after;		/* what was due by then had its chance */
	bool		leftovers;		/* it is also one for what was not tried */
	bool		any_left;
	TimestampTz next;			/* least retry_at that is yet to come */

	/* the next one */
	TimestampTz look_at;
	TimestampTz leftovers_at;	/* 0 for never */

	OnsideChanceGroup present;	/* whose chance it is; no name: that of an
								 * outage's */
	int			at_once;		/* of an outage that is over */
	pg_uuid_t	ids[ONSIDE_CHANCES_AT_ONCE];
} OnsideChances;

/* What is asked of the table. */
typedef struct OnsideChanceStorage
{
	/* the group after this one, the first one after NULL; false for none */
	bool		(*next_group) (const OnsideChanceGroup *after,
							   OnsideChanceGroup *group);

	/* the least retry_at of the group above that; 0 for none */
	TimestampTz (*next_due) (const OnsideChanceGroup *group,
							 TimestampTz later_than);

	/* those that have failed since then; returns how many, of at most "max" */
	int			(*failed_since) (TimestampTz since, pg_uuid_t *ids, int max);
} OnsideChanceStorage;

/* The retry_at of one that failed then, after so many chances; 0 for never. */
extern TimestampTz onside_chances_retry_at(TimestampTz failed_at, int chances);

/*
 * How many chances it has had after one more has failed.  One before its time does
 * not count, so that an API that comes and goes does not use them up; and the last
 * one counts only if something was accepted since the failure before, or an outage
 * of weeks would.
 */
extern int	onside_chances_count(int chances, bool due, bool compared);

/* A dead letter may have come, or changed, that is due then. */
extern void onside_chances_expect(OnsideChances *chances, TimestampTz retry_at);

/* Something is accepted again, and nothing was since then. */
extern void onside_chances_recovered(OnsideChances *chances, TimestampTz since,
									 const OnsideChanceStorage *storage);

/*
 * Goes on with the round, or begins one if it is time.  True, with "present", if
 * somebody has a chance now.  It stops after a number of groups: call it again.
 */
extern bool onside_chances_look(OnsideChances *chances, TimestampTz now,
								const OnsideChanceStorage *storage);

/* When to look again. */
extern TimestampTz onside_chances_look_at(const OnsideChances *chances);

#endif							/* ONSIDE_CHANCES_H */
