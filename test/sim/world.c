/*-------------------------------------------------------------------------
 *
 * world.c
 *		A simulated shop, log, network and API around a sender.
 *
 * The part of the worker is played as the worker plays it: answers are taken,
 * fates carried out, the log is read.  After each step the promises are checked
 * that hold at any time, and at the end those about the whole.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "send/chances.h"
#include "send/review.h"
#include "send/sender.h"
#include "world.h"

/* With so many fates that cannot be written nothing more is sent. */
#define MAX_UNWRITTEN	4000

/*
 * After the day, so many healthy purchases: each 5 s, then each minute, then each
 * quarter of an hour, for weeks: each event that hangs takes a minute per try.
 */
#define AFTERMATH		2000

typedef enum Place
{
	IN_LOG,
	IN_ASIDE,
	IN_DEAD,
	GONE						/* delivered from aside or dead_letter */
} Place;

typedef struct Event
{
	int64		at;				/* committed */
	int			bytes;
	int			id;
	int			name;
	uint32		poison;			/* which of the day's */
	bool		bad;			/* a dead letter of the beginning */
	bool		aftermath;

	/* what is on disk */
	Place		place;
	bool		deleted;
	int			status;			/* of a dead letter */
	int			chances;
	int64		failed_at;
	int64		retry_at;

	/* what the worker remembers */
	bool		taken;			/* read, or left out when reading */
	bool		settled;
	bool		tried_now;		/* dead letter under way */

	/* the truth */
	int			in_flight;
	int64		first_sent;		/* 0 for never */
	int64		accepted;		/* 0 for never */
	bool		acknowledged;
	int64		first_refused;	/* alone */
	int64		last_refused;
	bool		failed_otherwise;
	bool		was_dead;
	bool		died_in_outage;
} Event;

typedef struct Connection
{
	int64		born;
	int			sick;			/* a Kind, or -1 */
	bool		busy;
} Connection;

typedef struct Flight
{
	int64		request;		/* 0 for none */
	int64		ends;
	int			n;
	int		   *events;
	OnsideAnswer answer;
	int			connection;
	bool		keep;			/* the connection */
	bool		accepts;
} Flight;

typedef struct Boundary
{
	int64		seq;
	int			head;
} Boundary;

#define MAX_CONNECTIONS		256
#define MAX_IDLE			64

static const Day *day;
static bool tracing;
static Outcome *result;
static pg_prng_state dice;
static int64 now;
static int64 day_over;		/* from here on all is well but poison */

static Event *events;
static int	nevents;
static int	arrived;			/* so many are committed */

static OnsideSender *sender;
static int	head;				/* read up to here */
static int	cursor;				/* on disk: settled up to here */
static int	next_cursor;		/* in memory */
static Boundary *boundaries;
static int	nboundaries;
static int64 saved_not_before;	/* on disk */
static int64 asked_until;		/* by a Retry-After */
static int	saved_refused;
static int64 saved_trouble;	/* NEVER for none */
static int64 persist_at;		/* 0 for never */
static OnsideChances chances;
static int	npicks;
static bool more_aside;

static Flight flights[ONSIDE_SENDER_MAX_REQUESTS];
static Connection connections[MAX_CONNECTIONS];
static int	nconnections;

static int64 last_acceptance;	/* any, as the worker heard of it */
static int	outage_dead;		/* refused since, that were sent since */
static int64 last_count;

/* ----------
 * Telling
 * ----------
 */

static void
tell(const char *format,...)
{
	va_list		args;

	if (!tracing)
		return;
	printf("%12.6f  ", (double) now / SECOND);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
}

static void
broken(const char *promise)
{
	if (result->broken == NULL)
		result->broken = promise;
	tell("BROKEN: %s", promise);
}

static double
fraction(void)
{
	return pg_prng_double(&dice);
}

/* ----------
 * The API
 * ----------
 */

static bool
is_locked(void)
{
	for (int i = 0; i < day->nlocked; i++)
		if (now >= day->locked[i].from && now < day->locked[i].to)
			return true;
	return false;
}

/* How the API takes these events now, and how long it thinks about it. */
static Kind
judge(const int *which, int n, int bytes, int64 *takes, int *retry_after)
{
	if (n > day->api_max_events || (bytes > day->api_max_bytes && n > 1))
		return BIG_413;
	for (int i = 0; i < n; i++)
	{
		const Event *event = &events[which[i]];

		if (event->bad)
			return BAD_400;
		for (int p = 0; event->poison != 0 && p < day->npoison; p++)
		{
			const Poison *poison = &day->poison[p];

			if ((event->poison & (1u << p)) && now >= poison->from &&
				now < poison->to)
			{
				*takes += poison->takes;
				*retry_after = poison->retry_after;
				return poison->kind;
			}
		}
	}
	if (now < day_over && day->random_failures > 0 && fraction() < day->random_failures)
		return FAIL_500;
	if (now < day_over && day->lost > 0 && fraction() < day->lost)
		return LOST;
	return OK_204;
}

