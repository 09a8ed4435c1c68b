/*-------------------------------------------------------------------------
 *
 * http_probe.h
 *		Can the endpoint be reached from here?
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_HTTP_PROBE_H
#define ONSIDE_HTTP_PROBE_H

#include "postgres.h"

#include "send/http.h"

/* How far a connection came; each step includes those before it. */
typedef enum OnsideProbeStep
{
	ONSIDE_PROBE_NONE,
	ONSIDE_PROBE_RESOLVED,		/* the name has an address */
	ONSIDE_PROBE_CONNECTED,		/* somebody listens there */
	ONSIDE_PROBE_TRUSTED,		/* TLS: it is who it should be */
} OnsideProbeStep;

typedef struct OnsideProbe
{
	OnsideProbeStep reached;
	bool		through_proxy;
	bool		bad_ca_file;	/* that is why it came no further */
	char		address[64];	/* of whom it connected to, or "" */
	int			duration;		/* ms */
	char		error[256];		/* of the step that failed, or "" */
} OnsideProbe;

/*
 * Connects to the endpoint as the worker would, with TLS if it is https, and
 * disconnects: no request is made, no credentials but the proxy's are sent.  Takes timeout ms
 * at most, and serves interrupts.  For any process but the postmaster; errors
 * are raised with ereport.
 */
extern void onside_http_probe(const OnsideHttpConfig *config, int timeout,
							  OnsideProbe *probe);

#endif							/* ONSIDE_HTTP_PROBE_H */
