/*-------------------------------------------------------------------------
 *
 * reader.h
 *		From the log, and where else events are, into batches.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_READER_H
#define ONSIDE_READER_H

#include "postgres.h"

#include "worker/state.h"

/* Starts reading behind what is settled. */
extern void onside_reader_init(OnsideWorker *worker,
							   const OnsideCursor *settled);

/* There may be new events. */
extern void onside_reader_wake(OnsideWorker *worker);

/* May there be any to read, or that were read and not sent? */
extern bool onside_reader_has_some(OnsideWorker *worker);

/*
 * The next events of the log in a sealed batch, which is the caller's; NULL if
 * there are none, or if only a full batch is wanted and they do not fill it, or
 * have not lingered long enough: then they wait here.
 */
extern OnsideBatch *onside_reader_oldest(OnsideWorker *worker, int max_events,
										 int max_bytes, bool full);

/*
 * What onside_reader_oldest has returned, or nothing, has been sent; the last
 * event that the sender knows of is this one.  To be told after each call.
 */
extern void onside_reader_passed(OnsideWorker *worker, int64 last_seq);

/* The last events of the log, likewise; reading in order passes over them. */
extern OnsideBatch *onside_reader_newest(OnsideWorker *worker, int max_events,
										 int max_bytes);

/*
 * The bodies of events that are known by their places; gone[i] says which are
 * not there any more.  NULL if none is, or with *failed if they cannot be read.
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

/* Somebody has deleted events: what was read and not sent is read again. */
extern void onside_reader_start_over(OnsideWorker *worker);

/*
 * How many more events would fill the batch that is being read (or would, if it
 * is to have so many).
 */
extern int	onside_reader_missing(OnsideWorker *worker, int max_events,
								  int max_bytes);

/*
 * Was the event at this place, behind the reading cursor, taken out of turn when
 * reader.takes was "until" or less?
 */
extern bool onside_reader_took(OnsideWorker *worker, const OnsidePosition *pos,
							   int64 until);

/* How many events have been read and not sent. */
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
