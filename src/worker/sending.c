/*-------------------------------------------------------------------------
 *
 * sending.c
 *		Carries out what the sender orders.
 *
 * The sender (send/sender.h) decides what goes when, and knows neither log nor
 * network nor clock.  This file is between them: it asks the sender for orders,
 * has reader.c or chance.c read the events, hands the body to http.c, and tells
 * the sender how each request has ended.  It keeps the body of a request until
 * the request has ended, and counts for the views "status" and "stats".
 *
 * The worker's loop calls onside_sending_collect() for the answers that have
 * come, and onside_sending_pump() to send what may go.  Nothing here fails:
 * what the network does is an answer, and if events cannot be read, reading
 * rests for a while (see txn.c) and nothing is sent.
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
 * While so many fates wait to be written, nothing is sent: so memory is bounded
 * if the tables cannot be written.
 */
#define MAX_UNWRITTEN	4000

/* While so many fates wait to be written, no dead letter is sent. */
#define MAX_UNWRITTEN_CHANCES	ONSIDE_HTTP_MAX_REQUESTS

/* ----------
 * Set-up
 * ----------
 */

/*
 * The sender's settings as they are now.  onside_sending_configure() compares
 * all bytes, those of padding included.
 */
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
 * Makes the sender.  The row of delivery_cursor has times of day; the sender
 * has moments of this process's clock.
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

	/* A wait that the API has asked for, and a trouble, outlive a process. */
	if (delivery->not_before != 0)
		not_before = now + (delivery->not_before - GetCurrentTimestamp());
	if (delivery->trouble_since != 0)
		trouble = now + (delivery->trouble_since - GetCurrentTimestamp());
	onside_sender_restore(sender, now, not_before > now ? not_before : 0,
						  Min(trouble, now), delivery->refused_in_row);
}

/* Settings that have changed end a wait, as resume() does. */
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

/* The batch of a request that has ended; its place is free again. */
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
 * Counts a request that has ended, for the views "stats" and "status", by how
 * it has ended.  A request without a status has failed as a connection.
 */
static void
count_answer(OnsideWorker *worker, const OnsideAnswer *answer)
{
	onside_count(worker, ONSIDE_COUNT_CONNECTIONS, answer->connections);

	/* libcurl may have sent the request more than once. */
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
 * Counts how long the events took from recorded_at to the acknowledgement.  The
 * time of a commit is known only if the server keeps commit timestamps, so what
 * a transaction did after it had recorded the event is counted, too.
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

/* Notes for "status" what went wrong: the API's status and words, or ours. */
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

/* Counts an answer, tells the sender, and frees the body of the request. */
static void
take_answer(OnsideWorker *worker, int64 request, const OnsideAnswer *answer,
			TimestampTz ended)
{
	OnsideBatch *batch = take_batch(worker, request);
	OnsideResponseClass class = onside_response_classify(answer);

	/* Count it, and note it for "status". */
	count_answer(worker, answer);
	if (class == ONSIDE_RESPONSE_DELIVERED)
	{
		worker->sending.status.last_success_at = ended;
		onside_count(worker, ONSIDE_COUNT_DELIVERED, batch->nitems);
		count_latency(worker, batch, ended);
	}
	else
		note_error(worker, answer, ended);

	/* configuration.c reads the credentials again. */
	if (class == ONSIDE_RESPONSE_UNAUTHORIZED)
		worker->sending.unauthorized = true;

	/* The sender knows the events by their places. */
	onside_batch_free(batch);
	onside_sender_answer(worker->sender, request, answer, onside_clock());

	/* A failure that is no refusal may be about the endpoint. */
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

/*
 * Sends a batch, which from now on belongs to the request.  in_flight has a
 * free place, since the sender orders no more than max_in_flight requests and
 * one.
 */
static void
send_batch(OnsideWorker *worker, const OnsideOrder *order, OnsideBatch *batch)
{
	OnsideSendingStatus *status = &worker->sending.status;
	OnsideRequestBody *body = worker->sending.in_flight;
	OnsidePosition pos;

	while (body->request != 0)
		body++;

	/* After a crash, crash_guard.c knows the first event of the request. */
	if (batch->items[0].home == ONSIDE_IN_LOG)
		pos = onside_item_position(&batch->items[0]);
	onside_crash_guard_step(ONSIDE_STEP_SENDING,
							batch->items[0].home == ONSIDE_IN_LOG ?
							&pos : NULL);

	/* The sender gives the request its number, and http.c sends it. */
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

	/* For "status" and "stats". */
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

/*
 * Reads the events of a piece again and sends them.  Events that somebody has
 * deleted are never sent: the sender is told, and if none is left, nothing
 * goes.  Returns false if the events cannot be read now.
 */
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

	/* Without a batch nothing is left: onside_sender_gone() says so. */
	if (!failed)
	{
		for (int i = 0; i < n; i++)
			any_gone |= gone[i];
		if (!any_gone || onside_sender_gone(worker->sender, order, gone))
			send_batch(worker, order, batch);
	}
	pfree(gone);
	return !failed;
}

/* What there may be to send, for the sender to choose from. */
static int
list_offers(OnsideWorker *worker)
{
	OnsideSender *sender = worker->sender;
	int			result = 0;

	if (onside_reader_has_some(worker))
		result |= ONSIDE_OFFER_OLDEST | ONSIDE_OFFER_NEWEST;

	/* A dead letter whose fate is not written yet might be picked again. */
	if (sender->chance_tries > 0 && sender->nfates < MAX_UNWRITTEN_CHANCES)
		result |= ONSIDE_OFFER_CHANCE;
	return result;
}

/*
 * Asks the sender for orders until it has none, and carries out each.  If
 * there is nothing of a kind, that kind is not offered again in this turn of
 * the loop.
 */
void
onside_sending_pump(OnsideWorker *worker)
{
	OnsideSender *sender = worker->sender;
	int			offered = list_offers(worker);
	OnsideOrder order;

	while (!onside_reader_rests(worker) && sender->nfates < MAX_UNWRITTEN &&
		   onside_sender_next(sender, onside_clock(), offered, &order))
	{
		OnsideBatch *batch = NULL;

		/* Read the events that are ordered. */
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
					return;		/* reading rests now */
				continue;
			case ONSIDE_SEND_CHANCE:
				batch = onside_chance_pick(worker);
				break;
		}

		/* Send them, or say that there are none. */
		if (batch != NULL)
			send_batch(worker, &order, batch);
		else
		{
			onside_sender_nothing(sender, &order);
			offered &= ~(order.kind == ONSIDE_SEND_OLDEST ?
						 ONSIDE_OFFER_OLDEST :
						 order.kind == ONSIDE_SEND_NEWEST ?
						 ONSIDE_OFFER_NEWEST : ONSIDE_OFFER_CHANCE);
		}

		/* The reader notes how far the log has been handed to the sender. */
		if (order.kind == ONSIDE_SEND_OLDEST)
			onside_reader_passed(worker, sender->last_seq);
	}
	onside_reader_passed(worker, sender->last_seq);
}

/* ----------
 * Events that were deleted
 * ----------
 */

/* The events that the sender knows, and which of them are gone. */
typedef struct Check
{
	int			n;
	int			capacity;
	OnsideItem *items;
	bool	   *gone;
} Check;

/* Copies one of the events that the sender knows. */
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

/* For qsort and bsearch: by place, which each event has, unlike a seq. */
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

	onside_reader_find(worker, check->items, check->n, check->gone);
}

