/*-------------------------------------------------------------------------
 *
 * doctor.c
 *		doctor(): everything to look at when nothing arrives.
 *
 * One row for each check, in the order in which an event meets what is checked:
 * the processes, the settings, the endpoint, what is waiting, what was
 * recorded.  ok is NULL where something cannot be known, most often because an
 * earlier check has failed; a row that is not ok has a hint that can be
 * followed as it stands.
 *
 * It runs in the caller's backend and not in the worker, which may be what is
 * missing.  It changes nothing, sends no event, waits for no lock and keeps
 * none, and the only host that it connects to is that of the setting endpoint
 * (or proxy), which the caller cannot change unless he may decide where events
 * go.
 *
 * EXECUTE is the privilege.  doctor() has the caller's rights and no others:
 * catalogs are for all to read, in a search_path of pg_catalog alone, so that
 * no function or operator of anybody's can come in between.  Our own tables,
 * on which the caller needs no privilege, are read in C, which checks none; of
 * them nothing is shown but counts, sizes, times and the reason of a pause.
 * Of settings that are for superusers alone, what is wrong with them and the
 * name of a file is shown.
 *
 * How tables and catalogs are looked at: doctor_look.c.  The checks behind the
 * endpoint: doctor_events.c; where events come from by replication:
 * subscriptions.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/htup_details.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/value.h"
#include "parser/parse_func.h"
#include "storage/fd.h"
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
#include "send/address.h"
#include "send/credentials.h"
#include "send/http.h"
#include "settings.h"
#include "version.h"

PG_FUNCTION_INFO_V1(onside_doctor);

/* Longest that the endpoint is tried; ms. */
#define PROBE_TIMEOUT	5000

#define RELOAD			"; SELECT pg_reload_conf();"

/*
 * "ALTER SYSTEM SET name = value"; or for the database, if that overrides it.
 * The credentials are always the database's, so that its copies have none.
 */
static char *
set_command(OnsideDoctor *doctor, const char *name, const char *value)
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

/* ----------
 * Processes
 * ----------
 */

/* May the caller see what configuration files hold? */
#define MAY_SEE_FILES \
	"SELECT 1 WHERE pg_catalog.has_table_privilege('pg_catalog.pg_file_settings', 'SELECT')" \
	" AND pg_catalog.has_function_privilege('pg_catalog.pg_show_all_file_settings()', 'EXECUTE')"

/* Without it there is no launcher, and nothing is sent. */
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

	/* Perhaps somebody has seen to it, and only the restart is missing. */
	if (onside_doctor_query(MAY_SEE_FILES) > 0)
		listed = onside_doctor_query("SELECT FROM (SELECT setting FROM pg_catalog.pg_file_settings"
									 " WHERE name = 'shared_preload_libraries'"
									 " ORDER BY seqno DESC LIMIT 1) last"
									 " WHERE setting ~ 'onside_attribution'") > 0;
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

/* May our tables be read? */
static void
look_at_version(OnsideDoctor *doctor)
{
	char	   *problem = onside_version_problem();

	doctor->tables_known = problem == NULL;
	if (problem == NULL)
		onside_doctor_row(doctor, "version", ONSIDE_GOOD,
						  "library and objects are version " ONSIDE_SQL_VERSION,
						  NULL);
	else
		onside_doctor_row(doctor, "version", ONSIDE_BAD, problem,
						  "Install the package of the newer version if it is not, and restart the server; then ALTER EXTENSION onside_attribution UPDATE;");
}

