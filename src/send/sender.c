/*-------------------------------------------------------------------------
 *
 * sender.c
 *		Batches in flight: what is sent when, and what an answer means for it.
 *
 * Batches wait in a queue in the order of the log.  Each is ready, in flight
 * or settled; a refused one goes back to ready with its bisect state, and is
 * then sent in parts.  A batch is settled when each of its events is delivered
 * or refused for good, and leaves when it is settled and at the head: so the
 * cursor only ever moves over what is done with.
 *
 * The decisions are those of the pure rooms (response.c, backoff.c, bisect.c);
 * here they meet the clock, the network and the queue.  There is one back-off
 * for the endpoint: all batches wait together.
 *
 * No SQL and no transaction here.  Batches live in memory contexts of their
 * own under TopMemoryContext.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "lib/ilist.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "send/backoff.h"
#include "batch.h"
#include "send/bisect.h"
#include "clock.h"
#include "crash_guard.h"
#include "send/http.h"
#include "send/response.h"
#include "send/sender.h"
#include "settings.h"
#include "stats.h"

/*
 * Batches that may wait behind one that is being bisected.  Settled ones have
 * given their bodies back, so this bounds bookkeeping and not bodies.
 */
#define MAX_QUEUED		1024

/* Batches, of one event each, that are tried when the API refuses everything. */
#define MAX_REFUSED		16

typedef enum QueuedState
{
	QUEUED_READY,
	QUEUED_IN_FLIGHT,
	QUEUED_SETTLED
} QueuedState;

/* A batch in the queue. */
typedef struct Queued
{
	dlist_node	node;
	OnsideBatch *batch;
	QueuedState state;
	int			attempts;		/* requests made for it */
	bool		failed;			/* the last one, and not for its events */
	int		   *tries;			/* once bisecting: requests for each event */
	int64		sent_us;
	OnsideBisect *bisect;		/* NULL until it is refused */
	int64		refused_us;		/* when it was, first */
	int			first;			/* what is or was in flight */
	int			count;
	char	   *part;			/* body of a part, or NULL for the whole */
	size_t		len;
	List	   *refused;		/* in the batch's context, as in OnsideSettled */
} Queued;

static dlist_head queue = DLIST_STATIC_INIT(queue);
static int	n_queued;
static int	n_ready;

static OnsideBackoff backoff;
static OnsideBodyLimit body_limit;
static OnsideContract contract;
static int64 elsewhere_us;		/* since when there is this endpoint */
static OnsideSenderStatus status;
static OnsideState failure_state;
static bool unauthorized;

/* ----------
 * Clocks
 * ----------
 */

/* A moment of onside_clock() as a timestamp, for people and for a restart. */
static TimestampTz
to_timestamp(int64 moment)
{
	return GetCurrentTimestamp() + (moment - onside_clock());
}

static int64
from_timestamp(TimestampTz t)
{
	return onside_clock() + (t - GetCurrentTimestamp());
}

/* ----------
 * Set-up
 * ----------
 */

void
onside_sender_init(TimestampTz not_before)
{
	onside_backoff_init(&backoff, onside_max_in_flight);
	onside_body_limit_init(&body_limit);
	onside_contract_init(&contract);
	memset(&status, 0, sizeof(status));
	status.state = ONSIDE_IDLE;
	failure_state = ONSIDE_BACKING_OFF;

	if (not_before != 0)
	{
		onside_backoff_restore(&backoff, onside_clock(),
							   from_timestamp(not_before));
		if (onside_backoff_is_probing(&backoff))
		{
			status.not_before = not_before;
			strlcpy(status.reason,
					"the API asked to wait before this worker was started",
					sizeof(status.reason));
		}
	}
}

void
onside_sender_clear_backoff(void)
{
	onside_backoff_clear(&backoff, onside_clock());
	status.not_before = 0;
}

void
onside_sender_reconfigured(void)
{
	onside_body_limit_init(&body_limit);
	onside_sender_clear_backoff();
}

void
onside_sender_elsewhere(void)
{
	dlist_iter	iter;

	onside_contract_init(&contract);
	elsewhere_us = onside_clock();
	dlist_foreach(iter, &queue)
	{
		Queued	   *queued = dlist_container(Queued, node, iter.cur);

		if (queued->bisect != NULL)
			onside_bisect_distrust(queued->bisect);
	}
}

/* ----------
 * The queue
 * ----------
 */