/* For the sender: is this event, which waits, still in its table? */
static bool
is_there(const OnsideItem *item, void *arg)
{
	Check	   *check = arg;
	OnsideItem *found = bsearch(item, check->items, check->n,
								sizeof(OnsideItem), compare_places);

	return found == NULL || !check->gone[found - check->items];
}

/*
 * Looks up all events that the sender knows, in the order of their places and
 * in one transaction; then has the sender forget those that are gone.
 */
bool
onside_sending_check(OnsideWorker *worker)
{
	Check		check = {0};
	bool		done;

	onside_sender_visit(worker->sender, note_item, &check);
	if (check.n == 0)
		return true;

	/* The order of places is the order in which the log is read. */
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

/* A place that is not in use is marked, too; send_batch() clears the mark. */
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

	/* A batch that need not be full goes with the next event. */
	return full ? onside_reader_missing(worker, events,
										onside_batch_max_bytes) : 1;
}

/* Keeps the least recorded_at; a dead letter is not pending. */
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
 * The time that the sender or the reader waits for, whichever comes first.
 * While too many fates are unwritten nothing is sent, and progress.c knows
 * when it tries to write them.
 */
long
onside_sending_timeout(OnsideWorker *worker)
{
	OnsideSender *sender = worker->sender;
	int64		now = onside_clock();
	int64		at = onside_sender_wake_at(sender, now, list_offers(worker) |
										   ONSIDE_OFFER_OLDEST);
	long		timeout = -1;

	/* Nothing is sent while reading rests, or too much is unwritten. */
	if (onside_reader_rests(worker))
		return onside_reader_timeout(worker);
	if (sender->nfates >= MAX_UNWRITTEN)
		return -1;

	/*
	 * The next dead letter of a chance may go at once.  The sender does not say
	 * so: what has become of the last one had to be written first.
	 */
	if (sender->in_flight == 0 && sender->nfates == 0 &&
		now >= sender->pace.not_before &&
		onside_choice_may_take_chance(sender, list_offers(worker)))
		return 0;

	/* Else the sender's next moment, in ms, or the reader's. */
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
 * Does the sender hold nothing but events of aside?  They have failed while
 * other events were accepted, so they say nothing about the endpoint, however
 * long nothing else is sent.
 */
static bool
only_aside_fails(OnsideWorker *worker)
{
	OnsideSender *sender = worker->sender;

	return sender->held_aside > 0 && sender->held == sender->held_aside &&
		!onside_reader_has_some(worker);
}

/*
 * How sending stands now.  The sender says whether there is a trouble, which
 * trouble.c puts into words; without one, the reason says what is aside.
 */
const OnsideSendingStatus *
onside_sending_status(OnsideWorker *worker)
{
	OnsideSender *sender = worker->sender;
	OnsideSendingStatus *status = &worker->sending.status;
	int64		now = onside_clock();
	OnsideTrouble trouble = onside_sender_trouble(sender, now);

	/* With nothing to send and no wait, nothing is in trouble. */
	if (now >= sender->pace.not_before &&
		(onside_sending_drained(worker) || only_aside_fails(worker)))
		trouble = ONSIDE_TROUBLE_NONE;

	/* Fill in what changes. */
	status->in_flight = sender->in_flight;
	status->next_attempt_at = 0;
	status->reason[0] = '\0';
	if (trouble != ONSIDE_TROUBLE_NONE)
		onside_trouble_explain(worker, trouble);
	else
	{
		status->state = onside_sending_drained(worker) ? ONSIDE_IDLE :
			ONSIDE_SENDING;

		/* Memory has only a part of what is aside, if there is much. */
		if (sender->held_aside > 0)
			snprintf(status->reason, sizeof(status->reason),
					 "events aside: %s" INT64_FORMAT "; they have failed while others were accepted, so it looks like the events; each is tried again by itself; the column error of the table aside says why",
					 sender->held_aside >= ONSIDE_SENDER_MAX_ASIDE / 2 ?
					 "at least " : "",
					 sender->held_aside);
	}
	return status;
}
