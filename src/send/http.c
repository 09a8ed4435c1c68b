/*-------------------------------------------------------------------------
 *
 * http.c
 *		Several HTTP requests at once, from PostgreSQL's own wait loop.
 *
 * This file, request.c, probe.c and address.c alone know libcurl, and nothing
 * of events or SQL.  The worker calls it to send, doctor() to try a connection.
 *
 * libcurl's multi interface is driven by socket readiness.  It tells us
 * through callbacks which sockets it waits for and until when.  We wait for
 * these sockets and for the process's latch in one WaitEventSet, so that the
 * worker serves interrupts and ProcSignalBarriers however slow the peer is.
 *
 * Each request has a slot.  Each slot has a multi handle of its own, which
 * holds at most one connection and the addresses that were resolved for it.
 * A request takes a slot whose connection can be used again.  A connection is
 * given up by throwing the slot's multi handle away, which works in all
 * versions of libcurl.  That is done
 *
 * - before a request that wants a fresh connection;
 * - after a failure, and after an answer that the API does not document: a
 *	 load balancer may have tied this connection to a broken server;
 * - when it is MAX_CONNECTION_AGE old: the name may lead elsewhere by now;
 * - when there is another configuration.
 *
 * All state is in one struct, OnsideHttp.  The worker has one, and doctor()
 * while it tries the connection.  libcurl's callbacks get it with their slot.
 *
 * libcurl's threaded resolver starts threads that inherit the signal mask.  No
 * signal handler of PostgreSQL's may run in such a thread, so all signals are
 * blocked around every call that can start one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "api.h"
#include "clock.h"
#include "compat.h"
#include "send/http.h"
#include "send/probe.h"
#include "send/request.h"
#include "send/response.h"
#include "send/secret.h"

/* In ms.  A request that begins just before this still has its whole time. */
#define MAX_CONNECTION_AGE	(5 * 60 * 1000)

/* A request's place, with the connection that outlives it. */
typedef struct Slot
{
	OnsideHttp *http;			/* whose place it is */
	OnsideRequest request;
	CURLM	   *multi;			/* has the connection, if any; or NULL */
	int64		connected_at;	/* before it was made; 0 if there is none */
	int64		due;			/* when libcurl wants to be called; or -1 */
	bool		outdated;		/* the handle is of an earlier configuration */
	bool		busy;
	bool		ended;			/* the answer is there */
	int64		number;			/* the caller's, of the request */
	int64		started_at;
	TimestampTz ended_at;
} Slot;

/* A socket that libcurl waits for. */
typedef struct Socket
{
	curl_socket_t fd;
	Slot	   *slot;
	uint32		events;			/* WL_SOCKET_*, as libcurl wants them */
	uint32		set_events;		/* as the wait event set has them */
	int			pos;			/* in the wait event set */
} Socket;

/* Resolver socket pairs and happy eyeballs come on top of one a request. */
#define MAX_SOCKETS		(ONSIDE_HTTP_MAX_REQUESTS * 4)

/* Requests, their connections, and what is waited for. */
struct OnsideHttp
{
	OnsideHttpConfig config;
	Slot		slots[ONSIDE_HTTP_MAX_REQUESTS];
	int			n_busy;

	Socket		sockets[MAX_SOCKETS];
	int			n_sockets;
	WaitEventSet *wait_set;
	bool		wait_set_stale;
};

/* ----------
 * Signals
 * ----------
 */

/* Blocks all signals but those of a crash; the caller sets the mask back. */
static void
block_signals(sigset_t *saved)
{
	sigset_t	all;

	sigfillset(&all);

	/* A crash in here is to be told as what it is; see crash_guard.c. */
	sigdelset(&all, SIGSEGV);
	sigdelset(&all, SIGBUS);
	sigdelset(&all, SIGILL);
	sigdelset(&all, SIGFPE);
	sigdelset(&all, SIGABRT);
	pthread_sigmask(SIG_SETMASK, &all, saved);
}

/* ----------
 * What libcurl calls.  No ereport, no palloc.
 * ----------
 */

