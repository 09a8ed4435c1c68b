/*-------------------------------------------------------------------------
 *
 * purchase.h
 *		A purchase's payload, and strings in any payload.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_PURCHASE_H
#define ONSIDE_PURCHASE_H

#include "postgres.h"

#include "fmgr.h"
#include "utils/jsonb.h"

#include "compat.h"

/*
 * Makes the payload from the arguments that track_purchase() and purchase()
 * have in common: 1 is the amount, 2 the currency, 5 extra.  Raises 22004 and
 * 22023.
 */
extern Jsonb *onside_purchase_payload(FunctionCallInfo fcinfo);

/* Adds a key, a value or an element, as the token says; a C string. */
extern void onside_push_string(OnsideJsonbBuilder *builder,
							   JsonbIteratorToken token, const char *str);

#endif							/* ONSIDE_PURCHASE_H */
