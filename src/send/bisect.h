/*-------------------------------------------------------------------------
 *
 * bisect.h
 *	  Finds the events of a refused batch that the API does not want, while
 *	  the others are delivered.
 *
 * Pure: one struct without pointers and of fixed size; the caller sends and
 * reports.  For each refused batch:
 *
 *		onside_bisect_init(&b, n, ONSIDE_BISECT_REFUSED, trusted);
 *		while (onside_bisect_next(&b, &first, &count))
 *		{
 *			if (onside_bisect_refusing(&b))
 *				... wait, slowly: state "refusing"
 *			... send events first .. first + count - 1
 *			onside_bisect_answer(&b, answer);
 *		}
 *		... onside_bisect_verdict(&b, i) for each i
 *
 * Until it is answered, next() returns the same range again: a range whose
 * request failed is simply sent once more.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_BISECT_H
#define ONSIDE_BISECT_H

/* The largest batch that the API takes, in events. */
#define ONSIDE_BISECT_MAX_EVENTS	1000

/*
 * So many events refused each alone, and nothing accepted: it is not the
 * events.
 */
#define ONSIDE_BISECT_REFUSING_AFTER	10

typedef enum OnsideBisectAnswer
{
	ONSIDE_BISECT_ACCEPTED,		/* 204 */
	ONSIDE_BISECT_REFUSED,		/* 400: at least one of the range is bad */
	ONSIDE_BISECT_TOO_LARGE		/* 413: the range is too large; of its events
								 * it says nothing, unless it is one alone:
								 * then that one is bad, whatever else is
								 * accepted */
} OnsideBisectAnswer;

typedef enum OnsideBisectVerdict
{
	ONSIDE_VERDICT_UNKNOWN,		/* not settled yet */
	ONSIDE_VERDICT_DOUBTED,		/* refused alone before anything had been
								 * accepted; not settled, sent once more */
	ONSIDE_VERDICT_DELIVERED,
	ONSIDE_VERDICT_BAD			/* refused alone: the last answer for it has
								 * the API's words */
} OnsideBisectVerdict;

/* Read it with the functions below. */
typedef struct OnsideBisect
{
	int			n;				/* events in the batch */
	int			pos;			/* all before it are settled */
	int			suspect_end;	/* [pos, suspect_end) was seen to hold a bad
								 * one; nothing known if not above pos */
	int			level;			/* of the next group, see bisect.c */
	int			run_start;		/* after the last bad event found in turn */
	int			bad;			/* how many were found in turn */
	int			cap;			/* no range may be larger, after a 413 */
	int			range_first;	/* what next() handed out */
	int			range_count;	/* 0 if nothing is out */
	int			probes;			/* lone events tried out of turn */
	int			lone_refusals;	/* with nothing accepted since */
	int			lone_too_large; /* likewise, for 413 */
	int			requests;		/* answers so far, the batch itself left out */
	bool		trusted;		/* see onside_bisect_init() */
	bool		accepting;		/* the endpoint took events since init */
	bool		refusing;
	uint8		verdict[ONSIDE_BISECT_MAX_EVENTS];
} OnsideBisect;

/*
 * A batch of n events (1 .. ONSIDE_BISECT_MAX_EVENTS) was refused as a whole,
 * with that answer.  trusted: the endpoint has accepted events lately, see
 * OnsideContract; then the events of a small batch can be all bad.
 */
extern void onside_bisect_init(OnsideBisect *bisect, int n,
							   OnsideBisectAnswer answer, bool trusted);

/*
 * From here on another endpoint answers, of which nothing is known.  What was
 * delivered and what was found bad stays so.
 */
extern void onside_bisect_distrust(OnsideBisect *bisect);

/*
 * So many events, in other batches, were too large each alone since the
 * endpoint accepted anything: they count for this one, too.
 */
extern void onside_bisect_too_large_before(OnsideBisect *bisect, int events);

/*
 * The range to send now; false if every event is settled.  While
 * onside_bisect_refusing(), it is one lone event, another each time.
 */
extern bool onside_bisect_next(OnsideBisect *bisect, int *first, int *count);

/* The API's answer for the range that next() gave last. */
extern void onside_bisect_answer(OnsideBisect *bisect,
								 OnsideBisectAnswer answer);

/*
 * The endpoint accepted something else meanwhile, a body sent after this
 * batch was refused: so it is not refusing everything.
 */
extern void onside_bisect_accepted_elsewhere(OnsideBisect *bisect);

/*
 * Everything is refused and nothing is accepted: the contract and not the
 * events.  Dead-letter nothing, go on with next() at the pace of a slow probe;
 * it ends when something is accepted, here or elsewhere.  What had been
 * refused until then is sent again.
 */
extern bool onside_bisect_refusing(const OnsideBisect *bisect);

/* Is every event DELIVERED or BAD?  Never while refusing. */
extern bool onside_bisect_done(const OnsideBisect *bisect);

extern OnsideBisectVerdict onside_bisect_verdict(const OnsideBisect *bisect,
												 int event);

/*
 * Whether a refusal of a lone event can be believed to be about the event:
 * for one endpoint and configuration, over all its batches.
 */
typedef struct OnsideContract
{
	bool		accepted;		/* anything, since init */
	int			lone_refusals;	/* since then, saturates */
	int			lone_too_large; /* likewise, for 413 */
} OnsideContract;

/* At the worker's start and when endpoint or credentials change. */
extern void onside_contract_init(OnsideContract *contract);
extern void onside_contract_on_accepted(OnsideContract *contract);

/* One event was refused alone. */
extern void onside_contract_on_refused_alone(OnsideContract *contract);

/* One event was too large alone. */
extern void onside_contract_on_too_large_alone(OnsideContract *contract);

/*
 * Something has been accepted, and fewer than ONSIDE_BISECT_REFUSING_AFTER
 * events were refused alone since.
 */
extern bool onside_contract_trusted(const OnsideContract *contract);

#endif							/* ONSIDE_BISECT_H */
