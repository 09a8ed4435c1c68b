/*-------------------------------------------------------------------------
 *
 * request.h
 *		One HTTP request: its options, and what its answer says.
 *
 * Shared by request.c, probe.c and http.c alone.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_REQUEST_H
#define ONSIDE_REQUEST_H

#include "postgres.h"

#include <curl/curl.h>

#include "send/answer.h"
#include "send/http_config.h"

typedef struct OnsideRequest
{
	CURL	   *easy;			/* kept for the next request; or NULL */
	bool		plain_proxy;	/* an HTTP proxy reads what is sent */

	/* of the present request */
	size_t		len;			/* of the body that is sent */
	int			attempts;		/* how often libcurl has begun to send it */
	bool		kept_in;		/* a connection to elsewhere was refused */
	size_t		headers_size;	/* of all that came so far */
	size_t		body_size;
	bool		headers_over;	/* those of the last status line */
	bool		odd_status;		/* that line has more than three digits */
	int64		wait_ms;		/* the longest Retry-After in seconds; or -1 */
	time_t		wait_until;		/* the latest Retry-After as a date; or -1 */
	time_t		date;			/* the answer's Date; or -1 */
	CURLcode	code;			/* libcurl's verdict, once it is judged */
	OnsideAnswer answer;
	char		errbuf[CURL_ERROR_SIZE];
} OnsideRequest;

/*
 * Makes the handle, for requests or, if probe, for a connection alone.  False
 * if there is no memory.
 */
extern bool onside_request_open(OnsideRequest *request,
								const OnsideHttpConfig *config, bool probe);

/* Forgets the last request. */
extern void onside_request_reset(OnsideRequest *request);

/* What is to be sent next. */
extern void onside_request_set_body(OnsideRequest *request, const char *body,
									size_t len, int timeout_ms);

/* Says in request->answer how the request ended. */
extern void onside_request_judge(OnsideRequest *request, CURLcode code);

#endif							/* ONSIDE_REQUEST_H */
