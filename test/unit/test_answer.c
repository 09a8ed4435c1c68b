/*-------------------------------------------------------------------------
 *
 * test_answer.c
 *		What an answer means, whatever bytes it has, as libcurl reads them.
 *
 * The promise held here, in docs/delivery.md's words: 204 alone acknowledges,
 * and each other status has its class; what is no whole HTTP answer is a
 * failure; Retry-After is obeyed in each of its forms, an hour at most, and
 * what cannot be read is none; what is kept of a body is at most 1 kB of
 * printable text.  No redirect is followed.
 *
 * Each answer is a real one: a child process listens on loopback, reads the
 * request and says the bytes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "send/request.h"
#include "send/response.h"

/* postgres.h points these at the server's own */
#undef printf
#undef snprintf
#undef strerror

/* ----------
 * The server's part
 * ----------
 */

MemoryContext TopMemoryContext;

static int	encoding = PG_UTF8;

int
GetDatabaseEncoding(void)
{
	return encoding;
}

/* Contexts are none here, and not each case has each field. */
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

void *
MemoryContextAlloc(MemoryContext context, Size size)
{
	return palloc(size);
}

char *
MemoryContextStrdup(MemoryContext context, const char *string)
{
	return pstrdup(string);
}

static int	passed = 0;
static int	failed = 0;

static void
ok(bool condition, const char *what, const char *detail)
{
	if (condition)
		passed++;
	else
		failed++;
	printf("%sok %d - %.*s\n", condition ? "" : "not ", passed + failed,
		   (int) strcspn(what, "\r\n"), what);
	if (!condition)
		printf("# %s\n", detail);
}

/* ----------
 * A peer that says what it is told
 * ----------
 */

static int	listener;
static OnsideRequest request;
static OnsideHttpConfig config;

#define BODY	"{\"events\": []}"

/* Reads one request, says the bytes and hangs up. */
static void
say(const char *bytes, size_t len)
{
	char		got[4096] = "";
	size_t		n = 0;
	int			client = accept(listener, NULL, NULL);

	while (strstr(got, BODY) == NULL && n < sizeof(got) - 1)
	{
		ssize_t		more = read(client, got + n, sizeof(got) - 1 - n);

		if (more <= 0)
			break;
		n += more;
	}
	while (len > 0)
	{
		ssize_t		written = write(client, bytes, len);

		if (written <= 0)
			break;
		bytes += written;
		len -= written;
	}
	close(client);
}

/* Sends a request that is answered by these bytes; returns what it came to. */
static OnsideResponseClass
answered(const char *bytes, size_t len)
{
	pid_t		child;
	CURLcode	code;

	fflush(stdout);
	child = fork();
	if (child == 0)
	{
		alarm(30);
		signal(SIGPIPE, SIG_IGN);
		say(bytes, len);
		_exit(0);
	}
	onside_request_reset(&request);
	onside_request_set_body(&request, BODY, strlen(BODY), 20000);
	code = curl_easy_perform(request.easy);
	onside_request_judge(&request, code);
	waitpid(child, NULL, 0);
	return onside_response_classify(&request.answer);
}

/* An answer with these further headers, each with its end of line. */
static OnsideResponseClass
answered_with(int status, const char *headers, const char *body, size_t len)
{
	static char bytes[300000];
	int			n = snprintf(bytes, sizeof(bytes),
							 "HTTP/1.1 %d No\r\n%sContent-Length: %zu\r\n"
								"Connection: close\r\n\r\n",
							 status, headers, len);

	memcpy(bytes + n, body, len);
	return answered(bytes, n + len);
}

/* ----------
 * Classes
 * ----------
 */

