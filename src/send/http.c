/*-------------------------------------------------------------------------
 *
 * http.c
 *		Several HTTP requests at once, from PostgreSQL's own wait loop.
 *
 * This, http_probe.c and address.c are the only files that know libcurl, and
 * they know nothing of events or SQL.  libcurl's multi interface is driven by
 * socket readiness: it tells us through callbacks which sockets it waits for and
 * until when, and we wait for those together with the process's latch in one
 * WaitEventSet.  So the worker serves interrupts and ProcSignalBarriers however
 * slow the peer is.
 *
 * Rules that hold in this file:
 *
 * - Nothing is raised through a libcurl callback: callbacks copy bytes into
 *	 buffers that exist already, or note a fact, and return.
 * - libcurl's threaded resolver starts threads that inherit the signal mask;
 *	 a signal handler of PostgreSQL's must never run on one.  All signals are
 *	 blocked around every call that can start a thread.
 * - What the peer sends is cut off: an answer's body is read up to
 *	 MAX_ANSWER_BODY and its headers up to MAX_ANSWER_HEADERS, then the request
 *	 fails; what is kept of either is made printable, without credentials.
 * - Connections belong to libcurl's cache and are kept alive between requests.
 * - Without TLS nothing leaves this machine: not only must the URL name a
 *	 loopback address, but no socket is opened to any other, whatever a name
 *	 resolves to and whatever the proxy is.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>

#include "libpq/pqsignal.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "send/address.h"
#include "clock.h"
#include "compat.h"
#include "send/credentials.h"
#include "send/http.h"
#include "send/http_curl.h"
#include "send/secret.h"

/*
 * The API's answers have a few hundred bytes.  Bodies somewhat above what we
 * keep are read to their end, so that the connection can be used again; a peer
 * that sends more is not talking to us.
 */
#define MAX_ANSWER_BODY		(64 * 1024)
#define MAX_ANSWER_HEADERS	(64 * 1024)

/*
 * A transfer that moves no byte for so long is stalled, however long the whole
 * request may take.  The wait for the answer counts, so it must not be short.
 */
#define STALL_SECONDS		60

typedef struct Request
{
	CURL	   *easy;			/* kept for reuse */
	uint32		generation;		/* of the configuration that easy has */
	bool		busy;
	bool		ended;			/* result is complete */
	bool		kept_in;		/* a connection to elsewhere was refused */
	size_t		body_size;
	size_t		headers_size;
	char		errbuf[CURL_ERROR_SIZE];
	OnsideHttpResult result;
} Request;

/* A socket that libcurl waits for. */
typedef struct Socket
{
	curl_socket_t fd;
	uint32		events;			/* WL_SOCKET_*, as libcurl wants them */
	uint32		set_events;		/* as the wait event set has them */
	int			pos;			/* in the wait event set */
} Socket;

/* Resolver socket pairs and happy eyeballs come on top of one a request. */
#define MAX_SOCKETS		(ONSIDE_HTTP_MAX_REQUESTS * 4)

static CURLM *multi;
static bool connections_doubted;	/* a request failed on one of them */
static struct curl_slist *headers;
static OnsideHttpConfig config;
static uint32 config_generation;
static Request requests[ONSIDE_HTTP_MAX_REQUESTS];
static int	n_busy;
static int	n_ended;			/* those of them whose result is not taken yet */

static Socket sockets[MAX_SOCKETS];
static int	n_sockets;
static WaitEventSet *wait_set;
static bool wait_set_stale = true;

static long curl_timeout = -1;	/* when libcurl wants to be called: ms ... */
static int64 curl_timeout_set;	/* ... after this moment; -1 for never */

/* ----------
 * Signals
 * ----------
 */

static sigset_t saved_mask;

void
onside_http_block_signals(void)
{
	sigset_t	all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &saved_mask);
}

