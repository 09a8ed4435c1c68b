/*-------------------------------------------------------------------------
 *
 * day.c
 *		What happens on a simulated day.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "api.h"
#include "day.h"

const char *const kind_names[KINDS] = {
	"204",
	"400", "413", "500", "503", "503-retry-after", "429-retry-after", "429",
	"401", "403", "404", "200", "302", "408",
	"closed", "hangs", "garbage", "407", "certificate",
	"lost"
};

const char *const what_names[WHATS] = {
	"crash-worker", "crash-server", "restart-worker", "delete-some",
	"truncate", "resume", "elsewhere", "change-settings"
};

/* ----------
 * Drawing one
 * ----------
 */

static pg_prng_state dice;

static double
fraction(void)
{
	return pg_prng_double(&dice);
}

static int
between(int low, int high)
{
	return (int) pg_prng_uint64_range(&dice, low, high);
}

static bool
chance(double p)
{
	return fraction() < p;
}

/* Small numbers as often as large ones. */
static double
log_between(double low, double high)
{
	return low * exp(fraction() * log(high / low));
}

/* What a single event can bring about. */
static Kind
poison_kind(void)
{
	static const Kind kinds[] = {
		BAD_400, BAD_400, BAD_400, FAIL_500, FAIL_500, AUTH_403, GONE_404,
		CLOSED, HANGS, BIG_413, WAIT_429, BUSY_503, WAIT_503, ODD_200,
		MOVED_302, LATE_408, GARBAGE, AUTH_401, SLOW_DOWN_429
	};

	return kinds[between(0, lengthof(kinds) - 1)];
}

static Kind
outage_kind(void)
{
	return (Kind) between(BAD_400, LOST - 1);
}

static int64
moment(int64 end)
{
	return (int64) (fraction() * (double) end);
}

static void
draw_settings(OnsideSendSettings *settings)
{
	static const int in_flight[] = {1, 1, 2, 4, 4, 4, 8, 64};
	static const int events[] = {1000, 1000, 1000, 100, 10, 1};

	settings->max_in_flight = in_flight[between(0, lengthof(in_flight) - 1)];
	settings->batch_max_events = events[between(0, lengthof(events) - 1)];
	settings->batch_max_bytes = chance(0.8) ? ONSIDE_API_MAX_BYTES : between(1024, 100000);
	settings->request_timeout = chance(0.5) ? 30000 : between(500, 30000);
	settings->retry_initial_delay = chance(0.5) ? 1000 : between(1, 10000);
	settings->retry_max_delay = chance(0.5) ? 300000 :
		between(settings->retry_initial_delay, 60000);
}

static void
draw_poison(Poison *poison, int events, int64 length)
{
	memset(poison, 0, sizeof(*poison));
	poison->kind = poison_kind();
	poison->to = NEVER;
	poison->retry_after = between(0, 3);
	poison->every = 1;
	poison->last = -1;
	if (poison->kind == WAIT_429 || poison->kind == WAIT_503 ||
		poison->kind == SLOW_DOWN_429)
	{
		/* who asks everybody to wait over and over is obeyed */
		poison->first = between(0, events);
		poison->last = poison->first + between(0, 2);
	}
	else if (chance(0.5))
		poison->share = log_between(0.001, 0.9);
	else
	{
		poison->first = between(0, events);
		poison->last = poison->first + (int) log_between(1, events + 1) - 1;
		poison->every = chance(0.7) ? 1 : between(1, 5);
	}
	if (chance(0.2))
	{
		poison->from = moment(length);
		poison->to = poison->from + moment(length);
	}
	if (chance(0.2))
		poison->takes = moment(SECOND);
}

