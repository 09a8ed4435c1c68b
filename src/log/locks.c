/*-------------------------------------------------------------------------
 *
 * locks.c
 *		Locks on the extension's tables that nobody waits for.
 *
 * A session may have locked one of our tables for an hour.  The worker must
 * then go on with what needs other tables, and "status" must say at once what
 * is locked.  So both first take, with this file, the locks of all that they
 * are about to open.  They open nothing if one of these locks is not free.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "storage/lmgr.h"

#include "log/locks.h"
#include "log/tables.h"

/* Which uses need which lock; a relation can stand here several times. */
typedef struct Use
{
	int			use;
	const char *name;
	LOCKMODE	mode;
} Use;

static const Use relations[] = {
	{ONSIDE_USES_LOG, "outbox_1", AccessShareLock},
	{ONSIDE_USES_LOG, "outbox_2", AccessShareLock},
	{ONSIDE_USES_LOG, "outbox_3", AccessShareLock},
	{ONSIDE_USES_LOG, "outbox_1_xid_id_idx", AccessShareLock},
	{ONSIDE_USES_LOG, "outbox_2_xid_id_idx", AccessShareLock},
	{ONSIDE_USES_LOG, "outbox_3_xid_id_idx", AccessShareLock},
	{ONSIDE_READS_CURSOR, "delivery_cursor", AccessShareLock},
	{ONSIDE_USES_CURSOR, "delivery_cursor", RowExclusiveLock},
	{ONSIDE_USES_CURSOR, "delivery_cursor_pkey", RowExclusiveLock},
	{ONSIDE_USES_DEAD_LETTER, "dead_letter", RowExclusiveLock},
	{ONSIDE_USES_DEAD_LETTER, "dead_letter_pkey", RowExclusiveLock},
	{ONSIDE_USES_DEAD_LETTER, "dead_letter_event_id_idx", RowExclusiveLock},
	{ONSIDE_USES_DEAD_LETTER, "dead_letter_chances_idx", RowExclusiveLock},
	{ONSIDE_READS_ASIDE, "aside", AccessShareLock},
	{ONSIDE_READS_ASIDE, "aside_recorded_at_id_idx", AccessShareLock},

	/* forget() locks aside; then no event may move on to dead_letter either. */
	{ONSIDE_USES_ASIDE | ONSIDE_USES_DEAD_LETTER, "aside", RowExclusiveLock},
	{ONSIDE_USES_ASIDE, "aside_pkey", RowExclusiveLock},
	{ONSIDE_USES_ASIDE, "aside_recorded_at_id_idx", RowExclusiveLock},
	{ONSIDE_USES_CONTROL, "control", RowExclusiveLock},
	{ONSIDE_USES_CONTROL, "control_pkey", RowExclusiveLock},
};

/* The OID of a relation, if it is used and not missing. */
static Oid
used_relation(int uses, int i)
{
	return (relations[i].use & uses) == 0 ? InvalidOid :
		onside_relation_oid(relations[i].name);
}

/* Unlocks what is used of the first n relations. */
static void
unlock_first(int uses, int n)
{
	for (int i = 0; i < n; i++)
	{
		Oid			oid = used_relation(uses, i);

		if (OidIsValid(oid))
			UnlockRelationOid(oid, relations[i].mode);
	}
}

const char *
onside_lock_tables(int uses)
{
	for (int i = 0; i < (int) lengthof(relations); i++)
	{
		Oid			oid = used_relation(uses, i);

		/* Whoever opens a missing relation reports it. */
		if (OidIsValid(oid) &&
			!ConditionalLockRelationOid(oid, relations[i].mode))
		{
			unlock_first(uses, i);
			return relations[i].name;
		}
	}
	return NULL;
}

void
onside_unlock_tables(int uses)
{
	unlock_first(uses, lengthof(relations));
}
