/*-------------------------------------------------------------------------
 *
 * doctor_endpoint.c
 *		doctor(): the files that sending needs, and the endpoint.
 *
 * Looks at the files as the worker would, in the caller's session, and makes
 * the connection that the worker would make, as far as TLS; no request is
 * sent.  What is in a file is not shown, and neither is the proxy's address,
 * which is for superusers alone.  See doctor.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"

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
						onside_doctor_set_command(doctor, setting, "'/path/of/the/file'"));
	else
		hint = psprintf("Make it a file of one line user:password; as root: chown %s '%s' && chmod 600 '%s'; then SELECT pg_reload_conf();",
						user != NULL ? user->pw_name : psprintf("%d", (int) geteuid()),
						path, path);
	onside_doctor_row(doctor, setting, ONSIDE_BAD, problem, hint);
}

/* libcurl reads it; whether it holds certificates the check tls finds. */
static void
check_authorities(OnsideDoctor *doctor)
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
								   onside_doctor_set_command(doctor, "ca_file", "''")));
	if (fd >= 0)
		CloseTransientFile(fd);
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

/* ----------
 * The endpoint
 * ----------
 */

/* May anything be sent there? */
static bool
check_endpoint_address(OnsideDoctor *doctor)
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
						  onside_doctor_set_command(doctor, "endpoint",
													"'" ONSIDE_API_URL "'"));
	return problem == NULL;
}

/* May anything be sent through it? */
static bool
check_proxy_address(OnsideDoctor *doctor)
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
						  onside_doctor_set_command(doctor, "proxy",
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

void
onside_doctor_endpoint(OnsideDoctor *doctor)
{
	bool		addresses_ok;

	check_credentials(doctor, "credentials_file", onside_credentials_file);
	check_authorities(doctor);
	addresses_ok = check_endpoint_address(doctor);
	addresses_ok &= check_proxy_address(doctor);
	check_proxy_credentials(doctor);
	check_connection(doctor, addresses_ok);
}