static Kind
outage_now(Kind kind, int *retry_after)
{
	for (int i = 0; i < day->noutages; i++)
	{
		const Outage *outage = &day->outage[i];

		if (now >= outage->from && now < outage->to &&
			(outage->share >= 1.0 || fraction() < outage->share))
		{
			*retry_after = outage->retry_after;
			return outage->kind;
		}
	}
	return kind;
}

/* Puts it the way http.c would. */
static void
make_answer(Flight *flight, Kind kind, int retry_after, int timeout)
{
	static const int statuses[KINDS] = {
		204, 400, 413, 500, 503, 503, 429, 429, 401, 403, 404, 200, 302, 408,
		0, 0, 0, 407, 0, 0
	};
	OnsideAnswer *answer = &flight->answer;

	memset(answer, 0, offsetof(OnsideAnswer, words) + 1);
	strcpy(answer->words, kind_names[kind]);
	answer->status = statuses[kind];
	answer->retry_after_ms = kind == WAIT_503 || kind == WAIT_429 ?
		retry_after * INT64CONST(1000) : -1;
	answer->kind = ONSIDE_ANSWER_COMPLETE;
	if (kind == CLOSED || kind == LOST)
		answer->kind = ONSIDE_ANSWER_NO_CONNECTION;
	else if (kind == GARBAGE)
		answer->kind = ONSIDE_ANSWER_MALFORMED;
	else if (kind == PROXY_407)
		answer->kind = ONSIDE_ANSWER_PROXY_REFUSED;
	else if (kind == CERTIFICATE)
		answer->kind = ONSIDE_ANSWER_NOT_TRUSTED;
	flight->accepts = kind == OK_204 || kind == LOST;
	flight->keep = kind == OK_204 || kind == BAD_400 || kind == BIG_413 ||
		answer->status == 429;
	if (kind == HANGS || flight->ends > now + timeout * MS)
	{
		answer->kind = ONSIDE_ANSWER_TIMEOUT;
		answer->status = 0;
		answer->retry_after_ms = -1;
		flight->ends = now + timeout * MS;
		flight->keep = false;
	}
	answer->duration = flight->ends - now;
}

/* ----------
 * The network
 * ----------
 */

static int
connect_anew(void)
{
	Connection *connection;
	int			i;

	for (i = 0; i < nconnections && connections[i].born != 0; i++)
		;
	if (i == MAX_CONNECTIONS)
	{
		broken("connections are closed");
		i = 0;
	}
	nconnections = Max(nconnections, i + 1);
	connection = &connections[i];
	connection->born = now + 1;
	connection->busy = true;
	connection->sick = -1;
	for (int s = 0; s < day->nsicknesses; s++)
		if (now >= day->sickness[s].from && now < day->sickness[s].to &&
			fraction() < day->sickness[s].share)
			connection->sick = day->sickness[s].kind;
	result->connections++;
	return i;
}

/* A connection for a request; idle ones that are too old are closed. */
static int
find_connection(bool fresh, bool renew)
{
	int			found = -1;
	int			oldest = -1;
	int			idle = 0;

	for (int i = 0; i < nconnections; i++)
	{
		if (connections[i].born == 0 || connections[i].busy)
			continue;
		if (renew || now - connections[i].born > 5 * MINUTE)
		{
			connections[i].born = 0;
			continue;
		}
		if (found < 0)
			found = i;
		idle++;
		if (oldest < 0 || connections[i].born < connections[oldest].born)
			oldest = i;
	}
	if (fresh && idle > MAX_IDLE)
		connections[oldest].born = 0;
	if (fresh || found < 0)
		return connect_anew();
	connections[found].busy = true;
	return found;
}

/* ----------
 * The worker: reading and sending
 * ----------
 */

static int
rank_of_id(const int *which, int n, int id)
{
	for (int i = 0; i < n; i++)
		if (events[which[i]].id == id)
			return i;
	return -1;
}

static OnsideItem
item_of(int i)
{
	OnsideItem	item = {0};

	item.key[0] = i;
	item.event_id[0] = events[i].id;
	item.recorded_at = events[i].at;
	item.bytes = events[i].bytes;
	item.home = events[i].place == IN_ASIDE ? ONSIDE_IN_ASIDE :
		events[i].place == IN_DEAD ? ONSIDE_IN_DEAD_LETTER : ONSIDE_IN_LOG;
	return item;
}

/* Is there anything to read? */
static bool
skip_taken(void)
{
	while (head < arrived && (events[head].taken || events[head].deleted))
		head++;
	return head < arrived;
}

/* Reads the next events of the log; how many, and whether the batch is full. */
static int
read_oldest(const OnsideOrder *order, int *which, int *new_head, bool *full)
{
	int			n = 0;
	int			bytes = 16;
	int			i;

	*full = false;
	for (i = head; i < arrived; i++)
	{
		if (events[i].taken || events[i].deleted)
			continue;
		if (n == order->max_events ||
			(n > 0 && bytes + events[i].bytes + 1 >= order->max_bytes) ||
			(day->twins > 0 && rank_of_id(which, n, events[i].id) >= 0))
			break;
		bytes += events[i].bytes + 1;
		which[n++] = i;
	}
	*full = i < arrived || n == order->max_events;
	*new_head = i;
	return n;
}

