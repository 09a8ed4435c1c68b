/*-------------------------------------------------------------------------
 *
 * ranges.c
 *		Which transactions' events there are to read.
 *
 * Works out ranges of xids from a cursor and a snapshot, for window.c to read
 * from the segments' indexes.
 *
 * A transaction in progress costs nothing.  The ranges leave out every
 * transaction that the snapshot does not include, and a transaction that was
 * open in the last snapshot is looked for only once it has committed.  So two
 * million rows that somebody has not committed yet, or has rolled back, are not
 * read again and again for the sake of other sessions' events.
 *
 * Each xid that was open in the last snapshot, and no longer is, makes a range
 * of its own.  All later xids make one range, with gaps for those in progress.
 *
 * No locks but the short one of durable.c; only a lack of memory is an error.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "log/durable.h"
#include "log/ranges.h"

static FullTransactionId
next_xid(FullTransactionId xid)
{
	return FullTransactionIdFromU64(U64FromFullTransactionId(xid) + 1);
}

static FullTransactionId
previous_xid(FullTransactionId xid)
{
	return FullTransactionIdFromU64(U64FromFullTransactionId(xid) - 1);
}

/* Makes room for this number of ranges; nothing checks it later. */
static void
make_ranges(OnsideRanges *ranges, uint32 capacity)
{
	ranges->n = 0;
	ranges->range = palloc(capacity * sizeof(OnsideRange));
}

void
onside_ranges_add(OnsideRanges *ranges, FullTransactionId first,
				  FullTransactionId last,
				  int64 after_id)
{
	OnsideRange	   *range;

	if (FullTransactionIdPrecedes(last, first))
		return;
	range = &ranges->range[ranges->n++];
	range->first = first;
	range->last = last;
	range->after_id = after_id;
}

void
onside_ranges_add_beyond(OnsideRanges *ranges, const OnsideSnapshot *seen)
{
	onside_ranges_add(ranges, seen->xmax,
					  FullTransactionIdFromU64(PG_UINT64_MAX),
					  0);
}

/*
 * Adds all transactions from "first" on that the snapshot includes: one range
 * for each gap between those that were in progress.  At most nxip + 1 ranges.
 */
static void
add_from(OnsideRanges *ranges, FullTransactionId first,
		 const OnsideSnapshot *snapshot)
{
	for (uint32 i = 0; i < snapshot->nxip; i++)
	{
		if (FullTransactionIdPrecedes(snapshot->xip[i], first))
			continue;

		/* Up to the one in progress, and on from behind it. */
		onside_ranges_add(ranges, first, previous_xid(snapshot->xip[i]), 0);
		first = next_xid(snapshot->xip[i]);
	}
	onside_ranges_add(ranges, first, previous_xid(snapshot->xmax), 0);
}

/*
 * Adds a transaction that was in progress, if "snapshot" includes it and it was
 * not rolled back.
 */
static void
add_ended(OnsideRanges *ranges, FullTransactionId xid,
		  const OnsideSnapshot *snapshot)
{
	if (onside_snapshot_includes(snapshot, xid) && !onside_was_rolled_back(xid))
		onside_ranges_add(ranges, xid, xid, 0);
}

/* qsort comparison: by the first transaction. */
static int
compare_ranges(const void *a, const void *b)
{
	return onside_compare_xids(&((const OnsideRange *) a)->first,
							   &((const OnsideRange *) b)->first);
}

/*
 * With an open window, three kinds of transactions are pending: those that were
 * in progress at the window's beginning or its end and have committed since,
 * the rest of the transaction in which the cursor's position is, and everything
 * later.
 */
void
onside_ranges_pending(const OnsideCursor *cursor, const OnsideSnapshot *seen,
					  OnsideRanges *ranges)
{
	const OnsideSnapshot *done = cursor->done;
	const OnsideSnapshot *window = cursor->window;
	FullTransactionId pos = cursor->pos.xid;
	FullTransactionId later = done->xmax;

	make_ranges(ranges, done->nxip + seen->nxip +
				(window != NULL ? window->nxip : 0) + 4);

	/*
	 * Open at the beginning: pending, unless the window has shown the
	 * transaction before the position.
	 */
	for (uint32 i = 0; i < done->nxip; i++)
		if (window == NULL ||
			!onside_snapshot_includes(window, done->xip[i]) ||
			FullTransactionIdPrecedes(pos, done->xip[i]))
			add_ended(ranges, done->xip[i], seen);
	if (window != NULL)
	{
		/* Open at the end, and before the position: the window left it out. */
		for (uint32 i = 0; i < window->nxip; i++)
			if (FullTransactionIdPrecedes(window->xip[i], pos) &&
				!FullTransactionIdPrecedes(window->xip[i], done->xmax))
				add_ended(ranges, window->xip[i], seen);

		/* The rest of the position's own transaction. */
		if (FullTransactionIdIsValid(pos) &&
			onside_snapshot_includes(seen, pos))
			onside_ranges_add(ranges, pos, pos, cursor->pos.id);
		if (!FullTransactionIdPrecedes(pos, later))
			later = next_xid(pos);
	}
	add_from(ranges, later, seen);
	qsort(ranges->range, ranges->n, sizeof(OnsideRange), compare_ranges);
}

void
onside_ranges_all(const OnsideSnapshot *seen, OnsideRanges *ranges)
{
	make_ranges(ranges, seen->nxip + 2);
	add_from(ranges, FirstNormalFullTransactionId, seen);
	onside_ranges_add_beyond(ranges, seen);
}
