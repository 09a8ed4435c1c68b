/*-------------------------------------------------------------------------
 *
 * control.h
 *		pause, resume and flush.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_CONTROL_H
#define ONSIDE_CONTROL_H

/*
 * If everything is delivered but the cursor may not say so yet, has the worker
 * write it, and waits for that for a moment.
 */
extern void onside_write_settled(void);

#endif							/* ONSIDE_CONTROL_H */
