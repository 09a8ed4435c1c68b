/*-------------------------------------------------------------------------
 *
 * piece.c
 *		Events that are sent together, and what has happened to them.
 *
 * Pieces, the words of their failures, and a heap of those that wait for a
 * time.  The sender's other files put them together; nothing here decides
 * anything.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "send/piece.h"

/* ----------
 * Words
 * ----------
 */

OnsideWords *
onside_words_create(MemoryContext context, int status, const char *text)
{
	size_t		size = strlen(text) + 1;
	OnsideWords *words = MemoryContextAlloc(context,
											offsetof(OnsideWords, text) + size);

	words->refcount = 1;
	words->status = status;
	memcpy(words->text, text, size);
	return words;
}

void
onside_words_release(OnsideWords *words)
{
	if (words != NULL && --words->refcount == 0)
		pfree(words);
}

/* ----------
 * Items and arrays
 * ----------
 */

int
onside_item_compare(const void *a, const void *b)
{
	int64		x = ((const OnsideItem *) a)->seq;
	int64		y = ((const OnsideItem *) b)->seq;

	return (x > y) - (x < y);
}

/* Twice as large each time, and 64 at first. */
void *
onside_array_enlarge(MemoryContext context, void *array, int *capacity,
					 Size element)
{
	*capacity = Max(64, *capacity * 2);
	return array == NULL ? MemoryContextAlloc(context, *capacity * element) :
		repalloc(array, *capacity * element);
}

/* ----------
 * Pieces
 * ----------
 */

OnsidePiece *
onside_piece_create(MemoryContext context, const OnsideItem *items, int n)
{
	OnsidePiece *piece = MemoryContextAllocZero(context, sizeof(OnsidePiece));

	Assert(n > 0);
	piece->heap_index = -1;
	piece->nitems = n;
	piece->items = MemoryContextAlloc(context, n * sizeof(OnsideItem));
	memcpy(piece->items, items, n * sizeof(OnsideItem));
	return piece;
}

void
onside_piece_free(OnsidePiece *piece)
{
	onside_words_release(piece->words);
	pfree(piece->items);
	pfree(piece);
}

/* Both parts have the piece's past: its words are shared. */
OnsidePiece *
onside_piece_cut(MemoryContext context, OnsidePiece *piece, int at)
{
	OnsidePiece *rest = onside_piece_create(context, piece->items + at,
											piece->nitems - at);
	OnsideItem *items = rest->items;
	int			nitems = rest->nitems;

	Assert(at > 0 && at < piece->nitems && piece->heap_index < 0);

	/* Copy the past, but not the events. */
	*rest = *piece;
	rest->items = items;
	rest->nitems = nitems;
	if (rest->words != NULL)
		rest->words->refcount++;
	piece->nitems = at;
	return rest;
}

void
onside_piece_remove(OnsidePiece *piece, const bool *gone)
{
	int			kept = 0;

	for (int i = 0; i < piece->nitems; i++)
		if (!gone[i])
			piece->items[kept++] = piece->items[i];
	piece->nitems = kept;
}

/* ----------
 * The heap
 * ----------
 */

/* Puts the piece at this place of the heap, which it remembers. */
static void
put_piece(OnsideHeap *heap, int i, OnsidePiece *piece)
{
	heap->pieces[i] = piece;
	piece->heap_index = i;
}

/*
 * Moves the piece at i to where it belongs: up while its parent is due later,
 * then down while a child is due earlier.
 */
static void
sift_piece(OnsideHeap *heap, int i)
{
	OnsidePiece *piece = heap->pieces[i];

	while (i > 0 && heap->pieces[(i - 1) / 2]->due_us > piece->due_us)
	{
		put_piece(heap, i, heap->pieces[(i - 1) / 2]);
		i = (i - 1) / 2;
	}
	for (;;)
	{
		int			child = 2 * i + 1;

		/* The child that is due first. */
		if (child + 1 < heap->n &&
			heap->pieces[child + 1]->due_us < heap->pieces[child]->due_us)
			child++;
		if (child >= heap->n || heap->pieces[child]->due_us >= piece->due_us)
			break;
		put_piece(heap, i, heap->pieces[child]);
		i = child;
	}
	put_piece(heap, i, piece);
}

void
onside_heap_add(MemoryContext context, OnsideHeap *heap, OnsidePiece *piece)
{
	if (heap->n == heap->capacity)
		heap->pieces = onside_array_enlarge(context, heap->pieces,
											&heap->capacity,
											sizeof(OnsidePiece *));
	put_piece(heap, heap->n++, piece);
	sift_piece(heap, heap->n - 1);
}

void
onside_heap_remove(OnsideHeap *heap, OnsidePiece *piece)
{
	int			i = piece->heap_index;

	Assert(i >= 0 && i < heap->n && heap->pieces[i] == piece);
	piece->heap_index = -1;
	if (i == --heap->n)
		return;
	/* The last piece takes its place. */
	put_piece(heap, i, heap->pieces[heap->n]);
	sift_piece(heap, i);
}

void
onside_heap_reorder(OnsideHeap *heap)
{
	int			n = heap->n;

	for (heap->n = 0; heap->n < n;)
		sift_piece(heap, heap->n++);
}
