/*-------------------------------------------------------------------------
 *
 * row_reader.h
 *		A trigger's mapping, resolved against its table.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_ROW_READER_H
#define ONSIDE_ROW_READER_H

#include "postgres.h"

#include "commands/trigger.h"
#include "executor/tuptable.h"
#include "utils/rel.h"

#include "log/event.h"
#include "record/column.h"
#include "record/deferred.h"
#include "record/mapper.h"
#include "record/repeats.h"

/*
 * What backfill adds to a reader: only events from "since" to "until" are
 * recorded, and each needs an event_id of the row's own.  The counters say
 * what became of the rows.  They count events; a row without an event counts
 * as one.
 */
typedef struct OnsideRowBackfill
{
	TimestampTz since;			/* infinite if not given */
	TimestampTz until;
	int64		recorded;
	int64		skipped;
	int64		dead_lettered;
	int64		not_due;		/* outside of since and until */
} OnsideRowBackfill;

typedef struct OnsideRowReader
{
	text	   *event_name;
	bool		name_is_valid;
	OnsideMapper *mapper;		/* in place of columns; or NULL */
	OnsideColumn installation_id;
	OnsideColumn event_datetime;	/* name is NULL if it is not mapped */
	OnsideColumn event_id;		/* likewise */
	char	   *id_namespace;	/* as attach() wrote it into the trigger's */
	char	   *id_source;		/* arguments; or NULL */
	int			npayload;
	const char **keys;
	OnsideColumn *payload;
	bool		needs_settings; /* see onside_column_fix_settings() */
	bool		many;			/* rows of a statement */
	bool		keepable;		/* depends on nothing but the table */
	OnsideEventError *broken;	/* why no row can become an event, or NULL */
	OnsideRowBackfill *backfill;	/* NULL if the rows are a trigger's */
	OnsideDeferred *deferred;	/* of the present call; NULL if the trigger
								 * fires at once */
	TupleTableSlot *row;		/* the present row, if it is known, or NULL */
	OnsideRepeats *repeats;		/* of rows that are tried, or NULL */
	bool		told_repeats;	/* backfill has warned of repeated event_ids */
	MemoryContext per_row;
} OnsideRowReader;

/*
 * schema.table of the root, as it is written into an event_id.  Never quoted:
 * which names need quotes depends on a setting, and on PostgreSQL's version.
 */
extern char *onside_row_id_source(Oid relid);

/* Makes a reader in the given memory context, which has to live as long. */
extern OnsideRowReader *onside_row_reader(Trigger *trigger, Relation rel,
										  MemoryContext context);

/* Gives the event a new event_id. */
extern void onside_row_fresh_id(OnsideRowReader *reader, OnsideEvent *event);

/*
 * Gives the event the event_id that belongs to a row's key.  On false *error
 * says why there is none.  Memory that is allocated stays in the current
 * context.
 */
extern bool onside_row_id_of_key(OnsideRowReader *reader, Relation rel,
								 char *key, OnsideEvent *event,
								 OnsideEventError *error);

#endif							/* ONSIDE_ROW_READER_H */
