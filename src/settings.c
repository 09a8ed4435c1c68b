/*-------------------------------------------------------------------------
 *
 * settings.c
 *		The settings onside_attribution.*.
 *
 * All settings but max_databases can be set per database with ALTER DATABASE
 * ... SET, which rules out PGC_SIGHUP.  They are PGC_SUSET, so that only
 * superusers and roles with GRANT SET decide where data and credentials go.
 * on_invalid_event alone is PGC_USERSET: each session decides about its own
 * rows.
 *
 * No setting holds a password, deliberately: the statement log, the reload log
 * and pg_db_role_setting would all show it.  A value that looks like a
 * password (user information in an address, user:password in place of a file's
 * name) is refused, and the error does not repeat the value.
 *
 * This file owns the variables and checks what they are set to; PostgreSQL
 * alone writes them.  A check hook returns false for a bad value, and raises
 * no error itself.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "access/parallel.h"
#include "miscadmin.h"
#include "utils/guc.h"

#include "send/address.h"
#include "send/http.h"
#include "settings.h"

char	   *onside_endpoint;
char	   *onside_credentials_file;
char	   *onside_ca_file;
char	   *onside_proxy;
char	   *onside_proxy_credentials_file;

/* The initial values of these variables are the settings' defaults, too. */
bool		onside_enabled = true;
int			onside_batch_max_events = ONSIDE_API_MAX_EVENTS;
int			onside_batch_max_bytes = ONSIDE_API_MAX_BYTES;
int			onside_max_in_flight = 4;
int			onside_linger = 0;
int			onside_connect_timeout = 10000;
int			onside_request_timeout = 30000;
int			onside_retry_initial_delay = 1000;
int			onside_retry_max_delay = 300000;
int			onside_retention = 0;
int			onside_segment_size = 65536;
int			onside_on_invalid_event = ONSIDE_INVALID_DEAD_LETTER;
int			onside_max_databases = 8;

static const struct config_enum_entry invalid_event_options[] = {
	{"error", ONSIDE_INVALID_ERROR, false},
	{"dead_letter", ONSIDE_INVALID_DEAD_LETTER, false},
	{NULL, 0, false}
};

/*
 * Refuses a value and says why, without repeating the value: there could be a
 * password in it.  Returns what the check hook has to return: true if the
 * value has been replaced by ONSIDE_REFUSED_VALUE, with which nothing is sent.
 */
static bool
refuse_value(const char *name, char *value, const char *problem,
			 const char *hint, GucSource source)
{
	/* A parallel worker gets its leader's values, which have been checked. */
	if (InitializingParallelWorker)
		return true;

	/*
	 * When the server starts, there is no earlier value to keep, and the
	 * default would be wrong: the real API, which these events may not be
	 * meant for, or a direct connection.  The same is true of a session that
	 * finds a bad value in pg_db_role_setting.  (ALTER DATABASE and ALTER ROLE
	 * can put a bad value there while the library is not loaded.)  There the
	 * server's own value would be wrong: it is not meant for this database.
	 * So the refused value is not replaced by any that works, and the worker
	 * does not send.  It is overwritten, so that pg_settings does not show
	 * it.
	 */
	if ((process_shared_preload_libraries_in_progress &&
		 source != PGC_S_DEFAULT) ||
		(source >= PGC_S_GLOBAL && source <= PGC_S_DATABASE_USER))
	{
		size_t		len = strlen(value);

		explicit_bzero(value, len);
		if (len > 0)
			strcpy(value, ONSIDE_REFUSED_VALUE);
		ereport(WARNING,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for parameter \"%s\"", name),
				 errdetail("%s", problem),
				 errhint("%s Nothing is sent until then.", hint)));
		return true;
	}

	/* Anywhere else the old value stays, and PostgreSQL reports the error. */
	GUC_check_errmsg("invalid value for parameter \"%s\"", name);
	GUC_check_errdetail("%s", problem);
	GUC_check_errhint("%s", hint);
	return false;
}

