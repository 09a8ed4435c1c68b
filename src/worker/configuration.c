/*-------------------------------------------------------------------------
 *
 * configuration.c
 *		What the worker was told to do: settings, credentials, pause, DROP.
 *
 * A person can change what the worker does in four ways.
 *
 * - The configuration files: SIGHUP tells us, and we read them.
 * - ALTER DATABASE and ALTER ROLE: their settings come with the connection.  If
 *	 they have changed, the process ends, and its successor has the new ones.
 * - The credentials files: nobody tells us of a change, so we read them every
 *	 15 seconds, at a reload, and when the API does not accept them.
 * - Commands in the database: pause() and resume() change the table "control",
 *	 and the extension can be altered or dropped.  Their commits wake us.
 *
 * What needs a transaction is noted as due, and onside_configuration_act(),
 * which the worker's loop calls in each turn, does it; again and again, if it
 * fails (see txn.c).  Nothing is sent before "control" has been read.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/pg_db_role_setting.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "clock.h"
#include "compat.h"
#include "log/delivery.h"
#include "log/service.h"
#include "log/tables.h"
#include "send/address.h"
#include "send/credentials.h"
#include "settings.h"
#include "version.h"
#include "worker/configuration.h"
#include "worker/progress.h"
#include "worker/sending.h"
#include "worker/txn.h"
#include "worker/undecided.h"

/* How long requests in flight may hold up a restart for new settings; ms. */
#define RESTART_GRACE			1000

/* ----------
 * Settings
 * ----------
 */

/*
 * The settings that ALTER DATABASE and ALTER ROLE have made for this process,
 * as a text.  We only compare it with an earlier one.
 */
static char *
read_database_settings(void)
{
	StringInfoData buf;
	Relation	rel = table_open(DbRoleSettingRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0,
										  NULL);
	HeapTuple	tuple;

	/* There are few rows, and the worker reads them seldom. */
	initStringInfo(&buf);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_db_role_setting form =
			(Form_pg_db_role_setting) GETSTRUCT(tuple);
		bool		isnull;
		Datum		config = heap_getattr(tuple,
										  Anum_pg_db_role_setting_setconfig,
										  RelationGetDescr(rel), &isnull);

		/* Those of this database and role, of either, and of all. */
		if (isnull ||
			(form->setdatabase != MyDatabaseId &&
			 form->setdatabase != InvalidOid) ||
			(form->setrole != GetUserId() && form->setrole != InvalidOid))
			continue;
		appendStringInfo(&buf, "%u %u ", form->setdatabase, form->setrole);
		appendStringInfoString(&buf,
							   DatumGetCString(OidFunctionCall1(F_ARRAY_OUT,
																config)));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return MemoryContextStrdup(TopMemoryContext, buf.data);
}

static bool
text_differs(const char *a, const char *b)
{
	return a == NULL || b == NULL ? a != b : strcmp(a, b) != 0;
}

/*
 * How requests are to be made: copies of the settings, and what the
 * credentials files say.  If something is wrong, *problem says what, there are
 * no credentials, and nothing can be sent.
 */
static OnsideHttpConfig
read_http_config(char **problem)
{
	OnsideHttpConfig config = {0};
	const char *endpoint_problem =
		onside_address_endpoint_problem(onside_endpoint);
	const char *proxy_problem = onside_address_proxy_problem(onside_proxy);

	/* The proxy's credentials are read only if there is nothing wrong. */
	*problem = NULL;
	if (endpoint_problem != NULL)
		*problem = psprintf("onside_attribution.endpoint cannot be used: %s",
							endpoint_problem);
	else if (proxy_problem != NULL)
		*problem = psprintf("onside_attribution.proxy cannot be used: %s",
							proxy_problem);
	else if (onside_proxy[0] != '\0' &&
			 onside_proxy_credentials_file[0] != '\0')
		config.proxy_credentials =
			onside_credentials_read("proxy_credentials_file",
									onside_proxy_credentials_file, problem);

	/* The API's credentials come last: they say that all is well. */
	if (*problem == NULL)
		config.credentials = onside_credentials_read("credentials_file",
													 onside_credentials_file,
													 problem);
	config.url = pstrdup(onside_endpoint);
	config.ca_file = pstrdup(onside_ca_file);
	config.proxy = pstrdup(onside_proxy);
	config.connect_timeout = onside_connect_timeout;
	return config;
}

/* Frees what read_http_config() has returned; credentials are wiped. */
static void
free_http_config(OnsideHttpConfig *config)
{
	onside_credentials_free(unconstify(char *, config->credentials));
	onside_credentials_free(unconstify(char *, config->proxy_credentials));
	if (config->url == NULL)
		return;					/* there was none before the first */
	pfree(unconstify(char *, config->url));
	pfree(unconstify(char *, config->ca_file));
	pfree(unconstify(char *, config->proxy));
}

