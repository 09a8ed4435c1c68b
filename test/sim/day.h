/*-------------------------------------------------------------------------
 *
 * day.h
 *		What happens on a simulated day.
 *
 * A day is drawn from a seed or read from a file; its story is README.md's.
 * All times are microseconds of simulated time.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DAY_H
#define DAY_H

#include "postgres.h"

#include "common/pg_prng.h"

#include "send/pace.h"

#define US		INT64CONST(1)
#define MS		INT64CONST(1000)
#define SECOND	INT64CONST(1000000)
#define MINUTE	(60 * SECOND)
#define HOUR	(60 * MINUTE)
#define DAY		(24 * HOUR)
#define NEVER	PG_INT64_MAX

/*
 * How a request can end.  kind_names (day.c) and statuses (world.c) are in this
 * order.  From BAD_400 to before LOST are failures, of which outages are drawn:
 * what is accepted comes before BAD_400.
 */
typedef enum Kind
{
	OK_204,
	BAD_400, BIG_413, FAIL_500, BUSY_503, WAIT_503, WAIT_429, SLOW_DOWN_429,
	AUTH_401, AUTH_403, GONE_404, ODD_200, MOVED_302, LATE_408,
	CLOSED, HANGS, GARBAGE, PROXY_407, CERTIFICATE,
	LOST,						/* accepted, but nobody hears of it */
	KINDS
} Kind;

extern const char *const kind_names[KINDS];

/* Which events are poison, and what a request with one of them gets. */
typedef struct Poison
{
	Kind		kind;
	double		share;			/* of all events ... */
	int			first;			/* ... or those from here ... */
	int			last;			/* ... to here, ... */
	int			every;			/* ... of which each so many-th */
	int64		from;			/* only in this time */
	int64		to;
	int64		takes;			/* until the answer */
	int			retry_after;	/* seconds; -1 for none */
} Poison;

/* The endpoint answers so, whatever is sent. */
typedef struct Outage
{
	Kind		kind;
	double		share;			/* of the requests */
	int64		from;
	int64		to;
	int			retry_after;
} Outage;

/* A new connection is sick, for its whole life. */
typedef struct Sickness
{
	Kind		kind;
	double		share;
	int64		from;
	int64		to;
} Sickness;

typedef struct Load
{
	int64		from;
	int64		to;
	double		rate;			/* events a second */
} Load;

typedef enum What
{
	CRASH_WORKER,				/* memory is lost */
	CRASH_SERVER,				/* and nobody recorded meanwhile */
	RESTART_WORKER,				/* it saves what it knows */
	DELETE_SOME,				/* a tenth of what is pending */
	TRUNCATE,					/* all of it */
	RESUME,
	ELSEWHERE,					/* other credentials */
	CHANGE_SETTINGS,
	WHATS
} What;

extern const char *const what_names[WHATS];

typedef struct Happening
{
	What		what;
	int64		at;
} Happening;

/* Nothing can be written in this time. */
typedef struct Locked
{
	int64		from;
	int64		to;
} Locked;

#define MAX_OF_EACH		16

typedef struct Day
{
	uint64		seed;
	OnsideSendSettings settings;
	int			backlog;		/* events at the beginning */
	int			names;			/* event_names */
	double		twins;			/* share of events with another's event_id */
	int			event_bytes;	/* typically */
	int			api_max_events; /* what a 413 is given for */
	int			api_max_bytes;
	int64		rtt;
	int64		jitter;
	int64		per_event;		/* the API's time for one */
	double		lost;			/* share of answers that are lost */
	double		random_failures;	/* share of requests that get a 500 */
	int			dead_letters;	/* at the beginning, and of these the share */
	double		dead_bad;		/* that is truly bad */

	Poison		poison[MAX_OF_EACH];
	int			npoison;
	Outage		outage[MAX_OF_EACH];
	int			noutages;
	Sickness	sickness[MAX_OF_EACH];
	int			nsicknesses;
	Load		load[MAX_OF_EACH];
	int			nloads;
	Happening	happening[MAX_OF_EACH];
	int			nhappenings;
	Locked		locked[MAX_OF_EACH];
	int			nlocked;

	/* what is expected beside what always is */
	int64		p99;			/* of the healthy; 0 for nothing */
	int64		slowest;
	int64		all_by;			/* every healthy event is accepted by then */
	int64		max_requests;
	int64		recovers;		/* first acceptance after the last outage */
	bool		no_dead;		/* no healthy event is ever a dead letter */
} Day;

extern void day_random(Day *day, uint64 seed);

/* Reads a day; ends the program, naming the line, if it makes no sense. */
extern void day_read(Day *day, const char *file);

/* When the last thing happens that the day itself brings. */
extern int64 day_end(const Day *day);

#endif							/* DAY_H */
