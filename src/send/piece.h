/*-------------------------------------------------------------------------
 *
 * piece.h
 *		Events that are sent together, and what has happened to them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_PIECE_H
#define ONSIDE_PIECE_H

#include "postgres.h"

#include "lib/ilist.h"

/* Where an event is kept. */
typedef enum OnsideHome
{
	ONSIDE_IN_LOG,
	ONSIDE_IN_ASIDE,
	ONSIDE_IN_DEAD_LETTER
} OnsideHome;

/* An event that is known to the sender, whose body is not. */
typedef struct OnsideItem
{
	int64		seq;			/* in the order in which they became known */
	uint64		key[2];			/* its place at home; the caller's business */
	uint64		event_id[2];
	int64		recorded_at;	/* the caller's business, too */
	int			bytes;			/* in a request */
	OnsideHome	home;
} OnsideItem;

/* What was said in an answer; shared by all that it was said of. */
typedef struct OnsideWords
{
	int			refcount;
	int			status;			/* HTTP status; 0 for no answer */
	char		text[FLEXIBLE_ARRAY_MEMBER];
} OnsideWords;

extern OnsideWords *onside_words_create(MemoryContext context, int status,
										const char *text);
extern void onside_words_release(OnsideWords *words);

/*
 * A piece: events that share a request, and a past.  One of a single event is
 * called lone.  Moments are ticks (see OnsideSender) or, with _us,
 * microseconds.
 */
typedef struct OnsidePiece
{
	dlist_node	node;			/* among those not tried in this form */
	int			heap_index;		/* among the lone ones that were, or -1 */
	int			nitems;
	OnsideItem *items;
	bool		from_end;		/* of the log, ahead of others */
	int			tries;			/* requests that they were in, whatever came */
	int			failures;		/* of these, alone and failed (not 429) */
	int			throttled;		/* of these, alone and asked to wait */
	int64		first_failed;	/* 0 for never */
	int64		last_failed;
	int64		first_failed_us;
	int64		due_us;			/* a lone one waits until then */

	/* of a lone one: */
	int			against;		/* of the failures, those after which a later
								 * request was accepted */
	int64		against_since_us;	/* the first of these */
	bool		undecided;		/* the last failure may become one */
	int			refusals;		/* 400 or 413, at least 2 s apart */
	int64		refused;		/* the first refusal */
	int64		refused_us;

	bool		timed_out;		/* gets less time for a while */
	int			failures_since; /* since the first timeout, also of what the
								 * piece was cut from */
	OnsideWords *words;			/* of the last failure */
} OnsidePiece;

/* For qsort and bsearch: by seq. */
extern int	onside_item_compare(const void *a, const void *b);

/*
 * Makes room for one more element in an array, which may be NULL; returns it.
 */
extern void *onside_array_enlarge(MemoryContext context, void *array,
								  int *capacity, Size element);

/* Copies n items into a new piece without a past. */
extern OnsidePiece *onside_piece_create(MemoryContext context,
										const OnsideItem *items, int n);
extern void onside_piece_free(OnsidePiece *piece);

/*
 * Cuts the events from the at-th on off into another piece with the same past.
 */
extern OnsidePiece *onside_piece_cut(MemoryContext context,
									 OnsidePiece *piece, int at);

/* Removes those events of which gone[i]. */
extern void onside_piece_remove(OnsidePiece *piece, const bool *gone);

/* Lone pieces, the one that is due first on top. */
typedef struct OnsideHeap
{
	OnsidePiece **pieces;
	int			n;
	int			capacity;
} OnsideHeap;

extern void onside_heap_add(MemoryContext context, OnsideHeap *heap,
							OnsidePiece *piece);
extern void onside_heap_remove(OnsideHeap *heap, OnsidePiece *piece);

/* All due times may have changed. */
extern void onside_heap_reorder(OnsideHeap *heap);

#endif							/* ONSIDE_PIECE_H */
