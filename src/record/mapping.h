/*-------------------------------------------------------------------------
 *
 * mapping.h
 *		Which column of a source table becomes which field of an event.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_MAPPING_H
#define ONSIDE_MAPPING_H

#include "postgres.h"

#include "nodes/pg_list.h"
#include "utils/rel.h"

/* One entry of the payload. */
typedef struct OnsidePayloadKey
{
	const char *field;			/* "payload." and the key */
	const char *key;
	const char *column;
} OnsidePayloadKey;

/*
 * The arguments of track_row, understood.  Column names; NULL if not given.
 * The strings are parts of the arguments.
 */
typedef struct OnsideMapping
{
	const char *event_name;
	const char *installation_id;
	const char *event_datetime;
	const char *event_id;
	const char *id_namespace;	/* for ids made of keys, see event_id.h */
	const char *id_source;		/* likewise: the table's name at attach */
	int			npayload;
	OnsidePayloadKey *payload;

	/* or, instead of columns: */
	const char *mapper;			/* schema.function, quoted */
	const char *search_path;	/* with which it is called */
} OnsideMapping;

/*
 * Reads the arguments of a track_row trigger of this table.  Raises 22023 for
 * one that is not understood and 22004 for one that is missing.
 */
extern OnsideMapping *onside_mapping_parse(int nargs, char **args,
										   Relation rel);

/* The same, with NULL in place of an error. */
extern OnsideMapping *onside_mapping_try_parse(int nargs, char **args);

/* The same for what the catalog pg_trigger has in tgnargs and tgargs. */
extern OnsideMapping *onside_mapping_of_trigger(int nargs, Datum tgargs);

/* With which a mapper is called; a trigger made by hand may not say. */
extern const char *onside_mapping_search_path(const OnsideMapping *mapping);

/* Is what this argument names a column? */
extern bool onside_mapping_is_column(const char *arg);

/* The arguments again, as a list of C strings. */
extern List *onside_mapping_args(const OnsideMapping *mapping);

#endif							/* ONSIDE_MAPPING_H */
