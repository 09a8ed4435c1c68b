/*-------------------------------------------------------------------------
 *
 * holding.h
 *		The events that the sender holds, and what has become of others.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_HOLDING_H
#define ONSIDE_HOLDING_H

#include "postgres.h"

#include "send/sender_state.h"

/* Is it a single event? */
#define onside_holding_is_lone(piece) ((piece)->nitems == 1)

/* The request with this number (0: a free place), or NULL. */
extern OnsideInFlight *onside_holding_find_request(OnsideSender *sender,
												   int64 id);

/*
 * If the piece has failed, adds its events to those that are held, or, with
 * sign -1, takes them off.
 */
extern void onside_holding_count(OnsideSender *sender,
								 const OnsidePiece *piece, int sign);

/* A piece that is in no collection any more is done with. */
extern void onside_holding_drop(OnsideSender *sender, OnsidePiece *piece);

/* A piece that was not tried in this form waits for its next request. */
extern void onside_holding_put_untried(OnsideSender *sender,
									   OnsidePiece *piece);

/* A lone event that was tried waits until it is due. */
extern void onside_holding_put_back(OnsideSender *sender, OnsidePiece *piece);

/* A piece that waits is about to be in flight, or dropped. */
extern void onside_holding_take_out(OnsideSender *sender, OnsidePiece *piece);

/* What of a piece is behind its first n events waits as one of its own. */
extern void onside_holding_cut_rest(OnsideSender *sender, OnsidePiece *piece,
									int n);

/* Cuts a piece in two, neither of which was tried in this form. */
extern void onside_holding_halve(OnsideSender *sender, OnsidePiece *piece);

/*
 * Removes those events of which gone[i] from a piece that waits.  Returns
 * false, and the piece is gone, if none is left.
 */
extern bool onside_holding_withdraw(OnsideSender *sender, OnsidePiece *piece,
									const bool *gone);

/* What has become of an event of the piece. */
extern void onside_holding_add_fate(OnsideSender *sender, OnsideFateKind kind,
									const OnsideItem *item,
									const OnsidePiece *piece);

/* A lone event is refused for good. */
extern void onside_holding_give_up(OnsideSender *sender, OnsidePiece *piece);

/*
 * Calls "visit", which may take its piece out, for each lone event that waits;
 * or for each piece that waits and, with in_flight, for those in flight.
 */
typedef void (*OnsidePieceVisit) (OnsideSender *sender, OnsidePiece *piece,
								  void *arg);
extern void onside_holding_visit_lone(OnsideSender *sender,
									  OnsidePieceVisit visit, void *arg);
extern void onside_holding_visit(OnsideSender *sender, bool in_flight,
								 OnsidePieceVisit visit, void *arg);

#endif							/* ONSIDE_HOLDING_H */
