/*-------------------------------------------------------------------------
 *
 * fuzz_answer.c
 *	  libFuzzer harness for what request.c keeps of an answer: what Retry-After
 *	  asks for, and the beginning of the body or the transport's error, made
 *	  printable and without our credentials (secret.c).
 *
 * request.c is included whole, for its static functions, and its callbacks are
 * called as libcurl calls them: header lines one by one, the body in pieces,
 * each in a block of exactly its size.  What it needs of the server is below.
 *
 * Each input is the database's encoding (1 byte: UTF-8, LATIN1 or SQL_ASCII),
 * the size of the body's pieces (1 byte), libcurl's verdict (1 byte), and an
 * answer: lines up to an empty one, and the body.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#define CURL_DISABLE_TYPECHECK
#include <curl/curl.h>

static CURLcode said(CURL *easy, CURLINFO info, void *value);

#undef curl_easy_getinfo
#define curl_easy_getinfo said

#include "send/request.c"
#include "send/secret.h"

/* postgres.h points these at the server's own */
#undef printf
#undef fprintf
#undef snprintf

extern int	LLVMFuzzerTestOneInput(const uint8 *data, size_t size);

#define CHECK(condition) \
	do { if (!(condition)) __builtin_trap(); } while (0)

/* ----------
 * The server's part
 * ----------
 */

MemoryContext TopMemoryContext;

static int	encoding;

int
GetDatabaseEncoding(void)
{
	return encoding;
}

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

/* libcurl's part: an answer with a status, and nothing else. */
static CURLcode
said(CURL *easy, CURLINFO info, void *value)
{
	if (info == CURLINFO_RESPONSE_CODE)
		*(long *) value = 400;
	return CURLE_OK;
}

/* ----------
 * What has to hold
 * ----------
 */

/* No control character (C0, DEL, C1), and valid in the database's encoding. */
static void
check_printable(const char *str, size_t max)
{
	const unsigned char *p = (const unsigned char *) str;

	CHECK(strnlen(str, max + 1) <= max);
	while (*p != '\0')
	{
		int			len = 1;

		CHECK(*p >= 0x20 && *p != 0x7f);
		if (*p >= 0x80)
		{
			/* Read here anew, by the book (RFC 3629). */
			uint32		c;

			CHECK(encoding == PG_UTF8);
			if (*p >= 0xc2 && *p <= 0xdf)
				len = 2, c = *p & 0x1f;
			else if ((*p & 0xf0) == 0xe0)
				len = 3, c = *p & 0x0f;
			else
			{
				CHECK(*p >= 0xf0 && *p <= 0xf4);
				len = 4, c = *p & 0x07;
			}
			for (int i = 1; i < len; i++)
			{
				CHECK((p[i] & 0xc0) == 0x80);
				c = c << 6 | (p[i] & 0x3f);
			}
			CHECK(c >= 0xa0);
			CHECK(len < 3 || c >= 0x800);
			CHECK(len < 4 || (c >= 0x10000 && c <= 0x10ffff));
			CHECK(c < 0xd800 || c > 0xdfff);
		}
		p += len;
	}
}

/*
 * Nothing in it tells the credentials: the ones in use, the ones before, the
 * header's form of either.  What is cut off can end with the beginning of one.
 */
static void
check_secret(const char *str, bool cut)
{
	static const char *const secrets[] = {
		"fuzz:geheim", "ZnV6ejpnZWhlaW0=", "geheim",
		"u:other-one", "dTpvdGhlci1vbmU=", "other-one"
	};
	size_t		len = strlen(str);

	for (int i = 0; i < (int) lengthof(secrets); i++)
	{
		size_t		secret_len = strlen(secrets[i]);

		CHECK(strstr(str, secrets[i]) == NULL);
		for (size_t n = 4; cut && n < secret_len && n <= len; n++)
			CHECK(memcmp(str + len - n, secrets[i], n) != 0);
	}
}

/* Calls a callback with a copy that ends where a byte too far is seen. */
static size_t
call(curl_write_callback callback, const uint8 *data, size_t size,
	 OnsideRequest *request)
{
	char	   *copy = malloc(size == 0 ? 1 : size);
	size_t		taken;

	CHECK(copy != NULL);
	if (size > 0)
		memcpy(copy, data, size);
	taken = callback(copy, 1, size, request);
	CHECK(taken == size || taken == 0);
	free(copy);
	return taken;
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	static const int encodings[] = {PG_UTF8, PG_LATIN1, PG_SQL_ASCII};
	static CURL *easy;
	OnsideRequest *request;
	size_t		piece;
	CURLcode	code;
	bool		cut = false;
	bool		body_cut;

	if (size < 3)
		return 0;
	encoding = encodings[data[0] % lengthof(encodings)];
	piece = data[1] * 16 + 1;
	code = data[2] % CURL_LAST;
	data += 3;
	size -= 3;

	if (easy == NULL)
	{
		CHECK((easy = curl_easy_init()) != NULL);
		onside_secret_set(ONSIDE_SECRET_API, "u:other-one");
		onside_secret_set(ONSIDE_SECRET_API, "fuzz:geheim");
	}

	/* On the heap, where its ends are watched. */
	CHECK((request = malloc(sizeof(OnsideRequest))) != NULL);
	memset(request, 0, sizeof(OnsideRequest));
	onside_request_reset(request);
	request->easy = easy;

	while (size > 0 && !cut)
	{
		const uint8 *end = memchr(data, '\n', size);
		size_t		len = end == NULL ? size : (size_t) (end - data) + 1;

		cut = call(on_header, data, len, request) != len;
		CHECK(!cut || request->headers_size > MAX_ANSWER_HEADERS);
		size -= len;
		data += len;
		if (len == 1 || (len == 2 && data[-2] == '\r'))
			break;
	}
	if (size > 0 && size < sizeof(request->errbuf))
		memcpy(request->errbuf, data, size);

	/* A long body from a short input. */
	for (int round = 0; round < 64 && size > 0 && !cut; round++)
	{
		for (size_t done = 0; done < size && !cut; done += piece)
		{
			size_t		len = Min(piece, size - done);

			cut = call(on_body, data + done, len, request) != len;
			CHECK(cut == (request->body_size > MAX_ANSWER_BODY));
		}
	}

	/* A zero ends the text before, and so does what is trimmed. */
	body_cut = request->body_size > ONSIDE_ANSWER_WORDS_MAX &&
		strlen(request->answer.words) == ONSIDE_ANSWER_WORDS_MAX &&
		(unsigned char) request->answer.words[ONSIDE_ANSWER_WORDS_MAX - 1] > 0x20 &&
		request->answer.words[ONSIDE_ANSWER_WORDS_MAX - 1] != 0x7f;

	onside_request_judge(request, code);
	CHECK(code != CURLE_OK ||
		  (request->answer.kind == ONSIDE_ANSWER_COMPLETE) ==
		  (request->headers_over && !request->odd_status));
	CHECK(request->answer.retry_after_ms >= -1 &&
		  request->answer.retry_after_ms <= ONSIDE_RETRY_AFTER_MAX_MS);
	check_printable(request->answer.words, ONSIDE_ANSWER_WORDS_MAX);
	check_secret(request->answer.words,
				 request->answer.kind == ONSIDE_ANSWER_COMPLETE && body_cut);
	free(request);
	return 0;
}
