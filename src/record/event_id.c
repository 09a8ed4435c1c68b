/*-------------------------------------------------------------------------
 *
 * event_id.c
 *		The event_id of a row that has a key and no version 4 UUID.
 *
 * The API knows an event by its event_id and ignores repetitions.  A row whose
 * event_id is made of its key is the same event whoever reports it, and however
 * often: the trigger, backfill, or the trigger of a restored dump.
 *
 * Two databases that report to one account can have the same tables and the same
 * keys.  So the key of a mapped column is preceded by the database's namespace, a
 * random UUID in a table of one row.  A dump carries it, and the row that comes
 * with a dump replaces the one that CREATE EXTENSION has made.  What logical
 * replication brings is another database's, and dropped.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "port/pg_bswap.h"
#include "replication/logicalworker.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "outbox.h"
#include "record/event_id.h"
#include "shape.h"

PG_FUNCTION_INFO_V1(onside_event_id);
PG_FUNCTION_INFO_V1(onside_take_namespace);

enum
{
	Anum_namespace_singleton = 1,
	Anum_namespace_id
};

/* ----------
 * Of a key
 * ----------
 */

static void
add(pg_cryptohash_ctx *hash, const void *data, size_t len)
{
	if (pg_cryptohash_update(hash, data, len) < 0)
		elog(ERROR, "could not compute a SHA-256 hash: %s",
			 pg_cryptohash_error(hash));
}

void
onside_event_id_of_key(const OnsideKeyPart *parts, int nparts, pg_uuid_t *id)
{
	pg_cryptohash_ctx *hash = pg_cryptohash_create(PG_SHA256);
	uint8		digest[PG_SHA256_DIGEST_LENGTH];

	if (hash == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	if (pg_cryptohash_init(hash) < 0)
		elog(ERROR, "could not compute a SHA-256 hash: %s",
			 pg_cryptohash_error(hash));
	for (int i = 0; i < nparts; i++)
	{
		char	   *utf8 = pg_server_to_any(parts[i].data, parts[i].len, PG_UTF8);
		int			len = utf8 == parts[i].data ? parts[i].len : (int) strlen(utf8);
		uint64		prefix = pg_hton64((uint64) len);

		add(hash, &prefix, sizeof(prefix));
		add(hash, utf8, len);
	}
	if (pg_cryptohash_final(hash, digest, sizeof(digest)) < 0)
		elog(ERROR, "could not compute a SHA-256 hash: %s",
			 pg_cryptohash_error(hash));
	pg_cryptohash_free(hash);

	memcpy(id->data, digest, UUID_LEN);
	id->data[6] = (id->data[6] & 0x0f) | 0x40;
	id->data[8] = (id->data[8] & 0x3f) | 0x80;
}

pg_noreturn static void
throw_part(int sqlstate, const char *problem)
{
	ereport(ERROR,
			(errcode(sqlstate), errmsg("event_id: %s", problem),
			 errhint("Pass what makes the event unique, for example event_id('orders', id::text).")));
}

/* event_id(VARIADIC parts text[]) */
Datum
onside_event_id(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));
	OnsideKeyPart *parts;
	Datum	   *values;
	bool	   *nulls;
	int			n;

	if (PG_ARGISNULL(0))
		throw_part(ERRCODE_NULL_VALUE_NOT_ALLOWED, "a part must not be null");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), TEXTOID, -1, false, TYPALIGN_INT,
					  &values, &nulls, &n);
	if (n == 0)
		throw_part(ERRCODE_INVALID_PARAMETER_VALUE, "there must be a part");
	parts = palloc(n * sizeof(OnsideKeyPart));
	for (int i = 0; i < n; i++)
	{
		text	   *part;

		if (nulls[i])
			throw_part(ERRCODE_NULL_VALUE_NOT_ALLOWED,
					   psprintf("part %d must not be null", i + 1));
		part = DatumGetTextPP(values[i]);
		parts[i].data = VARDATA_ANY(part);
		parts[i].len = VARSIZE_ANY_EXHDR(part);
		if (parts[i].len == 0)
			throw_part(ERRCODE_INVALID_PARAMETER_VALUE,
					   psprintf("part %d must not be empty", i + 1));
	}
	onside_event_id_of_key(parts, n, id);
	PG_RETURN_UUID_P(id);
}

/* ----------
 * The namespace
 * ----------
 */

char *
onside_event_id_namespace(void)
{
	Relation	rel = table_open(onside_table_oid("namespace"),
								 AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TableScanDesc scan;
	char	   *result = NULL;

	(void) onside_shape_require(rel, true);
	scan = onside_table_beginscan(rel, snapshot, 0, NULL);
	if (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool		isnull;

		result = DatumGetCString(DirectFunctionCall1(uuid_out,
													 slot_getattr(slot, Anum_namespace_id,
																  &isnull)));
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	if (result == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the table onside_attribution.namespace is empty"),
				 errhint("Put its row back: INSERT INTO onside_attribution.namespace (id) VALUES (...), with the id that the arguments of this database's triggers have, or gen_random_uuid() if there are none.")));
	return result;
}

/*
 * Before a row is inserted: the row that comes with a dump takes the place of the
 * one that is there.
 */
Datum
onside_take_namespace(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	Oid			types[] = {UUIDOID};
	Datum		values[1];
	bool		isnull;
	bool		replaced;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(trigdata->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) ||
		!TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("this function is a trigger of the extension's tables")));
	if (IsLogicalWorker())
		return PointerGetDatum(NULL);
	values[0] = slot_getattr(trigdata->tg_trigslot, Anum_namespace_id, &isnull);
	if (isnull)
		return PointerGetDatum(trigdata->tg_trigtuple);

	SPI_connect();
	if (SPI_execute_with_args("UPDATE " ONSIDE_SCHEMA ".namespace SET id = $1",
							  1, types, values, NULL, false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not update the namespace");
	replaced = SPI_processed > 0;
	SPI_finish();
	return PointerGetDatum(replaced ? NULL : trigdata->tg_trigtuple);
}
