/*-------------------------------------------------------------------------
 *
 * tables.h
 *		The extension's tables: their columns, and where they are.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_TABLES_H
#define ONSIDE_TABLES_H

#include "utils/snapshot.h"

#define ONSIDE_SCHEMA			"onside_attribution"

/* Segments of the outbox: outbox_1 .. outbox_3. */
#define ONSIDE_SEGMENTS			3

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

/* Columns of aside; the first six are those of the outbox. */
enum
{
	Anum_aside_failed_at = Anum_outbox_recorded_at + 1,
	Anum_aside_http_status,
	Anum_aside_error,
	Anum_aside_id,
	Natts_aside = Anum_aside_id
};

/* Columns of dead_letter; the event's own are those of the outbox. */
enum
{
	Anum_dead_letter_http_status = 6,
	Anum_dead_letter_error,
	Anum_dead_letter_attempts,
	Anum_dead_letter_recorded_at,
	Anum_dead_letter_failed_at,
	Anum_dead_letter_retry_at,
	Anum_dead_letter_source,
	Anum_dead_letter_chances,
	Anum_dead_letter_id,
	Natts_dead_letter = Anum_dead_letter_id
};

/* OID of an extension's relation, or InvalidOid. */
extern Oid	onside_relation_oid(const char *name);

/* OID of a table; raises an error if it is missing. */
extern Oid	onside_table_oid(const char *name);

/*
 * OID of a segment (1 to ONSIDE_SEGMENTS); raises an error if it is missing.
 */
extern Oid	onside_segment_oid(int segment);

/*
 * The snapshot for reading our tables on behalf of a caller: the active one,
 * but under SERIALIZABLE SnapshotSelf.  Otherwise PostgreSQL would take
 * predicate locks, and another session's purchase could fail because somebody
 * without any privilege on the tables has called flush() or preview().
 */
extern Snapshot onside_reading_snapshot(void);

#endif							/* ONSIDE_TABLES_H */