void
onside_http_unblock_signals(void)
{
	pthread_sigmask(SIG_SETMASK, &saved_mask, NULL);
}

/* ----------
 * What libcurl calls.  No ereport, no palloc.
 * ----------
 */

/* In place of socket(2), for requests without TLS alone. */
static curl_socket_t
on_open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
	curl_socket_t fd;

	if (!onside_address_is_loopback(&address->addr))
	{
		*(bool *) arg = true;
		return CURL_SOCKET_BAD;
	}
	fd = socket(address->family, address->socktype, address->protocol);
	if (fd != CURL_SOCKET_BAD)
		(void) fcntl(fd, F_SETFD, FD_CLOEXEC);
	return fd;
}

static size_t
on_body(char *data, size_t size, size_t n, void *arg)
{
	Request    *req = (Request *) arg;
	size_t		len = size * n;
	size_t		kept = Min(req->body_size, ONSIDE_HTTP_BODY_KEPT);
	size_t		keep = Min(len, ONSIDE_HTTP_BODY_KEPT - kept);

	memcpy(req->result.body + kept, data, keep);
	req->result.body[kept + keep] = '\0';
	req->body_size += len;

	return req->body_size > MAX_ANSWER_BODY ? 0 : len;
}

/* Copies a header's value if the line is "name: value". */
static bool
keep_header(const char *line, size_t len, const char *name, char *value)
{
	size_t		name_len = strlen(name);

	if (len <= name_len || line[name_len] != ':' ||
		pg_strncasecmp(line, name, name_len) != 0)
		return false;
	line += name_len + 1;
	len -= name_len + 1;
	while (len > 0 && (*line == ' ' || *line == '\t'))
		line++, len--;
	while (len > 0 && (line[len - 1] == '\r' || line[len - 1] == '\n' ||
					   line[len - 1] == ' ' || line[len - 1] == '\t'))
		len--;
	len = Min(len, ONSIDE_HTTP_HEADER_KEPT);
	memcpy(value, line, len);
	value[len] = '\0';
	return true;
}

static size_t
on_header(char *line, size_t size, size_t n, void *arg)
{
	Request    *req = (Request *) arg;
	size_t		len = size * n;

	req->headers_size += len;
	if (req->headers_size > MAX_ANSWER_HEADERS)
		return 0;

	/* A status line: what an interim (1xx) answer said does not count. */
	if (len > 5 && strncmp(line, "HTTP/", 5) == 0)
	{
		req->result.has_retry_after = false;
		req->result.date[0] = '\0';
	}
	else if (keep_header(line, len, "retry-after", req->result.retry_after))
		req->result.has_retry_after = true;
	else
		(void) keep_header(line, len, "date", req->result.date);
	return len;
}

static int
on_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg)
{
	int			i;
	uint32		events = 0;

	for (i = 0; i < n_sockets; i++)
		if (sockets[i].fd == fd)
			break;

	if (what == CURL_POLL_REMOVE)
	{
		if (i < n_sockets)
		{
			sockets[i] = sockets[--n_sockets];
			wait_set_stale = true;
		}
		return 0;
	}

	if (what & CURL_POLL_IN)
		events |= WL_SOCKET_READABLE;
	if (what & CURL_POLL_OUT)
		events |= WL_SOCKET_WRITEABLE;

	if (i == n_sockets)
	{
		if (n_sockets == MAX_SOCKETS)
			return -1;
		sockets[n_sockets++].fd = fd;
		wait_set_stale = true;
	}
	sockets[i].events = events;
	return 0;
}

static int
on_timer(CURLM *m, long timeout, void *arg)
{
	curl_timeout = timeout;
	curl_timeout_set = onside_clock();
	return 0;
}

/* ----------
 * Setting up
 * ----------
 */

