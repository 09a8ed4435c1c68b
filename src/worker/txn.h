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
 * Runs body(worker, arg) in a transaction with an active snapshot and what it uses
 * (see locks.h) locked, and commits.  False if it could not: it rests, or a lock was
 * not free at once, or there was an error, after which everything is rolled back,
 * and body has to be such that it can be run again.  Ends the process, leaving the
 * slot as absent, if the extension is not (or no longer) in this database.
 *
 * The current memory context of body is the transaction's.
 */
extern bool onside_txn_run(OnsideWorker *worker, OnsideBrake *brake, int uses,
						   OnsideTxnBody body, void *arg);

/* The same, but goes on trying, and says meanwhile in "status" what is wrong. */
extern void onside_txn_insist(OnsideWorker *worker, OnsideBrake *brake,
							  int uses, OnsideTxnBody body, void *arg);

/* Ends this process, which nothing ails: a successor is to go on, or nobody. */
pg_noreturn extern void onside_txn_leave_orderly(OnsideWorker *worker);

/* A kind of work, in the words of "could not ..."; at first it does not rest. */
extern void onside_brake_init(OnsideBrake *brake, const char *work,
							  OnsideStep step);

/* The work is done, by this or in another way: it has no problem (any more). */
extern void onside_brake_release(OnsideBrake *brake);

/* Somebody may have removed what is in the way: all that rests is tried now. */
extern void onside_txn_hurry(OnsideWorker *worker);

/*
 * What is wrong, for status; NULL if nothing is.  Work that was not tried again for a
 * while after it could have been has gone away, and its problem with it.
 */
extern const char *onside_brake_problem(const OnsideBrake *brake);

/* Milliseconds until the work may be tried again; -1 if it does not rest. */
extern long onside_brake_timeout(OnsideWorker *worker,
								 const OnsideBrake *brake);

#endif							/* ONSIDE_TXN_H */