/* Check hooks; each knows the name of its setting. */
static bool
check_endpoint(char **newval, void **extra, GucSource source)
{
	const char *problem = onside_address_endpoint_problem(*newval);

	return problem == NULL ||
		refuse_value("onside_attribution.endpoint", *newval, problem,
					 "Use https://, or http:// with a loopback address.",
					 source);
}

static bool
check_proxy(char **newval, void **extra, GucSource source)
{
	const char *problem = onside_address_proxy_problem(*newval);

	return problem == NULL ||
		refuse_value("onside_attribution.proxy", *newval, problem,
					 "Write it like http://proxy.example:3128. A user and password belong into a file: set onside_attribution.proxy_credentials_file to its name.",
					 source);
}

/*
 * Somebody may take the setting for the credentials themselves, and write
 * user:password.  A file's full name has no colon before its first slash.
 */
static bool
check_file(const char *name, char *value, GucSource source)
{
	return value[strcspn(value, ":/")] != ':' ||
		refuse_value(name, value, "This is not the name of a file.",
					 "Write what is secret into a file that only the server's user may read, and set this to the file's full name.",
					 source);
}

static bool
check_credentials_file(char **newval, void **extra, GucSource source)
{
	return check_file("onside_attribution.credentials_file", *newval, source);
}

static bool
check_proxy_credentials_file(char **newval, void **extra, GucSource source)
{
	return check_file("onside_attribution.proxy_credentials_file", *newval,
					  source);
}

static bool
check_ca_file(char **newval, void **extra, GucSource source)
{
	return check_file("onside_attribution.ca_file", *newval, source);
}

#define MS_PER_HOUR		(60 * 60 * 1000)

/* The settings whose value is a string. */
static const struct
{
	const char *name;
	const char *summary;
	const char *details;		/* or NULL */
	char	  **variable;
	const char *standard;
	int			flags;
	GucStringCheckHook check;
}			strings[] = {
	{"onside_attribution.endpoint",
		"Address to which events are sent.",
		"An https:// URL; http:// is accepted for loopback addresses alone.",
	&onside_endpoint, ONSIDE_API_URL, 0, check_endpoint},
	{"onside_attribution.credentials_file",
		"File that holds the API's user:password.",
		"One line; a regular file of the server's user, closed to others, or of root's.  Nothing is sent without it.",
	&onside_credentials_file, "", GUC_SUPERUSER_ONLY, check_credentials_file},
	{"onside_attribution.ca_file",
		"File of certificate authorities to trust instead of the system's.",
		NULL,
	&onside_ca_file, "", 0, check_ca_file},
	{"onside_attribution.proxy",
		"Proxy through which requests go.",
		"Empty for none; the environment's proxy variables are ignored.",
	&onside_proxy, "", GUC_SUPERUSER_ONLY, check_proxy},
	{"onside_attribution.proxy_credentials_file",
		"File that holds the proxy's user:password.",
		"As credentials_file.  Empty for a proxy that asks for none.",
	&onside_proxy_credentials_file, "", GUC_SUPERUSER_ONLY, check_proxy_credentials_file},
};

/*
 * The settings whose value is a number.  A variable's initial value is the
 * setting's default.
 */
