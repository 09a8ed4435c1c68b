/*-------------------------------------------------------------------------
 *
 * window.h
 *		The committed events between two snapshots, and the cursor.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_WINDOW_H
#define ONSIDE_WINDOW_H

#include "postgres.h"

#include "access/transam.h"
#include "access/xlogdefs.h"
#include "executor/tuptable.h"
#include "utils/relcache.h"

#include "event.h"

/* What was committed at some moment; the C form of a pg_snapshot. */
typedef struct OnsideSnapshot
{
	int			refcount;
	FullTransactionId xmin;
	FullTransactionId xmax;
	uint32		nxip;
	FullTransactionId xip[FLEXIBLE_ARRAY_MEMBER];	/* ascending */
} OnsideSnapshot;

/* An event's place in the log. */
typedef struct OnsidePosition
{
	FullTransactionId xid;
	int64		id;
} OnsidePosition;

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
 * Snapshots are counted; cursors hold their two.  They are made in the current
 * memory context, so that an error leaves none behind, until a process whose
 * cursors outlive its transactions says where instead.
 */
extern void onside_snapshots_live_in(MemoryContext context);
extern void onside_cursor_copy(OnsideCursor *to, const OnsideCursor *from);
extern void onside_cursor_release(OnsideCursor *cursor);

/* From and to the text form of pg_snapshot. */
extern OnsideSnapshot *onside_snapshot_parse(const char *str);
extern char *onside_snapshot_print(const OnsideSnapshot *snapshot);

/* The transaction's active snapshot, counted, in TopMemoryContext. */
extern OnsideSnapshot *onside_snapshot_take(void);

extern void onside_snapshot_release(OnsideSnapshot *snapshot);

/*
 * Called for each event of a window in the order of (xid, id).  The slot is
 * good during the call alone.  Returning false stops before this event.
 */
typedef bool (*OnsideReadCallback) (TupleTableSlot *slot,
									const OnsidePosition *pos, void *arg);

/*
 * Goes on reading at the cursor, in a transaction with an active snapshot that
 * the caller has started, opening a window if none is open.  Moves the cursor
 * past what the callback took.  Returns true if the window is read to its end,
 * and then has ended it; false if the callback stopped.
 */
extern bool onside_window_read(OnsideCursor *cursor,
							   OnsideReadCallback callback, void *arg);

/*
 * Calls back for every event that the cursor does not cover and that was
 * committed in "until" (NULL for the active snapshot), and perhaps for some
 * later ones.  Moves the cursor.  False if the callback stopped.
 */
extern bool onside_window_read_until(OnsideCursor *cursor,
									 OnsideSnapshot *until,
									 OnsideReadCallback callback, void *arg);

/*
 * Reads one event by its place, as the active snapshot sees it, into the
 * current memory context.  False if it is not there any more.
 */
extern bool onside_window_fetch(const OnsidePosition *pos, OnsideEvent *event,
								TimestampTz *recorded_at);

/*
 * How many events of a segment does the cursor not cover, as the active
 * snapshot sees it?  Counts no more than max.
 */
extern int	onside_window_count_unsettled(Relation segment,
										  const OnsideCursor *cursor, int max);

#endif							/* ONSIDE_WINDOW_H */