void
day_random(Day *day, uint64 seed)
{
	int64		length;
	int			events;

	memset(day, 0, sizeof(*day));
	pg_prng_seed(&dice, seed);
	day->seed = seed;
	draw_settings(&day->settings);
	length = (int64) log_between(0.1, 600) * SECOND + SECOND;
	events = (int) log_between(1, 1500);
	day->names = between(1, 3);
	day->twins = chance(0.1) ? fraction() * 0.3 : 0;
	day->event_bytes = chance(0.9) ? 200 : between(50, 20000);
	day->api_max_events = chance(0.85) ? 1000 : between(1, 1000);
	day->api_max_bytes = chance(0.85) ? ONSIDE_API_MAX_BYTES : between(5000, ONSIDE_API_MAX_BYTES);
	day->rtt = (int64) (log_between(0.05, 200) * MS);
	day->jitter = chance(0.5) ? moment(2 * day->rtt) : 0;
	day->per_event = chance(0.2) ? moment(MS) : 0;
	day->lost = chance(0.1) ? fraction() * 0.2 : 0;
	day->random_failures = chance(0.1) ? fraction() * 0.9 : 0;
	if (chance(0.5))
		day->backlog = between(0, events);
	for (int i = between(0, 2); i >= 0; i--)
	{
		Load	   *load = &day->load[day->nloads++];

		load->from = moment(length);
		load->to = load->from + moment(length - load->from) + 1;
		load->rate = Min((double) events / 2,
						 events * (double) SECOND / (load->to - load->from));
	}
	if (chance(0.2))
	{
		day->dead_letters = between(1, 60);
		day->dead_bad = fraction();
	}
	for (int i = chance(0.7) ? between(1, 3) : 0; i > 0; i--)
		draw_poison(&day->poison[day->npoison++], events, length);
	for (int i = chance(0.5) ? between(1, 3) : 0; i > 0; i--)
	{
		Outage	   *outage = &day->outage[day->noutages++];

		outage->kind = outage_kind();
		outage->share = chance(0.7) ? 1.0 : fraction();
		outage->from = moment(length);
		outage->to = outage->from +
			(int64) (log_between(0.05, 1000) * SECOND);
		outage->retry_after = between(0, 20);
	}
	if (chance(0.15))
	{
		Sickness   *sickness = &day->sickness[day->nsicknesses++];

		sickness->kind = chance(0.5) ? BUSY_503 :
			chance(0.5) ? GONE_404 : BAD_400;
		sickness->share = 0.1 + 0.5 * fraction();
		sickness->from = moment(length);
		sickness->to = sickness->from + moment(length);
	}
	for (int i = chance(0.4) ? between(1, 3) : 0; i > 0; i--)
	{
		Happening  *happening = &day->happening[day->nhappenings++];

		happening->what = (What) between(0, WHATS - 1);
		happening->at = moment(length);
	}
	if (chance(0.1))
	{
		Locked	   *locked = &day->locked[day->nlocked++];

		locked->from = moment(length);
		locked->to = locked->from + moment(MINUTE);
	}
}

int64
day_end(const Day *day)
{
	int64		end = 0;

	for (int i = 0; i < day->nloads; i++)
		end = Max(end, day->load[i].to);
	for (int i = 0; i < day->noutages; i++)
		end = Max(end, day->outage[i].to);
	for (int i = 0; i < day->nsicknesses; i++)
		end = Max(end, day->sickness[i].to);
	for (int i = 0; i < day->nhappenings; i++)
		end = Max(end, day->happening[i].at);
	for (int i = 0; i < day->nlocked; i++)
		end = Max(end, day->locked[i].to);
	for (int i = 0; i < day->npoison; i++)
		if (day->poison[i].to != NEVER)
			end = Max(end, day->poison[i].to);
	return end;
}

/* ----------
 * Reading one
 * ----------
 */

static const char *day_file;
static int	line_number;

static void
complain(const char *what, const char *word)
{
	fprintf(stderr, "%s:%d: %s: %s\n", day_file, line_number, what,
			word == NULL ? "end of line" : word);
	exit(2);
}

static char *
word(void)
{
	char	   *result = strtok(NULL, " \t\n");

	if (result == NULL)
		complain("something is missing", NULL);
	return result;
}

static double
number(const char *from)
{
	char	   *end;
	double		result = strtod(from, &end);

	if (end == from || (*end != '\0' && strcmp(end, "/s") != 0))
		complain("not a number", from);
	return result;
}

