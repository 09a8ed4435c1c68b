/*-------------------------------------------------------------------------
 *
 * column.c
 *		A source table's column as a field of an event.
 *
 * onside_column_resolve() looks a column up once for a reader; attach.c calls
 * it, too, to refuse a column before there is a trigger.  The functions
 * onside_column_to_*() then read a row's value as JSON, UUID, event_id or time.
 *
 * Money must arrive as it was charged, so numeric is a string with its exact
 * digits and scale.  Times are ISO 8601 in UTC.  A timestamp without time zone
 * is taken to be in UTC, since the session's TimeZone must not decide.
 *
 * A value that cannot be sent raises no error here: the caller gets the reason,
 * and decides what becomes of the row.  No locks are taken, and nothing is
 * kept but what the reader holds.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "common/shortest_dec.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#include "attempt.h"
#include "record/column.h"

/* The kind of a type, or of the type under its domains. */
static OnsideColumnKind
kind_of_type(Oid type)
{
	/* Look through domains: their values are those of the base type. */
	switch (getBaseType(type))
	{
		case INT2OID:
			return ONSIDE_COLUMN_INT2;
		case INT4OID:
			return ONSIDE_COLUMN_INT4;
		case INT8OID:
			return ONSIDE_COLUMN_INT8;
		case BOOLOID:
			return ONSIDE_COLUMN_BOOL;
		case NUMERICOID:
			return ONSIDE_COLUMN_NUMERIC;
		case FLOAT4OID:
			return ONSIDE_COLUMN_FLOAT4;
		case FLOAT8OID:
			return ONSIDE_COLUMN_FLOAT8;
		case TEXTOID:
		case VARCHAROID:
			return ONSIDE_COLUMN_TEXT;
		case BPCHAROID:
			return ONSIDE_COLUMN_BPCHAR;
		case TIMESTAMPTZOID:
			return ONSIDE_COLUMN_TIMESTAMPTZ;
		case TIMESTAMPOID:
			return ONSIDE_COLUMN_TIMESTAMP;
		case DATEOID:
			return ONSIDE_COLUMN_DATE;
		case UUIDOID:
			return ONSIDE_COLUMN_UUID;
		case JSONOID:
			return ONSIDE_COLUMN_JSON;
		case JSONBOID:
			return ONSIDE_COLUMN_JSONB;
		default:
			return ONSIDE_COLUMN_OTHER;
	}
}

/* Can values of this kind become the field?  Any kind can be payload. */
static bool
kind_fits_field(OnsideColumnKind kind, const char *field)
{
	if (strcmp(field, "event_id") == 0)
		return kind == ONSIDE_COLUMN_UUID || kind == ONSIDE_COLUMN_TEXT ||
			kind == ONSIDE_COLUMN_BPCHAR || kind == ONSIDE_COLUMN_INT2 ||
			kind == ONSIDE_COLUMN_INT4 || kind == ONSIDE_COLUMN_INT8;
	if (strcmp(field, "installation_id") == 0)
		return kind == ONSIDE_COLUMN_UUID || kind == ONSIDE_COLUMN_TEXT ||
			kind == ONSIDE_COLUMN_BPCHAR;
	if (strcmp(field, "event_datetime") == 0)
		return kind == ONSIDE_COLUMN_TIMESTAMPTZ ||
			kind == ONSIDE_COLUMN_TIMESTAMP || kind == ONSIDE_COLUMN_DATE ||
			kind == ONSIDE_COLUMN_TEXT;
	return true;
}

/*
 * Can the type's text depend on the session's settings?  The types of some
 * categories have only one text form.  They are spared the fixed settings,
 * which double the cost of a row-level trigger.
 */
static bool
output_needs_settings(Oid type)
{
	char		category;
	bool		preferred;

	/* Enums, strings, inet and cidr, and bit strings read the same everywhere. */
	get_type_category_preferred(getBaseType(type), &category, &preferred);
	return category != TYPCATEGORY_ENUM && category != TYPCATEGORY_STRING &&
		category != TYPCATEGORY_NETWORK && category != TYPCATEGORY_BITSTRING;
}

/* Notes that the column cannot become the field.  Returns false. */
static bool
refuse_column(OnsideColumn *column, OnsideEventError *error, int sqlstate,
			  char *message, const char *hint)
{
	return onside_event_invalid(error, column->field, sqlstate, message, hint);
}

