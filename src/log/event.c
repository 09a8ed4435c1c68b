/*-------------------------------------------------------------------------
 *
 * event.c
 *		An attribution event: its rules and its JSON.
 *
 * Every way of recording an event ends in onside_event_check(). Every byte that
 * is sent, previewed or measured comes from onside_event_render(). So every
 * recorded event can be sent.
 *
 * Nothing here runs SQL, reads a table of ours or depends on a session's
 * settings (DateStyle, TimeZone, extra_float_digits, client encoding): the same
 * event has the same bytes in every backend.  An invalid event is no error
 * here; whoever asks decides what becomes of it.  A lack of memory is an error.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <uuid/uuid.h>

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/timestamp.h"

#include "log/event.h"
#include "log/tables.h"

/*
 * Rendering makes no byte of a jsonb value more than six bytes, numbers apart:
 * a control character becomes \u00XX, and the punctuation of an element is
 * shorter than six times its four-byte JEntry.
 */
#define JSON_MAX_EXPANSION		6

/*
 * Rendering makes nothing smaller than a quarter of its size: an array of
 * zeros has three bytes of text ("0, ") for twelve, an array of empty arrays
 * four for eight.  We assume an eighth, to be certain.
 */
#define JSON_MAX_SHRINKAGE		8

/* The years 1 to 9999: as Julian days, 0001-01-01 and 10000-01-01. */
#define FIRST_DATETIME \
	((INT64CONST(1721426) - POSTGRES_EPOCH_JDATE) * USECS_PER_DAY)
#define END_DATETIME \
	((INT64CONST(5373485) - POSTGRES_EPOCH_JDATE) * USECS_PER_DAY)

/* More bytes than an event's JSON has besides payload and event_name. */
#define EVENT_FIXED_PART		512

bool
onside_event_invalid(OnsideEventError *error, const char *field, int sqlstate,
					 char *message, const char *hint)
{
	error->field = field;
	error->sqlstate = sqlstate;
	error->message = message;
	error->hint = pstrdup(hint);
	return false;
}

/* Fills in *error with the message "FIELD PROBLEM".  Returns false. */
static bool
field_problem(OnsideEventError *error, const char *field, int sqlstate,
			  const char *problem, const char *hint)
{
	return onside_event_invalid(error, field, sqlstate,
								psprintf("%s %s", field, problem), hint);
}

/* Says that a field is missing. */
static bool
missing_field(OnsideEventError *error, const char *field, const char *hint)
{
	return field_problem(error, field, ERRCODE_NULL_VALUE_NOT_ALLOWED,
						 "must not be null", hint);
}

/* Says that a field has a value that the API would refuse. */
static bool
bad_value(OnsideEventError *error, const char *field, const char *problem,
		  const char *hint)
{
	return field_problem(error, field, ERRCODE_INVALID_PARAMETER_VALUE,
						 problem, hint);
}

/*
 * The bytes of an SQL_ASCII database may be in any encoding, so they are
 * checked and not converted.
 */
char *
onside_as_utf8(char *str, int len)
{
	int			encoding = GetDatabaseEncoding();
	Size		size;
	char	   *result;
	Oid			proc;

	if (encoding == PG_UTF8)
		return str;
	if (encoding == PG_SQL_ASCII)
		return pg_verify_mbstr(PG_UTF8, str, len, true) ? str : NULL;

	/* Convert without raising an error for what UTF-8 cannot express. */
	proc = FindDefaultConversionProc(encoding, PG_UTF8);
	if (!OidIsValid(proc))
		return NULL;

	/* PostgreSQL bounds how much a conversion can add. */
	size = ((Size) len + 1) * MAX_CONVERSION_GROWTH + 1;
	result = palloc(size);

	/* The result is how many bytes were converted. */
	if (pg_do_encoding_conversion_buf(proc, encoding, PG_UTF8,
									  (unsigned char *) str, len,
									  (unsigned char *) result, size,
									  true) < len)
		return NULL;
	return result;
}

