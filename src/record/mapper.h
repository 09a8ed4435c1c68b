/*-------------------------------------------------------------------------
 *
 * mapper.h
 *		Calling a user's function that makes events of a table's rows.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_MAPPER_H
#define ONSIDE_MAPPER_H

#include "postgres.h"

#include "commands/trigger.h"
#include "executor/tuptable.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

#include "log/event.h"
#include "record/mapping.h"

typedef struct OnsideMapper OnsideMapper;

/* OID of the type onside_attribution.event; InvalidOid if it is missing. */
extern Oid	onside_mapper_event_type(void);

/*
 * The function of this name ("schema.function", quoted) that takes this row
 * type and nothing else, or InvalidOid.  No privilege is checked.
 */
extern Oid	onside_mapper_find(const char *name, Oid row_type);

/*
 * The table whose rows the mapper of a trigger on "relid" takes: as a rule
 * relid itself.  With Citus, the mapper may exist for a shard's table and not
 * for the shard, or the other way round: then it is the one that there is a
 * mapper for.
 */
extern Oid	onside_mapper_takes(const char *name, Oid relid);

/*
 * Makes what calls the mapper of a trigger for rows of "rel", which can be a
 * partition of the trigger's table.  Lives in the given memory context.
 */
extern OnsideMapper *onside_mapper_make(Trigger *trigger, Relation rel,
										const OnsideMapping *mapping,
										MemoryContext context);

extern const char *onside_mapper_name(const OnsideMapper *mapper);

/* The table whose rows the mapper takes. */
extern Oid	onside_mapper_table(const OnsideMapper *mapper);

/* Where results are collected, to be read with this slot. */
extern Tuplestorestate *onside_mapper_results(TupleTableSlot **slot);

/*
 * Calls the mapper with one row, or if "row" is NULL with all rows of a
 * statement's transition table, and adds what it returns to the results.  If
 * the mapper raises an error that on_invalid_event decides about, all that it
 * did is undone, and the error is returned; then the results must not be used.
 * Other errors are raised.
 */
extern ErrorData *onside_mapper_call(OnsideMapper *mapper,
									 TupleTableSlot *row,
									 TriggerData *trigdata,
									 Tuplestorestate *results);

/*
 * Reads a result as an event without a name.  Text and payload point into the
 * slot if they can.
 */
extern void onside_mapper_read_event(TupleTableSlot *slot, OnsideEvent *event);

/*
 * Where in a mapper's body an error is, as " at "o.total""; "" if nobody
 * knows.
 */
extern char *onside_mapper_error_place(const ErrorData *error);

#endif							/* ONSIDE_MAPPER_H */
