/*-------------------------------------------------------------------------
 *
 * sending.c
 *		What the sender orders, carried out.
 *
 * The sender decides and knows nothing else; here its orders meet the log, the
 * network and the clock, and answers are told to it and counted.  The bodies of
 * what is in flight are kept here until they are answered, and no longer.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "log/batch.h"
#include "log/crash_guard.h"
#include "send/choice.h"
#include "send/http.h"
#include "settings.h"
#include "worker/chance.h"
#include "worker/counting.h"
#include "worker/item.h"
#include "worker/reader.h"
#include "worker/sending.h"
#include "worker/trouble.h"
#include "worker/txn.h"

/*
 * With so many fates that cannot be written no more is sent: memory is bounded.
 */
#define MAX_UNWRITTEN	4000

/* And with so many, no more dead letters. */
#define MAX_UNWRITTEN_CHANCES	ONSIDE_HTTP_MAX_REQUESTS

/* ----------
 * Set-up
 * ----------
 */

/* onside_sending_configure() compares all bytes, those of padding included. */
static OnsideSendSettings
current_settings(void)
{
	OnsideSendSettings settings;

	memset(&settings, 0, sizeof(settings));
	settings.max_in_flight = onside_max_in_flight;
	settings.batch_max_events = onside_batch_max_events;
	settings.batch_max_bytes = onside_batch_max_bytes;
	settings.request_timeout = onside_request_timeout;
	settings.retry_initial_delay = onside_retry_initial_delay;
	settings.retry_max_delay = onside_retry_max_delay;
	return settings;
}

/*
 * Moments are stored as times of the wall's clock, and turned into this process's.
 */
void
onside_sending_init(OnsideWorker *worker, const OnsideDelivery *delivery)
{
	OnsideSender *sender;
	OnsideSendSettings settings = current_settings();
	int64		now = onside_clock();
	int64		not_before = 0;
	int64		trouble = now;

	onside_brake_init(&worker->sending.checking,
					  "look for events that were deleted",
					  ONSIDE_STEP_LOOKING);
	worker->sending.status.state = ONSIDE_IDLE;
	sender = onside_sender_create(&settings,
								  pg_prng_uint64(&pg_global_prng_state));
	worker->sender = sender;
	if (delivery->not_before != 0)
		not_before = now + (delivery->not_before - GetCurrentTimestamp());
	if (delivery->trouble_since != 0)
		trouble = now + (delivery->trouble_since - GetCurrentTimestamp());
	onside_sender_restore(sender, now, not_before > now ? not_before : 0,
						  Min(trouble, now), delivery->refused_in_row);
}

void
onside_sending_configure(OnsideWorker *worker, bool resume, bool elsewhere)
{
	OnsideSender *sender = worker->sender;
	OnsideSendSettings settings = current_settings();

	resume |= memcmp(&settings, &sender->pace.settings, sizeof(settings)) != 0;
	onside_sender_configure(sender, &settings);
	if (elsewhere)
		onside_sender_elsewhere(sender, onside_clock());
	else if (resume)
		onside_sender_resume(sender, onside_clock());
}

/* ----------
 * Answers
 * ----------
 */

static OnsideBatch *
take_batch(OnsideWorker *worker, int64 request)
{
	OnsideSending *sending = &worker->sending;

	for (int i = 0; i < ONSIDE_HTTP_MAX_REQUESTS; i++)
	{
		if (sending->in_flight[i].request != request)
			continue;
		sending->in_flight[i].request = 0;
		sending->suspect_ended |= sending->in_flight[i].suspect;
		return sending->in_flight[i].batch;
	}
	elog(ERROR, "an answer to no request");
}

/*
 * For the views "stats" and "status".  libcurl may have sent a request more than once.
 */
static void
count_answer(OnsideWorker *worker, const OnsideAnswer *answer)
{
	onside_count(worker, ONSIDE_COUNT_CONNECTIONS, answer->connections);
	onside_count(worker, ONSIDE_COUNT_REQUESTS, answer->repeats);
	worker->sending.status.requests += answer->repeats;
	switch (answer->kind)
	{
		case ONSIDE_ANSWER_COMPLETE:
		case ONSIDE_ANSWER_PROXY_REFUSED:
			if (answer->status != 0)
			{
				onside_count(worker,
							 onside_counting_of_status(answer->status), 1);
				onside_histogram_add(&worker->counted.request,
									 answer->duration);
				break;
			}
			/* FALLTHROUGH */
		case ONSIDE_ANSWER_NO_CONNECTION:
		case ONSIDE_ANSWER_NOT_TRUSTED:
			onside_count(worker, ONSIDE_COUNT_CONNECTION_FAILURES, 1);
			break;
		case ONSIDE_ANSWER_TIMEOUT:
			onside_count(worker, ONSIDE_COUNT_TIMEOUTS, 1);
			break;
		case ONSIDE_ANSWER_MALFORMED:
			onside_count(worker, ONSIDE_COUNT_MALFORMED, 1);
			break;
	}
}