bool
onside_event_not_utf8(OnsideEventError *error, const char *field)
{
	return bad_value(error, field, "must be valid UTF-8",
					 psprintf("The API takes UTF-8; the encoding of this database is %s.",
							  GetDatabaseEncodingName()));
}

/* Does a control character (C0, DEL or C1) occur in the UTF-8 string? */
static bool
has_control_character(const char *str)
{
	for (const unsigned char *p = (const unsigned char *) str; *p; p++)

		/* C1 characters have two bytes in UTF-8: 0xc2 and 0x80 to 0x9f. */
		if (*p < 0x20 || *p == 0x7f ||
			(*p == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0))
			return true;
	return false;
}

/* How many characters has the UTF-8 string? */
static int
utf8_length(const char *str)
{
	int			n = 0;

	for (; *str; str++)

		/* Count the first byte of each character. */
		if ((*str & 0xc0) != 0x80)
			n++;
	return n;
}

/* Has the UTF-8 string no character but blanks, of whatever width? */
static bool
is_blank(const char *str)
{
	static const char *const blanks[] = {
		" ", "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003",
		"\u2004", "\u2005", "\u2006", "\u2007", "\u2008", "\u2009", "\u200a",
		"\u200b", "\u200c", "\u200d", "\u2028", "\u2029", "\u202f", "\u205f",
		"\u2060", "\u3000", "\ufeff"
	};

	while (*str)
	{
		int			i = 0;

		/* Which of the blanks comes next?  None of them: not blank. */
		while (strncmp(str, blanks[i], strlen(blanks[i])) != 0)
			if (++i == (int) lengthof(blanks))
				return false;

		/* Skip the blank, and look at what follows. */
		str += strlen(blanks[i]);
	}
	return true;
}

/*
 * The length counts characters of UTF-8, whatever encoding the database has.
 * A text that is too long in any encoding is not even converted.
 */
bool
onside_event_check_name(const text *event_name, OnsideEventError *error)
{
	static const char *const hint =
		"An event name has 1 to 255 characters and no control characters, "
		"e.g. purchase_completed.";
	int			len;
	char	   *str;

	if (event_name == NULL)
		return missing_field(error, "event_name", hint);

	len = VARSIZE_ANY_EXHDR(event_name);
	/* No encoding has more than four bytes a character. */
	str = len > ONSIDE_API_NAME_MAX * MAX_CONVERSION_GROWTH ? NULL :
		onside_as_utf8(text_to_cstring(event_name), len);
	if (len <= ONSIDE_API_NAME_MAX * MAX_CONVERSION_GROWTH && str == NULL)
		return onside_event_not_utf8(error, "event_name");

	/* The text was too long to convert, or it is too long now. */
	if (str == NULL || utf8_length(str) > ONSIDE_API_NAME_MAX)
		return bad_value(error, "event_name", "must not be longer than "
						 CppAsString2(ONSIDE_API_NAME_MAX) " characters", hint);

	/* Now its characters. */
	if (is_blank(str))
		return bad_value(error, "event_name", "must not be empty or blank", hint);
	if (has_control_character(str))
		return bad_value(error, "event_name",
						 "must not contain control characters", hint);
	return true;
}

/*
 * The length of all numbers in a payload, as text.  Only a number can be much
 * longer as text than in its binary form (1e131071).  Counting stops at the
 * limit.
 */