/*
 * Finds the column by name, and then its kind by its type.  The name is
 * copied, since the mapping's strings are parts of the trigger's arguments,
 * which a reader can outlive.
 */
bool
onside_column_resolve(OnsideColumn *column, const char *field,
					  TupleDesc tupdesc, const char *relname,
					  const char *name, OnsideEventError *error)
{
	Form_pg_attribute att = NULL;

	/* A dropped column keeps its place, but not its name. */
	for (int i = 0; i < tupdesc->natts && att == NULL; i++)
	{
		Form_pg_attribute candidate = TupleDescAttr(tupdesc, i);

		if (!candidate->attisdropped &&
			strcmp(NameStr(candidate->attname), name) == 0)
			att = candidate;
	}

	/* Until it is known to be usable, the column reads as NULL. */
	column->field = field;
	column->name = pstrdup(name);
	column->attnum = InvalidAttrNumber;
	column->kind = ONSIDE_COLUMN_TEXT;
	column->needs_settings = false;
	if (att == NULL)
		return refuse_column(column, error, ERRCODE_UNDEFINED_COLUMN,
							 psprintf("column \"%s\" of relation \"%s\", mapped to %s, does not exist",
									  name, relname, field),
							 "Was it renamed? Detach the event and attach it again with the column's new name.");

	/* Virtual columns are never computed for a trigger. */
	if (att->attgenerated != '\0' &&
		att->attgenerated != ATTRIBUTE_GENERATED_STORED)
		return refuse_column(column, error, ERRCODE_FEATURE_NOT_SUPPORTED,
							 psprintf("column \"%s\" of relation \"%s\", mapped to %s, is a virtual generated column",
									  name, relname, field),
							 "Map a stored column.");

	/* If the type does not fit, the hint names types that do. */
	column->kind = kind_of_type(att->atttypid);
	if (!kind_fits_field(column->kind, field))
		return refuse_column(column, error, ERRCODE_DATATYPE_MISMATCH,
							 psprintf("column \"%s\" of relation \"%s\" has type %s, which cannot be %s",
									  name, relname, format_type_be(att->atttypid),
									  field),
							 strcmp(field, "event_datetime") == 0 ?
							 "Map a column of type timestamp with time zone." :
							 strcmp(field, "event_id") == 0 ?
							 "Map a column of type uuid, bigint, integer, smallint or text." :
							 "Map a column of type uuid.");

	/* Other types are sent as text, by their output function. */
	column->attnum = att->attnum;
	if (column->kind == ONSIDE_COLUMN_OTHER)
	{
		Oid			output;
		bool		is_varlena;

		getTypeOutputInfo(att->atttypid, &output, &is_varlena);
		fmgr_info(output, &column->output);
		column->needs_settings = output_needs_settings(att->atttypid);
	}
	return true;
}

/*
 * Every setting on which the text form of one of PostgreSQL's types depends.
 * The end of the transaction restores them after an error.
 */
int
onside_column_fix_settings(void)
{
	static const char *const fixed[][2] = {
		{"datestyle", "ISO, YMD"},
		{"timezone", "UTC"},
		{"intervalstyle", "postgres"},
		{"extra_float_digits", "1"},
		{"bytea_output", "hex"},
		{"lc_monetary", "C"},
		{"xmlbinary", "base64"},
		{"quote_all_identifiers", "off"},
		{"search_path", "pg_catalog"},
	};
	int			nestlevel = NewGUCNestLevel();

	/* These values end with the nest level. */
	for (int i = 0; i < (int) lengthof(fixed); i++)
		onside_set_for_now(fixed[i][0], fixed[i][1]);
	return nestlevel;
}

static void
set_string(JsonbValue *value, char *str)
{
	value->type = jbvString;
	value->val.string.val = str;
	value->val.string.len = strlen(str);
}

/* Points to the text, which can be large, instead of copying it. */
static void
set_long_text(JsonbValue *value, text *t)
{
	value->type = jbvString;
	value->val.string.val = VARDATA_ANY(t);
	value->val.string.len = VARSIZE_ANY_EXHDR(t);
}

static void
set_numeric(JsonbValue *value, Numeric num)
{
	value->type = jbvNumeric;
	value->val.numeric = num;
}

/* Notes why the row's value cannot be sent.  Returns false. */
static bool
invalid_value(const OnsideColumn *column, OnsideEventError *error,
			  const char *problem, const char *hint)
{
	return onside_event_invalid(error, column->field,
								ERRCODE_INVALID_PARAMETER_VALUE,
								psprintf("%s %s", column->field, problem),
								hint);
}

