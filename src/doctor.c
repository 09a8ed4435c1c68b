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
 * missing.  It changes nothing, sends no event, and takes no lock to the end of
 * the caller's transaction that would keep the outbox from being emptied.  The
 * function is SECURITY DEFINER: what it reads is the owner's, EXECUTE is the
 * privilege.  So nothing here may show a credential or a payload, and the only
 * host that it connects to is that of the setting endpoint (or proxy), which
 * the caller cannot change unless he may decide where events go.
 *
 * What the worker has found out itself comes from worker_status(); for the
 * checks behind the endpoint see doctor_events.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xlog.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/tuplestore.h"

#include "address.h"
#include "credentials.h"
#include "delivery.h"
#include "doctor.h"
#include "http_probe.h"
#include "settings.h"
#include "shmem.h"
#include "version.h"

PG_FUNCTION_INFO_V1(onside_doctor);

/* Longest that the endpoint is tried; ms. */
#define PROBE_TIMEOUT	5000

#define RELOAD			"; SELECT pg_reload_conf();"

/* ----------
 * Rows
 * ----------
 */

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

	if (ok == ONSIDE_BAD && doctor->first_bad == NULL)
		doctor->first_bad = check;
}

void
onside_doctor_query(const char *query)
{
	int			rc = SPI_execute(query, true, 0);

	if (rc != SPI_OK_SELECT)
		elog(ERROR, "doctor: %s", SPI_result_code_string(rc));
}

char *
onside_doctor_value(int row, int column)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						column);
}

/* "ALTER SYSTEM SET name = value", or for the database that overrides it. */
static char *
set_command(OnsideDoctor *doctor, const char *name, const char *value)
{
	if (strstr(doctor->overridden, psprintf(" %s ", name)) != NULL)
		return psprintf("ALTER DATABASE %s SET onside_attribution.%s = %s" RELOAD,
						doctor->database, name, value);
	return psprintf("ALTER SYSTEM SET onside_attribution.%s = %s" RELOAD,
					name, value);
}

/* ----------
 * Processes
 * ----------
 */

static void
check_preload(OnsideDoctor *doctor)
{
	bool		listed;
	char	   *libraries;

	if (onside_shmem_available())
	{
		onside_doctor_row(doctor, "preload", ONSIDE_GOOD,
						  "the library is preloaded", NULL);
		return;
	}

	/* Perhaps somebody has seen to it, and only the restart is missing. */
	onside_doctor_query("SELECT FROM (SELECT setting FROM pg_catalog.pg_file_settings"
						" WHERE name = 'shared_preload_libraries'"
						" ORDER BY seqno DESC LIMIT 1) last"
						" WHERE setting ~ 'onside_attribution'");
	listed = SPI_processed > 0;
	libraries = GetConfigOptionByName("shared_preload_libraries", NULL, false);
	onside_doctor_row(doctor, "preload", ONSIDE_BAD, listed ?
					  "shared_preload_libraries has the library, but the server was not restarted since" :
					  "the library is not in shared_preload_libraries: events are recorded, and nothing sends them",
					  listed ? "Restart the server." :
					  psprintf("Put this line into postgresql.conf and restart the server: shared_preload_libraries = '%s%sonside_attribution'",
							   libraries, libraries[0] != '\0' ? ", " : ""));
}

static void
check_version(OnsideDoctor *doctor)
{
	char	   *problem;

	switch (onside_version_match(&problem))
	{
		case ONSIDE_VERSION_SAME:
			doctor->tables_known = true;
			onside_doctor_row(doctor, "version", ONSIDE_GOOD,
							  "library and objects are version " ONSIDE_SQL_VERSION,
							  NULL);
			break;
		case ONSIDE_SQL_OLDER:
			onside_doctor_row(doctor, "version", ONSIDE_BAD, problem,
							  "ALTER EXTENSION onside_attribution UPDATE;");
			break;
		case ONSIDE_SQL_NEWER:
			onside_doctor_row(doctor, "version", ONSIDE_BAD, problem,
							  "Install the package of that version if it is not, and restart the server.");
			break;
	}
}

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
		if (OidIsValid(onside_slot_get(i)->database))
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

