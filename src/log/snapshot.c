/*-------------------------------------------------------------------------
 *
 * snapshot.c
 *		What was committed at some moment, and cursors, which are made of
 *		that.
 *
 * A transaction's events become visible all at once, and in no order of xid: a
 * long transaction commits after younger ones.  So a number cannot say how far
 * reading has come.  A snapshot can, and within the next window a position: see
 * window.c.
 *
 * Snapshots are counted, since several cursors of one worker share them.
 * Whoever has a cursor releases it.  No locks; only a lack of memory is an
 * error.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/snapmgr.h"

#include "log/snapshot.h"

/* ----------
 * Snapshots
 *----------
 */

/* Where snapshots live; NULL for the current context. */
static MemoryContext snapshot_context;

void
onside_snapshots_live_in(MemoryContext context)
{
	snapshot_context = context;
}

/* A snapshot with room for nxip transactions, which the caller fills in. */
static OnsideSnapshot *
make_snapshot(FullTransactionId xmin, FullTransactionId xmax, uint32 nxip)
{
	OnsideSnapshot *snapshot;

	snapshot = MemoryContextAlloc(snapshot_context != NULL ?
								  snapshot_context : CurrentMemoryContext,
								  offsetof(OnsideSnapshot, xip) +
								  nxip * sizeof(FullTransactionId));
	snapshot->refcount = 1;
	snapshot->xmin = xmin;
	snapshot->xmax = xmax;
	snapshot->nxip = nxip;
	return snapshot;
}

/* Counts one more holder of a snapshot, or of none. */
static OnsideSnapshot *
hold_snapshot(OnsideSnapshot *snapshot)
{
	if (snapshot != NULL)
		snapshot->refcount++;
	return snapshot;
}

void
onside_snapshot_release(OnsideSnapshot *snapshot)
{
	if (snapshot != NULL && --snapshot->refcount == 0)
		pfree(snapshot);
}

int
onside_compare_xids(const void *a, const void *b)
{
	FullTransactionId x = *(const FullTransactionId *) a;
	FullTransactionId y = *(const FullTransactionId *) b;

	return FullTransactionIdPrecedes(y, x) - FullTransactionIdPrecedes(x, y);
}

FullTransactionId
onside_widen_xid(TransactionId xid, FullTransactionId next)
{
	uint32		epoch = EpochFromFullTransactionId(next);

	/*
	 * A greater number than the next one is from before the last wrap-around.
	 */
	if (xid > XidFromFullTransactionId(next) && epoch > 0)
		epoch--;
	return FullTransactionIdFromEpochAndXid(epoch, xid);
}

/*
 * A PostgreSQL snapshot leaves out the transaction that takes it.  To us that
 * transaction is as open as others, so we add it to those in progress.
 */
OnsideSnapshot *
onside_snapshot_take(void)
{
	Snapshot	active = GetActiveSnapshot();
	FullTransactionId next = ReadNextFullTransactionId();
	FullTransactionId own = GetTopFullTransactionIdIfAny();
	OnsideSnapshot *snapshot;

	/* PostgreSQL's xids have 32 bits: widen them. */
	snapshot = make_snapshot(onside_widen_xid(active->xmin, next),
							 onside_widen_xid(active->xmax, next),
							 active->xcnt + 1);
	for (uint32 i = 0; i < active->xcnt; i++)
		snapshot->xip[i] = onside_widen_xid(active->xip[i], next);

	/* Add our own transaction, if it has a number below xmax. */
	if (FullTransactionIdIsValid(own) &&
		FullTransactionIdPrecedes(own, snapshot->xmax))
	{
		snapshot->xip[active->xcnt] = own;
		if (FullTransactionIdPrecedes(own, snapshot->xmin))
			snapshot->xmin = own;
	}
	else
		snapshot->nxip--;

	/* onside_snapshot_includes() searches them in ascending order. */
	qsort(snapshot->xip, snapshot->nxip, sizeof(FullTransactionId),
		  onside_compare_xids);
	return snapshot;
}

/* The server has made the string, "xmin:xmax:xip,xip,...", so it is valid. */
OnsideSnapshot *
onside_snapshot_parse(const char *str)
{
	OnsideSnapshot *snapshot;
	char	   *end;
	uint64		xmin = strtou64(str, &end, 10);
	uint64		xmax = strtou64(end + 1, &end, 10);
	uint32		n = 0;

	/* Each number of the list follows a colon or a comma. */
	for (const char *p = end + 1; *p != '\0'; p++)
		if (p[-1] == ':' || p[-1] == ',')
			n++;

	/* xmin and xmax have been read; now the list. */
	snapshot = make_snapshot(FullTransactionIdFromU64(xmin),
							 FullTransactionIdFromU64(xmax), n);
	for (uint32 i = 0; i < n; i++)
		snapshot->xip[i] =
			FullTransactionIdFromU64(strtou64(end + 1, &end, 10));
	return snapshot;
}

char *
onside_snapshot_print(const OnsideSnapshot *snapshot)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, UINT64_FORMAT ":" UINT64_FORMAT ":",
					 U64FromFullTransactionId(snapshot->xmin),
					 U64FromFullTransactionId(snapshot->xmax));
	for (uint32 i = 0; i < snapshot->nxip; i++)
		appendStringInfo(&buf, "%s" UINT64_FORMAT, i > 0 ? "," : "",
						 U64FromFullTransactionId(snapshot->xip[i]));
	return buf.data;
}

bool
onside_snapshot_includes(const OnsideSnapshot *snapshot, FullTransactionId xid)
{
	if (FullTransactionIdPrecedes(xid, snapshot->xmin))
		return true;

	/* From xmax on, none had ended. */
	if (!FullTransactionIdPrecedes(xid, snapshot->xmax))
		return false;

	/* In between, all have ended but those in the list. */
	return bsearch(&xid, snapshot->xip, snapshot->nxip,
				   sizeof(FullTransactionId), onside_compare_xids) == NULL;
}

/* ----------
 * Cursors
 *----------
 */

int
onside_compare_positions(const OnsidePosition *a, const OnsidePosition *b)
{
	int			cmp = onside_compare_xids(&a->xid, &b->xid);

	return cmp != 0 ? cmp : (a->id > b->id) - (a->id < b->id);
}

bool
onside_cursor_covers(const OnsideCursor *cursor, FullTransactionId xid,
					 int64 id)
{
	OnsidePosition pos = {xid, id};

	if (onside_snapshot_includes(cursor->done, xid))
		return true;

	/* Within the open window, all up to the position is covered. */
	return cursor->window != NULL && onside_snapshot_includes(cursor->window,
															  xid) &&
		onside_compare_positions(&pos, &cursor->pos) <= 0;
}

/*
 * Holds the new snapshots before it releases the old ones, which may be the
 * same.
 */
void
onside_cursor_copy(OnsideCursor *to, const OnsideCursor *from)
{
	OnsideCursor old = *to;

	to->done = hold_snapshot(from->done);
	to->window = hold_snapshot(from->window);
	to->pos = from->pos;
	onside_cursor_release(&old);
}

void
onside_cursor_release(OnsideCursor *cursor)
{
	onside_snapshot_release(cursor->done);
	onside_snapshot_release(cursor->window);
	cursor->done = NULL;
	cursor->window = NULL;
}

void
onside_cursor_end_window(OnsideCursor *cursor)
{
	onside_snapshot_release(cursor->done);
	cursor->done = cursor->window;
	cursor->window = NULL;
	memset(&cursor->pos, 0, sizeof(cursor->pos));
}
