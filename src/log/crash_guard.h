/*-------------------------------------------------------------------------
 *
 * crash_guard.h
 *		No process of ours crashes in a loop.
 *
 * A process is named by its database's OID; the launcher is InvalidOid.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_CRASH_GUARD_H
#define ONSIDE_CRASH_GUARD_H

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
 * The process itself calls these: when it begins; when it takes a step, at
 * this place of the log (or NULL); when it comes to another place within a
 * step; and before an orderly end.
 */
extern void onside_crash_guard_begin(Oid process);
extern void onside_crash_guard_step(OnsideStep step,
									const OnsidePosition *pos);
extern void onside_crash_guard_at(const OnsidePosition *pos);
extern void onside_crash_guard_end(void);

/*
 * For whoever starts the process, while it does not run: has its predecessor
 * crashed?  True once for each crash.
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

/* Removes the files of databases that are not among these. */
extern void onside_crash_guard_sweep(List *databases);

#endif							/* ONSIDE_CRASH_GUARD_H */
