/*-------------------------------------------------------------------------
 *
 * publish.h
 *		Tells others how things stand.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_PUBLISH_H
#define ONSIDE_PUBLISH_H

#include "postgres.h"

#include "worker/state.h"

/* Once, before all else. */
extern void onside_publish_init(OnsideWorker *worker);

/* Tells shared memory, the log and pg_stat_activity how things stand. */
extern void onside_publish_status(OnsideWorker *worker);

/* The same while library and SQL objects do not belong together. */
extern void onside_publish_version_problem(OnsideWorker *worker,
										   const char *problem);

/* Milliseconds until the present trouble is logged; -1 for never. */
extern long onside_publish_timeout(OnsideWorker *worker);

#endif							/* ONSIDE_PUBLISH_H */