/*
 * The moment of the commit is known to nobody, unless the server keeps commit
 * timestamps: recorded_at is before it by what the transaction did afterwards.
 */
static void
count_latency(OnsideWorker *worker, const OnsideBatch *batch,
			  TimestampTz acknowledged_at)
{
	for (int i = 0; i < batch->nitems; i++)
		if (batch->items[i].home != ONSIDE_IN_DEAD_LETTER)
			onside_histogram_add(&worker->counted.delivery,
								 acknowledged_at - batch->items[i].recorded_at);
}

static void
note_error(OnsideWorker *worker, const OnsideAnswer *answer, TimestampTz ended)
{
	OnsideSendingStatus *status = &worker->sending.status;
	char		error[ONSIDE_ANSWER_WORDS_MAX + 32];

	status->last_error_at = ended;
	if (answer->kind != ONSIDE_ANSWER_COMPLETE)
		strlcpy(error, answer->words, sizeof(error));
	else if (answer->words[0] != '\0')
		snprintf(error, sizeof(error), "HTTP %d: %s", answer->status,
				 answer->words);
	else
		snprintf(error, sizeof(error), "HTTP %d", answer->status);
	onside_copy_text(status->last_error, error, sizeof(status->last_error));
}

/* Counts it, tells the sender, and frees the body. */
static void
take_answer(OnsideWorker *worker, int64 request, const OnsideAnswer *answer,
			TimestampTz ended)
{
	OnsideBatch *batch = take_batch(worker, request);
	OnsideResponseClass class = onside_response_classify(answer);

	count_answer(worker, answer);
	if (class == ONSIDE_RESPONSE_DELIVERED)
	{
		worker->sending.status.last_success_at = ended;
		onside_count(worker, ONSIDE_COUNT_DELIVERED, batch->nitems);
		count_latency(worker, batch, ended);
	}
	else
		note_error(worker, answer, ended);
	if (class == ONSIDE_RESPONSE_UNAUTHORIZED)
		worker->sending.unauthorized = true;
	onside_batch_free(batch);
	onside_sender_answer(worker->sender, request, answer, onside_clock());
	if (class != ONSIDE_RESPONSE_DELIVERED &&
		class != ONSIDE_RESPONSE_REFUSED &&
		class != ONSIDE_RESPONSE_TOO_LARGE)
		onside_count(worker, ONSIDE_COUNT_BACK_OFFS, 1);
}

void
onside_sending_collect(OnsideWorker *worker)
{
	int64		request;
	OnsideAnswer answer;
	TimestampTz ended;

	while (onside_http_next_answer(worker->http, &request, &answer, &ended))
		take_answer(worker, request, &answer, ended);
}

bool
onside_sending_take_unauthorized(OnsideWorker *worker)
{
	bool		result = worker->sending.unauthorized;

	worker->sending.unauthorized = false;
	return result;
}

/* ----------
 * Orders
 * ----------
 */

/* Sends a batch, which from now on belongs to the request. */
static void
send(OnsideWorker *worker, const OnsideOrder *order, OnsideBatch *batch)
{
	OnsideSendingStatus *status = &worker->sending.status;
	OnsideRequestBody *body = worker->sending.in_flight;
	OnsidePosition pos;

	while (body->request != 0)
		body++;
	if (batch->items[0].home == ONSIDE_IN_LOG)
		pos = onside_item_position(&batch->items[0]);
	onside_crash_guard_step(ONSIDE_STEP_SENDING,
							batch->items[0].home == ONSIDE_IN_LOG ?
							&pos : NULL);

	if (order->renew)
		onside_http_renew(worker->http);
	body->batch = batch;
	body->suspect = false;
	body->request = onside_sender_sent(worker->sender, order, batch->items,
									   batch->nitems, batch->body.len,
									   onside_clock());
	onside_http_start(worker->http, body->request, batch->body.data,
					  batch->body.len,
					  order->fresh_connection, order->timeout);

	status->requests++;
	onside_count(worker, ONSIDE_COUNT_REQUESTS, 1);
	onside_count(worker, ONSIDE_COUNT_EVENTS_SENT, batch->nitems);
	onside_count(worker, ONSIDE_COUNT_BYTES_SENT, batch->body.len);
	if (order->kind == ONSIDE_SEND_AGAIN || order->kind == ONSIDE_SEND_CHANCE)
	{
		status->retries++;
		onside_count(worker, ONSIDE_COUNT_RETRIES, 1);
	}
}

