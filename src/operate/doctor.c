/*-------------------------------------------------------------------------
 *
 * doctor.c
 *		doctor(): everything to look at when nothing arrives.
 *
 * doctor() returns a row for each check, in the order of an event's way: the
 * processes, the settings, the endpoint, what is waiting, what was recorded.
 * ok is NULL where something cannot be known, most often because an earlier
 * check has failed.  A row that is not ok has a hint that can be followed as
 * it is.
 *
 * doctor() runs in the caller's backend: the worker may be what is missing.
 * It changes nothing, sends no event, waits for no lock and keeps none.  It
 * connects only to the host of the setting endpoint (or proxy), which only
 * those can change who may decide where events go.
 *
 * EXECUTE is the privilege.  doctor() has the caller's rights and no others.
 * It reads catalogs, which everybody may read, with a search_path of
 * pg_catalog alone, so that no user's function or operator is called.  Our
 * own tables are read in C, which checks no privilege; only counts, sizes,
 * times and the reason of a pause are shown of them.  Of a setting for
 * superusers alone, only a file's name and what is wrong are shown.
 *
 * This file has the checks of processes and settings, and the order of all of
 * them.  doctor_look.c says how tables and catalogs are looked at.  Further
 * checks, in their order: files and the endpoint (doctor_endpoint.c), what
 * becomes of events (doctor_events.c, doctor_mapper.c), and where events come
 * from by replication (subscriptions.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/value.h"
#include "parser/parse_func.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "compat.h"
#include "log/crash_guard.h"
#include "log/delivery.h"
#include "log/shape.h"
#include "log/shmem.h"
#include "log/tables.h"
#include "operate/doctor.h"
#include "settings.h"
#include "version.h"

PG_FUNCTION_INFO_V1(onside_doctor);

/* ----------
 * Processes
 * ----------
 */

/* May the caller see what configuration files hold? */
#define MAY_SEE_FILES \
	"SELECT 1 WHERE pg_catalog.has_table_privilege('pg_catalog.pg_file_settings', 'SELECT')" \
	" AND pg_catalog.has_function_privilege('pg_catalog.pg_show_all_file_settings()', 'EXECUTE')"

/*
 * Is the library preloaded?  Else there is no launcher, and nothing is sent.
 */
static void
look_at_preload(OnsideDoctor *doctor)
{
	bool		listed = false;
	char	   *libraries;

	if (onside_shmem_available())
	{
		onside_doctor_row(doctor, "preload", ONSIDE_GOOD,
						  "the library is preloaded", NULL);
		return;
	}

	/* The setting may have been changed, with only the restart missing. */
	if (onside_doctor_query(MAY_SEE_FILES) > 0)
		listed = onside_doctor_query("SELECT FROM (SELECT setting FROM pg_catalog.pg_file_settings"
									 " WHERE name = 'shared_preload_libraries'"
									 " ORDER BY seqno DESC LIMIT 1) last"
									 " WHERE setting ~ 'onside_attribution'") > 0;

	/* The hint repeats what is preloaded now, or it would be lost. */
	libraries = GetConfigOptionByName("shared_preload_libraries", NULL, true);
	if (libraries == NULL)
		libraries = "";
	onside_doctor_row(doctor, "preload", ONSIDE_BAD, listed ?
					  "shared_preload_libraries has the library, but the server was not restarted since" :
					  "the library is not in shared_preload_libraries: events are recorded, and nothing sends them",
					  listed ? "Restart the server." :
					  psprintf("Put this line into postgresql.conf and restart the server: shared_preload_libraries = '%s%sonside_attribution'",
							   libraries, libraries[0] != '\0' ? ", " : ""));
}

/* Are the objects of our version?  Else their tables are not read. */
static void
look_at_object_version(OnsideDoctor *doctor)
{
	char	   *problem = onside_version_problem();

	doctor->tables_known = problem == NULL;
	onside_doctor_judge(doctor, "version", problem,
						"library and objects are version " ONSIDE_SQL_VERSION,
						"Install the package of the newer version if it is not, and restart the server; then ALTER EXTENSION onside_attribution UPDATE;");
}

