/*-------------------------------------------------------------------------
 *
 * outbox.c
 *		Appending to the log.
 *
 * The outbox is a table of three segments that are only ever appended to and
 * emptied whole.  Each row carries the xid8 of its top-level transaction and a
 * number that counts within that transaction; (xid, id) is its place in the
 * log.  Which segment is written to is a hint in shared memory: the rest of the
 * extension is right whichever segment a row is in, so nobody has to agree on
 * it, and writers never wait for its change.
 *
 * There are two ways in.  The extension's own functions insert here, straight
 * into the segment, with a RowExclusiveLock held to the end of the transaction;
 * that lock is what tells segment.c that a segment has open writers.  An INSERT
 * or COPY of a user's (or of a restore, or of logical replication) goes through
 * PostgreSQL's own partition routing and then through our BEFORE trigger, see
 * incoming.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "compat.h"
#include "log/aside.h"
#include "log/commit.h"
#include "log/insert.h"
#include "log/outbox.h"
#include "log/shape.h"
#include "log/shmem.h"

struct OnsideAppend
{
	OnsideInsert insert;
	int			segment;
	TimestampTz now;
	FullTransactionId xid;
};

static int	current_segment_setting;

/* ----------
 * Where to write
 * ----------
 */

static int
current_segment(void)
{
	OnsideSlot *slot = onside_slot_find(MyDatabaseId);

	return slot == NULL ? 1 : (int) pg_atomic_read_u32(&slot->segment);
}

static const char *
show_current_segment(void)
{
	static char buf[12];

	snprintf(buf, sizeof(buf), "%d", current_segment());
	return buf;
}

void
onside_outbox_init(void)
{
	/*
	 * The default of the column "segment".  A function in its place would need
	 * EXECUTE for everybody with INSERT on the outbox.
	 */
	DefineCustomIntVariable("onside_attribution.current_segment",
							"Segment of the outbox that is written to.",
							NULL,
							&current_segment_setting,
							1, 1, ONSIDE_SEGMENTS,
							PGC_INTERNAL,
							GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE |
							GUC_DISALLOW_IN_FILE,
							NULL, NULL, show_current_segment);
}

/*
 * The OIDs that were looked up, until a relation or a schema changes.  Each event
 * needs one of them, and each transaction of the worker a dozen.
 */
#define MAX_KNOWN	24

static struct
{
	NameData	name;
	Oid			oid;
}			known[MAX_KNOWN];
static int	nknown;
static uint64 changes;

/* System cache callback. */
static void
forget_known(Datum arg, int cacheid, uint32 hashvalue)
{
	nknown = 0;
	changes++;
}

/* Looking up can hear of a change, after which the answer may be an old one. */
static Oid
look_up(const char *name)
{
	static bool registered = false;
	uint64		before;
	Oid			schema;
	Oid			oid;

	if (!registered)
	{
		CacheRegisterSyscacheCallback(RELNAMENSP, forget_known, (Datum) 0);
		CacheRegisterSyscacheCallback(NAMESPACEOID, forget_known, (Datum) 0);
		registered = true;
	}
	before = changes;
	schema = get_namespace_oid(ONSIDE_SCHEMA, true);
	oid = OidIsValid(schema) ? get_relname_relid(name, schema) : InvalidOid;
	if (OidIsValid(oid) && changes == before && nknown < MAX_KNOWN)
	{
		namestrcpy(&known[nknown].name, name);
		known[nknown++].oid = oid;
	}
	return oid;
}