static bool
not_finite(const OnsideColumn *column, OnsideEventError *error)
{
	return invalid_value(column, error, "must not be NaN or infinite",
						 "JSON has no such number.");
}

/* Every digit, as a string; false for NaN and infinities. */
static bool
numeric_to_json(OnsideColumn *column, Numeric num, JsonbValue *value,
				OnsideEventError *error)
{
	set_string(value,
			   DatumGetCString(DirectFunctionCall1(numeric_out,
												   NumericGetDatum(num))));
	if (numeric_is_nan(num) || numeric_is_inf(num))
		return not_finite(column, error);
	return true;
}

/* "str" is the shortest exact form of the number. */
static bool
float_to_json(OnsideColumn *column, bool finite, char *str, JsonbValue *value,
			  OnsideEventError *error)
{
	if (!finite)
	{
		set_string(value, str);
		return not_finite(column, error);
	}
	set_numeric(value,
				DatumGetNumeric(DirectFunctionCall3(numeric_in,
													CStringGetDatum(str),
													ObjectIdGetDatum(InvalidOid),
													Int32GetDatum(-1))));
	return true;
}

static bool
float4_to_json(OnsideColumn *column, float4 f, JsonbValue *value,
			   OnsideEventError *error)
{
	char	   *str = palloc(FLOAT_SHORTEST_DECIMAL_LEN);

	float_to_shortest_decimal_buf(f, str);
	return float_to_json(column, isfinite(f), str, value, error);
}

static bool
float8_to_json(OnsideColumn *column, float8 f, JsonbValue *value,
			   OnsideEventError *error)
{
	char	   *str = palloc(DOUBLE_SHORTEST_DECIMAL_LEN);

	double_to_shortest_decimal_buf(f, str);
	return float_to_json(column, isfinite(f), str, value, error);
}

/*
 * ISO 8601 in UTC.  A time for which ISO 8601 has no form becomes the text that
 * PostgreSQL shows, for a person who reads the dead letter.
 */
static bool
time_to_json(OnsideColumn *column, TimestampTz t, JsonbValue *value,
			 OnsideEventError *error)
{
	StringInfoData buf;

	/* For the dead letter, if the API cannot be told. */
	if (!onside_datetime_in_range(t))
	{
		char	   *str = palloc(MAXDATELEN + 1);
		struct pg_tm tm;
		fsec_t		fsec;

		/* infinity, or a year that PostgreSQL alone can write */
		if (TIMESTAMP_NOT_FINITE(t) ||
			timestamp2tm(t, NULL, &tm, &fsec, NULL, NULL) != 0)
			EncodeSpecialTimestamp(TIMESTAMP_IS_NOBEGIN(t) ? t : DT_NOEND, str);
		else
			EncodeDateTime(&tm, fsec, false, 0, NULL, USE_ISO_DATES, str);
		set_string(value, str);
		return invalid_value(column, error,
							 "must be finite and in years 1 to 9999",
							 "ISO 8601 can express no other time.");
	}

	/* A date has no time of day: its ten characters are all. */
	initStringInfo(&buf);
	onside_append_datetime(&buf, t);
	if (column->kind == ONSIDE_COLUMN_DATE)
		buf.data[10] = '\0';	/* cut the time of day off */
	set_string(value, buf.data);
	return true;
}

/* The date's midnight in UTC.  Infinite dates become infinite times. */
static TimestampTz
date_to_time(DateADT date)
{
	if (DATE_IS_NOBEGIN(date))
		return DT_NOBEGIN;
	if (DATE_IS_NOEND(date) ||
		date >= (TIMESTAMP_END_JULIAN - POSTGRES_EPOCH_JDATE))
		return DT_NOEND;
	return date * USECS_PER_DAY;
}

/* A json value that is to become jsonb. */
typedef struct JsonReading
{
	char	   *str;
	JsonbValue *value;
} JsonReading;

static void
read_json(void *arg)
{
	JsonReading *this = (JsonReading *) arg;
	Datum		jsonb = DirectFunctionCall1(jsonb_in,
											CStringGetDatum(this->str));

	JsonbToJsonbValue(DatumGetJsonbP(jsonb), this->value);
}