static const struct
{
	const char *name;
	const char *summary;
	const char *details;		/* or NULL */
	int		   *variable;
	int			min;
	int			max;
	int			flags;
}			numbers[] = {
	{"onside_attribution.batch_max_events",
		"Most events in one request.",
		NULL,
	&onside_batch_max_events, 1, ONSIDE_API_MAX_EVENTS, 0},
	{"onside_attribution.batch_max_bytes",
		"Size below which a request's body stays.",
		"An event that is larger by itself is sent alone.",
	&onside_batch_max_bytes, 1024, ONSIDE_API_MAX_BYTES, GUC_UNIT_BYTE},
	{"onside_attribution.max_in_flight",
		"Most requests under way at once in one database.",
		NULL,
	&onside_max_in_flight, 1, ONSIDE_HTTP_MAX_REQUESTS - 1, 0},
	{"onside_attribution.linger",
		"How long a batch that is not full waits for more events.",
		NULL,
	&onside_linger, 0, MS_PER_HOUR, GUC_UNIT_MS},
	{"onside_attribution.connect_timeout",
		"Time within which a connection must be made.",
		NULL,
	&onside_connect_timeout, 1, MS_PER_HOUR, GUC_UNIT_MS},
	{"onside_attribution.request_timeout",
		"Time within which a request must be answered.",
		NULL,
	&onside_request_timeout, 1, MS_PER_HOUR, GUC_UNIT_MS},
	{"onside_attribution.retry_initial_delay",
		"Ceiling of the wait after the first failure.",
		"It doubles with each failure.  The wait is drawn up to it, and is at least a tenth of this setting.",
	&onside_retry_initial_delay, 1, MS_PER_HOUR, GUC_UNIT_MS},
	{"onside_attribution.retry_max_delay",
		"Highest ceiling of the wait between two attempts.",
		"A Retry-After can ask for more.",
	&onside_retry_max_delay, 1, 24 * MS_PER_HOUR, GUC_UNIT_MS},
	{"onside_attribution.retention",
		"How long delivered events are kept.",
		"0 lets them go as soon as their segment of the outbox can be emptied.",
	&onside_retention, 0, INT_MAX, GUC_UNIT_S},
	{"onside_attribution.segment_size",
		"Size at which writing moves on to the outbox's next segment.",
		NULL,
	&onside_segment_size, 64, INT_MAX, GUC_UNIT_KB},
};

/* Called once in each process that loads the library. */
void
onside_settings_define(void)
{
	/* The two tables above, and the settings that are of another kind. */
	for (int i = 0; i < (int) lengthof(strings); i++)
		DefineCustomStringVariable(strings[i].name, strings[i].summary,
								   strings[i].details, strings[i].variable,
								   strings[i].standard, PGC_SUSET,
								   strings[i].flags, strings[i].check, NULL,
								   NULL);
	for (int i = 0; i < (int) lengthof(numbers); i++)
		DefineCustomIntVariable(numbers[i].name, numbers[i].summary,
								numbers[i].details, numbers[i].variable,
								*numbers[i].variable, numbers[i].min,
								numbers[i].max, PGC_SUSET, numbers[i].flags,
								NULL, NULL, NULL);
	DefineCustomBoolVariable("onside_attribution.enabled",
							 "Whether events are sent; they are recorded in any case.",
							 NULL,
							 &onside_enabled, true,
							 PGC_SUSET, 0,
							 NULL, NULL, NULL);
	DefineCustomEnumVariable("onside_attribution.on_invalid_event",
							 "What a trigger does with a row that is no valid event, or whose mapper fails.",
							 "dead_letter lets it through with a warning and keeps the event in dead_letter; error fails the statement.",
							 &onside_on_invalid_event,
							 ONSIDE_INVALID_DEAD_LETTER, invalid_event_options,
							 PGC_USERSET, 0,
							 NULL, NULL, NULL);

	/*
	 * max_databases decides the size of shared memory.  A backend that loads
	 * the library by itself may not define a PGC_POSTMASTER variable.  The
	 * setting has no effect there, but a value in postgresql.conf must still
	 * find a setting of that name.
	 */
	DefineCustomIntVariable("onside_attribution.max_databases",
							"Most databases from which events are sent.",
							"Each takes one of max_worker_processes.",
							&onside_max_databases,
							8, 1, 1024,
							process_shared_preload_libraries_in_progress ?
							PGC_POSTMASTER : PGC_SIGHUP, 0,
							NULL, NULL, NULL);
}
