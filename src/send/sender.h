/*-------------------------------------------------------------------------
 *
 * sender.h
 *		What is sent next, and what an answer means for it.
 *
 * A deterministic machine: one struct, no clock, network, SQL or static state.
 * The caller tells it the time (microseconds of a clock that never goes back),
 * what there is to send and how requests ended; it says what to send, and what
 * has become of it.  Round by round:
 *
 *		onside_sender_answer(sender, request, &answer, now);	for each answer
 *		... carry out onside_sender_fates(), onside_sender_settled()
 *		while (onside_sender_next(sender, now, offers, &order))
 *			... read what is ordered, send it and onside_sender_sent(),
 *			... or say why not: onside_sender_nothing(), onside_sender_gone()
 *		... sleep until onside_sender_wake_at()
 *
 * An event of the log is known to the sender from its first request on; what
 * waits there is the log's business.  Whatever has failed is kept as the place
 * where it can be read again, never as a body.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_SENDER_H
#define ONSIDE_SENDER_H

#include "postgres.h"

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
	ONSIDE_FATE_PUT_OFF			/* one that was asked to wait: it was no chance */
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
	int64		accepted_sent;	/* when the latest sent accepted one was sent */
	int64		trouble;		/* tick of the first failure since; 0 for none */
	int64		trouble_us;
	OnsideResponseClass failure;	/* the last one's; DELIVERED: not known */
	OnsideAnswerKind failure_kind;
	int			refused_in_row; /* events given up with nothing accepted between */
	int64		judge_at_us;	/* when the waiting ones are judged; 0 for never */
	bool		ends;			/* see onside_sender_end() */

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

/* The sender lives in the current memory context. */
extern OnsideSender *onside_sender_create(const OnsideSendSettings *settings,
										  uint64 seed);
extern void onside_sender_free(OnsideSender *sender);

/*
 * What a predecessor has left: the end of a wait that the API asked for (0 for
 * none), since when nothing was accepted ("now" if that is not so), and
 * OnsideSender.refused_in_row.
 */
extern void onside_sender_restore(OnsideSender *sender, int64 now,
								  int64 not_before, int64 trouble_us,
								  int refused_in_row);

/* Settings have changed. */
extern void onside_sender_configure(OnsideSender *sender,
									const OnsideSendSettings *settings);

/* Ends any wait, and starts afresh: a person has asked for it. */
extern void onside_sender_resume(OnsideSender *sender, int64 now);

/* Endpoint or credentials are others: what was answered says nothing any more. */
extern void onside_sender_elsewhere(OnsideSender *sender, int64 now);

/* What to send now; false for nothing.  Is to be carried out before any other call. */
extern bool onside_sender_next(OnsideSender *sender, int64 now, int offers,
							   OnsideOrder *order);

/*
 * The order was sent: n items of the log, one dead letter, or (NULL) the piece.
 * Returns the number under which the answer is reported.
 */
extern int64 onside_sender_sent(OnsideSender *sender, const OnsideOrder *order,
								const OnsideItem *items, int n, int bytes,
								int64 now);

/* There was nothing to send, or not enough; nothing happens. */
extern void onside_sender_nothing(OnsideSender *sender,
								  const OnsideOrder *order);

/*
 * Events of the piece that was ordered are gone: they are never sent.  Returns
 * false, and the order is void, if none is left.
 */
extern bool onside_sender_gone(OnsideSender *sender, OnsideOrder *order,
							   const bool *gone);

extern void onside_sender_answer(OnsideSender *sender, int64 request,
								 const OnsideAnswer *answer, int64 now);

/*
 * Decides what time alone decides: verdicts, and which events of the log are to
 * be set aside.  The latter are put into items[0 .. max); returns how many.
 * They are to be written, and then onside_sender_is_aside().
 */
typedef struct OnsideLeaving
{
	OnsideItem *item;
	const OnsideWords *words;	/* of its last failure; NULL for none */
} OnsideLeaving;

extern int	onside_sender_review(OnsideSender *sender, int64 now,
								 OnsideLeaving *items, int max);

/* Items of which home and key were changed have left the log. */
extern void onside_sender_is_aside(OnsideSender *sender);

/*
 * The process is about to end.  What has failed while something else was accepted
 * leaves the log at the next review, and so does what is in flight for long: else a
 * successor would begin there, and repeat all that was accepted since.
 */
extern void onside_sender_end(OnsideSender *sender, int64 now);

/* They could not be written: they are to be reviewed again then. */
extern void onside_sender_review_at(OnsideSender *sender, int64 at);

/* Events of aside that are not known yet, each alone. */
extern void onside_sender_add_aside(OnsideSender *sender,
									const OnsideItem *item, int64 now);

/* How many of them there is room for. */
extern int	onside_sender_aside_room(const OnsideSender *sender);

/* Begins a second chance, of one group; it ends by itself. */
extern void onside_sender_begin_chance(OnsideSender *sender);

/* May a dead letter go now, as far as other requests are concerned? */
extern bool onside_sender_may_take_chance(const OnsideSender *sender,
										  int offers);

/*
 * Calls is_there for each event that waits, and forgets those that are gone.
 */
typedef bool (*OnsideIsThere) (const OnsideItem *item, void *arg);
extern void onside_sender_check(OnsideSender *sender, OnsideIsThere is_there,
								void *arg);

/* Visits each event that is known. */
typedef void (*OnsideVisit) (OnsideItem *item, void *arg);
extern void onside_sender_visit(OnsideSender *sender, OnsideVisit visit,
								void *arg);

/* All events of the log up to this seq are settled, or are aside. */
extern int64 onside_sender_settled(OnsideSender *sender);

/* Forgets the first n fates, which have been carried out. */
extern void onside_sender_forget_fates(OnsideSender *sender, int n);

/* When onside_sender_next or _review may have something; -1 for never. */
extern int64 onside_sender_wake_at(const OnsideSender *sender, int64 now,
								   int offers);

/*
 * How many never-sent events would be taken now, and whether less than that are
 * not; 0 for none.
 */
extern int	onside_sender_would_take(const OnsideSender *sender, int64 now,
									 bool *full);

extern OnsideTrouble onside_sender_trouble(const OnsideSender *sender,
										   int64 now);

/* While in trouble, when something is tried next; 0 if that is now. */
extern int64 onside_sender_next_attempt(const OnsideSender *sender,
										int64 now);

#endif							/* ONSIDE_SENDER_H */
