/*-------------------------------------------------------------------------
 *
 * tables.c
 *		Where the extension's tables are.
 *
 * The tables are looked up by name, and what was found is kept until a relation
 * or a schema changes.  No lock is taken: whoever opens the table locks it.  No
 * privilege is checked: EXECUTE on the functions decides who may do what.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "log/tables.h"

/*
 * The OIDs that were looked up.  Recording an event needs one of them, and a
 * transaction of the worker a dozen.
 */
#define MAX_KNOWN	24

static struct
{
	NameData	name;
	Oid			oid;
}			known[MAX_KNOWN];
static int	nknown;
static uint64 changes;

/* System cache callback: a relation or a schema has changed. */
static void
forget_known(Datum arg, int cacheid, uint32 hashvalue)
{
	nknown = 0;
	changes++;
}

/*
 * Looks a relation up, and keeps the answer.  The lookup itself can process
 * invalidations.  Then its answer may be outdated, and is not kept.
 */
static Oid
look_up_relation(const char *name)
{
	static bool registered = false;
	uint64		before;
	Oid			schema;
	Oid			oid;

	if (!registered)
	{
		/* Be told of every change, from the first lookup on. */
		CacheRegisterSyscacheCallback(RELNAMENSP, forget_known, (Datum) 0);
		CacheRegisterSyscacheCallback(NAMESPACEOID, forget_known, (Datum) 0);
		registered = true;
	}
	before = changes;

	/* A change that comes during the lookup shows in "changes". */
	schema = get_namespace_oid(ONSIDE_SCHEMA, true);
	oid = OidIsValid(schema) ? get_relname_relid(name, schema) : InvalidOid;

	/* A relation that is missing is looked up again each time. */
	if (OidIsValid(oid) && changes == before && nknown < MAX_KNOWN)
	{
		namestrcpy(&known[nknown].name, name);
		known[nknown++].oid = oid;
	}
	return oid;
}

/* Looks among the known ones first. */
Oid
onside_relation_oid(const char *name)
{
	for (int i = 0; i < nknown; i++)
		if (strcmp(NameStr(known[i].name), name) == 0)
			return known[i].oid;
	return look_up_relation(name);
}

Oid
onside_table_oid(const char *name)
{
	Oid			relid = onside_relation_oid(name);

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s.%s\" does not exist", ONSIDE_SCHEMA, name),
				 errhint("Create the extension onside_attribution in this database, or give the table its name and schema back.")));
	return relid;
}

Oid
onside_segment_oid(int segment)
{
	static const char *const names[ONSIDE_SEGMENTS] = {
		"outbox_1", "outbox_2", "outbox_3"
	};

	Assert(segment >= 1 && segment <= ONSIDE_SEGMENTS);
	return onside_table_oid(names[segment - 1]);
}

Snapshot
onside_reading_snapshot(void)
{
	return IsolationIsSerializable() ? SnapshotSelf : GetActiveSnapshot();
}
