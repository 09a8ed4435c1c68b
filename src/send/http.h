/*-------------------------------------------------------------------------
 *
 * http.h
 *		Several HTTP requests at once, from PostgreSQL's own wait loop.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_HTTP_H
#define ONSIDE_HTTP_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "send/answer.h"
#include "send/http_config.h"
#include "send/probe.h"

/* Most requests under way at once: one more than max_in_flight can be. */
#define ONSIDE_HTTP_MAX_REQUESTS	65

/* Requests and their connections; see http.c. */
typedef struct OnsideHttp OnsideHttp;

/* Sets libcurl up in this process, too, so never in the postmaster. */
extern OnsideHttp *onside_http_create(void);

/* Requests started from now on go there, on connections made from now on. */
extern void onside_http_configure(OnsideHttp *http,
								  const OnsideHttpConfig *config);

/*
 * Starts a POST of body (len bytes, which must stay in place until the answer
 * is taken), for which there are timeout_ms.  fresh_connection: over a new
 * connection, with the name resolved anew.  An answer with this number comes
 * in any case, also if there is no memory.
 */
extern void onside_http_start(OnsideHttp *http, int64 request,
							  const char *body, size_t len,
							  bool fresh_connection, int timeout_ms);

/*
 * No request that is started from now on goes over a connection that is there
 * already.
 */
extern void onside_http_renew(OnsideHttp *http);

/* How many requests are under way (answers not yet taken included). */
extern int	onside_http_in_flight(OnsideHttp *http);

/* Takes the answer to a request that has ended; false if there is none. */
extern bool onside_http_next_answer(OnsideHttp *http, int64 *request,
									OnsideAnswer *answer,
									TimestampTz *ended);

/*
 * Sleeps until something happened to a request, this process's latch was set,
 * or timeout (ms, -1 for none) has passed, and drives the requests.  Returns
 * true if the latch was set (and resets it).  Exits if the postmaster died.
 */
extern bool onside_http_wait(OnsideHttp *http, long timeout,
							 uint32 wait_event);

/*
 * Connects to the endpoint as the worker would, with TLS if it is https, and
 * disconnects: no request is made, no credentials but the proxy's are sent.
 * Takes timeout ms at most, and serves interrupts.  For backends.
 */
extern void onside_http_probe(const OnsideHttpConfig *config, int timeout,
							  OnsideProbe *probe);

#endif							/* ONSIDE_HTTP_H */
