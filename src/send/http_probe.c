/*-------------------------------------------------------------------------
 *
 * http_probe.c
 *		Can the endpoint be reached from here?
 *
 * For doctor(), in the backend of whoever calls it: the worker may be what does
 * not run, and is not to be disturbed if it does.  libcurl makes a connection
 * and no request (CURLOPT_CONNECT_ONLY), with the options of http.c that decide
 * to whom and whom to trust, so that it fails where the worker would fail.
 *
 * libcurl is set up in this backend by the first call and stays so.  Its rules
 * are those of http.c: nothing is raised through it, and signals are blocked
 * where it may start a thread.  We look after the transfer every 10 ms rather
 * than wait for its sockets: a latch and a timeout are all that is needed then,
 * and a cancel is served at once.  It must not wait then for a thread that asks
 * a name server: see end().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "send/http_curl.h"
#include "send/http_probe.h"

#define LOOK_INTERVAL	10		/* ms */

static CURLM *multi;
static CURL *easy;
static char errbuf[CURL_ERROR_SIZE];
static bool kept_in;
static bool under_way;			/* libcurl has not said that it is over */

static void
throw_out_of_memory(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OUT_OF_MEMORY),
			 errmsg("could not set up libcurl")));
}

/* Sets the connection up, with all that decides to whom it goes. */
static void
begin(const OnsideHttpConfig *config)
{
	static bool initialized = false;

	Assert(multi == NULL && easy == NULL);
	errbuf[0] = '\0';
	kept_in = false;
	under_way = false;

	onside_http_block_signals();
	if (!initialized)
		initialized = curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
	if (initialized)
	{
		multi = curl_multi_init();
		easy = curl_easy_init();
	}
#if LIBCURL_VERSION_NUM >= 0x081400
	if (multi != NULL)
		curl_multi_setopt(multi, CURLMOPT_QUICK_EXIT, 1L);
#endif
	if (easy != NULL && !onside_http_set_transport(easy, config, &kept_in))
	{
		curl_easy_cleanup(easy);
		easy = NULL;
	}
	if (easy != NULL)
	{
		curl_easy_setopt(easy, CURLOPT_CONNECT_ONLY, 1L);
		curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, errbuf);
	}
	onside_http_unblock_signals();
}

/*
 * Gives the connection up.  A libcurl older than 7.87 would wait here for the
 * thread that resolves the name, as long as the name server lets it; while that
 * is under way, what belongs to the connection is left to the thread instead.
 */
static void
end(void)
{
	curl_off_t	resolved = 0;

	if (easy != NULL)
		curl_easy_getinfo(easy, CURLINFO_NAMELOOKUP_TIME_T, &resolved);
	if (under_way && resolved == 0 && LIBCURL_VERSION_NUM < 0x075700)
	{
		easy = NULL;
		multi = NULL;
		return;
	}
	onside_http_block_signals();
	if (multi != NULL && easy != NULL)
		curl_multi_remove_handle(multi, easy);
	curl_easy_cleanup(easy);
	curl_multi_cleanup(multi);
	onside_http_unblock_signals();
	easy = NULL;
	multi = NULL;
}

/*
 * Drives the connection until it is there, has failed, or time is up.  libcurl
 * is told no time: an old one would wait for the name server at its end.
 */
static CURLcode
run(TimestampTz deadline)
{
	uint32		wait_event = onside_wait_event("OnsideAttributionDoctor");
	CURLMcode	code;

	onside_http_block_signals();
	code = curl_multi_add_handle(multi, easy);
	onside_http_unblock_signals();

	under_way = code == CURLM_OK;
	while (code == CURLM_OK)
	{
		CURLMsg    *msg;
		int			n;

		onside_http_block_signals();
		code = curl_multi_perform(multi, &n);
		msg = curl_multi_info_read(multi, &n);
		onside_http_unblock_signals();
		if (msg != NULL && msg->msg == CURLMSG_DONE)
		{
			under_way = false;
			return msg->data.result;
		}
		if (GetCurrentTimestamp() >= deadline)
			return CURLE_OPERATION_TIMEDOUT;

		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 LOOK_INTERVAL, wait_event);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return CURLE_OUT_OF_MEMORY;
}

/*
 * Which step a failure belongs to.  A timeout can belong to any: what libcurl
 * has noted until then says to which.
 */
static OnsideProbeStep
step_before_failure(CURLcode code)
{
	curl_off_t	resolved = 0;
	curl_off_t	connected = 0;
	long		connections = 0;

	switch (code)
	{
		case CURLE_COULDNT_RESOLVE_HOST:
		case CURLE_COULDNT_RESOLVE_PROXY:
			return ONSIDE_PROBE_NONE;
		case CURLE_COULDNT_CONNECT:
			return ONSIDE_PROBE_RESOLVED;
		case CURLE_SSL_CONNECT_ERROR:
		case CURLE_PEER_FAILED_VERIFICATION:
		case CURLE_SSL_CACERT_BADFILE:
			return ONSIDE_PROBE_CONNECTED;
		default:
			curl_easy_getinfo(easy, CURLINFO_NAMELOOKUP_TIME_T, &resolved);
			curl_easy_getinfo(easy, CURLINFO_CONNECT_TIME_T, &connected);
			curl_easy_getinfo(easy, CURLINFO_NUM_CONNECTS, &connections);
			return connected > 0 || connections > 0 ? ONSIDE_PROBE_CONNECTED :
				resolved > 0 ? ONSIDE_PROBE_RESOLVED : ONSIDE_PROBE_NONE;
	}
}

/* Says how far it came, to whom, and what went wrong. */
static void
take_result(CURLcode code, OnsideProbe *probe)
{
	char	   *ip = NULL;
	long		port = 0;

	probe->reached = code == CURLE_OK ? ONSIDE_PROBE_TRUSTED :
		step_before_failure(code);
	probe->bad_ca_file = code == CURLE_SSL_CACERT_BADFILE;

	curl_easy_getinfo(easy, CURLINFO_PRIMARY_IP, &ip);
	curl_easy_getinfo(easy, CURLINFO_PRIMARY_PORT, &port);
	if (ip != NULL && ip[0] != '\0')
		snprintf(probe->address, sizeof(probe->address),
				 strchr(ip, ':') != NULL ? "[%s]:%ld" : "%s:%ld", ip, port);
	if (code != CURLE_OK)
		strlcpy(probe->error,
				kept_in ? ONSIDE_HTTP_KEPT_IN :
				errbuf[0] != '\0' ? errbuf : curl_easy_strerror(code),
				sizeof(probe->error));
	onside_http_make_printable(probe->error);
}

void
onside_http_probe(const OnsideHttpConfig *config, int timeout,
				  OnsideProbe *probe)
{
	TimestampTz started = GetCurrentTimestamp();

	memset(probe, 0, sizeof(*probe));
	probe->through_proxy = config->proxy[0] != '\0';

	PG_TRY();
	{
		begin(config);
		if (multi == NULL || easy == NULL)
			throw_out_of_memory();
		take_result(run(TimestampTzPlusMilliseconds(started, timeout)), probe);
	}
	PG_FINALLY();
	{
		end();
	}
	PG_END_TRY();
	probe->duration =
		(int) TimestampDifferenceMilliseconds(started, GetCurrentTimestamp());
}