/* "1.5s", "20ms", "5min", "2h", "14d", "never" */
static int64
span(const char *from)
{
	char	   *end;
	double		n = strtod(from, &end);
	int64		unit = strcmp(end, "us") == 0 ? US : strcmp(end, "ms") == 0 ? MS :
		strcmp(end, "s") == 0 ? SECOND : strcmp(end, "min") == 0 ? MINUTE :
		strcmp(end, "h") == 0 ? HOUR : strcmp(end, "d") == 0 ? DAY : 0;

	if (strcmp(from, "never") == 0)
		return NEVER;
	if (end == from || unit == 0)
		complain("not a time (us, ms, s, min, h, d)", from);
	return (int64) (n * (double) unit);
}

/* "10s..2min" */
static void
times(char *from, int64 *first, int64 *last)
{
	char	   *dots = strstr(from, "..");

	if (dots == NULL)
		complain("not from..to", from);
	*dots = '\0';
	*first = span(from);
	*last = span(dots + 2);
}

static int
one_of(const char *name, const char *const *names, int n)
{
	for (int i = 0; i < n; i++)
		if (strcmp(name, names[i]) == 0)
			return i;
	complain("unknown", name);
	return 0;
}

static Kind
kind(const char *name)
{
	return (Kind) one_of(name, kind_names, KINDS);
}

static void
read_poison(Poison *poison)
{
	char	   *w;

	memset(poison, 0, sizeof(*poison));
	poison->to = NEVER;
	poison->every = 1;
	poison->last = -1;
	poison->retry_after = 1;
	poison->kind = kind(word());
	while ((w = strtok(NULL, " \t\n")) != NULL)
	{
		if (strcmp(w, "share") == 0)
			poison->share = number(word());
		else if (strcmp(w, "events") == 0)
		{
			if (sscanf(word(), "%d..%d", &poison->first, &poison->last) != 2)
				complain("not first..last", "events");
		}
		else if (strcmp(w, "every") == 0)
			poison->every = (int) number(word());
		else if (strcmp(w, "during") == 0)
			times(word(), &poison->from, &poison->to);
		else if (strcmp(w, "takes") == 0)
			poison->takes = span(word());
		else if (strcmp(w, "retry-after") == 0)
			poison->retry_after = (int) number(word());
		else
			complain("unknown", w);
	}
}

static void
read_outage(Outage *outage)
{
	char	   *w;

	outage->kind = kind(word());
	times(word(), &outage->from, &outage->to);
	outage->share = 1.0;
	outage->retry_after = 1;
	while ((w = strtok(NULL, " \t\n")) != NULL)
	{
		if (strcmp(w, "share") == 0)
			outage->share = number(word());
		else if (strcmp(w, "retry-after") == 0)
			outage->retry_after = (int) number(word());
		else
			complain("unknown", w);
	}
}

static void
read_setting(OnsideSendSettings *settings)
{
	const char *name = word();
	int			value = (int) number(word());

	if (strcmp(name, "max_in_flight") == 0)
		settings->max_in_flight = value;
	else if (strcmp(name, "batch_max_events") == 0)
		settings->batch_max_events = value;
	else if (strcmp(name, "batch_max_bytes") == 0)
		settings->batch_max_bytes = value;
	else if (strcmp(name, "request_timeout") == 0)
		settings->request_timeout = value;
	else if (strcmp(name, "retry_initial_delay") == 0)
		settings->retry_initial_delay = value;
	else if (strcmp(name, "retry_max_delay") == 0)
		settings->retry_max_delay = value;
	else
		complain("unknown setting", name);
}

static void
read_expectation(Day *day)
{
	const char *w = word();

	if (strcmp(w, "p99") == 0)
		day->p99 = span(word());
	else if (strcmp(w, "slowest") == 0)
		day->slowest = span(word());
	else if (strcmp(w, "all-by") == 0)
		day->all_by = span(word());
	else if (strcmp(w, "requests") == 0)
		day->max_requests = (int64) number(word());
	else if (strcmp(w, "recovers") == 0)
		day->recovers = span(word());
	else if (strcmp(w, "no-dead") == 0)
		day->no_dead = true;
	else
		complain("unknown expectation", w);
}

