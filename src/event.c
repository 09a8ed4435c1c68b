/*-------------------------------------------------------------------------
 *
 * event.c
 *		An attribution event: its rules and its JSON.
 *
 * Every way of recording an event ends in onside_event_check(), and every byte
 * that is sent, previewed or measured comes from onside_event_render(), so a
 * recorded event is one that can be sent.  Nothing here runs SQL, reads a table
 * or depends on a session's settings (DateStyle, TimeZone, extra_float_digits,
 * client encoding): the same event has the same bytes in every backend.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <uuid/uuid.h>

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/timestamp.h"

#include "event.h"
#include "settings.h"

/*
 * No byte of a jsonb value without numbers is rendered as more than six
 * (a control character becomes \u00XX), and the punctuation of an element is
 * shorter than six times its four-byte JEntry.
 */
#define JSON_MAX_EXPANSION		6

/* More than what surrounds payload and event_name in an event's JSON. */
#define EVENT_FIXED_PART		512

static bool
invalid(OnsideEventError *error, const char *field, int sqlstate,
		char *message, const char *hint)
{
	error->field = field;
	error->sqlstate = sqlstate;
	error->message = message;
	error->hint = pstrdup(hint);
	return false;
}

static bool
missing(OnsideEventError *error, const char *field, const char *hint)
{
	return invalid(error, field, ERRCODE_NULL_VALUE_NOT_ALLOWED,
				   psprintf("%s must not be null", field), hint);
}

/*
 * Does a control character (C0, DEL, or in UTF-8 C1) occur in the string?
 */
static bool
has_control_character(const char *str, int len)
{
	bool		utf8 = GetDatabaseEncoding() == PG_UTF8;

	for (int i = 0; i < len; i++)
	{
		unsigned char c = (unsigned char) str[i];

		if (c < 0x20 || c == 0x7f)
			return true;
		if (utf8 && c == 0xc2 && i + 1 < len &&
			(unsigned char) str[i + 1] < 0xa0)
			return true;
	}
	return false;
}

static bool
check_event_name(const text *event_name, OnsideEventError *error)
{
	static const char *const hint =
		"An event name has 1 to 255 characters and no control characters, "
		"e.g. purchase_completed.";
	const char *str;
	int			len;

	if (event_name == NULL)
		return missing(error, "event_name", hint);

	str = VARDATA_ANY(event_name);
	len = VARSIZE_ANY_EXHDR(event_name);

	if (len == 0)
		return invalid(error, "event_name", ERRCODE_INVALID_PARAMETER_VALUE,
					   pstrdup("event_name must not be empty"), hint);
	if (has_control_character(str, len))
		return invalid(error, "event_name", ERRCODE_INVALID_PARAMETER_VALUE,
					   pstrdup("event_name must not contain control characters"),
					   hint);
	if (len > ONSIDE_EVENT_NAME_MAX &&
		pg_mbstrlen_with_len(str, len) > ONSIDE_EVENT_NAME_MAX)
		return invalid(error, "event_name", ERRCODE_INVALID_PARAMETER_VALUE,
					   psprintf("event_name must not be longer than %d characters",
								ONSIDE_EVENT_NAME_MAX),
					   hint);
	return true;
}

/*
 * Numbers are the one thing in a jsonb value whose text can be much longer
 * than its binary form (1e131071).
 */
static bool
contains_number(JsonbContainer *container)
{
	int			n = JsonContainerSize(container);
	char	   *base;

	check_stack_depth();

	if (JsonContainerIsObject(container))
		n *= 2;
	base = (char *) &container->children[n];

	for (int i = 0; i < n; i++)
	{
		JEntry		entry = container->children[i];

		if (JBE_ISNUMERIC(entry))
			return true;
		if (JBE_ISCONTAINER(entry))
		{
			uint32		offset = getJsonbOffset(container, i);

			if (contains_number((JsonbContainer *) (base + INTALIGN(offset))))
				return true;
		}
	}
	return false;
}

/*
 * Does the event alone fit a request?  Rendering it is the only exact answer;
 * the bound spares nearly every event that.
 */