/*
 * Converts json to jsonb, in a subtransaction: json allows what jsonb does not
 * (\u0000, numbers of any length), and before PostgreSQL 16 jsonb_in() says so
 * only by raising an error.
 */
static bool
json_to_json(OnsideColumn *column, Datum datum, JsonbValue *value,
			 OnsideEventError *error)
{
	JsonReading this = {TextDatumGetCString(datum), value};
	ErrorData  *edata = onside_attempt(read_json, &this, true);

	if (edata == NULL)
		return true;

	/* Only the value's own fault is the event's. */
	if (ERRCODE_TO_CATEGORY(edata->sqlerrcode) != ERRCODE_DATA_EXCEPTION &&
		ERRCODE_TO_CATEGORY(edata->sqlerrcode) !=
		ERRCODE_PROGRAM_LIMIT_EXCEEDED)
		ReThrowError(edata);

	set_string(value, this.str);
	return invalid_value(column, error,
						 psprintf("cannot be sent as JSON: %s", edata->message),
						 "Store it as jsonb to have it checked earlier.");
}

/* The row's value of the column. */
static Datum
column_value(OnsideColumn *column, TupleTableSlot *row, bool *isnull)
{
	if (column->attnum == InvalidAttrNumber)
	{
		*isnull = true;
		return (Datum) 0;
	}
	return slot_getattr(row, column->attnum, isnull);
}

/*
 * The text in a TEXT or BPCHAR column; the blanks that pad char(n) mean
 * nothing.
 */
static char *
column_text(OnsideColumn *column, Datum datum)
{
	char	   *str = TextDatumGetCString(datum);

	if (column->kind == ONSIDE_COLUMN_BPCHAR)
		str[bpchartruelen(str, strlen(str))] = '\0';
	return str;
}

/* The value of an INT2, INT4 or INT8 column. */
static int64
integer_value(OnsideColumn *column, Datum datum)
{
	return column->kind == ONSIDE_COLUMN_INT2 ? DatumGetInt16(datum) :
		column->kind == ONSIDE_COLUMN_INT4 ? DatumGetInt32(datum) :
		DatumGetInt64(datum);
}

bool
onside_column_is_empty(OnsideColumn *column, TupleTableSlot *row)
{
	bool		isnull;
	Datum		datum = column_value(column, row, &isnull);

	if (isnull)
		return true;
	if (column->kind == ONSIDE_COLUMN_TEXT ||
		column->kind == ONSIDE_COLUMN_BPCHAR)
		return *column_text(column, datum) == '\0';
	return false;
}

char *
onside_column_uuid_text(const pg_uuid_t *uuid)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(uuid)));
}

/*
 * One case for each kind.  docs/recording.md's table of types says the same,
 * and column_expressions() in managed/recorder.sql does the same.
 */
bool
onside_column_to_json(OnsideColumn *column, TupleTableSlot *row,
					  JsonbValue *value, OnsideEventError *error)
{
	bool		isnull;
	Datum		datum = column_value(column, row, &isnull);

	if (isnull)
	{
		value->type = jbvNull;
		return true;
	}

	switch (column->kind)
	{
		/* Integers are JSON numbers, exactly. */
		case ONSIDE_COLUMN_INT2:
		case ONSIDE_COLUMN_INT4:
		case ONSIDE_COLUMN_INT8:
			set_numeric(value, int64_to_numeric(integer_value(column, datum)));
			return true;

		case ONSIDE_COLUMN_BOOL:
			value->type = jbvBool;
			value->val.boolean = DatumGetBool(datum);
			return true;

		/* Money: a string, so that no reader rounds it. */
		case ONSIDE_COLUMN_NUMERIC:
			return numeric_to_json(column, DatumGetNumeric(datum), value,
								   error);

		/* The shortest text that reads back as the same number. */
		case ONSIDE_COLUMN_FLOAT4:
			return float4_to_json(column, DatumGetFloat4(datum), value, error);
		case ONSIDE_COLUMN_FLOAT8:
			return float8_to_json(column, DatumGetFloat8(datum), value, error);

		case ONSIDE_COLUMN_TEXT:
			set_long_text(value, DatumGetTextPP(datum));
			return true;
		case ONSIDE_COLUMN_BPCHAR:
			set_string(value, column_text(column, datum));
			return true;

		/* A timestamp without time zone is taken to be in UTC. */
		case ONSIDE_COLUMN_TIMESTAMPTZ:
		case ONSIDE_COLUMN_TIMESTAMP:
			return time_to_json(column, DatumGetTimestampTz(datum), value,
								error);
		case ONSIDE_COLUMN_DATE:
			return time_to_json(column, date_to_time(DatumGetDateADT(datum)),
								value, error);

		case ONSIDE_COLUMN_UUID:
			set_string(value, onside_column_uuid_text(DatumGetUUIDP(datum)));
			return true;

		/* JSON stays JSON. */
		case ONSIDE_COLUMN_JSON:
			return json_to_json(column, datum, value, error);
		case ONSIDE_COLUMN_JSONB:
			JsonbToJsonbValue(DatumGetJsonbP(datum), value);
			return true;

		/* The reader has fixed the settings that this may depend on. */
		case ONSIDE_COLUMN_OTHER:
			set_string(value, OutputFunctionCall(&column->output, datum));
			return true;
	}
	pg_unreachable();
}

