/*-------------------------------------------------------------------------
 *
 * process.h
 *		How the launcher and the workers are registered, connect and sleep.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_PROCESS_H
#define ONSIDE_PROCESS_H

#include "postgres.h"

#include "postmaster/bgworker.h"

/*
 * Fills in a background worker that runs this function of the library once
 * recovery is over.  Its name is the type, until the caller changes it.
 */
extern void onside_process_describe(BackgroundWorker *worker, const char *type,
									const char *function);

/*
 * Connects this background worker as the bootstrap superuser to a database, or
 * with InvalidOid to none, and makes sure that no setting can do it harm.
 */
extern void onside_process_connect(Oid database);

/*
 * Sleeps until the latch is set, or for "timeout" ms; then resets the latch and
 * serves interrupts.
 */
extern void onside_process_sleep(long timeout, uint32 wait_event);

#endif							/* ONSIDE_PROCESS_H */
