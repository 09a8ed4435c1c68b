/*-------------------------------------------------------------------------
 *
 * txn.c
 *		The worker's transactions.
 *
 * DROP EXTENSION can commit at any time, so each of our transactions, all of
 * them short, looks whether the tables are still there before it touches them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "outbox.h"
#include "txn.h"

static OnsideSlot *slot;

void
onside_txn_init(OnsideSlot *my_slot)
{
	slot = my_slot;
}

void
onside_txn_begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());

	if (!OidIsValid(onside_relation_oid("delivery_cursor")))
	{
		onside_slot_leave(slot, ONSIDE_SLOT_ABSENT);
		proc_exit(0);
	}
}

void
onside_txn_commit(void)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(TopMemoryContext);
}
