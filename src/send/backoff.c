/*-------------------------------------------------------------------------
 *
 * backoff.c
 *	  When the endpoint may be asked again, how many requests may be under way
 *	  and how large a body may be.
 *
 * One endpoint has one back-off, however many events wait for it:
 *
 *		open --failure--> waiting --time--> probe due --sent--> probe out
 *		  ^                  ^                                    |    |
 *		  |                  +-------------- failure -------------+    |
 *		  +------------------------------- success -------------------+
 *
 * "probing" is everything but open.  What was under way when the wait began
 * comes back during it, and tells about the time before: it is told by its
 * start, and neither grows the wait nor ends it.
 *
 * The window of requests under way is the one of TCP: it is halved by a
 * failure; after the probe it starts from one request, doubles each round up
 * to that half, then grows by one each round.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "send/backoff.h"
#include "send/response.h"

#define US_PER_MS			INT64CONST(1000)

/*
 * Full jitter may come out as next to nothing; a wait is never below this
 * part of retry_initial_delay (nor below a millisecond), so that bad luck
 * does not turn a back-off into a tight loop.
 */
#define FLOOR_PART			10

/*
 * What is added to a Retry-After, at most, as a part of it: all that were
 * turned away with the same value would else come back in the same moment.
 */
#define RETRY_AFTER_JITTER_PART	10

/* Steps of growth that are counted; 2^31 times anything is the ceiling. */
#define MAX_FAILURES		31

/*
 * A remembered limit of the body grows by a quarter after so many bodies that
 * came near it were taken: trying costs one 413 if it was too early, which is
 * 3 % of the requests then.
 */
#define LIMIT_SUCCESSES		32

static double
clamp_random(double random)
{
	/* written so that a NaN becomes 0 */
	if (!(random > 0.0))
		return 0.0;
	return random < 1.0 ? random : 1.0;
}

static int64
add_saturating(int64 a, int64 b)
{
	return a > PG_INT64_MAX - b ? PG_INT64_MAX : a + b;
}

int64
onside_backoff_delay_us(OnsideBackoffKind kind, int failures,
						int64 retry_after_ms, int initial_ms, int max_ms,
						double random)
{
	int64		ceiling_us;
	int64		floor_us;
	int64		max_us;

	random = clamp_random(random);
	initial_ms = Max(initial_ms, 1);
	max_us = Max(max_ms, 1) * US_PER_MS;

	if (retry_after_ms > 0)
	{
		int64		wait_us;
		int64		jitter_us;

		wait_us = Min(retry_after_ms, ONSIDE_RETRY_AFTER_MAX_MS) * US_PER_MS;
		jitter_us = Min(wait_us / RETRY_AFTER_JITTER_PART, max_us);
		return wait_us + (int64) (random * jitter_us);
	}

	if (kind == ONSIDE_BACKOFF_SLOW)
		initial_ms = Max(initial_ms, ONSIDE_BACKOFF_SLOW_INITIAL_MS);

	ceiling_us = initial_ms * US_PER_MS;
	failures = Min(failures, MAX_FAILURES);
	while (failures-- > 0 && ceiling_us < max_us)
		ceiling_us *= 2;
	ceiling_us = Min(ceiling_us, max_us);

	/*
	 * A slow probe is slow for the sake of the logs on the other side, and
	 * there is no crowd to be spread: half of it is certain.
	 */
	if (kind == ONSIDE_BACKOFF_SLOW)
		return ceiling_us / 2 +
			(int64) (random * (ceiling_us - ceiling_us / 2));

	floor_us = Max(initial_ms * US_PER_MS / FLOOR_PART, US_PER_MS);
	floor_us = Min(floor_us, ceiling_us);
	return Max((int64) (random * ceiling_us), floor_us);
}

void
onside_backoff_init(OnsideBackoff *backoff, int max_in_flight)
{
	memset(backoff, 0, sizeof(*backoff));
	backoff->kind = ONSIDE_BACKOFF_RETRY;
	backoff->allowed = Max(max_in_flight, 1);
	backoff->threshold = backoff->allowed;
}

bool
onside_backoff_may_send(const OnsideBackoff *backoff, int64 now_us,
						int in_flight, int stragglers, int max_in_flight)
{
	/*
	 * What is left of the time before the wait does not count, or requests
	 * that hang would hold up the recovery; but the slots are as many as they
	 * are.
	 */
	if (in_flight >= Max(max_in_flight, 1))
		return false;
	if (backoff->probing)
		return now_us >= backoff->not_before_us && !backoff->probe_sent;
	return in_flight - stragglers < backoff->allowed;
}

bool
onside_backoff_is_old(const OnsideBackoff *backoff, int64 started_us)
{
	return started_us < backoff->began_us;
}

void
onside_backoff_on_sent(OnsideBackoff *backoff, int64 now_us)
{
	(void) now_us;
	if (backoff->probing)
		backoff->probe_sent = true;
}

void
onside_backoff_on_success(OnsideBackoff *backoff, int64 started_us,
						  int max_in_flight)
{
	max_in_flight = Max(max_in_flight, 1);

	if (backoff->probing)
	{
		if (started_us < backoff->failed_us)
			return;
		backoff->probing = false;
		backoff->probe_sent = false;
		backoff->failures = 0;
		backoff->not_before_us = 0;
		backoff->allowed = 1;
		backoff->acked = 0;
	}

	if (backoff->allowed >= max_in_flight)
	{
		backoff->allowed = max_in_flight;
		backoff->acked = 0;
	}
	else if (backoff->allowed < backoff->threshold)
		backoff->allowed++;
	else if (++backoff->acked >= backoff->allowed)
	{
		backoff->allowed++;
		backoff->acked = 0;
	}
}