/* libcurl wants us to wait for a socket, or to forget it. */
static int
on_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg)
{
	Slot	   *slot = arg;
	OnsideHttp *http = slot->http;
	int			i;

	/* Is it known? */
	for (i = 0; i < http->n_sockets; i++)
		if (http->sockets[i].fd == fd)
			break;

	if (what == CURL_POLL_REMOVE)
	{
		if (i < http->n_sockets)
		{
			http->sockets[i] = http->sockets[--http->n_sockets];
			http->wait_set_stale = true;
		}
		return 0;
	}

	/* A new one; without a place for it the request fails. */
	if (i == http->n_sockets)
	{
		if (http->n_sockets == MAX_SOCKETS)
			return -1;
		http->sockets[http->n_sockets++].fd = fd;
		http->wait_set_stale = true;
	}

	/* prepare_wait_set() sees what has changed. */
	http->sockets[i].slot = slot;
	http->sockets[i].events =
		(what & CURL_POLL_IN ? WL_SOCKET_READABLE : 0) |
		(what & CURL_POLL_OUT ? WL_SOCKET_WRITEABLE : 0);
	return 0;
}

/* libcurl wants to be called after so many ms; -1 for never. */
static int
on_timer(CURLM *multi, long timeout, void *arg)
{
	((Slot *) arg)->due =
		timeout < 0 ? -1 : onside_clock() + timeout * INT64CONST(1000);
	return 0;
}

/* ----------
 * Slots
 * ----------
 */

/* Closes the slot's connection, and forgets what was resolved for it. */
static void
drop_connection(Slot *slot)
{
	OnsideHttp *http = slot->http;

	if (slot->multi != NULL)
		curl_multi_cleanup(slot->multi);
	slot->multi = NULL;
	slot->connected_at = 0;
	slot->due = -1;

	/*
	 * Forget its sockets, whether or not libcurl has said that they are gone.
	 */
	for (int i = http->n_sockets - 1; i >= 0; i--)
	{
		if (http->sockets[i].slot == slot)
		{
			http->sockets[i] = http->sockets[--http->n_sockets];
			http->wait_set_stale = true;
		}
	}
}

/* Closes the slot's connection, and frees the handle of its requests. */
static void
close_slot(Slot *slot)
{
	drop_connection(slot);
	curl_easy_cleanup(slot->request.easy);
	slot->request.easy = NULL;
	slot->outdated = false;
}

/*
 * Takes a slot for a request.  A request for a fresh connection prefers a slot
 * that has none at the moment, any other request a slot that has one.  Slots
 * that were never used come last, so that there are not more connections than
 * requests at once.
 */
static Slot *
take_slot(OnsideHttp *http, bool fresh)
{
	Slot	   *best = NULL;
	int			best_rank = -1;

	for (int i = 0; i < ONSIDE_HTTP_MAX_REQUESTS; i++)
	{
		Slot	   *slot = &http->slots[i];
		int			rank;

		if (slot->busy)
			continue;

		/* An idle connection ends here when it is too old. */
		if (slot->connected_at != 0 &&
			onside_ms_until(slot->connected_at, MAX_CONNECTION_AGE) == 0)
			drop_connection(slot);

		/* 2 is what the request wants, 1 any other that was used before. */
		rank = slot->request.easy == NULL ? 0 :
			(slot->connected_at != 0) != fresh ? 2 : 1;
		if (rank > best_rank)
		{
			best = slot;
			best_rank = rank;
		}
	}
	/* The caller starts no more than there are slots. */
	if (best == NULL)
		elog(ERROR, "too many requests at once");
	if (fresh)
		drop_connection(best);

	best->busy = true;
	best->ended = false;
	best->started_at = onside_clock();
	onside_request_reset(&best->request);
	http->n_busy++;
	return best;
}

/* The request's answer was taken: the slot is free. */
static void
release_slot(Slot *slot)
{
	slot->http->n_busy--;
	slot->busy = false;
	slot->ended = false;
	if (slot->outdated)
		close_slot(slot);
}

/* ----------
 * Setting up
 * ----------
 */

static void
throw_out_of_memory(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OUT_OF_MEMORY),
			 errmsg("could not set up libcurl")));
}

/* Sets libcurl up in this process, once. */
static void
init_libcurl(void)
{
	/* libcurl's state is the process's, and so is whether it was set up. */
	static bool initialized = false;
	sigset_t	saved;

	block_signals(&saved);
	if (!initialized)
		initialized = curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
	pthread_sigmask(SIG_SETMASK, &saved, NULL);
	if (!initialized)
		throw_out_of_memory();
}

