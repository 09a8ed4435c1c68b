/*-------------------------------------------------------------------------
 *
 * pace.c
 *		How much is sent at once, and when after failures.
 *
 * A failed request halves the size of the next one, and an acceptance doubles
 * it.  So the search for a bad event, an outage and the way out of the outage
 * all follow one rule.
 *
 * Failures in a row are counted.  Up to a hundred, everything goes on at once:
 * the failures may be about what was sent.  Then never-sent events go alone.
 * After a hundred failures of these, only probes go, each round after a common
 * wait that grows from retry_initial_delay to retry_max_delay.
 *
 * Called by the other files of the sender.  Pure: no clock, no memory.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "datatype/timestamp.h"

#include "send/pace.h"

/* The longest wait of a lone event. */
#define LONE_WAIT_MAX	(60 * USECS_PER_SEC)

/* The first wait if a person has to repair something; ms. */
#define SLOW_INITIAL	5000

/* The shortest time for a part of a request that timed out; ms. */
#define SHORT_TIMEOUT	2000

/*
 * A learned limit grows by a quarter after so many acceptances near it: trying
 * too early costs one 413, which is 3 % of the requests then.
 */
#define NEAR_LIMIT		32

void
onside_pace_init(OnsidePace *pace, const OnsideSendSettings *settings,
				 uint64 seed)
{
	memset(pace, 0, sizeof(*pace));
	pace->settings = *settings;
	pg_prng_seed(&pace->random, seed);
	onside_pace_reset(pace);
}

/* What is known of answer times stays; it does no harm. */
void
onside_pace_reset(OnsidePace *pace)
{
	pace->failures = pace->failures_alone = 0;
	pace->wait_until = 0;
	pace->wait_step = 0;
	pace->slow = false;
	pace->not_before = 0;
	pace->asked = false;
	pace->throttle_step = 0;
	pace->allowed = pace->settings.max_in_flight;
	pace->accepted = 0;
	pace->size = pace->settings.batch_max_events;
	pace->newest_size = 1;
	pace->limit_events = pace->limit_bytes = 0;
}

/* ----------
 * Sizes and times
 * ----------
 */

/* For qsort. */
static int
compare_times(const void *a, const void *b)
{
	int64		x = *(const int64 *) a;
	int64		y = *(const int64 *) b;

	return (x > y) - (x < y);
}

/* Notes how long an accepted request took, and takes the median anew. */
static void
note_time(OnsidePace *pace, int64 duration)
{
	int64		sorted[ONSIDE_MEDIAN_OF];
	int			n = Min(pace->ntimes + 1, ONSIDE_MEDIAN_OF);

	/* The array is a ring; the count only has to tell how full it is. */
	pace->times[pace->ntimes++ % ONSIDE_MEDIAN_OF] = duration;
	if (pace->ntimes >= 2 * ONSIDE_MEDIAN_OF)
		pace->ntimes -= ONSIDE_MEDIAN_OF;
	memcpy(sorted, pace->times, n * sizeof(int64));
	qsort(sorted, n, sizeof(int64), compare_times);
	/* 0 would mean that no time is known */
	pace->median = Max(sorted[n / 2], 1);
}

/* A limit and a quarter; 0, for no limit, once the settings allow no more. */
static int
grown_limit(int value, int max)
{
	int64		larger = (int64) value + Max(value / 4, 1);

	return value == 0 || larger >= max ? 0 : (int) larger;
}

/*
 * Lets a learned limit grow again after enough acceptances near it.  A request
 * that is much smaller shows nothing about the limit.
 */
static void
grow_limit(OnsidePace *pace, int events, int bytes)
{
	bool		near_events = pace->limit_events > 0 &&
		events >= pace->limit_events - pace->limit_events / 4;
	bool		near_bytes = pace->limit_bytes > 0 &&
		bytes >= pace->limit_bytes - pace->limit_bytes / 4;

	if ((!near_events && !near_bytes) || ++pace->near_limit < NEAR_LIMIT)
		return;
	pace->near_limit = 0;
	pace->limit_events = grown_limit(pace->limit_events,
									 pace->settings.batch_max_events);
	pace->limit_bytes = grown_limit(pace->limit_bytes,
									pace->settings.batch_max_bytes);
}

/* A request of this size got a 413: the limit is half of that. */
void
onside_pace_too_large(OnsidePace *pace, int events, int bytes)
{
	/* bodies that were under way when the limit fell do not lower it again */
	if (pace->limit_events == 0 || events / 2 < pace->limit_events)
		pace->limit_events = Max(events / 2, 1);
	if (pace->limit_bytes == 0 || bytes / 2 < pace->limit_bytes)
		pace->limit_bytes = Max(bytes / 2, 1);
	pace->near_limit = 0;
}

/* In a common wait never-sent events go alone. */
int
onside_pace_events(const OnsidePace *pace, bool newest)
{
	int			events = Min(newest ? pace->newest_size : pace->size,
							 pace->settings.batch_max_events);

	if (onside_pace_waits(pace))
		return 1;
	if (pace->limit_events > 0)
		events = Min(events, pace->limit_events);
	return events;
}

int
onside_pace_bytes(const OnsidePace *pace)
{
	return pace->limit_bytes > 0 ?
		Min(pace->limit_bytes, pace->settings.batch_max_bytes) :
		pace->settings.batch_max_bytes;
}

/* ----------
 * Waits
 * ----------
 */

/*
 * Draws a wait, in microseconds: anything below a ceiling that doubles with
 * each step.  slow: a person has to set something right, so it begins higher.
 */
