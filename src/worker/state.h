/*-------------------------------------------------------------------------
 *
 * state.h
 *		What a worker is: all that it knows, in one struct.
 *
 * There is one OnsideWorker in the process.  worker.c makes it and hands it
 * down.  Each part belongs to the room that it is named after, which writes
 * it; the other rooms may read it.  Three rooms write parts that are not named
 * after them: fate.c and undecided.c (progress), and trouble.c
 * (sending.status).
 *
 * Only what "slot" points to is shared memory.  All the rest is lost when the
 * process ends, and the next worker makes it again from the tables and from the
 * slot.
 *
 * An int64 that ends in "_at" is a moment of onside_clock(), in microseconds; a
 * TimestampTz is a time of day.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_STATE_H
#define ONSIDE_STATE_H

#include "postgres.h"

#include "utils/hsearch.h"

#include "log/batch.h"
#include "log/counters.h"
#include "log/crash_guard.h"
#include "log/delivery.h"
#include "log/shmem.h"
#include "log/window.h"
#include "send/chances.h"
#include "send/http.h"
#include "send/review.h"
#include "send/sender.h"

/*
 * One kind of work of the worker, and whether it has a problem: a table that is
 * locked, a full disk.  Then the work rests for a while, longer each time.
 */
typedef struct OnsideBrake
{
	const char *work;			/* the words after "could not" */
	OnsideStep	step;			/* the same for crash_guard.c */
	char	   *problem;		/* why it rests; NULL if it does not */
	int			delay;			/* how long it rests; ms */
	int64		tried_at;		/* when it failed last */
	int64		logged_at;		/* when the log got a line about it last */
} OnsideBrake;

/* txn.c: transactions. */
typedef struct OnsideTxn
{
	Oid			extension;		/* ours; each transaction locks it first */
	Oid			cursor_table;	/* delivery_cursor; another OID means that the
								 * extension was created anew */
	int64		hurried_at;		/* see onside_txn_hurry() */
	bool		left_orderly;	/* see onside_txn_leave_orderly() */
} OnsideTxn;

/*
 * Once all events up to "seq" are settled, the log is settled up to "cursor".
 */
typedef struct OnsideMark
{
	int64		seq;
	OnsideCursor cursor;
	int64		rows_passed;	/* the reader's, at that cursor */
} OnsideMark;

/* If there are so many marks, every second one is given up. */
#define ONSIDE_MAX_MARKS		1024

/* reader.c: how far the log has been read. */
typedef struct OnsideReader
{
	OnsideCursor reading;		/* the log has been read up to here */
	OnsideCursor passed;		/* and handed to the sender up to here */
	int64		rows_read;		/* grows with each row of the log that is
								 * read, also if it is read again */
	int64		rows_passed;	/* "rows_read" at "passed" */
	int64		rows_settled;	/* "rows_read" at the cursor that was
								 * forgotten last */
	OnsideBatch *open_batch;	/* being filled, or NULL */
	bool		unread;			/* there may be events to read */
	uint64		read_recorded;	/* slot->recorded before the last read */
	TimestampTz peeked_oldest;	/* recorded_at of the next event, if it was
								 * looked at and not read; or 0 */
	int			average_bytes;	/* of an event in the last batch */
	OnsideMark	marks[ONSIDE_MAX_MARKS];
	int			nmarks;
	HTAB	   *early;			/* events taken out of turn; or NULL */
	int64		takes;			/* how often events were taken out of turn, or
								 * all of "early" was forgotten */
	int64		forgotten;		/* "takes" when "early" was forgotten last */
	OnsideBrake brake;
} OnsideReader;

/* A request in flight, and its body. */
typedef struct OnsideRequestBody
{
	int64		request;		/* 0 for none */
	OnsideBatch *batch;
	bool		suspect;		/* events have been deleted since it was sent */
} OnsideRequestBody;

/* How sending stands, for "status". */
typedef struct OnsideSendingStatus
{
	OnsideState state;			/* idle, sending or the trouble's */
	char		reason[ONSIDE_REASON_MAX];	/* "" for none */
	int			in_flight;
	int64		requests;		/* since the start of this process */
	int64		retries;
	TimestampTz last_success_at;
	TimestampTz last_error_at;
	char		last_error[ONSIDE_ERROR_MAX];
	TimestampTz next_attempt_at;	/* 0 if not waiting */
} OnsideSendingStatus;

/* sending.c: what is in flight. */
typedef struct OnsideSending
{
	OnsideRequestBody in_flight[ONSIDE_HTTP_MAX_REQUESTS];
	OnsideSendingStatus status;
	bool		unauthorized;	/* the API has not accepted the credentials */
	bool		suspect_ended;	/* a suspect request has ended */
	OnsideBrake checking;
} OnsideSending;

/* chance.c: second chances of dead letters. */
typedef struct OnsideChance
{
	OnsideChances chances;
	int			npicks;			/* picks so far: oldest, newest, random ... */
	OnsideBrake brake;
} OnsideChance;