OnsideHttp *
onside_http_create(void)
{
	OnsideHttp *http;

	init_libcurl();
	http = MemoryContextAllocZero(TopMemoryContext, sizeof(OnsideHttp));
	http->wait_set_stale = true;
	for (int i = 0; i < ONSIDE_HTTP_MAX_REQUESTS; i++)
		http->slots[i].http = http;
	return http;
}

/* Slots that are busy are closed when their answers are taken. */
void
onside_http_renew(OnsideHttp *http)
{
	for (int i = 0; i < ONSIDE_HTTP_MAX_REQUESTS; i++)
	{
		http->slots[i].outdated = http->slots[i].request.easy != NULL;
		if (http->slots[i].outdated && !http->slots[i].busy)
			close_slot(&http->slots[i]);
	}
}

void
onside_http_configure(OnsideHttp *http, const OnsideHttpConfig *config)
{
	http->config = *config;
	onside_http_renew(http);
	onside_secret_set(ONSIDE_SECRET_API, config->credentials);
	if (config->proxy_credentials != NULL)
		onside_secret_set(ONSIDE_SECRET_PROXY, config->proxy_credentials);
}

/*
 * A slot's multi handle, which calls us back for the slot; NULL for no
 * memory.
 */
static CURLM *
new_multi(Slot *slot)
{
	CURLM	   *multi = curl_multi_init();

	if (multi == NULL)
		return NULL;
#if LIBCURL_VERSION_NUM >= 0x081400
	/* Resolver threads are the multi handle's since 8.20. */
	curl_multi_setopt(multi, CURLMOPT_QUICK_EXIT, 1L);
#endif

	/* The callbacks get the slot; it keeps one connection. */
	curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, on_socket);
	curl_multi_setopt(multi, CURLMOPT_SOCKETDATA, slot);
	curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, on_timer);
	curl_multi_setopt(multi, CURLMOPT_TIMERDATA, slot);
	curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, 1L);
	return multi;
}

/* The request is over: notes its answer, and keeps or drops its connection. */
static void
finish_request(Slot *slot, CURLcode code)
{
	const OnsideAnswer *answer = &slot->request.answer;

	/* onside_http_next_answer() finds it from now on. */
	onside_request_judge(&slot->request, code);
	slot->ended_at = GetCurrentTimestamp();
	slot->ended = true;

	/* Documented answers alone speak for the server behind the connection. */
	if (code == CURLE_OK && answer->kind == ONSIDE_ANSWER_COMPLETE &&
		onside_response_is_documented(answer->status))
	{
		if (answer->connections > 0)
			slot->connected_at = slot->started_at;
	}
	else
		drop_connection(slot);
}

/* ----------
 * Requests
 * ----------
 */

/* Lets libcurl do what can be done, and notes whether the request is over. */
static void
drive_request(Slot *slot, curl_socket_t fd, int mask)
{
	sigset_t	saved;
	CURLMsg    *msg;
	int			n;

	block_signals(&saved);
	curl_multi_socket_action(slot->multi, fd, mask, &n);

	/* The multi handle has one request, so there is one message at most. */
	msg = curl_multi_info_read(slot->multi, &n);
	if (msg != NULL && msg->msg == CURLMSG_DONE)
	{
		CURLcode	code = msg->data.result;

		curl_multi_remove_handle(slot->multi, slot->request.easy);
		finish_request(slot, code);
	}
	pthread_sigmask(SIG_SETMASK, &saved, NULL);
}

/*
 * Begins the request that the slot was taken for.  The request ends at once if
 * there is no memory.  body is NULL for a probe.
 */
