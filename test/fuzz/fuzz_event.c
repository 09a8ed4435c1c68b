/*-------------------------------------------------------------------------
 *
 * fuzz_event.c
 *	  libFuzzer harness for what event.c reads and writes by itself: names,
 *	  times and UUIDs.
 *
 * What it leaves to the server (the JSON of a name and of a payload, encodings,
 * the calendar) is not here; test/t/195_encoder.pl has that, with a server.
 * The calendar is the C library's instead.
 *
 * Each input is a kind (1 byte) and a string, which is copied into a block of
 * exactly its size and a terminating zero.
 *
 *-------------------------------------------------------------------------
 */
#include "log/event.c"

#include <time.h>

/* postgres.h points these at the server's own */
#undef printf
#undef fprintf
#undef snprintf
#undef sprintf

extern int	LLVMFuzzerTestOneInput(const uint8 *data, size_t size);

#define CHECK(condition) \
	do { if (!(condition)) __builtin_trap(); } while (0)

/* ----------
 * The server's part
 * ----------
 */

/* 2000-01-01 in seconds since 1970-01-01 */
#define EPOCH_SHIFT		INT64CONST(946684800)

const int	day_tab[2][13] = {
	{31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 0},
	{31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 0}
};

int
tm2timestamp(struct pg_tm *tm, fsec_t fsec, int *tzp, Timestamp *result)
{
	struct tm	c = {0};

	c.tm_year = tm->tm_year - 1900;
	c.tm_mon = tm->tm_mon - 1;
	c.tm_mday = tm->tm_mday;
	c.tm_hour = tm->tm_hour;
	c.tm_min = tm->tm_min;
	c.tm_sec = tm->tm_sec;
	*result = ((int64) timegm(&c) - EPOCH_SHIFT + *tzp) * USECS_PER_SEC + fsec;
	return 0;
}

/* For the one type that event.c asks for, timestamp without time zone. */
char *
JsonEncodeDateTime(char *buf, Datum value, Oid typid, const int *tzp)
{
	Timestamp	dt = DatumGetTimestamp(value);
	int64		usec = dt % USECS_PER_SEC;
	struct tm	c;
	time_t		t;
	char	   *p;

	if (usec < 0)
		usec += USECS_PER_SEC;
	t = (dt - usec) / USECS_PER_SEC + EPOCH_SHIFT;
	CHECK(gmtime_r(&t, &c) != NULL);
	p = buf + sprintf(buf, "%04d-%02d-%02dT%02d:%02d:%02d", c.tm_year + 1900,
					  c.tm_mon + 1, c.tm_mday, c.tm_hour, c.tm_min, c.tm_sec);
	if (usec != 0)
	{
		p += sprintf(p, ".%06d", (int) usec);
		while (p[-1] == '0')
			*--p = '\0';
	}
	return buf;
}

int
GetDatabaseEncoding(void)
{
	return PG_UTF8;
}

/* A memory context would free it; here, the next call does. */
char *
text_to_cstring(const text *t)
{
	static char *last = NULL;

	free(last);
	return last = pnstrdup(VARDATA_ANY(t), VARSIZE_ANY_EXHDR(t));
}

const char *
GetDatabaseEncodingName(void)
{
	abort();
}

Oid
FindDefaultConversionProc(int32 for_encoding, int32 to_encoding)
{
	abort();
}

int
pg_do_encoding_conversion_buf(Oid proc, int src_encoding, int dest_encoding,
							  unsigned char *src, int srclen,
							  unsigned char *dest, int destlen, bool noError)
{
	abort();
}

bool
pg_strong_random(void *buf, size_t len)
{
	abort();
}

bool
pg_verify_mbstr(int enc, const char *mbstr, int len, bool noError)
{
	abort();
}

char *
pg_server_to_any(const char *s, int len, int enc)
{
	abort();
}

JsonbIterator *
JsonbIteratorInit(JsonbContainer *container)
{
	abort();
}

JsonbIteratorToken
JsonbIteratorNext(JsonbIterator **it, JsonbValue *val, bool skipNested)
{
	abort();
}

Datum
DirectFunctionCall1Coll(PGFunction func, Oid collation, Datum arg1)
{
	abort();
}

Datum
numeric_out(PG_FUNCTION_ARGS)
{
	abort();
}

char *
JsonbToCString(StringInfo out, JsonbContainer *in, int estimated_len)
{
	abort();
}

void
escape_json(StringInfo buf, const char *str)
{
	abort();
}

bool
errstart(int elevel, const char *domain)
{
	abort();
}

bool
errstart_cold(int elevel, const char *domain)
{
	abort();
}

void
errfinish(const char *filename, int lineno, const char *funcname)
{
	abort();
}

