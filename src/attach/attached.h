/*-------------------------------------------------------------------------
 *
 * attached.h
 *		What is attached, and detach.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_ATTACHED_H
#define ONSIDE_ATTACHED_H

#include "postgres.h"

#include "nodes/pg_list.h"
#include "utils/rel.h"

/*
 * OID of track_row(), or InvalidOid if it is missing.  No privilege is
 * checked.
 */
extern Oid	onside_find_track_row(void);

/*
 * The table's own triggers that report this event: copies, since triggers that
 * another session makes change the relcache.
 */
extern List *onside_attached_triggers(Relation rel, const char *event_name);

#endif							/* ONSIDE_ATTACHED_H */
