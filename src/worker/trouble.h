/*-------------------------------------------------------------------------
 *
 * trouble.h
 *		What is wrong with the endpoint, in words for a person.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_TROUBLE_H
#define ONSIDE_TROUBLE_H

#include "postgres.h"

#include "worker/state.h"

/* Puts state, reason and time of the next attempt into OnsideSendingStatus. */
extern void onside_trouble_explain(OnsideWorker *worker,
								   OnsideTrouble trouble);

#endif							/* ONSIDE_TROUBLE_H */