static void
set_state(Queued *queued, QueuedState state)
{
	if (queued->state == QUEUED_READY)
		n_ready--;
	if (state == QUEUED_READY)
		n_ready++;
	queued->state = state;
}

static bool
may_send_one_more(void)
{
	int			stragglers = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &queue)
	{
		Queued	   *queued = dlist_container(Queued, node, iter.cur);

		if (queued->state == QUEUED_IN_FLIGHT &&
			onside_backoff_is_old(&backoff, queued->sent_us))
			stragglers++;
	}
	return onside_backoff_may_send(&backoff, onside_clock(),
								   onside_http_in_flight(), stragglers,
								   onside_max_in_flight);
}

int
onside_sender_wants(int *max_bytes)
{
	bool		refusing = failure_state == ONSIDE_REFUSING;

	/*
	 * While batches are refused over and over, others are what can tell
	 * whether it is the batches or the endpoint.
	 */
	if ((n_ready > 0 && !refusing) ||
		n_queued >= (refusing ? MAX_REFUSED : MAX_QUEUED) ||
		!may_send_one_more())
		return 0;

	*max_bytes = onside_body_limit_bytes(&body_limit, onside_batch_max_bytes);
	return onside_backoff_batch_limit(&backoff,
									  onside_body_limit_events(&body_limit,
															   onside_batch_max_events));
}

void
onside_sender_add(OnsideBatch *batch)
{
	Queued	   *queued = MemoryContextAllocZero(batch->context,
												sizeof(Queued));

	queued->batch = batch;
	queued->state = QUEUED_READY;
	n_ready++;
	n_queued++;
	dlist_push_tail(&queue, &queued->node);
}

bool
onside_sender_busy(void)
{
	return !dlist_is_empty(&queue);
}

bool
onside_sender_extend_last(const OnsideCursor *end)
{
	if (dlist_is_empty(&queue))
		return false;
	onside_cursor_copy(&dlist_tail_element(Queued, node, &queue)->batch->end,
					   end);
	return true;
}

TimestampTz
onside_sender_oldest(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &queue)
	{
		Queued	   *queued = dlist_container(Queued, node, iter.cur);

		if (queued->state != QUEUED_SETTLED)
			return queued->batch->events[0].recorded_at;
	}
	return 0;
}

bool
onside_sender_settle(OnsideSettled *settled)
{
	memset(settled, 0, sizeof(*settled));

	while (!dlist_is_empty(&queue))
	{
		Queued	   *queued = dlist_head_element(Queued, node, &queue);
		OnsideBatch *batch = queued->batch;
		ListCell   *lc;

		if (queued->state != QUEUED_SETTLED)
			break;

		onside_cursor_copy(&settled->end, &batch->end);
		settled->delivered += batch->nevents - list_length(queued->refused);
		foreach(lc, queued->refused)
		{
			OnsideRefusedEvent *refused = palloc(sizeof(OnsideRefusedEvent));

			*refused = *(OnsideRefusedEvent *) lfirst(lc);
			refused->error = pstrdup(refused->error);
			settled->refused = lappend(settled->refused, refused);
		}

		dlist_delete(&queued->node);
		n_queued--;
		onside_batch_free(batch);	/* and queued with it */
	}
	return settled->end.done != NULL;
}

/* ----------
 * Sending
 * ----------
 */

/* The batch to send next, or NULL. */
static Queued *
next_ready(void)
{
	Queued	   *best = NULL;
	dlist_iter	iter;

	if (n_ready == 0)
		return NULL;

	dlist_foreach(iter, &queue)
	{
		Queued	   *queued = dlist_container(Queued, node, iter.cur);

		if (queued->state != QUEUED_READY)
			continue;
		if (failure_state != ONSIDE_REFUSING)
			return queued;
		/* see onside_sender_wants() */
		if (best == NULL || queued->attempts < best->attempts)
			best = queued;
	}
	return best;
}