static CURLM *
make_multi(void)
{
	CURLM	   *result = curl_multi_init();

	if (result == NULL)
		return NULL;
#if LIBCURL_VERSION_NUM >= 0x081400
	/* Resolver threads are the multi handle's since 8.20: see set_options(). */
	curl_multi_setopt(result, CURLMOPT_QUICK_EXIT, 1L);
#endif
	curl_multi_setopt(result, CURLMOPT_SOCKETFUNCTION, on_socket);
	curl_multi_setopt(result, CURLMOPT_TIMERFUNCTION, on_timer);
	curl_multi_setopt(result, CURLMOPT_MAXCONNECTS,
					  (long) ONSIDE_HTTP_MAX_REQUESTS);
	return result;
}

/*
 * Closes all connections.  libcurl puts new requests on an HTTP/2 connection
 * that has gone dead as long as nothing says that it has; after a failure, the
 * next attempt must not depend on what the failed one depended on.  While
 * other requests are still under way, their connections are left alone and the
 * new request gets one of its own.
 */
static void
doubt_connections(Request *req)
{
	CURLM	   *fresh;

	curl_easy_setopt(req->easy, CURLOPT_FRESH_CONNECT,
					 connections_doubted ? 1L : 0L);
	if (!connections_doubted || n_busy > 1)
		return;

	fresh = make_multi();
	if (fresh == NULL)
		return;
	curl_multi_cleanup(multi);
	multi = fresh;
	n_sockets = 0;
	wait_set_stale = true;
	curl_timeout = -1;
	connections_doubted = false;
}

void
onside_http_init(void)
{
	Assert(multi == NULL);

	onside_http_block_signals();
	if (curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK)
		multi = make_multi();
	onside_http_unblock_signals();

	/*
	 * No "Expect: 100-continue": it costs a round trip, or a second where the
	 * server does not know it.
	 */
	headers = curl_slist_append(NULL, "Content-Type: application/json");
	if (multi == NULL || headers == NULL ||
		curl_slist_append(headers, "Accept: application/json") == NULL ||
		curl_slist_append(headers, "Expect:") == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not set up libcurl")));
}

void
onside_http_configure(const OnsideHttpConfig *new_config)
{
	config = *new_config;
	config_generation++;

	/*
	 * libcurl 8.14 uses an idle TLS connection for http://, too, if host and
	 * port are the same.
	 */
	connections_doubted = true;
	onside_secret_set(ONSIDE_SECRET_API, config.credentials);
	if (config.proxy_credentials != NULL)
		onside_secret_set(ONSIDE_SECRET_PROXY, config.proxy_credentials);
}

/*
 * CURLOPT_PROXYUSERNAME and CURLOPT_PROXYPASSWORD are decoded before libcurl
 * 8.8 and taken as they are from then on; this option is decoded by all.
 */
static bool
set_proxy_credentials(CURL *easy, const char *credentials)
{
	int			user_len = strcspn(credentials, ":");
	char	   *user = curl_easy_escape(easy, credentials, user_len);
	char	   *password = curl_easy_escape(easy, credentials + user_len + 1, 0);
	bool		ok = false;

	if (user != NULL && password != NULL)
	{
		char		both[ONSIDE_CREDENTIALS_MAX * 3 + 1];

		snprintf(both, sizeof(both), "%s:%s", user, password);
		ok = curl_easy_setopt(easy, CURLOPT_PROXYUSERPWD, both) == CURLE_OK &&
			curl_easy_setopt(easy, CURLOPT_PROXYAUTH,
							 (long) CURLAUTH_BASIC) == CURLE_OK;
		explicit_bzero(both, sizeof(both));
		explicit_bzero(user, strlen(user));
		explicit_bzero(password, strlen(password));
	}
	curl_free(user);
	curl_free(password);
	return ok;
}

bool
onside_http_set_transport(CURL *easy, const OnsideHttpConfig *config,
						  bool *kept_in)
{
	/* An empty proxy is not the default: it ignores the environment. */
	if (curl_easy_setopt(easy, CURLOPT_URL, config->url) != CURLE_OK ||
		curl_easy_setopt(easy, CURLOPT_PROXY, config->proxy) != CURLE_OK ||
		curl_easy_setopt(easy, CURLOPT_NOPROXY, "") != CURLE_OK ||
		(config->ca_file[0] != '\0' &&
		 curl_easy_setopt(easy, CURLOPT_CAINFO, config->ca_file) != CURLE_OK) ||
		(config->proxy_credentials != NULL &&
		 !set_proxy_credentials(easy, config->proxy_credentials)))
		return false;

#if LIBCURL_VERSION_NUM >= 0x075500
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
#else
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS,
					 (long) (CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
	curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
	if (pg_strncasecmp(config->url, "https:", 6) != 0)
	{
		curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, on_open_socket);
		curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, kept_in);
	}
	curl_easy_setopt(easy, CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
	curl_easy_setopt(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);

	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 1L);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 2L);
	curl_easy_setopt(easy, CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	if (config->ca_file[0] != '\0')
		curl_easy_setopt(easy, CURLOPT_CAPATH, NULL);
#if LIBCURL_VERSION_NUM >= 0x075700
	/* A replaced ca_file counts from the next connection on. */
	curl_easy_setopt(easy, CURLOPT_CA_CACHE_TIMEOUT, 0L);
	/* Never join a resolver thread that hangs. */
	curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);
