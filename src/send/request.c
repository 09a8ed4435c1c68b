/*-------------------------------------------------------------------------
 *
 * request.c
 *		One HTTP request: its options, and what its answer says.
 *
 * http.c alone calls this file: to make a request's handle, and when the
 * request has ended.
 *
 * Requests use HTTP/1.1.  Over HTTP/2 libcurl loses an answer that comes
 * before the body was read, and up to 8.14 it spins on a closed window.
 *
 * No callback of libcurl's raises an error.  A callback copies bytes into a
 * buffer that exists already, or notes a fact, and returns.
 *
 * A peer cannot make us read without end: a request ends when its answer's
 * body exceeds MAX_ANSWER_BODY, or its headers MAX_ANSWER_HEADERS.  What is
 * kept of an answer is made printable, and credentials are taken out of it.
 *
 * Without TLS nothing leaves this machine.  The URL must name a loopback
 * address, and no socket is opened to any other address, whatever a name
 * resolves to and whatever the proxy is.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <fcntl.h>
#include <math.h>
#include <sys/socket.h>

#include "mb/pg_wchar.h"

#include "send/address.h"
#include "send/credentials.h"
#include "send/request.h"
#include "send/response.h"
#include "send/secret.h"

/*
 * The API's answers have a few hundred bytes.  A body that is longer than
 * what we keep is still read to its end, so that the connection can be used
 * again.  A peer that sends more than this is not the API.
 */
#define MAX_ANSWER_BODY		(64 * 1024)
#define MAX_ANSWER_HEADERS	(64 * 1024)

/* No HTTP-date and no sensible number of seconds is as long as this. */
#define MAX_HEADER_VALUE	128

/*
 * A transfer that moves no byte for so long is stalled, however long the whole
 * request may take.  The wait for the answer counts, so it must not be short.
 */
#define STALL_SECONDS		60

/* ----------
 * What libcurl calls.  No ereport, no palloc.
 * ----------
 */

/*
 * Opens a socket for a request without TLS, if it goes to a loopback address.
 */
static curl_socket_t
on_open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
	curl_socket_t fd;

	if (!onside_address_is_loopback(&address->addr))
	{
		((OnsideRequest *) arg)->kept_in = true;
		return CURL_SOCKET_BAD;
	}
	fd = socket(address->family, address->socktype, address->protocol);
	if (fd != CURL_SOCKET_BAD)
		(void) fcntl(fd, F_SETFD, FD_CLOEXEC);
	return fd;
}

/*
 * Counts how often the request is sent.  libcurl repeats a request by itself
 * when a connection that it has used again turns out to be dead.  Versions
 * before 7.80 do not tell.
 */
#if LIBCURL_VERSION_NUM >= 0x075000
static int
on_attempt(void *arg, char *ip, char *local_ip, int port, int local_port)
{
	((OnsideRequest *) arg)->attempts++;
	return CURL_PREREQFUNC_OK;
}
#endif

/* Keeps the beginning of an answer's body, and ends one that is too long. */
static size_t
on_body(char *data, size_t size, size_t n, void *arg)
{
	OnsideRequest *request = (OnsideRequest *) arg;
	size_t		len = size * n;
	size_t		kept = Min(request->body_size, ONSIDE_ANSWER_WORDS_MAX);
	size_t		keep = Min(len, ONSIDE_ANSWER_WORDS_MAX - kept);

	memcpy(request->answer.words + kept, data, keep);
	request->answer.words[kept + keep] = '\0';
	request->body_size += len;

	return request->body_size > MAX_ANSWER_BODY ? 0 : len;
}

/*
 * If the line is "name: value", copies the value and returns true.  A value
 * that is too long to be of use is taken as empty.
 */