Oid
onside_relation_oid(const char *name)
{
	for (int i = 0; i < nknown; i++)
		if (strcmp(NameStr(known[i].name), name) == 0)
			return known[i].oid;
	return look_up(name);
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

/* ----------
 * Our own way in
 * ----------
 */

OnsideAppend *
onside_append_begin(void)
{
	OnsideAppend *append = palloc0(sizeof(OnsideAppend));

	append->segment = current_segment();
	onside_insert_begin(&append->insert, onside_segment_oid(append->segment));
	append->now = GetCurrentTimestamp();
	append->xid = GetTopFullTransactionId();
	return append;
}

void
onside_append(OnsideAppend *append, const OnsideEvent *event)
{
	TupleTableSlot *slot = onside_insert_slot(&append->insert);
	Datum	   *values = slot->tts_values;

	memset(slot->tts_isnull, false, Natts_outbox * sizeof(bool));
	onside_outbox_set_event(slot, event);
	values[Anum_outbox_recorded_at - 1] = TimestampTzGetDatum(append->now);
	values[Anum_outbox_xid - 1] = FullTransactionIdGetDatum(append->xid);
	values[Anum_outbox_id - 1] = Int64GetDatum(onside_commit_next_id());
	values[Anum_outbox_segment - 1] = Int16GetDatum(append->segment);

	onside_insert_row(&append->insert);
}

void
onside_append_end(OnsideAppend *append)
{
	onside_insert_end(&append->insert);
	pfree(append);
}

/* ----------
 * The other way in
 * ----------
 */

void
onside_outbox_set_event(TupleTableSlot *slot, const OnsideEvent *event)
{
	Datum	   *values = slot->tts_values;
	bool	   *nulls = slot->tts_isnull;

	values[Anum_outbox_event_id - 1] = UUIDPGetDatum(&event->event_id);
	nulls[Anum_outbox_event_id - 1] = !event->has_event_id;
	values[Anum_outbox_event_name - 1] = PointerGetDatum(event->event_name);
	nulls[Anum_outbox_event_name - 1] = event->event_name == NULL;
	values[Anum_outbox_payload - 1] = JsonbPGetDatum(event->payload);
	nulls[Anum_outbox_payload - 1] = event->payload == NULL;
	values[Anum_outbox_event_datetime - 1] =
		TimestampTzGetDatum(event->event_datetime);
	nulls[Anum_outbox_event_datetime - 1] = !event->has_event_datetime;
	values[Anum_outbox_installation_id - 1] =
		UUIDPGetDatum(&event->installation_id);
	nulls[Anum_outbox_installation_id - 1] = !event->has_installation_id;
}

TimestampTz
onside_outbox_recorded_at(TupleTableSlot *slot)
{
	bool		isnull;

	return DatumGetTimestampTz(slot_getattr(slot, Anum_outbox_recorded_at,
											&isnull));
}

void
onside_outbox_read_event(TupleTableSlot *slot, OnsideEvent *event)
{
	Datum	   *values = slot->tts_values;
	bool	   *nulls = slot->tts_isnull;

	slot_getallattrs(slot);
	memset(event, 0, sizeof(*event));

	event->has_event_id = !nulls[Anum_outbox_event_id - 1];
	if (event->has_event_id)
		event->event_id = *DatumGetUUIDP(values[Anum_outbox_event_id - 1]);
	if (!nulls[Anum_outbox_event_name - 1])
		event->event_name = DatumGetTextPP(values[Anum_outbox_event_name - 1]);
	if (!nulls[Anum_outbox_payload - 1])
		event->payload = DatumGetJsonbP(values[Anum_outbox_payload - 1]);
	event->has_event_datetime = !nulls[Anum_outbox_event_datetime - 1];
	if (event->has_event_datetime)
		event->event_datetime =
			DatumGetTimestampTz(values[Anum_outbox_event_datetime - 1]);
	event->has_installation_id = !nulls[Anum_outbox_installation_id - 1];
	if (event->has_installation_id)
		event->installation_id =
			*DatumGetUUIDP(values[Anum_outbox_installation_id - 1]);
}

void
onside_outbox_copy_event(OnsideEvent *event)
{
	if (event->event_name != NULL)
		event->event_name =
			(text *) PG_DETOAST_DATUM_COPY(PointerGetDatum(event->event_name));
	if (event->payload != NULL)
		event->payload = DatumGetJsonbPCopy(JsonbPGetDatum(event->payload));
}

static bool
find_in(Oid relid, const pg_uuid_t *event_id, OnsideEvent *event)
{
	Relation	rel;
	TableScanDesc scan;
	TupleTableSlot *slot;
	ScanKeyData key;
	bool		found;

	rel = table_open(relid, AccessShareLock);
	(void) onside_shape_require(rel, true);
	slot = table_slot_create(rel, NULL);
	ScanKeyInit(&key, Anum_outbox_event_id, BTEqualStrategyNumber, F_UUID_EQ,
				UUIDPGetDatum(event_id));
	scan = onside_table_beginscan(rel, onside_reading_snapshot(), 1, &key);
	found = table_scan_getnextslot(scan, ForwardScanDirection, slot);
	if (found)
	{
		onside_outbox_read_event(slot, event);
		found = event->has_event_id && event->has_event_datetime &&
			event->has_installation_id && event->event_name != NULL &&
			event->payload != NULL;
	}
	if (found)
		onside_outbox_copy_event(event);
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	return found;
}

bool
onside_outbox_find(const pg_uuid_t *event_id, OnsideEvent *event)
{
	for (int segment = 1; segment <= ONSIDE_SEGMENTS; segment++)
		if (find_in(onside_segment_oid(segment), event_id, event))
			return true;
	return find_in(onside_table_oid("aside"), event_id, event) ||
		find_in(onside_table_oid("dead_letter"), event_id, event);
}
