/*-------------------------------------------------------------------------
 *
 * purchase.c
 *		A purchase's payload, and the helpers of mappers.
 *
 * track_purchase() and the SQL function purchase() make the same payload of the
 * same arguments, which are checked here.  amount() and event_id() help mappers
 * to fill in the rest.
 *
 * These functions read and lock nothing.  Everybody may call them: a mapper
 * runs as whoever writes the row, and a purchase must not fail for want of a
 * grant.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/formatting.h"
#include "utils/numeric.h"

#include "compat.h"
#include "log/event.h"
#include "record/event_id.h"
#include "record/purchase.h"

PG_FUNCTION_INFO_V1(onside_purchase);
PG_FUNCTION_INFO_V1(onside_amount);
PG_FUNCTION_INFO_V1(onside_event_id);

/*
 * More digits after the point than any currency has, with room for fractions.
 */
#define MAX_DIGITS	30

void
onside_push_string(OnsideJsonbBuilder *builder, JsonbIteratorToken token,
				   const char *str)
{
	JsonbValue	v;

	v.type = jbvString;
	v.val.string.val = unconstify(char *, str);
	v.val.string.len = strlen(str);
	onside_jsonb_push(builder, token, &v);
}

/* Notes what is wrong with an argument.  Returns false. */
static bool
refuse_purchase(OnsideEventError *error, const char *field, int sqlstate,
				const char *problem, const char *hint)
{
	return onside_event_invalid(error, field, sqlstate,
								psprintf("%s %s", field, problem), hint);
}

static bool
has_key(Jsonb *object, const char *key)
{
	JsonbValue	v;

	return getKeyJsonValueFromContainer(&object->root, key, strlen(key),
										&v) != NULL;
}

/*
 * Can a payload be made of the arguments?  1 is the amount, 2 the currency, 5
 * extra.  On false *error says why not.
 */
static bool
check_purchase(FunctionCallInfo fcinfo, OnsideEventError *error)
{
	static const char *const pass_amount = "Pass the price that was paid.";
	static const char *const pass_currency =
		"Pass an ISO 4217 code, e.g. USD.";
	Numeric		amount;
	Jsonb	   *extra;

	if (PG_ARGISNULL(1))
		return refuse_purchase(error, "amount", ERRCODE_NULL_VALUE_NOT_ALLOWED,
							   "must not be null", pass_amount);

	/* The API wants both, so neither has a default. */
	if (PG_ARGISNULL(2))
		return refuse_purchase(error, "currency", ERRCODE_NULL_VALUE_NOT_ALLOWED,
							   "must not be null", pass_currency);
	amount = PG_GETARG_NUMERIC(1);
	if (numeric_is_nan(amount) || numeric_is_inf(amount))
		return refuse_purchase(error, "amount", ERRCODE_INVALID_PARAMETER_VALUE,
							   "must be a finite number", pass_amount);
	if (VARSIZE_ANY_EXHDR(PG_GETARG_TEXT_PP(2)) == 0)
		return refuse_purchase(error, "currency", ERRCODE_INVALID_PARAMETER_VALUE,
							   "must not be empty", pass_currency);

	/* "extra" may be left out, and must not say again what is said. */
	if (PG_ARGISNULL(5))
		return true;
	extra = PG_GETARG_JSONB_P(5);
	if (!JB_ROOT_IS_OBJECT(extra))
		return refuse_purchase(error, "extra", ERRCODE_INVALID_PARAMETER_VALUE,
							   "must be a JSON object",
							   "Its keys are added to the payload.");
	if (has_key(extra, "amount") || has_key(extra, "currency"))
		return refuse_purchase(error, "extra", ERRCODE_INVALID_PARAMETER_VALUE,
							   "must not have the keys \"amount\" and \"currency\"",
							   "Pass them as the function's own arguments.");
	return true;
}

/* Copies the keys and values of "extra". */
static void
push_extra(OnsideJsonbBuilder *builder, Jsonb *extra)
{
	JsonbIterator *it = JsonbIteratorInit(&extra->root);
	JsonbIteratorToken token;
	JsonbValue	v;

	(void) JsonbIteratorNext(&it, &v, true);	/* the object itself */
	while ((token = JsonbIteratorNext(&it, &v, true)) == WJB_KEY ||
		   token == WJB_VALUE)
		onside_jsonb_push(builder, token, &v);
}

/*
 * Makes the payload of arguments that check_purchase() has accepted: currency
 * and amount first, then what is in "extra".
 */
static Jsonb *
make_purchase_payload(FunctionCallInfo fcinfo)
{
	OnsideJsonbBuilder builder = {0};
	text	   *currency = PG_GETARG_TEXT_PP(2);
	char	   *code = asc_toupper(VARDATA_ANY(currency),
								   VARSIZE_ANY_EXHDR(currency));

	/* numeric_out keeps the exact digits and scale */
	char	   *digits = DatumGetCString(DirectFunctionCall1(numeric_out,
															 PG_GETARG_DATUM(1)));

	/* "extra" has neither of these keys. */
	onside_jsonb_push(&builder, WJB_BEGIN_OBJECT, NULL);
	onside_push_string(&builder, WJB_KEY, "currency");
	onside_push_string(&builder, WJB_VALUE, code);
	onside_push_string(&builder, WJB_KEY, "amount");
	onside_push_string(&builder, WJB_VALUE, digits);
	if (!PG_ARGISNULL(5))
		push_extra(&builder, PG_GETARG_JSONB_P(5));
	onside_jsonb_push(&builder, WJB_END_OBJECT, NULL);
	return JsonbValueToJsonb(builder.result);
}

