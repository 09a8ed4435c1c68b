/*-------------------------------------------------------------------------
 *
 * attachment.h
 *		What is remembered of attached events: which rows the table held
 *		before, and how far their backfill has come.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_ATTACHMENT_H
#define ONSIDE_ATTACHMENT_H

#include "postgres.h"

#include "access/attnum.h"
#include "datatype/timestamp.h"
#include "utils/uuid.h"

/* A row of the table "attachment". */
typedef struct OnsideAttachment
{
	AttrNumber	event_id;		/* column of the event_id then, or 0 */
	Datum		rows_before;	/* pg_snapshot */
	pg_uuid_t	namespace;		/* of the event_ids that backfill makes */
} OnsideAttachment;

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
} OnsideBackfillState;

/*
 * An event has just been attached, under a lock that keeps writers out.
 * What is known of an earlier time stays.
 */
extern void onside_attachment_note(Oid source, const char *event_name,
								   AttrNumber event_id);

/* track_row is at work, maybe in the transaction that has attached the event. */
extern void onside_attachment_used(void);

/*
 * What follows needs an SPI connection.  Results are in the current memory
 * context; NULL if there is no such row.
 */
extern OnsideAttachment *onside_attachment_load(Oid source,
												const char *event_name);

/* Makes the row if there is none. */
extern void onside_backfill_begin(const OnsideBackfillKey *key);

/* Locks the row to the end of the transaction. */
extern OnsideBackfillState *onside_backfill_lock(const OnsideBackfillKey *key);

extern void onside_backfill_save(const OnsideBackfillKey *key,
								 const OnsideBackfillState *state);

#endif							/* ONSIDE_ATTACHMENT_H */
