/*-------------------------------------------------------------------------
 *
 * chances.c
 *		When dead letters have another chance, and whose turn it is.
 *
 * chances.h describes the groups and the rounds.  second_chance.c in
 * src/worker calls this file, and answers what is asked of the storage.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "send/chances.h"

/* How long dead letters wait that were due and not tried in their chance. */
#define LEFT_OVER_WAIT	(INT64CONST(3600) * USECS_PER_SEC)

/* So many groups are visited in one call. */
#define GROUPS_AT_ONCE	100

TimestampTz
onside_chances_retry_at(TimestampTz failed_at, int chances)
{
	/* In minutes after each failure; then daily for a week. */
	static const int first[] = {1, 10, 60};
	int			minutes = 24 * 60;

	if (chances < (int) lengthof(first))
		minutes = first[Max(chances, 0)];
	else if (chances >= (int) lengthof(first) + 7)
		return 0;
	return failed_at + minutes * (int64) SECS_PER_MINUTE * USECS_PER_SEC;
}

int
onside_chances_count(int chances, bool due, bool compared)
{
	bool		last = onside_chances_retry_at(0, chances + 1) == 0;

	/* The last chance is not used up while the API accepts nothing at all. */
	return due && (compared || !last) ? chances + 1 : chances;
}

void
onside_chances_expect(OnsideChances *chances, TimestampTz retry_at)
{
	if (chances->in_round)
		chances->next = Min(chances->next, retry_at);
	else
		chances->look_at = Min(chances->look_at, retry_at);
}

void
onside_chances_recovered(OnsideChances *chances, TimestampTz since,
						 const OnsideChanceStorage *storage)
{
	chances->at_once += storage->failed_since(since,
											  chances->ids + chances->at_once,
											  ONSIDE_CHANCES_AT_ONCE -
											  chances->at_once);
}

/*
 * Begins a round at the first group.  If the clock was set back since the last
 * round, what is due does not wait until the clock is there again.
 */
static void
begin_group_round(OnsideChances *chances, TimestampTz now)
{
	chances->in_round = true;
	chances->visited.event_name[0] = '\0';
	chances->due_after = Min(chances->began, now);
	chances->began = now;

	/* Is it also the time of those that were due before and not tried? */
	chances->leftovers = chances->leftovers_at != 0 &&
		chances->leftovers_at <= now;
	if (chances->leftovers)
		chances->leftovers_at = 0;
	chances->any_left = false;
	chances->next = DT_NOEND;
}

/* All groups were visited: when is the next round? */
static void
end_group_round(OnsideChances *chances, TimestampTz now)
{
	chances->in_round = false;
	chances->look_at = chances->next;
	if (chances->any_left && chances->leftovers_at == 0)
		chances->leftovers_at = now + LEFT_OVER_WAIT;
	if (chances->leftovers_at != 0)
		chances->look_at = Min(chances->look_at, chances->leftovers_at);
}

/*
 * Has the group a chance in this round?  It has if one of its dead letters has
 * become due since the last round, or if this is a round of leftovers.
 */
static bool
visit_group(OnsideChances *chances, const OnsideChanceGroup *group,
			TimestampTz now, const OnsideChanceStorage *storage)
{
	TimestampTz due = group->due > chances->due_after ? group->due :
		storage->next_due(group, chances->due_after);
	TimestampTz next = group->due > now ? group->due :
		storage->next_due(group, now);


	/* Whatever comes of it, it is due again then. */
	if (next != 0)
		chances->next = Min(chances->next, next);
	if (group->due > now)
		return false;

	/* A chance tries some of them; others may be left. */
	chances->any_left = true;
	return chances->leftovers || (due != 0 && due <= now);
}

/*
 * Goes on with the round of groups, or begins a round if it is time; at most
 * GROUPS_AT_ONCE groups in a call.  The dead letters of an outage come first.
 */
bool
onside_chances_look(OnsideChances *chances, TimestampTz now,
					const OnsideChanceStorage *storage)
{
	chances->present.event_name[0] = '\0';
	if (chances->at_once > 0)
		return true;
	if (!chances->in_round)
	{
		if (now < chances->look_at)
			return false;
		begin_group_round(chances, now);
	}

	/* Visit the group that comes after the last one, if there is any. */
	for (int i = 0; i < GROUPS_AT_ONCE; i++)
	{
		OnsideChanceGroup *group = &chances->present;
		const OnsideChanceGroup *after =
			chances->visited.event_name[0] == '\0' ? NULL : &chances->visited;

		if (!storage->next_group(after, group))
		{
			end_group_round(chances, now);
			break;
		}
		chances->visited = *group;
		if (visit_group(chances, group, now, storage))
			return true;
	}

	/* Nobody's turn, as yet. */
	chances->present.event_name[0] = '\0';
	return false;
}

TimestampTz
onside_chances_look_at(const OnsideChances *chances)
{
	return chances->at_once > 0 || chances->in_round ? 0 : chances->look_at;
}