static void
send_batch(Queued *queued)
{
	OnsideBatch *batch = queued->batch;
	const char *body = batch->body.data;

	queued->first = 0;
	queued->count = batch->nevents;
	queued->len = batch->body.len;
	if (queued->bisect != NULL)
	{
		(void) onside_bisect_next(queued->bisect, &queued->first,
								  &queued->count);
		queued->part = onside_batch_part(batch, queued->first, queued->count,
										 &queued->len);
		body = queued->part;
	}

	set_state(queued, QUEUED_IN_FLIGHT);
	onside_crash_guard_step(ONSIDE_STEP_SENDING,
							&batch->events[queued->first].pos);
	queued->sent_us = onside_clock();
	onside_backoff_on_sent(&backoff, queued->sent_us);
	status.requests++;
	onside_stats_count(ONSIDE_COUNT_REQUESTS, 1);
	onside_stats_count(ONSIDE_COUNT_EVENTS_SENT, queued->count);
	onside_stats_count(ONSIDE_COUNT_BYTES_SENT, (int64) queued->len);
	if (queued->failed)
	{
		status.retries++;
		onside_stats_count(ONSIDE_COUNT_RETRIES, 1);
	}
	queued->failed = false;
	queued->attempts++;
	for (int i = 0; queued->tries != NULL && i < queued->count; i++)
		queued->tries[queued->first + i]++;
	(void) onside_http_start(queued, body, queued->len);
}

bool
onside_sender_pump(void)
{
	Queued	   *queued;
	bool		any = false;

	while ((queued = next_ready()) != NULL &&
		   onside_http_in_flight() < ONSIDE_HTTP_MAX_REQUESTS &&
		   may_send_one_more())
	{
		send_batch(queued);
		any = true;
	}
	return any;
}

/* ----------
 * Answers
 * ----------
 */

static void
set_error(const OnsideHttpResult *result, const char *meaning)
{
	char		error[ONSIDE_HTTP_BODY_KEPT + 32];

	status.last_error_at = result->ended;
	if (result->failed)
		strlcpy(error, result->error, sizeof(error));
	else if (result->body[0] != '\0')
		snprintf(error, sizeof(error), "HTTP %d: %s", result->status,
				 result->body);
	else
		snprintf(error, sizeof(error), "HTTP %d", result->status);
	onside_copy_text(status.last_error, error, sizeof(status.last_error));
	if (meaning != NULL)
		strlcpy(status.reason, meaning, sizeof(status.reason));
}

static void
fail(Queued *queued, OnsideState state, OnsideBackoffKind kind,
	 int64 retry_after_ms)
{
	int64		next_attempt = onside_backoff_next_attempt(&backoff);

	queued->failed = true;
	failure_state = state;
	onside_backoff_on_failure(&backoff, onside_clock(), queued->sent_us, kind,
							  retry_after_ms, onside_retry_initial_delay,
							  onside_retry_max_delay,
							  pg_prng_double(&pg_global_prng_state));
	if (onside_backoff_next_attempt(&backoff) != next_attempt)
		onside_stats_count(ONSIDE_COUNT_BACK_OFFS, 1);
	if (retry_after_ms > 0)
		status.not_before =
			to_timestamp(onside_backoff_next_attempt(&backoff));
}

/* The body is no longer needed. */
static void
mark_settled(Queued *queued)
{
	ListCell   *lc;

	/* An event that was refused in the beginning may have been taken since. */
	foreach(lc, queued->refused)
	{
		OnsideRefusedEvent *refused = lfirst(lc);

		if (onside_bisect_verdict(queued->bisect, refused->event) !=
			ONSIDE_VERDICT_BAD)
			queued->refused = foreach_delete_current(queued->refused, lc);
	}

	set_state(queued, QUEUED_SETTLED);
	pfree(queued->batch->body.data);
	queued->batch->body.data = NULL;
}

static void
add_refused(Queued *queued, int event, const OnsideHttpResult *result)
{
	MemoryContext old = MemoryContextSwitchTo(queued->batch->context);
	OnsideRefusedEvent *refused;
	ListCell   *lc;

	/* It may have been refused before, and in doubt since. */
	foreach(lc, queued->refused)
	{
		refused = lfirst(lc);
		if (refused->event == event)
		{
			pfree(refused->error);
			pfree(refused);
			queued->refused = foreach_delete_current(queued->refused, lc);
		}
	}

	refused = palloc(sizeof(OnsideRefusedEvent));
	refused->event = event;
	refused->pos = queued->batch->events[event].pos;
	refused->http_status = result->status;
	refused->attempts = queued->tries[event];
	refused->error = pstrdup(result->body[0] != '\0' ? result->body :
							 psprintf("HTTP %d", result->status));
	queued->refused = lappend(queued->refused, refused);
	MemoryContextSwitchTo(old);
}

