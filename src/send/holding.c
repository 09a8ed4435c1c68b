/*-------------------------------------------------------------------------
 *
 * holding.c
 *		The events that the sender holds, and what has become of others.
 *
 * A piece that the sender knows of is in exactly one place: with its request
 * while it is in flight; among the untried ones if it was never sent in this
 * form; or, if it is a lone event that was sent, in the heap of those that
 * wait until they are due.  This file moves pieces between the latter two,
 * cuts them, and counts what they hold.  sender.c moves them into requests
 * and out of them.
 *
 * A fate is what has become of an event, where the caller has more to write
 * down than that an event of the log was delivered.  Fates are kept here until
 * the caller has written them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "send/holding.h"

/* ----------
 * Pieces come and go
 * ----------
 */

OnsideInFlight *
onside_holding_find_request(OnsideSender *sender, int64 id)
{
	for (int i = 0; i < ONSIDE_SENDER_MAX_REQUESTS; i++)
		if (sender->requests[i].id == id)
			return &sender->requests[i];
	return NULL;
}

/*
 * Adds a piece's events to those that have failed, or (sign -1) takes them
 * off.
 */
void
onside_holding_count(OnsideSender *sender, const OnsidePiece *piece, int sign)
{
	if (piece->first_failed == 0)
		return;
	sender->held += sign * piece->nitems;
	for (int i = 0; i < piece->nitems; i++)
		if (piece->items[i].home == ONSIDE_IN_ASIDE)
			sender->held_aside += sign;
}

/*
 * The piece is in no collection any more, and its events are no longer held.
 */
void
onside_holding_drop(OnsideSender *sender, OnsidePiece *piece)
{
	onside_holding_count(sender, piece, -1);
	onside_piece_free(piece);
}

/* A piece that was not tried in this form waits for its next request. */
void
onside_holding_put_untried(OnsideSender *sender, OnsidePiece *piece)
{
	dlist_push_head(piece->from_end ? &sender->untried_end : &sender->untried,
					&piece->node);
}

/* A lone event that was tried waits until it is due. */
void
onside_holding_put_back(OnsideSender *sender, OnsidePiece *piece)
{
	Assert(onside_holding_is_lone(piece));
	onside_heap_add(sender->context, &sender->lone, piece);
}

/* Only pieces in the heap know a place there. */
void
onside_holding_take_out(OnsideSender *sender, OnsidePiece *piece)
{
	if (piece->heap_index >= 0)
		onside_heap_remove(&sender->lone, piece);
	else
		dlist_delete(&piece->node);
}

/* What of a piece is behind its first n events waits as one of its own. */
void
onside_holding_cut_rest(OnsideSender *sender, OnsidePiece *piece, int n)
{
	if (n < piece->nitems)
		onside_holding_put_untried(sender,
								   onside_piece_cut(sender->context, piece, n));
}

/* Cuts a piece in two, neither of which was tried in this form. */
void
onside_holding_halve(OnsideSender *sender, OnsidePiece *piece)
{
	onside_holding_cut_rest(sender, piece, (piece->nitems + 1) / 2);
	onside_holding_put_untried(sender, piece);
}

/* A piece that loses all of its events is freed. */
bool
onside_holding_withdraw(OnsideSender *sender, OnsidePiece *piece,
						const bool *gone)
{
	int			before = piece->nitems;

	onside_holding_count(sender, piece, -1);
	onside_piece_remove(piece, gone);
	sender->withdrawn += before - piece->nitems;
	if (piece->nitems > 0)
	{
		onside_holding_count(sender, piece, 1);
		return true;
	}
	onside_holding_take_out(sender, piece);
	onside_piece_free(piece);
	return false;
}

/* ----------
 * Fates
 * ----------
 */

/* The fate shares the words of the last failure with the piece. */
void
onside_holding_add_fate(OnsideSender *sender, OnsideFateKind kind,
						const OnsideItem *item,
						const OnsidePiece *piece)
{
	OnsideFate *fate;

	if (sender->nfates == sender->fates_capacity)
		sender->fates = onside_array_enlarge(sender->context, sender->fates,
											 &sender->fates_capacity,
											 sizeof(OnsideFate));

	/* An accepted event has no failure to tell of. */
	fate = &sender->fates[sender->nfates++];
	fate->kind = kind;
	fate->item = *item;
	fate->tries = piece->tries;
	fate->words = NULL;
	if (kind != ONSIDE_FATE_ACCEPTED)
	{
		fate->words = piece->words;
		fate->words->refcount++;
	}
}

/* A lone event is refused for good. */
void
onside_holding_give_up(OnsideSender *sender, OnsidePiece *piece)
{
	onside_holding_add_fate(sender, ONSIDE_FATE_REFUSED, &piece->items[0],
							piece);
	sender->refused++;
	onside_holding_drop(sender, piece);
}

/* ----------
 * Looking at all of them
 * ----------
 */

/*
 * Visits a copy of the heap's array: "visit" may take its piece out, and then
 * the heap moves others about.
 */
void
onside_holding_visit_lone(OnsideSender *sender, OnsidePieceVisit visit,
						  void *arg)
{
	int			n = sender->lone.n;
	OnsidePiece **pieces;

	if (n == 0)
		return;
	pieces = palloc(n * sizeof(OnsidePiece *));
	memcpy(pieces, sender->lone.pieces, n * sizeof(OnsidePiece *));
	for (int i = 0; i < n; i++)
		visit(sender, pieces[i], arg);
	pfree(pieces);
}

/*
 * Calls "visit" for each piece that waits, and for those in flight if wanted.
 */
void
onside_holding_visit(OnsideSender *sender, bool in_flight,
					 OnsidePieceVisit visit, void *arg)
{
	dlist_mutable_iter iter;

	for (int i = 0; in_flight && i < ONSIDE_SENDER_MAX_REQUESTS; i++)
		if (sender->requests[i].id != 0)
			visit(sender, sender->requests[i].piece, arg);
	dlist_foreach_modify(iter, &sender->untried)
		visit(sender, dlist_container(OnsidePiece, node, iter.cur), arg);
	dlist_foreach_modify(iter, &sender->untried_end)
		visit(sender, dlist_container(OnsidePiece, node, iter.cur), arg);
	onside_holding_visit_lone(sender, visit, arg);
}
