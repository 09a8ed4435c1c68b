/*-------------------------------------------------------------------------
 *
 * attachment.c
 *		What is remembered of attached events: which rows the table held
 *		before, and how far their backfill has come.
 *
 * The tables "attachment" and "backfill_state" are written here alone, by
 * attach() and backfill(), whose callers have no privilege on them.  So a
 * statement runs with the rights of the tables' owner; it is a constant, looks
 * up its names in pg_catalog, and in the role "replica" fires no trigger that
 * somebody has put on the table.
 *
 * attach() holds ShareRowExclusiveLock, so every transaction that has written
 * to the table has ended: what is visible in a snapshot taken now was there
 * before the trigger, and what is not comes after it.  Subtransactions count as
 * under way, too, which pg_current_snapshot() leaves out: one can have its
 * number already, and write to the table once the trigger is there.  The
 * attaching transaction itself can have written before and can write after; its
 * rows are known to be old only as long as its triggers have not fired.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#include "attachment.h"
#include "event.h"
#include "outbox.h"

/* No more transactions than this are listed one by one. */
#define MAX_YOUNGER 10000

/* The transaction in which this session has attached an event last. */
static FullTransactionId attached_in;

/*
 * Runs a statement about one of the two tables, as their owner.  The memory
 * context is the same afterwards, to which SPI does not see.
 */
static void
execute(const char *command, int nargs, Oid *types, Datum *values, char *nulls)
{
	MemoryContext old = CurrentMemoryContext;
	Relation	rel = RelationIdGetRelation(onside_relation_oid("attachment"));
	Oid			owner = rel->rd_rel->relowner;
	Oid			user;
	int			context;
	int			nestlevel;
	int			rc;

	RelationClose(rel);

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(owner, context | SECURITY_LOCAL_USERID_CHANGE);
	nestlevel = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
	(void) set_config_option("session_replication_role", "replica", PGC_SUSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);

	rc = SPI_execute_with_args(command, nargs, types, values, nulls, false, 0);
	MemoryContextSwitchTo(old);

	AtEOXact_GUC(true, nestlevel);
	SetUserIdAndSecContext(user, context);
	if (rc < 0)
		elog(ERROR, "could not execute \"%s\": %s", command,
			 SPI_result_code_string(rc));
}

/* Databases whose SQL objects are older do without. */
static bool
is_there(void)
{
	return OidIsValid(onside_relation_oid("attachment"));
}

/* ----------
 * attachment
 * ----------
 */

static int
compare_xids(const void *a, const void *b)
{
	uint64		x = *(const uint64 *) a;
	uint64		y = *(const uint64 *) b;

	return x < y ? -1 : x > y;
}

/* The full form of a number that is not in the future of "next". */
static uint64
full_xid(TransactionId xid, FullTransactionId next)
{
	uint32		epoch = EpochFromFullTransactionId(next);

	if (xid > XidFromFullTransactionId(next))
		epoch--;
	return U64FromFullTransactionId(FullTransactionIdFromEpochAndXid(epoch,
																	 xid));
}

/*
 * A new snapshot as pg_snapshot has it, with subtransactions, in which this
 * transaction itself is visible.
 */
static char *
current_snapshot(void)
{
	Snapshot	snapshot = GetLatestSnapshot();
	FullTransactionId next = ReadNextFullTransactionId();
	uint64		xmin = full_xid(snapshot->xmin, next);
	uint64		xmax = full_xid(snapshot->xmax, next);
	uint64		own;
	int			younger = 0;
	int			n = 0;
	uint64	   *xids;
	StringInfoData buf;

	initStringInfo(&buf);
	if (snapshot->suboverflowed)
	{
		appendStringInfo(&buf, UINT64_FORMAT ":" UINT64_FORMAT ":", xmin, xmin);
		return buf.data;
	}

	/* Who has begun after the last one that has ended is under way, too. */
	own = U64FromFullTransactionId(attached_in);
	if (own >= xmax && own - xmax < MAX_YOUNGER)
		younger = own + 1 - xmax;

	xids = palloc((snapshot->xcnt + snapshot->subxcnt + younger + 1) *
				  sizeof(uint64));
	for (uint32 i = 0; i < snapshot->xcnt; i++)
		xids[n++] = full_xid(snapshot->xip[i], next);
	for (int i = 0; i < snapshot->subxcnt; i++)
		xids[n++] = full_xid(snapshot->subxip[i], next);
	for (int i = 0; i < younger - 1; i++)
		xids[n++] = xmax + i;
	xmax += younger;
	qsort(xids, n, sizeof(uint64), compare_xids);

	appendStringInfo(&buf, UINT64_FORMAT ":" UINT64_FORMAT ":", xmin, xmax);
	for (int i = 0; i < n; i++)
		if (xids[i] < xmax && (i == 0 || xids[i] != xids[i - 1]))
			appendStringInfo(&buf, "%s" UINT64_FORMAT,
							 buf.data[buf.len - 1] == ':' ? "" : ",", xids[i]);
	return buf.data;
}