/*
 * The column is of type uuid, or a text that must have the form of a UUID.
 */
bool
onside_column_to_uuid(OnsideColumn *column, TupleTableSlot *row,
					  pg_uuid_t *uuid, bool *has, OnsideEventError *error)
{
	bool		isnull;
	Datum		datum = column_value(column, row, &isnull);

	*has = !isnull;
	if (isnull)
		return true;

	if (column->kind == ONSIDE_COLUMN_UUID)
	{
		*uuid = *DatumGetUUIDP(datum);
		return true;
	}

	/* Any other kind that may be mapped here is a text. */
	*has = onside_parse_uuid(column_text(column, datum), uuid);
	if (!*has)
		return invalid_value(column, error, "must be a UUID",
							 "It has 8-4-4-4-12 hexadecimal digits.");
	return true;
}

/*
 * The value as the text that is hashed.  It must depend on nothing but the
 * value, so no output function that reads settings is used.
 */
static char *
key_text(OnsideColumn *column, Datum datum)
{
	switch (column->kind)
	{
		case ONSIDE_COLUMN_INT2:
		case ONSIDE_COLUMN_INT4:
		case ONSIDE_COLUMN_INT8:
			return psprintf(INT64_FORMAT, integer_value(column, datum));
		case ONSIDE_COLUMN_UUID:
			return onside_column_uuid_text(DatumGetUUIDP(datum));
		default:
			return column_text(column, datum);
	}
}

/*
 * A version 4 UUID is the event_id itself.  Any other value is a key, from
 * which event_id.c makes one.
 */
bool
onside_column_to_event_id(OnsideColumn *column, TupleTableSlot *row,
						  pg_uuid_t *uuid, bool *has, char **key,
						  OnsideEventError *error)
{
	bool		isnull;
	Datum		datum = column_value(column, row, &isnull);

	*has = false;
	*key = NULL;
	if (isnull)
		return true;

	/* An empty key would be the same event for all rows that have it. */
	*key = key_text(column, datum);
	if (**key == '\0')
		return invalid_value(column, error, "must not be empty",
							 "It is the row's key, or a version 4 UUID, or NULL to have one made.");

	/* A version 4 UUID needs no hash: the API takes it as it is. */
	*has = onside_parse_uuid(*key, uuid) && onside_uuid_is_v4(uuid);
	if (*has)
		*key = NULL;
	return true;
}

/*
 * The kinds that kind_fits_field() lets through.  A timestamp or date without
 * time zone is taken to be in UTC.
 */
bool
onside_column_to_datetime(OnsideColumn *column, TupleTableSlot *row,
						  TimestampTz *t, bool *has, OnsideEventError *error)
{
	bool		isnull;
	Datum		datum = column_value(column, row, &isnull);

	*has = !isnull;
	if (isnull)
		return true;

	switch (column->kind)
	{
		case ONSIDE_COLUMN_TIMESTAMPTZ:
		case ONSIDE_COLUMN_TIMESTAMP:
			*t = DatumGetTimestampTz(datum);
			return true;
		case ONSIDE_COLUMN_DATE:
			*t = date_to_time(DatumGetDateADT(datum));
			return true;
		default:
			/* A text must have the form that track_batch() takes. */
			*has = onside_parse_datetime(column_text(column, datum), t);
			if (!*has)
				return invalid_value(column, error,
									 "must be an ISO 8601 date and time with a UTC offset",
									 "For example 2026-05-05T12:00:00Z.");
			return true;
	}
}
