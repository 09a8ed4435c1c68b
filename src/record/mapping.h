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

#include "access/htup.h"
#include "nodes/pg_list.h"
#include "utils/snapshot.h"

#include "log/event.h"

/* One entry of the payload. */
typedef struct OnsidePayloadKey
{
	const char *field;			/* "payload." and the key */
	const char *key;
	const char *column;
} OnsidePayloadKey;

/*
 * The arguments of track_row, parsed: names of columns, NULL if not given.
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
 * Parses the arguments of a track_row trigger.  Returns NULL, and fills in
 * *error, for an argument that is not understood (22023) and for a missing
 * argument (22004).
 */
extern OnsideMapping *onside_mapping_parse(int nargs, char **args,
										   OnsideEventError *error);

/* The same without an error, for tgnargs and tgargs of pg_trigger. */
extern OnsideMapping *onside_mapping_of_trigger(int nargs, Datum tgargs);

/*
 * The search_path for calling the mapper; a trigger made by hand may lack it.
 */
extern const char *onside_mapping_search_path(const OnsideMapping *mapping);

/* The table, or if that is a partition, its root. */
extern Oid	onside_mapping_root(Oid relid);

/* The table's name with its schema, quoted, for SQL; NULL if there is none. */
extern char *onside_mapping_table_name(Oid relid);

/* Does this argument map a column? */
extern bool onside_mapping_is_column(const char *arg);

/*
 * A copy of the trigger's row in pg_trigger, as the snapshot shows it, and the
 * mapping in its arguments.  NULL if there is no such row; *mapping, which may
 * be left out, is NULL if the arguments are not understood, too.  A snapshot
 * of NULL is the catalog's.
 */
extern HeapTuple onside_mapping_find(Oid trigger, Snapshot snapshot,
									 OnsideMapping **mapping);

/* The arguments again, as a list of C strings. */
extern List *onside_mapping_args(const OnsideMapping *mapping);

#endif							/* ONSIDE_MAPPING_H */