static bool
header_value(const char *line, size_t len, const char *name, char *value)
{
	size_t		name_len = strlen(name);

	if (len <= name_len || line[name_len] != ':' ||
		pg_strncasecmp(line, name, name_len) != 0)
		return false;

	/* Cut off the blanks in front of it, and the end of the line. */
	line += name_len + 1;
	len -= name_len + 1;
	while (len > 0 && strchr(" \t", *line) != NULL)
		line++, len--;
	while (len > 0 && strchr(" \t\r\n", line[len - 1]) != NULL)
		len--;
	if (len > MAX_HEADER_VALUE)
		len = 0;
	memcpy(value, line, len);
	value[len] = '\0';
	return true;
}

/* Reads a header's date, which begins with a day; -1 if it is no date. */
static time_t
read_date(const char *value)
{
	return isalpha((unsigned char) value[0]) ? curl_getdate(value, NULL) : -1;
}

/* Reads a number of seconds, as ms, rounded up; -1 if it is no number. */
static int64
read_seconds(const char *value)
{
	char	   *end;
	double		seconds;

	if (!isdigit((unsigned char) value[0]) ||
		value[strspn(value, "0123456789.")] != '\0')
		return -1;
	seconds = strtod(value, &end);
	return *end != '\0' ? -1 :
		(int64) ceil(Min(seconds * 1000, ONSIDE_RETRY_AFTER_MAX_MS));
}

/*
 * Has the status three digits and no more?  libcurl reads three digits and
 * does not look at what follows.
 */
static bool
is_status_line(const char *line, size_t len)
{
	const char *blank = memchr(line, ' ', len);
	size_t		rest = blank == NULL ? 0 : len - (blank - line) - 1;

	return rest > 3 && isdigit((unsigned char) blank[1]) &&
		isdigit((unsigned char) blank[2]) &&
		isdigit((unsigned char) blank[3]) && strchr(" \r\n", blank[4]) != NULL;
}

/*
 * Takes a line of an answer's head, or a trailer behind a body in chunks,
 * which does not count.  Ends an answer whose head is too long.
 */
static size_t
on_header(char *line, size_t size, size_t n, void *arg)
{
	OnsideRequest *request = (OnsideRequest *) arg;
	size_t		len = size * n;
	char		value[MAX_HEADER_VALUE + 1];

	request->headers_size += len;
	if (request->headers_size > MAX_ANSWER_HEADERS)
		return 0;

	if (len > 5 && strncmp(line, "HTTP/", 5) == 0)
	{
		/*
		 * A new head begins: what an interim (1xx) answer said is forgotten.
		 */
		request->headers_over = false;
		request->odd_status = !is_status_line(line, len);
		request->wait_ms = request->wait_until = request->date = -1;
	}
	else if (len > 0 && (line[0] == '\r' || line[0] == '\n'))
		request->headers_over = true;	/* an empty line */
	else if (request->headers_over)
		return len;
	else if (header_value(line, len, "retry-after", value))
	{
		/* Of several of these headers, the longest wait counts. */
		int64		wait_ms = read_seconds(value);
		time_t		wait_until = read_date(value);

		request->wait_ms = Max(request->wait_ms, wait_ms);
		request->wait_until = Max(request->wait_until, wait_until);
	}
	else if (header_value(line, len, "date", value))
		request->date = read_date(value);
	return len;
}

/* ----------
 * Options
 * ----------
 */

/*
 * Sets user and password for the proxy.  All versions of libcurl decode
 * CURLOPT_PROXYUSERPWD as in a URL.  CURLOPT_PROXYUSERNAME and
 * CURLOPT_PROXYPASSWORD are decoded before 8.8, and taken as they are from
 * then on.
 */
