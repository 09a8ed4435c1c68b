/*-------------------------------------------------------------------------
 *
 * outbox.h
 *		Appending to the log, and what its tables look like.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_OUTBOX_H
#define ONSIDE_OUTBOX_H

#include "postgres.h"

#include "executor/tuptable.h"
#include "utils/snapshot.h"

#include "log/event.h"

/* Columns of outbox and of its segments outbox_1 .. outbox_3. */
enum
{
	Anum_outbox_event_id = 1,
	Anum_outbox_event_name,
	Anum_outbox_payload,
	Anum_outbox_event_datetime,
	Anum_outbox_installation_id,
	Anum_outbox_recorded_at,
	Anum_outbox_xid,
	Anum_outbox_id,
	Anum_outbox_segment,
	Natts_outbox = Anum_outbox_segment
};

/* Columns of a segment's index. */
enum
{
	Anum_outbox_index_xid = 1,
	Anum_outbox_index_id
};

/* From _PG_init. */
extern void onside_outbox_init(void);

/* OID of an extension's relation, or InvalidOid. */
extern Oid	onside_relation_oid(const char *name);

/* OID of a table; raises an error if it is not there. */
extern Oid	onside_table_oid(const char *name);

/* OID of a segment (1 ..), likewise. */
extern Oid	onside_segment_oid(int segment);

/*
 * With which snapshot our tables are read on behalf of somebody: the active one,
 * but under SERIALIZABLE what is committed now.  PostgreSQL would note who has
 * read what (predicate locks), and have another session's purchase fail because
 * somebody without any privilege on the tables has called flush() or preview().
 */
extern Snapshot onside_reading_snapshot(void);

/* The event in a row of a segment.  Points into the slot where it can. */
extern void onside_outbox_read_event(TupleTableSlot *slot, OnsideEvent *event);

/*
 * The reverse, for a row of a segment, of aside or of dead_letter, which begin
 * with the same columns: fields that the event lacks become null.
 */
extern void onside_outbox_set_event(TupleTableSlot *slot,
									const OnsideEvent *event);

/* When the event in a row of a segment or of aside was recorded. */
extern TimestampTz onside_outbox_recorded_at(TupleTableSlot *slot);

/* Makes an event's fields copies in the current memory context. */
extern void onside_outbox_copy_event(OnsideEvent *event);

/*
 * Finds an event, in the outbox first and then in dead_letter, and copies it
 * into the current memory context.  Reads the tables from end to end.  False if
 * it is nowhere, or is a dead letter that lacks a field.
 */
extern bool onside_outbox_find(const pg_uuid_t *event_id, OnsideEvent *event);

/*
 * Appends events that onside_event_check has passed, within the current
 * transaction: begin, any number of events, end.  Errors are raised.
 */
typedef struct OnsideAppend OnsideAppend;

extern OnsideAppend *onside_append_begin(void);
extern void onside_append(OnsideAppend *append, const OnsideEvent *event);
extern void onside_append_end(OnsideAppend *append);

#endif							/* ONSIDE_OUTBOX_H */
