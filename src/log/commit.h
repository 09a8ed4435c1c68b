/*-------------------------------------------------------------------------
 *
 * commit.h
 *		What a backend does once its transaction has committed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_COMMIT_H
#define ONSIDE_COMMIT_H

/* Registers the transaction callbacks; once, from _PG_init. */
extern void onside_commit_init(void);

/*
 * Counts one more event in the current subtransaction.  Returns the event's
 * number within its top-level transaction, from 1 on without a gap.
 */
extern int64 onside_commit_next_id(void);

/*
 * Adds n to the events that this command commits: they are of a transaction
 * that was prepared.  A negative n takes away events that were counted before.
 */
extern void onside_commit_count_prepared(int64 n);

/* At commit, wake this database's worker with these ONSIDE_WAKE_* bits. */
extern void onside_commit_wake(uint32 why);

/* At commit, have a worker started for this database. */
extern void onside_commit_want_worker(void);

/*
 * At commit, have the launcher look at the list of databases.  "forget" as in
 * onside_launcher_wake().
 */
extern void onside_commit_wake_launcher(bool forget);

#endif							/* ONSIDE_COMMIT_H */
