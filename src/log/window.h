/*-------------------------------------------------------------------------
 *
 * window.h
 *		Reads the committed events between two snapshots.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_WINDOW_H
#define ONSIDE_WINDOW_H

#include "datatype/timestamp.h"
#include "executor/tuptable.h"
#include "utils/relcache.h"

#include "log/position.h"
#include "log/snapshot.h"

/*
 * Gets each event of a window, in the order of (xid, id).  The slot is valid
 * during the call alone.  Returns false to stop before this event.
 */
typedef bool (*OnsideReadCallback) (TupleTableSlot *slot,
									const OnsidePosition *pos, void *arg);

/*
 * Reads on from the cursor, and opens a window if none is open.  Moves the
 * cursor past each event that the callback took.  Returns true if the window
 * was read to its end, which closes it; false if the callback stopped.  The
 * caller has a transaction and an active snapshot.
 */
extern bool onside_window_read(OnsideCursor *cursor,
							   OnsideReadCallback callback, void *arg);

/*
 * Reads the events that the active snapshot sees and the cursor does not
 * cover, the last ones first.  The cursor is not moved.
 */
extern void onside_window_read_newest(const OnsideCursor *cursor,
									  OnsideReadCallback callback, void *arg);

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
 * Does the active snapshot see any event in the segment that the cursor does
 * not cover?
 */
extern bool onside_window_holds_pending(Relation segment,
										const OnsideCursor *cursor);

/* The youngest transaction that has events in a segment; invalid for none. */
extern FullTransactionId onside_window_last_xid(Relation segment);

/*
 * How many events has this transaction recorded, as the active snapshot sees
 * it?  Costs one look at each index: the last event's id is their number.
 * Waits for no lock: a segment that is locked or has lost its index counts as
 * empty.  A segment that was altered in another way may raise an error.
 */
extern int64 onside_window_last_id(FullTransactionId xid);

/*
 * Calls back for each of these places that still has an event, as the active
 * snapshot sees it, in this order.  The callback's result is ignored.
 */
extern void onside_window_fetch(const OnsidePosition *positions, int n,
								OnsideReadCallback callback, void *arg);

#endif							/* ONSIDE_WINDOW_H */