/* Processes that do not take one of max_worker_processes. */
#define OTHER_PROCESSES \
	"'archiver','autovacuum launcher','autovacuum worker','background writer'," \
	"'checkpointer','client backend','dead-end client backend','io worker'," \
	"'slotsync worker','standalone backend','startup','walreceiver'," \
	"'walsender','walsummarizer','walwriter'"

static void
check_worker_slots(OnsideDoctor *doctor)
{
	const char *refused = doctor->reason != NULL ?
		strstr(doctor->reason, "no free background worker") : NULL;
	int			used;

	onside_doctor_query("SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity"
						" WHERE backend_type NOT IN (" OTHER_PROCESSES ")");
	used = atoi(onside_doctor_value(0, 1));
	onside_doctor_row(doctor, "max_worker_processes",
					  doctor->worker_pid == NULL &&
					  (refused != NULL || used >= max_worker_processes) ?
					  ONSIDE_BAD : ONSIDE_GOOD,
					  psprintf("%d background workers run, of at most %d; each database that sends needs one, and the launcher",
							   used, max_worker_processes),
					  psprintf("ALTER SYSTEM SET max_worker_processes = %d; then restart the server.",
							   max_worker_processes + onside_max_databases + 1));
}

static void
check_worker(OnsideDoctor *doctor)
{
	const char *reason = doctor->reason != NULL ? doctor->reason : "";

	if (doctor->worker_pid != NULL)
		onside_doctor_row(doctor, "worker", ONSIDE_GOOD,
						  psprintf("process %s, state %s", doctor->worker_pid,
								   doctor->state), NULL);
	else if (!doctor->may_run)
		onside_doctor_row(doctor, "worker", ONSIDE_UNKNOWN, reason, NULL);
	else
		onside_doctor_row(doctor, "worker", ONSIDE_BAD, reason,
						  doctor->first_bad != NULL ?
						  psprintf("Follow the hint of the check %s.",
								   doctor->first_bad) :
						  "If it does not come up within a minute, the server's log says why: look for \"onside_attribution worker\".");
}

/* ----------
 * Settings
 * ----------
 */