static int
read_newest(const OnsideOrder *order, int *which)
{
	int			n = 0;
	int			bytes = 16;

	for (int i = arrived - 1; i >= head && n < order->max_events; i--)
	{
		if (events[i].taken || events[i].deleted ||
			(day->twins > 0 && rank_of_id(which, n, events[i].id) >= 0))
			continue;
		if (n > 0 && bytes + events[i].bytes + 1 >= order->max_bytes)
			break;
		bytes += events[i].bytes + 1;
		which[n++] = i;
	}
	return n;
}

/* Checks what is about to be sent, and puts it on its way. */
static void
send(const OnsideOrder *order, const int *which, int n)
{
	OnsideItem *items = palloc(n * sizeof(OnsideItem));
	Flight	   *flight = flights;
	int			bytes = 16;
	int64		takes = 0;
	int			retry_after = 0;
	Kind		kind;

	for (int i = 0; i < n; i++)
	{
		Event	   *event = &events[which[i]];

		items[i] = item_of(which[i]);
		bytes += event->bytes + 1;
		if (event->deleted)
			broken("a deleted event is never sent");
		if (event->settled && order->kind != ONSIDE_SEND_CHANCE)
			broken("what is settled is not sent again");
		if (event->in_flight++ > 0)
			broken("no event is in flight twice");
		if (day->twins > 0 && rank_of_id(which, i, event->id) >= 0)
			broken("two events with one event_id never share a request");
		if (event->first_sent == 0)
			event->first_sent = now;
		event->taken = true;
	}
	if (n > day->settings.batch_max_events ||
		(n > 1 && bytes >= day->settings.batch_max_bytes))
		broken("no request is out of the batch's bounds");
	if (now < asked_until)
		broken("nobody sends while the API asks to wait");

	while (flight->request != 0)
		flight++;
	flight->request = onside_sender_sent(sender, order, items, n, bytes, now);
	flight->n = n;
	flight->events = palloc(n * sizeof(int));
	memcpy(flight->events, which, n * sizeof(int));
	flight->connection = find_connection(order->fresh_connection,
										 order->renew);

	kind = outage_now(judge(which, n, bytes, &takes, &retry_after),
					  &retry_after);
	if (connections[flight->connection].sick >= 0)
		kind = (Kind) connections[flight->connection].sick;
	flight->ends = now + day->rtt + (int64) (fraction() * day->jitter) +
		takes + n * day->per_event;
	make_answer(flight, kind, retry_after, order->timeout);
	for (int i = 0; flight->accepts && i < n; i++)
		if (events[which[i]].accepted == 0)
			events[which[i]].accepted = flight->ends;
	result->requests++;
	result->failed += kind != OK_204;
	if (tracing)
		tell("request " INT64_FORMAT " %s%s%s: %d events, %d.. , %d bytes%s, will be %s",
			 flight->request,
			 order->kind == ONSIDE_SEND_OLDEST ? "oldest" :
			 order->kind == ONSIDE_SEND_NEWEST ? "newest" :
			 order->kind == ONSIDE_SEND_AGAIN ? "again" : "chance",
			 order->probe ? " probe" : "",
			 order->fresh_connection ? " fresh" : "", n, which[0], bytes,
			 connections[flight->connection].sick >= 0 ? " sick" : "",
			 flight->answer.kind == ONSIDE_ANSWER_TIMEOUT ? "timeout" :
			 kind_names[kind]);
	pfree(items);
}

/* Marks what was deleted of an ordered piece. */
static bool
send_again(OnsideOrder *order)
{
	OnsidePiece *piece = order->piece;
	bool	   *gone = palloc(piece->nitems * sizeof(bool));
	int		   *which = palloc(piece->nitems * sizeof(int));
	bool		any = false;
	int			n = 0;

	for (int i = 0; i < piece->nitems; i++)
	{
		int			event = (int) piece->items[i].key[0];

		gone[i] = events[event].deleted;
		any |= gone[i];
		if (gone[i])
			events[event].settled = true;
		else
			which[n++] = event;
	}
	if (!any || onside_sender_gone(sender, order, gone))
		send(order, which, n);
	pfree(gone);
	pfree(which);
	return n > 0;
}

/* ----------
 * The worker: second chances
 * ----------
 */

static bool
is_due(const Event *event)
{
	return event->place == IN_DEAD && !event->deleted && !event->tried_now &&
		event->retry_at <= now;
}

/* Groups in their order; false for one that is not a dead letter with a chance. */
static bool
group_of(const Event *event, OnsideChanceGroup *group)
{
	group->has_status = event->status != 0;
	group->http_status = event->status;
	snprintf(group->event_name, sizeof(group->event_name), "%d", event->name);
	group->due = event->retry_at;
	return event->place == IN_DEAD && !event->deleted &&
		event->retry_at != NEVER;
}