/*
 * Has somebody altered one of our tables, or locked it, so that nobody can read
 * it?
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

	if (problems != NULL)
	{
		doctor->tables_known &= usable;
		onside_doctor_row(doctor, "tables", ONSIDE_BAD, problems,
						  "The extension writes and reads these tables directly, without triggers, rules and constraints. Undo these changes with ALTER TABLE or DROP; columns that can be null and have no default, and indexes on columns that are not unique, may stay.");
		return;
	}
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
	onside_doctor_row(doctor, "tables", detail.len == 0 ? ONSIDE_GOOD : ONSIDE_BAD,
					  detail.len == 0 ? "they are as the extension needs them, and none is locked" : detail.data,
					  hint != NULL ? hint :
					  "Look for it in pg_locks, and have that transaction end.");
}

/* Events are sent by the primary. */
static void
check_recovery(OnsideDoctor *doctor)
{
	doctor->standby = RecoveryInProgress();
	if (doctor->standby)
		onside_doctor_row(doctor, "primary", ONSIDE_BAD,
						  "this server is a standby: the primary sends, and this one does when it is promoted",
						  "Call doctor() on the primary. If this server is to take over: SELECT pg_promote();");
	else
		onside_doctor_row(doctor, "primary", ONSIDE_GOOD,
						  "this server is not a standby", NULL);
}

/* The process that starts the workers. */
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
	for (int i = 0; i < onside_max_databases; i++)
		if (OidIsValid(onside_slot_database(onside_slot_get(i))))
			taken++;
	onside_doctor_row(doctor, "max_databases",
					  onside_slot_find(MyDatabaseId) != NULL ? ONSIDE_GOOD :
					  taken < onside_max_databases ? ONSIDE_UNKNOWN : ONSIDE_BAD,
					  psprintf("%d of %d places are taken, %s of them by this database",
							   taken, onside_max_databases,
							   onside_slot_find(MyDatabaseId) != NULL ? "one" : "none"),
					  taken < onside_max_databases ?
					  "The launcher has not got to this database yet; ask again in a minute." :
					  psprintf("ALTER SYSTEM SET onside_attribution.max_databases = %d; then restart the server.",
							   onside_max_databases * 2));
}

/* What the server said when the launcher asked it for a worker. */
static void
check_worker_slots(OnsideDoctor *doctor)
{
	bool		refused = doctor->worker_pid == NULL && doctor->reason != NULL &&
		strstr(doctor->reason, "no free background worker") != NULL;

	onside_doctor_row(doctor, "max_worker_processes",
					  refused ? ONSIDE_BAD : ONSIDE_GOOD,
					  psprintf("%d background workers can run, %s; the launcher and each database that sends need one",
							   max_worker_processes, refused ?
							   "and none was free for this database" :
							   "and this database was not refused one"),
					  psprintf("ALTER SYSTEM SET max_worker_processes = %d; then restart the server.",
							   max_worker_processes + onside_max_databases + 1));
}

#define CRASH_HINT \
	"The server's log says what happened (look for \"was terminated by signal\"), and a core file where: please report it." \
	" Signal 9 often comes from the kernel, which says \"Out of memory\" in its own log." \
	" When the cause is gone: SELECT onside_attribution.resume();"

