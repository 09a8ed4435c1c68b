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

#define ONSIDE_HTTP_MAX_REQUESTS	64	/* under way at once */
#define ONSIDE_HTTP_BODY_KEPT		1024	/* of an answer's body */
#define ONSIDE_HTTP_HEADER_KEPT		128 /* of a header's value */

/* Where and how to send.  The strings must outlive the next configure. */
typedef struct OnsideHttpConfig
{
	const char *url;
	const char *credentials;	/* user:password */
	const char *ca_file;		/* "" for the system's */
	const char *proxy;			/* "" for none */
	const char *proxy_credentials;	/* user:password; NULL for none */
	int			connect_timeout;	/* ms */
	int			request_timeout;	/* ms */
} OnsideHttpConfig;

/* Why there is no complete answer. */
typedef enum OnsideHttpFailure
{
	ONSIDE_HTTP_NO_CONNECTION,	/* none could be made, or it broke */
	ONSIDE_HTTP_TIMEOUT,
	ONSIDE_HTTP_MALFORMED,		/* what came is no HTTP, or has no end */
} OnsideHttpFailure;

/* How a request ended. */
typedef struct OnsideHttpResult
{
	void	   *request;		/* what was passed to onside_http_start */
	bool		failed;			/* no complete answer; error says why */
	OnsideHttpFailure failure;	/* and this is its kind */
	int			status;			/* HTTP status, if an answer came */
	TimestampTz started;
	TimestampTz ended;
	int64		duration;		/* us, by a clock that never goes back */
	int			connections;	/* made for it */
	char		error[256];		/* of the transport, printable ASCII */
	char		body[ONSIDE_HTTP_BODY_KEPT + 1];	/* printable UTF-8 */
	bool		has_retry_after;
	char		retry_after[ONSIDE_HTTP_HEADER_KEPT + 1];
	char		date[ONSIDE_HTTP_HEADER_KEPT + 1];
} OnsideHttpResult;

/*
 * Sets libcurl up in this process; once, in the worker alone.  Errors are
 * raised with ereport.
 */
extern void onside_http_init(void);

/* Takes effect on the requests started from now on. */
extern void onside_http_configure(const OnsideHttpConfig *config);

/*
 * Starts a POST of body (len bytes, which must stay in place until the result
 * is taken).  "request" comes back in the result.  Returns false and does
 * nothing if ONSIDE_HTTP_MAX_REQUESTS are under way.
 */
extern bool onside_http_start(void *request, const char *body, size_t len);

/* How many requests are under way (results not yet taken included). */
extern int	onside_http_in_flight(void);

/* Takes the result of a request that has ended; false if there is none. */
extern bool onside_http_next_result(OnsideHttpResult *result);

/*
 * Sleeps until something happened to a request, this process's latch was set,
 * or timeout (ms, -1 for none) has passed, and drives the requests.  Returns
 * true if the latch was set (and resets it).  Exits if the postmaster died.
 */
extern bool onside_http_wait(long timeout, uint32 wait_event);

#endif							/* ONSIDE_HTTP_H */
