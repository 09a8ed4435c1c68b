/*-------------------------------------------------------------------------
 *
 * response.c
 *		What an answer means.
 *
 * response.h says what each class is.  Pure: no backend function, no clock, no
 * allocation.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "api.h"
#include "send/response.h"

/*
 * A status counts only with a complete answer of the endpoint: a status line
 * without the end of its answer acknowledges nothing, and a proxy's says
 * nothing about our events.
 */
OnsideResponseClass
onside_response_classify(const OnsideAnswer *answer)
{
	if (answer->kind == ONSIDE_ANSWER_NOT_TRUSTED ||
		answer->kind == ONSIDE_ANSWER_PROXY_REFUSED)
		return ONSIDE_RESPONSE_MISCONFIGURED;
	if (answer->kind != ONSIDE_ANSWER_COMPLETE)
		return ONSIDE_RESPONSE_RETRY;

	/* The endpoint's own word.  api.h has what the API documents. */
	switch (answer->status)
	{
		case ONSIDE_API_ACCEPTED:
			return ONSIDE_RESPONSE_DELIVERED;
		case ONSIDE_API_REFUSED:
			return ONSIDE_RESPONSE_REFUSED;
		case 401:
		case 403:
			return ONSIDE_RESPONSE_UNAUTHORIZED;
		case 408:
		case 425:
			return ONSIDE_RESPONSE_RETRY;
		case ONSIDE_API_TOO_LARGE:
			return ONSIDE_RESPONSE_TOO_LARGE;
		case ONSIDE_API_THROTTLED:
			return ONSIDE_RESPONSE_THROTTLED;
		case 503:
			/* down for a known time asks to wait; else it is a failure */
			return answer->retry_after_ms >= 0 ? ONSIDE_RESPONSE_THROTTLED :
				ONSIDE_RESPONSE_RETRY;
	}

	/* 1xx is no final status, and what is above 599 none at all. */
	return answer->status >= 200 && answer->status <= 499 ?
		ONSIDE_RESPONSE_MISCONFIGURED : ONSIDE_RESPONSE_RETRY;
}

bool
onside_response_is_documented(int status)
{
	return status == ONSIDE_API_ACCEPTED || status == ONSIDE_API_REFUSED ||
		status == ONSIDE_API_TOO_LARGE || status == ONSIDE_API_THROTTLED;
}