static bool
set_proxy_credentials(CURL *easy, const char *credentials)
{
	int			user_len = strcspn(credentials, ":");
	char	   *user = curl_easy_escape(easy, credentials, user_len);
	char	   *password = curl_easy_escape(easy, credentials + user_len + 1,
											0);
	bool		ok = false;

	if (user != NULL && password != NULL)
	{
		/* Each byte can take three when it is encoded. */
		char		both[ONSIDE_CREDENTIALS_MAX * 3 + 1];

		snprintf(both, sizeof(both), "%s:%s", user, password);
		ok = curl_easy_setopt(easy, CURLOPT_PROXYUSERPWD, both) == CURLE_OK &&
			curl_easy_setopt(easy, CURLOPT_PROXYAUTH,
							 (long) CURLAUTH_BASIC) == CURLE_OK;

		/* libcurl has a copy; ours are not left in memory. */
		explicit_bzero(both, sizeof(both));
		explicit_bzero(user, strlen(user));
		explicit_bzero(password, strlen(password));
	}
	curl_free(user);
	curl_free(password);
	return ok;
}

/*
 * Sets everything that decides to whom a connection is made, and whom it
 * trusts.  Returns false if there was no memory for an option without which
 * the connection would go elsewhere, by another proxy, or to somebody whom we
 * do not trust.
 */
static bool
set_transport(OnsideRequest *request, const OnsideHttpConfig *config)
{
	CURL	   *easy = request->easy;
	bool		https = pg_strncasecmp(config->url, "https:", 6) == 0;

	/*
	 * An empty proxy is set, too: libcurl would ask the environment for one.
	 */
	if (curl_easy_setopt(easy, CURLOPT_URL, config->url) != CURLE_OK ||
		curl_easy_setopt(easy, CURLOPT_PROXY, config->proxy) != CURLE_OK ||
		curl_easy_setopt(easy, CURLOPT_NOPROXY, "") != CURLE_OK ||
		(config->ca_file[0] != '\0' &&
		 curl_easy_setopt(easy, CURLOPT_CAINFO, config->ca_file) != CURLE_OK) ||
		(config->proxy_credentials != NULL &&
		 !set_proxy_credentials(easy, config->proxy_credentials)))
		return false;

	/* Such a proxy reads the request, and can answer in the API's place. */
	request->plain_proxy = !https && config->proxy[0] != '\0' &&
		pg_strncasecmp(config->proxy, "socks", 5) != 0;

	/*
	 * libcurl looks for an early answer before each piece of a body.  Over TLS
	 * a piece is one record, which costs no more than larger ones; a plain
	 * socket takes larger ones for much less.
	 */
	curl_easy_setopt(easy, CURLOPT_UPLOAD_BUFFERSIZE,
					 https ? 16384L : 65536L);

	/* Nothing but HTTP, to the host that was asked for and no other. */
#if LIBCURL_VERSION_NUM >= 0x075500
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
#else
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS,
					 (long) (CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
	curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
	if (!https)
	{
		curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, on_open_socket);
		curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, request);
	}

	/*
	 * No passwords from a file of the server's user; CONNECT's answer is not
	 * taken for the endpoint's; a name is resolved anew for each connection.
	 */
	curl_easy_setopt(easy, CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
	curl_easy_setopt(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
	curl_easy_setopt(easy, CURLOPT_DNS_CACHE_TIMEOUT, 0L);

	/* The certificate must be valid, and be that host's. */
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 1L);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 2L);
	curl_easy_setopt(easy, CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	/* ca_file is trusted instead of the system's authorities. */
	if (config->ca_file[0] != '\0')
		curl_easy_setopt(easy, CURLOPT_CAPATH, NULL);
	/* A resumed TLS session can lead back to a server that is broken. */
	curl_easy_setopt(easy, CURLOPT_SSL_SESSIONID_CACHE, 0L);
#if LIBCURL_VERSION_NUM >= 0x075700
	/* A replaced ca_file counts from the next connection on. */
	curl_easy_setopt(easy, CURLOPT_CA_CACHE_TIMEOUT, 0L);
	/* Never join a resolver thread that hangs; see also new_multi(). */
	curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);
#endif

	/* No signals: the process is PostgreSQL's. */
	curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
	curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, request->errbuf);
	return true;
}