static void
test_classes(void)
{
	static const struct
	{
		int			from;
		int			to;
		OnsideResponseClass class;
		OnsideResponseClass asked;	/* with a Retry-After */
	}			classes[] = {
		{100, 199, ONSIDE_RESPONSE_RETRY, ONSIDE_RESPONSE_RETRY},
		{200, 203, ONSIDE_RESPONSE_MISCONFIGURED,
			ONSIDE_RESPONSE_MISCONFIGURED},
		{204, 204, ONSIDE_RESPONSE_DELIVERED, ONSIDE_RESPONSE_DELIVERED},
		{205, 399, ONSIDE_RESPONSE_MISCONFIGURED,
			ONSIDE_RESPONSE_MISCONFIGURED},
		{400, 400, ONSIDE_RESPONSE_REFUSED, ONSIDE_RESPONSE_REFUSED},
		{401, 401, ONSIDE_RESPONSE_UNAUTHORIZED, ONSIDE_RESPONSE_UNAUTHORIZED},
		{402, 402, ONSIDE_RESPONSE_MISCONFIGURED,
			ONSIDE_RESPONSE_MISCONFIGURED},
		{403, 403, ONSIDE_RESPONSE_UNAUTHORIZED, ONSIDE_RESPONSE_UNAUTHORIZED},
		{404, 407, ONSIDE_RESPONSE_MISCONFIGURED,
			ONSIDE_RESPONSE_MISCONFIGURED},
		{408, 408, ONSIDE_RESPONSE_RETRY, ONSIDE_RESPONSE_RETRY},
		{409, 412, ONSIDE_RESPONSE_MISCONFIGURED,
			ONSIDE_RESPONSE_MISCONFIGURED},
		{413, 413, ONSIDE_RESPONSE_TOO_LARGE, ONSIDE_RESPONSE_TOO_LARGE},
		{414, 424, ONSIDE_RESPONSE_MISCONFIGURED,
			ONSIDE_RESPONSE_MISCONFIGURED},
		{425, 425, ONSIDE_RESPONSE_RETRY, ONSIDE_RESPONSE_RETRY},
		{426, 428, ONSIDE_RESPONSE_MISCONFIGURED,
			ONSIDE_RESPONSE_MISCONFIGURED},
		{429, 429, ONSIDE_RESPONSE_THROTTLED, ONSIDE_RESPONSE_THROTTLED},
		{430, 499, ONSIDE_RESPONSE_MISCONFIGURED,
			ONSIDE_RESPONSE_MISCONFIGURED},
		{500, 502, ONSIDE_RESPONSE_RETRY, ONSIDE_RESPONSE_RETRY},
		{503, 503, ONSIDE_RESPONSE_RETRY, ONSIDE_RESPONSE_THROTTLED},
		{504, 999, ONSIDE_RESPONSE_RETRY, ONSIDE_RESPONSE_RETRY},
	};

	for (int i = 0; i < (int) lengthof(classes); i++)
	{
		OnsideAnswer answer = {.kind = ONSIDE_ANSWER_COMPLETE};
		char		what[100];
		bool		right = true;

		for (int status = classes[i].from; status <= classes[i].to; status++)
		{
			answer.status = status;
			answer.retry_after_ms = -1;
			right &= onside_response_classify(&answer) == classes[i].class;
			answer.retry_after_ms = 0;
			right &= onside_response_classify(&answer) == classes[i].asked;
		}
		snprintf(what, sizeof(what), "the class of %d to %d",
				 classes[i].from, classes[i].to);
		ok(right, what, "another class");
	}

	/* A status without a whole answer of the endpoint acknowledges nothing. */
	for (int kind = ONSIDE_ANSWER_NO_CONNECTION;
		 kind <= ONSIDE_ANSWER_PROXY_REFUSED; kind++)
	{
		OnsideResponseClass class =
			kind == ONSIDE_ANSWER_NOT_TRUSTED ||
			kind == ONSIDE_ANSWER_PROXY_REFUSED ?
			ONSIDE_RESPONSE_MISCONFIGURED : ONSIDE_RESPONSE_RETRY;
		bool		right = true;

		for (int status = 0; status < 1000; status++)
		{
			OnsideAnswer answer = {.kind = kind,.status = status,
				.retry_after_ms = 1000};

			right &= onside_response_classify(&answer) == class;
		}
		ok(right, "no whole answer, or somebody else's", "another class");
	}
}

/* ----------
 * Whole answers and others
 * ----------
 */

