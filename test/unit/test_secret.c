/*-------------------------------------------------------------------------
 *
 * test_secret.c
 *		Whatever a peer makes of our credentials when it repeats them, "***" is
 *		left of it: each kind of secret in each encoding that answers use, one
 *		encoding in another, torn apart where the text was cut; and a text
 *		without them stays as it is.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/base64.h"
#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "send/secret.h"

/* postgres.h points these at the server's own */
#undef printf
#undef snprintf
#undef sprintf

/* Printers have parameters that not all need. */
#pragma GCC diagnostic ignored "-Wunused-parameter"

/* ----------
 * The server's part
 * ----------
 */

MemoryContext TopMemoryContext;

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
ok(bool condition, const char *what, const char *text)
{
	if (condition)
		passed++;
	else
		failed++;
	printf("%sok %d - %s\n", condition ? "" : "not ", passed + failed, what);
	if (!condition)
		printf("# %s\n", text);
}

/* ----------
 * Encodings
 * ----------
 */

#define SIZE	8192

typedef void (*Encoder) (const char *from, char *to);

/* Calls put for each character: its bytes, and its code point. */
typedef void (*Put) (char *to, const unsigned char *p, int len, unsigned int c);

static void
each(const char *from, char *to, Put put)
{
	const unsigned char *p = (const unsigned char *) from;

	*to = '\0';
	while (*p != '\0')
	{
		int			len = pg_utf_mblen(p);

		put(to + strlen(to), p, len, utf8_to_unicode(p));
		p += len;
	}
}

static bool
is_letter(unsigned int c)
{
	return c < 0x80 && isalnum(c);
}

static void
put_raw(char *to, const unsigned char *p, int len, unsigned int c)
{
	sprintf(to, "%.*s", len, (const char *) p);
}

static void
put_u(char *to, unsigned int c, const char *format)
{
	if (c >= 0x10000)
	{
		sprintf(to, format, 0xd800 + ((c - 0x10000) >> 10));
		c = 0xdc00 + (c & 0x3ff);
	}
	sprintf(to + strlen(to), format, c);
}

static void
put_json(char *to, const unsigned char *p, int len, unsigned int c)
{
	if (c == '"' || c == '\\' || c == '/')
		sprintf(to, "\\%c", c);
	else if (c >= 0x80)
		put_u(to, c, "\\u%04x");
	else
		put_raw(to, p, len, c);
}

static void
put_json_upper(char *to, const unsigned char *p, int len, unsigned int c)
{
	if (is_letter(c))
		put_raw(to, p, len, c);
	else
		put_u(to, c, "\\u%04X");
}

static void
put_json_all(char *to, const unsigned char *p, int len, unsigned int c)
{
	put_u(to, c, "\\u%04x");
}

/* As a peer escapes that takes our UTF-8 for Latin-1. */
static void
put_json_bytes(char *to, const unsigned char *p, int len, unsigned int c)
{
	for (int i = 0; i < len; i++)
		sprintf(to + strlen(to), is_letter(p[i]) ? "%c" : "\\u%04x", p[i]);
}

static void
put_hex(char *to, const unsigned char *p, int len, unsigned int c)
{
	for (int i = 0; i < len; i++)
		sprintf(to + strlen(to), is_letter(p[i]) ? "%c" : "\\x%02x", p[i]);
}

static void
put_octal(char *to, const unsigned char *p, int len, unsigned int c)
{
	for (int i = 0; i < len; i++)
		sprintf(to + strlen(to), is_letter(p[i]) ? "%c" : "\\%03o", p[i]);
}

static void
put_url(char *to, const unsigned char *p, int len, unsigned int c)
{
	for (int i = 0; i < len; i++)
		sprintf(to + strlen(to), is_letter(p[i]) ? "%c" : "%%%02X", p[i]);
}

static void
put_url_lower(char *to, const unsigned char *p, int len, unsigned int c)
{
	for (int i = 0; i < len; i++)
		sprintf(to + strlen(to), is_letter(p[i]) ? "%c" : p[i] == ' ' ? "+" : "%%%02x", p[i]);
}

static void
put_url_all(char *to, const unsigned char *p, int len, unsigned int c)
{
	for (int i = 0; i < len; i++)
		sprintf(to + strlen(to), "%%%02x", p[i]);
}

/* Few are, and the percent sign is not. */
static void
put_url_some(char *to, const unsigned char *p, int len, unsigned int c)
{
	for (int i = 0; i < len; i++)
		sprintf(to + strlen(to), p[i] > 0x7f || strchr(" \"<>", p[i]) ? "%%%02x" : "%c", p[i]);
}

static void
put_html(char *to, const unsigned char *p, int len, unsigned int c)
{
	const char *entity = c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" :
		c == '"' ? "&quot;" : c == '\'' ? "&#39;" : c == 0xe9 ? "&eacute;" : NULL;

	if (entity != NULL)
		strcpy(to, entity);
	else
		put_raw(to, p, len, c);
}