/* Something was accepted: a refusal is about events, not about everything. */
static void
tell_bisects_of_success(int64 sent_us)
{
	dlist_iter	iter;

	dlist_foreach(iter, &queue)
	{
		Queued	   *queued = dlist_container(Queued, node, iter.cur);

		if (queued->bisect != NULL && queued->refused_us < sent_us)
			onside_bisect_accepted_elsewhere(queued->bisect);
	}
}

/*
 * The moment of the commit is known to nobody, unless the server keeps commit
 * timestamps: recorded_at is before it by what the transaction did afterwards.
 */
static void
count_latency(const Queued *queued, TimestampTz acknowledged_at)
{
	const OnsideBatchEvent *event = queued->batch->events + queued->first;

	for (int i = 0; i < queued->count; i++)
		onside_histogram_add(&onside_stats_unpublished.delivery,
							 acknowledged_at - event[i].recorded_at);
}

static void
count_result(const OnsideHttpResult *result)
{
	static const OnsideCounter failures[] = {
		[ONSIDE_HTTP_NO_CONNECTION] = ONSIDE_COUNT_CONNECTION_FAILURES,
		[ONSIDE_HTTP_TIMEOUT] = ONSIDE_COUNT_TIMEOUTS,
		[ONSIDE_HTTP_MALFORMED] = ONSIDE_COUNT_MALFORMED,
	};

	onside_stats_count(ONSIDE_COUNT_CONNECTIONS, result->connections);
	if (result->failed)
		onside_stats_count(failures[result->failure], 1);
	else
	{
		onside_stats_count(onside_stats_of_status(result->status), 1);
		onside_histogram_add(&onside_stats_unpublished.request,
							 result->duration);
	}
}

static void
answer_accepted(Queued *queued, const OnsideHttpResult *result)
{
	bool		elsewhere = queued->sent_us < elsewhere_us;

	count_latency(queued, result->ended);
	status.last_success_at = result->ended;
	onside_backoff_on_success(&backoff, queued->sent_us,
							  onside_max_in_flight);
	onside_body_limit_on_success(&body_limit, queued->count,
								 (int) queued->len,
								 onside_batch_max_events,
								 onside_batch_max_bytes);
	if (!elsewhere)
	{
		onside_contract_on_accepted(&contract);
		tell_bisects_of_success(queued->sent_us);
	}

	if (!onside_backoff_is_probing(&backoff))
	{
		failure_state = ONSIDE_BACKING_OFF;
		status.reason[0] = '\0';
		status.not_before = 0;
	}

	if (queued->bisect != NULL)
	{
		onside_bisect_answer(queued->bisect, ONSIDE_BISECT_ACCEPTED);
		if (elsewhere)
			onside_bisect_distrust(queued->bisect);
		if (!onside_bisect_done(queued->bisect))
		{
			set_state(queued, QUEUED_READY);
			return;
		}
	}
	mark_settled(queued);
}

/* A 400 or a 413: it is about what was sent. */
static void
answer_refused(Queued *queued, const OnsideHttpResult *result,
			   OnsideBisectAnswer answer)
{
	bool		alone = queued->count == 1;

	set_error(result, NULL);

	/* Its parts say nothing new: one large event may be in each of them. */
	if (answer == ONSIDE_BISECT_TOO_LARGE && !alone && queued->bisect == NULL)
		onside_body_limit_on_too_large(&body_limit, queued->count,
									   (int) queued->len);

	if (queued->bisect == NULL)
	{
		queued->bisect = MemoryContextAlloc(queued->batch->context,
											sizeof(OnsideBisect));
		queued->tries = MemoryContextAlloc(queued->batch->context,
										   queued->batch->nevents *
										   sizeof(int));
		for (int i = 0; i < queued->batch->nevents; i++)
			queued->tries[i] = queued->attempts;
		queued->refused_us = queued->sent_us;
		onside_bisect_init(queued->bisect, queued->batch->nevents, answer,
						   onside_contract_trusted(&contract));
		onside_bisect_too_large_before(queued->bisect,
									   contract.lone_too_large);
	}
	else
	{
		onside_bisect_answer(queued->bisect, answer);
		if (alone)
		{
			if (onside_bisect_verdict(queued->bisect, queued->first) ==
				ONSIDE_VERDICT_BAD)
				add_refused(queued, queued->first, result);
			if (answer == ONSIDE_BISECT_REFUSED)
				onside_contract_on_refused_alone(&contract);
			else
				onside_contract_on_too_large_alone(&contract);
		}
	}

	if (onside_bisect_refusing(queued->bisect))
	{
		set_error(result,
				  "the API refuses every event and has accepted none: check that endpoint and account are the right ones; nothing is given up meanwhile");
		fail(queued, ONSIDE_REFUSING, ONSIDE_BACKOFF_SLOW, 0);
		set_state(queued, QUEUED_READY);
		return;
	}

	onside_backoff_on_abandoned(&backoff, queued->sent_us);
	if (onside_bisect_done(queued->bisect))
		mark_settled(queued);
	else
		set_state(queued, QUEUED_READY);
}