static bool
check_size(const OnsideEvent *event, OnsideEventError *error)
{
	Size		bound = VARSIZE_ANY(event->payload) +
		VARSIZE_ANY(event->event_name);
	StringInfoData buf;
	bool		fits;

	if (GetDatabaseEncoding() == PG_UTF8 &&
		bound * JSON_MAX_EXPANSION + EVENT_FIXED_PART < ONSIDE_API_MAX_BYTES &&
		!contains_number(&event->payload->root))
		return true;

	initStringInfo(&buf);
	onside_event_render(&buf, event);
	fits = buf.len + ONSIDE_BODY_FRAME < ONSIDE_API_MAX_BYTES;
	if (!fits)
		invalid(error, "payload", ERRCODE_PROGRAM_LIMIT_EXCEEDED,
				psprintf("payload is too large: the event has %d bytes as JSON",
						 buf.len),
				"A request must stay below 1000000 bytes, and an event cannot be split.");
	pfree(buf.data);
	return fits;
}

bool
onside_event_check(const OnsideEvent *event, OnsideEventError *error)
{
	if (!check_event_name(event->event_name, error))
		return false;

	if (!event->has_installation_id)
		return missing(error, "installation_id",
					   "Pass the identifier that the Onside SDK returned in the app.");

	if (event->payload == NULL)
		return missing(error, "payload",
					   "Pass a JSON object; {} if there is nothing to say.");
	if (!JB_ROOT_IS_OBJECT(event->payload))
		return invalid(error, "payload", ERRCODE_INVALID_PARAMETER_VALUE,
					   pstrdup("payload must be a JSON object"),
					   "Pass a JSON object, e.g. {\"currency\": \"USD\", \"amount\": \"9.99\"}.");

	if (!event->has_event_datetime)
		return missing(error, "event_datetime",
					   "Pass the time at which the event occurred.");
	if (!onside_datetime_in_range(event->event_datetime))
		return invalid(error, "event_datetime",
					   ERRCODE_INVALID_PARAMETER_VALUE,
					   pstrdup("event_datetime must be finite and in years 1 to 9999"),
					   "Pass the time at which the event occurred.");

	if (!event->has_event_id)
		return missing(error, "event_id",
					   "Pass a version 4 UUID, or leave it out to have one made.");
	if (!onside_uuid_is_v4(&event->event_id))
		return invalid(error, "event_id", ERRCODE_INVALID_PARAMETER_VALUE,
					   pstrdup("event_id must be a version 4 UUID"),
					   "Use gen_random_uuid(), or leave it out to have one made.");

	/* The bytes of an SQL_ASCII database may be in any encoding. */
	if (GetDatabaseEncoding() == PG_SQL_ASCII)
	{
		if (!pg_verify_mbstr(PG_UTF8, VARDATA_ANY(event->event_name),
							 VARSIZE_ANY_EXHDR(event->event_name), true))
			return invalid(error, "event_name",
						   ERRCODE_INVALID_PARAMETER_VALUE,
						   pstrdup("event_name must be valid UTF-8"),
						   "The encoding of this database is SQL_ASCII: encode the text as UTF-8 before recording it.");
		else
		{
			char	   *str = JsonbToCString(NULL, &event->payload->root,
											 VARSIZE_ANY(event->payload));
			bool		ok = pg_verify_mbstr(PG_UTF8, str, strlen(str), true);

			pfree(str);
			if (!ok)
				return invalid(error, "payload",
							   ERRCODE_INVALID_PARAMETER_VALUE,
							   pstrdup("payload must be valid UTF-8"),
							   "The encoding of this database is SQL_ASCII: encode the text as UTF-8 before recording it.");
		}
	}

	return check_size(event, error);
}

void
onside_event_throw(const OnsideEventError *error)
{
	ereport(ERROR,
			(errcode(error->sqlstate),
			 errmsg("invalid event: %s", error->message),
			 errhint("%s", error->hint)));
}

static void
append_uuid(StringInfo out, const pg_uuid_t *uuid)
{
	static const char hex[] = "0123456789abcdef";
	char		buf[36];
	char	   *p = buf;

	for (int i = 0; i < UUID_LEN; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*p++ = '-';
		*p++ = hex[uuid->data[i] >> 4];
		*p++ = hex[uuid->data[i] & 0x0f];
	}
	appendBinaryStringInfo(out, buf, sizeof(buf));
}

