/*-------------------------------------------------------------------------
 *
 * chances.h
 *		When dead letters have another chance, and whose turn it is.
 *
 * Dead letters with a retry_at that have the same HTTP status and event_name
 * are a group.  A group has a chance when one of its dead letters becomes
 * due.  A round visits the groups one after the other, by asking the storage
 * for the next one.  So each group has its turn, however many there are, and
 * nothing has to be remembered of any.  Dead letters that were due and not
 * tried have another chance in a later round, an hour after.
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

/*
 * So many dead letters of an outage have their chance as soon as it is over.
 */
#define ONSIDE_CHANCES_AT_ONCE	1000

typedef struct OnsideChances
{
	/* the present round, which has visited the groups up to "visited" */
	bool		in_round;
	OnsideChanceGroup visited;
	TimestampTz began;
	TimestampTz due_after;		/* what was due by then had its chance */
	bool		leftovers;		/* this round is for what was not tried, too */
	bool		any_left;
	TimestampTz next;			/* least retry_at that is yet to come */

	/* the next round */
	TimestampTz look_at;
	TimestampTz leftovers_at;	/* 0 for never */

	OnsideChanceGroup present;	/* whose chance it is; without a name, that of
								 * the dead letters of an outage */
	int			at_once;		/* dead letters of an outage that is over */
	pg_uuid_t	ids[ONSIDE_CHANCES_AT_ONCE];
} OnsideChances;

/* What is asked of the table. */
typedef struct OnsideChanceStorage
{
	/* finds the group after this one (NULL: the first); false for none */
	bool		(*next_group) (const OnsideChanceGroup *after,
							   OnsideChanceGroup *group);

	/* the least retry_at of the group above that; 0 for none */
	TimestampTz (*next_due) (const OnsideChanceGroup *group,
							 TimestampTz later_than);

	/* which dead letters have failed since then; how many, "max" at most */
	int			(*failed_since) (TimestampTz since, pg_uuid_t *ids, int max);
} OnsideChanceStorage;

/* The retry_at of a dead letter that failed then; 0 for never. */
extern TimestampTz onside_chances_retry_at(TimestampTz failed_at, int chances);

/*
 * How many chances a dead letter has had after one more has failed.  A chance
 * before its time (due is false) does not count, so that an API that comes and
 * goes does not use them up.  The last chance counts only if something was
 * accepted since the failure before it (compared), so that an outage of weeks
 * does not use them up, either.
 */
extern int	onside_chances_count(int chances, bool due, bool compared);

/* A dead letter that is due then may have come, or may have changed. */
extern void onside_chances_expect(OnsideChances *chances, TimestampTz retry_at);

/* Something is accepted for the first time since then: an outage is over. */
extern void onside_chances_recovered(OnsideChances *chances, TimestampTz since,
									 const OnsideChanceStorage *storage);

/*
 * Goes on with the round, or begins one if it is time.  True if a group has
 * its chance now: "present".  Stops after a number of groups: call it again
 * when onside_chances_look_at() says so.
 */
extern bool onside_chances_look(OnsideChances *chances, TimestampTz now,
								const OnsideChanceStorage *storage);

/* When to look again. */
extern TimestampTz onside_chances_look_at(const OnsideChances *chances);

#endif							/* ONSIDE_CHANCES_H */