/*
 * Are our tables as the extension needs them, and can they be read?  Somebody
 * may have altered or locked one.
 */
static void
look_at_tables(OnsideDoctor *doctor)
{
	bool		usable = true;
	char	   *problems = doctor->tables_known ?
		onside_shape_report(&usable) : NULL;
	StringInfoData detail;
	char	   *hint = NULL;
	int			n = onside_doctor_query("SELECT oid, relname FROM pg_catalog.pg_class"
										" WHERE relnamespace = (SELECT oid FROM pg_catalog.pg_namespace"
										"  WHERE nspname = '" ONSIDE_SCHEMA "')"
										" AND relkind IN ('r', 'p') ORDER BY relname");
	SPITupleTable *tables = SPI_tuptable;

	/* A table that cannot be used is not read by the checks that follow. */
	if (problems != NULL)
	{
		doctor->tables_known &= usable;
		onside_doctor_row(doctor, "tables", ONSIDE_BAD, problems,
						  "The extension writes and reads these tables directly, without triggers, rules and constraints. Undo these changes with ALTER TABLE or DROP; columns that can be null and have no default, and indexes on columns that are not unique, may stay.");
		return;
	}

	/* The tables are as they should be: is any of them locked, and by whom? */
	initStringInfo(&detail);
	for (int i = 0; i < n; i++)
	{
		bool		isnull;
		Oid			relid = DatumGetObjectId(SPI_getbinval(tables->vals[i],
														   tables->tupdesc, 1,
														   &isnull));

		if (onside_doctor_try_lock(relid))
			continue;
		appendStringInfo(&detail, "%s%s.%s is ", detail.len > 0 ? "; " : "",
						 ONSIDE_SCHEMA,
						 SPI_getvalue(tables->vals[i], tables->tupdesc, 2));
		if (!onside_doctor_holder(relid, true, &detail, &hint))
			appendStringInfoString(&detail, "locked by another session");
	}
	onside_doctor_judge(doctor, "tables",
						detail.len > 0 ? detail.data : NULL,
						"they are as the extension needs them, and none is locked",
						hint != NULL ? hint :
						"Look for it in pg_locks, and have that transaction end.");
}

/* Is this the primary?  Only the primary sends. */
static void
check_recovery(OnsideDoctor *doctor)
{
	doctor->standby = RecoveryInProgress();
	onside_doctor_judge(doctor, "primary", doctor->standby ?
						"this server is a standby: the primary sends, and this one does when it is promoted" : NULL,
						"this server is not a standby",
						"Call doctor() on the primary. If this server is to take over: SELECT pg_promote();");
}

/* Is the process there that starts the workers? */
static void
check_launcher(OnsideDoctor *doctor)
{
	pid_t		pid = onside_launcher_pid();

	if (pid != 0)
		onside_doctor_row(doctor, "launcher", ONSIDE_GOOD,
						  psprintf("process %d", (int) pid), NULL);
	else if (!doctor->may_run)
		onside_doctor_row(doctor, "launcher", ONSIDE_UNKNOWN,
						  "there is none on a standby or without preloading",
						  NULL);
	else
		onside_doctor_row(doctor, "launcher", ONSIDE_BAD,
						  "the launcher is not running",
						  "It is started again every second, if max_worker_processes allows it; look for \"onside_attribution launcher\" in the server's log. If that has nothing, restart the server.");
}

