/*-------------------------------------------------------------------------
 *
 * preview.c
 *		The SQL function preview(): an event as it is sent.
 *
 * Reads the outbox's segments, aside and dead_letter from end to end, since
 * the outbox has no index on event_id.  People call it, and seldom.  No
 * privilege but EXECUTE on preview() is checked.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/uuid.h"

#include "compat.h"
#include "log/event.h"
#include "log/outbox.h"
#include "log/shape.h"
#include "log/tables.h"

PG_FUNCTION_INFO_V1(onside_preview);

/*
 * Finds the event in a table, and copies it into the current memory context.
 * False if it is not there, or is a dead letter that lacks a field.
 */
static bool
find_in(const char *table, const pg_uuid_t *event_id, OnsideEvent *event)
{
	Relation	rel;
	TableScanDesc scan;
	TupleTableSlot *slot;
	ScanKeyData key;
	bool		found;

	/* The columns of an event have the same numbers in all of these tables. */
	rel = table_open(onside_table_oid(table), AccessShareLock);
	(void) onside_shape_require(rel, true);
	slot = table_slot_create(rel, NULL);
	ScanKeyInit(&key, Anum_outbox_event_id, BTEqualStrategyNumber, F_UUID_EQ,
				UUIDPGetDatum(event_id));
	scan = onside_table_beginscan(rel, onside_reading_snapshot(), 1, &key);
	found = table_scan_getnextslot(scan, ForwardScanDirection, slot);

	/* What a dead letter lacks cannot be shown as it would be sent. */
	if (found)
	{
		onside_outbox_read_event(slot, event);
		found = event->has_event_id && event->has_event_datetime &&
			onside_datetime_in_range(event->event_datetime) &&
			event->has_installation_id && event->event_name != NULL &&
			event->payload != NULL;
	}
	if (found)
		onside_outbox_copy_event(event);
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	return found;
}

/* preview(event_id uuid) */
Datum
onside_preview(PG_FUNCTION_ARGS)
{
	static const char *const tables[] = {
		"outbox_1", "outbox_2", "outbox_3", "aside", "dead_letter"
	};
	OnsideEvent event = {0};
	StringInfoData buf;
	bool		found = false;

	for (int i = 0; i < (int) lengthof(tables) && !found; i++)
		found = find_in(tables[i], PG_GETARG_UUID_P(0), &event);
	if (!found)
		PG_RETURN_NULL();

	/* Sent as UTF-8, shown in the database's encoding. */
	initStringInfo(&buf);
	onside_event_render(&buf, &event);
	PG_RETURN_TEXT_P(cstring_to_text(pg_any_to_server(buf.data, buf.len,
													  PG_UTF8)));
}