static void
begin_request(Slot *slot, const OnsideHttpConfig *config, const char *body,
			  size_t len, int timeout_ms)
{
	sigset_t	saved;
	bool		begun = false;

	/* The slot may have both handles from the request before. */
	block_signals(&saved);
	if (slot->multi == NULL)
		slot->multi = new_multi(slot);
	if (slot->multi != NULL &&
		(slot->request.easy != NULL ||
		 onside_request_open(&slot->request, config, body == NULL)))
	{
		if (body != NULL)
			onside_request_set_body(&slot->request, body, len, timeout_ms);
		begun = curl_multi_add_handle(slot->multi,
									  slot->request.easy) == CURLM_OK;
	}
	pthread_sigmask(SIG_SETMASK, &saved, NULL);
	if (begun)
	{
		/* Write to a connection that is already open at once. */
		drive_request(slot, CURL_SOCKET_TIMEOUT, 0);
		return;
	}

	/* The caller gets an answer in any case. */
	close_slot(slot);
	finish_request(slot, CURLE_OUT_OF_MEMORY);
}

void
onside_http_start(OnsideHttp *http, int64 request, const char *body,
				  size_t len, bool fresh_connection, int timeout_ms)
{
	Slot	   *slot = take_slot(http, fresh_connection);

	slot->number = request;
	begin_request(slot, &http->config, body, len, timeout_ms);
}

/* A slot is busy until its answer is taken. */
int
onside_http_in_flight(OnsideHttp *http)
{
	return http->n_busy;
}

/* Takes them in the order of the slots; any order will do. */
bool
onside_http_next_answer(OnsideHttp *http, int64 *request, OnsideAnswer *answer,
						TimestampTz *ended)
{
	for (int i = 0; i < ONSIDE_HTTP_MAX_REQUESTS; i++)
	{
		if (http->slots[i].ended)
		{
			*request = http->slots[i].number;
			*answer = http->slots[i].request.answer;
			*ended = http->slots[i].ended_at;
			release_slot(&http->slots[i]);
			return true;
		}
	}
	return false;
}

/* ----------
 * Waiting
 * ----------
 */

/*
 * Makes the wait event set agree with the sockets that libcurl waits for.  A
 * socket that has come or gone takes a new set; other changes are made in the
 * set that is there.
 */
static void
prepare_wait_set(OnsideHttp *http)
{
	if (http->wait_set_stale)
	{
		/* Events cannot be taken out of a set. */
		if (http->wait_set != NULL)
			FreeWaitEventSet(http->wait_set);
		http->wait_set = NULL;	/* in case that the next line fails */
		http->wait_set = onside_create_wait_event_set(http->n_sockets + 2);
		AddWaitEventToSet(http->wait_set, WL_LATCH_SET, PGINVALID_SOCKET,
						  MyLatch, NULL);
		AddWaitEventToSet(http->wait_set, WL_EXIT_ON_PM_DEATH,
						  PGINVALID_SOCKET, NULL, NULL);

		/* Each event has its socket's slot as user data. */
		for (int i = 0; i < http->n_sockets; i++)
		{
			http->sockets[i].pos = AddWaitEventToSet(http->wait_set,
													 http->sockets[i].events,
													 http->sockets[i].fd, NULL,
													 http->sockets[i].slot);
			http->sockets[i].set_events = http->sockets[i].events;
		}
		http->wait_set_stale = false;
		return;
	}

	/* The same sockets: is it the same that is awaited of each? */
	for (int i = 0; i < http->n_sockets; i++)
	{
		if (http->sockets[i].set_events != http->sockets[i].events)
		{
			ModifyWaitEvent(http->wait_set, http->sockets[i].pos,
							http->sockets[i].events, NULL);
			http->sockets[i].set_events = http->sockets[i].events;
		}
	}
}

/* Is the request not answered yet? */
static bool
is_under_way(const Slot *slot)
{
	return slot->busy && !slot->ended;
}

/*
 * Calls libcurl for each socket that is ready, and for each slot whose time
 * has come.  Serves at most 16 events a call; the others are still there in
 * the next.
 */