#endif

	curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
	return true;
}

static bool
set_options(Request *req)
{
	CURL	   *easy = req->easy;

	if (!onside_http_set_transport(easy, &config, &req->kept_in) ||
		curl_easy_setopt(easy, CURLOPT_USERPWD,
						 config.credentials) != CURLE_OK)
		return false;

	curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(easy, CURLOPT_USERAGENT, "onside_attribution");
	curl_easy_setopt(easy, CURLOPT_HTTPAUTH, (long) CURLAUTH_BASIC);

	curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_2TLS);
	curl_easy_setopt(easy, CURLOPT_PIPEWAIT, 1L);

	curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS,
					 (long) config.connect_timeout);
	curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, (long) config.request_timeout);
	curl_easy_setopt(easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
	curl_easy_setopt(easy, CURLOPT_LOW_SPEED_TIME, (long) STALL_SECONDS);

	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(easy, CURLOPT_WRITEDATA, req);
	curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header);
	curl_easy_setopt(easy, CURLOPT_HEADERDATA, req);
	curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, req->errbuf);
	curl_easy_setopt(easy, CURLOPT_PRIVATE, req);
	req->generation = config_generation;
	return true;
}

/* ----------
 * Requests
 * ----------
 */

/*
 * Makes what came from outside fit for a log line and a text column: control
 * characters become spaces, and what is not UTF-8 question marks.
 */
void
onside_http_make_printable(char *str)
{
	bool		utf8 = GetDatabaseEncoding() == PG_UTF8;
	unsigned char *p = (unsigned char *) str;

	while (*p != '\0')
	{
		if (*p < 0x80)
		{
			if (*p < 0x20 || *p == 0x7f)
				*p = ' ';
			p++;
		}
		else
		{
			int			len = pg_utf_mblen(p);

			if (utf8 && strnlen((char *) p, len) == (size_t) len &&
				pg_utf8_islegal(p, len) && !(p[0] == 0xc2 && p[1] < 0xa0))
				p += len;
			else
				*p++ = '?';
		}
	}
	while (p > (unsigned char *) str && p[-1] == ' ')
		*--p = '\0';
}