/* Values that the worker has not, or that nobody has. */
static void
check_settings(OnsideDoctor *doctor)
{
	char	   *errors;
	char	   *own;
	char	   *for_database;
	char	   *outdated;

	/* What ALTER DATABASE has set reaches new sessions. */
	onside_doctor_query("WITH mine AS (SELECT c, pg_catalog.split_part(c, '=', 1) AS name,"
						" pg_catalog.substr(c, pg_catalog.strpos(c, '=') + 1) AS value"
						" FROM pg_catalog.pg_db_role_setting, pg_catalog.unnest(setconfig) c,"
						" pg_catalog.pg_database d"
						" WHERE setdatabase = d.oid AND setrole = 0"
						" AND datname = pg_catalog.current_database()"
						" AND c LIKE 'onside\\_attribution.%'),"
						" here AS (SELECT name, vartype, source, setting, source IN"
						"  ('session', 'user', 'database user', 'client', 'interactive') AS own"
						" FROM pg_catalog.pg_settings WHERE name LIKE 'onside\\_attribution.%')"
						" SELECT pg_catalog.string_agg(pg_catalog.format('%s in line %s of %s: %s',"
						" name, sourceline, sourcefile, error), '; '),"
						" (SELECT pg_catalog.string_agg(name, ', ') FROM here WHERE own),"
						" (SELECT pg_catalog.string_agg(c, ', ') FROM mine),"
						" (SELECT pg_catalog.string_agg(name, ', ')"
						"  FROM here LEFT JOIN mine USING (name)"
						"  WHERE NOT own AND ((source = 'database') <> (value IS NOT NULL)"
						"   OR (vartype = 'string' AND setting <> value)))"
						" FROM pg_catalog.pg_file_settings"
						" WHERE name LIKE 'onside\\_attribution.%' AND error IS NOT NULL");
	errors = onside_doctor_value(0, 1);
	own = onside_doctor_value(0, 2);
	for_database = onside_doctor_value(0, 3);
	outdated = onside_doctor_value(0, 4);

	/* The names of these, each between spaces. */
	doctor->overridden = "";
	if (for_database != NULL)
	{
		StringInfoData names;
		char	   *next = for_database;

		initStringInfo(&names);
		while ((next = strstr(next, "onside_attribution.")) != NULL)
		{
			next += strlen("onside_attribution.");
			appendStringInfo(&names, " %.*s ", (int) strcspn(next, "="), next);
		}
		doctor->overridden = names.data;
	}

	if (errors != NULL)
		onside_doctor_row(doctor, "settings", ONSIDE_BAD,
						  psprintf("not in effect: %s", errors),
						  "Correct these lines, then SELECT pg_reload_conf(); if it is max_databases, restart the server.");
	else if (outdated != NULL)
		onside_doctor_row(doctor, "settings", ONSIDE_UNKNOWN,
						  psprintf("this session is older than what ALTER DATABASE has set, and sees other values than the worker: %s",
								   outdated),
						  "Connect again, and call doctor() there.");
	else if (own != NULL)
		onside_doctor_row(doctor, "settings", ONSIDE_UNKNOWN,
						  psprintf("this session has its own values, and the worker others: %s",
								   own),
						  psprintf("RESET %s; or call doctor() in a session of another role.",
								   own));
	else
		onside_doctor_row(doctor, "settings", ONSIDE_GOOD,
						  for_database == NULL ?
						  "those of the server; this database has none of its own" :
						  psprintf("this database has its own: %s", for_database),
						  NULL);
}

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

static void
check_paused(OnsideDoctor *doctor)
{
	char	   *reason = NULL;

	if (!doctor->tables_known)
		onside_doctor_row(doctor, "paused", ONSIDE_UNKNOWN,
						  "see the checks version and tables", NULL);
	else if (!onside_control_paused(&reason))
		onside_doctor_row(doctor, "paused", ONSIDE_GOOD,
						  "sending is not paused", NULL);
	else
		onside_doctor_row(doctor, "paused", ONSIDE_BAD,
						  psprintf("sending is paused%s%s",
								   reason != NULL ? ": " : "",
								   reason != NULL ? reason : ""),
						  "SELECT onside_attribution.resume();");
}

static void
check_credentials(OnsideDoctor *doctor)
{
	char	   *problem = NULL;
	char	   *credentials = onside_credentials_read(onside_credentials_file,
													  &problem);
	struct passwd *user = getpwuid(geteuid());
	char	   *hint;

	if (credentials != NULL)
	{
		explicit_bzero(credentials, strlen(credentials));
		pfree(credentials);
		onside_doctor_row(doctor, "credentials_file", ONSIDE_GOOD,
						  psprintf("\"%s\" has one line user:password and is closed to others",
								   onside_credentials_file), NULL);
		return;
	}
	if (onside_credentials_file[0] == '\0')
		hint = psprintf("Write one line user:password into a file that only the server's user may read, then %s",
						set_command(doctor, "credentials_file",
									"'/path/of/the/file'"));
	else
		hint = psprintf("Make it a file of one line user:password; as root: chown %s '%s' && chmod 600 '%s'; then SELECT pg_reload_conf();",
						user != NULL ? user->pw_name : psprintf("%d", (int) geteuid()),
						onside_credentials_file, onside_credentials_file);
	onside_doctor_row(doctor, "credentials_file", ONSIDE_BAD, problem, hint);
}

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

