/*-------------------------------------------------------------------------
 *
 * response.c
 *	  What an answer of the API means.
 *
 * The bytes of Retry-After and Date are the peer's, so each is read through a
 * cursor that knows its end, and a value is either read whole or is garbage.
 * Dates are computed here, from the civil calendar to days and back: libc's
 * functions depend on locale and time zone, and strptime() wants a terminating
 * zero.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "send/response.h"

#define MS_PER_SECOND		INT64CONST(1000)
#define SECONDS_PER_DAY		INT64CONST(86400)

/* Our own clock is believed from here to there: about 30000 years around. */
#define NOW_LIMIT_MS		INT64CONST(1000000000000000)

/* What is left to read. */
typedef struct Cursor
{
	const char *at;
	const char *end;
} Cursor;

static const char *const class_names[ONSIDE_RESPONSE_NUM_CLASSES] = {
	[ONSIDE_RESPONSE_DELIVERED] = "delivered",
	[ONSIDE_RESPONSE_NOT_ACKNOWLEDGED] = "not_acknowledged",
	[ONSIDE_RESPONSE_REFUSED] = "refused",
	[ONSIDE_RESPONSE_TOO_LARGE] = "too_large",
	[ONSIDE_RESPONSE_THROTTLED] = "throttled",
	[ONSIDE_RESPONSE_UNAUTHORIZED] = "unauthorized",
	[ONSIDE_RESPONSE_MISCONFIGURED] = "misconfigured",
	[ONSIDE_RESPONSE_RETRY] = "retry",
};

static const char *const month_names[12] = {
	"Jan", "Feb", "Mar", "Apr", "May", "Jun",
	"Jul", "Aug", "Sep", "Oct", "Nov", "Dec"
};

static const char *const day_names[7] = {
	"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday",
	"Sunday"
};

OnsideResponseClass
onside_response_classify(int http_status, bool transport_failed,
						 bool has_retry_after)
{
	if (transport_failed)
		return ONSIDE_RESPONSE_RETRY;

	switch (http_status)
	{
		case 204:
			return ONSIDE_RESPONSE_DELIVERED;
		case 400:
			return ONSIDE_RESPONSE_REFUSED;
		case 401:
		case 403:
			return ONSIDE_RESPONSE_UNAUTHORIZED;
		case 408:
		case 425:
			return ONSIDE_RESPONSE_RETRY;
		case 413:
			return ONSIDE_RESPONSE_TOO_LARGE;
		case 429:
			return ONSIDE_RESPONSE_THROTTLED;
		case 503:
			return has_retry_after ? ONSIDE_RESPONSE_THROTTLED :
				ONSIDE_RESPONSE_RETRY;
	}

	if (http_status >= 200 && http_status <= 299)
		return ONSIDE_RESPONSE_NOT_ACKNOWLEDGED;
	if (http_status >= 300 && http_status <= 499)
		return ONSIDE_RESPONSE_MISCONFIGURED;
	return ONSIDE_RESPONSE_RETRY;
}

const char *
onside_response_class_name(OnsideResponseClass cls)
{
	if ((unsigned int) cls >= ONSIDE_RESPONSE_NUM_CLASSES)
		return "unknown";
	return class_names[cls];
}

/* White space in a field value is space and tab: RFC 9110, 5.6.3. */
static Cursor
cursor_trimmed(const char *value, size_t len)
{
	Cursor		cursor;

	cursor.at = value;
	cursor.end = value == NULL ? NULL : value + len;
	while (cursor.at < cursor.end &&
		   (*cursor.at == ' ' || *cursor.at == '\t'))
		cursor.at++;
	while (cursor.at < cursor.end &&
		   (cursor.end[-1] == ' ' || cursor.end[-1] == '\t'))
		cursor.end--;
	return cursor;
}

static bool
read_word(Cursor *cursor, const char *word, size_t len)
{
	if ((size_t) (cursor->end - cursor->at) < len ||
		memcmp(cursor->at, word, len) != 0)
		return false;
	cursor->at += len;
	return true;
}

static bool
read_char(Cursor *cursor, char c)
{
	return read_word(cursor, &c, 1);
}

/* Exactly that many digits, at most 4. */
static bool
read_digits(Cursor *cursor, int digits, int *value)
{
	if (cursor->end - cursor->at < digits)
		return false;
	*value = 0;
	while (digits-- > 0)
	{
		char		c = *cursor->at;

		if (c < '0' || c > '9')
			return false;
		*value = *value * 10 + (c - '0');
		cursor->at++;
	}
	return true;
}

/* Any day's name; whether it is that date's is no concern of ours. */
static bool
read_day_name(Cursor *cursor, bool *long_form)
{
	int			i;

	for (i = 0; i < 7; i++)
	{
		if (read_word(cursor, day_names[i], strlen(day_names[i])))
		{
			*long_form = true;
			return true;
		}
		if (read_word(cursor, day_names[i], 3))
		{
			*long_form = false;
			return true;
		}
	}
	return false;
}

static bool
read_month(Cursor *cursor, int *month)
{
	int			i;

	for (i = 0; i < 12; i++)
	{
		if (read_word(cursor, month_names[i], 3))
		{
			*month = i + 1;
			return true;
		}
	}
	return false;
}

static bool
read_time_of_day(Cursor *cursor, int *second_of_day)
{
	int			hour;
	int			minute;
	int			second;

	if (!read_digits(cursor, 2, &hour) || !read_char(cursor, ':') ||
		!read_digits(cursor, 2, &minute) || !read_char(cursor, ':') ||
		!read_digits(cursor, 2, &second))
		return false;

	/* 60 is a leap second */
	if (hour > 23 || minute > 59 || second > 60)
		return false;
	*second_of_day = (hour * 60 + minute) * 60 + second;
	return true;
}

