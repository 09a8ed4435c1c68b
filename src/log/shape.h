/*-------------------------------------------------------------------------
 *
 * shape.h
 *		What the extension's tables have to look like.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_SHAPE_H
#define ONSIDE_SHAPE_H

#include "access/htup.h"
#include "nodes/pg_list.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

/* The number of our tables, and the most that a table has of each. */
#define ONSIDE_TABLES			10
#define ONSIDE_SHAPE_KEYS		5
#define ONSIDE_SHAPE_INDEXES	3
#define ONSIDE_SHAPE_TRIGGERS	3
#define ONSIDE_SHAPE_CHECKS		4

typedef struct OnsideShapeColumn
{
	const char *name;
	Oid			type;
	bool		not_null;
	bool		has_default;	/* must have one; any other may */
} OnsideShapeColumn;

/* An index of ours. */
typedef struct OnsideShapeIndex
{
	const char *name;
	bool		primary;
	AttrNumber	keys[ONSIDE_SHAPE_KEYS];	/* with zeros at the end */
} OnsideShapeIndex;

/* A trigger of ours, enabled ALWAYS. */
typedef struct OnsideShapeTrigger
{
	const char *name;
	const char *function;
	int16		type;
} OnsideShapeTrigger;

/* What a table looks like.  Entries without a name end the arrays. */
typedef struct OnsideShape
{
	const char *name;
	char		relkind;
	const char *parent;			/* partitioned table, or NULL */
	int			ncolumns;
	const OnsideShapeColumn *columns;
	bool		needs_index;	/* no row can be read without the first index */
	OnsideShapeIndex indexes[ONSIDE_SHAPE_INDEXES];
	OnsideShapeTrigger triggers[ONSIDE_SHAPE_TRIGGERS];
	const char *checks[ONSIDE_SHAPE_CHECKS];
} OnsideShape;

extern const OnsideShape onside_shapes[ONSIDE_TABLES];

/*
 * The OIDs of the tables, in the same order; InvalidOid for a missing table.
 */
typedef struct OnsideTables
{
	Oid			schema;
	Oid			relid[ONSIDE_TABLES];
} OnsideTables;

/* Finds the tables.  False if their schema is missing. */
extern bool onside_shape_find(OnsideTables *tables);

/*
 * Can rows be read by the index with this row in pg_index?  It needs the right
 * columns, in ascending order, and all rows.
 */
extern bool onside_shape_index_is_usable(HeapTuple tuple,
										 const OnsideShape *shape,
										 const OnsideShapeIndex *index);

/*
 * What is wrong with the n-th table, as a list of strings such as 'column
 * "note" of table onside_attribution.outbox_1 has a default'; NIL if nothing
 * is.  Looks at the catalogs alone, with this snapshot, or NULL for one of the
 * present moment.  Takes no lock on the table and runs nothing of a user's.
 * usable: can rows be read and written?
 */
extern List *onside_shape_problems(const OnsideTables *tables, int n,
								   Snapshot snapshot, bool *usable);

/* Is this, by its name, a segment of the outbox? */
extern bool onside_shape_is_segment(Relation rel);

/* Is this, by its name, the table aside? */
extern bool onside_shape_is_aside(Relation rel);

/* What is wrong with any of the tables, for doctor(); NULL if nothing is. */
extern char *onside_shape_report(bool *usable);

/*
 * Raises an error unless the columns of a table of ours have the places and
 * types that we rely on.  With to_read, NOT NULL is required, too, where we
 * rely on it.  Returns how many there are: columns after those are others'.
 */
extern int	onside_shape_require(Relation rel, bool to_read);

/* The command that makes an index of a table. */
extern char *onside_shape_index_command(const OnsideShape *shape,
										const OnsideShapeIndex *index);

/*
 * The index of a table of ours without which its rows cannot be read.  Raises
 * an error if it is not there, or no longer usable.
 */
extern Oid	onside_shape_index(Relation rel);

/*
 * Another index of the table, by name; InvalidOid if it is missing or not
 * usable.
 */
extern Oid	onside_shape_find_index(Relation rel, const char *name);

#endif							/* ONSIDE_SHAPE_H */
