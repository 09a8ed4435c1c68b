/*-------------------------------------------------------------------------
 *
 * txn.h
 *		The worker's transactions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_TXN_H
#define ONSIDE_TXN_H

#include "postgres.h"

#include "shmem.h"

/* Whose transactions these are; once. */
extern void onside_txn_init(OnsideSlot *slot);

/*
 * Starts a transaction with an active snapshot.  Ends the process, leaving the
 * slot as absent, if the extension is not (or no longer) in this database.
 */
extern void onside_txn_begin(void);

/*
 * The same without waiting for whoever has locked the extension or one of its
 * tables: then it returns false, and there is no transaction.
 */
extern bool onside_txn_try_begin(void);

extern void onside_txn_commit(void);

#endif							/* ONSIDE_TXN_H */