int
errcode(int sqlerrcode)
{
	abort();
}

int
errmsg(const char *fmt,...)
{
	abort();
}

int
errhint(const char *fmt,...)
{
	abort();
}

int
err_generic_string(int field, const char *str)
{
	abort();
}

/* ----------
 * What has to hold
 * ----------
 */

/* What is read is written as the same time, in the form that the API wants. */
static void
fuzz_datetime(const char *str)
{
	TimestampTz t;
	TimestampTz again;
	StringInfoData buf;

	if (!onside_parse_datetime(str, &t))
		return;

	/* An offset, or a leap second, can lead out of the years 1 to 9999. */
	if (!onside_datetime_in_range(t))
		return;
	initStringInfo(&buf);
	onside_append_datetime(&buf, t);
	CHECK(buf.len >= (int) strlen("2026-05-05T12:00:00Z") &&
		  buf.len <= (int) strlen("2026-05-05T12:00:00.000001Z"));
	CHECK(strspn(buf.data, "0123456789-T:.Z") == (size_t) buf.len);
	CHECK(buf.data[buf.len - 1] == 'Z');
	CHECK(buf.data[19] == 'Z' || (buf.data[19] == '.' &&
								  buf.data[buf.len - 2] != '0'));
	CHECK(onside_parse_datetime(buf.data, &again));
	CHECK(again == t);
	pfree(buf.data);
}

static void
fuzz_uuid(const char *str)
{
	pg_uuid_t	uuid;
	StringInfoData buf;

	if (!onside_parse_uuid(str, &uuid))
		return;
	CHECK(strlen(str) == 36);
	initStringInfo(&buf);
	append_uuid(&buf, &uuid);
	CHECK(buf.len == 36);
	for (int i = 0; i < 36; i++)
		CHECK(buf.data[i] == str[i] ||
			  (str[i] >= 'A' && str[i] <= 'F' && buf.data[i] == str[i] + 32));
	CHECK(onside_uuid_is_v4(&uuid) ==
		  (buf.data[14] == '4' && strchr("89ab", buf.data[19]) != NULL));
	pfree(buf.data);
}

/* The length of the blank of one or three bytes, or of two, at p; or 0. */
static size_t
blank_length(const unsigned char *p, size_t left)
{
	unsigned	c;

	if (*p == ' ')
		return 1;
	if (left >= 2 && p[0] == 0xc2 && p[1] == 0xa0)
		return 2;
	if (left < 3 || (p[0] & 0xf0) != 0xe0 || (p[1] & 0xc0) != 0x80 ||
		(p[2] & 0xc0) != 0x80)
		return 0;
	c = (p[0] & 0xf) << 12 | (p[1] & 0x3f) << 6 | (p[2] & 0x3f);
	return c == 0x1680 || (c >= 0x2000 && c <= 0x200d) || c == 0x2028 ||
		c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x2060 ||
		c == 0x3000 || c == 0xfeff ? 3 : 0;
}

/* The rules of a name, read here anew. */
static void
fuzz_name(const char *str, size_t len)
{
	text	   *name = malloc(VARHDRSZ + len);
	OnsideEventError error = {0};
	size_t		characters = 0;
	bool		control = false;
	size_t		blank = 0;
	size_t		length;

	CHECK(name != NULL);
	SET_VARSIZE(name, VARHDRSZ + len);
	memcpy(VARDATA(name), str, len);
	for (size_t i = 0; i < len; i++)
	{
		unsigned char c = str[i];
		unsigned char next = str[i + 1];

		characters += (c & 0xc0) != 0x80;
		control |= c < 0x20 || c == 0x7f ||
			(c == 0xc2 && next >= 0x80 && next < 0xa0);
	}
	while (blank < len &&
		   (length = blank_length((const unsigned char *) str + blank,
								  len - blank)) > 0)
		blank += length;
	CHECK(onside_event_check_name(name, &error) ==
		  (blank < len && !control && characters <= ONSIDE_API_NAME_MAX &&
		   len <= ONSIDE_API_NAME_MAX * 4));
	CHECK((error.message == NULL) == (error.field == NULL));
	if (error.message != NULL)
	{
		pfree(error.message);
		pfree(error.hint);
	}
	free(name);
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	char	   *str;
	size_t		len;

	if (size < 1)
		return 0;
	len = size - 1;
	CHECK((str = malloc(len + 1)) != NULL);
	memcpy(str, data + 1, len);
	str[len] = '\0';

	switch (data[0] % 3)
	{
		case 0:
			fuzz_datetime(str);
			break;
		case 1:
			fuzz_uuid(str);
			break;
		case 2:
			/* A name of the server's has no zero in it. */
			fuzz_name(str, strlen(str));
			break;
	}
	free(str);
	return 0;
}
