/*-------------------------------------------------------------------------
 *
 * position.h
 *		An event's place in the log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_POSITION_H
#define ONSIDE_POSITION_H

#include "access/transam.h"

/* The transaction that recorded it, and its number within that transaction. */
typedef struct OnsidePosition
{
	FullTransactionId xid;
	int64		id;
} OnsidePosition;

#endif							/* ONSIDE_POSITION_H */
