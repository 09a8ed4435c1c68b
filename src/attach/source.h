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

#include "attach/backfill_state.h"
#include "record/row.h"

/* No more rows than this are read at a time. */
#define ONSIDE_CHUNK_ROWS	1000

/* Resolved for one transaction. */
typedef struct OnsideSource
{
	Relation	rel;
	OnsideRowReader *reader;
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
} OnsideVerdict;

/*
 * Looks up what reports the event, in the current memory context.  Raises 42704
 * if nothing does, and 55000 if no event_id is mapped or there is no key to read
 * by.
 */
extern void onside_source_open(OnsideSource *source, Oid relid,
							   const char *event_name);
extern void onside_source_close(OnsideSource *source);

/*
 * Notes the key by which rows are read.  If those before the state's position
 * were read by another one, that begins anew.
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

/* Puts row i of what was fetched into source->row. */
extern void onside_source_store(OnsideSource *source, int i);

/* Judges that row, with the session's own settings. */
extern OnsideVerdict onside_source_judge(OnsideSource *source,
										 const OnsideBackfillKey *key);

/* The texts of its key; the settings have to be fixed. */
extern void onside_source_read_key(OnsideSource *source, char **texts);

#endif							/* ONSIDE_SOURCE_H */
