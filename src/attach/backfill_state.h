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
#include "storage/itemptr.h"

/* Which row of the table "backfill_state". */
typedef struct OnsideBackfillKey
{
	Oid			source;
	const char *event_name;
	Oid			role;			/* whose row security applies, or 0 */
	TimestampTz since;			/* infinite if not given */
	TimestampTz until;
} OnsideBackfillKey;

typedef struct OnsideBackfillState
{
	Datum		key_columns;	/* int2[]; 0 until the first chunk */
	Datum		position;		/* text[]: the last row's key, or 0 */
	bool		finished;
	int64		recorded;
	int64		skipped;
	int64		dead_lettered;
	int64		not_due;
	int64		left_out;
	TimestampTz started_at;
	ItemPointerData tid;		/* of the row; invalid if there is none yet */
} OnsideBackfillState;

/*
 * Keeps others from this backfill to the end of the transaction, and reads the
 * row.  Without a row the result says that nothing was done yet.
 */
extern OnsideBackfillState *onside_backfill_lock(const OnsideBackfillKey *key);

/* Begins anew. */
extern void onside_backfill_reset(OnsideBackfillState *state);

/* Writes what was locked, once a transaction. */
extern void onside_backfill_save(const OnsideBackfillKey *key,
								 const OnsideBackfillState *state);

/* Deletes the rows of tables that were dropped, unless somebody is in the way. */
extern void onside_backfill_forget_dropped(void);

#endif							/* ONSIDE_BACKFILL_STATE_H */