static int
compare_groups(const OnsideChanceGroup *a, const OnsideChanceGroup *b)
{
	int			names = atoi(a->event_name) - atoi(b->event_name);

	return a->http_status != b->http_status ?
		a->http_status - b->http_status : names;
}

static bool
next_group(const OnsideChanceGroup *after, OnsideChanceGroup *group)
{
	bool		found = false;
	OnsideChanceGroup other;

	for (int i = 0; i < arrived; i++)
	{
		int			order;

		if (events[i].place != IN_DEAD || !group_of(&events[i], &other) ||
			(after != NULL && compare_groups(&other, after) <= 0))
			continue;
		order = found ? compare_groups(&other, group) : -1;
		if (order < 0 || (order == 0 && other.due < group->due))
			*group = other;
		found = true;
	}
	return found;
}

static TimestampTz
next_due(const OnsideChanceGroup *group, TimestampTz later_than)
{
	TimestampTz due = 0;
	OnsideChanceGroup other;

	for (int i = 0; i < arrived; i++)
		if (events[i].place == IN_DEAD && group_of(&events[i], &other) &&
			other.due > later_than && (due == 0 || other.due < due) &&
			compare_groups(&other, group) == 0)
			due = other.due;
	return due;
}

/* An event's id is its number. */
static int
failed_since(TimestampTz since, pg_uuid_t *ids, int max)
{
	int			n = 0;
	OnsideChanceGroup group;

	for (int i = 0; i < arrived && n < max; i++)
		if (events[i].place == IN_DEAD && group_of(&events[i], &group) &&
			events[i].failed_at >= since)
			memcpy(&ids[n++], &i, sizeof(i));
	if (n > 0)
		tell("a chance for %d that failed in the outage", n);
	return n;
}

static const OnsideChanceStorage storage = {
	next_group, next_due, failed_since
};

static void
look_for_chances(void)
{
	if (sender->recovered && sender->nfates == 0)
	{
		onside_chances_recovered(&chances, sender->recovered_us, &storage);
		sender->recovered = false;
	}
	while (sender->chance_tries == 0 && sender->chances_in_flight == 0 &&
		   onside_chances_look_at(&chances) <= now)
	{
		if (!onside_chances_look(&chances, now, &storage))
			continue;
		onside_sender_begin_chance(sender);
		if (chances.present.event_name[0] != '\0')
			tell("a chance for those of status %d, name %s",
				 chances.present.http_status, chances.present.event_name);
	}
}

static int
pick_chance(void)
{
	int			best = -1;
	int			seen = 0;

	while (chances.present.event_name[0] == '\0' && chances.at_once > 0)
	{
		int			i;

		memcpy(&i, &chances.ids[--chances.at_once], sizeof(i));
		if (events[i].place == IN_DEAD && !events[i].deleted &&
			!events[i].tried_now)
			return i;
	}
	if (chances.present.event_name[0] == '\0')
		return -1;
	for (int i = 0; i < arrived; i++)
	{
		if (!is_due(&events[i]) || events[i].status != chances.present.http_status ||
			events[i].name != atoi(chances.present.event_name))
			continue;
		seen++;
		if (best < 0 ||
			(npicks % 3 == 0 && events[i].retry_at < events[best].retry_at) ||
			(npicks % 3 == 1 && events[i].retry_at >= events[best].retry_at) ||
			(npicks % 3 == 2 && fraction() * seen < 1))
			best = i;
	}
	npicks++;
	return best;
}

/* ----------
 * The worker: writing
 * ----------
 */

static void
carry_out(const OnsideFate *fate)
{
	int			i = (int) fate->item.key[0];
	Event	   *event = &events[i];

	event->tried_now = false;
	if (event->deleted)
		return;
	if (fate->kind == ONSIDE_FATE_ACCEPTED)
	{
		event->place = GONE;
		return;
	}
	if (fate->kind == ONSIDE_FATE_PUT_OFF)
	{
		event->retry_at = onside_chances_retry_at(now, event->chances);
		onside_chances_expect(&chances, event->retry_at);
		return;
	}
	event->status = fate->words->status;
	if (fate->kind == ONSIDE_FATE_REFUSED)
	{
		if (event->place == IN_DEAD)
			broken("an event is a dead letter once");
		if (!event->failed_otherwise &&
			event->last_refused - event->first_refused < 2 * SECOND)
			broken("an event is refused twice, 2 s apart");
		if (event->died_in_outage && event->first_sent > last_acceptance &&
			++outage_dead > 10)
			broken("in an outage nothing is dead-lettered but ten refused ones");
		event->place = IN_DEAD;
		event->chances = 0;
		tell("event %d is a dead letter after %d tries: %s", i, fate->tries,
			 fate->words->text);
	}
	else
		event->chances = onside_chances_count(event->chances,
											  event->retry_at <= now,
											  event->failed_at < last_acceptance);
	event->failed_at = now;
	event->retry_at = onside_chances_retry_at(now, event->chances);
	if (event->retry_at == 0)
		event->retry_at = NEVER;
	onside_chances_expect(&chances, event->retry_at);
}

