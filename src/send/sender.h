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

#include "send/sender_state.h"

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

/* Ends all waits and starts afresh: a person has asked for that. */
extern void onside_sender_resume(OnsideSender *sender, int64 now);

/*
 * Endpoint or credentials have changed: earlier answers say nothing any more.
 */
extern void onside_sender_elsewhere(OnsideSender *sender, int64 now);

/*
 * What to send now; false for nothing.  Carry the order out before any other
 * call.
 */
extern bool onside_sender_next(OnsideSender *sender, int64 now, int offers,
							   OnsideOrder *order);

/*
 * The order was sent: n items of the log, one dead letter, or (NULL) the
 * piece.  Returns the number under which the answer is reported.
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

/* How this request has ended. */
extern void onside_sender_answer(OnsideSender *sender, int64 request,
								 const OnsideAnswer *answer, int64 now);

/* Begins a second chance, of one group; it ends by itself. */
extern void onside_sender_begin_chance(OnsideSender *sender);

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
 * How many never-sent events would be taken now (0 for none), and whether
 * fewer than these would not be (*full).
 */
extern int	onside_sender_would_take(const OnsideSender *sender, int64 now,
									 bool *full);

/* What is wrong with the endpoint. */
extern OnsideTrouble onside_sender_trouble(const OnsideSender *sender,
										   int64 now);

/* While in trouble, when something is tried next; 0 if that is now. */
extern int64 onside_sender_next_attempt(const OnsideSender *sender,
										int64 now);

#endif							/* ONSIDE_SENDER_H */
