/*-------------------------------------------------------------------------
 *
 * api.h
 *		What the Onside attribution API says about requests.
 *
 * Its page "Server-to-server attribution events" is the source, apart from the
 * length of a name.  Code and tests take the limits from here.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_API_H
#define ONSIDE_API_H

#define ONSIDE_API_URL			"https://onside.io/attribution-api/v1/events"

/*
 * "Limits": a request has at most so many events, and fewer bytes than this.
 */
#define ONSIDE_API_MAX_EVENTS	1000
#define ONSIDE_API_MAX_BYTES	1000000

/* "Request body": {"events":[EVENT,EVENT,...]} */
#define ONSIDE_API_BODY_OPEN	"{\"events\":["
#define ONSIDE_API_BODY_CLOSE	"]}"
#define ONSIDE_API_BODY_FRAME	(sizeof(ONSIDE_API_BODY_OPEN) - 1 + \
								 sizeof(ONSIDE_API_BODY_CLOSE) - 1)

/* Characters of an event_name.  The page names no limit; this is ours. */
#define ONSIDE_API_NAME_MAX		255

/* "HTTP response codes" */
#define ONSIDE_API_ACCEPTED		204
#define ONSIDE_API_REFUSED		400
#define ONSIDE_API_TOO_LARGE	413
#define ONSIDE_API_THROTTLED	429

#endif							/* ONSIDE_API_H */