static void
test_whole_answers(void)
{
	static const struct
	{
		const char *bytes;
		bool		whole;
		OnsideResponseClass class;
	}			cases[] = {
		{"HTTP/1.1 204 No Content\r\n\r\n", true, ONSIDE_RESPONSE_DELIVERED},
		{"HTTP/1.0 204 No Content\r\n\r\n", true, ONSIDE_RESPONSE_DELIVERED},
		{"HTTP/1.1 204 \r\n\r\n", true, ONSIDE_RESPONSE_DELIVERED},
		{"HTTP/1.1 204 No Content\r\nRetry-After: 3600\r\n"
			"Location: http://127.0.0.1:1/\r\nRefresh: 0\r\n\r\n",
		true, ONSIDE_RESPONSE_DELIVERED},
		{"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n"
			"\r\nHTTP/1.1 204 No Content\r\n\r\n",
		true, ONSIDE_RESPONSE_DELIVERED},
		{"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n"
			"Content-Length: 0\r\n\r\n",
		true, ONSIDE_RESPONSE_MISCONFIGURED},
		{"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n"
			"Content-Length: 0\r\n\r\n",
		true, ONSIDE_RESPONSE_MISCONFIGURED},
		{"HTTP/1.1 302 Found\r\nLocation: \r\nContent-Length: 0\r\n\r\n",
		true, ONSIDE_RESPONSE_MISCONFIGURED},

		/* A 204 acknowledges nothing before its head has ended. */
		{"HTTP/1.1 204 No Content\r\n", false, ONSIDE_RESPONSE_RETRY},
		{"HTTP/1.1 204 No Content\r\nX: y\r\n", false, ONSIDE_RESPONSE_RETRY},
		{"HTTP/1.1 204", false, ONSIDE_RESPONSE_RETRY},
		{"HTTP/1.1 2040 OK\r\n\r\n", false, ONSIDE_RESPONSE_RETRY},
		{"HTTP/1.1 204x OK\r\n\r\n", false, ONSIDE_RESPONSE_RETRY},
		{"HTTP/1.1 100 Continue\r\n\r\n", false, ONSIDE_RESPONSE_RETRY},
		{"204 No Content\r\n\r\n", false, ONSIDE_RESPONSE_RETRY},
		{"\x16\x03\x01\x02" "garbage", false, ONSIDE_RESPONSE_RETRY},
		{"", false, ONSIDE_RESPONSE_RETRY},

		/* Nor is a refusal one before its body has. */
		{"HTTP/1.1 400 No\r\nContent-Length: 100\r\n\r\ntorn", false,
			ONSIDE_RESPONSE_RETRY},
		{"HTTP/1.1 413 No\r\nContent-Length: 100\r\n\r\ntorn", false,
			ONSIDE_RESPONSE_RETRY},
		{"HTTP/1.1 401 No\r\nContent-Length: 100\r\n\r\ntorn", false,
			ONSIDE_RESPONSE_RETRY},
		{"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ntorn", false,
			ONSIDE_RESPONSE_RETRY},
		{"HTTP/1.1 503 No\r\nRetry-After: 9\r\nContent-Length: 100\r\n\r\ntorn",
			false, ONSIDE_RESPONSE_RETRY},
		{"HTTP/1.1 400 No\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", false,
			ONSIDE_RESPONSE_RETRY},
		{"HTTP/1.1 503 No\r\nRetry-After: 9\r\nTransfer-Encoding: chunked\r\n"
			"\r\nxyz\r\n", false, ONSIDE_RESPONSE_RETRY},
	};
	static char endless[100000];

	for (int i = 0; i < (int) lengthof(cases); i++)
	{
		OnsideResponseClass class = answered(cases[i].bytes,
											 strlen(cases[i].bytes));
		char		detail[2000];

		snprintf(detail, sizeof(detail), "kind %d, class %d: %s",
				 request.answer.kind, class, request.answer.words);
		ok(class == cases[i].class && cases[i].whole ==
		   (request.answer.kind == ONSIDE_ANSWER_COMPLETE),
		   cases[i].bytes, detail);
		ok(class == ONSIDE_RESPONSE_DELIVERED || request.answer.status != 0 ||
		   request.answer.words[0] != '\0', "which says why", cases[i].bytes);
	}

	/* Of one without end, the status is believed and the head is not. */
	memset(endless, 'x', sizeof(endless));
	ok(answered_with(400, "", endless,
		sizeof(endless)) == ONSIDE_RESPONSE_REFUSED &&
	   strlen(request.answer.words) == ONSIDE_ANSWER_WORDS_MAX,
	   "a body that is too long", request.answer.words);
	memcpy(endless, "HTTP/1.1 204 No\r\nX: ", 20);
	for (size_t i = 1000; i + 5 < sizeof(endless); i += 1000)
		memcpy(endless + i, "\r\nX: ", 5);
	ok(answered(endless, sizeof(endless)) == ONSIDE_RESPONSE_RETRY &&
	   strcmp(request.answer.words, "the answer has no end") == 0,
	   "headers without end", request.answer.words);
}