/* Sends a piece again.  False if its events cannot be read now. */
static bool
send_again(OnsideWorker *worker, OnsideOrder *order)
{
	const OnsidePiece *piece = order->piece;
	int			n = piece->nitems;
	bool	   *gone = palloc0(n * sizeof(bool));
	bool		any_gone = false;
	bool		failed;
	OnsideBatch *batch = onside_reader_again(worker, piece->items, n, gone,
											 &failed);

	if (!failed)
	{
		for (int i = 0; i < n; i++)
			any_gone |= gone[i];
		if (!any_gone || onside_sender_gone(worker->sender, order, gone))
			send(worker, order, batch);
	}
	pfree(gone);
	return !failed;
}

static int
offers(OnsideWorker *worker)
{
	OnsideSender *sender = worker->sender;
	int			result = 0;

	if (onside_reader_has_some(worker))
		result |= ONSIDE_OFFER_OLDEST | ONSIDE_OFFER_NEWEST;

	/* What is not written yet might be picked again. */
	if (sender->chance_tries > 0 && sender->nfates < MAX_UNWRITTEN_CHANCES)
		result |= ONSIDE_OFFER_CHANCE;
	return result;
}

/*
 * Asks the sender for orders until it has none, and carries each out.  What there is
 * nothing of is not offered again in this turn.
 */
void
onside_sending_pump(OnsideWorker *worker)
{
	OnsideSender *sender = worker->sender;
	int			offered = offers(worker);
	OnsideOrder order;

	while (!onside_reader_rests(worker) && sender->nfates < MAX_UNWRITTEN &&
		   onside_sender_next(sender, onside_clock(), offered, &order))
	{
		OnsideBatch *batch = NULL;

		switch (order.kind)
		{
			case ONSIDE_SEND_OLDEST:
				batch = onside_reader_oldest(worker, order.max_events,
											 order.max_bytes,
											 order.full);
				break;
			case ONSIDE_SEND_NEWEST:
				batch = onside_reader_newest(worker, order.max_events,
											 order.max_bytes);
				break;
			case ONSIDE_SEND_AGAIN:
				if (!send_again(worker, &order))
					return;
				continue;
			case ONSIDE_SEND_CHANCE:
				batch = onside_chance_pick(worker);
				break;
		}
		if (batch != NULL)
			send(worker, &order, batch);
		else
		{
			onside_sender_nothing(sender, &order);
			offered &= ~(order.kind == ONSIDE_SEND_OLDEST ? ONSIDE_OFFER_OLDEST :
						 order.kind == ONSIDE_SEND_NEWEST ? ONSIDE_OFFER_NEWEST :
						 ONSIDE_OFFER_CHANCE);
		}
		if (order.kind == ONSIDE_SEND_OLDEST)
			onside_reader_passed(worker, sender->last_seq);
	}
	onside_reader_passed(worker, sender->last_seq);
}

/* ----------
 * What was deleted
 * ----------
 */

/* Places of all that waits, and which of them are still there. */
typedef struct Check
{
	int			n;
	int			capacity;
	OnsideItem *items;
	bool	   *gone;
} Check;

static void
note_item(OnsideItem *item, void *arg)
{
	Check	   *check = arg;

	if (check->n == check->capacity)
		check->items = onside_array_enlarge(CurrentMemoryContext,
											check->items, &check->capacity,
											sizeof(OnsideItem));
	check->items[check->n++] = *item;
}

/* For qsort and bsearch: by place.  What was read from aside has no seq. */
static int
compare_places(const void *a, const void *b)
{
	const OnsideItem *x = a;
	const OnsideItem *y = b;

	if (x->home != y->home)
		return x->home < y->home ? -1 : 1;
	return memcmp(x->key, y->key, sizeof(x->key));
}

/* Body of a transaction. */
static void
check_all(OnsideWorker *worker, void *arg)
{
	Check	   *check = arg;

	onside_reader_find(check->items, check->n, check->gone);
}

static bool
is_there(const OnsideItem *item, void *arg)
{
	Check	   *check = arg;
	OnsideItem *found = bsearch(item, check->items, check->n,
								sizeof(OnsideItem), compare_places);

	return found == NULL || !check->gone[found - check->items];
}

/* Looks up all places that the sender knows, in order, in one transaction. */
bool
onside_sending_check(OnsideWorker *worker)
{
	Check		check = {0};
	bool		done;

	onside_sender_visit(worker->sender, note_item, &check);
	if (check.n == 0)
		return true;
	qsort(check.items, check.n, sizeof(OnsideItem), compare_places);
	check.gone = palloc0(check.n * sizeof(bool));
	done = onside_txn_run(worker, &worker->sending.checking, ONSIDE_USES_LOG |
						  ONSIDE_READS_ASIDE, check_all, &check);
	if (done)
		onside_sender_check(worker->sender, is_there, &check);
	pfree(check.items);
	pfree(check.gone);
	return done;
}