/* The cursor may move over all that is settled or aside. */
static void
move_cursor(void)
{
	int64		settled = onside_sender_settled(sender);
	int			n = 0;

	while (n < nboundaries && boundaries[n].seq <= settled)
		next_cursor = boundaries[n++].head;
	nboundaries -= n;
	memmove(boundaries, boundaries + n, nboundaries * sizeof(Boundary));
	if (nboundaries == 0 && settled == sender->last_seq)
		next_cursor = head;
}

static void
persist(void)
{
	if (is_locked())
		return;
	for (int i = 0; i < sender->nfates; i++)
		carry_out(&sender->fates[i]);
	onside_sender_forget_fates(sender, sender->nfates);
	move_cursor();
	for (; cursor < next_cursor; cursor++)
		if (events[cursor].place == IN_LOG && !events[cursor].deleted &&
			!events[cursor].acknowledged)
			broken("the cursor moves over what is settled alone");
	saved_refused = sender->refused_in_row;
	saved_trouble = sender->trouble != 0 ? sender->trouble_us : NEVER;
	saved_not_before = sender->pace.asked ? sender->pace.not_before : 0;
	persist_at = 0;
}

static void
set_aside(void)
{
	OnsideLeaving items[1000];
	int			n = onside_review_pieces(sender, now, items, lengthof(items));

	if (is_locked())
	{
		if (n > 0)
			onside_review_at(sender, now + SECOND);
		return;
	}
	for (int i = 0; i < n; i++)
	{
		Event	   *event = &events[items[i].item->key[0]];

		items[i].item->home = ONSIDE_IN_ASIDE;
		if (!event->deleted)
			event->place = IN_ASIDE;
		tell("event " UINT64_FORMAT " is set aside", items[i].item->key[0]);
	}
	if (n > 0)
		onside_review_is_aside(sender);
	if (n > 0 || sender->nfates > 0)
		persist();
}

static void
note_known(OnsideItem *item, void *arg)
{
	((bool *) arg)[item->key[0]] = true;
}

/* Takes those of aside into memory that are not there. */
static void
load_aside(void)
{
	int			room = onside_review_aside_room(sender);
	bool	   *known;

	if (!more_aside || room == 0 || is_locked() || sender->nfates > 0)
		return;
	known = palloc0(nevents * sizeof(bool));
	onside_sender_visit(sender, note_known, known);
	more_aside = false;
	for (int i = 0; i < arrived; i++)
	{
		OnsideItem	item;

		if (events[i].place != IN_ASIDE || events[i].deleted || known[i])
			continue;
		if (room-- == 0)
		{
			more_aside = true;
			break;
		}
		item = item_of(i);
		onside_review_add_aside(sender, &item, now);
	}
	pfree(known);
}

/* ----------
 * The worker: answers
 * ----------
 */

static void
note_dead(void)
{
	static int	noted;

	if (noted > sender->nfates)
		noted = 0;
	for (; noted < sender->nfates; noted++)
	{
		const OnsideFate *fate = &sender->fates[noted];
		Event	   *event = &events[fate->item.key[0]];

		event->settled = true;
		if (fate->kind == ONSIDE_FATE_ACCEPTED)
			continue;
		event->was_dead = true;
		event->died_in_outage = fate->kind == ONSIDE_FATE_REFUSED &&
			event->first_sent > last_acceptance;
	}
	if (sender->nfates == 0)
		noted = 0;
}

static void
take_answer(Flight *flight)
{
	Connection *connection = &connections[flight->connection];
	bool		accepted = flight->answer.kind == ONSIDE_ANSWER_COMPLETE &&
		flight->answer.status == 204;
	int64		request = flight->request;

	connection->busy = false;
	if (!flight->keep)
		connection->born = 0;
	for (int i = 0; i < flight->n; i++)
	{
		Event	   *event = &events[flight->events[i]];

		event->in_flight--;
		if (flight->n == 1 && (flight->answer.status == 400 ||
							   flight->answer.status == 413))
		{
			event->last_refused = now;
			if (event->first_refused == 0)
				event->first_refused = now;
		}
		else if (!accepted)
			event->failed_otherwise = true;
		if (accepted)
			event->acknowledged = event->settled = true;
	}
	tell("request " INT64_FORMAT " ended: %s", request,
		 flight->answer.words);
	pfree(flight->events);
	flight->events = NULL;
	flight->request = 0;
	if (flight->answer.retry_after_ms > 0)
		asked_until = Max(asked_until,
						  now + flight->answer.retry_after_ms * MS);
	if (accepted)
	{
		last_acceptance = now;
		outage_dead = 0;
	}
	onside_sender_answer(sender, request, &flight->answer, now);
	note_dead();
}

static int
offers_now(void)
{
	int			offers = 0;

	if (skip_taken())
		offers |= ONSIDE_OFFER_OLDEST | ONSIDE_OFFER_NEWEST;
	if (sender->chance_tries > 0)
		offers |= ONSIDE_OFFER_CHANCE;
	return offers;
}