/* The process that sends; a failure above says why there is none. */
static void
check_worker(OnsideDoctor *doctor)
{
	const char *reason = doctor->reason != NULL ? doctor->reason : "";
	bool		crashed = doctor->may_run && onside_crash_guard_reason() != NULL;

	/* What is configured has rows of its own. */
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
	else if (!doctor->may_run)
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

/* The names of settings that have another source than the server's. */
#define NAMES_FROM(sources) \
	"SELECT pg_catalog.string_agg(name, ', ') FROM pg_catalog.pg_settings" \
	" WHERE pg_catalog.starts_with(name, 'onside_attribution.') AND source IN (" sources ")"

/*
 * Lines that were refused, if the caller may see them; values that this
 * session has and the worker has not; and those of the database, of which
 * set_command() has to know.
 */
static void
look_at_settings(OnsideDoctor *doctor)
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
	onside_doctor_query(NAMES_FROM("'session', 'user', 'database user', 'client', 'interactive'"));
	own = onside_doctor_value(0, 1);
	onside_doctor_query(NAMES_FROM("'database'"));
	of_database = onside_doctor_value(0, 1);
	if (of_database != NULL)
		doctor->overridden = psprintf("%s,", of_database);

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

/* The worker's own value, if there is one that tells it. */
static void
check_enabled(OnsideDoctor *doctor)
{
	bool		enabled = doctor->worker_pid != NULL ?
		strcmp(doctor->state, "disabled") != 0 : onside_enabled;

	onside_doctor_row(doctor, "enabled", enabled ? ONSIDE_GOOD : ONSIDE_BAD,
					  enabled ? "onside_attribution.enabled is on" :
					  "onside_attribution.enabled is off: events are recorded, and not sent",
					  set_command(doctor, "enabled", "on"));
}

/* pause() and resume() write it. */
static void
look_at_control(OnsideDoctor *doctor)
{
	char	   *reason = NULL;
	const char *problem;
	bool		paused;

	(void) onside_doctor_table("control");
	paused = onside_control_paused(&reason, &problem);
	if (problem != NULL)
		onside_doctor_row(doctor, "paused", ONSIDE_UNKNOWN,
						  psprintf("the table control cannot be believed: %s. The worker makes it anew, as not paused",
								   problem), NULL);
	else if (!paused)
		onside_doctor_row(doctor, "paused", ONSIDE_GOOD,
						  "sending is not paused", NULL);
	else
		onside_doctor_row(doctor, "paused", ONSIDE_BAD,
						  psprintf("sending is paused%s%s",
								   reason != NULL ? ": " : "",
								   reason != NULL ? reason : ""),
						  "SELECT onside_attribution.resume();");
}

/* Reads the file as the worker would; what is in it is not shown. */
static void
check_credentials(OnsideDoctor *doctor, const char *setting, const char *path)
{
	char	   *problem = NULL;
	char	   *credentials = onside_credentials_read(setting, path, &problem);
	struct passwd *user = getpwuid(geteuid());
	char	   *hint;

	if (credentials != NULL)
	{
		onside_credentials_free(credentials);
		onside_doctor_row(doctor, setting, ONSIDE_GOOD,
						  psprintf("\"%s\" has one line user:password and is closed to others",
								   path), NULL);
		return;
	}
	if (path[0] == '\0' || strcmp(path, ONSIDE_REFUSED_VALUE) == 0)
		hint = psprintf("Write one line user:password into a file that only the server's user may read, then %s and connect again.",
						set_command(doctor, setting, "'/path/of/the/file'"));
	else
		hint = psprintf("Make it a file of one line user:password; as root: chown %s '%s' && chmod 600 '%s'; then SELECT pg_reload_conf();",
						user != NULL ? user->pw_name : psprintf("%d", (int) geteuid()),
						path, path);
	onside_doctor_row(doctor, setting, ONSIDE_BAD, problem, hint);
}

/* libcurl reads it; whether it holds certificates the check tls finds. */
static void
check_ca_file(OnsideDoctor *doctor)
{
	struct stat st;
	const char *problem = NULL;
	int			fd;

	if (onside_ca_file[0] == '\0')
	{
		onside_doctor_row(doctor, "ca_file", ONSIDE_GOOD,
						  "not set: the system's certificate authorities are trusted",
						  NULL);
		return;
	}
	fd = OpenTransientFile(onside_ca_file, O_RDONLY | O_NONBLOCK | PG_BINARY);
	if (fd < 0)
		problem = psprintf("could not open ca_file \"%s\": %m",
						   onside_ca_file);
	else if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
		problem = psprintf("ca_file \"%s\" is not a regular file",
						   onside_ca_file);
	if (problem == NULL)
		onside_doctor_row(doctor, "ca_file", ONSIDE_GOOD,
						  psprintf("\"%s\" can be read", onside_ca_file),
						  NULL);
	else
		onside_doctor_row(doctor, "ca_file", ONSIDE_BAD, problem,
						  psprintf("Make it a file that the server's user can read. To trust the system's authorities instead: %s",
								   set_command(doctor, "ca_file", "''")));
	if (fd >= 0)
		CloseTransientFile(fd);
}

/* ----------
 * The endpoint
 * ----------
 */

/* May anything be sent there? */
static bool
check_endpoint(OnsideDoctor *doctor)
{
	const char *problem = onside_address_endpoint_problem(onside_endpoint);

	if (problem == NULL)
		onside_doctor_row(doctor, "endpoint", ONSIDE_GOOD,
						  pnstrdup(onside_endpoint,
								   strcspn(onside_endpoint, "?#")), NULL);
	else
		onside_doctor_row(doctor, "endpoint", ONSIDE_BAD,
						  psprintf("onside_attribution.endpoint cannot be used: %s",
								   problem),
						  set_command(doctor, "endpoint",
									  "'" ONSIDE_API_URL "'"));
	return problem == NULL;
}

/* May anything be sent through it? */
static bool
check_proxy(OnsideDoctor *doctor)
{
	const char *problem = onside_address_proxy_problem(onside_proxy);

	/* Its address is for superusers alone. */
	if (problem == NULL)
		onside_doctor_row(doctor, "proxy", ONSIDE_GOOD,
						  onside_proxy[0] == '\0' ?
						  "not set: connections are made directly" :
						  "set: connections go through it", NULL);
	else
		onside_doctor_row(doctor, "proxy", ONSIDE_BAD,
						  psprintf("onside_attribution.proxy cannot be used: %s",
								   problem),
						  set_command(doctor, "proxy",
									  "'http://proxy.example:3128'"));
	return problem == NULL;
}

static const char *const probe_checks[] = {
	"name_resolution", "connection", "tls",
};

#define NOT_TRIED	"not tried, since an earlier check has failed"

/* One of the three rows about a connection. */
static void
probe_row(OnsideDoctor *doctor, const char *check, const OnsideProbe *probe,
		  OnsideProbeStep step, const char *good, const char *hint)
{
	if (probe->reached >= step)
		onside_doctor_row(doctor, check, ONSIDE_GOOD, good, NULL);
	else if (probe->reached == step - 1)
		onside_doctor_row(doctor, check, ONSIDE_BAD, probe->error, hint);
	else
		onside_doctor_row(doctor, check, ONSIDE_UNKNOWN, NOT_TRIED, NULL);
}

/* How far the connection came, a row for each step. */
static void
probe_rows(OnsideDoctor *doctor, const OnsideProbe *probe)
{
	bool		https = pg_strncasecmp(onside_endpoint, "https:", 6) == 0;
	const char *via = probe->through_proxy ? " (the proxy)" : "";

	probe_row(doctor, probe_checks[0], probe, ONSIDE_PROBE_RESOLVED,
			  psprintf("the host of the %s has an address",
					   probe->through_proxy ? "proxy" : "endpoint"),
			  "On the server's machine, as the server's user: getent hosts HOST. Correct /etc/resolv.conf, or the host in onside_attribution.endpoint or onside_attribution.proxy.");
	probe_row(doctor, probe_checks[1], probe, ONSIDE_PROBE_CONNECTED,
			  psprintf("connected to %s%s within %d ms", probe->address, via,
					   probe->duration),
			  "Let the server's machine connect to that host and port: check firewall and routes. If connections have to go through a proxy, set onside_attribution.proxy.");
	probe_row(doctor, probe_checks[2], probe, ONSIDE_PROBE_TRUSTED,
			  https ? "the certificate is valid for this host" :
			  "not used: the endpoint is on this machine",
			  probe->bad_ca_file ?
			  "Put PEM certificates into onside_attribution.ca_file, then SELECT pg_reload_conf();" :
			  "Check that onside_attribution.endpoint has the right host name. If the certificate is signed by an authority of your own, put that authority's certificate into a file, set onside_attribution.ca_file to it, then SELECT pg_reload_conf();");
}

/* The proxy may want to know who we are; without that, nothing is learnt. */
static void
check_proxy_credentials(OnsideDoctor *doctor)
{
	if (onside_proxy[0] == '\0' || onside_proxy_credentials_file[0] == '\0')
		onside_doctor_row(doctor, "proxy_credentials_file", ONSIDE_GOOD,
						  onside_proxy[0] == '\0' ? "not needed" :
						  "not set: the proxy is told no user", NULL);
	else
		check_credentials(doctor, "proxy_credentials_file",
						  onside_proxy_credentials_file);
}

/* Makes the connection that the worker would make. */
static void
check_connection(OnsideDoctor *doctor, bool addresses_ok)
{
	OnsideProbe probe = {0};
	OnsideHttpConfig config = {
		.url = onside_endpoint,
		.ca_file = onside_ca_file,
		.proxy = onside_proxy,
	};

	if (!addresses_ok)
	{
		for (int i = 0; i < (int) lengthof(probe_checks); i++)
			onside_doctor_row(doctor, probe_checks[i], ONSIDE_UNKNOWN,
							  NOT_TRIED, NULL);
		return;
	}
	if (onside_proxy[0] != '\0' && onside_proxy_credentials_file[0] != '\0')
	{
		char	   *problem;

		config.proxy_credentials =
			onside_credentials_read("proxy_credentials_file",
									onside_proxy_credentials_file, &problem);
	}
	onside_http_probe(&config, Min(onside_connect_timeout, PROBE_TIMEOUT),
					  &probe);
	onside_credentials_free(unconstify(char *, config.proxy_credentials));
	probe_rows(doctor, &probe);
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

static TimestampTz
status_time(HeapTuple tuple, TupleDesc tupdesc, const char *column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(tuple, tupdesc,
									  SPI_fnumber(tupdesc, column), &isnull);

	return isnull ? DT_NOBEGIN : DatumGetTimestampTz(value);
}

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
 * What the view status says.  The function beneath it is called, not the view,
 * on which the caller may have no privilege.  It waits for no lock, either.
 */
static void
ask_worker(OnsideDoctor *doctor)
{
	Oid			function = LookupFuncName(list_make2(makeString(ONSIDE_SCHEMA),
													 makeString("worker_status")),
										  0, NULL, false);
	HeapTupleData tuple = {0};
	TupleDesc	tupdesc;

	tuple.t_data = DatumGetHeapTupleHeader(OidFunctionCall0(function));
	tuple.t_len = HeapTupleHeaderGetDatumLength(tuple.t_data);
	tupdesc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(tuple.t_data),
									 HeapTupleHeaderGetTypMod(tuple.t_data));

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

/* doctor(): every check, in the order in which an event meets it. */
Datum
onside_doctor(PG_FUNCTION_ARGS)
{
	OnsideDoctor doctor = {0};
	bool		addresses_ok;

	InitMaterializedSRF(fcinfo, 0);
	doctor.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	doctor.database = quote_identifier(get_database_name(MyDatabaseId));

	onside_doctor_look(&doctor, "preload", look_at_preload);
	onside_doctor_look(&doctor, "version", look_at_version);
	onside_doctor_look(&doctor, "tables", look_at_tables);
	check_recovery(&doctor);
	doctor.may_run = onside_shmem_available() && !doctor.standby;
	onside_doctor_look(&doctor, "status", ask_worker);
	check_launcher(&doctor);
	check_databases(&doctor);
	check_worker_slots(&doctor);
	check_worker(&doctor);

	onside_doctor_look(&doctor, "settings", look_at_settings);
	check_enabled(&doctor);
	if (doctor.tables_known)
		onside_doctor_look(&doctor, "paused", look_at_control);
	else
		onside_doctor_row(&doctor, "paused", ONSIDE_UNKNOWN,
						  "see the checks version and tables", NULL);
	check_credentials(&doctor, "credentials_file", onside_credentials_file);
	check_ca_file(&doctor);
	addresses_ok = check_endpoint(&doctor);
	addresses_ok &= check_proxy(&doctor);
	check_proxy_credentials(&doctor);
	check_connection(&doctor, addresses_ok);
	onside_doctor_events(&doctor);
	onside_doctor_look(&doctor, "subscriptions", onside_doctor_subscriptions);
	return (Datum) 0;
}
