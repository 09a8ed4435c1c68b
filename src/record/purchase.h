/*-------------------------------------------------------------------------
 *
 * purchase.h
 *		A purchase's payload.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_PURCHASE_H
#define ONSIDE_PURCHASE_H

#include "postgres.h"

#include "fmgr.h"
#include "utils/jsonb.h"

/*
 * Makes the payload from the arguments that track_purchase() and purchase()
 * have in common: 1 is the amount, 2 the currency, 5 extra.  Raises 22004 and
 * 22023.
 */
extern Jsonb *onside_purchase_payload(FunctionCallInfo fcinfo);

#endif							/* ONSIDE_PURCHASE_H */
