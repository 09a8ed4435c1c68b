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

#include "catalog/pg_index.h"
#include "nodes/pg_list.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

/* How many tables we have, and how much they have. */
#define ONSIDE_TABLES			8
#define ONSIDE_SHAPE_KEYS		5
#define ONSIDE_SHAPE_CHECKS		4

typedef struct OnsideShapeColumn
{
	const char *name;
	Oid			type;
	bool		not_null;
	bool		has_default;	/* must have one; any other may */
} OnsideShapeColumn;

/* An index that we need. */
typedef struct OnsideShapeIndex
{
	const char *name;
	bool		primary;
	AttrNumber	keys[ONSIDE_SHAPE_KEYS];	/* with zeros at the end */
} OnsideShapeIndex;

/* A trigger of ours, which has to be enabled ALWAYS. */
typedef struct OnsideShapeTrigger
{
	const char *name;
	const char *function;
	int16		type;
} OnsideShapeTrigger;

typedef struct OnsideShape
{
	const char *name;
	char		relkind;
	const char *parent;			/* partitioned table, or NULL */
	int			ncolumns;
	const OnsideShapeColumn *columns;
	OnsideShapeIndex index;		/* that rows are read by; no name: none */
	OnsideShapeIndex key;		/* a primary key besides; no name: none */
	OnsideShapeTrigger trigger; /* no name: none */
	bool		rescued;		/* it has the triggers of rescue.c, too */
	const char *checks[ONSIDE_SHAPE_CHECKS];
} OnsideShape;

extern const OnsideShape onside_shapes[ONSIDE_TABLES];

/* Where these tables are, in the same order; InvalidOid if one is not there. */
typedef struct OnsideTables
{
	Oid			schema;
	Oid			relid[ONSIDE_TABLES];
} OnsideTables;

/* Finds the tables.  False if their schema is not there. */
extern bool onside_shape_find(OnsideTables *tables);

/* Has an index these columns as its key? */
extern bool onside_shape_has_keys(Form_pg_index form,
								  const OnsideShapeIndex *index);

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

/* The command that makes the index that a table's rows are read by. */
extern char *onside_shape_index_command(const OnsideShape *shape);

/*
 * The index of a table of ours that its rows are read by.  Raises an error if
 * it is not there, or no longer usable.
 */
extern Oid	onside_shape_index(Relation rel);

#endif							/* ONSIDE_SHAPE_H */
