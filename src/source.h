/*-------------------------------------------------------------------------
 *
 * source.h
 *		An attached table, as backfill reads it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_SOURCE_H
#define ONSIDE_SOURCE_H

#include "postgres.h"

#include "nodes/execnodes.h"
#include "utils/portal.h"
#include "utils/rel.h"

#include "attachment.h"
#include "row.h"

/* No more rows than this are read at a time. */
#define ONSIDE_CHUNK_ROWS	1000

/* Resolved for one transaction. */
typedef struct OnsideSource
{
	Relation	rel;
	OnsideRowReader *reader;
	OnsideAttachment *attachment;	/* or NULL if nothing is known */
	bool		same_id;		/* the trigger always took this event_id */
	int			nkeys;
	AttrNumber	keys[INDEX_MAX_KEYS];
	FmgrInfo	outputs[INDEX_MAX_KEYS];
	EState	   *estate;
	ExprState  *condition;		/* or NULL */
	bool		has_old;		/* it refers to OLD */
	TupleTableSlot *row;
	TupleTableSlot *old;		/* all NULL */
	const char *current;		/* the row's key, for messages */
} OnsideSource;

/* Is a row to be recorded? */
typedef enum OnsideVerdict
{
	ONSIDE_DUE,
	ONSIDE_NOT_DUE,
	ONSIDE_UNDECIDED,			/* by a condition on OLD */
	ONSIDE_DUE_AND_OLD,			/* and not written since it was attached */
} OnsideVerdict;

/*
 * Looks up what reports the event, with an SPI connection and in the current
 * memory context.  Raises 42704 if nothing does, and 55000 if there is no key
 * to read by or no way to know which rows have been recorded.
 */
extern void onside_source_open(OnsideSource *source, Oid relid,
							   const char *event_name);
extern void onside_source_close(OnsideSource *source);

/*
 * Raises 55000 if the rows before the state's position were read by another
 * key; notes the key if there are none.
 */
extern void onside_source_check_key(OnsideSource *source,
									OnsideBackfillState *state);

/* An SPI cursor of the rows behind the state's position, in the key's order. */
extern Portal onside_source_scan(OnsideSource *source,
								 OnsideBackfillState *state);

/* Fetches so many of them into SPI_tuptable. */
extern void onside_source_fetch(Portal portal, int count);

/*
 * Raises XX000 if a chunk has ended at the position behind which it began; that
 * is 0 for the first chunk.
 */
extern void onside_source_check_advance(OnsideSource *source, Datum before,
										Datum after);

/* Puts row i of what was fetched into source->row, and returns its xmin. */
extern TransactionId onside_source_store(OnsideSource *source, int i);

/* Judges that row, with the session's own settings. */
extern OnsideVerdict onside_source_judge(OnsideSource *source,
										 const OnsideBackfillKey *key,
										 TransactionId xmin);

/* The texts of its key; the settings have to be fixed. */
extern void onside_source_read_key(OnsideSource *source, char **texts);

/* The event_id that follows from those. */
extern void onside_source_derive_id(OnsideSource *source, char **texts,
									pg_uuid_t *id);

#endif							/* ONSIDE_SOURCE_H */
