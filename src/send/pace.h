/*-------------------------------------------------------------------------
 *
 * pace.h
 *		How much is sent at once, and when after failures.
 *
 * Pure, as sender.h says.  Moments are microseconds of the caller's clock.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_PACE_H
#define ONSIDE_PACE_H

#include "postgres.h"

#include "common/pg_prng.h"

#define ONSIDE_US_PER_MS	INT64CONST(1000)

/* The settings that the sender knows; delays in milliseconds. */
typedef struct OnsideSendSettings
{
	int			max_in_flight;
	int			batch_max_events;
	int			batch_max_bytes;
	int			request_timeout;
	int			retry_initial_delay;
	int			retry_max_delay;
} OnsideSendSettings;

/* So many requests fail in a row before there is a common wait ... */
#define ONSIDE_FAILURES_AT_ONCE		100
/* ... and then so many of never-sent events before these wait, too. */
#define ONSIDE_FAILURES_ALONE		100

#define ONSIDE_MEDIAN_OF			15
#define ONSIDE_SHARE_OF				100

typedef struct OnsidePace
{
	OnsideSendSettings settings;
	pg_prng_state random;

	/* failures since the last acceptance */
	int			failures;
	int			failures_alone; /* of never-sent events, since "failures" had
								 * reached its bound */

	/* the common wait, once they are many */
	int64		wait_until;
	int			wait_step;
	bool		slow;			/* a person has to repair something */

	/* what a 429 asks for */
	int64		not_before;
	bool		asked;			/* by a Retry-After, which is to be kept */
	int			throttle_step;
	int64		throttled_at;
	int			allowed;		/* in flight at most */
	int			accepted;		/* since "allowed" has changed */

	/* sizes */
	int			size;			/* most events in the next request */
	int			newest_size;	/* the same for those from the log's end */
	int			limit_events;	/* what a 413 has taught; 0 for nothing */
	int			limit_bytes;
	int			near_limit;		/* accepted that came near it */

	/* the times of the last accepted requests, and their median */
	int			ntimes;
	int64		times[ONSIDE_MEDIAN_OF];
	int64		median;			/* 0 if nothing is known */

	/* the last requests in which nothing had failed before */
	int			nfresh;
	bool		fresh_failed[ONSIDE_SHARE_OF];
} OnsidePace;

extern void onside_pace_init(OnsidePace *pace,
							 const OnsideSendSettings *settings, uint64 seed);

/* Another endpoint, other settings, or a person who knows: starts afresh. */
extern void onside_pace_reset(OnsidePace *pace);

extern void onside_pace_accepted(OnsidePace *pace, int events, int bytes,
								 bool newest, int64 duration);

/*
 * A request failed that did not ask to wait.  slow: only a person can mend
 * that.
 */
extern void onside_pace_failed(OnsidePace *pace, int events, bool fresh,
							   bool newest, bool slow, int64 now);

/* retry_after_ms: -1 for none. */
extern void onside_pace_throttled(OnsidePace *pace, int64 retry_after_ms,
								  int64 sent, int64 now);

extern void onside_pace_too_large(OnsidePace *pace, int events, int bytes);

/* A request in which nothing had failed before has been answered. */
extern void onside_pace_note_fresh(OnsidePace *pace, bool failed);

/* The failing share of those. */
extern double onside_pace_failing_share(const OnsidePace *pace);

/* Have so many failed that there is a common wait? */
extern bool onside_pace_waits(const OnsidePace *pace);

/* And so many never-sent ones that these wait, too? */
extern bool onside_pace_only_probes(const OnsidePace *pace);

/* Begins the next common wait. */
extern void onside_pace_wait(OnsidePace *pace, int64 now);

/* How long a lone event waits that has failed so often, in microseconds. */
extern int64 onside_pace_lone_wait(OnsidePace *pace, int failures);

/* Time for a part of a request that timed out, in milliseconds. */
extern int	onside_pace_short_timeout(const OnsidePace *pace);

/* Bounds of the next request with never-sent events. */
extern int	onside_pace_events(const OnsidePace *pace, bool newest);
extern int	onside_pace_bytes(const OnsidePace *pace);

#endif							/* ONSIDE_PACE_H */
