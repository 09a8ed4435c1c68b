/*-------------------------------------------------------------------------
 *
 * answer.h
 *		How a request ended.
 *
 * What http.c (or a simulated network) tells and sender.c judges by.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_ANSWER_H
#define ONSIDE_ANSWER_H

#include "postgres.h"

/* Most that is kept of what was said in an answer, in bytes. */
#define ONSIDE_ANSWER_WORDS_MAX		1024

typedef enum OnsideAnswerKind
{
	ONSIDE_ANSWER_COMPLETE,		/* an HTTP answer of the endpoint */
	ONSIDE_ANSWER_NO_CONNECTION,	/* none could be made, or it broke */
	ONSIDE_ANSWER_TIMEOUT,
	ONSIDE_ANSWER_MALFORMED,	/* what came is no HTTP, or has no end */
	ONSIDE_ANSWER_NOT_TRUSTED,	/* the certificate does not verify */
	ONSIDE_ANSWER_PROXY_REFUSED /* 407, or the proxy refused CONNECT: status is
								 * the proxy's */
} OnsideAnswerKind;

typedef struct OnsideAnswer
{
	OnsideAnswerKind kind;
	int			status;			/* HTTP status; 0 if none came */
	int64		retry_after_ms; /* what Retry-After asks for, at most an hour;
								 * -1 for none that can be read */
	int64		duration;		/* us, by a clock that never goes back */
	int			connections;	/* made for it */
	int			repeats;		/* requests that libcurl made in addition */
	char		words[ONSIDE_ANSWER_WORDS_MAX + 1]; /* the body's, or what the
													 * transport says: fit for
													 * a text column, no
													 * secrets */
} OnsideAnswer;

#endif							/* ONSIDE_ANSWER_H */