/* ----------
 * Retry-After
 * ----------
 */

/* HTTP-dates in the three forms of RFC 9110. */
#define IMF		"%a, %d %b %Y %H:%M:%S GMT"
#define RFC850	"%A, %d-%b-%y %H:%M:%S GMT"
#define ASCTIME	"%a %b %e %H:%M:%S %Y"

/*
 * Writes "name: date" of a moment after the API's clock, which is three days
 * slow or 20 years fast: that must not matter.
 */
static const char *
dated(const char *name, const char *form, time_t moment)
{
	static char lines[64][100];
	static int	next = 0;
	char	   *line = lines[next++ % lengthof(lines)];
	int			n = snprintf(line, 30, "%s: ", name);

	n += strftime(line + n, 60, form, gmtime(&moment));
	strcpy(line + n, "\r\n");
	return line;
}

/* How many ms a 429 with these headers asks to wait. */
static int64
asked(const char *a, const char *b, const char *c)
{
	char		headers[4500];

	snprintf(headers, sizeof(headers), "%s%s%s", a, b, c);
	answered_with(429, headers, "", 0);
	return request.answer.retry_after_ms;
}

static void
asked_ok(const char *what, int64 wanted, const char *a, const char *b,
		 const char *c)
{
	int64		ms = asked(a, b, c);
	char		detail[100];

	snprintf(detail, sizeof(detail),
		INT64_FORMAT " ms instead of " INT64_FORMAT,
			 ms, wanted);
	ok(ms == wanted, what, detail);
}

