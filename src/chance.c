/*-------------------------------------------------------------------------
 *
 * chance.c
 *		Second chances of dead letters.
 *
 * Alike are dead letters of one status and event_name.  A group has its chance
 * when one of its dead letters becomes due: then ten of those that are due are
 * tried, and more as long as some are accepted (sender.c counts).  The others
 * stay as they are, with a retry_at that is past: of a group that has some of
 * those and none that becomes due, another chance begins an hour later.
 *
 * What is due is looked up group by group, in the index; nothing is read of those
 * that are not tried.
 *
 * Whatever failed while nothing was accepted has its chance as soon as something
 * is again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "chance.h"
#include "clock.h"
#include "dead_letter.h"
#include "reader.h"
#include "txn.h"

/* What was not tried is due again after this time; ms. */
#define LEFT_OVER_WAIT	(3600 * 1000)

/* So many groups can wait for their turn, and dead letters of an outage. */
#define MAX_GROUPS		64
#define MAX_FAILED		1000

typedef struct Waiting
{
	OnsideChanceGroup group;
	TimestampTz from;
} Waiting;

static OnsideSender *sender;
static TimestampTz looked_at;	/* groups due by then have had their chance */
static TimestampTz look_at;		/* when to look again; 0 for now */
static Waiting *waiting;		/* groups whose turn it is */
static int	nwaiting;
static OnsideChanceGroup present;	/* whose chance it is; without a name that
									 * of an outage's */
static int	npicks;
static pg_uuid_t at_once[MAX_FAILED];	/* those of an outage that is over */
static int	nat_once;
static OnsideBrake brake = {
	.work = "look for dead letters that are due",
	.step = ONSIDE_STEP_READING_DEAD_LETTERS
};

void
onside_chance_init(OnsideSender *my_sender)
{
	sender = my_sender;
	waiting = MemoryContextAlloc(TopMemoryContext,
								 MAX_GROUPS * sizeof(Waiting));
}

void
onside_chance_expect(TimestampTz retry_at)
{
	if (look_at != 0 && retry_at < look_at)
		look_at = retry_at;
}

/* ----------
 * Looking
 * ----------
 */

static bool
same_group(const OnsideChanceGroup *a, const OnsideChanceGroup *b)
{
	return a->has_status == b->has_status &&
		a->http_status == b->http_status &&
		strcmp(a->event_name, b->event_name) == 0;
}

/* The group has its turn from then on. */
static void
wait_for_turn(const OnsideChanceGroup *group, TimestampTz from)
{
	int			i;

	for (i = 0; i < nwaiting; i++)
		if (same_group(&waiting[i].group, group))
			break;
	if (i == MAX_GROUPS)
		return;
	if (i == nwaiting)
	{
		waiting[nwaiting].group = *group;
		waiting[nwaiting++].from = from;
	}
	waiting[i].from = Min(waiting[i].from, from);
}

/* Body of a transaction: notes the groups of which one has become due. */
static void
look_at_groups(void *arg)
{
	TimestampTz now = *(TimestampTz *) arg;
	TimestampTz next = DT_NOEND;
	OnsideChanceGroup *group = palloc(sizeof(OnsideChanceGroup));
	bool		found = onside_dead_letter_next_group(NULL, group);

	while (found)
	{
		TimestampTz due = group->due > looked_at ? group->due :
			onside_dead_letter_next_due(group, looked_at);

		CHECK_FOR_INTERRUPTS();
		if (due != 0 && due <= now)
			wait_for_turn(group, now);
		else if (group->due <= now)
			wait_for_turn(group,
						  TimestampTzPlusMilliseconds(now, LEFT_OVER_WAIT));
		if (group->due <= now)
			due = onside_dead_letter_next_due(group, now);
		if (due != 0)
			next = Min(next, due);
		found = onside_dead_letter_next_group(group, group);
	}
	look_at = next;
	looked_at = now;
}

/* Is something accepted again, after a time without, of which all is written? */
static bool
has_recovered(void)
{
	return sender->recovered && sender->nfates == 0;
}

/* Body of a transaction: notes what failed in that time. */
static void
look_at_outage(void *arg)
{
	TimestampTz since = onside_clock_timestamp(sender->recovered_us);

	*(int *) arg = onside_dead_letter_failed_since(since, at_once + nat_once,
												   MAX_FAILED - nat_once);
}

