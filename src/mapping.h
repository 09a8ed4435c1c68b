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

/* One entry of the payload. */
typedef struct OnsidePayloadKey
{
	char	   *key;
	char	   *column;
} OnsidePayloadKey;

/* The arguments of track_row, understood.  Column names; NULL if not given. */
typedef struct OnsideMapping
{
	char	   *event_name;
	char	   *installation_id;
	char	   *event_datetime;
	char	   *event_id;
	int			npayload;
	OnsidePayloadKey *payload;
} OnsideMapping;

/*
 * Reads the arguments of a track_row trigger.  Raises 22023 for one that is
 * not understood and 22004 for one that is missing.
 */
extern OnsideMapping *onside_mapping_parse(int nargs, char **args);

/* The same, with NULL in place of an error. */
extern OnsideMapping *onside_mapping_try_parse(int nargs, char **args);

/* The arguments again, as a list of C strings. */
extern List *onside_mapping_args(const OnsideMapping *mapping);

#endif							/* ONSIDE_MAPPING_H */
