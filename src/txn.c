/*-------------------------------------------------------------------------
 *
 * txn.c
 *		The worker's transactions.
 *
 * DROP EXTENSION can come at any time.  It locks the extension before anything
 * else, so each of our transactions, all of them short, does that first, too,
 * and then looks whether the tables are still there, and still the same.  Then
 * they stay until its end.
 *
 * A transaction of ours never waits for a lock while it has another one: what
 * it locks next, all our tables and their indexes, it locks if they are free.
 * If one is not, it gives everything back and waits for that one alone before
 * it starts over.
 * So an administrator can lock our tables in any order, and then even drop the
 * extension, without a deadlock; and whoever waits for a table of ours waits
 * for us to do some work, never for what somebody else has locked.
 *
 * These are plain lock waits: signals and barriers are served, and a command
 * that wants the database for itself ends them (see utility_hook.c).  Where
 * interrupts are held it must not wait, hence onside_txn_try_begin().
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
	slot->orderly = true;
	onside_slot_leave(slot,
					  another ? ONSIDE_SLOT_WANTED : ONSIDE_SLOT_ABSENT);
	proc_exit(0);
}

/* Locks what is ours as far as it is free; or says what is not. */
static bool
lock_relations(Oid *busy, LOCKMODE *busy_mode)
{
	static const struct
	{
		const char *name;
		LOCKMODE	mode;
	}			relations[] = {
		{"outbox_1", AccessShareLock},
		{"outbox_2", AccessShareLock},
		{"outbox_3", AccessShareLock},
		{"delivery_cursor", RowExclusiveLock},
		{"dead_letter", RowExclusiveLock},
		{"control", AccessShareLock},
		{"outbox_1_xid_id_idx", AccessShareLock},
		{"outbox_2_xid_id_idx", AccessShareLock},
		{"outbox_3_xid_id_idx", AccessShareLock},
		{"delivery_cursor_pkey", RowExclusiveLock},
		{"dead_letter_event_id_idx", RowExclusiveLock},
	};

	for (int i = 0; i < (int) lengthof(relations); i++)
	{
		*busy = onside_relation_oid(relations[i].name);
		*busy_mode = relations[i].mode;

		/* Another version may not have it; see version.c. */
		if (OidIsValid(*busy) && !ConditionalLockRelationOid(*busy, *busy_mode))
			return false;
	}
	return true;
}

/* Starts a transaction that has the extension locked; false if it may not wait. */
static bool
start(bool wait)
{
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
		return false;
	}
	return true;
}

/* Returns false, and no transaction is open, if it would have to wait. */
static bool
begin(bool wait)
{
	Oid			table;
	Oid			busy;
	LOCKMODE	busy_mode;

	while (start(wait))
	{
		table = onside_relation_oid("delivery_cursor");
		if (!OidIsValid(cursor_table))
			cursor_table = table;
		if (table != cursor_table || !OidIsValid(table))
			leave(OidIsValid(table));

		if (lock_relations(&busy, &busy_mode))
		{
			PushActiveSnapshot(GetTransactionSnapshot());
			return true;
		}
		CommitTransactionCommand();
		if (!wait)
			break;
		StartTransactionCommand();
		LockRelationOid(busy, busy_mode);
		CommitTransactionCommand();
	}
	MemoryContextSwitchTo(TopMemoryContext);
	return false;
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