static void
answer(Queued *queued, const OnsideHttpResult *result)
{
	int64		retry_after_ms = 0;
	OnsideResponseClass class;

	count_result(result);
	if (queued->part != NULL)
	{
		pfree(queued->part);
		queued->part = NULL;
	}

	if (result->has_retry_after)
		retry_after_ms =
			onside_retry_after_ms(result->retry_after,
								  strlen(result->retry_after),
								  result->date[0] != '\0' ? result->date : NULL,
								  strlen(result->date),
								  (result->ended -
								   SetEpochTimestamp()) / 1000);
	class = onside_response_classify(result->status, result->failed,
									 retry_after_ms > 0);

	switch (class)
	{
		case ONSIDE_RESPONSE_DELIVERED:
			answer_accepted(queued, result);
			return;
		case ONSIDE_RESPONSE_REFUSED:
			answer_refused(queued, result, ONSIDE_BISECT_REFUSED);
			return;
		case ONSIDE_RESPONSE_TOO_LARGE:
			answer_refused(queued, result, ONSIDE_BISECT_TOO_LARGE);
			return;
		case ONSIDE_RESPONSE_THROTTLED:
			set_error(result, "the API asks to send less; no action is needed");
			fail(queued, ONSIDE_BACKING_OFF, ONSIDE_BACKOFF_THROTTLED,
				 retry_after_ms);
			break;
		case ONSIDE_RESPONSE_RETRY:
			set_error(result, "the API cannot be reached or fails; events wait until it recovers");
			fail(queued, ONSIDE_BACKING_OFF, ONSIDE_BACKOFF_RETRY, 0);
			break;
		case ONSIDE_RESPONSE_UNAUTHORIZED:
			set_error(result, "the API does not accept the credentials: correct credentials_file; it is read again before each attempt");
			fail(queued, ONSIDE_UNAUTHORIZED, ONSIDE_BACKOFF_SLOW, 0);
			unauthorized = true;
			break;
		case ONSIDE_RESPONSE_MISCONFIGURED:
		case ONSIDE_RESPONSE_NOT_ACKNOWLEDGED:
			set_error(result, "the answer is not one of the attribution API: correct onside_attribution.endpoint and reload");
			fail(queued, ONSIDE_MISCONFIGURED, ONSIDE_BACKOFF_SLOW, 0);
			break;
	}
	set_state(queued, QUEUED_READY);
}

bool
onside_sender_collect(void)
{
	OnsideHttpResult result;
	bool		any = false;

	while (onside_http_next_result(&result))
	{
		answer((Queued *) result.request, &result);
		any = true;
	}
	return any;
}

bool
onside_sender_take_unauthorized(void)
{
	bool		result = unauthorized;

	unauthorized = false;
	return result;
}

/* ----------
 * How things stand
 * ----------
 */

long
onside_sender_timeout(void)
{
	int64		next = onside_backoff_next_attempt(&backoff);
	long		left = next == 0 ? 0 : onside_ms_until(next, 0);

	return left == 0 ? -1 : Min(left, INT_MAX);
}

const OnsideSenderStatus *
onside_sender_status(void)
{
	int64		next = onside_backoff_next_attempt(&backoff);
	bool		probing = onside_backoff_is_probing(&backoff);

	/* A wait that is over, and nothing that could be tried: all is well. */
	if (probing && next <= onside_clock() && !onside_sender_busy())
	{
		probing = false;
		status.reason[0] = '\0';
	}

	status.in_flight = onside_http_in_flight();
	if (probing)
		status.state = failure_state;
	else
		status.state = onside_sender_busy() ? ONSIDE_SENDING : ONSIDE_IDLE;
	status.next_attempt_at = probing && next != 0 ? to_timestamp(next) : 0;
	return &status;
}
