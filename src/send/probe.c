/*-------------------------------------------------------------------------
 *
 * probe.c
 *		How far a connection without a request came, for doctor().
 *
 * http.c calls this file when the connection that doctor() has asked for is
 * made or has failed, and request.c has judged it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "send/probe.h"
#include "send/request.h"

/*
 * The last step that was reached before the failure.  Some errors belong to
 * one step.  Others, such as a timeout, can belong to any: for these, the
 * times that libcurl has noted tell how far it came.
 */
static OnsideProbeStep
step_before_failure(const OnsideRequest *request)
{
	curl_off_t	resolved = 0;
	curl_off_t	connected = 0;
	long		connections = 0;

	switch (request->code)
	{
		case CURLE_COULDNT_RESOLVE_HOST:
		case CURLE_COULDNT_RESOLVE_PROXY:
			return ONSIDE_PROBE_NONE;
		case CURLE_SSL_CONNECT_ERROR:
		case CURLE_PEER_FAILED_VERIFICATION:
		case CURLE_SSL_CACERT_BADFILE:
			return ONSIDE_PROBE_CONNECTED;
		case CURLE_COULDNT_CONNECT:
			/* who refuses has been reached */
			if (request->answer.kind != ONSIDE_ANSWER_PROXY_REFUSED)
				return ONSIDE_PROBE_RESOLVED;
			/* FALLTHROUGH */
		default:
			curl_easy_getinfo(request->easy, CURLINFO_NAMELOOKUP_TIME_T,
							  &resolved);
			curl_easy_getinfo(request->easy, CURLINFO_CONNECT_TIME_T,
							  &connected);
			curl_easy_getinfo(request->easy, CURLINFO_NUM_CONNECTS,
							  &connections);
			return connected > 0 || connections > 0 ? ONSIDE_PROBE_CONNECTED :
				resolved > 0 ? ONSIDE_PROBE_RESOLVED : ONSIDE_PROBE_NONE;
	}
}

/* What the last step was follows from libcurl's error and times. */
void
onside_probe_report(const OnsideRequest *request, OnsideProbe *probe)
{
	char	   *ip = NULL;
	long		port = 0;

	probe->reached = request->code == CURLE_OK ? ONSIDE_PROBE_TRUSTED :
		step_before_failure(request);
	probe->bad_ca_file = request->code == CURLE_SSL_CACERT_BADFILE;
	if (request->code != CURLE_OK)
		strlcpy(probe->error, request->answer.words, sizeof(probe->error));

	/* An IPv6 address is shown in brackets, as in a URL. */
	curl_easy_getinfo(request->easy, CURLINFO_PRIMARY_IP, &ip);
	curl_easy_getinfo(request->easy, CURLINFO_PRIMARY_PORT, &port);
	if (ip != NULL && ip[0] != '\0')
		snprintf(probe->address, sizeof(probe->address),
				 strchr(ip, ':') != NULL ? "[%s]:%ld" : "%s:%ld", ip, port);
}