static void
check_counts(void)
{
	int64		count = sender->delivered + sender->withdrawn + sender->refused;

	if (count < last_count)
		broken("counters never run backwards");
	last_count = count;
	if (sender->held - sender->held_aside >
		ONSIDE_SENDER_MAX_HELD * 11 / 10 + 1000 * (day->settings.max_in_flight + 1))
		broken("memory is bounded");
}

/* One round of the worker's loop.  Returns until when it sleeps. */
static int64
work(void)
{
	static int	which[ONSIDE_SENDER_MAX_HELD];
	int			offers;
	int64		wake;
	OnsideOrder order;

	if (sender->nfates > 0 || (persist_at != 0 && persist_at <= now))
		persist();
	set_aside();
	note_dead();
	if (sender->dropped > 0)
	{
		sender->dropped = 0;
		more_aside = true;
	}
	load_aside();
	look_for_chances();

	offers = offers_now();
	while (sender->nfates < MAX_UNWRITTEN &&
		   onside_sender_next(sender, now, offers, &order))
	{
		int			n;
		int			new_head;
		bool		full;

		switch (order.kind)
		{
			case ONSIDE_SEND_OLDEST:
				n = read_oldest(&order, which, &new_head, &full);
				if (n == 0 || (order.full && !full))
				{
					onside_sender_nothing(sender, &order);
					offers &= ~ONSIDE_OFFER_OLDEST;
					break;
				}
				send(&order, which, n);
				head = new_head;
				boundaries[nboundaries].seq = sender->last_seq;
				boundaries[nboundaries++].head = head;
				break;
			case ONSIDE_SEND_NEWEST:
				n = read_newest(&order, which);
				if (n == 0)
				{
					onside_sender_nothing(sender, &order);
					offers &= ~ONSIDE_OFFER_NEWEST;
					break;
				}
				send(&order, which, n);
				break;
			case ONSIDE_SEND_AGAIN:
				(void) send_again(&order);
				break;
			case ONSIDE_SEND_CHANCE:
				which[0] = pick_chance();
				if (which[0] < 0)
				{
					onside_sender_nothing(sender, &order);
					offers &= ~ONSIDE_OFFER_CHANCE;
					break;
				}
				events[which[0]].tried_now = true;
				send(&order, which, 1);
				break;
		}
		if (result->requests > 3000000)
		{
			broken("it comes to an end");
			return NEVER;
		}
	}
	if (persist_at == 0)
		persist_at = now + 50 * MS;
	check_counts();
	if (sender->nfates >= MAX_UNWRITTEN)
		return now + SECOND;
	wake = onside_sender_wake_at(sender, now, offers_now());
	if (wake >= 0 && wake <= now)
		broken("no busy loop");
	if (sender->nfates > 0 || is_locked())
		wake = wake < 0 ? now + SECOND : Min(wake, now + SECOND);
	return wake < 0 ? NEVER : wake;
}

/* ----------
 * What happens to it
 * ----------
 */

static void
start_worker(void)
{
	sender = onside_sender_create(&day->settings, day->seed);
	onside_sender_restore(sender, now, saved_not_before > now ? saved_not_before : 0,
						  Min(saved_trouble, now), saved_refused);
	asked_until = Min(asked_until, saved_not_before);
	head = next_cursor = cursor;
	nboundaries = 0;
	memset(&chances, 0, sizeof(chances));
	more_aside = true;
	last_count = 0;
	for (int i = 0; i < nevents; i++)
	{
		events[i].taken = events[i].settled = events[i].tried_now = false;

		/* what is in aside or dead_letter is not read from the log */
		if (events[i].place != IN_LOG)
			events[i].taken = true;
		if (i >= cursor && events[i].place == IN_LOG)
			events[i].acknowledged = false;
		if (events[i].place == GONE || events[i].place == IN_DEAD)
			events[i].settled = true;
	}
}

static void
stop_worker(void)
{
	for (int i = 0; i < ONSIDE_SENDER_MAX_REQUESTS; i++)
	{
		Flight	   *flight = &flights[i];

		if (flight->request == 0)
			continue;
		for (int e = 0; e < flight->n; e++)
			events[flight->events[e]].in_flight--;
		pfree(flight->events);
		flight->events = NULL;
		flight->request = 0;
	}
	nconnections = 0;
	onside_sender_free(sender);
}

static bool
is_there(const OnsideItem *item, void *arg)
{
	Event	   *event = &events[item->key[0]];

	if (event->deleted)
		event->settled = true;
	return !event->deleted;
}

static void
count_gone(OnsideItem *item, void *arg)
{
	*(int *) arg += events[item->key[0]].deleted && item->home != ONSIDE_IN_DEAD_LETTER;
}

/* The sender knows nothing any more of what is deleted and not in flight. */
static void
check_deleted(void)
{
	int			gone = 0;

	onside_sender_check(sender, is_there, NULL);
	onside_sender_visit(sender, count_gone, &gone);
	for (int i = 0; i < ONSIDE_SENDER_MAX_REQUESTS; i++)
		for (int k = 0; sender->requests[i].id != 0 &&
			 k < sender->requests[i].piece->nitems; k++)
		{
			int			in_flight = 0;

			count_gone(&sender->requests[i].piece->items[k], &in_flight);
			gone -= in_flight;
		}
	if (gone > 0)
		broken("what is deleted does not wait any more");
}

