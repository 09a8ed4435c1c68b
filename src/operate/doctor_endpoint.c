/*-------------------------------------------------------------------------
 *
 * doctor_endpoint.c
 *		doctor(): the files that sending needs, and the endpoint.
 *
 * Reads the credentials files in the caller's session, as the worker would,
 * and makes the connection that the worker would make, as far as TLS.  No
 * request is sent.  What is in a file is not shown, and neither is the
 * proxy's address, which is for superusers alone.  See doctor.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <pwd.h>
#include <unistd.h>

#include "miscadmin.h"

#include "operate/doctor.h"
#include "send/address.h"
#include "send/credentials.h"
#include "send/http.h"
#include "settings.h"

/* Longest that the endpoint is tried; ms. */
#define PROBE_TIMEOUT	5000

/* ----------
 * Files
 * ----------
 */

/* Can the credentials file be used? */
static void
check_credentials(OnsideDoctor *doctor, const char *setting, const char *path)
{
	char	   *problem = NULL;
	char	   *credentials = onside_credentials_read(setting, path, &problem);
	struct passwd *user = getpwuid(geteuid());
	char	   *hint;

	/* Where no file is named, the setting is what is missing. */
	onside_credentials_free(credentials);
	if (path[0] == '\0' || strcmp(path, ONSIDE_REFUSED_VALUE) == 0)
		hint = psprintf("Write one line user:password into a file that only the server's user may read, then %s and connect again.",
						onside_doctor_set_command(doctor, setting, "'/path/of/the/file'"));
	else
		hint = psprintf("Make it a file of one line user:password; as root: chown %s '%s' && chmod 600 '%s'; then SELECT pg_reload_conf();",
						user != NULL ? user->pw_name : psprintf("%d", (int) geteuid()),
						path, path);
	onside_doctor_judge(doctor, setting, problem,
						psprintf("\"%s\" has one line user:password and is closed to others",
								 path), hint);
}

/* Can the proxy's credentials be used, if there are a proxy and a file? */
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

/* ----------
 * The endpoint
 * ----------
 */

/* Is the endpoint an address that events may be sent to? */
static bool
check_endpoint_address(OnsideDoctor *doctor)
{
	const char *problem = onside_address_endpoint_problem(onside_endpoint);

	onside_doctor_judge(doctor, "endpoint", problem == NULL ? NULL :
						psprintf("onside_attribution.endpoint cannot be used: %s",
								 problem),
						pnstrdup(onside_endpoint,
								 strcspn(onside_endpoint, "?#")),
						onside_doctor_set_command(doctor, "endpoint",
												  "'" ONSIDE_API_URL "'"));
	return problem == NULL;
}

/* Is the proxy an address that events may be sent through? */
static bool
check_proxy_address(OnsideDoctor *doctor)
{
	const char *problem = onside_address_proxy_problem(onside_proxy);

	/* Its address is for superusers alone. */
	onside_doctor_judge(doctor, "proxy", problem == NULL ? NULL :
						psprintf("onside_attribution.proxy cannot be used: %s",
								 problem),
						onside_proxy[0] == '\0' ?
						"not set: connections are made directly" :
						"set: connections go through it",
						onside_doctor_set_command(doctor, "proxy",
												  "'http://proxy.example:3128'"));
	return problem == NULL;
}

/*
 * Adds one of the three rows about a connection.  The step after the last one
 * that was reached is the one that failed; what comes later was not tried.
 */
static void
probe_row(OnsideDoctor *doctor, const char *check, const OnsideProbe *probe,
		  OnsideProbeStep step, const char *good, const char *hint)
{
	if (probe->reached >= step)
		onside_doctor_row(doctor, check, ONSIDE_GOOD, good, NULL);
	else if (probe->reached == step - 1)
		onside_doctor_row(doctor, check, ONSIDE_BAD, probe->error, hint);
	else
		onside_doctor_row(doctor, check, ONSIDE_UNKNOWN,
						  "not tried, since an earlier check has failed", NULL);
}

/* Says how far the connection came, in a row for each step. */
static void
probe_rows(OnsideDoctor *doctor, const OnsideProbe *probe)
{
	bool		https = pg_strncasecmp(onside_endpoint, "https:", 6) == 0;
	const char *via = probe->through_proxy ? " (the proxy)" : "";

	/* With a proxy, it is the proxy's name that this server resolves. */
	probe_row(doctor, "name_resolution", probe, ONSIDE_PROBE_RESOLVED,
			  psprintf("the host of the %s has an address",
					   probe->through_proxy ? "proxy" : "endpoint"),
			  "On the server's machine, as the server's user: getent hosts HOST. Correct /etc/resolv.conf, or the host in onside_attribution.endpoint or onside_attribution.proxy.");
	probe_row(doctor, "connection", probe, ONSIDE_PROBE_CONNECTED,
			  psprintf("connected to %s%s within %d ms", probe->address, via,
					   probe->duration),
			  "Let the server's machine connect to that host and port: check firewall and routes. If connections have to go through a proxy, set onside_attribution.proxy.");

	/*
	 * Without TLS there is nothing to trust, and the step is always reached.
	 */
	probe_row(doctor, "tls", probe, ONSIDE_PROBE_TRUSTED,
			  https ? "the certificate is valid for this host" :
			  "not used: the endpoint is on this machine",
			  probe->bad_ca_file ?
			  "Put PEM certificates into onside_attribution.ca_file, then SELECT pg_reload_conf();" :
			  "Check that onside_attribution.endpoint has the right host name. If the certificate is signed by an authority of your own, put that authority's certificate into a file, set onside_attribution.ca_file to it, then SELECT pg_reload_conf();");
}

/* Makes the connection that the worker would make. */
static void
check_connection(OnsideDoctor *doctor, bool addresses_ok)
{
	char	   *problem;
	char	   *proxy_credentials = onside_proxy[0] == '\0' || !addresses_ok ?
		NULL : onside_credentials_read("proxy_credentials_file",
									   onside_proxy_credentials_file,
									   &problem);
	OnsideProbe probe = {0};
	OnsideHttpConfig config = {
		.url = onside_endpoint,
		.ca_file = onside_ca_file,
		.proxy = onside_proxy,
		.proxy_credentials = proxy_credentials,
	};

	/* Where nothing may be sent, nothing is tried, and the rows say so. */
	if (addresses_ok)
		onside_http_probe(&config, Min(onside_connect_timeout, PROBE_TIMEOUT),
						  &probe);
	onside_credentials_free(proxy_credentials);
	probe_rows(doctor, &probe);
}

void
onside_doctor_endpoint(OnsideDoctor *doctor)
{
	bool		addresses_ok;

	check_credentials(doctor, "credentials_file", onside_credentials_file);
	addresses_ok = check_endpoint_address(doctor);
	addresses_ok &= check_proxy_address(doctor);
	check_proxy_credentials(doctor);
	check_connection(doctor, addresses_ok);
}
