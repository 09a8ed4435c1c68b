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
#include "datatype/timestamp.h"
#include "executor/tuptable.h"
#include "utils/relcache.h"

#include "log/event.h"
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
 * Snapshots are counted; cursors hold their two.  They are made in the current
 * memory context, so that an error leaves none behind, until a process whose
 * cursors outlive its transactions says where instead.
 */
extern void onside_snapshots_live_in(MemoryContext context);
extern void onside_cursor_copy(OnsideCursor *to, const OnsideCursor *from);
extern void onside_cursor_release(OnsideCursor *cursor);

/*
 * The whole number of a transaction that is in progress, or was a short while
 * ago: at most 2^31 behind the next one, which is given.
 */
extern FullTransactionId onside_widen_xid(TransactionId xid,
										  FullTransactionId next);

/* From and to the text form of pg_snapshot. */
extern OnsideSnapshot *onside_snapshot_parse(const char *str);
extern char *onside_snapshot_print(const OnsideSnapshot *snapshot);

/* The transaction's active snapshot, counted. */
extern OnsideSnapshot *onside_snapshot_take(void);

extern void onside_snapshot_release(OnsideSnapshot *snapshot);

/* Makes the commit of a transaction durable, whatever synchronous_commit was. */
extern void onside_flush_commit(FullTransactionId xid);

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
 * The same for the events that the active snapshot sees and the cursor does not
 * cover, the last ones first.  The cursor stays where it is.
 */
extern void onside_window_read_newest(const OnsideCursor *cursor,
									  OnsideReadCallback callback, void *arg);

/* Is the event at this place covered by the cursor? */
extern bool onside_cursor_covers(const OnsideCursor *cursor,
								 FullTransactionId xid, int64 id);

/* Events that a cursor does not cover. */
typedef struct OnsidePending
{
	int64		events;
	TimestampTz oldest;			/* least recorded_at of these; 0 for none */
} OnsidePending;

/*
 * The events that the cursor does not cover.  Counts those that were committed
 * in "seen" (NULL: what the active snapshot sees, the caller's own included),
 * and stops at "max".  Needs an active snapshot.
 */
extern OnsidePending onside_window_pending(const OnsideCursor *cursor,
										   const OnsideSnapshot *seen,
										   int64 max);

/*
 * Has a segment any event that the cursor does not cover, as the active
 * snapshot sees it?
 */
extern bool onside_window_holds_pending(Relation segment,
										const OnsideCursor *cursor);

/* The youngest transaction that has events in a segment; invalid for none. */
extern FullTransactionId onside_window_last_xid(Relation segment);

/*
 * How many events has this transaction recorded, as the active snapshot sees
 * it?  Costs one look at the index: the last event's id is their number.  Waits
 * for no lock and raises no error: a segment that cannot be read has none.
 */
extern int64 onside_window_last_id(FullTransactionId xid);

/*
 * Calls back for each event at one of these places that is still there, as the
 * active snapshot sees it, in this order; what it returns does not matter.
 */
extern void onside_window_fetch(const OnsidePosition *positions, int n,
								OnsideReadCallback callback, void *arg);

#endif							/* ONSIDE_WINDOW_H */
