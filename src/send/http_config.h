/*-------------------------------------------------------------------------
 *
 * http_config.h
 *		Where requests go, and how.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_HTTP_CONFIG_H
#define ONSIDE_HTTP_CONFIG_H

#include "postgres.h"

/* The strings must outlive the next onside_http_configure(). */
typedef struct OnsideHttpConfig
{
	const char *url;
	const char *credentials;	/* user:password */
	const char *ca_file;		/* "" for the system's */
	const char *proxy;			/* "" for none */
	const char *proxy_credentials;	/* user:password; NULL for none */
	int			connect_timeout;	/* ms */
} OnsideHttpConfig;

#endif							/* ONSIDE_HTTP_CONFIG_H */
