/*-------------------------------------------------------------------------
 *
 * reader.h
 *		Reads events from the log, aside and dead_letter into batches.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_READER_H
#define ONSIDE_READER_H

#include "postgres.h"

#include "worker/state.h"

/* Once: reading begins where the settled cursor stands. */
extern void onside_reader_init(OnsideWorker *worker,
							   const OnsideCursor *settled);

/* There may be new events. */
extern void onside_reader_wake(OnsideWorker *worker);

/* May there be events to read, or events that were read and not handed over? */
extern bool onside_reader_has_some(OnsideWorker *worker);

/*
 * The next events of the log in a sealed batch, which is the caller's.  NULL
 * if there are none.  NULL also if they do not fill the batch, and only a full
 * one is wanted or they have not lingered long enough: then they wait here.
 */
extern OnsideBatch *onside_reader_oldest(OnsideWorker *worker, int max_events,
										 int max_bytes, bool full);

/*
 * After each onside_reader_oldest(): what it has returned, if anything, has
 * been sent.  last_seq is the seq of the last event that the sender knows.
 */
extern void onside_reader_passed(OnsideWorker *worker, int64 last_seq);

/*
 * The last events of the log in a sealed batch, which is the caller's; NULL if
 * there are none.  Reading in order will pass over them.
 */
extern OnsideBatch *onside_reader_newest(OnsideWorker *worker, int max_events,
										 int max_bytes);

/*
 * Reads these events again, into a sealed batch, which is the caller's;
 * gone[i] says which are not there any more.  NULL if none is there.  NULL,
 * and *failed, if they cannot be read now.
 */
extern OnsideBatch *onside_reader_again(OnsideWorker *worker,
										const OnsideItem *items, int n,
										bool *gone, bool *failed);

/*
 * Which of these are not there any more?  In a transaction that uses log and
 * aside.
 */
extern void onside_reader_find(OnsideWorker *worker, const OnsideItem *items,
							   int n, bool *gone);

/*
 * With all events of the log up to this seq settled, how far has the cursor
 * come?  False if not further than was forgotten: forget it when it is noted.
 * Forgetting returns true if the log has a row between the cursor that was
 * forgotten before and this one; false if only a newer snapshot was taken.
 */
extern bool onside_reader_settled(OnsideWorker *worker, int64 seq,
								  OnsideCursor *settled);
extern bool onside_reader_forget(OnsideWorker *worker, int64 seq);

/* Gives up what was read and not handed over: it is read again. */
extern void onside_reader_start_over(OnsideWorker *worker);

/* How many more events would fill the batch that is being read, about. */
extern int	onside_reader_missing(OnsideWorker *worker, int max_events,
								  int max_bytes);

/*
 * Was the event at this place, behind the reading cursor, taken out of turn
 * when reader.takes was "until" or less?
 */
extern bool onside_reader_took(OnsideWorker *worker, const OnsidePosition *pos,
							   int64 until);

/* How many events have been read and not handed over. */
extern int	onside_reader_waiting(OnsideWorker *worker);

/*
 * When the oldest event that was not handed over was recorded; 0 for none.
 * Looks into the log if need be.
 */
extern TimestampTz onside_reader_oldest_recorded(OnsideWorker *worker);

/*
 * Milliseconds until a batch has lingered long enough, or reading is tried
 * again; -1 if that takes something else.
 */
extern long onside_reader_timeout(OnsideWorker *worker);

/* Does reading rest after an error? */
extern bool onside_reader_rests(OnsideWorker *worker);

#endif							/* ONSIDE_READER_H */