/*
 * Headers of every request.  "Expect:" without a value keeps libcurl from
 * sending "Expect: 100-continue", which costs a round trip, or a second where
 * the server does not know it.  Nothing changes the list, but libcurl takes
 * no const.
 */
static struct curl_slist headers[] = {
	{"Content-Type: application/json", &headers[1]},
	{"Accept: application/json", &headers[2]},
	{"Expect:", NULL},
};

/*
 * Sets what a request needs besides a connection; false if there is no
 * memory.
 */
static bool
set_request(OnsideRequest *request, const OnsideHttpConfig *config)
{
	CURL	   *easy = request->easy;

	if (curl_easy_setopt(easy, CURLOPT_USERPWD,
						 config->credentials) != CURLE_OK)
		return false;

	curl_easy_setopt(easy, CURLOPT_POST, 1L);
	curl_easy_setopt(easy, CURLOPT_HTTPHEADER, &headers[0]);
	curl_easy_setopt(easy, CURLOPT_USERAGENT, "onside_attribution");
	curl_easy_setopt(easy, CURLOPT_HTTPAUTH, (long) CURLAUTH_BASIC);

	/* Besides the time for all of it, which differs; see STALL_SECONDS. */
	curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS,
					 (long) config->connect_timeout);
	curl_easy_setopt(easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
	curl_easy_setopt(easy, CURLOPT_LOW_SPEED_TIME, (long) STALL_SECONDS);

	/* libcurl hands over what comes, and says each time it sends. */
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(easy, CURLOPT_WRITEDATA, request);
	curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header);
	curl_easy_setopt(easy, CURLOPT_HEADERDATA, request);
#if LIBCURL_VERSION_NUM >= 0x075000
	curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, on_attempt);
	curl_easy_setopt(easy, CURLOPT_PREREQDATA, request);
#endif
	return true;
}

/* The handle serves many requests, until the configuration changes. */
bool
onside_request_open(OnsideRequest *request, const OnsideHttpConfig *config,
					bool probe)
{
	request->easy = curl_easy_init();
	if (request->easy != NULL && set_transport(request, config) &&
		(probe ?
		 curl_easy_setopt(request->easy, CURLOPT_CONNECT_ONLY, 1L) == CURLE_OK :
		 set_request(request, config)))
		return true;

	/* Half a handle is of no use. */
	curl_easy_cleanup(request->easy);
	request->easy = NULL;
	return false;
}

void
onside_request_reset(OnsideRequest *request)
{
	request->len = 0;
	request->attempts = 0;
	request->kept_in = false;
	request->headers_size = 0;
	request->body_size = 0;
	request->headers_over = request->odd_status = false;
	request->wait_ms = request->wait_until = request->date = -1;
	request->errbuf[0] = '\0';
	memset(&request->answer, 0, sizeof(request->answer));
}

void
onside_request_set_body(OnsideRequest *request, const char *body, size_t len,
						int timeout_ms)
{
	request->len = len;
	curl_easy_setopt(request->easy, CURLOPT_POSTFIELDS, body);
	curl_easy_setopt(request->easy, CURLOPT_POSTFIELDSIZE_LARGE,
					 (curl_off_t) len);
	curl_easy_setopt(request->easy, CURLOPT_TIMEOUT_MS, (long) timeout_ms);
}

/* ----------
 * What an answer says
 * ----------
 */

/*
 * Makes what came from outside fit for a log line and a text column: control
 * characters become spaces, and what is not UTF-8 becomes question marks.  In
 * a database of another encoding all that is not ASCII does.
 */
static void
make_printable(char *str)
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

			/* U+0080 to U+009F are control characters, too */
			if (utf8 && strnlen((char *) p, len) == (size_t) len &&
				pg_utf8_islegal(p, len) && !(p[0] == 0xc2 && p[1] < 0xa0))
				p += len;
			else
				*p++ = '?';
		}
	}

	/* A last line end has become a space. */
	while (p > (unsigned char *) str && p[-1] == ' ')
		*--p = '\0';
}