void
onside_sending_suspect(OnsideWorker *worker)
{
	for (int i = 0; i < ONSIDE_HTTP_MAX_REQUESTS; i++)
		worker->sending.in_flight[i].suspect = true;
}

bool
onside_sending_take_suspect(OnsideWorker *worker)
{
	bool		result = worker->sending.suspect_ended;

	worker->sending.suspect_ended = false;
	return result;
}

/* ----------
 * How things stand
 * ----------
 */

bool
onside_sending_drained(OnsideWorker *worker)
{
	return !onside_reader_has_some(worker) && worker->sender->in_flight == 0 &&
		worker->sender->held == 0;
}

uint64
onside_sending_wants(OnsideWorker *worker)
{
	bool		full;
	int			events = onside_sender_would_take(worker->sender,
												  onside_clock(), &full);

	if (events == 0)
		return 0;
	return full ? onside_reader_missing(worker, events,
										onside_batch_max_bytes) : 1;
}

static void
note_oldest(OnsideItem *item, void *arg)
{
	TimestampTz *oldest = arg;

	if (item->home != ONSIDE_IN_DEAD_LETTER &&
		(*oldest == 0 || item->recorded_at < *oldest))
		*oldest = item->recorded_at;
}

TimestampTz
onside_sending_oldest(OnsideWorker *worker)
{
	TimestampTz oldest = 0;

	onside_sender_visit(worker->sender, note_oldest, &oldest);
	return oldest;
}

/*
 * The sender's moment, or the reader's.  While too much is unwritten nothing is sent,
 * and progress.c has the time of the next try.
 */
long
onside_sending_timeout(OnsideWorker *worker)
{
	OnsideSender *sender = worker->sender;
	int64		now = onside_clock();
	int64		at = onside_sender_wake_at(sender, now,
										   offers(worker) | ONSIDE_OFFER_OLDEST);
	long		timeout = -1;

	if (onside_reader_rests(worker))
		return onside_reader_timeout(worker);
	if (sender->nfates >= MAX_UNWRITTEN)
		return -1;

	/* A chance goes on when what came of it is written. */
	if (sender->in_flight == 0 && sender->nfates == 0 &&
		now >= sender->pace.not_before &&
		onside_choice_may_take_chance(sender, offers(worker)))
		return 0;
	if (at >= 0)
		timeout = (long) Min(Max((at - now + 999) / 1000, 0), INT_MAX);
	return onside_sooner(timeout, onside_reader_timeout(worker));
}

TimestampTz
onside_sending_not_before(OnsideWorker *worker)
{
	OnsideSender *sender = worker->sender;

	return sender->pace.asked && sender->pace.not_before > onside_clock() ?
		onside_clock_timestamp(sender->pace.not_before) : 0;
}

/*
 * Does nothing fail but what has failed before, while others were accepted?  That
 * says nothing of the endpoint, however long nothing else is sent.
 */
static bool
only_aside_fails(OnsideWorker *worker)
{
	OnsideSender *sender = worker->sender;

	return sender->held_aside > 0 && sender->held == sender->held_aside &&
		!onside_reader_has_some(worker);
}

/*
 * Asks the sender afresh: what is in trouble, in words, or that all is well.
 */
const OnsideSendingStatus *
onside_sending_status(OnsideWorker *worker)
{
	OnsideSender *sender = worker->sender;
	OnsideSendingStatus *status = &worker->sending.status;
	int64		now = onside_clock();
	OnsideTrouble trouble = onside_sender_trouble(sender, now);

	/* With nothing that could be tried, all is well but for a wait. */
	if (now >= sender->pace.not_before &&
		(onside_sending_drained(worker) || only_aside_fails(worker)))
		trouble = ONSIDE_TROUBLE_NONE;
	status->in_flight = sender->in_flight;
	status->next_attempt_at = 0;
	status->reason[0] = '\0';
	if (trouble != ONSIDE_TROUBLE_NONE)
		onside_trouble_explain(worker, trouble);
	else
	{
		status->state = onside_sending_drained(worker) ? ONSIDE_IDLE :
			ONSIDE_SENDING;
		if (sender->held_aside > 0)
			snprintf(status->reason, sizeof(status->reason),
					 "events aside: %s" INT64_FORMAT "; they have failed while others were accepted, so it looks like the events; each is tried again by itself; the column error of the table aside says why",
					 sender->held_aside >= ONSIDE_SENDER_MAX_ASIDE / 2 ?
					 "at least " : "",
					 sender->held_aside);
	}
	return status;
}
