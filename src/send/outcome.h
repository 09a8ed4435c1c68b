/*-------------------------------------------------------------------------
 *
 * outcome.h
 *		What an answer means for what was sent, and for what comes next.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_OUTCOME_H
#define ONSIDE_OUTCOME_H

#include "postgres.h"

#include "send/sender_state.h"

/* The request was accepted: everything in it is delivered. */
extern void onside_outcome_accepted(OnsideSender *sender,
									OnsideInFlight *request,
									const OnsideAnswer *answer, int64 now);

/* The answer asks to wait; it says nothing about what was sent. */
extern void onside_outcome_throttled(OnsideSender *sender,
									 OnsideInFlight *request,
									 const OnsideAnswer *answer, int64 now);

/* The request failed: its piece is halved, waits, or is given up. */
extern void onside_outcome_failed(OnsideSender *sender,
								  OnsideInFlight *request,
								  OnsideResponseClass class,
								  const OnsideAnswer *answer, int64 now);

#endif							/* ONSIDE_OUTCOME_H */
