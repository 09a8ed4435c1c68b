/*-------------------------------------------------------------------------
 *
 * backoff.h
 *	  When the endpoint may be asked again, how many requests may be under way
 *	  and how large a body may be.
 *
 * Pure: structs without pointers; time and chance are passed in.  All times
 * are int64 microseconds of one clock of the caller's choice that does not
 * run backwards and is above 0; the structs hold nothing else of it.  Delays
 * in settings are milliseconds.  random is uniform in [0, 1).
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_BACKOFF_H
#define ONSIDE_BACKOFF_H

/*
 * Why we wait.
 *
 * RETRY		the endpoint fails: exponential, full jitter
 * THROTTLED	it asks us to wait: its Retry-After, else like RETRY
 * SLOW			a person has to repair something (unauthorized, misconfigured,
 *				refusing): a longer first wait, the same ceiling
 */
typedef enum OnsideBackoffKind
{
	ONSIDE_BACKOFF_RETRY,
	ONSIDE_BACKOFF_THROTTLED,
	ONSIDE_BACKOFF_SLOW
} OnsideBackoffKind;

/* The first ceiling of a SLOW wait, if retry_initial_delay is below it. */
#define ONSIDE_BACKOFF_SLOW_INITIAL_MS	5000

/* How many events a probe may hold, if its body has yet to be built. */
#define ONSIDE_BACKOFF_PROBE_EVENTS			10
#define ONSIDE_BACKOFF_SLOW_PROBE_EVENTS	1

/*
 * One endpoint's state.  Read it with the functions below.
 */
typedef struct OnsideBackoff
{
	/* the wait */
	OnsideBackoffKind kind;		/* why, while probing */
	bool		probing;		/* from a failure until a request succeeds */
	bool		probe_sent;		/* that one request is under way */
	int			failures;		/* steps of growth taken; saturates */
	int64		failed_us;		/* the last failure: successes of requests
								 * older than this are old news */
	int64		began_us;		/* failures of older ones are, the same or the
								 * last clear() */
	int64		not_before_us;	/* end of the wait */

	/* the window */
	int			allowed;		/* requests under way at most */
	int			threshold;		/* doubling ends, adding begins */
	int			acked;			/* successes in this round of requests */
} OnsideBackoff;

/* No wait, the whole window. */
extern void onside_backoff_init(OnsideBackoff *backoff, int max_in_flight);

/*
 * May one more request be sent now?  in_flight: how many are under way;
 * stragglers: how many of them onside_backoff_is_old() says are old.
 */
extern bool onside_backoff_may_send(const OnsideBackoff *backoff, int64 now_us,
									int in_flight, int stragglers,
									int max_in_flight);

/* Was this request sent before the last failure, or before clear()? */
extern bool onside_backoff_is_old(const OnsideBackoff *backoff,
								  int64 started_us);

/*
 * A request was sent at now_us.  To be told of each, since the first after a
 * wait is the probe.  Remember now_us: the answer is reported with it.
 */
extern void onside_backoff_on_sent(OnsideBackoff *backoff, int64 now_us);

/*
 * The endpoint took the request that was sent at started_us.  Ends the
 * probing and widens the window, unless the request is older than the wait:
 * then it says nothing about the endpoint since.
 */
extern void onside_backoff_on_success(OnsideBackoff *backoff, int64 started_us,
									  int max_in_flight);

/*
 * The request that was sent at started_us failed at now_us.  Failures of
 * requests sent before the present wait began are the same failure: they do
 * not grow it, though a longer Retry-After in them is kept.
 * retry_after_ms: as from onside_retry_after_ms(), 0 for none.
 */
extern void onside_backoff_on_failure(OnsideBackoff *backoff, int64 now_us,
									  int64 started_us, OnsideBackoffKind kind,
									  int64 retry_after_ms,
									  int initial_ms, int max_ms,
									  double random);

/*
 * The request that was sent at started_us ended without telling anything
 * about the endpoint (we cancelled it; or a 400 or 413 that is about the
 * events: the endpoint works, but only an acknowledgement ends a probing).
 * Another probe may go at once.
 */
extern void onside_backoff_on_abandoned(OnsideBackoff *backoff,
										int64 started_us);

/*
 * Ends a wait at once (resume(), reload): the next request may go now and is
 * a probe, growth starts afresh, and what is still under way is old news.
 * Nothing happens if there is no wait.
 */
extern void onside_backoff_clear(OnsideBackoff *backoff, int64 now_us);

/*
 * After onside_backoff_init() in a restarted worker: the wait of its
 * predecessor lasts until not_before_us, cut to what a Retry-After may ask
 * for, so that a clock that was set back cannot silence us.  Nothing happens
 * if that is past.
 */
extern void onside_backoff_restore(OnsideBackoff *backoff, int64 now_us,
								   int64 not_before_us);

/* Has the endpoint failed, without a success since? */
extern bool onside_backoff_is_probing(const OnsideBackoff *backoff);

/* When the next attempt is due; 0 if there is nothing to wait for. */
extern int64 onside_backoff_next_attempt(const OnsideBackoff *backoff);

/*
 * How many events the next body may hold, if it is yet to be built: a probe
 * is small.  A body that is built already is sent as it is, the oldest first.
 */
extern int	onside_backoff_batch_limit(const OnsideBackoff *backoff,
									   int batch_max_events);

/*
 * The length of one wait in microseconds, growth step by growth step; for
 * on_failure() and its test.  failures: how many came before this one.
 */
extern int64 onside_backoff_delay_us(OnsideBackoffKind kind, int failures,
									 int64 retry_after_ms,
									 int initial_ms, int max_ms,
									 double random);

/*
 * What a 413 taught about the size of a body.  0 is "nothing learned".
 */
typedef struct OnsideBodyLimit
{
	int			events;
	int			bytes;
	int			successes;		/* of bodies near the limit, since it changed */
} OnsideBodyLimit;

extern void onside_body_limit_init(OnsideBodyLimit *limit);

/*
 * A body of that size was refused with 413: half of it is the limit, unless a
 * smaller one is known.  An event refused alone is the event's fault (a dead
 * letter) and teaches nothing.
 */
extern void onside_body_limit_on_too_large(OnsideBodyLimit *limit,
										   int events, int bytes);

/* A body of that size was taken; the limit grows back after some of those. */
extern void onside_body_limit_on_success(OnsideBodyLimit *limit,
										 int events, int bytes,
										 int max_events, int max_bytes);

/* The limit now, never above the configured one; one event always may go. */
extern int	onside_body_limit_events(const OnsideBodyLimit *limit,
									 int max_events);
extern int	onside_body_limit_bytes(const OnsideBodyLimit *limit,
									int max_bytes);

#endif							/* ONSIDE_BACKOFF_H */