/* Do they differ in anything? */
static bool
http_differs(const OnsideHttpConfig *a, const OnsideHttpConfig *b)
{
	return text_differs(a->url, b->url) ||
		text_differs(a->credentials, b->credentials) ||
		text_differs(a->ca_file, b->ca_file) ||
		text_differs(a->proxy, b->proxy) ||
		text_differs(a->proxy_credentials, b->proxy_credentials) ||
		a->connect_timeout != b->connect_timeout;
}

/*
 * Takes over settings and credentials.  Any change ends a wait, and the next
 * request goes over a new connection.  After another endpoint or other
 * credentials, the sender also forgets what it has learned of the endpoint.
 */
void
onside_configuration_read(OnsideWorker *worker)
{
	OnsideConfiguration *configuration = &worker->configuration;
	OnsideHttpConfig old = configuration->http;
	char	   *problem;
	OnsideHttpConfig now = read_http_config(&problem);
	bool		first = old.url == NULL;
	bool		elsewhere = text_differs(now.url, old.url) ||
		text_differs(now.credentials, old.credentials);
	bool		changed = http_differs(&now, &old) ||
		configuration->was_enabled != onside_enabled;

	/* What was read lives until it is replaced. */
	Assert(CurrentMemoryContext == TopMemoryContext);
	if (configuration->problem != NULL)
		pfree(configuration->problem);
	configuration->problem = problem;

	/* http.c keeps our strings, so they must not change if it is not told. */
	if (changed)
		configuration->http = now;
	if (changed && now.credentials != NULL)
		onside_http_configure(worker->http, &now);
	configuration->has_credentials = now.credentials != NULL;
	configuration->was_enabled = onside_enabled;

	/* At the start, the wait that a predecessor has left goes on. */
	if (!first)
		onside_sending_configure(worker, changed, elsewhere);
	free_http_config(changed ? &old : &now);
}

/* Notes that this process is to end soon, for a successor with new settings. */
static void
want_restart(OnsideConfiguration *configuration)
{
	configuration->restart_wanted = true;
	configuration->restart_wanted_at = onside_clock();
}

/* Work that rests is tried at once: a reload may have removed the obstacle. */
void
onside_configuration_reload(OnsideWorker *worker)
{
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	onside_txn_hurry(worker);
	worker->configuration.settings_due = true;
	onside_http_renew(worker->http);	/* a name may lead elsewhere by now */
	onside_configuration_read(worker);
	onside_progress_request_maintenance(worker);
}

/* Body of a transaction. */
static void
fetch_settings(OnsideWorker *worker, void *arg)
{
	*(char **) arg = read_database_settings();
}

/*
 * Has ALTER DATABASE or ALTER ROLE changed our settings?  The changes come
 * with a new connection only, so a successor has to start.
 */
static void
compare_settings(OnsideWorker *worker)
{
	OnsideConfiguration *configuration = &worker->configuration;
	char	   *now;

	if (!onside_txn_run(worker, &configuration->looking, 0, fetch_settings,
						&now))
		return;
	configuration->settings_due = false;
	if (strcmp(now, configuration->database_settings) != 0)
		want_restart(configuration);
	pfree(now);
}

/* ----------
 * Pause and resume
 * ----------
 */

/* What the table "control" says. */
typedef struct Control
{
	bool		paused;
	char	   *reason;
	const char *problem;
} Control;

/*
 * Body of a transaction: reads the table.  If its row is missing or damaged,
 * writes it again: not paused.
 */
static void
fetch_control(OnsideWorker *worker, void *arg)
{
	Control    *control = arg;

	control->paused = onside_control_paused(&control->reason,
											&control->problem);
	if (control->reason != NULL)
		control->reason = MemoryContextStrdup(TopMemoryContext,
											  control->reason);
	if (control->problem != NULL)
		onside_control_set(false, NULL);
}

/* Takes over what the table says, and logs that it was written again. */
static void
take_over_control(OnsideWorker *worker)
{
	OnsideConfiguration *configuration = &worker->configuration;
	Control		control = {0};

	if (!onside_txn_run(worker, &configuration->controlling,
						ONSIDE_USES_CONTROL, fetch_control, &control))
		return;

	/* From now on we may send, if sending is not paused. */
	configuration->control_due = false;
	configuration->control_known = true;
	configuration->paused = control.paused;
	if (configuration->pause_reason != NULL)
		pfree(configuration->pause_reason);
	configuration->pause_reason = control.reason;

	if (control.problem != NULL)
		ereport(WARNING,
				(errmsg("onside_attribution: table \"%s.control\" of database \"%s\" is written anew: %s",
						ONSIDE_SCHEMA, worker->database_name, control.problem),
				 errdetail("Sending is not paused.")));
}