void
onside_append_datetime(StringInfo out, TimestampTz t)
{
	struct pg_tm tm;
	fsec_t		fsec;

	if (timestamp2tm(t, NULL, &tm, &fsec, NULL, NULL) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("timestamp out of range")));

	appendStringInfo(out, "%04d-%02d-%02dT%02d:%02d:%02d",
					 tm.tm_year, tm.tm_mon, tm.tm_mday,
					 tm.tm_hour, tm.tm_min, tm.tm_sec);
	if (fsec != 0)
	{
		appendStringInfo(out, ".%06d", (int) fsec);
		while (out->data[out->len - 1] == '0')
			out->data[--out->len] = '\0';
	}
	appendStringInfoChar(out, 'Z');
}

/*
 * The body is UTF-8 whatever the database's encoding is.  What has been
 * appended since "start" is converted in place.
 */
static void
convert_to_utf8(StringInfo out, int start)
{
	char	   *raw;
	char	   *converted;

	if (GetDatabaseEncoding() == PG_UTF8)
		return;

	raw = pnstrdup(out->data + start, out->len - start);
	converted = pg_server_to_any(raw, strlen(raw), PG_UTF8);
	if (converted != raw)
	{
		out->len = start;
		out->data[start] = '\0';
		appendStringInfoString(out, converted);
		pfree(converted);
	}
	pfree(raw);
}

void
onside_event_render(StringInfo out, const OnsideEvent *event)
{
	int			start = out->len;
	char	   *name = text_to_cstring(event->event_name);

	appendStringInfoString(out, "{\"event_name\":");
	escape_json(out, name);
	pfree(name);
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

	convert_to_utf8(out, start);
}

void
onside_event_new_id(pg_uuid_t *id)
{
	StaticAssertStmt(sizeof(uuid_t) == UUID_LEN, "libuuid's uuid_t is a UUID");
	uuid_generate_random(id->data);
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
	struct pg_tm tm;
	fsec_t		fsec;

	if (TIMESTAMP_NOT_FINITE(t) ||
		timestamp2tm(t, NULL, &tm, &fsec, NULL, NULL) != 0)
		return false;
	return tm.tm_year >= 1 && tm.tm_year <= 9999;
}

/* Reads exactly n digits. */
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

	if (**p == 'Z' || **p == 'z')
	{
		(*p)++;
		*tz = 0;
		return true;
	}
	if (**p != '+' && **p != '-')
		return false;
	sign = *(*p)++ == '+' ? -1 : 1;
	if (!read_digits(p, 2, &hours))
		return false;
	if (**p == ':')
		(*p)++;
	if (**p != '\0' && !read_digits(p, 2, &minutes))
		return false;
	if (hours > 15 || minutes > 59)
		return false;
	*tz = sign * (hours * SECS_PER_HOUR + minutes * SECS_PER_MINUTE);
	return true;
}

bool
onside_parse_datetime(const char *str, TimestampTz *result)
{
	struct pg_tm tm = {0};
	const char *p = str;
	fsec_t		fsec = 0;
	int			tz;

	if (!read_digits(&p, 4, &tm.tm_year) || *p++ != '-' ||
		!read_digits(&p, 2, &tm.tm_mon) || *p++ != '-' ||
		!read_digits(&p, 2, &tm.tm_mday) ||
		(*p != 'T' && *p != 't' && *p != ' '))
		return false;
	p++;
	if (!read_digits(&p, 2, &tm.tm_hour) || *p++ != ':' ||
		!read_digits(&p, 2, &tm.tm_min))
		return false;
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
			for (; *p >= '0' && *p <= '9'; p++, unit /= 10)
				fsec += (*p - '0') * unit;
		}
	}
	if (!read_zone(&p, &tz) || *p != '\0')
		return false;

	if (tm.tm_year < 1 || tm.tm_mon < 1 || tm.tm_mon > MONTHS_PER_YEAR ||
		tm.tm_mday < 1 ||
		tm.tm_mday > day_tab[isleap(tm.tm_year)][tm.tm_mon - 1] ||
		tm.tm_hour > 23 || tm.tm_min > 59 || tm.tm_sec > 60)
		return false;

	return tm2timestamp(&tm, fsec, &tz, result) == 0;
}