void
onside_backoff_on_failure(OnsideBackoff *backoff, int64 now_us,
						  int64 started_us, OnsideBackoffKind kind,
						  int64 retry_after_ms, int initial_ms, int max_ms,
						  double random)
{
	int64		not_before_us;

	if (onside_backoff_is_old(backoff, started_us))
	{
		/* old news, but a wait that it asks for is asked for now */
		if (retry_after_ms <= 0)
			return;
		not_before_us =
			add_saturating(now_us,
						   onside_backoff_delay_us(kind, 0, retry_after_ms,
												   initial_ms, max_ms,
												   random));
		if (!backoff->probing)
		{
			backoff->probing = true;
			backoff->probe_sent = false;
			backoff->kind = kind;
			backoff->failed_us = now_us;
			backoff->began_us = now_us;
		}
		backoff->not_before_us = Max(backoff->not_before_us, not_before_us);
		return;
	}

	not_before_us =
		add_saturating(now_us,
					   onside_backoff_delay_us(kind, backoff->failures,
											   retry_after_ms, initial_ms,
											   max_ms, random));

	/* a probe's failure halves nothing: it was one request */
	if (!backoff->probing)
	{
		backoff->allowed = Max(backoff->allowed / 2, 1);
		backoff->threshold = backoff->allowed;
	}
	backoff->acked = 0;
	backoff->kind = kind;
	backoff->probing = true;
	backoff->probe_sent = false;
	backoff->failures = Min(backoff->failures + 1, MAX_FAILURES);
	backoff->failed_us = now_us;
	backoff->began_us = now_us;
	backoff->not_before_us = not_before_us;
}

void
onside_backoff_on_abandoned(OnsideBackoff *backoff, int64 started_us)
{
	if (backoff->probing && !onside_backoff_is_old(backoff, started_us))
		backoff->probe_sent = false;
}

void
onside_backoff_clear(OnsideBackoff *backoff, int64 now_us)
{
	if (!backoff->probing)
		return;
	backoff->probe_sent = false;
	backoff->failures = 0;
	backoff->began_us = now_us;
	backoff->not_before_us = 0;
}

void
onside_backoff_restore(OnsideBackoff *backoff, int64 now_us,
					   int64 not_before_us)
{
	int64		latest_us;

	if (not_before_us <= now_us)
		return;
	latest_us = add_saturating(now_us,
							   (ONSIDE_RETRY_AFTER_MAX_MS +
								ONSIDE_RETRY_AFTER_MAX_MS /
								RETRY_AFTER_JITTER_PART) * US_PER_MS);
	backoff->kind = ONSIDE_BACKOFF_THROTTLED;
	backoff->probing = true;
	backoff->probe_sent = false;
	backoff->failed_us = now_us;
	backoff->began_us = now_us;
	backoff->not_before_us = Min(not_before_us, latest_us);
}

bool
onside_backoff_is_probing(const OnsideBackoff *backoff)
{
	return backoff->probing;
}

int64
onside_backoff_next_attempt(const OnsideBackoff *backoff)
{
	return backoff->probing ? backoff->not_before_us : 0;
}

int
onside_backoff_batch_limit(const OnsideBackoff *backoff, int batch_max_events)
{
	if (!backoff->probing)
		return batch_max_events;
	return Min(batch_max_events,
			   backoff->kind == ONSIDE_BACKOFF_SLOW ?
			   ONSIDE_BACKOFF_SLOW_PROBE_EVENTS : ONSIDE_BACKOFF_PROBE_EVENTS);
}

void
onside_body_limit_init(OnsideBodyLimit *limit)
{
	memset(limit, 0, sizeof(*limit));
}

void
onside_body_limit_on_too_large(OnsideBodyLimit *limit, int events, int bytes)
{
	if (events <= 1)
		return;

	/* bodies that were under way when the limit fell do not lower it again */
	if (limit->events == 0 || events / 2 < limit->events)
		limit->events = events / 2;
	if (bytes > 1 && (limit->bytes == 0 || bytes / 2 < limit->bytes))
		limit->bytes = bytes / 2;
	limit->successes = 0;
}

/* A quarter more, or 0 once that is what the settings allow anyhow. */
static int
grown(int value, int max)
{
	int64		larger = (int64) value + Max(value / 4, 1);

	return value == 0 || larger >= max ? 0 : (int) larger;
}

void
onside_body_limit_on_success(OnsideBodyLimit *limit, int events, int bytes,
							 int max_events, int max_bytes)
{
	bool		near_events = limit->events > 0 &&
		events >= limit->events - limit->events / 4;
	bool		near_bytes = limit->bytes > 0 &&
		bytes >= limit->bytes - limit->bytes / 4;

	/* a small body shows nothing */
	if (!near_events && !near_bytes)
		return;
	if (++limit->successes < LIMIT_SUCCESSES)
		return;

	limit->successes = 0;
	limit->events = grown(limit->events, max_events);
	limit->bytes = grown(limit->bytes, max_bytes);
}

int
onside_body_limit_events(const OnsideBodyLimit *limit, int max_events)
{
	return limit->events > 0 ? Min(limit->events, max_events) : max_events;
}

int
onside_body_limit_bytes(const OnsideBodyLimit *limit, int max_bytes)
{
	return limit->bytes > 0 ? Min(limit->bytes, max_bytes) : max_bytes;
}
