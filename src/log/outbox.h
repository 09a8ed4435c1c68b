/*-------------------------------------------------------------------------
 *
 * outbox.h
 *		Appending to the log, and the event in a row of it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_OUTBOX_H
#define ONSIDE_OUTBOX_H

#include "executor/tuptable.h"

#include "log/event.h"

/* From _PG_init. */
extern void onside_outbox_init(void);

/*
 * Reads the event in a row of a segment.  Text and payload point into the slot
 * if they can.
 */
extern void onside_outbox_read_event(TupleTableSlot *slot, OnsideEvent *event);

/*
 * Sets an event's columns in a row of a segment, of aside or of dead_letter,
 * which begin with the same columns.  Fields that the event lacks become NULL.
 */
extern void onside_outbox_set_event(TupleTableSlot *slot,
									const OnsideEvent *event);

/* When the event in a row of a segment or of aside was recorded. */
extern TimestampTz onside_outbox_recorded_at(TupleTableSlot *slot);

/* Makes an event's fields copies in the current memory context. */
extern void onside_outbox_copy_event(OnsideEvent *event);

/*
 * Appends events that onside_event_check has passed, within the current
 * transaction: begin, any number of events, end.  Errors are raised.
 */
typedef struct OnsideAppend OnsideAppend;

extern OnsideAppend *onside_append_begin(void);
extern void onside_append(OnsideAppend *append, const OnsideEvent *event);
extern void onside_append_end(OnsideAppend *append);

#endif							/* ONSIDE_OUTBOX_H */
