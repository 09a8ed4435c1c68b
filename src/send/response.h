/*-------------------------------------------------------------------------
 *
 * response.h
 *		What an answer means.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_RESPONSE_H
#define ONSIDE_RESPONSE_H

#include "send/answer.h"

/* The longest wait that a Retry-After can ask for: one hour. */
#define ONSIDE_RETRY_AFTER_MAX_MS	INT64CONST(3600000)

typedef enum OnsideResponseClass
{
	/* 204, the one acknowledgement that the API documents */
	ONSIDE_RESPONSE_DELIVERED,
	/* 400: the events, or one of them */
	ONSIDE_RESPONSE_REFUSED,
	/* 413: the body */
	ONSIDE_RESPONSE_TOO_LARGE,
	/* 429, and 503 with a Retry-After */
	ONSIDE_RESPONSE_THROTTLED,
	/* 401, 403: the credentials */
	ONSIDE_RESPONSE_UNAUTHORIZED,
	/* what answers is not the API, or cannot be trusted, or a proxy refuses */
	ONSIDE_RESPONSE_MISCONFIGURED,
	/* a failure that passes: 408, 425, 5xx, no whole answer */
	ONSIDE_RESPONSE_RETRY
} OnsideResponseClass;

extern OnsideResponseClass onside_response_classify(const OnsideAnswer *answer);

/* Does the API document this status?  See api.h. */
extern bool onside_response_is_documented(int status);

#endif							/* ONSIDE_RESPONSE_H */
