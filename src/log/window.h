/*-------------------------------------------------------------------------
 *
 * window.h
 *		Reads the committed events between two snapshots.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_WINDOW_H
#define ONSIDE_WINDOW_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "executor/tuptable.h"
#include "utils/relcache.h"

#include "log/durable.h"
#include "log/position.h"
#include "log/snapshot.h"

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
 * The same for the events that the active snapshot sees and the cursor does
 * not cover, the last ones first.  The cursor stays where it is.
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
 * Has a segment any event that the cursor does not cover, as the active
 * snapshot sees it?
 */
extern bool onside_window_holds_pending(Relation segment,
										const OnsideCursor *cursor);

/* The youngest transaction that has events in a segment; invalid for none. */
extern FullTransactionId onside_window_last_xid(Relation segment);

/*
 * How many events has this transaction recorded, as the active snapshot sees
 * it?  Costs one look at the index: the last event's id is their number.
 * Waits for no lock and raises no error: a segment that cannot be read has
 * none.
 */
extern int64 onside_window_last_id(FullTransactionId xid);

/*
 * Calls back for each event at one of these places that is still there, as the
 * active snapshot sees it, in this order; what it returns does not matter.
 */
extern void onside_window_fetch(const OnsidePosition *positions, int n,
								OnsideReadCallback callback, void *arg);

#endif							/* ONSIDE_WINDOW_H */
