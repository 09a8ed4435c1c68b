/*-------------------------------------------------------------------------
 *
 * column.h
 *		A source table's column as a field of an event.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_COLUMN_H
#define ONSIDE_COLUMN_H

#include "postgres.h"

#include "access/tupdesc.h"
#include "executor/tuptable.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "log/event.h"

/* How a column's values are rendered; by its type, domains looked through. */
typedef enum OnsideColumnKind
{
	ONSIDE_COLUMN_INT2,
	ONSIDE_COLUMN_INT4,
	ONSIDE_COLUMN_INT8,
	ONSIDE_COLUMN_BOOL,
	ONSIDE_COLUMN_NUMERIC,
	ONSIDE_COLUMN_FLOAT4,
	ONSIDE_COLUMN_FLOAT8,
	ONSIDE_COLUMN_TEXT,
	ONSIDE_COLUMN_BPCHAR,
	ONSIDE_COLUMN_TIMESTAMPTZ,
	ONSIDE_COLUMN_TIMESTAMP,
	ONSIDE_COLUMN_DATE,
	ONSIDE_COLUMN_UUID,
	ONSIDE_COLUMN_JSON,
	ONSIDE_COLUMN_JSONB,
	ONSIDE_COLUMN_OTHER,		/* by its output function */
} OnsideColumnKind;

typedef struct OnsideColumn
{
	const char *field;			/* of the event, for messages */
	const char *name;			/* as it is mapped; a copy */
	AttrNumber	attnum;			/* 0: there is none, always null */
	OnsideColumnKind kind;
	FmgrInfo	output;			/* for ONSIDE_COLUMN_OTHER */
	bool		needs_settings; /* does its text depend on the session's? */
} OnsideColumn;

/*
 * Looks a column up.  On false *error says why it cannot become the field:
 * 42703 if the table has none of that name, 42804 if its type does not fit
 * (installation_id: uuid or text; event_id: these and integers;
 * event_datetime: timestamptz, timestamp, date or text), 0A000 if it has no
 * value in a trigger.  The column then reads as NULL.  "relname" is for the
 * message.
 */
extern bool onside_column_resolve(OnsideColumn *column, const char *field,
								  TupleDesc tupdesc, const char *relname,
								  const char *name, OnsideEventError *error);

/*
 * Gives the settings that such a text depends on fixed values, until the
 * caller ends the GUC nest level that is returned.
 */
extern int	onside_column_fix_settings(void);

/* Is the row's value NULL, or an empty text? */
extern bool onside_column_is_empty(OnsideColumn *column, TupleTableSlot *row);

/*
 * A row's value, in the current memory context.  On false *error says why the
 * value cannot be sent; *value is then its text form, for a person.
 */
extern bool onside_column_to_json(OnsideColumn *column, TupleTableSlot *row,
								  JsonbValue *value, OnsideEventError *error);

/* A UUID as text. */
extern char *onside_column_uuid_text(const pg_uuid_t *uuid);

/* These set *has to false if the column is NULL. */
extern bool onside_column_to_uuid(OnsideColumn *column, TupleTableSlot *row,
								  pg_uuid_t *uuid, bool *has,
								  OnsideEventError *error);

/*
 * Sets *uuid if the value is a version 4 UUID.  Otherwise *key is the value's
 * text, from which event_id.h makes an event_id.
 */
extern bool onside_column_to_event_id(OnsideColumn *column,
									  TupleTableSlot *row, pg_uuid_t *uuid,
									  bool *has, char **key,
									  OnsideEventError *error);
extern bool onside_column_to_datetime(OnsideColumn *column,
									  TupleTableSlot *row, TimestampTz *t,
									  bool *has, OnsideEventError *error);

#endif							/* ONSIDE_COLUMN_H */
