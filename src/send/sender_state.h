/*-------------------------------------------------------------------------
 *
 * sender_state.h
 *		What the sender knows, in one struct.
 *
 * sender.h says how the sender is used.  These files work on the struct:
 * sender.c, choice.c, outcome.c, verdict.c, review.c and holding.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_SENDER_STATE_H
#define ONSIDE_SENDER_STATE_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "lib/ilist.h"

#include "send/answer.h"
#include "send/pace.h"
#include "send/piece.h"
#include "send/response.h"

/* Most requests in flight: those of max_in_flight, and one more. */
#define ONSIDE_SENDER_MAX_REQUESTS	65

/* What has failed and is not set aside is remembered of so many events. */
#define ONSIDE_SENDER_MAX_HELD		20000

/* Of those aside, so many are in memory; the others wait in the table. */
#define ONSIDE_SENDER_MAX_ASIDE		5000

/* Bytes of a request beside its events, and commas between them; at least. */
#define ONSIDE_SENDER_FRAME		16

/* What there is to send; bits. */
#define ONSIDE_OFFER_OLDEST		0x01	/* the log has events to read */
#define ONSIDE_OFFER_NEWEST		0x02	/* also at its end */
#define ONSIDE_OFFER_CHANCE		0x04	/* dead letters have a second chance */

typedef enum OnsideOrderKind
{
	ONSIDE_SEND_OLDEST,			/* the next events of the log */
	ONSIDE_SEND_NEWEST,			/* the last ones of the log */
	ONSIDE_SEND_AGAIN,			/* those of a piece */
	ONSIDE_SEND_CHANCE			/* one dead letter that is due */
} OnsideOrderKind;

typedef struct OnsideOrder
{
	OnsideOrderKind kind;
	int			max_events;		/* OLDEST, NEWEST: bounds of the batch; a
								 * single event may have more bytes */
	int			max_bytes;
	bool		full;			/* OLDEST: only if it fills those bounds */
	OnsidePiece *piece;			/* AGAIN */
	bool		fresh_connection;	/* not one that has been used */
	bool		renew;			/* also, no connection that is there now is
								 * used by this or a later request */
	int			timeout;		/* ms */
	bool		probe;			/* the sender's business */
} OnsideOrder;

/* What has become of an event. */
typedef enum OnsideFateKind
{
	ONSIDE_FATE_ACCEPTED,		/* one that was not in the log */
	ONSIDE_FATE_REFUSED,		/* goes to dead_letter */
	ONSIDE_FATE_POSTPONED,		/* a dead letter whose chance has failed */
	ONSIDE_FATE_PUT_OFF			/* a dead letter that was asked to wait */
} OnsideFateKind;

typedef struct OnsideFate
{
	OnsideFateKind kind;
	OnsideItem	item;
	int			tries;
	OnsideWords *words;			/* NULL if ACCEPTED */
} OnsideFate;

typedef enum OnsideTrouble
{
	ONSIDE_TROUBLE_NONE,
	ONSIDE_TROUBLE_WAITS,		/* the API asked everybody to wait */
	ONSIDE_TROUBLE_FAILS,		/* nothing is accepted: it is down, or away */
	ONSIDE_TROUBLE_UNAUTHORIZED,
	ONSIDE_TROUBLE_MISCONFIGURED,	/* what answers is not the API */
	ONSIDE_TROUBLE_PROXY,		/* likewise, and it is the proxy */
	ONSIDE_TROUBLE_CERTIFICATE, /* likewise, and it is TLS */
	ONSIDE_TROUBLE_REFUSING		/* it refuses everything */
} OnsideTrouble;

/* A request in flight. */
typedef struct OnsideInFlight
{
	int64		id;				/* 0 for none */
	OnsideOrderKind kind;
	OnsidePiece *piece;
	int64		sent;			/* tick */
	int64		sent_us;
	int			bytes;
	int			generation;
	bool		fresh_connection;
	bool		probe;
} OnsideInFlight;

typedef struct OnsideSender
{
	MemoryContext context;
	OnsidePace	pace;
	int64		tick;			/* counts what happens: its clock */
	int64		last_seq;		/* of the last event that became known */
	int64		last_request;
	int			generation;		/* of the endpoint */

	/* pieces are in one of these three */
	OnsideInFlight requests[ONSIDE_SENDER_MAX_REQUESTS];
	int			in_flight;
	dlist_head	untried;		/* the youngest first */
	dlist_head	untried_end;	/* those from the log's end */
	OnsideHeap	lone;
	int64		held;			/* events in all of these */
	int64		held_aside;		/* of these, in aside */
	int64		dropped;		/* events of aside that left memory again */

	/* who is next */
	int			turn;			/* of what has failed */
	bool		again_was_last;
	bool		newest_was_last;
	int			since_chance;
	bool		fresh_connection;	/* the next request needs one */
	bool		renew;
	int			oldest_failures;	/* in a row, of the log's next events */
	bool		probe_newest;	/* this round has this probe yet to send */
	bool		probe_failed;

	/* comparing */
	int64		accepted;		/* tick of the last acceptance; 0 for none */
	int64		accepted_us;
	int64		accepted_sent;	/* latest tick at which an accepted request
								 * was sent */
	int64		trouble;		/* tick of the first failure since; or 0 */
	int64		trouble_us;
	OnsideResponseClass failure;	/* the last one's; DELIVERED: not known */
	OnsideAnswerKind failure_kind;
	int			refused_in_row; /* events given up since an acceptance */
	int64		judge_at_us;	/* when the next review is due; 0 for never */
	bool		ends;			/* see onside_review_end() */

	/* second chances */
	int			chance_tries;	/* left of the present one; 0 for none */
	int			chances_in_flight;
	bool		recovered;		/* accepted again, after a time without ... */
	int64		recovered_us;	/* ... since then */

	OnsideFate *fates;
	int			nfates;
	int			fates_capacity;
	int64		delivered;		/* events of log and aside */
	int64		healed;			/* dead letters that were accepted */
	int64		withdrawn;		/* likewise, that were deleted */
	int64		refused;		/* likewise, given up */
} OnsideSender;

#endif							/* ONSIDE_SENDER_STATE_H */
