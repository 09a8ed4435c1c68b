/*-------------------------------------------------------------------------
 *
 * txn.c
 *		The worker's transactions.
 *
 * DROP EXTENSION can come at any time.  It locks the extension before anything
 * else, so each of our transactions, all of them short, does that first, too,
 * and then looks whether the tables are still there, and still the same.  Then
 * they stay until its end, and neither can get the other into a deadlock.
 *
 * While somebody has dropped the extension and not committed, the worker waits
 * for that lock.  It is a plain lock wait: signals and barriers are served, and
 * a command that wants the database for itself ends it (see utility_hook.c).
 * Where interrupts are held it must not wait, hence onside_txn_try_begin().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "outbox.h"
#include "txn.h"

static OnsideSlot *slot;
static Oid	extension;
static Oid	cursor_table;

void
onside_txn_init(OnsideSlot *my_slot)
{
	slot = my_slot;
}

/* The extension that we serve is not there (any more). */
static void
leave(bool another)
{
	onside_slot_leave(slot,
					  another ? ONSIDE_SLOT_WANTED : ONSIDE_SLOT_ABSENT);
	proc_exit(0);
}

/* Returns false, and no transaction is open, if the lock is not to be had. */
static bool
begin(bool wait)
{
	Oid			table;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();

	if (!OidIsValid(extension))
		extension = get_extension_oid("onside_attribution", true);
	if (!OidIsValid(extension))
		leave(false);
	if (wait)
		LockDatabaseObject(ExtensionRelationId, extension, 0,
						   AccessShareLock);
	else if (!ConditionalLockDatabaseObject(ExtensionRelationId, extension, 0,
											AccessShareLock))
	{
		CommitTransactionCommand();
		MemoryContextSwitchTo(TopMemoryContext);
		return false;
	}

	table = onside_relation_oid("delivery_cursor");
	if (!OidIsValid(cursor_table))
		cursor_table = table;
	if (table != cursor_table || !OidIsValid(table))
		leave(OidIsValid(table));

	PushActiveSnapshot(GetTransactionSnapshot());
	return true;
}

void
onside_txn_begin(void)
{
	(void) begin(true);
}

bool
onside_txn_try_begin(void)
{
	return begin(false);
}

void
onside_txn_commit(void)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(TopMemoryContext);
}
