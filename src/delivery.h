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

#include "window.h"

typedef struct OnsideDelivery
{
	OnsideCursor settled;
	int			segment;		/* of the outbox, that is written to */
	int64		delivered;		/* events, cumulative */
	int64		dead_lettered;
	int64		requests;		/* HTTP requests, cumulative */
	int64		retries;
	TimestampTz not_before;		/* a Retry-After; 0 for none */
} OnsideDelivery;

/*
 * Reads the one row, as the snapshot sees it (the active one if NULL).  No
 * privilege is checked.  Needs a transaction.
 */
extern void onside_delivery_load(OnsideDelivery *delivery, Snapshot snapshot);

/* Is the row there, as the active snapshot sees it? */
extern bool onside_delivery_exists(void);

/* Writes it, within the current transaction.  For the worker alone. */
extern void onside_delivery_store(const OnsideDelivery *delivery);

/*
 * Does somebody's snapshot keep the version of the row that this transaction,
 * long since over, has replaced?
 */
extern bool onside_delivery_is_held(TransactionId xid);

/*
 * Is sending paused in this database, and why (NULL if no reason was given)?
 * Reads with the active snapshot.
 */
extern bool onside_control_paused(char **reason);

#endif							/* ONSIDE_DELIVERY_H */