static OnsideHttpFailure
kind_of_failure(CURLcode code)
{
	switch (code)
	{
		case CURLE_OPERATION_TIMEDOUT:
			return ONSIDE_HTTP_TIMEOUT;
		case CURLE_WEIRD_SERVER_REPLY:
		case CURLE_UNSUPPORTED_PROTOCOL:	/* HTTP/0.9 */
		case CURLE_PARTIAL_FILE:
		case CURLE_WRITE_ERROR: /* we had enough */
		case CURLE_BAD_CONTENT_ENCODING:
		case CURLE_TOO_MANY_REDIRECTS:
		case CURLE_HTTP2:
		case CURLE_HTTP2_STREAM:
			return ONSIDE_HTTP_MALFORMED;
		default:
			return ONSIDE_HTTP_NO_CONNECTION;
	}
}

static void
finish(Request *req, CURLcode code)
{
	OnsideHttpResult *result = &req->result;
	long		status = 0;
	long		connections = 0;
	curl_off_t	duration = 0;

	curl_easy_getinfo(req->easy, CURLINFO_RESPONSE_CODE, &status);
	curl_easy_getinfo(req->easy, CURLINFO_NUM_CONNECTS, &connections);
	curl_easy_getinfo(req->easy, CURLINFO_TOTAL_TIME_T, &duration);
	result->connections = (int) connections;
	result->duration = duration;
	result->status = (int) status;

	/* A body that we cut off was long enough; the status is what counts. */
	result->failed = code != CURLE_OK &&
		!(code == CURLE_WRITE_ERROR && req->body_size > MAX_ANSWER_BODY);
	result->ended = GetCurrentTimestamp();
	if (result->failed)
	{
		connections_doubted = true;
		result->failure = kind_of_failure(code);
		strlcpy(result->error,
				req->errbuf[0] != '\0' ? req->errbuf : curl_easy_strerror(code),
				sizeof(result->error));
	}
	if (req->headers_size > MAX_ANSWER_HEADERS)
		strlcpy(result->error, "the answer has no end", sizeof(result->error));
	if (result->failed && req->kept_in)
		strlcpy(result->error,
				ONSIDE_HTTP_KEPT_IN,
				sizeof(result->error));
	onside_secret_hide(result->error, false);
	onside_secret_hide(result->body,
					   req->body_size > ONSIDE_HTTP_BODY_KEPT);
	onside_http_make_printable(result->error);
	onside_http_make_printable(result->body);
	onside_http_make_printable(result->retry_after);
	onside_http_make_printable(result->date);
	req->ended = true;
	n_ended++;
}

