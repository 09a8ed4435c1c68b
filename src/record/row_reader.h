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
#include "record/event_id.h"
#include "record/mapper.h"
#include "record/repeats.h"

/*
 * What precedes the row's key in an event_id: namespace, event_name, source.
 */
#define ONSIDE_ID_NAMES	3

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
	OnsideColumn event_datetime;
	OnsideColumn event_id;
	char	   *id_namespace;	/* as attach() wrote it into the trigger's */
	char	   *id_source;		/* arguments; or NULL */
	OnsideKeyPart id_parts[ONSIDE_ID_NAMES + 1];	/* the last is the row's key */
	bool		id_is_known;	/* are the other parts set? */
	bool		has_event_datetime;
	bool		has_event_id;
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

/* The table, or if that is a partition, its root. */
extern Oid	onside_row_root(Oid relid);

/*
 * schema.table of the root, as it is written into an event_id.  Never quoted:
 * which names need quotes depends on a setting, and on PostgreSQL's version.
 */
extern char *onside_row_id_source(Oid relid);

/* Makes a reader in the given memory context, which has to live as long. */
extern OnsideRowReader *onside_row_reader(Trigger *trigger, Relation rel,
										  MemoryContext context);

/*
 * Before a statement: forgets what precedes the key in an event_id, unless the
 * trigger's arguments say it.  The table may have been renamed since.
 */
extern void onside_row_forget_id(OnsideRowReader *reader);

/* Gives the event a new event_id. */
extern void onside_row_fresh_id(OnsideRowReader *reader, OnsideEvent *event);

/*
 * Gives the event the event_id that belongs to a row's key.  On false *error
 * says why there is none.
 */
extern bool onside_row_id_of_key(OnsideRowReader *reader, Relation rel,
								 char *key, OnsideEvent *event,
								 OnsideEventError *error);

#endif							/* ONSIDE_ROW_READER_H */
