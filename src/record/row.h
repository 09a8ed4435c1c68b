/*-------------------------------------------------------------------------
 *
 * row.h
 *		A source table's row becomes an event.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_ROW_H
#define ONSIDE_ROW_H

#include "postgres.h"

#include "commands/trigger.h"
#include "executor/tuptable.h"
#include "utils/rel.h"

#include "log/outbox.h"
#include "record/column.h"
#include "record/deferred.h"
#include "record/event_id.h"
#include "record/mapper.h"
#include "record/repeats.h"

/*
 * What backfill wants besides: events whose event_id is the row's own, and of them
 * those that occurred from "since" to "until".  And what has become of the rows.
 */
typedef struct OnsideRowBackfill
{
	TimestampTz since;			/* infinite if not given */
	TimestampTz until;
	int64		recorded;		/* events, like those below; a row of which */
	int64		skipped;		/* there is none counts as one */
	int64		dead_lettered;
	int64		not_due;
} OnsideRowBackfill;

/* A trigger's mapping, resolved against its table. */
typedef struct OnsideRowReader
{
	text	   *event_name;
	bool		name_is_valid;
	OnsideMapper *mapper;		/* in place of columns; or NULL */
	OnsideColumn installation_id;
	OnsideColumn event_datetime;
	OnsideColumn event_id;
	char	   *id_namespace;	/* what precedes a key, as attach() has noted it; */
	char	   *id_source;		/* or NULL */
	OnsideKeyPart id_parts[4];	/* of an event_id; the last is the row's key */
	bool		id_is_known;	/* are the others there? */
	bool		has_event_datetime;
	bool		has_event_id;
	int			npayload;
	const char **keys;
	OnsideColumn *payload;
	bool		needs_settings; /* see onside_column_fix_settings() */
	bool		many;			/* rows of a statement */
	bool		keepable;		/* it depends on nothing but the table */
	OnsideEventError *broken;	/* why no row can become an event, or NULL */
	OnsideRowBackfill *backfill;	/* NULL if the rows are a trigger's */
	OnsideDeferred *deferred;	/* of the present call; NULL if the trigger
								 * fires at once */
	TupleTableSlot *row;		/* the present one, if it is known, or NULL */
	OnsideRepeats *repeats;		/* of rows that are tried, or NULL */
	bool		told_repeats;	/* somebody knows of those of a backfill */
	MemoryContext per_row;
} OnsideRowReader;

/* What has become of a row. */
typedef enum OnsideRowOutcome
{
	ONSIDE_ROW_RECORDED,
	ONSIDE_ROW_SKIPPED,			/* it has no installation_id, or no event */
	ONSIDE_ROW_DEAD_LETTER,		/* it is no valid event, or has one */
} OnsideRowOutcome;

/* The table, or if that is a partition, its root. */
extern Oid	onside_row_root(Oid relid);

/* schema.table, quoted, of the table, or if that is a partition, of the root. */
extern char *onside_row_source(Oid relid);

/* The same as it is, for an event_id: it depends on nothing but the names. */
extern char *onside_row_id_source(Oid relid);

/* In the given memory context, which has to live as long. */
extern OnsideRowReader *onside_row_reader(Trigger *trigger, Relation rel,
										  MemoryContext context);

/*
 * Before a statement: what precedes a key is what it is now, unless the trigger's
 * arguments say it.
 */
extern void onside_row_forget_id(OnsideRowReader *reader);

/*
 * Records one row of this table, with a fresh event_id if it has none of its
 * own, or all events that the mapper makes of it.  *append is opened with the first event: a statement that has none leaves
 * no trace.
 */
extern OnsideRowOutcome onside_row_record(OnsideRowReader *reader,
										  Relation rel,
										  TupleTableSlot *row,
										  OnsideAppend **append);

/*
 * What would become of the row?  Nothing is recorded, nor counted.  *error says why
 * it is no event; its field is NULL if a mapper returns none.  It lives in the
 * reader's per_row, which is the caller's to reset.
 */
extern OnsideRowOutcome onside_row_try(OnsideRowReader *reader,
									   Relation rel,
									   TupleTableSlot *row,
									   OnsideEventError *error);

/* Records all rows of a statement's transition table. */
extern void onside_row_record_all(OnsideRowReader *reader,
								  TriggerData *trigdata,
								  OnsideAppend **append);

#endif							/* ONSIDE_ROW_H */
