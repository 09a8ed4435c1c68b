/*-------------------------------------------------------------------------
 *
 * test_policy.c
 *	  The delivery policy, without server and clock.
 *
 * The promise held here: whatever the API answers, the policy settles no
 * event by mistake, asks no endpoint more often than it should, and finds the
 * bad events of a batch in about as few requests as can be.
 *
 * Links with response.o, backoff.o and bisect.o alone.  Writes TAP.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "send/backoff.h"
#include "send/bisect.h"
#include "send/response.h"

/* postgres.h points these at the server's own */
#undef printf
#undef vprintf

#define MS			INT64CONST(1000)
#define SECOND		(1000 * MS)
#define MAX_EVENTS	ONSIDE_BISECT_MAX_EVENTS

static int	passed = 0;
static int	failed = 0;

static void ok(bool condition, const char *format,...)
			__attribute__((format(printf, 2, 3)));

static void
ok(bool condition, const char *format,...)
{
	va_list		args;

	if (condition)
		passed++;
	else
		failed++;
	printf("%sok %d - ", condition ? "" : "not ", passed + failed);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
}

/* xorshift: the same numbers everywhere */
static uint64 random_state = UINT64CONST(88172645463325252);

static uint64
random_bits(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static double
random_double(void)
{
	return (double) (random_bits() >> 11) / 9007199254740992.0;
}

/* ----------------------------------------------------------------
 * response.h
 * ---------------------------------------------------------------- */

static void
test_classes(void)
{
	static const struct
	{
		int			status;
		bool		retry_after;
		OnsideResponseClass expected;
	}			cases[] = {
		{204, false, ONSIDE_RESPONSE_DELIVERED},
		{204, true, ONSIDE_RESPONSE_DELIVERED},
		{200, false, ONSIDE_RESPONSE_NOT_ACKNOWLEDGED},
		{201, false, ONSIDE_RESPONSE_NOT_ACKNOWLEDGED},
		{202, false, ONSIDE_RESPONSE_NOT_ACKNOWLEDGED},
		{203, false, ONSIDE_RESPONSE_NOT_ACKNOWLEDGED},
		{205, false, ONSIDE_RESPONSE_NOT_ACKNOWLEDGED},
		{299, false, ONSIDE_RESPONSE_NOT_ACKNOWLEDGED},
		{300, false, ONSIDE_RESPONSE_MISCONFIGURED},
		{301, false, ONSIDE_RESPONSE_MISCONFIGURED},
		{302, false, ONSIDE_RESPONSE_MISCONFIGURED},
		{304, false, ONSIDE_RESPONSE_MISCONFIGURED},
		{307, false, ONSIDE_RESPONSE_MISCONFIGURED},
		{308, true, ONSIDE_RESPONSE_MISCONFIGURED},
		{399, false, ONSIDE_RESPONSE_MISCONFIGURED},
		{400, false, ONSIDE_RESPONSE_REFUSED},
		{400, true, ONSIDE_RESPONSE_REFUSED},
		{401, false, ONSIDE_RESPONSE_UNAUTHORIZED},
		{402, false, ONSIDE_RESPONSE_MISCONFIGURED},
		{403, false, ONSIDE_RESPONSE_UNAUTHORIZED},
		{404, false, ONSIDE_RESPONSE_MISCONFIGURED},
		{405, false, ONSIDE_RESPONSE_MISCONFIGURED},
		{407, false, ONSIDE_RESPONSE_MISCONFIGURED},
		{408, false, ONSIDE_RESPONSE_RETRY},
		{409, false, ONSIDE_RESPONSE_MISCONFIGURED},
		{410, false, ONSIDE_RESPONSE_MISCONFIGURED},
		{413, false, ONSIDE_RESPONSE_TOO_LARGE},
		{413, true, ONSIDE_RESPONSE_TOO_LARGE},
		{415, false, ONSIDE_RESPONSE_MISCONFIGURED},
		{422, false, ONSIDE_RESPONSE_MISCONFIGURED},
		{425, false, ONSIDE_RESPONSE_RETRY},
		{429, false, ONSIDE_RESPONSE_THROTTLED},
		{429, true, ONSIDE_RESPONSE_THROTTLED},
		{431, false, ONSIDE_RESPONSE_MISCONFIGURED},
		{499, false, ONSIDE_RESPONSE_MISCONFIGURED},
		{500, false, ONSIDE_RESPONSE_RETRY},
		{500, true, ONSIDE_RESPONSE_RETRY},
		{502, false, ONSIDE_RESPONSE_RETRY},
		{503, false, ONSIDE_RESPONSE_RETRY},
		{503, true, ONSIDE_RESPONSE_THROTTLED},
		{504, false, ONSIDE_RESPONSE_RETRY},
		{599, false, ONSIDE_RESPONSE_RETRY},
		{100, false, ONSIDE_RESPONSE_RETRY},
		{103, false, ONSIDE_RESPONSE_RETRY},
		{199, false, ONSIDE_RESPONSE_RETRY},
		{0, false, ONSIDE_RESPONSE_RETRY},
		{-204, false, ONSIDE_RESPONSE_RETRY},
		{600, false, ONSIDE_RESPONSE_RETRY},
		{999, false, ONSIDE_RESPONSE_RETRY},
	};
	int			i;
	int			delivered = 0;
	bool		names = true;

	for (i = 0; i < (int) lengthof(cases); i++)
	{
		OnsideResponseClass response_class =
			onside_response_classify(cases[i].status, false,
									 cases[i].retry_after);

		ok(response_class == cases[i].expected, "%d%s is %s",
		   cases[i].status, cases[i].retry_after ? " with Retry-After" : "",
		   onside_response_class_name(response_class));
	}

	for (i = -1000; i <= 2000; i++)
	{
		if (onside_response_classify(i, false, false) ==
			ONSIDE_RESPONSE_DELIVERED)
			delivered++;
		if (onside_response_classify(i, true, false) != ONSIDE_RESPONSE_RETRY)
			delivered = -10000;
	}
	ok(delivered == 1, "one status acknowledges, none without a whole answer");

	for (i = 0; i < ONSIDE_RESPONSE_NUM_CLASSES; i++)
		names = names && onside_response_class_name(i) != NULL;
	ok(names && strcmp(onside_response_class_name(99), "unknown") == 0,
	   "every class has a name, and what is none has one too");
}

static void
test_retry_after(void)
{
	/* Sun, 06 Nov 1994 08:49:37 GMT */
	const int64 now_ms = INT64CONST(784111777000);
	const int64 none = 0;
	const int64 cap = ONSIDE_RETRY_AFTER_MAX_MS;
	const char *const date = "Sun, 06 Nov 1994 08:49:07 GMT";
	const struct
	{
		const char *retry_after;
		const char *date;
		int64		expected;
	}			cases[] = {
		/* delta-seconds */
		{"120", NULL, 120000},
		{"1", date, 1000},
		{" \t7\t ", NULL, 7000},
		{"0", NULL, none},
		{"000000000000000000000000000000000030", NULL, 30000},
		{"3600", NULL, cap},
		{"3601", NULL, cap},
		{"9223372036854775807", NULL, cap},
		{"9223372036854775808", NULL, cap},
		{"18446744073709551617", NULL, cap},
		{"99999999999999999999999999999999999999999999", NULL, cap},
		/* garbage */
		{NULL, date, none},
		{"", date, none},
		{"   ", date, none},
		{"-1", NULL, none},
		{"+5", NULL, none},
		{"1.5", NULL, none},
		{"1e3", NULL, none},
		{"0x10", NULL, none},
		{"5 s", NULL, none},
		{"5, 5", NULL, none},
		{"soon", NULL, none},
		{"\xff\xfe", NULL, none},
		/* the three forms of an HTTP-date, by our clock */
		{"Sun, 06 Nov 1994 08:50:37 GMT", NULL, 60000},
		{"Sunday, 06-Nov-94 08:50:37 GMT", NULL, 60000},
		{"Sun Nov  6 08:50:37 1994", NULL, 60000},
		{"Wed Nov 16 08:50:37 1994", NULL, cap},
		{"  Sun, 06 Nov 1994 08:50:37 GMT ", NULL, 60000},
		/* and by the answer's own */
		{"Sun, 06 Nov 1994 08:50:37 GMT", date, 90000},
		{"Sunday, 06-Nov-94 08:50:37 GMT", date, 90000},
		{"Sun Nov  6 08:50:37 1994", date, 90000},
		{"Sun, 06 Nov 1994 08:50:37 GMT",
			"Sunday, 06-Nov-94 08:50:36 GMT", 1000},
		{"Tue, 01 Jan 2030 00:00:10 GMT",
			"Tue, 01 Jan 2030 00:00:00 GMT", 10000},
		{"Sun, 06 Nov 1994 08:50:37 GMT", "garbage", 60000},
		{"Sun, 06 Nov 1994 08:50:37 GMT", "", 60000},
		/* past, present, far */
		{"Sun, 06 Nov 1994 08:49:06 GMT", date, none},
		{"Sun, 06 Nov 1994 08:49:07 GMT", date, none},
		{"Sat, 01 Jan 0000 00:00:00 GMT", date, none},
		{"Fri, 31 Dec 9999 23:59:59 GMT", date, cap},
		{"Fri, 31 Dec 9999 23:59:59 GMT", "Sat, 01 Jan 0000 00:00:00 GMT",
		cap},
		/* over midnight, a leap day, a leap second */
		{"Mon, 07 Nov 1994 00:00:01 GMT", "Sun, 06 Nov 1994 23:59:59 GMT",
		2000},
		{"Fri, 01 Mar 1996 00:00:00 GMT", "Thu, 29 Feb 1996 23:59:50 GMT",
		10000},
		{"Wed, 01 Mar 2000 00:00:00 GMT", "Tue, 29 Feb 2000 23:59:50 GMT",
		10000},
		{"Mon, 01 Mar 2100 00:00:00 GMT", "Sun, 28 Feb 2100 23:59:50 GMT",
		10000},
		{"Sun, 06 Nov 1994 08:49:60 GMT", date, 53000},
		/* not quite a date */
		{"Mon, 29 Feb 2100 23:59:50 GMT", date, none},
		{"Sun, 31 Nov 1994 08:50:37 GMT", date, none},
		{"Sun, 00 Nov 1994 08:50:37 GMT", date, none},
		{"Sun, 06 Nov 1994 24:00:00 GMT", date, none},
		{"Sun, 06 Nov 1994 08:60:00 GMT", date, none},
		{"Sun, 06 Nov 1994 08:50:61 GMT", date, none},
		{"Sun, 06 Nov 1994 08:50:37", date, none},
		{"Sun, 06 Nov 1994 08:50:37 UTC", date, none},
		{"Sun, 06 Nov 1994 08:50:37 GMT+1", date, none},
		{"Sun, 6 Nov 1994 08:50:37 GMT", date, none},
		{"sun, 06 nov 1994 08:50:37 gmt", date, none},
		{"Sun, 06 Nov 94 08:50:37 GMT", date, none},
		{"Sunday, 06-Nov-1994 08:50:37 GMT", date, none},
		{"Sunday Nov  6 08:50:37 1994", date, none},
		{"Xyz, 06 Nov 1994 08:50:37 GMT", date, none},
		{"Sun,", date, none},
		{"Sun", date, none},
		{"Sun Nov", date, none},
		{"1994-11-06T08:50:37Z", date, none},
	};
	static const struct
	{
		const char *date;
		int64		now_year_s; /* 1 January of the clock's year */
		int64		expected;
	}			centuries[] = {
		/* 1994: 44 is 2044, 45 is 1945 */
		{"Friday, 01-Jan-44 00:00:00 GMT", INT64CONST(757382400),
		INT64CONST(2335219200)},
		{"Friday, 01-Jan-45 00:00:00 GMT", INT64CONST(757382400),
		INT64CONST(-788918400)},
		/* 2099: 05 is 2105 */
		{"Friday, 01-Jan-05 00:00:00 GMT", INT64CONST(4070908800),
		INT64CONST(4260211200)},
		/* 1970 itself */
		{"Thursday, 01-Jan-70 00:00:00 GMT", 0, 0},
	};
	int			i;
	int64		epoch_s;
	size_t		len;
	const char *const whole = "Sunday, 06-Nov-94 08:50:37 GMT";
	bool		prefixes = true;

	for (i = 0; i < (int) lengthof(cases); i++)
	{
		const char *r = cases[i].retry_after;
		const char *d = cases[i].date;
		int64		ms = onside_retry_after_ms(r, r == NULL ? 0 : strlen(r),
											   d, d == NULL ? 0 : strlen(d),
											   now_ms);

		ok(ms == cases[i].expected, "Retry-After #%d is %lld ms",
		   i + 1, (long long) ms);
	}

	for (i = 0; i < (int) lengthof(centuries); i++)
		ok(onside_http_date_parse(centuries[i].date,
								  strlen(centuries[i].date),
								  centuries[i].now_year_s * 1000, &epoch_s) &&
		   epoch_s == centuries[i].expected,
		   "the century of %s", centuries[i].date);

	ok(onside_retry_after_ms("120", 2, NULL, 0, now_ms) == 12000,
	   "a length bounds the reading");
	ok(onside_retry_after_ms("1\0" "2", 3, NULL, 0, now_ms) == 0,
	   "a zero byte is garbage");
	ok(onside_retry_after_ms("Sun, 06 Nov 1994 08:50:37 GMT", 29, NULL, 0,
							 PG_INT64_MAX) == 0 &&
	   onside_retry_after_ms("Sun, 06 Nov 1994 08:50:37 GMT", 29, NULL, 0,
							 PG_INT64_MIN) == 0,
	   "an absurd clock does no harm");
	for (len = 0; len < strlen(whole); len++)
		prefixes = prefixes &&
			!onside_http_date_parse(whole, len, now_ms, &epoch_s);
	ok(prefixes, "no part of a date is a date");
}

/* ----------------------------------------------------------------
 * backoff.h
 * ---------------------------------------------------------------- */

static void
test_delay(void)
{
	int			n;
	bool		within = true;
	bool		slow = true;
	double		sum = 0;
	int64		least = PG_INT64_MAX;
	int64		most = 0;

	ok(onside_backoff_delay_us(ONSIDE_BACKOFF_RETRY, 0, 0, 200, 60000,
							   0.999999) <= 200 * MS &&
	   onside_backoff_delay_us(ONSIDE_BACKOFF_RETRY, 3, 0, 200, 60000,
							   0.5) == 800 * MS,
	   "the ceiling doubles with each failure");

	for (n = 0; n < 2000; n++)
	{
		int64		top = onside_backoff_delay_us(ONSIDE_BACKOFF_RETRY, n, 0,
												  200, 60000, 1.0);
		int64		bottom = onside_backoff_delay_us(ONSIDE_BACKOFF_RETRY, n,
													 0, 200, 60000, 0.0);

		within = within && top <= 60 * SECOND && top >= 200 * MS &&
			bottom == 20 * MS;
		top = onside_backoff_delay_us(ONSIDE_BACKOFF_SLOW, n, 0, 200, 60000,
									  1.0);
		bottom = onside_backoff_delay_us(ONSIDE_BACKOFF_SLOW, n, 0, 200,
										 60000, 0.0);
		slow = slow && bottom >= ONSIDE_BACKOFF_SLOW_INITIAL_MS * MS / 2 &&
			top <= 60 * SECOND && bottom == top / 2;
	}
	ok(within, "a wait stays within floor and ceiling, however many failures");
	ok(slow, "so does a slow one");
	ok(onside_backoff_delay_us(ONSIDE_BACKOFF_RETRY, PG_INT32_MAX, 0,
							   PG_INT32_MAX, PG_INT32_MAX, 1.0) ==
	   PG_INT32_MAX * MS,
	   "nothing overflows");
	ok(onside_backoff_delay_us(ONSIDE_BACKOFF_RETRY, 5, 0, 5000, 1000,
							   1.0) == SECOND &&
	   onside_backoff_delay_us(ONSIDE_BACKOFF_SLOW, 5, 0, 100, 1000,
							   1.0) == SECOND,
	   "the ceiling wins over the initial delay");
	ok(onside_backoff_delay_us(ONSIDE_BACKOFF_RETRY, 5, 0, 0, 0, 0.0) >= MS &&
	   onside_backoff_delay_us(ONSIDE_BACKOFF_RETRY, 5, 0, -1, -1, 0.5) >= MS,
	   "no settings make a wait of nothing");
	ok(onside_backoff_delay_us(ONSIDE_BACKOFF_RETRY, 2, 0, 200, 60000,
							   NAN) == 20 * MS &&
	   onside_backoff_delay_us(ONSIDE_BACKOFF_RETRY, 2, 0, 200, 60000,
							   7.0) == 800 * MS,
	   "random out of its range is brought back into it");

	for (n = 0; n < 10000; n++)
	{
		int64		delay = onside_backoff_delay_us(ONSIDE_BACKOFF_RETRY, 4, 0,
													1000, 60000,
													random_double());

		sum += delay;
		least = Min(least, delay);
		most = Max(most, delay);
	}
	ok(least < SECOND / 5 && most > 15 * SECOND &&
	   fabs(sum / 10000 - 8 * SECOND) < SECOND / 2,
	   "jitter is full: the mean is half the ceiling");

	ok(onside_backoff_delay_us(ONSIDE_BACKOFF_THROTTLED, 9, 30000, 200, 60000,
							   0.0) == 30 * SECOND &&
	   onside_backoff_delay_us(ONSIDE_BACKOFF_THROTTLED, 0, 30000, 200, 60000,
							   1.0) == 33 * SECOND,
	   "a Retry-After is waited for, and a little more");
	ok(onside_backoff_delay_us(ONSIDE_BACKOFF_THROTTLED, 0, PG_INT64_MAX, 200,
							   60000, 0.0) == 3600 * SECOND,
	   "for an hour at most");
}

static void
test_backoff(void)
{
	OnsideBackoff b;
	int64		now = 1000 * SECOND;
	int64		due;
	int			i;

	onside_backoff_init(&b, 4);
	ok(onside_backoff_may_send(&b, now, 0, 0, 4) &&
	   onside_backoff_may_send(&b, now, 3, 0, 4) &&
	   !onside_backoff_may_send(&b, now, 4, 0, 4) &&
	   !onside_backoff_is_probing(&b) &&
	   onside_backoff_next_attempt(&b) == 0 &&
	   onside_backoff_batch_limit(&b, 1000) == 1000,
	   "at first, everything may go");

	/* four requests under way fail together */
	for (i = 0; i < 4; i++)
		onside_backoff_on_failure(&b, now + i * MS, now - SECOND,
								  ONSIDE_BACKOFF_RETRY, 0, 200, 60000, 0.5);
	due = onside_backoff_next_attempt(&b);
	ok(b.failures == 1 && due == now + 100 * MS && b.threshold == 2,
	   "failures of requests under way together are one step");
	ok(onside_backoff_is_probing(&b) &&
	   !onside_backoff_may_send(&b, due - 1, 0, 0, 4) &&
	   onside_backoff_may_send(&b, due, 0, 0, 4),
	   "nothing goes before the wait is over");
	ok(onside_backoff_batch_limit(&b, 1000) == ONSIDE_BACKOFF_PROBE_EVENTS &&
	   onside_backoff_batch_limit(&b, 3) == 3,
	   "a probe is small");
	ok(onside_backoff_may_send(&b, due, 3, 0, 4) &&
	   !onside_backoff_may_send(&b, due, 4, 0, 4),
	   "a request that hangs does not hold up the probe");

	onside_backoff_on_success(&b, now - SECOND, 4);
	ok(onside_backoff_is_probing(&b),
	   "a success from before the wait does not end it");

	{
		OnsideBackoff after = b;

		onside_backoff_on_sent(&after, due);
		onside_backoff_on_success(&after, due, 4);
		ok(onside_backoff_is_old(&after, now - SECOND) &&
		   onside_backoff_may_send(&after, due, 3, 3, 4) &&
		   !onside_backoff_may_send(&after, due, 4, 3, 4),
		   "nor what comes after it, as long as there are slots");
	}

	now = due;
	onside_backoff_on_sent(&b, now);
	ok(!onside_backoff_may_send(&b, now, 1, 0, 4) &&
	   !onside_backoff_may_send(&b, now, 0, 0, 4),
	   "one probe at a time");
	onside_backoff_on_failure(&b, now + MS, now - 10 * SECOND,
							  ONSIDE_BACKOFF_RETRY, 0, 200, 60000, 0.5);
	ok(b.failures == 1 && b.probe_sent,
	   "an old failure is not the probe's");
	onside_backoff_on_abandoned(&b, now);
	ok(onside_backoff_may_send(&b, now, 0, 0, 4),
	   "another probe goes if the first told nothing");
	onside_backoff_on_sent(&b, now);
	onside_backoff_on_failure(&b, now + MS, now, ONSIDE_BACKOFF_RETRY, 0,
							  200, 60000, 0.5);
	ok(b.failures == 2 && b.threshold == 2 &&
	   onside_backoff_next_attempt(&b) == now + MS + 200 * MS,
	   "a failed probe grows the wait and narrows nothing");

	/* recovery: 1, then doubling to the half, then one more each round */
	now = onside_backoff_next_attempt(&b);
	onside_backoff_on_sent(&b, now);
	onside_backoff_on_success(&b, now, 4);
	ok(!onside_backoff_is_probing(&b) && b.failures == 0 &&
	   onside_backoff_next_attempt(&b) == 0 && b.allowed == 2,
	   "the probe's success ends the wait");
	onside_backoff_on_success(&b, now, 4);
	ok(b.allowed == 2, "then it takes a round");
	onside_backoff_on_success(&b, now, 4);
	ok(b.allowed == 3, "to add one");
	for (i = 0; i < 100; i++)
		onside_backoff_on_success(&b, now, 4);
	ok(b.allowed == 4, "up to the setting");
	ok(!onside_backoff_may_send(&b, now, 2, 0, 2),
	   "a setting that was lowered holds at once");

	/* the window falls to one and not below */
	for (i = 0; i < 10; i++)
	{
		now += 100 * SECOND;
		onside_backoff_on_failure(&b, now, now, ONSIDE_BACKOFF_THROTTLED, 0,
								  200, 60000, 0.5);
		now += 100 * SECOND;
		onside_backoff_on_sent(&b, now);
		onside_backoff_on_success(&b, now, 4);
	}
	ok(b.allowed >= 1 && b.allowed <= 2 && b.threshold == 1,
	   "flapping narrows the window to one");

	/* Retry-After */
	onside_backoff_init(&b, 4);
	onside_backoff_on_failure(&b, now, now - 1, ONSIDE_BACKOFF_THROTTLED,
							  30000, 200, 60000, 0.0);
	ok(onside_backoff_next_attempt(&b) == now + 30 * SECOND,
	   "Retry-After is a least wait");
	onside_backoff_on_failure(&b, now + SECOND, now - 1,
							  ONSIDE_BACKOFF_THROTTLED, 60000, 200, 60000,
							  0.0);
	ok(onside_backoff_next_attempt(&b) == now + 61 * SECOND &&
	   b.failures == 1,
	   "a longer one in a later answer is kept");
	onside_backoff_on_failure(&b, now + 2 * SECOND, now - 1,
							  ONSIDE_BACKOFF_THROTTLED, 5000, 200, 60000, 0.0);
	ok(onside_backoff_next_attempt(&b) == now + 61 * SECOND,
	   "a shorter one is not");

	/* after the wait was over, a straggler brings one */
	onside_backoff_on_success(&b, now + 61 * SECOND, 4);
	onside_backoff_on_failure(&b, now + 62 * SECOND, now - 1,
							  ONSIDE_BACKOFF_RETRY, 0, 200, 60000, 0.5);
	ok(!onside_backoff_is_probing(&b), "a straggler's failure is old news");
	onside_backoff_on_failure(&b, now + 62 * SECOND, now - 1,
							  ONSIDE_BACKOFF_THROTTLED, 7000, 200, 60000, 0.0);
	ok(onside_backoff_next_attempt(&b) == now + 69 * SECOND,
	   "but not its Retry-After");

	/* clear */
	onside_backoff_clear(&b, now + 63 * SECOND);
	ok(onside_backoff_may_send(&b, now + 63 * SECOND, 0, 0, 4) &&
	   onside_backoff_is_probing(&b) && b.failures == 0,
	   "clear ends a wait at once, and the next is a probe");
	{
		OnsideBackoff during = b;

		onside_backoff_on_failure(&during, now + 64 * SECOND,
								  now + 62 * SECOND + MS,
								  ONSIDE_BACKOFF_RETRY, 0, 200, 60000, 0.5);
		ok(onside_backoff_may_send(&during, now + 64 * SECOND, 1, 1, 4),
		   "what was sent between the failure and clear may fail");
		onside_backoff_on_success(&during, now + 62 * SECOND + MS, 4);
		ok(!onside_backoff_is_probing(&during), "and its success ends the wait");
	}
	onside_backoff_on_sent(&b, now + 63 * SECOND);
	onside_backoff_on_success(&b, now + 63 * SECOND, 4);
	ok(!onside_backoff_is_probing(&b), "whose success counts");
	onside_backoff_clear(&b, now + 64 * SECOND);
	ok(!onside_backoff_is_probing(&b), "clear without a wait does nothing");

	/* slow */
	onside_backoff_init(&b, 4);
	onside_backoff_on_failure(&b, now, now, ONSIDE_BACKOFF_SLOW, 0, 200,
							  60000, 0.0);
	ok(onside_backoff_next_attempt(&b) >= now + 2 * SECOND &&
	   onside_backoff_batch_limit(&b, 1000) ==
	   ONSIDE_BACKOFF_SLOW_PROBE_EVENTS,
	   "what a person has to repair is asked slowly, for one event");
	for (i = 0; i < 100; i++)
		onside_backoff_on_failure(&b, now, now, ONSIDE_BACKOFF_SLOW, 0, 200,
								  60000, 1.0);
	ok(onside_backoff_next_attempt(&b) == now + 60 * SECOND,
	   "and again within the ceiling, so that recovery is");

	/* restore */
	onside_backoff_init(&b, 4);
	onside_backoff_restore(&b, now, now + 20 * SECOND);
	ok(!onside_backoff_may_send(&b, now + 19 * SECOND, 0, 0, 4) &&
	   onside_backoff_may_send(&b, now + 20 * SECOND, 0, 0, 4) &&
	   onside_backoff_is_probing(&b), "a wait outlives a restart");
	onside_backoff_init(&b, 4);
	onside_backoff_restore(&b, now, now - 1);
	ok(!onside_backoff_is_probing(&b), "one that is over does not");
	onside_backoff_restore(&b, now, PG_INT64_MAX);
	ok(onside_backoff_next_attempt(&b) <= now + 4000 * SECOND,
	   "and no clock makes it last for ever");
}

static void
test_body_limit(void)
{
	OnsideBodyLimit limit;
	int			i;
	int			n;

	onside_body_limit_init(&limit);
	ok(onside_body_limit_events(&limit, 1000) == 1000 &&
	   onside_body_limit_bytes(&limit, 1000000) == 1000000,
	   "nothing learned, nothing limited");
	onside_body_limit_on_too_large(&limit, 1000, 400000);
	ok(onside_body_limit_events(&limit, 1000) == 500 &&
	   onside_body_limit_bytes(&limit, 1000000) == 200000,
	   "half of what was refused is the limit");
	onside_body_limit_on_too_large(&limit, 1000, 400000);
	ok(onside_body_limit_events(&limit, 1000) == 500,
	   "one that was under way does not lower it again");
	onside_body_limit_on_too_large(&limit, 1, 900000);
	onside_body_limit_on_too_large(&limit, 500, 200000);
	ok(onside_body_limit_events(&limit, 1000) == 250 &&
	   onside_body_limit_bytes(&limit, 1000000) == 100000,
	   "refused again, halved again; a lone event teaches nothing");
	ok(onside_body_limit_events(&limit, 100) == 100 &&
	   onside_body_limit_bytes(&limit, 50000) == 50000,
	   "the settings hold too");

	for (i = 0; i < 1000; i++)
		onside_body_limit_on_success(&limit, 10, 4000, 1000, 1000000);
	ok(onside_body_limit_events(&limit, 1000) == 250,
	   "small bodies do not grow it");
	for (n = 0; limit.events > 0 || limit.bytes > 0; n++)
	{
		int			events = onside_body_limit_events(&limit, 1000);

		onside_body_limit_on_success(&limit, events, events * 400, 1000,
									 400000);
		if (n > 10000)
			break;
	}
	ok(n > 100 && n < 1000, "full ones do, slowly: after %d it is gone", n);

	for (i = 0; i < 40; i++)
		onside_body_limit_on_too_large(&limit, 2, 3);
	ok(onside_body_limit_events(&limit, 1000) == 1 &&
	   onside_body_limit_bytes(&limit, 1000) >= 1,
	   "one event may always go");
}

/* ----------------------------------------------------------------
 * bisect.h
 * ---------------------------------------------------------------- */

static bool bad[MAX_EVENTS];
static int	sent[MAX_EVENTS];	/* how often each was accepted */
static int	refused_alone[MAX_EVENTS];

static void
place_none(void)
{
	memset(bad, 0, sizeof(bad));
}

static void
place_randomly(int n, int k)
{
	place_none();
	while (k > 0)
	{
		int			event = (int) (random_bits() % n);

		if (!bad[event])
		{
			bad[event] = true;
			k--;
		}
	}
}

/*
 * Plays an API that refuses bad events.  Returns the requests with the first
 * one of the whole batch, -1 if the verdict became "refusing", -2 for
 * anything that must not be.
 */
static int
play(int n, bool trusted, int too_large)
{
	OnsideBisect b;
	int			first;
	int			count;
	int			i;

	memset(sent, 0, sizeof(sent));
	memset(refused_alone, 0, sizeof(refused_alone));
	onside_bisect_init(&b, n, n > too_large ? ONSIDE_BISECT_TOO_LARGE :
					   ONSIDE_BISECT_REFUSED, trusted);
	while (onside_bisect_next(&b, &first, &count))
	{
		OnsideBisectAnswer answer = ONSIDE_BISECT_ACCEPTED;
		int			first_again;
		int			count_again;

		if (onside_bisect_refusing(&b))
			return onside_bisect_done(&b) ? -2 : -1;
		if (first < 0 || count < 1 || first + count > n ||
			b.requests > 4 * MAX_EVENTS)
			return -2;
		/* a request that failed is repeated */
		if (!onside_bisect_next(&b, &first_again, &count_again) ||
			first_again != first || count_again != count)
			return -2;

		for (i = first; i < first + count; i++)
		{
			if (bad[i])
				answer = ONSIDE_BISECT_REFUSED;
		}
		if (count > too_large)
			answer = ONSIDE_BISECT_TOO_LARGE;
		if (answer == ONSIDE_BISECT_ACCEPTED)
		{
			for (i = first; i < first + count; i++)
				sent[i]++;
		}
		else if (count == 1)
			refused_alone[first]++;
		onside_bisect_answer(&b, answer);
	}

	if (!onside_bisect_done(&b))
		return -2;
	for (i = 0; i < n; i++)
	{
		if (onside_bisect_verdict(&b, i) !=
			(bad[i] ? ONSIDE_VERDICT_BAD : ONSIDE_VERDICT_DELIVERED))
			return -2;
		if (sent[i] != (bad[i] ? 0 : 1))
			return -2;
		if (bad[i] && refused_alone[i] == 0)
			return -2;
	}
	return b.requests + 1;
}

static double
goal(int k)
{
	return 2.0 * k * log2(1000.0 / k) + 20;
}

static void
test_bisect_counts(void)
{
	/*
	 * How far above the goal the worst placement found may be, in percent.
	 */
	static const struct
	{
		int			k;
		int			random_percent;
		int			worst_percent;
	}			cases[] = {
		{1, 0, 0}, {2, 0, 0}, {3, 0, 0}, {5, 0, 0}, {10, 0, 0}, {20, 0, 0},
		{50, 0, 0}, {100, 0, 5}, {200, 0, 20}, {300, 0, 10}, {400, 0, 5},
		{500, 5, 5}
	};
	int			c;

	for (c = 0; c < (int) lengthof(cases); c++)
	{
		int			k = cases[c].k;
		int			rounds = 1000;
		int			most = 0;
		int			worst = 0;
		int			refusing = 0;
		double		sum = 0;
		int			i;
		int			j;
		int			shape;
		bool		wrong = false;

		for (i = 0; i < rounds; i++)
		{
			int			requests;

			place_randomly(MAX_EVENTS, k);
			requests = play(MAX_EVENTS, false, MAX_EVENTS);
			if (requests == -1)
			{
				/* ten at random, all bad: one in a thousand if half are */
				refusing++;
				continue;
			}
			wrong = wrong || requests < 0;
			sum += requests;
			most = Max(most, requests);
		}
		wrong = wrong || refusing > (k < 400 ? 0 : 10);
		ok(!wrong && most <= goal(k) * (100 + cases[c].random_percent) / 100,
		   "%d bad anywhere: %.0f requests, at most %d (goal %.0f)",
		   k, sum / (rounds - refusing), most, goal(k));

		/*
		 * Shapes that are hard: all at either end, evenly apart with every
		 * shift, in clumps, and apart by two distances in turn.
		 */
		wrong = false;
		for (shape = 0; shape < 400; shape++)
		{
			int			requests;
			int			put = 0;

			place_none();
			if (shape == 0)
			{
				for (; put < k; put++)
					bad[put] = true;
			}
			else if (shape == 1)
			{
				for (; put < k; put++)
					bad[MAX_EVENTS - 1 - put] = true;
			}
			else if (shape < 100)
			{
				for (; put < k; put++)
					bad[(put * MAX_EVENTS / k + shape - 2) % MAX_EVENTS] = true;
			}
			else
			{
				int			at = shape % 7;
				int			near = shape % 5;
				int			far = Max(2 * MAX_EVENTS / k - near -
									  shape % 11, 1);
				int			clump = 1 + shape % 4;

				for (; put < k && at < MAX_EVENTS; put++)
				{
					bad[at] = true;
					at += put % (clump + 1) == clump ? far : 1 + near;
				}
			}
			for (put = 0, j = 0; j < MAX_EVENTS; j++)
				put += bad[j];
			for (j = 0; put < k; j++)
			{
				int			at = j * 617 % MAX_EVENTS;

				if (!bad[at])
				{
					bad[at] = true;
					put++;
				}
			}
			requests = play(MAX_EVENTS, true, MAX_EVENTS);
			if (requests == -1)
				continue;
			wrong = wrong || requests < 0;
			worst = Max(worst, requests);
		}
		ok(!wrong && worst <= goal(k) * (100 + cases[c].worst_percent) / 100,
		   "%d bad in a hard place: at most %d requests", k, worst);
	}
}

static void
test_bisect_sizes(void)
{
	int			n;
	int			k;
	bool		right = true;
	bool		bounded = true;
	unsigned int mask;

	/* every placement in a small batch */
	for (n = 1; n <= 12; n++)
	{
		for (mask = 0; mask < (1u << n); mask++)
		{
			int			requests;
			int			i;
			bool		all = mask == (1u << n) - 1;

			place_none();
			for (i = 0; i < n; i++)
				bad[i] = (mask >> i) & 1;
			requests = play(n, false, n);
			right = right && (all ? requests == -1 : requests > 0 ||
							  (n > ONSIDE_BISECT_REFUSING_AFTER &&
							   requests == -1));
			requests = play(n, true, n);
			right = right &&
				(requests > 0 || (n > ONSIDE_BISECT_REFUSING_AFTER &&
								  requests == -1));
			requests = play(n, true, 1 + (int) (mask % n));
			right = right &&
				(requests > 0 || (n > ONSIDE_BISECT_REFUSING_AFTER &&
								  requests == -1));
		}
	}
	ok(right, "every placement in a batch of 1 to 12: each verdict is right");

	for (n = 13; n <= MAX_EVENTS; n += 13)
	{
		for (k = 0; k < 20; k++)
		{
			int			requests;

			place_randomly(n, (int) (random_bits() % (n / 2)));
			requests = play(n, k % 2 == 0,
							k % 3 == 0 ? 1 + (int) (random_bits() % n) : n);
			right = right && requests != -2;
			bounded = bounded && requests <= 2 * n + 24;
		}
	}
	ok(right, "batches of any size, with and without 413: right");
	ok(bounded, "and never more than twice as many requests as events");

	place_none();
	ok(play(MAX_EVENTS, false, MAX_EVENTS) <= 12,
	   "a 400 that passes: everything is delivered");
	ok(play(MAX_EVENTS, false, 100) <= 24, "a 413 alone cuts and no more");
	bad[777] = true;
	ok(play(MAX_EVENTS, false, 100) > 0, "413 and 400 in one batch");
	memset(bad, true, sizeof(bad));
	ok(play(MAX_EVENTS, true, 0) == -1, "413 for everything dead-letters none");
}

static void
test_bisect_refusing(void)
{
	OnsideBisect b;
	OnsideContract contract;
	int			first;
	int			count;
	int			i;
	int			n;
	bool		lone;
	bool		seen[MAX_EVENTS] = {false};
	int			distinct = 0;
	int			requests;

	for (n = 0; n < 2; n++)
	{
		onside_bisect_init(&b, MAX_EVENTS, ONSIDE_BISECT_REFUSED, n == 1);
		requests = 1;
		while (!onside_bisect_refusing(&b) &&
			   onside_bisect_next(&b, &first, &count) && requests < 100)
		{
			onside_bisect_answer(&b, ONSIDE_BISECT_REFUSED);
			requests++;
		}
		ok(onside_bisect_refusing(&b) && requests <= 20,
		   "all of 1000 refused: known after %d requests%s", requests,
		   n == 1 ? ", trusted or not" : "");
	}

	/* it goes on with others, one alone each time */
	lone = true;
	for (i = 0; i < 3 * MAX_EVENTS; i++)
	{
		lone = lone && onside_bisect_next(&b, &first, &count) && count == 1;
		if (!seen[first])
			distinct++;
		seen[first] = true;
		onside_bisect_answer(&b, ONSIDE_BISECT_REFUSED);
	}
	ok(lone && distinct == MAX_EVENTS && onside_bisect_refusing(&b) &&
	   !onside_bisect_done(&b),
	   "while refusing, one event at a time, each in its turn, without end");

	/* the API is repaired */
	onside_bisect_next(&b, &first, &count);
	onside_bisect_answer(&b, ONSIDE_BISECT_ACCEPTED);
	ok(!onside_bisect_refusing(&b), "an acceptance ends it");
	for (n = 0; onside_bisect_next(&b, &first, &count); n++)
		onside_bisect_answer(&b, ONSIDE_BISECT_ACCEPTED);
	for (i = 0; i < MAX_EVENTS; i++)
		lone = lone &&
			onside_bisect_verdict(&b, i) == ONSIDE_VERDICT_DELIVERED;
	ok(lone && n <= 3, "and all of it is delivered, in %d more requests", n);

	/* a 400 that passes after any number of requests */
	lone = true;
	for (n = 0; n < 200; n++)
	{
		int			answers = 0;

		onside_bisect_init(&b, n % 5 == 0 ? 1 + n / 5 : MAX_EVENTS,
						   ONSIDE_BISECT_REFUSED, false);
		while (onside_bisect_next(&b, &first, &count))
			onside_bisect_answer(&b, answers++ < n ? ONSIDE_BISECT_REFUSED :
								 ONSIDE_BISECT_ACCEPTED);
		for (i = 0; i < b.n; i++)
			lone = lone &&
				onside_bisect_verdict(&b, i) == ONSIDE_VERDICT_DELIVERED;
	}
	ok(lone, "refusing everything for a while dead-letters nothing");

	/* another endpoint takes over in the middle, and refuses everything */
	onside_bisect_init(&b, MAX_EVENTS, ONSIDE_BISECT_REFUSED, true);
	for (n = 0; n < 12; n++)
	{
		onside_bisect_next(&b, &first, &count);
		onside_bisect_answer(&b, first < 3 ? ONSIDE_BISECT_ACCEPTED :
							 ONSIDE_BISECT_REFUSED);
	}
	lone = onside_bisect_verdict(&b, 0) == ONSIDE_VERDICT_DELIVERED;
	onside_bisect_distrust(&b);
	for (requests = 0; requests < 20 && !onside_bisect_refusing(&b); requests++)
	{
		onside_bisect_next(&b, &first, &count);
		onside_bisect_answer(&b, ONSIDE_BISECT_REFUSED);
	}
	ok(onside_bisect_refusing(&b) && !onside_bisect_done(&b),
	   "what another endpoint had accepted does not speak for this one");
	for (n = 0; n < 3 * MAX_EVENTS; n++)
	{
		onside_bisect_next(&b, &first, &count);
		lone = lone && first >= 3;
		onside_bisect_answer(&b, ONSIDE_BISECT_REFUSED);
	}
	ok(lone && !onside_bisect_done(&b), "and what it took is not sent again");

	/* acceptance elsewhere, with a range under way */
	onside_bisect_init(&b, 1, ONSIDE_BISECT_REFUSED, false);
	onside_bisect_next(&b, &first, &count);
	onside_bisect_answer(&b, ONSIDE_BISECT_REFUSED);
	ok(onside_bisect_refusing(&b), "one event, nothing accepted: refusing");
	onside_bisect_next(&b, &first, &count);
	onside_bisect_accepted_elsewhere(&b);
	onside_bisect_answer(&b, ONSIDE_BISECT_REFUSED);
	ok(!onside_bisect_refusing(&b) && onside_bisect_done(&b) &&
	   onside_bisect_verdict(&b, 0) == ONSIDE_VERDICT_BAD,
	   "others are accepted: now it is the event");

	onside_bisect_init(&b, 1, ONSIDE_BISECT_REFUSED, true);
	ok(onside_bisect_next(&b, &first, &count) && first == 0 && count == 1,
	   "a lone event is not given up after one answer");
	onside_bisect_answer(&b, ONSIDE_BISECT_REFUSED);
	ok(onside_bisect_done(&b) &&
	   onside_bisect_verdict(&b, 0) == ONSIDE_VERDICT_BAD,
	   "but after two");

	onside_bisect_init(&b, 0, ONSIDE_BISECT_REFUSED, true);
	ok(!onside_bisect_next(&b, &first, &count) && onside_bisect_done(&b) &&
	   onside_bisect_verdict(&b, -1) == ONSIDE_VERDICT_UNKNOWN &&
	   onside_bisect_verdict(&b, 5) == ONSIDE_VERDICT_UNKNOWN,
	   "an empty batch is done");
	onside_bisect_answer(&b, ONSIDE_BISECT_REFUSED);
	ok(b.requests == 0, "an answer to nothing is ignored");

	onside_contract_init(&contract);
	ok(!onside_contract_trusted(&contract), "no trust before an acceptance");
	onside_contract_on_accepted(&contract);
	ok(onside_contract_trusted(&contract), "trust after it");
	for (i = 0; i < ONSIDE_BISECT_REFUSING_AFTER - 1; i++)
		onside_contract_on_refused_alone(&contract);
	ok(onside_contract_trusted(&contract), "for a number of refusals");
	for (i = 0; i < 1000; i++)
		onside_contract_on_refused_alone(&contract);
	ok(!onside_contract_trusted(&contract), "and no more");
	onside_contract_on_accepted(&contract);
	ok(onside_contract_trusted(&contract), "until the next acceptance");
}

int
main(void)
{
	test_classes();
	test_retry_after();
	test_delay();
	test_backoff();
	test_body_limit();
	test_bisect_counts();
	test_bisect_sizes();
	test_bisect_refusing();

	printf("1..%d\n", passed + failed);
	printf("%d passed, %d failed\n", passed, failed);
	return failed == 0 ? 0 : 1;
}