static void
happen(What what)
{
	static Day	changed;
	bool		all = what == TRUNCATE;

	tell("%s", what_names[what]);
	switch (what)
	{
		case RESTART_WORKER:
			onside_review_end(sender, now);
			set_aside();
			persist();
			/* FALLTHROUGH */
		case CRASH_WORKER:
		case CRASH_SERVER:
			stop_worker();
			start_worker();
			break;
		case DELETE_SOME:
		case TRUNCATE:
			for (int i = 0; i < arrived; i++)
				if (!events[i].deleted &&
					(events[i].place == IN_LOG || events[i].place == IN_ASIDE) &&
					(all || i % 10 == 0))
					events[i].deleted = true;
			check_deleted();
			break;
		case RESUME:
			saved_not_before = asked_until = 0;
			onside_sender_resume(sender, now);
			break;
		case ELSEWHERE:
			saved_not_before = asked_until = 0;
			onside_sender_elsewhere(sender, now);
			break;
		case CHANGE_SETTINGS:
			changed = *day;
			changed.settings.max_in_flight =
				day->settings.max_in_flight == 1 ? 4 : 1;
			changed.settings.batch_max_events =
				Max(day->settings.batch_max_events / 2, 1);
			day = &changed;
			saved_not_before = asked_until = 0;
			onside_sender_configure(sender, &day->settings);
			onside_sender_resume(sender, now);
			break;
		case WHATS:
			break;
	}
}

/* ----------
 * The day
 * ----------
 */

static int
compare_events(const void *a, const void *b)
{
	int64		x = ((const Event *) a)->at;
	int64		y = ((const Event *) b)->at;

	return (x > y) - (x < y);
}

/* Everything that will be recorded. */
static void
record(void)
{
	int64		end = day_end(day);
	int			n = day->dead_letters + day->backlog + AFTERMATH;
	int			first = day->dead_letters;

	for (int i = 0; i < day->nloads; i++)
		n += (int) (day->load[i].rate *
					(day->load[i].to - day->load[i].from) / SECOND) + 1;
	events = palloc0(n * sizeof(Event));
	nevents = day->dead_letters + day->backlog;
	for (int i = 0; i < day->nloads; i++)
	{
		const Load *load = &day->load[i];
		double		gap = SECOND / load->rate;
		double		at = load->from + gap * fraction();

		for (; at < load->to && nevents < n - AFTERMATH; at += gap)
			events[nevents++].at = (int64) at;
	}
	qsort(events + first, nevents - first, sizeof(Event), compare_events);
	for (int i = 0; i < AFTERMATH; i++)
	{
		events[nevents].aftermath = true;
		events[nevents++].at = end + (i < 60 ? (i + 1) * 5 * SECOND :
									  i < 180 ? (i - 54) * MINUTE :
									  2 * HOUR + (i - 180) * 15 * MINUTE);
	}
	for (int i = 0; i < nevents; i++)
	{
		Event	   *event = &events[i];

		event->id = day->twins > 0 && i > 0 && fraction() < day->twins ?
			(int) (fraction() * i) : i;
		event->bytes = day->event_bytes / 2 +
			(int) (fraction() * day->event_bytes);
		event->name = (int) (fraction() * day->names);
		if (i < first)
		{
			event->place = IN_DEAD;
			event->status = 400;
			event->retry_at = MINUTE;
			event->bad = fraction() < day->dead_bad;
			continue;
		}
		for (int p = 0; p < day->npoison && !event->aftermath; p++)
		{
			const Poison *poison = &day->poison[p];
			int			rank = i - first;

			if (poison->last < 0 ? fraction() < poison->share :
				(rank >= poison->first && rank <= poison->last &&
				 (rank - poison->first) % poison->every == 0))
				event->poison |= 1u << p;
		}
	}
	cursor = first;
}

/* Will no request with it ever be accepted? */
static bool
is_poison(const Event *event)
{
	if (event->bad)
		return true;
	for (int p = 0; p < day->npoison; p++)
		if ((event->poison & (1u << p)) && day->poison[p].to == NEVER &&
			day->poison[p].kind != OK_204 && day->poison[p].kind != LOST)
			return true;
	return false;
}

/* Is there poison that has everybody wait? */
static bool
all_wait(void)
{
	for (int p = 0; p < day->npoison; p++)
		if ((day->poison[p].kind == WAIT_429 || day->poison[p].kind == WAIT_503 ||
			 day->poison[p].kind == SLOW_DOWN_429))
			return true;
	return false;
}

