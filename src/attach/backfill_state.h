/*-------------------------------------------------------------------------
 *
 * backfill_state.h
 *		How far each backfill has come.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_BACKFILL_STATE_H
#define ONSIDE_BACKFILL_STATE_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "storage/itemptr.h"

#include "record/row_reader.h"

/* Which row of the table "backfill_state". */
typedef struct OnsideBackfillKey
{
	Oid			source;
	const char *event_name;
	TimestampTz since;			/* infinite if not given */
	TimestampTz until;
} OnsideBackfillKey;

/* Which of the rows that the table has are read; see source.c. */
typedef enum OnsidePass
{
	ONSIDE_PASS_OLD = 1,		/* were there when it began */
	ONSIDE_PASS_NEWER,			/* were written during the first pass */
	ONSIDE_PASS_LAST,			/* were written since */
} OnsidePass;

typedef struct OnsideBackfillState
{
	OnsidePass	pass;
	Datum		before;			/* int8[]: what earlier passes saw, or 0 */
	Datum		now;			/* int8[]: what this pass may see, or 0 */
	List	   *done;			/* partitions that were read in full */
	Oid			partition;		/* that is being read, or the table; 0 before */
	Oid			file;			/* its relfilenode, which places are of */
	ItemPointerData place;		/* of the last row that was read there */
	bool		finished;
	int64		estimated;		/* rows of the table when it began */
	int64		read;			/* rows so far */
	OnsideRowBackfill rows;		/* what has become of them */
	TimestampTz started_at;
	ItemPointerData tid;		/* of the state's row, or invalid */
} OnsideBackfillState;

/*
 * Locks this backfill to the end of the transaction, and reads its row.
 * Without a row "pass" is 0.
 */
extern OnsideBackfillState *onside_backfill_lock(const OnsideBackfillKey *key);

/* Writes the row of a locked backfill, once a transaction. */
extern void onside_backfill_save(const OnsideBackfillKey *key,
								 const OnsideBackfillState *state);

/*
 * Deletes the rows of tables that were dropped, unless a lock is in the way.
 */
extern void onside_backfill_forget_dropped(void);

#endif							/* ONSIDE_BACKFILL_STATE_H */