static void
put_html_decimal(char *to, const unsigned char *p, int len, unsigned int c)
{
	sprintf(to, is_letter(c) ? "%c" : "&#%u;", c);
}

static void
put_html_hex(char *to, const unsigned char *p, int len, unsigned int c)
{
	sprintf(to, is_letter(c) ? "%c" : "&#x%X;", c);
}

/* Our UTF-8 taken for Latin-1 and written as UTF-8. */
static void
put_mojibake(char *to, const unsigned char *p, int len, unsigned int c)
{
	for (int i = 0; i < len; i++)
		if (p[i] < 0x80)
			sprintf(to + strlen(to), "%c", p[i]);
		else
			sprintf(to + strlen(to), "%c%c", 0xc0 | p[i] >> 6, 0x80 | (p[i] & 0x3f));
}

static void
put_latin1(char *to, const unsigned char *p, int len, unsigned int c)
{
	sprintf(to, "%c", c < 0x100 ? (int) c : '?');
}

static void
put_ascii(char *to, const unsigned char *p, int len, unsigned int c)
{
	sprintf(to, "%.*s", len, c < 0x80 ? (const char *) p : "????");
}

#define ENCODER(name) \
	static void name(const char *from, char *to) { each(from, to, put_##name); }

ENCODER(raw)
ENCODER(json)
ENCODER(json_upper)
ENCODER(json_all)
ENCODER(json_bytes)
ENCODER(hex)
ENCODER(octal)
ENCODER(url)
ENCODER(url_lower)
ENCODER(url_all)
ENCODER(url_some)
ENCODER(html)
ENCODER(html_decimal)
ENCODER(html_hex)
ENCODER(mojibake)
ENCODER(latin1)
ENCODER(ascii)

static const struct
{
	const char *name;
	Encoder		encode;
	bool		spoils;			/* not to be encoded once more here */
}			encodings[] =
{
	{"as it is", raw, false},
	{"JSON", json, false},
	{"JSON, upper case", json_upper, false},
	{"JSON, every character", json_all, false},
	{"JSON, byte by byte", json_bytes, false},
	{"hexadecimal escapes", hex, false},
	{"octal escapes", octal, false},
	{"URL", url, false},
	{"URL, lower case and plus", url_lower, false},
	{"URL, every byte", url_all, false},
	{"URL, some bytes", url_some, false},
	{"HTML", html, false},
	{"HTML, decimal", html_decimal, false},
	{"HTML, hexadecimal", html_hex, false},
	{"taken for Latin-1", mojibake, false},
	{"Latin-1", latin1, true},
	{"ASCII", ascii, true},
};

/* ----------
 * What has to be hidden
 * ----------
 */

static const char *const passwords[] = {
	"plain-password",
	"quote\"back\\slash/slash",
	"n\xc3\xa4" "chstes pass\xc3\xa9 + 50%41&x;<y>'z'",
	"\xf0\x9f\x94\x91 key ~~~?>?>?>",
	"\\u0041%2541&amp;&#65;\\\\",
	"%%%%%%%%%%%%%%%%%%%%",
};

static void
base64(const char *from, char *to, bool url, bool padded)
{
	int			size = pg_b64_encode((const void *) from, strlen(from), to, SIZE);

	to[size] = '\0';
	for (char *p = to; *p != '\0'; p++)
	{
		if (url && *p == '+')
			*p = '-';
		if (url && *p == '/')
			*p = '_';
		if (!padded && *p == '=')
			*p = '\0';
	}
}

/* The secret, framed; what is left must be the frame. */
static void
hidden_ok(const char *secret, const char *encoding, const char *what)
{
	char		text[SIZE * 2];
	char		name[200];

	snprintf(name, sizeof(name), "%s, %s", what, encoding);
	snprintf(text, sizeof(text), "{\"error\": \"not %s\"}", secret);
	onside_secret_hide(text, false);
	ok(strcmp(text, "{\"error\": \"not ***\"}") == 0 ||
	   strcmp(text, "{\"error\": \"not ***=\"}") == 0 ||
	   strcmp(text, "{\"error\": \"not ***==\"}") == 0, name, text);
}

/* Cut anywhere, no more than a harmless prefix is left of it. */
static void
cut_ok(const char *secret, const char *encoding, const char *what, Encoder encode,
	   const char *plain)
{
	char		name[200];
	char		telling[SIZE];
	char		text[SIZE * 2];
	char		prefix[20];
	bool		good = true;
	int			n = 0;

	/* Four characters of it tell something. */
	for (int i = 0; i < 4; i++)
		n += pg_utf_mblen((const unsigned char *) plain + n);
	snprintf(prefix, sizeof(prefix), "%.*s", n, plain);
	encode(prefix, telling);

	for (size_t cut = 1; cut < strlen(secret) && good; cut++)
	{
		snprintf(text, sizeof(text), "x %.*s", (int) cut, secret);
		onside_secret_hide(text, true);
		good = strstr(text, telling) == NULL;
	}
	snprintf(name, sizeof(name), "%s, %s, cut anywhere", what, encoding);
	ok(good, name, text);
}

static void
test_password(const char *password)
{
	char		credentials[SIZE];
	char		encoded[SIZE];
	char		twice[SIZE];
	char		token[SIZE];
	char		name[200];

	snprintf(credentials, sizeof(credentials), "shop:%s", password);
	onside_secret_set(ONSIDE_SECRET_API, credentials);

	for (int i = 0; i < (int) lengthof(encodings); i++)
	{
		encodings[i].encode(password, encoded);
		hidden_ok(encoded, encodings[i].name, password);
		cut_ok(encoded, encodings[i].name, password, encodings[i].encode, password);
		encodings[i].encode(credentials, encoded);
		hidden_ok(encoded, encodings[i].name, credentials);

		/* One in another, as an error page quotes a log line. */
		for (int j = 1; j < (int) lengthof(encodings) && !encodings[i].spoils; j++)
		{
			if (encodings[j].spoils || encodings[j].encode == mojibake)
				continue;
			encodings[i].encode(password, encoded);
			encodings[j].encode(encoded, twice);
			snprintf(name, sizeof(name), "%s in %s", encodings[i].name,
					 encodings[j].name);
			hidden_ok(twice, name, password);
		}
	}

	for (int i = 0; i < 8; i++)
	{
		base64((i & 4) != 0 ? credentials : password, token, (i & 1) != 0,
			   (i & 2) != 0);
		snprintf(name, sizeof(name), "base64%s%s of %s",
				 (i & 1) != 0 ? " for URLs" : "", (i & 2) != 0 ? ", padded," : "",
				 (i & 4) != 0 ? credentials : password);
		hidden_ok(token, "as it is", name);
		cut_ok(token, "as it is", name, raw, token);
		for (int j = 1; j < (int) lengthof(encodings); j++)
		{
			/* Its padding is no secret, and any encoding's business. */
			if ((i & 2) != 0)
				continue;
			encodings[j].encode(token, encoded);
			hidden_ok(encoded, encodings[j].name, name);
		}
	}
}

static void
unchanged_ok(const char *text, const char *what)
{
	char		copy[SIZE];

	strcpy(copy, text);
	onside_secret_hide(copy, false);
	ok(strcmp(copy, text) == 0, what, copy);
}

/* Both credentials, and the ones before them. */
static void
test_kinds(void)
{
	char		text[SIZE];

	onside_secret_set(ONSIDE_SECRET_API, "api:first-api-password");
	onside_secret_set(ONSIDE_SECRET_API, "api:second-api-password");
	onside_secret_set(ONSIDE_SECRET_PROXY, "proxy:first-proxy-password");
	onside_secret_set(ONSIDE_SECRET_PROXY, "proxy:second-proxy-password");
	strcpy(text, "first-api-password second-api-password first-proxy-password second-proxy-password");
	onside_secret_hide(text, false);
	ok(strcmp(text, "*** *** *** ***") == 0, "the API's and the proxy's, those in use and those before", text);

	onside_secret_set(ONSIDE_SECRET_API, "shop:geheim");
	onside_secret_set(ONSIDE_SECRET_API, "shop:geheim");
	unchanged_ok("{\"error\": \"100% of a\\nb &amp; c\\u00e9\"}", "a text without a secret");
	unchanged_ok("shop, gehei, Geheim", "what is like one");
	unchanged_ok("", "no text");
	unchanged_ok("%\\&", "ends of escapes");
	unchanged_ok("\\u \\ud83d \\ud83d\\u %4 &# &#x &; \xc3", "escapes that are none");

	onside_secret_set(ONSIDE_SECRET_PROXY, "p:");
	onside_secret_set(ONSIDE_SECRET_PROXY, "q:");
	unchanged_ok("http://p:q: and cDo= or cTo=", "an empty password is none");
	onside_secret_set(ONSIDE_SECRET_PROXY, "u:word");
	unchanged_ok("a word", "a short password is a word");
	strcpy(text, "u:word dTp3b3Jk");
	onside_secret_hide(text, false);
	ok(strcmp(text, "*** ***") == 0, "but not with its user", text);
}

/* A text that is made to be compared for ever. */
static void
test_endless(void)
{
	char		text[SIZE] = "";
	char		credentials[SIZE] = "u:";

	for (int i = 0; i < 340; i++)
		strcat(text, "%25");
	for (int i = 0; i < 1000; i++)
		strcat(credentials, "%25");
	onside_secret_set(ONSIDE_SECRET_API, credentials);
	onside_secret_hide(text, true);
	ok(strcmp(text, "***") == 0, "a text of percent signs ends", text);
}

int
main(void)
{
	for (int i = 0; i < (int) lengthof(passwords); i++)
		test_password(passwords[i]);
	test_kinds();
	test_endless();
	printf("%d passed, %d failed\n", passed, failed);
	return failed == 0 ? 0 : 1;
}
