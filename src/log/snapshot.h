/*-------------------------------------------------------------------------
 *
 * snapshot.h
 *		What was committed at some moment, and cursors, which are made of that.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_SNAPSHOT_H
#define ONSIDE_SNAPSHOT_H

#include "access/transam.h"

#include "log/position.h"

/* What was committed at some moment; the C form of a pg_snapshot. */
typedef struct OnsideSnapshot
{
	int			refcount;
	FullTransactionId xmin;
	FullTransactionId xmax;
	uint32		nxip;
	FullTransactionId xip[FLEXIBLE_ARRAY_MEMBER];	/* ascending */
} OnsideSnapshot;

/*
 * How far something (reading, settling) has come: everything visible in
 * "done", and of what became visible from there to "window" everything up to
 * and including "pos".  window is NULL between two windows.
 */
typedef struct OnsideCursor
{
	OnsideSnapshot *done;
	OnsideSnapshot *window;
	OnsidePosition pos;
} OnsideCursor;

/*
 * Snapshots are counted; each cursor holds its two.  They are made in the
 * current memory context, so that an error leaves none behind.  A process
 * whose cursors outlive its transactions names another context.
 */
extern void onside_snapshots_live_in(MemoryContext context);

/* The transaction's active snapshot, counted. */
extern OnsideSnapshot *onside_snapshot_take(void);

extern void onside_snapshot_release(OnsideSnapshot *snapshot);

/* From and to the text form of pg_snapshot. */
extern OnsideSnapshot *onside_snapshot_parse(const char *str);
extern char *onside_snapshot_print(const OnsideSnapshot *snapshot);

/* Had this transaction committed (or aborted) at that moment? */
extern bool onside_snapshot_includes(const OnsideSnapshot *snapshot,
									 FullTransactionId xid);

extern void onside_cursor_copy(OnsideCursor *to, const OnsideCursor *from);
extern void onside_cursor_release(OnsideCursor *cursor);

/* The cursor's window has been read to its end. */
extern void onside_cursor_end_window(OnsideCursor *cursor);

/* Is the event at this place covered by the cursor? */
extern bool onside_cursor_covers(const OnsideCursor *cursor,
								 FullTransactionId xid, int64 id);

/*
 * The 64-bit number of a transaction that is in progress, or was a short while
 * ago: at most 2^31 behind "next", the next transaction.
 */
extern FullTransactionId onside_widen_xid(TransactionId xid,
										  FullTransactionId next);

/* For qsort() and bsearch(). */
extern int	onside_compare_xids(const void *a, const void *b);

/* Positions are ordered by (xid, id). */
extern int	onside_compare_positions(const OnsidePosition *a,
									 const OnsidePosition *b);

#endif							/* ONSIDE_SNAPSHOT_H */