void
onside_configuration_check_control(OnsideWorker *worker)
{
	worker->configuration.control_due = true;
}

/* ----------
 * The extension
 * ----------
 */

/* Body of a transaction: do library and SQL objects differ? */
static void
compare_versions(OnsideWorker *worker, void *arg)
{
	*(bool *) arg = onside_version_problem() != NULL;
}

/*
 * Is the extension still there, and still of the version that we know?  If it
 * is gone, the transaction ends the process; see txn.c.
 */
static void
check_extension(OnsideWorker *worker)
{
	OnsideConfiguration *configuration = &worker->configuration;
	bool		differs;

	if (!onside_txn_run(worker, &configuration->looking, 0, compare_versions,
						&differs))
		return;
	configuration->check_due = false;

	/* Saves nothing: the tables may have another shape. */
	if (differs)
		onside_txn_leave_orderly(worker);
}

void
onside_configuration_check_extension(OnsideWorker *worker)
{
	worker->configuration.check_due = true;
}

/* ----------
 * Acting on it
 * ----------
 */

/*
 * Ends this process if a successor is wanted, or if the slot is closed.
 * Before a successor starts, requests in flight get a moment to end.  A closed
 * slot means that somebody waits for us: then we leave at once.
 */
static void
leave_if_wanted(OnsideWorker *worker)
{
	const OnsideConfiguration *configuration = &worker->configuration;
	bool		closed = onside_service_is_closed(worker->slot);

	if (!closed && !configuration->restart_wanted)
		return;
	if (!closed && onside_http_in_flight(worker->http) > 0 &&
		onside_ms_until(configuration->restart_wanted_at, RESTART_GRACE) > 0)
		return;
	onside_undecided_save_at_exit(worker);
	onside_txn_leave_orderly(worker);
}

void
onside_configuration_act(OnsideWorker *worker)
{
	const OnsideConfiguration *configuration = &worker->configuration;

	if (configuration->check_due)
		check_extension(worker);
	if (configuration->settings_due)
		compare_settings(worker);
	if (configuration->control_due)
		take_over_control(worker);
	leave_if_wanted(worker);
}

/* Reads the credentials at once, and again before each next attempt. */
void
onside_configuration_mind_credentials(OnsideWorker *worker)
{
	const OnsideSendingStatus *sending = onside_sending_status(worker);

	if (onside_sending_take_unauthorized(worker) ||
		(sending->state == ONSIDE_UNAUTHORIZED && sending->in_flight == 0 &&
		 onside_sending_timeout(worker) == 0))
		onside_configuration_read(worker);
}

bool
onside_configuration_may_send(OnsideWorker *worker)
{
	const OnsideConfiguration *configuration = &worker->configuration;

	return onside_enabled && configuration->control_known &&
		!configuration->paused && configuration->has_credentials &&
		!configuration->restart_wanted &&
		!onside_service_is_closed(worker->slot);
}

/*
 * What is due and has failed waits for its brake.  What is due and has not
 * failed was done in this turn of the loop.
 */
long
onside_configuration_timeout(OnsideWorker *worker)
{
	const OnsideConfiguration *configuration = &worker->configuration;
	long		timeout = -1;

	if (configuration->restart_wanted)
		timeout = onside_ms_until(configuration->restart_wanted_at,
								  RESTART_GRACE);

	/* These two share a brake. */
	if (configuration->check_due || configuration->settings_due)
		timeout = onside_sooner(timeout,
								onside_brake_timeout(worker,
													 &configuration->looking));
	if (configuration->control_due)
		timeout = onside_sooner(timeout,
								onside_brake_timeout(worker,
													 &configuration->controlling));
	return timeout;
}

/* Body of a transaction. */
static void
fetch_database(OnsideWorker *worker, void *arg)
{
	strlcpy(worker->database_name, get_database_name(MyDatabaseId),
			sizeof(worker->database_name));
	worker->configuration.database_settings = read_database_settings();
}

void
onside_configuration_init(OnsideWorker *worker)
{
	OnsideConfiguration *configuration = &worker->configuration;

	onside_brake_init(&configuration->looking,
					  "look whether the extension has changed",
					  ONSIDE_STEP_LOOKING);
	onside_brake_init(&configuration->controlling,
					  "read whether sending is paused", ONSIDE_STEP_LOOKING);
	onside_txn_insist(worker, &configuration->looking, 0, fetch_database,
					  NULL);
	configuration->control_due = true;
}
