/*-------------------------------------------------------------------------
 *
 * delivery.h
 *		What of delivery survives a restart: the tables delivery_cursor and
 *		control.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_DELIVERY_H
#define ONSIDE_DELIVERY_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/snapshot.h"

#include "log/shmem.h"
#include "log/tables.h"
#include "log/window.h"

typedef struct OnsideDelivery
{
	OnsideCursor settled;
	int			segment;		/* of the outbox, that is written to */
	TimestampTz begun_at[ONSIDE_SEGMENTS];	/* since when each has events; or 0 */
	TimestampTz left_at[ONSIDE_SEGMENTS];	/* when writing left each; or 0 */
	int64		delivered;		/* events, cumulative */
	int64		dead_lettered;
	int64		requests;		/* HTTP requests, cumulative */
	int64		retries;
	int			refused_in_row;	/* see OnsideSender */
	TimestampTz trouble_since;	/* nothing was accepted since; or 0 */
	TimestampTz not_before;		/* a Retry-After; 0 for none */
	FullTransactionId written_by;	/* the transaction that wrote the row */
} OnsideDelivery;

/*
 * Reads the one row, as the snapshot sees it (if NULL, the active snapshot).
 * *delivery must be zeroed or hold what was loaded before, which is released.
 * If the row is missing, or this server's worker has not written it, *delivery
 * says that nothing is settled, and *problem says what is wrong with the row.
 * Otherwise *problem is NULL.  No privilege is checked.  Needs a transaction.
 */
extern void onside_delivery_load(OnsideDelivery *delivery, Snapshot snapshot,
								 const char **problem);

/*
 * Replaces the row, whatever it held, within the current transaction.  The
 * worker alone calls this.
 */
extern void onside_delivery_store(OnsideDelivery *delivery);

/*
 * Transaction "xid" has ended, and has replaced a version of the row.  Does a
 * snapshot of any session still need that version?
 */
extern bool onside_delivery_is_held(TransactionId xid);

/*
 * Is sending paused in this database, and why (NULL if no reason was given)?
 * Reads with the active snapshot.  *problem as for onside_delivery_load().
 */
extern bool onside_control_paused(char **reason, const char **problem);

/* Pauses or resumes, within the current transaction.  reason may be NULL. */
extern void onside_control_set(bool paused, text *reason);

#endif							/* ONSIDE_DELIVERY_H */