/* Did the SOCKS proxy refuse us, or did it only not reach the endpoint? */
static bool
is_socks_refusal(CURL *easy)
{
	long		reply = CURLPX_OK;

	curl_easy_getinfo(easy, CURLINFO_PROXY_ERROR, &reply);
	switch (reply)
	{
		case CURLPX_IDENTD:
		case CURLPX_IDENTD_DIFFER:
		case CURLPX_NO_AUTH:
		case CURLPX_REPLY_ADDRESS_TYPE_NOT_SUPPORTED:
		case CURLPX_REPLY_COMMAND_NOT_SUPPORTED:
		case CURLPX_REPLY_GENERAL_SERVER_FAILURE:
		case CURLPX_REPLY_NOT_ALLOWED:
		case CURLPX_REQUEST_FAILED:
		case CURLPX_USER_REJECTED:
			return true;
		default:
			return false;
	}
}

/*
 * Is what came an answer that can be believed?
 *
 * - One that came to its end, in libcurl's eyes and by its head.
 * - One whose body we cut off: what was read is enough, the status counts.
 * - A refusal of which the whole head has come, if the server closed the
 *	 connection before it had read all that we sent.  The connection can break
 *	 then while the refusal's body is still on the way.
 */
static bool
is_answer_complete(OnsideRequest *request, CURLcode code, int status)
{
	curl_off_t	sent = 0;

	if (status < 200 || request->odd_status)
		return false;
	switch (code)
	{
		case CURLE_OK:
			/* false if the connection was closed within the head */
			return request->headers_over;
		case CURLE_WRITE_ERROR:
			return request->body_size > MAX_ANSWER_BODY;
		case CURLE_SEND_ERROR:
		case CURLE_RECV_ERROR:
		case CURLE_PARTIAL_FILE:
			curl_easy_getinfo(request->easy, CURLINFO_SIZE_UPLOAD_T, &sent);
			return request->headers_over && status >= 300 &&
				sent < (curl_off_t) request->len;
		default:
			return false;
	}
}

/*
 * What libcurl's error says about the peer.  An error that is not named here
 * means that there was no connection, or that it broke.
 */
static OnsideAnswerKind
kind_of_failure(OnsideRequest *request, CURLcode code)
{
	switch (code)
	{
		case CURLE_OPERATION_TIMEDOUT:
			return ONSIDE_ANSWER_TIMEOUT;
		case CURLE_OK:			/* with an interim status */
		case CURLE_WEIRD_SERVER_REPLY:
		case CURLE_UNSUPPORTED_PROTOCOL:	/* HTTP/0.9 */
		case CURLE_PARTIAL_FILE:
		case CURLE_WRITE_ERROR: /* we had enough */
		case CURLE_BAD_CONTENT_ENCODING:
			return ONSIDE_ANSWER_MALFORMED;
		case CURLE_PEER_FAILED_VERIFICATION:
		case CURLE_SSL_CACERT_BADFILE:
		case CURLE_SSL_ISSUER_ERROR:
			return ONSIDE_ANSWER_NOT_TRUSTED;
		case CURLE_PROXY:
			return is_socks_refusal(request->easy) ?
				ONSIDE_ANSWER_PROXY_REFUSED : ONSIDE_ANSWER_NO_CONNECTION;
		default:
			return ONSIDE_ANSWER_NO_CONNECTION;
	}
}

/* The longest wait that the answer asks for, in ms; -1 for none. */
static int64
retry_after_ms(const OnsideRequest *request)
{
	int64		wait_ms = request->wait_ms;

	if (request->wait_until != -1)
	{
		/* By the peer's clock, if it tells: ours may be wrong. */
		time_t		now = request->date != -1 ? request->date : time(NULL);

		wait_ms = Max(wait_ms, (int64) (request->wait_until - now) * 1000);
	}
	return wait_ms < 0 ? -1 : Min(wait_ms, ONSIDE_RETRY_AFTER_MAX_MS);
}