/* Has this database a place in shared memory? */
static void
check_databases(OnsideDoctor *doctor)
{
	int			taken = 0;

	if (!doctor->may_run)
	{
		onside_doctor_row(doctor, "max_databases", ONSIDE_UNKNOWN,
						  "see the checks above", NULL);
		return;
	}

	/* With places left, the launcher is only not here yet. */
	for (int i = 0; i < onside_max_databases; i++)
		if (OidIsValid(onside_slot_database(onside_slot_get(i))))
			taken++;
	onside_doctor_row(doctor, "max_databases",
					  onside_slot_find(MyDatabaseId) != NULL ? ONSIDE_GOOD :
					  taken < onside_max_databases ? ONSIDE_UNKNOWN :
					  ONSIDE_BAD,
					  psprintf("%d of %d places are taken, %s of them by this database",
							   taken, onside_max_databases,
							   onside_slot_find(MyDatabaseId) != NULL ? "one" : "none"),
					  taken < onside_max_databases ?
					  "The launcher has not got to this database yet; ask again in a minute." :
					  psprintf("ALTER SYSTEM SET onside_attribution.max_databases = %d; then restart the server.",
							   onside_max_databases * 2));
}

/*
 * Has the server had a background worker for the launcher that asked for it?
 */
static void
check_worker_slots(OnsideDoctor *doctor)
{
	bool		refused = doctor->worker_pid == NULL &&
		doctor->reason != NULL &&
		strstr(doctor->reason, "no free background worker") != NULL;

	onside_doctor_row(doctor, "max_worker_processes",
					  refused ? ONSIDE_BAD : ONSIDE_GOOD,
					  psprintf("%d background workers can run, %s; the launcher and each database that sends need one",
							   max_worker_processes, refused ?
							   "and none was free for this database" :
							   "and this database was not refused one"),
					  psprintf("ALTER SYSTEM SET max_worker_processes = %d; then restart the server.",
							   max_worker_processes +
							   onside_max_databases + 1));
}

#define CRASH_HINT \
	"The server's log says what happened (look for \"was terminated by signal\"), and a core file where: please report it." \
	" Signal 9 often comes from the kernel, which says \"Out of memory\" in its own log." \
	" When the cause is gone: SELECT onside_attribution.resume();"

/*
 * Is the process there that sends?  If it is not, an earlier check often says
 * why (first_bad); otherwise "state_reason" of status does.
 */
static void
check_worker(OnsideDoctor *doctor)
{
	const char *reason = doctor->reason != NULL ? doctor->reason : "";
	bool		crashed = doctor->may_run &&
		onside_crash_guard_reason() != NULL;

	/*
	 * It is there, and cannot work.  What is configured has rows of its own.
	 */
	bool		stuck = doctor->state != NULL &&
		strcmp(doctor->state, "misconfigured") != 0 &&
		strncmp(reason, "could not ", strlen("could not ")) == 0;

	/* What is in the tables may be what crashes who reads it. */
	doctor->tables_known &= !crashed;

	if (doctor->state == NULL)
		onside_doctor_row(doctor, "worker", ONSIDE_UNKNOWN,
						  "there is none that could be asked", NULL);
	else if (doctor->worker_pid != NULL)
		onside_doctor_row(doctor, "worker",
						  stuck ? ONSIDE_BAD : ONSIDE_GOOD,
						  psprintf("process %s, state %s%s%s", doctor->worker_pid,
								   doctor->state, stuck ? ": " : "",
								   stuck ? reason : ""),
						  "Remove what is in its way, a lock, a full disk, or a change to its tables (see the check tables); it tries again by itself, every minute or more often.");
	else if (!doctor->may_run)	/* preload or primary says why */
		onside_doctor_row(doctor, "worker", ONSIDE_UNKNOWN, reason, NULL);
	else
		onside_doctor_row(doctor, "worker", ONSIDE_BAD, reason,
						  crashed ? CRASH_HINT :
						  doctor->first_bad != NULL ?
						  psprintf("Follow the hint of the check %s.",
								   doctor->first_bad) :
						  "If it does not come up within a minute, the server's log says why: look for \"onside_attribution worker\".");
}

/* ----------
 * Settings
 * ----------
 */

/*
 * Were lines of the configuration files refused, if the caller may see them?
 * Has this session values that the worker has not?  Notes the database's
 * values for onside_doctor_set_command().
 */
