/*-------------------------------------------------------------------------
 *
 * probe.h
 *		How far a connection to the endpoint came, for doctor().
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_PROBE_H
#define ONSIDE_PROBE_H

#include "postgres.h"

/* How far a connection came; each step includes those before it. */
typedef enum OnsideProbeStep
{
	ONSIDE_PROBE_UNTRIED,		/* no connection was tried */
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

struct OnsideRequest;			/* request.h */

/*
 * Says how far a connection without a request came, to whom, and what went
 * wrong.  request.c has judged it.
 */
extern void onside_probe_report(const struct OnsideRequest *request,
								OnsideProbe *probe);

#endif							/* ONSIDE_PROBE_H */