/* The next one of a kind of which there can be several. */
#define ADD(array, n) \
	(*(n) < MAX_OF_EACH ? &(array)[(*(n))++] : \
	 (complain("too many", #array), (array)))

static void
read_line(Day *day, const char *w)
{
	if (strcmp(w, "seed") == 0)
		day->seed = (uint64) number(word());
	else if (strcmp(w, "setting") == 0)
		read_setting(&day->settings);
	else if (strcmp(w, "backlog") == 0)
		day->backlog = (int) number(word());
	else if (strcmp(w, "names") == 0)
		day->names = (int) number(word());
	else if (strcmp(w, "twins") == 0)
		day->twins = number(word());
	else if (strcmp(w, "event-bytes") == 0)
		day->event_bytes = (int) number(word());
	else if (strcmp(w, "api-max-events") == 0)
		day->api_max_events = (int) number(word());
	else if (strcmp(w, "api-max-bytes") == 0)
		day->api_max_bytes = (int) number(word());
	else if (strcmp(w, "rtt") == 0)
		day->rtt = span(word());
	else if (strcmp(w, "jitter") == 0)
		day->jitter = span(word());
	else if (strcmp(w, "per-event") == 0)
		day->per_event = span(word());
	else if (strcmp(w, "lost") == 0)
		day->lost = number(word());
	else if (strcmp(w, "random-failures") == 0)
		day->random_failures = number(word());
	else if (strcmp(w, "dead-letters") == 0)
	{
		day->dead_letters = (int) number(word());
		day->dead_bad = number(word());
	}
	else if (strcmp(w, "load") == 0)
	{
		Load	   *load = ADD(day->load, &day->nloads);

		load->rate = number(word());
		times(word(), &load->from, &load->to);
	}
	else if (strcmp(w, "poison") == 0)
		read_poison(ADD(day->poison, &day->npoison));
	else if (strcmp(w, "outage") == 0)
		read_outage(ADD(day->outage, &day->noutages));
	else if (strcmp(w, "sick") == 0)
	{
		Sickness   *sickness = ADD(day->sickness, &day->nsicknesses);

		sickness->kind = kind(word());
		sickness->share = number(word());
		times(word(), &sickness->from, &sickness->to);
	}
	else if (strcmp(w, "at") == 0)
	{
		Happening  *happening = ADD(day->happening, &day->nhappenings);

		happening->at = span(word());
		happening->what = (What) one_of(word(), what_names, WHATS);
	}
	else if (strcmp(w, "locked") == 0)
	{
		Locked	   *locked = ADD(day->locked, &day->nlocked);

		times(word(), &locked->from, &locked->to);
	}
	else if (strcmp(w, "expect") == 0)
		read_expectation(day);
	else
		complain("unknown", w);
}

void
day_read(Day *day, const char *file)
{
	FILE	   *f = fopen(file, "r");
	char		line[1000];

	day_file = file;
	if (f == NULL)
		complain("cannot be opened", file);
	memset(day, 0, sizeof(*day));
	day->seed = 1;
	day->settings = (OnsideSendSettings)
	{
		.max_in_flight = 4, .batch_max_events = 1000,
			.batch_max_bytes = ONSIDE_API_MAX_BYTES, .request_timeout = 30000,
			.retry_initial_delay = 1000, .retry_max_delay = 300000
	};
	day->names = 1;
	day->event_bytes = 200;
	day->api_max_events = 1000;
	day->api_max_bytes = ONSIDE_API_MAX_BYTES;
	day->rtt = MS;
	for (line_number = 1; fgets(line, sizeof(line), f) != NULL; line_number++)
	{
		char	   *hash = strchr(line, '#');
		char	   *w;

		if (hash != NULL)
			*hash = '\0';
		w = strtok(line, " \t\n");
		if (w == NULL)
			continue;
		read_line(day, w);
		if ((w = strtok(NULL, " \t\n")) != NULL)
			complain("superfluous", w);
	}
	fclose(f);
}