static void
look_at_database_settings(OnsideDoctor *doctor)
{
	char	   *errors = NULL;
	char	   *own;
	char	   *of_database;

	if (onside_doctor_query(MAY_SEE_FILES) > 0)
	{
		onside_doctor_query("SELECT pg_catalog.string_agg(pg_catalog.format("
							"'%s in line %s of %s: %s', name, sourceline, sourcefile, error), '; ')"
							" FROM pg_catalog.pg_file_settings"
							" WHERE pg_catalog.starts_with(name, 'onside_attribution.') AND error IS NOT NULL");
		errors = onside_doctor_value(0, 1);
	}

	/* Values of this session, which the worker lacks; and the database's. */
	onside_doctor_query("SELECT pg_catalog.string_agg(name, ', ') FILTER (WHERE source"
						"  IN ('session', 'user', 'database user', 'client', 'interactive')),"
						" pg_catalog.string_agg(name, ', ') FILTER (WHERE source = 'database')"
						" FROM pg_catalog.pg_settings"
						" WHERE pg_catalog.starts_with(name, 'onside_attribution.')");
	own = onside_doctor_value(0, 1);
	of_database = onside_doctor_value(0, 2);
	if (of_database != NULL)
		doctor->overridden = psprintf("%s,", of_database);

	/* What is refused counts most, then what makes this session differ. */
	if (errors != NULL)
		onside_doctor_row(doctor, "settings", ONSIDE_BAD,
						  psprintf("not in effect: %s", errors),
						  "Correct these lines, then SELECT pg_reload_conf(); if it is max_databases, restart the server.");
	else if (own != NULL)
		onside_doctor_row(doctor, "settings", ONSIDE_UNKNOWN,
						  psprintf("this session has its own values, and the worker others: %s",
								   own),
						  psprintf("RESET %s; or call doctor() in a session of another role.",
								   own));
	else
		onside_doctor_row(doctor, "settings", ONSIDE_GOOD,
						  of_database == NULL ?
						  "those of the server; this database has none of its own" :
						  psprintf("this database has its own: %s", of_database),
						  NULL);
}

/* Is sending enabled?  By the worker's value, if there is a worker. */
static void
check_enabled(OnsideDoctor *doctor)
{
	bool		enabled = doctor->worker_pid != NULL ?
		strcmp(doctor->state, "disabled") != 0 : onside_enabled;

	onside_doctor_judge(doctor, "enabled", enabled ? NULL :
						"onside_attribution.enabled is off: events are recorded, and not sent",
						"onside_attribution.enabled is on",
						onside_doctor_set_command(doctor, "enabled", "on"));
}

/* Is sending paused?  pause() and resume() write that into a table. */
static void
look_at_pause(OnsideDoctor *doctor)
{
	char	   *reason = NULL;
	const char *problem;
	bool		paused;

	/*
	 * A row that is missing, or that somebody else has written, says nothing.
	 */
	(void) onside_doctor_table("control");
	paused = onside_control_paused(&reason, &problem);
	if (problem != NULL)
		onside_doctor_row(doctor, "paused", ONSIDE_UNKNOWN,
						  psprintf("the table control cannot be believed: %s. The worker makes it anew, as not paused",
								   problem), NULL);
	else
		onside_doctor_judge(doctor, "paused", !paused ? NULL :
							psprintf("sending is paused%s%s",
									 reason != NULL ? ": " : "",
									 reason != NULL ? reason : ""),
							"sending is not paused",
							"SELECT onside_attribution.resume();");
}

/* ----------
 * All of them
 * ----------
 */

/* A column of what worker_status() returned, as text; NULL for NULL. */
static char *
status_value(HeapTuple tuple, TupleDesc tupdesc, const char *column)
{
	return SPI_getvalue(tuple, tupdesc, SPI_fnumber(tupdesc, column));
}

