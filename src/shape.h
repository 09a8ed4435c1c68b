/*-------------------------------------------------------------------------
 *
 * shape.h
 *		What the extension's tables have to look like.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_SHAPE_H
#define ONSIDE_SHAPE_H

#include "postgres.h"

#include "nodes/pg_list.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

/* Room for all of the extension's tables. */
#define ONSIDE_MAX_TABLES	16

/* The extension's tables, by number; InvalidOid for one that is not there. */
typedef struct OnsideTables
{
	Oid			schema;
	Oid			relid[ONSIDE_MAX_TABLES];
} OnsideTables;

/* How many tables there are. */
extern int	onside_shape_count(void);

/* Finds the tables.  False if their schema is not there. */
extern bool onside_shape_find(OnsideTables *tables);

/* The n-th table's name; 0 .. onside_shape_count() - 1. */
extern const char *onside_shape_name(int n);

/* Is this a column, an index of the n-th table that the extension has made? */
extern bool onside_shape_has_column(int n, const char *column);
extern bool onside_shape_has_index(int n, const char *index);

/*
 * What is wrong with the n-th table, as a list of strings such as
 * 'column "note" of table onside_attribution.outbox_1 has a default'; NIL if
 * nothing is.  Looks at the catalogs alone, with this snapshot, or NULL for one
 * of the present moment.  Takes no lock on the table and runs nothing of a
 * user's.  usable: can rows be read and written?
 */
extern List *onside_shape_problems(const OnsideTables *tables, int n,
								   Snapshot snapshot, bool *usable);

/* Has this table the name of one of the outbox's segments? */
extern bool onside_shape_is_segment(Relation rel);

/* What is wrong with all of them, for doctor(); NULL if nothing is. */
extern char *onside_shape_report(bool *usable);

/*
 * Raises an error unless the columns of a table of ours are where and what we
 * take them for, and, if rows are to be read, those that are never null
 * cannot be.  Returns how many there are: columns after those are others'.
 */
extern int	onside_shape_require(Relation rel, bool to_read);

/*
 * The index of a table of ours that its rows are read by.  Raises an error if
 * it is not there, or no longer usable.
 */
extern Oid	onside_shape_index(Relation rel);

#endif							/* ONSIDE_SHAPE_H */
