/*-------------------------------------------------------------------------
 *
 * response.h
 *	  What an answer of the API means, as values: status -> class, and
 *	  Retry-After -> milliseconds.
 *
 * Pure: no backend function, no clock, no allocation, no locale.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_RESPONSE_H
#define ONSIDE_RESPONSE_H

/* The longest wait that a Retry-After can ask for: one hour. */
#define ONSIDE_RETRY_AFTER_MAX_MS	INT64CONST(3600000)

/*
 * What has to happen next, which is all that the sender wants to know of an
 * answer.
 *
 * DELIVERED			204, the one acknowledgement that the API documents
 * NOT_ACKNOWLEDGED		any other 2xx: something answers, but not the API (a
 *						captive portal, a wrong address); settles nothing
 * REFUSED				400: the events, or one of them; see bisect.h
 * TOO_LARGE			413: the body; see OnsideBodyLimit in backoff.h
 * THROTTLED			429, and 503 with a Retry-After
 * UNAUTHORIZED			401, 403: the credentials
 * MISCONFIGURED		3xx (never followed) and every other 4xx
 * RETRY				408, 425, every other 5xx, no whole answer, and a status
 *						that cannot be a final one (1xx, outside 200-599)
 */
typedef enum OnsideResponseClass
{
	ONSIDE_RESPONSE_DELIVERED,
	ONSIDE_RESPONSE_NOT_ACKNOWLEDGED,
	ONSIDE_RESPONSE_REFUSED,
	ONSIDE_RESPONSE_TOO_LARGE,
	ONSIDE_RESPONSE_THROTTLED,
	ONSIDE_RESPONSE_UNAUTHORIZED,
	ONSIDE_RESPONSE_MISCONFIGURED,
	ONSIDE_RESPONSE_RETRY
} OnsideResponseClass;

#define ONSIDE_RESPONSE_NUM_CLASSES	(ONSIDE_RESPONSE_RETRY + 1)

/*
 * The class of an answer.  transport_failed: no complete answer came (refused,
 * reset, timed out, TLS, truncated, not HTTP); http_status is then ignored, a
 * status line without the end of its answer acknowledges nothing.
 * has_retry_after: the answer carries a usable Retry-After, that is
 * onside_retry_after_ms() is above 0; it matters for 503 alone.
 */
extern OnsideResponseClass onside_response_classify(int http_status,
													bool transport_failed,
													bool has_retry_after);

/* A constant lower-case word for the class, as statistics and logs show it. */
extern const char *onside_response_class_name(OnsideResponseClass cls);

/*
 * The wait that a Retry-After asks for, in milliseconds: 0 for none (missing,
 * garbage, negative, in the past), at most ONSIDE_RETRY_AFTER_MAX_MS.
 *
 * retry_after, date: the values of the two header fields, each with its
 * length; NULL where the field is missing.  They come from the peer: any byte
 * may be in them, they need no terminating zero and none is looked for.
 * now_epoch_ms: our own clock, milliseconds since 1970-01-01 UTC; an HTTP-date
 * is measured against it only if the answer has no valid Date, because the
 * difference of two times by the peer's clock needs no agreement of clocks.
 *
 * RFC 9110, 10.2.3 (delta-seconds or HTTP-date) and 5.6.7 (the three forms).
 */
extern int64 onside_retry_after_ms(const char *retry_after,
								   size_t retry_after_len,
								   const char *date, size_t date_len,
								   int64 now_epoch_ms);

/*
 * Reads an HTTP-date (IMF-fixdate, RFC 850 or asctime form), white space
 * around it allowed, into seconds since 1970-01-01 UTC; false if it is none.
 * now_epoch_ms settles the century of a two-digit year: the year that is at
 * most 50 years ahead.
 */
extern bool onside_http_date_parse(const char *value, size_t len,
								   int64 now_epoch_ms, int64 *epoch_s);

#endif							/* ONSIDE_RESPONSE_H */