bool
onside_http_wait(OnsideHttp *http, long timeout, uint32 wait_event)
{
	WaitEvent	events[16];
	int			n;
	bool		latch_set = false;

	/*
	 * Sleep no longer than until libcurl's next time; and not at all if a
	 * request has ended in the call that began it.
	 */
	for (int i = 0; i < ONSIDE_HTTP_MAX_REQUESTS; i++)
	{
		Slot	   *slot = &http->slots[i];

		if (slot->ended)
			timeout = 0;
		else if (slot->busy && slot->due >= 0)
			timeout = onside_sooner(timeout, onside_ms_until(slot->due, 0));
	}

	prepare_wait_set(http);
	n = WaitEventSetWait(http->wait_set, timeout, events, lengthof(events),
						 wait_event);

	/* What has happened: the latch, and sockets. */
	for (int i = 0; i < n; i++)
	{
		Slot	   *slot = events[i].user_data;
		int			mask = 0;

		if (events[i].events & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			latch_set = true;
		}
		if (events[i].events & WL_SOCKET_READABLE)
			mask |= CURL_CSELECT_IN;
		if (events[i].events & WL_SOCKET_WRITEABLE)
			mask |= CURL_CSELECT_OUT;
		if (mask != 0 && is_under_way(slot))
			drive_request(slot, events[i].fd, mask);
	}

	/* Whose time has come; the call may set the next one. */
	for (int i = 0; i < ONSIDE_HTTP_MAX_REQUESTS; i++)
	{
		Slot	   *slot = &http->slots[i];

		if (is_under_way(slot) && slot->due >= 0 &&
			onside_ms_until(slot->due, 0) == 0)
		{
			slot->due = -1;
			drive_request(slot, CURL_SOCKET_TIMEOUT, 0);
		}
	}
	return latch_set;
}

/* ----------
 * Can the endpoint be reached from here?
 *
 * For doctor(), in the backend of whoever calls it: the worker may be what
 * does not run, and if it does, it is not disturbed.  libcurl makes a
 * connection and no request (CURLOPT_CONNECT_ONLY).  The options that decide
 * to whom the connection is made, and whom to trust, are the worker's, so
 * that it fails where the worker would fail.
 * ----------
 */

/*
 * Gives the connection up, in whatever state it is.  A libcurl older than
 * 7.87 would wait here for the thread that resolves the name, for as long as
 * the name server takes.  So while a name is being resolved, the handles are
 * not freed, nor the struct that they point into: this leaks once, and nobody
 * waits.
 */
static void
end_probe(Slot *slot, bool running)
{
	OnsideHttp *http = slot->http;
	curl_off_t	resolved = 0;
	bool		left = false;

	/* 0 until the name is resolved. */
	if (running)
		curl_easy_getinfo(slot->request.easy, CURLINFO_NAMELOOKUP_TIME_T,
						  &resolved);
	if (running && resolved == 0 && LIBCURL_VERSION_NUM < 0x075700)
	{
		left = slot->request.easy != NULL;
		slot->request.easy = slot->multi = NULL;
	}
	else if (running)
		curl_multi_remove_handle(slot->multi, slot->request.easy);

	/* The set is freed in any case, the struct unless it was left. */
	close_slot(slot);
	release_slot(slot);
	if (http->wait_set != NULL)
		FreeWaitEventSet(http->wait_set);
	http->wait_set = NULL;
	if (!left)
		pfree(http);
}

/*
 * One connection, in a struct of its own; an interrupt ends it like a
 * failure.
 */
void
onside_http_probe(const OnsideHttpConfig *config, int timeout,
				  OnsideProbe *probe)
{
	uint32		wait_event = onside_wait_event("OnsideAttributionDoctor");
	OnsideHttp *http = onside_http_create();
	volatile bool running = true;
	Slot	   *slot = take_slot(http, true);
	int64		started_at = slot->started_at;
	long		left;

	memset(probe, 0, sizeof(*probe));
	probe->through_proxy = config->proxy[0] != '\0';

	PG_TRY();
	{
		begin_request(slot, config, NULL, 0, 0);

		/* libcurl is told no time: it would wait for the name server then. */
		while (!slot->ended &&
			   (left = onside_ms_until(started_at, timeout)) > 0)
		{
			(void) onside_http_wait(http, left, wait_event);
			CHECK_FOR_INTERRUPTS();
		}

		/* Our time is over: what has libcurl done until now? */
		running = !slot->ended;
		if (running)
			onside_request_judge(&slot->request, CURLE_OPERATION_TIMEDOUT);
		if (slot->request.easy == NULL)
			throw_out_of_memory();
		onside_probe_report(&slot->request, probe);
	}
	PG_FINALLY();
	{
		end_probe(slot, running);
	}
	PG_END_TRY();
	probe->duration = (int) ((onside_clock() - started_at) / 1000);
}
