/*-------------------------------------------------------------------------
 *
 * txn.h
 *		The worker's transactions, and what it does when one fails.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_TXN_H
#define ONSIDE_TXN_H

#include "postgres.h"

#include "compat.h"
#include "log/locks.h"
#include "worker/state.h"

/* What is done in a transaction. */
typedef void (*OnsideTxnBody) (OnsideWorker *worker, void *arg);

/*
 * Runs body(worker, arg) in a transaction, with an active snapshot and with
 * locks on what it uses (see locks.h), and commits.  Returns false if the work
 * rests, if a lock is not free at once, or after an error.  Then everything is
 * rolled back, and the caller runs the body again some time.  Ends the
 * process, and leaves the slot as absent, if the extension is not (or no
 * longer) in this database.
 *
 * The current memory context of body is the transaction's.
 */
extern bool onside_txn_run(OnsideWorker *worker, OnsideBrake *brake, int uses,
						   OnsideTxnBody body, void *arg);

/*
 * The same, but tries until it is done; "status" says what is wrong meanwhile.
 */
extern void onside_txn_insist(OnsideWorker *worker, OnsideBrake *brake,
							  int uses, OnsideTxnBody body, void *arg);

/*
 * Ends this process, in which nothing has failed.  If the database still wants
 * a worker, a successor starts at once.
 */
pg_noreturn extern void onside_txn_leave_orderly(OnsideWorker *worker);

/* Names a kind of work, in the words after "could not"; it does not rest. */
extern void onside_brake_init(OnsideBrake *brake, const char *work,
							  OnsideStep step);

/* The work has been done, here or elsewhere, and has no problem any more. */
extern void onside_brake_release(OnsideBrake *brake);

/*
 * A person may have removed an obstacle: all work that rests may be tried now.
 */
extern void onside_txn_hurry(OnsideWorker *worker);

/*
 * What is wrong with the work, for "status", or NULL.  Work that has not been
 * tried again for a while, although it could have been, has no problem any
 * more.
 */
extern const char *onside_brake_problem(const OnsideBrake *brake);

/* Milliseconds until the work may be tried again; -1 if it does not rest. */
extern long onside_brake_timeout(OnsideWorker *worker,
								 const OnsideBrake *brake);

#endif							/* ONSIDE_TXN_H */
