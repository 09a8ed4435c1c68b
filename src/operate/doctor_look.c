/*-------------------------------------------------------------------------
 *
 * doctor_look.c
 *		doctor(): its rows, and how its checks look at tables.
 *
 * A look is a subtransaction that is always rolled back.  That releases its
 * locks, undoes its settings, and turns an error into a row, whatever state
 * our tables are in.  A cancel, a timeout and a lack of memory are raised
 * again.
 *
 * Our own tables are locked only if that is possible at once, with their
 * indexes and TOAST tables, before anything reads them.  lock_timeout is for
 * catalogs, which could be locked, too.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "executor/spi.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#include "attempt.h"
#include "log/tables.h"
#include "operate/doctor.h"

#define RELOAD			"; SELECT pg_reload_conf();"

/* Of a lock on a catalog; ms. */
#define LOCK_TIMEOUT	"100"

/* The hint is left out of a good row, so that callers can always give one. */
void
onside_doctor_row(OnsideDoctor *doctor, const char *check, OnsideVerdict ok,
				  const char *detail, const char *hint)
{
	Datum		values[4] = {0};
	bool		nulls[4] = {0};

	values[0] = CStringGetTextDatum(check);
	values[1] = BoolGetDatum(ok == ONSIDE_GOOD);
	nulls[1] = ok == ONSIDE_UNKNOWN;
	values[2] = CStringGetTextDatum(detail);
	nulls[3] = hint == NULL || ok == ONSIDE_GOOD;
	if (!nulls[3])
		values[3] = CStringGetTextDatum(hint);
	tuplestore_putvalues(doctor->rsinfo->setResult, doctor->rsinfo->setDesc,
						 values, nulls);

	/* Later checks point to the first one that has failed. */
	if (ok == ONSIDE_BAD && doctor->first_bad == NULL)
		doctor->first_bad = check;
}

void
onside_doctor_judge(OnsideDoctor *doctor, const char *check,
					const char *problem, const char *good, const char *hint)
{
	onside_doctor_row(doctor, check,
					  problem == NULL ? ONSIDE_GOOD : ONSIDE_BAD,
					  problem == NULL ? good : problem, hint);
}

/* The credentials are always the database's, so that its copies have none. */
char *
onside_doctor_set_command(OnsideDoctor *doctor, const char *name,
						  const char *value)
{
	if (strcmp(name, "credentials_file") == 0 ||
		(doctor->overridden != NULL &&
		 strstr(doctor->overridden,
				psprintf("onside_attribution.%s,", name)) != NULL))
		return psprintf("ALTER DATABASE %s SET onside_attribution.%s = %s" RELOAD,
						doctor->database, name, value);
	return psprintf("ALTER SYSTEM SET onside_attribution.%s = %s" RELOAD,
					name, value);
}

/* What onside_doctor_look() is called with. */
typedef struct Look
{
	OnsideDoctor *doctor;
	OnsideLook	look;
} Look;

/* Makes the look, in its subtransaction.  What it allocates outlives SPI. */
static void
run_look(void *arg)
{
	Look	   *this = (Look *) arg;
	MemoryContext context = CurrentMemoryContext;

	/* Names are the system's, and no lock on a catalog is waited for long. */
	onside_set_for_now("search_path", "pg_catalog, pg_temp");
	onside_set_for_now("lock_timeout", LOCK_TIMEOUT);
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();

	/* SPI_connect() has switched to a context that SPI_finish() frees. */
	MemoryContextSwitchTo(context);
	this->look(this->doctor);
	SPI_finish();
	PopActiveSnapshot();
}

/* A cancel, a timeout and a lack of memory end doctor() itself. */
void
onside_doctor_look(OnsideDoctor *doctor, const char *check, OnsideLook look)
{
	Look		this = {doctor, look};
	ErrorData  *error = onside_attempt(run_look, &this, false);

	if (error == NULL)
		return;
	if (onside_attempt_was_interrupted(error))
		ReThrowError(error);

	/* A table that is locked is no finding: the check tables names it. */
	onside_doctor_row(doctor, check,
					  ERRCODE_TO_CATEGORY(error->sqlerrcode) ==
					  ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE ?
					  ONSIDE_UNKNOWN : ONSIDE_BAD,
					  error->message, error->hint);
}

void
onside_doctor_look_at_tables(OnsideDoctor *doctor, const char *check,
							 OnsideLook look)
{
	if (doctor->tables_known)
		onside_doctor_look(doctor, check, look);
	else
		onside_doctor_row(doctor, check, ONSIDE_UNKNOWN,
						  "see the checks version and tables", NULL);
}