#define FORGET(table) \
	"DELETE FROM onside_attribution." table " WHERE ctid = ANY (ARRAY" \
	" (SELECT t.ctid FROM onside_attribution." table " t" \
	" WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = t.source)" \
	" FOR UPDATE SKIP LOCKED))"

/*
 * Their OIDs may be those of others one day.  The caller holds a lock that keeps
 * purchases waiting, so he waits for nobody: what another transaction is about to
 * forget is left to it.  An older snapshot would fail at rows that are gone since.
 */
static void
forget_dropped_tables(void)
{
	if (IsolationUsesXactSnapshot())
		return;
	execute(FORGET("attachment"), 0, NULL, NULL, NULL);
	execute(FORGET("backfill_state"), 0, NULL, NULL, NULL);
}

void
onside_attachment_note(Oid source, const char *event_name,
					   AttrNumber event_id)
{
	Oid			types[] = {OIDOID, TEXTOID, INT2OID, TEXTOID, XID8OID,
	UUIDOID};
	Datum		values[6];
	pg_uuid_t	namespace;

	if (!is_there())
		return;
	attached_in = GetTopFullTransactionId();
	onside_event_new_id(&namespace);

	values[0] = ObjectIdGetDatum(source);
	values[1] = CStringGetTextDatum(event_name);
	values[2] = Int16GetDatum(event_id);
	values[3] = CStringGetTextDatum(current_snapshot());
	values[4] = FullTransactionIdGetDatum(attached_in);
	values[5] = UUIDPGetDatum(&namespace);

	SPI_connect();
	forget_dropped_tables();
	execute("INSERT INTO onside_attribution.attachment"
			" (source, event_name, event_id, rows_before, attached_by, namespace)"
			" VALUES ($1, $2, $3, $4::pg_snapshot, $5, $6)"
			" ON CONFLICT (source, event_name) DO NOTHING",
			6, types, values, NULL);
	SPI_finish();
}

void
onside_attachment_used(void)
{
	Oid			types[] = {XID8OID};
	Datum		values[1];

	if (!FullTransactionIdIsValid(attached_in) ||
		!FullTransactionIdEquals(attached_in, GetTopFullTransactionIdIfAny()))
		return;

	values[0] = FullTransactionIdGetDatum(attached_in);
	SPI_connect();
	execute("UPDATE onside_attribution.attachment"
			" SET rows_before = concat(pg_snapshot_xmin(rows_before), ':',"
			" pg_snapshot_xmin(rows_before), ':')::pg_snapshot"
			" WHERE attached_by = $1"
			" AND pg_snapshot_xmin(rows_before) <> pg_snapshot_xmax(rows_before)",
			1, types, values, NULL);
	SPI_finish();
}

/* Column n of the result's only row, copied into a memory context. */
static Datum
result(int n, bool byval, int len, MemoryContext context, bool *isnull)
{
	Datum		value = SPI_getbinval(SPI_tuptable->vals[0],
									  SPI_tuptable->tupdesc, n, isnull);
	MemoryContext old;

	if (*isnull)
		return (Datum) 0;
	old = MemoryContextSwitchTo(context);
	value = datumCopy(value, byval, len);
	MemoryContextSwitchTo(old);
	return value;
}

OnsideAttachment *
onside_attachment_load(Oid source, const char *event_name)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {OIDOID, TEXTOID};
	Datum		values[2];
	OnsideAttachment *attachment;
	Datum		value;
	bool		isnull;

	values[0] = ObjectIdGetDatum(source);
	values[1] = CStringGetTextDatum(event_name);
	execute("SELECT event_id, rows_before, namespace"
			" FROM onside_attribution.attachment"
			" WHERE source = $1 AND event_name = $2", 2, types, values, NULL);
	if (SPI_processed == 0)
	{
		SPI_freetuptable(SPI_tuptable);
		return NULL;
	}

	attachment = MemoryContextAllocZero(context, sizeof(OnsideAttachment));
	attachment->event_id = DatumGetInt16(result(1, true, 2, context, &isnull));
	attachment->rows_before = result(2, false, -1, context, &isnull);
	value = result(3, false, UUID_LEN, context, &isnull);
	if (!isnull)
		attachment->namespace = *DatumGetUUIDP(value);
	SPI_freetuptable(SPI_tuptable);
	return attachment;
}