static bool
check_endpoint(OnsideDoctor *doctor)
{
	const char *problem = onside_address_endpoint_problem(onside_endpoint);

	if (problem == NULL)
		onside_doctor_row(doctor, "endpoint", ONSIDE_GOOD, onside_endpoint,
						  NULL);
	else						/* not repeated: a password may be in it */
		onside_doctor_row(doctor, "endpoint", ONSIDE_BAD,
						  psprintf("onside_attribution.endpoint cannot be used: %s",
								   problem),
						  set_command(doctor, "endpoint",
									  "'" ONSIDE_API_URL "'"));
	return problem == NULL;
}

static bool
check_proxy(OnsideDoctor *doctor)
{
	const char *problem = onside_address_proxy_problem(onside_proxy);

	/* Its address is not repeated: a password may be in it. */
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

static void
check_connection(OnsideDoctor *doctor, bool addresses_ok)
{
	OnsideProbe probe = {0};
	OnsideHttpConfig config = {
		.url = onside_endpoint,
		.ca_file = onside_ca_file,
		.proxy = onside_proxy,
	};

	if (addresses_ok)
	{
		onside_http_probe(&config, Min(onside_connect_timeout, PROBE_TIMEOUT),
						  &probe);
		probe_rows(doctor, &probe);
		return;
	}
	for (int i = 0; i < (int) lengthof(probe_checks); i++)
		onside_doctor_row(doctor, probe_checks[i], ONSIDE_UNKNOWN, NOT_TRIED,
						  NULL);
}

/* ----------
 * All of them
 * ----------
 */

/* What the worker says, or what the view status says in its place. */
static void
ask_worker(OnsideDoctor *doctor)
{
	onside_doctor_query("SELECT worker_pid, state, state_reason, pending,"
						" oldest_pending_age, oldest_pending_age > '5 minutes',"
						" last_error, last_error_at, last_success_at,"
						" last_error_at > last_success_at OR last_success_at IS NULL,"
						" next_attempt_at"
						" FROM onside_attribution.worker_status()");
	doctor->worker_pid = onside_doctor_value(0, 1);
	doctor->state = onside_doctor_value(0, 2);
	doctor->reason = onside_doctor_value(0, 3);
	doctor->pending = onside_doctor_value(0, 4);
	doctor->oldest_age = onside_doctor_value(0, 5);
	doctor->backlog_is_old = onside_doctor_value(0, 6) != NULL &&
		onside_doctor_value(0, 6)[0] == 't';
	doctor->last_error = onside_doctor_value(0, 7);
	doctor->last_error_at = onside_doctor_value(0, 8);
	doctor->last_success_at = onside_doctor_value(0, 9);
	doctor->last_was_error = onside_doctor_value(0, 10) != NULL &&
		onside_doctor_value(0, 10)[0] == 't';
	doctor->next_attempt_at = onside_doctor_value(0, 11);
	doctor->may_run = onside_shmem_available() && !doctor->standby;
}

/* doctor() */
Datum
onside_doctor(PG_FUNCTION_ARGS)
{
	OnsideDoctor doctor = {0};
	bool		addresses_ok;

	InitMaterializedSRF(fcinfo, 0);
	doctor.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	doctor.database = quote_identifier(get_database_name(MyDatabaseId));
	SPI_connect();

	check_preload(&doctor);
	check_version(&doctor);
	onside_doctor_tables(&doctor);
	check_recovery(&doctor);
	ask_worker(&doctor);
	check_launcher(&doctor);
	check_databases(&doctor);
	check_worker_slots(&doctor);
	check_worker(&doctor);

	check_settings(&doctor);
	check_enabled(&doctor);
	check_paused(&doctor);
	check_credentials(&doctor);
	check_ca_file(&doctor);
	addresses_ok = check_endpoint(&doctor);
	addresses_ok &= check_proxy(&doctor);
	check_connection(&doctor, addresses_ok);
	onside_doctor_events(&doctor);

	SPI_finish();
	return (Datum) 0;
}