static Size
numbers_length(Jsonb *payload, Size limit)
{
	JsonbIterator *it = JsonbIteratorInit(&payload->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	Size		length = 0;

	while (length < limit &&
		   (token = JsonbIteratorNext(&it, &value, false)) != WJB_DONE)

		/* A number is the value of a key, or an element of an array. */
		if ((token == WJB_VALUE || token == WJB_ELEM) &&
			value.type == jbvNumeric)
		{
			Datum		number = NumericGetDatum(value.val.numeric);
			char	   *str =
				DatumGetCString(DirectFunctionCall1(numeric_out, number));

			length += strlen(str);
			pfree(str);
		}
	return length;
}

/* Appends the canonical form, in lower case. */
static void
append_uuid(StringInfo out, const pg_uuid_t *uuid)
{
	char		buf[UUID_STR_LEN];

	uuid_unparse_lower(uuid->data, buf);
	appendBinaryStringInfo(out, buf, UUID_STR_LEN - 1);
}

/* Appends the event's JSON in the database's encoding. */
static void
render_event(StringInfo out, const OnsideEvent *event)
{
	char	   *name = text_to_cstring(event->event_name);

	appendStringInfoString(out, "{\"event_name\":");
	escape_json(out, name);
	pfree(name);

	/* jsonb prints its keys in an order of its own, always the same. */
	appendStringInfoString(out, ",\"payload\":");
	(void) JsonbToCString(out, &event->payload->root,
						  VARSIZE_ANY(event->payload));
	appendStringInfoString(out, ",\"event_datetime\":\"");
	onside_append_datetime(out, event->event_datetime);
	appendStringInfoString(out, "\",\"event_id\":\"");
	append_uuid(out, &event->event_id);
	appendStringInfoString(out, "\",\"installation_id\":\"");
	append_uuid(out, &event->installation_id);
	appendStringInfoString(out, "\"}");
}

/* Says that no request can hold the event. */
static bool
too_large(OnsideEventError *error, const char *problem)
{
	return field_problem(error, "payload", ERRCODE_PROGRAM_LIMIT_EXCEEDED,
						 problem, ONSIDE_TOO_LARGE_HINT);
}

/*
 * Does the event alone, in UTF-8, fit into a request?  Only rendering the
 * event tells exactly.  Two bounds spare us the rendering for nearly every
 * event, and for an event that is far too large.
 */
static bool
check_rendered(const OnsideEvent *event, OnsideEventError *error)
{
	Size		binary = VARSIZE_ANY(event->payload) +
		VARSIZE_ANY(event->event_name);
	Size		numbers = 0;
	StringInfoData buf;
	char	   *utf8;
	Size		size;

	/* Is the event certainly too large? */
	if (binary < ONSIDE_API_MAX_BYTES * JSON_MAX_SHRINKAGE)
		numbers = numbers_length(event->payload, ONSIDE_API_MAX_BYTES);
	if (binary >= ONSIDE_API_MAX_BYTES * JSON_MAX_SHRINKAGE ||
		numbers >= ONSIDE_API_MAX_BYTES)
		return too_large(error, "is too large: the event has more than "
						 CppAsString2(ONSIDE_API_MAX_BYTES) " bytes as JSON");

	/* Is it certainly small enough?  Nearly all events end here. */
	if (GetDatabaseEncoding() == PG_UTF8 &&
		binary * JSON_MAX_EXPANSION + numbers + EVENT_FIXED_PART <
		ONSIDE_API_MAX_BYTES)
		return true;

	/* Render the event to know. */
	initStringInfo(&buf);
	render_event(&buf, event);
	utf8 = onside_as_utf8(buf.data, buf.len);
	if (utf8 == NULL)
		return onside_event_not_utf8(error, "payload");
	size = strlen(utf8);
	if (utf8 != buf.data)
		pfree(utf8);
	pfree(buf.data);

	/* A body must be smaller than the limit, and has a frame. */
	if (size + ONSIDE_API_BODY_FRAME >= ONSIDE_API_MAX_BYTES)
		return too_large(error,
						 psprintf("is too large: the event has %zu bytes as JSON",
								  size));
	return true;
}

/*
 * Checks field by field, in the order of the API's page, and reports the first
 * problem.
 */
bool
onside_event_check(const OnsideEvent *event, OnsideEventError *error)
{
	/* Many events can share a name that was checked before. */
	if (!event->name_is_checked &&
		!onside_event_check_name(event->event_name, error))
		return false;

	/* installation_id: any UUID will do. */
	if (!event->has_installation_id)
		return missing_field(error, "installation_id",
							 "Pass the identifier that the Onside SDK returned in the app.");

	/* A JSON object, with whatever is in it. */
	if (event->payload == NULL)
		return missing_field(error, "payload",
							 "Pass a JSON object; {} if there is nothing to say.");
	if (!JB_ROOT_IS_OBJECT(event->payload))
		return bad_value(error, "payload", "must be a JSON object",
						 "Pass a JSON object, e.g. {\"currency\": \"USD\", \"amount\": \"9.99\"}.");

	/* Any time whose year has one to four digits. */
	if (!event->has_event_datetime)
		return missing_field(error, "event_datetime",
							 "Pass the time at which the event occurred.");
	if (!onside_datetime_in_range(event->event_datetime))
		return bad_value(error, "event_datetime",
						 "must be finite and in years 1 to 9999",
						 "Pass the time at which the event occurred.");

	/* The API knows an event by its event_id, of version 4. */
	if (!event->has_event_id)
		return missing_field(error, "event_id",
							 "Pass a version 4 UUID, or leave it out to have one made.");
	if (!onside_uuid_is_v4(&event->event_id))
		return bad_value(error, "event_id", "must be a version 4 UUID",
						 "Use gen_random_uuid(), or leave it out to have one made.");

	/* All fields are there, so the event can be rendered. */
	return check_rendered(event, error);
}

/* Is this a field of an event, and so a column of the outbox? */
static bool
is_field(const char *name)
{
	return strcmp(name, "event_name") == 0 || strcmp(name, "payload") == 0 ||
		strcmp(name, "event_datetime") == 0 ||
		strcmp(name, "event_id") == 0 || strcmp(name, "installation_id") == 0;
}

/* The error names the column of the outbox, for programs that look at it. */
void
onside_event_throw(const OnsideEventError *error)
{
	ereport(ERROR,
			(errcode(error->sqlstate),
			 errmsg(ONSIDE_INVALID_EVENT "%s", error->message),
			 errhint("%s", error->hint),
			 err_generic_string(PG_DIAG_SCHEMA_NAME, ONSIDE_SCHEMA),
			 err_generic_string(PG_DIAG_TABLE_NAME, "outbox"),
			 is_field(error->field) ?
			 err_generic_string(PG_DIAG_COLUMN_NAME, error->field) : 0));
}

void
onside_event_throw_field(const char *field, int sqlstate, const char *problem,
						 const char *hint)
{
	OnsideEventError error;

	(void) field_problem(&error, field, sqlstate, problem, hint);
	onside_event_throw(&error);
}

void
onside_append_datetime(StringInfo out, TimestampTz t)
{
	char		buf[MAXDATELEN + 1];

	/* As a timestamp without time zone, which gets no "+00:00". */
	appendStringInfoString(out, JsonEncodeDateTime(buf, TimestampTzGetDatum(t),
												   TIMESTAMPOID, NULL));
	appendStringInfoChar(out, 'Z');
}

/* The body is UTF-8, whatever the database's encoding is. */
void
onside_event_render(StringInfo out, const OnsideEvent *event)
{
	int			start = out->len;
	char	   *raw;
	char	   *utf8;

	render_event(out, event);
	raw = out->data + start;
	utf8 = pg_server_to_any(raw, out->len - start, PG_UTF8);
	if (utf8 != raw)
	{
		/* Put the converted bytes in the place of the others. */
		out->len = start;
		appendStringInfoString(out, utf8);
		pfree(utf8);
	}
}

void
onside_event_new_id(pg_uuid_t *id)
{
	StaticAssertStmt(sizeof(uuid_t) == UUID_LEN, "libuuid's uuid_t is a UUID");
	uuid_generate_random(id->data);
}

/*
 * libuuid makes several system calls for each UUID.  When many rows are
 * recorded, that would be half of the cost.  PostgreSQL's source of random
 * numbers is as good, and gives many at once.
 */
void
onside_event_next_id(pg_uuid_t *id)
{
	static pg_uuid_t drawn[256];
	static int	left = 0;

	/* Draw the next 256 at once. */
	if (left == 0)
	{
		if (!pg_strong_random(drawn, sizeof(drawn)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not generate random values")));
		left = lengthof(drawn);
	}

	/* Set version 4, and the variant of RFC 9562. */
	*id = drawn[--left];
	id->data[6] = (id->data[6] & 0x0f) | 0x40;
	id->data[8] = (id->data[8] & 0x3f) | 0x80;
}

bool
onside_uuid_is_v4(const pg_uuid_t *uuid)
{
	return (uuid->data[6] & 0xf0) == 0x40 && (uuid->data[8] & 0xc0) == 0x80;
}

bool
onside_parse_uuid(const char *str, pg_uuid_t *result)
{
	return uuid_parse(str, result->data) == 0;
}

bool
onside_datetime_in_range(TimestampTz t)
{
	return t >= FIRST_DATETIME && t < END_DATETIME;
}

/* Reads exactly n digits, and moves *p past them. */
static bool
read_digits(const char **p, int n, int *value)
{
	*value = 0;
	for (int i = 0; i < n; i++, (*p)++)
	{
		if (**p < '0' || **p > '9')
			return false;
		*value = *value * 10 + (**p - '0');
	}
	return true;
}

/* Reads "Z", "+hh", "+hhmm" or "+hh:mm"; east is negative, as in pg_tm. */
static bool
read_zone(const char **p, int *tz)
{
	int			sign;
	int			hours;
	int			minutes = 0;

	/* UTC has a letter of its own. */
	if (**p == 'Z' || **p == 'z')
	{
		(*p)++;
		*tz = 0;
		return true;
	}
	if (**p != '+' && **p != '-')
		return false;

	/* A sign and the hours; minutes with or without a colon. */
	sign = *(*p)++ == '+' ? -1 : 1;
	if (!read_digits(p, 2, &hours))
		return false;
	if (**p == ':')
	{
		(*p)++;
		if (!read_digits(p, 2, &minutes))
			return false;
	}
	else if (**p != '\0' && !read_digits(p, 2, &minutes))
		return false;

	/* As far as PostgreSQL goes. */
	if (hours > 15 || minutes > 59)
		return false;
	*tz = sign * (hours * SECS_PER_HOUR + minutes * SECS_PER_MINUTE);
	return true;
}

/*
 * This is stricter than PostgreSQL's own input.  That takes words and other
 * orders, and reads a time without an offset by the session's TimeZone.
 */
bool
onside_parse_datetime(const char *str, TimestampTz *result)
{
	struct pg_tm tm = {0};
	const char *p = str;
	fsec_t		fsec = 0;
	int			tz;

	/* The date, hours and minutes must be there. */
	if (!read_digits(&p, 4, &tm.tm_year) || *p++ != '-' ||
		!read_digits(&p, 2, &tm.tm_mon) || *p++ != '-' ||
		!read_digits(&p, 2, &tm.tm_mday) ||
		(*p != 'T' && *p != 't' && *p != ' '))
		return false;
	p++;
	if (!read_digits(&p, 2, &tm.tm_hour) || *p++ != ':' ||
		!read_digits(&p, 2, &tm.tm_min))
		return false;

	/* Seconds may follow, and behind them a fraction of any length. */
	if (*p == ':')
	{
		p++;
		if (!read_digits(&p, 2, &tm.tm_sec))
			return false;
		if (*p == '.' || *p == ',')
		{
			int			unit = 100000;

			p++;
			if (*p < '0' || *p > '9')
				return false;

			/* Digits behind the microseconds count for nothing. */
			for (; *p >= '0' && *p <= '9'; p++, unit /= 10)
				fsec += (*p - '0') * unit;
		}
	}
	/* The offset must be there, and nothing behind it. */
	if (!read_zone(&p, &tz) || *p != '\0')
		return false;

	/* A second of 60 is a leap second, which becomes the next second. */
	if (tm.tm_year < 1 || tm.tm_mon < 1 || tm.tm_mon > MONTHS_PER_YEAR ||
		tm.tm_mday < 1 ||
		tm.tm_mday > day_tab[isleap(tm.tm_year)][tm.tm_mon - 1] ||
		tm.tm_hour > 23 || tm.tm_min > 59 || tm.tm_sec > 60)
		return false;

	return tm2timestamp(&tm, fsec, &tz, result) == 0;
}