/* ----------
 * backfill_state
 * ----------
 */

#define KEY_ARGS	5
#define KEY_CONDITION \
	" WHERE source = $1 AND event_name = $2 AND role = $3" \
	" AND since = $4 AND until = $5"

static const Oid key_types[KEY_ARGS] =
{OIDOID, TEXTOID, OIDOID, TIMESTAMPTZOID, TIMESTAMPTZOID};

static void
set_key(Oid *types, Datum *values, const OnsideBackfillKey *key)
{
	memcpy(types, key_types, sizeof(key_types));
	values[0] = ObjectIdGetDatum(key->source);
	values[1] = CStringGetTextDatum(key->event_name);
	values[2] = ObjectIdGetDatum(key->role);
	values[3] = TimestampTzGetDatum(key->since);
	values[4] = TimestampTzGetDatum(key->until);
}

void
onside_backfill_begin(const OnsideBackfillKey *key)
{
	Oid			types[KEY_ARGS];
	Datum		values[KEY_ARGS];

	set_key(types, values, key);
	execute("INSERT INTO onside_attribution.backfill_state"
			" (source, event_name, role, since, until)"
			" VALUES ($1, $2, $3, $4, $5)"
			" ON CONFLICT (source, event_name, role, since, until) DO NOTHING",
			KEY_ARGS, types, values, NULL);
}

OnsideBackfillState *
onside_backfill_lock(const OnsideBackfillKey *key)
{
	MemoryContext context = CurrentMemoryContext;
	OnsideBackfillState *state = palloc0(sizeof(OnsideBackfillState));
	int64	   *counts[] = {&state->recorded, &state->skipped,
	&state->dead_lettered, &state->not_due, &state->left_out};
	Oid			types[KEY_ARGS];
	Datum		values[KEY_ARGS];
	bool		isnull;

	set_key(types, values, key);
	execute("SELECT key_columns, position, finished_at IS NOT NULL,"
			" recorded, skipped, dead_lettered, not_due, left_out"
			" FROM onside_attribution.backfill_state" KEY_CONDITION
			" FOR NO KEY UPDATE", KEY_ARGS, types, values, NULL);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the state of this backfill was deleted meanwhile"),
				 errhint("Call backfill() again to begin anew.")));

	state->key_columns = result(1, false, -1, context, &isnull);
	state->position = result(2, false, -1, context, &isnull);
	state->finished = DatumGetBool(result(3, true, 1, context, &isnull));
	for (int i = 0; i < (int) lengthof(counts); i++)
		*counts[i] = DatumGetInt64(result(4 + i, true, 8, context, &isnull));
	SPI_freetuptable(SPI_tuptable);
	return state;
}

void
onside_backfill_save(const OnsideBackfillKey *key,
					 const OnsideBackfillState *state)
{
	Oid			types[KEY_ARGS + 8] = {0};
	Datum		values[KEY_ARGS + 8];
	char		nulls[KEY_ARGS + 8 + 1] = "             ";
	static const Oid more[] = {INT2ARRAYOID, TEXTARRAYOID, BOOLOID, INT8OID,
	INT8OID, INT8OID, INT8OID, INT8OID};

	set_key(types, values, key);
	memcpy(types + KEY_ARGS, more, sizeof(more));
	values[5] = state->key_columns;
	values[6] = state->position;
	nulls[6] = state->position == (Datum) 0 ? 'n' : ' ';
	values[7] = BoolGetDatum(state->finished);
	values[8] = Int64GetDatum(state->recorded);
	values[9] = Int64GetDatum(state->skipped);
	values[10] = Int64GetDatum(state->dead_lettered);
	values[11] = Int64GetDatum(state->not_due);
	values[12] = Int64GetDatum(state->left_out);
	execute("UPDATE onside_attribution.backfill_state"
			" SET key_columns = $6, position = $7,"
			" finished_at = CASE WHEN $8 THEN clock_timestamp() END,"
			" updated_at = clock_timestamp(),"
			" recorded = $9, skipped = $10, dead_lettered = $11,"
			" not_due = $12, left_out = $13" KEY_CONDITION,
			KEY_ARGS + 8, types, values, nulls);
}
