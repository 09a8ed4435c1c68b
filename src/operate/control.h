/*-------------------------------------------------------------------------
 *
 * control.h
 *		pause, resume and flush.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_CONTROL_H
#define ONSIDE_CONTROL_H

#include "log/delivery.h"
#include "log/window.h"

/* Where events are counted by reading tables, no more than this are. */
#define ONSIDE_MAX_COUNTED	10000

/*
 * If everything is delivered but the cursor may not say so yet, has the worker
 * write it, and waits for that for a moment.
 */
extern void onside_write_settled(void);

/*
 * Sets *pending to the events that are pending according to the tables, counted
 * up to one more than ONSIDE_MAX_COUNTED.  If it fails at the table aside,
 * *pending has those of the log.  Loads what delivery_cursor says into
 * *delivery, but for the cursor.  Needs an active snapshot; the caller sees to
 * the locks.
 */
extern void onside_count_pending(OnsideDelivery *delivery,
								 OnsidePending *pending);

#endif							/* ONSIDE_CONTROL_H */