/* What failed while nothing was accepted has its chance now. */
static void
take_recovery(void)
{
	int			found;

	if (!has_recovered() ||
		!onside_txn_run(&brake, ONSIDE_USES_DEAD_LETTER, look_at_outage,
						&found))
		return;
	nat_once += found;
	sender->recovered = false;
}

void
onside_chance_look(void)
{
	TimestampTz now = GetCurrentTimestamp();

	take_recovery();
	if (sender->chance_tries > 0 || sender->chances_in_flight > 0)
		return;
	present.event_name[0] = '\0';
	if (nat_once > 0)
	{
		onside_sender_begin_chance(sender);
		return;
	}
	if (onside_chance_timeout() == 0 && look_at <= now)
		(void) onside_txn_run(&brake, ONSIDE_USES_DEAD_LETTER, look_at_groups,
							  &now);
	for (int i = 0; i < nwaiting; i++)
	{
		if (waiting[i].from > now)
			continue;
		present = waiting[i].group;
		waiting[i] = waiting[--nwaiting];
		onside_sender_begin_chance(sender);
		return;
	}
}

/* ----------
 * Picking
 * ----------
 */

/* One that is to be tried, and its event. */
typedef struct Pick
{
	OnsideBatch *batch;
	int			nbusy;
	pg_uuid_t	busy[ONSIDE_SENDER_MAX_REQUESTS * 2];
} Pick;

static void
note_busy(Pick *pick, const OnsideItem *item)
{
	if (item->home == ONSIDE_IN_DEAD_LETTER &&
		pick->nbusy < (int) lengthof(pick->busy))
		pick->busy[pick->nbusy++] = *onside_item_id(item);
}

/* Those in flight, and those of which is not yet written what has become. */
static void
note_all_busy(Pick *pick)
{
	for (int i = 0; i < ONSIDE_SENDER_MAX_REQUESTS; i++)
		if (sender->requests[i].id != 0)
			note_busy(pick, &sender->requests[i].piece->items[0]);
	for (int i = 0; i < sender->nfates; i++)
		note_busy(pick, &sender->fates[i].item);
}

static bool
add_letter(OnsideBatch *batch, const pg_uuid_t *id)
{
	OnsideEvent event;
	OnsideItem	item = {0};
	TimestampTz recorded_at;

	if (!onside_dead_letter_fetch(id, &event, &recorded_at))
		return false;
	item.home = ONSIDE_IN_DEAD_LETTER;
	onside_item_set_id(&item, id);
	item.recorded_at = recorded_at;
	return onside_batch_add(batch, &event, &item, 1, INT_MAX);
}

/* Body of a transaction. */
static void
pick_one(void *arg)
{
	Pick	   *pick = arg;
	pg_uuid_t	id;

	if (present.event_name[0] == '\0')
	{
		while (nat_once > 0 && pick->batch->nitems == 0)
			(void) add_letter(pick->batch, &at_once[--nat_once]);
		return;
	}
	if (onside_dead_letter_pick(&present, GetCurrentTimestamp(),
								(OnsidePick) (npicks++ % 3), pick->busy,
								pick->nbusy, &id) &&
		!add_letter(pick->batch, &id))
		(void) onside_dead_letter_postpone(&id, 0, "it cannot be read as an event",
										   GetCurrentTimestamp());
}

OnsideBatch *
onside_chance_pick(void)
{
	Pick		pick = {0};

	/* With so much unwritten it is not known what has been tried. */
	note_all_busy(&pick);
	if (pick.nbusy == (int) lengthof(pick.busy))
		return NULL;
	pick.batch = onside_batch_create();
	if (onside_txn_run(&brake, ONSIDE_USES_DEAD_LETTER, pick_one, &pick) &&
		pick.batch->nitems > 0)
	{
		onside_batch_seal(pick.batch);
		return pick.batch;
	}
	onside_batch_free(pick.batch);
	return NULL;
}

long
onside_chance_timeout(void)
{
	long		timeout;
	TimestampTz next = look_at;

	if (sender->chance_tries > 0 || sender->chances_in_flight > 0)
		return -1;
	if (nat_once > 0 || has_recovered())
		return Max(0, onside_brake_timeout(&brake));
	for (int i = 0; i < nwaiting; i++)
		next = Min(next, waiting[i].from);
	if (next == DT_NOEND)
		return -1;
	timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), next);
	return Max(timeout, onside_brake_timeout(&brake));
}
