/*-------------------------------------------------------------------------
 *
 * crash_guard.h
 *		A process of ours that crashes does not do so in a loop.
 *
 * A process is named by its database's OID; the launcher is InvalidOid.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_CRASH_GUARD_H
#define ONSIDE_CRASH_GUARD_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "log/position.h"

/* What a process does, in the order of step_names in crash_guard.c. */
typedef enum OnsideStep
{
	ONSIDE_STEP_STARTING,
	ONSIDE_STEP_WAITING,
	ONSIDE_STEP_READING,
	ONSIDE_STEP_SENDING,
	ONSIDE_STEP_BURYING,
	ONSIDE_STEP_EMPTYING,
	ONSIDE_STEP_WRITING,
	ONSIDE_STEP_SETTING_ASIDE,
	ONSIDE_STEP_READING_ASIDE,
	ONSIDE_STEP_READING_DEAD_LETTERS,
	ONSIDE_STEP_COUNTING,
	ONSIDE_STEP_LOOKING,
} OnsideStep;

/*
 * For the process itself.  It has begun; it now does this, at this place of
 * the log (or NULL); it is at this place, and goes on doing what it does; it
 * ends in an orderly way.
 */
extern void onside_crash_guard_begin(Oid process);
extern void onside_crash_guard_step(OnsideStep step,
									const OnsidePosition *pos);
extern void onside_crash_guard_at(const OnsidePosition *pos);
extern void onside_crash_guard_end(void);

/*
 * For who starts the process, while it does not run.  Has its predecessor
 * crashed?  Each crash is told once.
 */
extern bool onside_crash_guard_look(Oid process);

/* Writes the last crash into the server's log; "whose" begins the message. */
extern void onside_crash_guard_log(Oid process, const char *whose);

/* For how long the process must not be started, in ms; mostly 0. */
extern long onside_crash_guard_wait(Oid process);

/* Why this database's worker, or the launcher, must not run now; or NULL. */
extern char *onside_crash_guard_reason(void);

/* resume(): ends these waits.  Cannot fail. */
extern void onside_crash_guard_release(void);

/* Removes what is kept about databases that are not among these. */
extern void onside_crash_guard_sweep(List *databases);

#endif							/* ONSIDE_CRASH_GUARD_H */