/*
 * Days since 1970-01-01 of a date in the proleptic Gregorian calendar.  The
 * year is counted from March, so that the leap day is its last, and the
 * calendar repeats every 400 years, which are 146097 days.
 */
static int64
days_from_civil(int year, int month, int day)
{
	int64		y = month > 2 ? year : (int64) year - 1;
	int64		era = (y >= 0 ? y : y - 399) / 400;
	int64		year_of_era = y - era * 400;
	int64		month_of_year = month > 2 ? month - 3 : month + 9;
	int64		day_of_year = (153 * month_of_year + 2) / 5 + day - 1;

	return era * 146097 + year_of_era * 365 + year_of_era / 4 -
		year_of_era / 100 + day_of_year - 719468;
}

static int
year_of_ms(int64 epoch_ms)
{
	int64		days;
	int			year;

	if (epoch_ms > NOW_LIMIT_MS)
		epoch_ms = NOW_LIMIT_MS;
	if (epoch_ms < -NOW_LIMIT_MS)
		epoch_ms = -NOW_LIMIT_MS;
	days = epoch_ms / (SECONDS_PER_DAY * MS_PER_SECOND);

	/* a guess by the mean length of a year is off by one at most */
	year = 1970 + (int) (days * 400 / 146097);
	while (days_from_civil(year, 1, 1) > days)
		year--;
	while (days_from_civil(year + 1, 1, 1) <= days)
		year++;
	return year;
}

static bool
valid_date(int year, int month, int day)
{
	static const int month_days[12] = {
		31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31
	};
	bool		leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;

	if (day < 1 || day > month_days[month - 1])
		return false;
	return month != 2 || day <= 28 || leap;
}

bool
onside_http_date_parse(const char *value, size_t len, int64 now_epoch_ms,
					   int64 *epoch_s)
{
	Cursor		cursor = cursor_trimmed(value, len);
	bool		long_day;
	int			year;
	int			month;
	int			day;
	int			second_of_day;

	if (cursor.at == cursor.end || !read_day_name(&cursor, &long_day))
		return false;

	if (!long_day && read_char(&cursor, ' '))
	{
		/* asctime: Sun Nov  6 08:49:37 1994 */
		if (!read_month(&cursor, &month) || !read_char(&cursor, ' '))
			return false;
		if (read_char(&cursor, ' '))
		{
			if (!read_digits(&cursor, 1, &day))
				return false;
		}
		else if (!read_digits(&cursor, 2, &day))
			return false;
		if (!read_char(&cursor, ' ') ||
			!read_time_of_day(&cursor, &second_of_day) ||
			!read_char(&cursor, ' ') ||
			!read_digits(&cursor, 4, &year))
			return false;
	}
	else
	{
		/* IMF-fixdate: Sun, 06 Nov 1994 08:49:37 GMT */
		/* RFC 850: Sunday, 06-Nov-94 08:49:37 GMT */
		char		separator = long_day ? '-' : ' ';

		if (!read_word(&cursor, ", ", 2) ||
			!read_digits(&cursor, 2, &day) ||
			!read_char(&cursor, separator) ||
			!read_month(&cursor, &month) ||
			!read_char(&cursor, separator) ||
			!read_digits(&cursor, long_day ? 2 : 4, &year) ||
			!read_char(&cursor, ' ') ||
			!read_time_of_day(&cursor, &second_of_day) ||
			!read_word(&cursor, " GMT", 4))
			return false;

		if (long_day)
		{
			int			this_year = year_of_ms(now_epoch_ms);

			/* the year with these last digits in (now - 50, now + 50] */
			year += this_year - this_year % 100;
			if (year > this_year + 50)
				year -= 100;
			else if (year <= this_year - 50)
				year += 100;
		}
	}

	if (cursor.at != cursor.end || !valid_date(year, month, day))
		return false;

	*epoch_s = days_from_civil(year, month, day) * SECONDS_PER_DAY +
		second_of_day;
	return true;
}

/* 1*DIGIT and nothing else; stops counting beyond what is of use. */
static bool
parse_delta_seconds(const char *value, size_t len, int64 *seconds)
{
	Cursor		cursor = cursor_trimmed(value, len);

	if (cursor.at == cursor.end)
		return false;
	*seconds = 0;
	for (; cursor.at < cursor.end; cursor.at++)
	{
		if (*cursor.at < '0' || *cursor.at > '9')
			return false;
		if (*seconds <= ONSIDE_RETRY_AFTER_MAX_MS)
			*seconds = *seconds * 10 + (*cursor.at - '0');
	}
	return true;
}

int64
onside_retry_after_ms(const char *retry_after, size_t retry_after_len,
					  const char *date, size_t date_len, int64 now_epoch_ms)
{
	int64		wait_ms;
	int64		seconds;

	if (parse_delta_seconds(retry_after, retry_after_len, &seconds))
		wait_ms = seconds * MS_PER_SECOND;
	else if (onside_http_date_parse(retry_after, retry_after_len,
									now_epoch_ms, &seconds))
	{
		int64		base_s;

		if (onside_http_date_parse(date, date_len, now_epoch_ms, &base_s))
			wait_ms = (seconds - base_s) * MS_PER_SECOND;
		else if (now_epoch_ms > NOW_LIMIT_MS || now_epoch_ms < -NOW_LIMIT_MS)
			wait_ms = 0;
		else
			wait_ms = seconds * MS_PER_SECOND - now_epoch_ms;
	}
	else
		wait_ms = 0;

	if (wait_ms < 0)
		return 0;
	return Min(wait_ms, ONSIDE_RETRY_AFTER_MAX_MS);
}