/* Likewise a time; DT_NOBEGIN for NULL. */
static TimestampTz
status_time(HeapTuple tuple, TupleDesc tupdesc, const char *column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(tuple, tupdesc,
									  SPI_fnumber(tupdesc, column), &isnull);

	return isnull ? DT_NOBEGIN : DatumGetTimestampTz(value);
}

/* Has the oldest pending event waited for more than five minutes? */
static bool
is_old(HeapTuple tuple, TupleDesc tupdesc)
{
	bool		isnull;
	Datum		value = SPI_getbinval(tuple, tupdesc,
									  SPI_fnumber(tupdesc, "oldest_pending_age"),
									  &isnull);
	Interval   *age = DatumGetIntervalP(value);

	return !isnull && (age->month > 0 || age->day > 0 ||
					   age->time > 5 * USECS_PER_MINUTE);
}

/*
 * Asks what the view status shows.  Calls the view's function directly, since
 * the caller may have no privilege on the view.  The function waits for no
 * lock, either.
 */
static void
ask_worker(OnsideDoctor *doctor)
{
	Oid			function = LookupFuncName(list_make2(makeString(ONSIDE_SCHEMA),
													 makeString("worker_status")),
										  0, NULL, false);
	HeapTupleData tuple = {0};
	TupleDesc	tupdesc;

	/* The result is a row, whose type says where the columns are. */
	tuple.t_data = DatumGetHeapTupleHeader(OidFunctionCall0(function));
	tuple.t_len = HeapTupleHeaderGetDatumLength(tuple.t_data);
	tupdesc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(tuple.t_data),
									 HeapTupleHeaderGetTypMod(tuple.t_data));

	/* For the checks; most of it is only printed, so it is kept as text. */
	doctor->worker_pid = status_value(&tuple, tupdesc, "worker_pid");
	doctor->state = status_value(&tuple, tupdesc, "state");
	doctor->reason = status_value(&tuple, tupdesc, "state_reason");
	doctor->pending = status_value(&tuple, tupdesc, "pending");
	doctor->oldest_age = status_value(&tuple, tupdesc, "oldest_pending_age");
	doctor->backlog_is_old = is_old(&tuple, tupdesc);
	doctor->last_error = status_value(&tuple, tupdesc, "last_error");
	doctor->last_error_at = status_value(&tuple, tupdesc, "last_error_at");
	doctor->last_success_at = status_value(&tuple, tupdesc, "last_success_at");
	doctor->last_was_error = status_time(&tuple, tupdesc, "last_error_at") >
		status_time(&tuple, tupdesc, "last_success_at");
	doctor->next_attempt_at = status_value(&tuple, tupdesc, "next_attempt_at");
	ReleaseTupleDesc(tupdesc);
}

/* doctor(): every check, in the order of an event's way. */
Datum
onside_doctor(PG_FUNCTION_ARGS)
{
	OnsideDoctor doctor = {0};

	InitMaterializedSRF(fcinfo, 0);
	doctor.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	doctor.database = quote_identifier(get_database_name(MyDatabaseId));

	/* Processes.  What ask_worker() learns is for all checks after it. */
	onside_doctor_look(&doctor, "preload", look_at_preload);
	onside_doctor_look(&doctor, "version", look_at_object_version);
	onside_doctor_look(&doctor, "tables", look_at_tables);
	check_recovery(&doctor);
	doctor.may_run = onside_shmem_available() && !doctor.standby;
	onside_doctor_look(&doctor, "status", ask_worker);
	check_launcher(&doctor);
	check_databases(&doctor);
	check_worker_slots(&doctor);
	check_worker(&doctor);

	/* Settings and the endpoint; then what becomes of events. */
	onside_doctor_look(&doctor, "settings", look_at_database_settings);
	check_enabled(&doctor);
	onside_doctor_look_at_tables(&doctor, "paused", look_at_pause);
	onside_doctor_endpoint(&doctor);
	onside_doctor_events(&doctor);
	onside_doctor_look(&doctor, "subscriptions", onside_doctor_subscriptions);
	return (Datum) 0;
}