/* Is all of the day where it belongs? */
static const char *
unfinished(int *who)
{
	for (int i = 0; i < nevents; i++)
	{
		const Event *event = &events[i];

		*who = i;
		if (event->deleted || event->aftermath)
			continue;
		if (i >= arrived)
			return "all is recorded";
		if (!is_poison(event))
		{
			if (!event->acknowledged && event->place != GONE)
				return "every healthy event is delivered";
			if (event->place == IN_DEAD)
				return "what was refused by mistake heals by itself";
		}
		else if (event->place != IN_DEAD && event->place != GONE &&
				 !event->acknowledged && !all_wait())
			return "a poison event ends in dead_letter";
	}
	return NULL;
}

static int
compare_times(const void *a, const void *b)
{
	int64		x = *(const int64 *) a;
	int64		y = *(const int64 *) b;

	return (x > y) - (x < y);
}

/* What the day came to, against what was expected of it. */
static void
sum_up(int64 last_outage)
{
	int64	   *latency = palloc(nevents * sizeof(int64));
	int			n = 0;

	result->events = nevents;
	result->recovered = NEVER;
	for (int i = 0; i < nevents; i++)
	{
		Event	   *event = &events[i];

		result->dead += event->place == IN_DEAD;
		if (event->accepted >= last_outage && event->accepted != 0)
			result->recovered = Min(result->recovered,
									event->accepted - last_outage);
		if (event->deleted || is_poison(event) || event->poison != 0 ||
			i < day->dead_letters)
			continue;
		result->healthy_dead += event->was_dead;
		if (event->aftermath || event->accepted == 0)
			continue;
		latency[n++] = event->accepted - event->at;
		result->last_accepted = Max(result->last_accepted, event->accepted);
	}
	qsort(latency, n, sizeof(int64), compare_times);
	if (n > 0)
	{
		result->p99 = latency[n - 1 - n / 100];
		result->slowest = latency[n - 1];
	}
	pfree(latency);
	if (day->p99 != 0 && result->p99 > day->p99)
		broken("99 % of the healthy are quick");
	if (day->slowest != 0 && result->slowest > day->slowest)
		broken("the slowest of the healthy is quick");
	if (day->all_by != 0 && result->last_accepted > day->all_by)
		broken("all healthy ones are delivered by then");
	if (day->max_requests != 0 && result->requests > day->max_requests)
		broken("requests are few");
	if (day->no_dead && result->healthy_dead > 0)
		broken("no healthy event is a dead letter");
	if (day->recovers != 0 && result->recovered > day->recovers)
		broken("an outage's end is noticed");
}

static int64
next_flight(void)
{
	int64		at = NEVER;

	for (int i = 0; i < ONSIDE_SENDER_MAX_REQUESTS; i++)
		if (flights[i].request != 0)
			at = Min(at, flights[i].ends);
	return at;
}

void
world_run(const Day *the_day, bool trace, Outcome *outcome)
{
	int64		wake = 0;
	int64		end;
	int64		last_outage = 0;
	bool		happened[MAX_OF_EACH] = {0};
	bool		over = false;
	int			who;

	day = the_day;
	tracing = trace;
	result = outcome;
	memset(result, 0, sizeof(*result));
	pg_prng_seed(&dice, day->seed ^ UINT64CONST(0x9e3779b97f4a7c15));
	now = 1;					/* 0 is never */
	arrived = 0;
	saved_not_before = asked_until = 0;
	saved_refused = 0;
	saved_trouble = NEVER;
	persist_at = 0;
	last_acceptance = 0;
	outage_dead = 0;
	npicks = 0;
	nconnections = 0;
	memset(connections, 0, sizeof(connections));
	end = day_over = day_end(day);
	for (int i = 0; i < day->noutages; i++)
		last_outage = Max(last_outage, day->outage[i].to);
	record();
	boundaries = palloc((nevents + 1) * sizeof(Boundary));
	arrived = day->dead_letters;
	start_worker();

	while (result->broken == NULL)
	{
		int64		next = Min(wake, next_flight());

		if (arrived < nevents)
			next = Min(next, events[arrived].at);
		if (sender->chance_tries == 0 && sender->chances_in_flight == 0)
			next = Min(next, Max(onside_chances_look_at(&chances), now));
		for (int i = 0; i < day->nhappenings; i++)
			if (!happened[i])
				next = Min(next, day->happening[i].at);
		if (next == NEVER)
			break;
		now = Max(now, next);

		while (arrived < nevents && events[arrived].at <= now)
			arrived++;
		for (int i = 0; i < ONSIDE_SENDER_MAX_REQUESTS; i++)
			if (flights[i].request != 0 && flights[i].ends <= now)
				take_answer(&flights[i]);
		for (int i = 0; i < day->nhappenings; i++)
			if (!happened[i] && day->happening[i].at <= now)
			{
				happened[i] = true;
				happen(day->happening[i].what);
			}
		wake = work();
		if (now > end && !over && unfinished(&who) == NULL)
			over = true;
		if (over || (arrived == nevents && now > events[nevents - 1].at + HOUR))
			break;
	}
	if (result->broken == NULL && !over && unfinished(&who) != NULL)
	{
		tell("event %d", who);
		broken(unfinished(&who));
	}
	sum_up(last_outage);

	stop_worker();
	pfree(events);
	pfree(boundaries);
}
