/*-------------------------------------------------------------------------
 *
 * world.h
 *		A simulated shop, log, network and API around a sender.
 *
 *-------------------------------------------------------------------------
 */
#ifndef WORLD_H
#define WORLD_H

#include "day.h"

/* What a day came to. */
typedef struct Outcome
{
	const char *broken;			/* the promise that was broken, or NULL */
	int64		requests;
	int64		failed;
	int			events;
	int64		p99;			/* of the healthy: commit to acceptance */
	int64		slowest;
	int64		last_accepted;	/* of the healthy that the day itself brought */
	int			dead;			/* at the end */
	int			healthy_dead;	/* healthy ones that ever were */
	int64		recovered;		/* first acceptance after the last outage, from
								 * its end */
	int64		connections;
} Outcome;

/* Lives through a day.  With trace, tells it on standard output. */
extern void world_run(const Day *day, bool trace, Outcome *outcome);

#endif							/* WORLD_H */