static void
test_retry_after(void)
{
	static const struct
	{
		const char *value;
		int64		ms;
	}			cases[] = {
		{"120", 120000}, {" 120\t", 120000}, {"120.5", 120500},
		{"0.0001", 1}, {"0", 0}, {"3600", 3600000}, {"3601", 3600000},
		{"99999999999", 3600000}, {"315360000", 3600000},
		{"9999999999999999999999999999999999999999999999999", 3600000},
		{"-120", -1}, {"+500", -1}, {"in two hours", -1}, {"", -1},
		{"\xe4\xff\x80%s%n", -1}, {"1e3", -1}, {"0x100", -1}, {"inf", -1},
		{"nan", -1}, {"500 s", -1}, {"500, 500", -1}, {"500.1.2", -1},
		{".", -1}, {"Monday", -1}, {"31 Dec 2098 23:59:59 GMT", -1},
		{"Wed, 31 Dec 2098 23:59:59 GMT", 3600000},
	};
	time_t		slow = time(NULL) - 3 * 86400;
	time_t		fast = time(NULL) + 20 * 365 * 86400;
	const char *date = dated("Date", IMF, slow);
	static char line[4096] = "Retry-After: ";
	int64		ms;

	for (int i = 0; i < (int) lengthof(cases); i++)
	{
		snprintf(line, sizeof(line), "Retry-After: %s\r\n", cases[i].value);
		asked_ok(line, cases[i].ms, line, "", "");
	}
	asked_ok("none", -1, "", "", "");
	asked_ok("in small letters", 120000, "retry-after:120\r\n", "", "");
	asked_ok("a longer name", -1, "Retry-After-All: 500\r\n", "", "");
	memset(line + 13, '1', 3000);
	strcpy(line + 3013, "\r\n");
	asked_ok("longer than any number", -1, line, "", "");

	asked_ok("IMF-fixdate", 300000, date, dated("Retry-After", IMF, slow + 300),
		"");
	asked_ok("RFC 850", 300000, date, dated("Retry-After", RFC850, slow + 300),
		"");
	asked_ok("asctime", 300000, date, dated("Retry-After", ASCTIME, slow + 300),
		"");
	asked_ok("before Date", 300000, dated("Retry-After", IMF, slow + 300), date,
		"");
	asked_ok("a clock that is 20 years fast", 300000, dated("Date", IMF, fast),
			 dated("Retry-After", IMF, fast + 300), "");
	asked_ok("in ten years", 3600000, date,
			 dated("Retry-After", IMF, slow + 315360000), "");
	asked_ok("in the past", -1, date, dated("Retry-After", IMF, slow - 300),
		"");
	ms = asked(dated("Retry-After", IMF, time(NULL) + 300), "", "");
	ok(ms > 280000 && ms <= 300000, "by our own clock without Date", "no");
	ms = asked(dated("Retry-After", IMF, time(NULL) + 300), "Date: now\r\n",
		"");
	ok(ms > 280000 && ms <= 300000, "or with one that is none", "no");

	asked_ok("the longer one first", 120000, "Retry-After: 120\r\n",
		"Retry-After: 60\r\n", "");
	asked_ok("the longer one last", 120000, "Retry-After: 60\r\n",
		"Retry-After: 120\r\n", "");
	asked_ok("two dates", 300000, date, dated("Retry-After", IMF, slow + 300),
			 dated("Retry-After", IMF, slow + 60));
	asked_ok("a date and fewer seconds", 300000,
			 dated("Retry-After", IMF, slow + 300), "Retry-After: 60\r\n",
				date);
	asked_ok("a date and more seconds", 600000,
			 dated("Retry-After", IMF, slow + 60), date,
				"Retry-After: 600\r\n");
	asked_ok("a past date and seconds", 120000, date,
			 dated("Retry-After", IMF, slow - 60), "Retry-After: 120\r\n");
	asked_ok("none before seconds", 120000, "Retry-After: soon\r\n",
		"Retry-After: 120\r\n", "");
	asked_ok("none behind seconds", 120000, "Retry-After: 120\r\n",
		"Retry-After: -1\r\n", "");

#define INTERIM "HTTP/1.1 103 Early Hints\r\nRetry-After: 500\r\n\r\n"
#define REFUSAL "HTTP/1.1 429 No\r\n"
#define ENDED "Content-Length: 0\r\n\r\n"
	answered(INTERIM REFUSAL ENDED, strlen(INTERIM REFUSAL ENDED));
	ok(request.answer.retry_after_ms == -1,
		"an interim answer's does not count", "it does");
	answered(INTERIM REFUSAL "Retry-After: 120\r\n" ENDED,
			 strlen(INTERIM REFUSAL "Retry-After: 120\r\n" ENDED));
	ok(request.answer.retry_after_ms == 120000,
		"one behind an interim answer does", "it does not");
#define TRAILER "Trailer: Retry-After\r\nTransfer-Encoding: chunked\r\n\r\n" \
	"1\r\nx\r\n0\r\nRetry-After: 500\r\n\r\n"
	answered(REFUSAL TRAILER, strlen(REFUSAL TRAILER));
	ok(request.answer.kind == ONSIDE_ANSWER_COMPLETE &&
	   request.answer.retry_after_ms == -1, "a trailer's does not count",
		"it does");
}

/* ----------
 * Words
 * ----------
 */

/* Is this 1 kB at most of valid UTF-8 (or ASCII) without control characters? */
static bool
is_printable(const char *str)
{
	const unsigned char *p = (const unsigned char *) str;
	bool		good = strlen(str) <= ONSIDE_ANSWER_WORDS_MAX;

	for (int len; *p != '\0'; p += len)
	{
		len = pg_utf_mblen(p);
		good &= *p >= 0x20 && *p != 0x7f;
		good &= *p < 0x80 || encoding == PG_UTF8;
		if (strnlen((const char *) p, len) < (size_t) len)
			return false;
		good &= pg_utf8_islegal(p, len);
		good &= !(p[0] == 0xc2 && p[1] < 0xa0);
	}
	return good;
}