static int64
draw_wait(OnsidePace *pace, int step, bool slow)
{
	int64		max = pace->settings.retry_max_delay * ONSIDE_US_PER_MS;
	int64		initial = pace->settings.retry_initial_delay * ONSIDE_US_PER_MS;
	int64		ceiling;

	if (slow)
		initial = Max(initial, SLOW_INITIAL * ONSIDE_US_PER_MS);
	ceiling = Min(initial << Min(step, 20), max);

	/* a wait of next to nothing would make a tight loop */
	return Max(ceiling / 10,
			   (int64) (pg_prng_double(&pace->random) * (double) ceiling));
}

bool
onside_pace_waits(const OnsidePace *pace)
{
	return pace->failures >= ONSIDE_FAILURES_AT_ONCE;
}

bool
onside_pace_only_probes(const OnsidePace *pace)
{
	return pace->failures_alone >= ONSIDE_FAILURES_ALONE;
}

void
onside_pace_wait(OnsidePace *pace, int64 now)
{
	pace->wait_until = now + draw_wait(pace, pace->wait_step, pace->slow);
	pace->wait_step++;
}

int64
onside_pace_lone_wait(OnsidePace *pace, int failures)
{
	int64		wait = failures > 6 ? LONE_WAIT_MAX :
		Min(USECS_PER_SEC << (Max(failures, 1) - 1), LONE_WAIT_MAX);

	/* with nothing else to try, this is what notices that all is well again */
	if (pace->failures > 0)
		wait = Min(wait, pace->settings.retry_max_delay * ONSIDE_US_PER_MS);
	return (int64) ((0.5 + 0.5 * pg_prng_double(&pace->random)) *
					(double) wait);
}

int
onside_pace_short_timeout(const OnsidePace *pace)
{
	return (int) Min(Max(SHORT_TIMEOUT, 10 * pace->median / ONSIDE_US_PER_MS),
					 pace->settings.request_timeout);
}

/* ----------
 * Answers
 * ----------
 */

void
onside_pace_note_fresh(OnsidePace *pace, bool failed)
{
	pace->fresh_failed[pace->nfresh++ % ONSIDE_SHARE_OF] = failed;
	if (pace->nfresh >= 2 * ONSIDE_SHARE_OF)
		pace->nfresh -= ONSIDE_SHARE_OF;
}

double
onside_pace_failing_share(const OnsidePace *pace)
{
	int			n = Min(pace->nfresh, ONSIDE_SHARE_OF);
	int			failed = 0;

	for (int i = 0; i < n; i++)
		failed += pace->fresh_failed[i];
	return n == 0 ? 0.0 : (double) failed / n;
}

/*
 * Ends every wait that comes of failures, and lets the next requests be larger
 * and more.
 */
void
onside_pace_accepted(OnsidePace *pace, int events, int bytes, bool newest,
					 int64 duration)
{
	int			max = pace->settings.batch_max_events;

	pace->failures = pace->failures_alone = 0;
	pace->wait_until = 0;
	pace->wait_step = 0;
	pace->slow = false;
	pace->throttle_step = 0;

	/* The sizes of the log's two ends double independently of each other. */
	if (newest)
		pace->newest_size = Min(Max(events, 1) * 2, max);
	else
		pace->size = Min(pace->size * 2, max);
	grow_limit(pace, events, bytes);
	note_time(pace, duration);

	/* After a 429 one more request may be in flight for each round of them. */
	if (++pace->accepted >= pace->allowed)
	{
		pace->allowed = Min(pace->allowed + 1, pace->settings.max_in_flight);
		pace->accepted = 0;
	}
}

/*
 * Halves the next requests and counts the failure.  The failure that is one
 * too many begins the common wait.
 */
void
onside_pace_failed(OnsidePace *pace, int events, bool fresh, bool newest,
				   bool slow, int64 now)
{
	bool		waited = onside_pace_waits(pace);

	/* A lone event that fails says nothing about sizes. */
	if (events > 1 && newest)
		pace->newest_size = 1;
	else if (events > 1)
		pace->size = Max(pace->size / 2, 1);

	/* Counters stop at their bounds: what counts is that these are reached. */
	if (waited && fresh)
		pace->failures_alone = Min(pace->failures_alone + 1,
								   ONSIDE_FAILURES_ALONE);
	pace->failures = Min(pace->failures + 1, ONSIDE_FAILURES_AT_ONCE);
	pace->slow = slow;
	if (!waited && onside_pace_waits(pace))
		onside_pace_wait(pace, now);
}

/*
 * Nothing is sent until the wait is over that the API asks for.  An answer to
 * a request that was sent before the last 429 came is no news: it can
 * lengthen the wait by its Retry-After, and makes nothing smaller.
 */
void
onside_pace_throttled(OnsidePace *pace, int64 retry_after_ms, int64 sent,
					  int64 now)
{
	bool		news = pace->throttled_at == 0 || sent >= pace->throttled_at;
	int64		wait;

	if (retry_after_ms > 0)
	{
		/* Add up to a tenth: others were turned away in the same moment. */
		wait = retry_after_ms * ONSIDE_US_PER_MS;
		wait += (int64) (pg_prng_double(&pace->random) *
						 (double) Min(wait / 10, USECS_PER_SEC));
		pace->asked = true;
	}
	else if (news)
		wait = draw_wait(pace, pace->throttle_step, false);
	else
		wait = 0;
	pace->not_before = Max(pace->not_before, now + wait);
	if (!news)
		return;

	/* Half as many requests may be in flight after it. */
	pace->throttled_at = now;
	pace->throttle_step++;
	pace->allowed = Max(Min(pace->allowed, pace->settings.max_in_flight) / 2,
						1);
	pace->accepted = 0;
}