/* progress.c and fate.c: what is settled, and how far that is written. */
typedef struct OnsideProgress
{
	OnsideDelivery delivery;	/* the row as it is, or is about to be */
	OnsideDelivery before;		/* the row that a predecessor has left */
	int64		settled_before; /* slot->status.settled when we started */

	bool		persist_due;	/* the row lacks something that was settled */
	int64		persisted_at;
	bool		snapshot_held;	/* old versions of the row are kept for
								 * somebody */
	TransactionId probe_xid;	/* wrote the row when we last checked that */
	int64		probed_at;
	int64		published;		/* events settled, as published last */

	int			written;		/* fates that this transaction carries out */
	int			burying_now;	/* dead letters that it makes */
	int64		buried;			/* dead letters that earlier ones have made */
	TimestampTz unwritten_since;	/* since when there are fates; or 0 */

	bool		maintenance_due;
	int64		maintained_at;
	const char *blocked;		/* see onside_segment_empty() */

	OnsideBrake writing;
	OnsideBrake burying;
	OnsideBrake maintaining;
	OnsideBrake checking;
} OnsideProgress;

/* How many fates, or events for aside, one transaction writes, at most. */
#define ONSIDE_WRITE_AT_ONCE	500

/* undecided.c: what leaves the log for aside, and comes back from there. */
typedef struct OnsideUndecided
{
	/* events that are about to leave, their items before, and their new ids */
	OnsideLeaving items[ONSIDE_WRITE_AT_ONCE];
	OnsideItem	was[ONSIDE_WRITE_AT_ONCE];
	pg_uuid_t	ids[ONSIDE_WRITE_AT_ONCE];
	int			n;
	OnsideBrake leaving;

	/* how far aside has been read; and may there be more? */
	TimestampTz recorded_at;
	pg_uuid_t	id;
	bool		more;
	OnsideBrake loading;
} OnsideUndecided;

/* backlog.c: how many events are pending. */
typedef struct OnsideBacklog
{
	bool		counting;
	bool		prepared;		/* the fields below are those of this count */
	OnsideCursor cursor;		/* the log has been counted up to here */
	int64		total;			/* events so far */
	int64		recorded;		/* slot->recorded when the present window of
								 * the log was opened */
	int64		settled;		/* events settled when the count began */
	int64		takes;			/* reader.takes when the count began */
	int64		counted_at;		/* when the end of the log was reached; or 0 */
	int			confirms;		/* how often more was found after that */
	TimestampTz aside_oldest;	/* least recorded_at in aside, at the last
								 * count; 0 for none */
	OnsideBrake brake;
} OnsideBacklog;

/* configuration.c: what the worker was told to do. */
typedef struct OnsideConfiguration
{
	OnsideHttpConfig http;		/* what http.c was told; it uses our strings */
	bool		was_enabled;	/* onside_attribution.enabled when last read */
	bool		has_credentials;
	char	   *problem;		/* why there are none; or NULL */
	char	   *database_settings;	/* of ALTER DATABASE and ALTER ROLE, when
									 * the process started */

	bool		paused;
	char	   *pause_reason;	/* or NULL */
	bool		control_known;	/* the table "control" has been read */

	bool		restart_wanted; /* a successor with new settings is to start */
	int64		restart_wanted_at;

	bool		control_due;	/* the table "control" is to be read */
	bool		settings_due;	/* database_settings is to be compared */
	bool		check_due;		/* has the extension changed? */
	OnsideBrake looking;
	OnsideBrake controlling;
} OnsideConfiguration;

/* publish.c: what others were told. */
typedef struct OnsidePublish
{
	OnsideState last_state;
	int64		last_state_at;	/* when it became that */
	int64		trouble_at;		/* when all was well last */
	OnsideState reported;		/* what pg_stat_activity shows */
	char		reported_reason[ONSIDE_REASON_MAX];
	char		both[ONSIDE_REASON_MAX * 2];	/* an obstacle and a reason */
} OnsidePublish;

typedef struct OnsideWorker
{
	OnsideSlot *slot;			/* this database's, in shared memory */
	char		database_name[NAMEDATALEN];
	OnsideSender *sender;		/* what decides; see send/sender.h */
	OnsideHttp *http;			/* requests and connections */
	OnsideStats counted;		/* not published yet; see counting.h */

	OnsideTxn	txn;
	OnsideReader reader;
	OnsideSending sending;
	OnsideChance chance;
	OnsideProgress progress;
	OnsideUndecided undecided;
	OnsideBacklog backlog;
	OnsideConfiguration configuration;
	OnsidePublish publish;

	/* worker.c: the loop */
	uint64		noticed;		/* slot->recorded at the last take_wakeup() */
	uint32		epoch;			/* slot->epoch when we looked last */
	bool		withdrawal_due; /* deleted events are still to be looked for */
	int64		polled_at;		/* when we polled last */
	uint32		wait_event_idle;
	uint32		wait_event_request;
} OnsideWorker;

#endif							/* ONSIDE_STATE_H */