/*
 * Puts into words why there is no answer of the endpoint's.  body: what came.
 */
static void
set_words(OnsideRequest *request, CURLcode code, const char *body)
{
	OnsideAnswer *answer = &request->answer;
	const char *said = request->errbuf[0] != '\0' ? request->errbuf :
		curl_easy_strerror(code);

	/*
	 * A proxy has a status (HTTP) or none (SOCKS).  Where we ended the request
	 * ourselves, libcurl has no words for the reason.
	 */
	if (answer->kind == ONSIDE_ANSWER_PROXY_REFUSED && answer->status != 0)
		snprintf(answer->words, sizeof(answer->words),
				 "the proxy answered %d%s%s", answer->status,
				 body[0] != '\0' ? ": " : "", body);
	else if (answer->kind == ONSIDE_ANSWER_PROXY_REFUSED)
		snprintf(answer->words, sizeof(answer->words),
				 "the proxy refused: %s", said);
	else if (request->kept_in)
		strlcpy(answer->words,
				"refused to connect without TLS to an address that is not loopback: check the setting proxy, and what localhost resolves to",
				sizeof(answer->words));
	else if (request->headers_size > MAX_ANSWER_HEADERS)
		strlcpy(answer->words, "the answer has no end", sizeof(answer->words));
	else
		strlcpy(answer->words, said, sizeof(answer->words));
}

/*
 * Says how the request ended.  An answer is the proxy's, and not the
 * endpoint's, if it is the one to CONNECT, or a 407 of a proxy that reads the
 * request itself.
 */
void
onside_request_judge(OnsideRequest *request, CURLcode code)
{
	OnsideAnswer *answer = &request->answer;
	CURL	   *easy = request->easy;
	long		status = 0;
	long		connect_status = 0;
	long		connections = 0;
	curl_off_t	duration = 0;

	/* There is no handle if there was no memory for one. */
	request->code = code;
	if (easy != NULL)
	{
		curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
		curl_easy_getinfo(easy, CURLINFO_HTTP_CONNECTCODE, &connect_status);
		curl_easy_getinfo(easy, CURLINFO_NUM_CONNECTS, &connections);
		curl_easy_getinfo(easy, CURLINFO_TOTAL_TIME_T, &duration);
	}

	/* Whose answer is it, if it is one? */
	if (code != CURLE_OK && connect_status != 0 && connect_status / 100 != 2)
	{
		answer->kind = ONSIDE_ANSWER_PROXY_REFUSED;
		status = connect_status;
	}
	else if (!is_answer_complete(request, code, status))
		answer->kind = kind_of_failure(request, code);
	else if (status == 407 && request->plain_proxy)
		answer->kind = ONSIDE_ANSWER_PROXY_REFUSED;
	else
		answer->kind = ONSIDE_ANSWER_COMPLETE;

	/* Only the endpoint can ask to wait. */
	answer->status = (int) status;
	answer->retry_after_ms = answer->kind == ONSIDE_ANSWER_COMPLETE ?
		retry_after_ms(request) : -1;
	answer->duration = duration;
	answer->connections = (int) connections;
	answer->repeats = Max(request->attempts - 1, 0);

	/*
	 * Take credentials out before anything is put in front of the words or
	 * the words are made printable: both could tear a secret apart.  Where
	 * the endpoint said nothing, libcurl's words or ours take the place.
	 */
	onside_secret_hide(answer->words,
					   request->body_size > ONSIDE_ANSWER_WORDS_MAX);
	if (answer->kind != ONSIDE_ANSWER_COMPLETE)
	{
		char		body[ONSIDE_ANSWER_WORDS_MAX + 1];

		strlcpy(body, answer->words, sizeof(body));
		set_words(request, code, body);
		onside_secret_hide(answer->words, false);
	}
	make_printable(answer->words);
}