/* ----------
 * Tables
 * ----------
 */

/*
 * Locks the table, its indexes and its TOAST table, all of which a reader
 * opens and would wait for.
 */
bool
onside_doctor_try_lock(Oid relid)
{
	Relation	rel;
	List	   *parts;
	ListCell   *lc;
	bool		locked = true;

	if (!ConditionalLockRelationOid(relid, AccessShareLock))
		return false;
	rel = try_table_open(relid, NoLock);
	if (rel == NULL)
		return true;			/* dropped just now */

	/* What was locked stays so until the look is rolled back. */
	parts = RelationGetIndexList(rel);
	foreach(lc, parts)
		locked &= ConditionalLockRelationOid(lfirst_oid(lc), AccessShareLock);
	if (OidIsValid(rel->rd_rel->reltoastrelid))
		locked &= onside_doctor_try_lock(rel->rd_rel->reltoastrelid);
	table_close(rel, NoLock);
	return locked;
}

Oid
onside_doctor_table(const char *name)
{
	Oid			relid = onside_relation_oid(name);

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s.%s\" does not exist", ONSIDE_SCHEMA, name),
				 errhint("Drop the extension onside_attribution and create it again.")));
	if (!onside_doctor_try_lock(relid))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("table \"%s.%s\" is locked by another session",
						ONSIDE_SCHEMA, name),
				 errhint("Follow the hint of the check tables.")));
	return relid;
}

/* ----------
 * Catalogs
 * ----------
 */

/* Read-only, so that a query cannot change anything. */
int
onside_doctor_query(const char *query)
{
	int			rc = SPI_execute(query, true, 0);

	if (rc != SPI_OK_SELECT)
		elog(ERROR, "doctor: %s", SPI_result_code_string(rc));
	return (int) SPI_processed;
}

char *
onside_doctor_value(int row, int column)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						column);
}

/*
 * Looks in pg_locks for whoever has the relation locked: a session, which has
 * a process, or a prepared transaction, which is known by the lock on its own
 * transaction number.  A start that pg_stat_activity hides from the caller is
 * taken to be long ago.
 */
bool
onside_doctor_holder(Oid relid, bool exclusive, StringInfo detail, char **hint)
{
	const char *verb = exclusive ? "locked" : "in use";

	/* A session can be ended; a prepared transaction has to be decided. */
	if (onside_doctor_query(psprintf("SELECT CASE WHEN l.pid IS NULL"
									 "  THEN pg_catalog.format('%s by the prepared transaction %%L', coalesce(p.gid, '?'))"
									 "  ELSE pg_catalog.format('%s by process %%s (%%s, %%s, in a transaction since %%s)', l.pid,"
									 "   coalesce(a.usename, 'no user'), coalesce(a.state, 'state unknown'),"
									 "   coalesce(a.xact_start::text, 'an unknown time')) END,"
									 " CASE WHEN l.pid IS NULL"
									 "  THEN pg_catalog.format('COMMIT PREPARED %%1$L; or ROLLBACK PREPARED %%1$L;', coalesce(p.gid, '?'))"
									 "  ELSE pg_catalog.format('Have that transaction end, or SELECT pg_terminate_backend(%%s);', l.pid) END"
									 " FROM pg_catalog.pg_locks l"
									 " LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid"
									 " LEFT JOIN pg_catalog.pg_locks x ON l.pid IS NULL AND x.pid IS NULL"
									 "  AND x.locktype = 'transactionid'"
									 "  AND x.virtualtransaction = l.virtualtransaction"
									 " LEFT JOIN pg_catalog.pg_prepared_xacts p"
									 "  ON p.transaction = x.transactionid"
									 " WHERE l.locktype = 'relation' AND l.relation = %u AND %s"
									 " AND l.database = (SELECT oid FROM pg_catalog.pg_database"
									 "  WHERE datname = pg_catalog.current_database())"
									 " AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()"
									 " AND a.backend_type IS DISTINCT FROM 'onside_attribution worker'"
									 " ORDER BY l.granted DESC, a.xact_start NULLS FIRST LIMIT 1",
									 verb, verb, relid,
									 exclusive ? "l.mode = 'AccessExclusiveLock'" :
									 "l.granted AND coalesce(a.xact_start, p.prepared, '-infinity')"
									 "  < pg_catalog.clock_timestamp() - interval '5 seconds'")) == 0)
		return false;
	appendStringInfoString(detail, onside_doctor_value(0, 1));
	*hint = onside_doctor_value(0, 2);
	return true;
}