/* Notes which requests have ended. */
static void
reap(void)
{
	CURLMsg    *msg;
	int			left;

	while ((msg = curl_multi_info_read(multi, &left)) != NULL)
	{
		Request    *req;
		CURL	   *easy = msg->easy_handle;
		CURLcode	code = msg->data.result;

		if (msg->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(easy, CURLINFO_PRIVATE, (char **) &req);
		curl_multi_remove_handle(multi, easy);
		finish(req, code);
	}
}

static void
drive(curl_socket_t fd, int mask)
{
	int			running;

	onside_http_block_signals();
	curl_multi_socket_action(multi, fd, mask, &running);
	reap();
	onside_http_unblock_signals();
}

bool
onside_http_start(void *request, const char *body, size_t len)
{
	Request    *req = NULL;
	CURLMcode	code = CURLM_OUT_OF_MEMORY;

	for (int i = 0; i < ONSIDE_HTTP_MAX_REQUESTS && req == NULL; i++)
		if (!requests[i].busy)
			req = &requests[i];
	if (req == NULL)
		return false;

	memset(&req->result, 0, sizeof(req->result));
	req->result.request = request;
	req->result.started = GetCurrentTimestamp();
	req->body_size = 0;
	req->headers_size = 0;
	req->errbuf[0] = '\0';
	req->kept_in = false;
	req->ended = false;
	req->busy = true;
	n_busy++;

	onside_http_block_signals();
	if (req->easy != NULL && req->generation != config_generation)
	{
		curl_easy_cleanup(req->easy);
		req->easy = NULL;
	}
	if (req->easy == NULL && (req->easy = curl_easy_init()) != NULL &&
		!set_options(req))
	{
		curl_easy_cleanup(req->easy);
		req->easy = NULL;
	}
	if (req->easy != NULL)
	{
		doubt_connections(req);
		curl_easy_setopt(req->easy, CURLOPT_POST, 1L);
		curl_easy_setopt(req->easy, CURLOPT_POSTFIELDS, body);
		curl_easy_setopt(req->easy, CURLOPT_POSTFIELDSIZE_LARGE,
						 (curl_off_t) len);
		code = curl_multi_add_handle(multi, req->easy);
	}
	onside_http_unblock_signals();

	if (code != CURLM_OK)
	{
		/* Out of memory: ends like any request that failed. */
		req->result.failed = true;
		req->result.ended = GetCurrentTimestamp();
		strlcpy(req->result.error, curl_multi_strerror(code),
				sizeof(req->result.error));
		req->ended = true;
		n_ended++;
		return true;
	}

	/* Write to a connection that is already open at once. */
	drive(CURL_SOCKET_TIMEOUT, 0);
	return true;
}

int
onside_http_in_flight(void)
{
	return n_busy;
}

static void
release(Request *req)
{
	req->busy = false;
	req->ended = false;
	n_busy--;
	n_ended--;
}

bool
onside_http_next_result(OnsideHttpResult *result)
{
	for (int i = 0; n_ended > 0 && i < ONSIDE_HTTP_MAX_REQUESTS; i++)
	{
		if (requests[i].busy && requests[i].ended)
		{
			*result = requests[i].result;
			release(&requests[i]);
			return true;
		}
	}
	return false;
}

/* ----------
 * Waiting
 * ----------
 */

static void
prepare_wait_set(void)
{
	if (wait_set_stale)
	{
		/* Events cannot be taken out of a set. */
		if (wait_set != NULL)
			FreeWaitEventSet(wait_set);
		wait_set = NULL;
		wait_set = onside_create_wait_event_set(n_sockets + 2);
		AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch,
						  NULL);
		AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET,
						  NULL, NULL);
		for (int i = 0; i < n_sockets; i++)
		{
			sockets[i].pos = AddWaitEventToSet(wait_set, sockets[i].events,
											   sockets[i].fd, NULL, NULL);
			sockets[i].set_events = sockets[i].events;
		}
		wait_set_stale = false;
		return;
	}

	for (int i = 0; i < n_sockets; i++)
	{
		if (sockets[i].set_events != sockets[i].events)
		{
			ModifyWaitEvent(wait_set, sockets[i].pos, sockets[i].events, NULL);
			sockets[i].set_events = sockets[i].events;
		}
	}
}

/* Milliseconds until libcurl wants to be called; -1 for never. */
static long
curl_wait(void)
{
	return curl_timeout < 0 ? -1 :
		onside_ms_until(curl_timeout_set, curl_timeout);
}

bool
onside_http_wait(long timeout, uint32 wait_event)
{
	WaitEvent	events[16];
	int			n;
	bool		latch_set = false;

	/* A request can end in the call that begins it. */
	timeout = n_ended > 0 ? 0 : onside_sooner(timeout, curl_wait());

	prepare_wait_set();
	n = WaitEventSetWait(wait_set, timeout, events, lengthof(events),
						 wait_event);

	for (int i = 0; i < n; i++)
	{
		int			mask = 0;

		if (events[i].events & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			latch_set = true;
		}
		if (events[i].events & WL_SOCKET_READABLE)
			mask |= CURL_CSELECT_IN;
		if (events[i].events & WL_SOCKET_WRITEABLE)
			mask |= CURL_CSELECT_OUT;
		if (mask != 0)
			drive(events[i].fd, mask);
	}

	if (curl_wait() == 0)
	{
		curl_timeout = -1;
		drive(CURL_SOCKET_TIMEOUT, 0);
	}
	return latch_set;
}
