/*-------------------------------------------------------------------------
 *
 * verdict.h
 *		Is it the event that does not pass?
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_VERDICT_H
#define ONSIDE_VERDICT_H

#include "postgres.h"

#include "send/sender_state.h"

/* Two refusals count as two if they are so far apart. */
#define ONSIDE_REFUSED_TWICE	(2 * USECS_PER_SEC)
/* So many events are given up while nothing is accepted. */
#define ONSIDE_REFUSED_IN_ROW	10

/* The last failure counts if something was accepted that was sent after it. */
extern void onside_verdict_count_failure(OnsideSender *sender,
										 OnsidePiece *piece);

/* Has a lone event failed often enough to be given up? */
extern bool onside_verdict_is_condemned(const OnsideSender *sender,
										const OnsidePiece *piece, int64 now);

/* A lone event was refused by this request; is it to be given up? */
extern bool onside_verdict_is_refused(OnsideSender *sender, OnsidePiece *piece,
									  const OnsideInFlight *request,
									  int64 now);

#endif							/* ONSIDE_VERDICT_H */