static void
test_words(void)
{
	static const struct
	{
		const char *body;
		const char *words;		/* NULL: whatever is printable */
		int			times;		/* so many of the body; 0: one */
	}			cases[] = {
		{"", ""},
		{"plain words", "plain words"},
		{"\xff\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80\xff",
			"?\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80?"},
		{"a\xff\xfe\x80\xbfz", "a????z"},
		{"Zugriff verweigert f\xfcr M\xfcller",
			"Zugriff verweigert f?r M?ller"},
		{"a\xc0\x80" "b", "a??b"},
		{"a\xe0\x80\xaf" "b\xf0\x80\x80\xaf" "c", "a???b????c"},
		{"a\xed\xa0\x80" "b", "a???b"},
		{"a\xf4\x90\x80\x80" "b\xf5\x80\x80\x80" "c", "a????b????c"},
		{"ab\xe2\x82", "ab??"},
		{"ab\xf0", "ab?"},
		{"a\xe2\x82" "b\xe2" "c", "a??b?c"},
		{"a\xe2\x1b[31m\xac" "b", "a? [31m?b"},
		{"a\xc2\x85" "b\xc2\x9b" "31mc", "a??b??31mc"},
		{"\x1b[31mred\x1b]0;title\a \x1b[2J\b\b\r\n\tnext line\n",
			" [31mred ]0;title   [2J     next line"},
		{"x\n2026-01-01 00:00:00 UTC [1] LOG:  forged",
			"x 2026-01-01 00:00:00 UTC [1] LOG:  forged"},
		{"%s%s%s%n%m%d", "%s%s%s%n%m%d"},
		{"x", NULL, 2048}, {"\xff", NULL, 3000},
		{"\xc3\xa4", NULL, 1000}, {"\xe2\x82\xac", NULL, 1000},
		{"\xf0\x9f\x98\x80", NULL, 1000}, {"\xe2\x82\xac\xff", NULL, 1000},
	};
	static char body[8000];
	static char all[2048];
	char	   *p = all;

	for (int i = 0; i < (int) lengthof(cases); i++)
	{
		const char *unit = cases[i].body;

		/* Wherever a character is cut. */
		for (int before = 0; before < (cases[i].times == 0 ? 1 : 4); before++)
		{
			memset(body, 'x', before);
			body[before] = '\0';
			for (int n = 0; n < Max(cases[i].times, 1); n++)
				strcpy(body + before + n * strlen(unit), unit);
			answered_with(before % 2 == 0 ? 500 : 400, "", body, strlen(body));
			ok(is_printable(request.answer.words) &&
			   (cases[i].words == NULL ?
				strlen(request.answer.words) > ONSIDE_ANSWER_WORDS_MAX - 4 :
				strcmp(request.answer.words, cases[i].words) == 0),
			   "words that are fit to be shown", request.answer.words);
		}
	}

	for (int n = 1; n < 256 * 4; n++)
		if (n % 256 != 0)
			*p++ = n % 256;
	answered_with(500, "", all, p - all);
	ok(is_printable(request.answer.words), "all bytes", request.answer.words);
	answered_with(500, "", "before\0after", 12);
	ok(strcmp(request.answer.words, "before") == 0, "a zero ends it",
		request.answer.words);

	encoding = PG_LATIN1;
	answered_with(500, "", "\xc3\xa4\xe2\x82\xac ok", 8);
	ok(strcmp(request.answer.words, "????? ok") == 0,
	   "ASCII alone in another encoding", request.answer.words);
	encoding = PG_UTF8;
}

int
main(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t	len = sizeof(address);
	char		url[100];

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	listener = socket(AF_INET, SOCK_STREAM, 0);
	if (listener < 0 ||
		bind(listener, (struct sockaddr *) &address, sizeof(address)) != 0 ||
		listen(listener, 5) != 0 ||
		getsockname(listener, (struct sockaddr *) &address, &len) != 0)
	{
		perror("could not listen");
		return 1;
	}
	snprintf(url, sizeof(url), "http://127.0.0.1:%d/", ntohs(address.sin_port));
	config.url = url;
	config.credentials = "user:password";
	config.ca_file = config.proxy = "";
	config.connect_timeout = 10000;
	if (!onside_request_open(&request, &config, false))
		return 1;

	test_classes();
	test_whole_answers();
	test_retry_after();
	test_words();
	printf("%d passed, %d failed\n", passed, failed);
	return failed == 0 ? 0 : 1;
}
