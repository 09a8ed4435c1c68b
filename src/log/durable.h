/*-------------------------------------------------------------------------
 *
 * durable.h
 *		Is a transaction's commit on disk, and was it rolled back?
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_DURABLE_H
#define ONSIDE_DURABLE_H

#include "access/transam.h"

/*
 * Makes the commit of a transaction durable, whatever synchronous_commit was.
 */
extern void onside_flush_commit(FullTransactionId xid);

/*
 * Is it known that a transaction, which has ended, was rolled back?  False for
 * one so old that the server has forgotten.
 */
extern bool onside_was_rolled_back(FullTransactionId xid);

#endif							/* ONSIDE_DURABLE_H */