Jsonb *
onside_purchase_payload(FunctionCallInfo fcinfo)
{
	OnsideEventError error;

	if (!check_purchase(fcinfo, &error))
		onside_event_throw(&error);
	return make_purchase_payload(fcinfo);
}

/*
 * purchase(installation_id, amount, currency, event_datetime, event_id, extra):
 * an event without a name, for a mapper to return.  A wrong argument raises an
 * error, unless there is no installation_id.
 */
Datum
onside_purchase(PG_FUNCTION_ARGS)
{
	TupleDesc	tupdesc = fcinfo->flinfo->fn_extra;
	Datum		values[4] = {0};
	bool		nulls[4] = {0};
	OnsideEventError error;
	bool		valid = check_purchase(fcinfo, &error);

	/* The result's type is looked up once in a statement. */
	if (tupdesc == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);

		if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
			elog(ERROR, "return type must be a row type");
		fcinfo->flinfo->fn_extra = BlessTupleDesc(tupdesc);
		MemoryContextSwitchTo(old);
	}

	/*
	 * A purchase made outside the app is no event, and needs no valid price.
	 */
	if (!valid && !PG_ARGISNULL(0))
		onside_event_throw(&error);

	/* The type's columns, and which of the arguments they are. */
	for (int i = 0; i < 4; i++)
	{
		static const int args[] = {0, -1, 3, 4};

		nulls[i] = args[i] < 0 ? !valid : PG_ARGISNULL(args[i]);
		if (!nulls[i])
			values[i] = args[i] >= 0 ? PG_GETARG_DATUM(args[i]) :
				JsonbPGetDatum(make_purchase_payload(fcinfo));
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls)));
}

/*
 * amount(minor_units, digits): minor_units * 10^-digits, exact, with this many
 * digits after the point.  Fractions of minor units add further digits.
 */
Datum
onside_amount(PG_FUNCTION_ARGS)
{
	Numeric		minor_units = PG_GETARG_NUMERIC(0);
	int			digits = PG_GETARG_INT32(1);
	Datum		unit;
	Datum		amount;

	if (numeric_is_nan(minor_units) || numeric_is_inf(minor_units))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("amount: minor_units must be a finite number"),
				 errhint("Pass the price in minor units, for example 990 cents.")));
	if (digits < 0 || digits > MAX_DIGITS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("amount: digits must be from 0 to %d", MAX_DIGITS),
				 errhint("It says how many digits the currency has after the point: 2 for USD, 0 for JPY.")));

	/* A power of ten has no rounding; trailing zeros are cut. */
	unit = NumericGetDatum(int64_div_fast_to_numeric(1, digits));
	amount = DirectFunctionCall1(numeric_trim_scale,
								 DirectFunctionCall2(numeric_mul,
													 NumericGetDatum(minor_units),
													 unit));

	/* Then zeros are added up to the currency's digits. */
	if (DatumGetInt32(DirectFunctionCall1(numeric_scale, amount)) < digits)
		amount = DirectFunctionCall2(numeric_round, amount,
									 Int32GetDatum(digits));
	PG_RETURN_DATUM(amount);
}

/* Says what is wrong with the parts of event_id(). */
pg_noreturn static void throw_part(int sqlstate, const char *problem);

static void
throw_part(int sqlstate, const char *problem)
{
	ereport(ERROR,
			(errcode(sqlstate), errmsg("event_id: %s", problem),
			 errhint("Pass what makes the event unique, for example event_id('orders', id::text).")));
}

/* A part in UTF-8, as it is hashed.  "number" is for messages. */
static OnsideKeyPart
read_part(Datum value, int number)
{
	text	   *part = DatumGetTextPP(value);
	int			len = VARSIZE_ANY_EXHDR(part);
	OnsideKeyPart result;

	if (len == 0)
		throw_part(ERRCODE_INVALID_PARAMETER_VALUE,
				   psprintf("part %d must not be empty", number));

	/* Any database hashes the same bytes. */
	result.data = onside_as_utf8(VARDATA_ANY(part), len);
	if (result.data == NULL)
		throw_part(ERRCODE_INVALID_PARAMETER_VALUE,
				   psprintf("part %d must be valid UTF-8", number));
	result.len = result.data == VARDATA_ANY(part) ? len :
		(int) strlen(result.data);
	return result;
}

/*
 * event_id(VARIADIC parts text[]): a UUID that depends on the parts alone.
 * event_id.c says how.
 */
Datum
onside_event_id(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));
	OnsideKeyPart *parts;
	Datum	   *values;
	bool	   *nulls;
	int			n;

	if (PG_ARGISNULL(0))
		throw_part(ERRCODE_NULL_VALUE_NOT_ALLOWED, "a part must not be null");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), TEXTOID, -1, false,
					  TYPALIGN_INT, &values, &nulls, &n);
	if (n == 0)
		throw_part(ERRCODE_INVALID_PARAMETER_VALUE, "there must be a part");
	parts = palloc(n * sizeof(OnsideKeyPart));

	/* Neither NULL nor an empty part tells one row from another. */
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			throw_part(ERRCODE_NULL_VALUE_NOT_ALLOWED,
					   psprintf("part %d must not be null", i + 1));
		parts[i] = read_part(values[i], i + 1);
	}
	onside_event_id_require(parts, n, id);
	PG_RETURN_UUID_P(id);
}
