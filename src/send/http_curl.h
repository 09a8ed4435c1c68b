/*-------------------------------------------------------------------------
 *
 * http_curl.h
 *		What http.c and http_probe.c share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_HTTP_CURL_H
#define ONSIDE_HTTP_CURL_H

#include "postgres.h"

#include <curl/curl.h>

#include "send/http.h"

/* Around every call that can start a thread; see http.c. */
extern void onside_http_block_signals(void);
extern void onside_http_unblock_signals(void);

/* What is said where *kept_in is set. */
#define ONSIDE_HTTP_KEPT_IN \
	"refused to connect without TLS to an address that is not loopback: check the setting proxy, and what localhost resolves to"

/*
 * Everything that decides to whom a connection is made, and whom it trusts.
 * *kept_in is set if one is refused because it would leave this machine
 * without TLS.  Returns false if there was no memory for an option without
 * which it would go elsewhere, by another proxy, or to whom we do not trust.
 */
extern bool onside_http_set_transport(CURL *easy,
									  const OnsideHttpConfig *config,
									  bool *kept_in);

/* Makes what came from outside fit for a log line and a text column. */
extern void onside_http_make_printable(char *str);

#endif							/* ONSIDE_HTTP_CURL_H */
