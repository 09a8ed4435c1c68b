/*-------------------------------------------------------------------------
 *
 * durable.c
 *		Is a transaction's commit on disk, and was it rolled back?
 *
 * With synchronous_commit = off a transaction is visible before it is durable.
 * A purchase that a crash takes back must not have been reported.  So the WAL
 * of a commit is flushed before any of its events is handed out.
 *
 * Both functions read the server's commit log, under XactTruncationLock, which
 * keeps others from truncating the log meanwhile.  The lock is held for the
 * lookup alone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "storage/lwlock.h"

#include "compat.h"
#include "log/durable.h"

/* Does the commit log still know this transaction?  The caller has the lock. */
static bool
is_in_clog(FullTransactionId xid)
{
	return U64FromFullTransactionId(ReadNextFullTransactionId()) -
		U64FromFullTransactionId(xid) < (UINT64CONST(1) << 31) &&
		!TransactionIdPrecedes(XidFromFullTransactionId(xid),
							   onside_oldest_clog_xid());
}

/*
 * If the commit was synchronous, or is long ago, there is nothing to flush, and
 * the lookup says so.  We could flush up to the insert position instead.  But
 * that would wait for WAL that nobody needs, and can fail if that position is a
 * page boundary with nothing behind it.
 */
void
onside_flush_commit(FullTransactionId xid)
{
	static FullTransactionId last = {InvalidTransactionId};
	XLogRecPtr	lsn = InvalidXLogRecPtr;

	/* A transaction's events come one after another. */
	if (FullTransactionIdEquals(xid, last))
		return;

	LWLockAcquire(XactTruncationLock, LW_SHARED);
	if (is_in_clog(xid))
		lsn = TransactionIdGetCommitLSN(XidFromFullTransactionId(xid));
	LWLockRelease(XactTruncationLock);

	/* Wait for the disk without the lock. */
	if (!XLogRecPtrIsInvalid(lsn))
		XLogFlush(lsn);
	last = xid;
}

/* A transaction that has ended and not committed was rolled back. */
bool
onside_was_rolled_back(FullTransactionId xid)
{
	bool		result;

	LWLockAcquire(XactTruncationLock, LW_SHARED);
	result = is_in_clog(xid) &&
		!TransactionIdDidCommit(XidFromFullTransactionId(xid));
	LWLockRelease(XactTruncationLock);
	return result;
}
