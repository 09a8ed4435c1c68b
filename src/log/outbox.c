/*-------------------------------------------------------------------------
 *
 * outbox.c
 *		Appending to the log.
 *
 * The outbox is a table of three segments.  Rows are only appended, and a
 * segment is only emptied as a whole.  Each row carries the xid8 of its
 * top-level transaction, and a number that counts within that transaction.
 * (xid, id) is the event's place in the log.  A hint in shared memory says
 * which segment is written to.  A row may be in any segment, so sessions need
 * not agree, and nobody waits when the hint changes.
 *
 * There are two ways in.  The extension's own functions insert here, straight
 * into the segment, with a RowExclusiveLock to the end of the transaction.
 * That lock tells segment.c that the segment has open writers.  An INSERT or
 * COPY of a user's (or of a restore, or of logical replication) goes through
 * PostgreSQL's own partition routing and then through our BEFORE trigger; see
 * incoming.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "log/commit.h"
#include "log/insert.h"
#include "log/outbox.h"
#include "log/shmem.h"
#include "log/tables.h"

/* Events that are appended by one call, all to one segment. */
struct OnsideAppend
{
	OnsideInsert insert;
	int			segment;
	TimestampTz now;
};

static int	current_segment_setting;

/* ----------
 * Where to write
 * ----------
 */

/* The hint, or the first segment if the database has no slot. */
static int
current_segment(void)
{
	OnsideSlot *slot = onside_slot_find(MyDatabaseId);

	return slot == NULL ? 1 : (int) pg_atomic_read_u32(&slot->segment);
}

/* Show hook of the setting: reads the hint anew each time. */
static const char *
show_current_segment(void)
{
	static char buf[12];

	snprintf(buf, sizeof(buf), "%d", current_segment());
	return buf;
}

void
onside_outbox_init(void)
{
	/*
	 * The default of the column "segment".  A function in its place would need
	 * EXECUTE for everybody with INSERT on the outbox.
	 */
	DefineCustomIntVariable("onside_attribution.current_segment",
							"Segment of the outbox that is written to.",
							NULL,
							&current_segment_setting,
							1, 1, ONSIDE_SEGMENTS,
							PGC_INTERNAL,
							GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE |
							GUC_DISALLOW_IN_FILE,
							NULL, NULL, show_current_segment);
}

/* ----------
 * Our own way in
 * ----------
 */

/* All events of a call have the same recorded_at. */
OnsideAppend *
onside_append_begin(void)
{
	OnsideAppend *append = palloc0(sizeof(OnsideAppend));

	append->segment = current_segment();
	onside_insert_begin(&append->insert, onside_segment_oid(append->segment));
	append->now = GetCurrentTimestamp();
	return append;
}

void
onside_append(OnsideAppend *append, const OnsideEvent *event)
{
	TupleTableSlot *slot = onside_insert_slot(&append->insert);
	Datum	   *values = slot->tts_values;

	memset(slot->tts_isnull, false, Natts_outbox * sizeof(bool));

	/* The event's own columns, and then its place in the log. */
	onside_outbox_set_event(slot, event);
	values[Anum_outbox_recorded_at - 1] = TimestampTzGetDatum(append->now);
	values[Anum_outbox_xid - 1] =
		FullTransactionIdGetDatum(GetTopFullTransactionId());
	values[Anum_outbox_id - 1] = Int64GetDatum(onside_commit_next_id());
	values[Anum_outbox_segment - 1] = Int16GetDatum(append->segment);

	onside_insert_row(&append->insert);
}

void
onside_append_end(OnsideAppend *append)
{
	onside_insert_end(&append->insert);
	pfree(append);
}

/* ----------
 * An event and its row
 * ----------
 */

/*
 * Sets the columns of an event's fields, which dead_letter and aside have in
 * the same places.
 */
void
onside_outbox_set_event(TupleTableSlot *slot, const OnsideEvent *event)
{
	Datum	   *values = slot->tts_values;
	bool	   *nulls = slot->tts_isnull;

	/* A field that the event lacks is NULL, which only dead_letter can have. */
	values[Anum_outbox_event_id - 1] = UUIDPGetDatum(&event->event_id);
	nulls[Anum_outbox_event_id - 1] = !event->has_event_id;
	values[Anum_outbox_event_name - 1] = PointerGetDatum(event->event_name);
	nulls[Anum_outbox_event_name - 1] = event->event_name == NULL;
	values[Anum_outbox_payload - 1] = JsonbPGetDatum(event->payload);
	nulls[Anum_outbox_payload - 1] = event->payload == NULL;
	values[Anum_outbox_event_datetime - 1] =
		TimestampTzGetDatum(event->event_datetime);
	nulls[Anum_outbox_event_datetime - 1] = !event->has_event_datetime;
	values[Anum_outbox_installation_id - 1] =
		UUIDPGetDatum(&event->installation_id);
	nulls[Anum_outbox_installation_id - 1] = !event->has_installation_id;
}

TimestampTz
onside_outbox_recorded_at(TupleTableSlot *slot)
{
	bool		isnull;

	return DatumGetTimestampTz(slot_getattr(slot, Anum_outbox_recorded_at,
											&isnull));
}

/*
 * The reverse of onside_outbox_set_event().  Text and payload stay in the slot
 * if they are not toasted.
 */
void
onside_outbox_read_event(TupleTableSlot *slot, OnsideEvent *event)
{
	Datum	   *values = slot->tts_values;
	bool	   *nulls = slot->tts_isnull;

	slot_getallattrs(slot);
	memset(event, 0, sizeof(*event));

	/* What is NULL stays a missing field. */
	event->has_event_id = !nulls[Anum_outbox_event_id - 1];
	if (event->has_event_id)
		event->event_id = *DatumGetUUIDP(values[Anum_outbox_event_id - 1]);

	/* Toasted values are fetched here, others stay where they are. */
	if (!nulls[Anum_outbox_event_name - 1])
		event->event_name = DatumGetTextPP(values[Anum_outbox_event_name - 1]);
	if (!nulls[Anum_outbox_payload - 1])
		event->payload = DatumGetJsonbP(values[Anum_outbox_payload - 1]);
	event->has_event_datetime = !nulls[Anum_outbox_event_datetime - 1];
	if (event->has_event_datetime)
		event->event_datetime =
			DatumGetTimestampTz(values[Anum_outbox_event_datetime - 1]);
	event->has_installation_id = !nulls[Anum_outbox_installation_id - 1];
	if (event->has_installation_id)
		event->installation_id =
			*DatumGetUUIDP(values[Anum_outbox_installation_id - 1]);
}

/* Text and payload are all that can point into a slot. */
void
onside_outbox_copy_event(OnsideEvent *event)
{
	if (event->event_name != NULL)
		event->event_name =
			(text *) PG_DETOAST_DATUM_COPY(PointerGetDatum(event->event_name));
	if (event->payload != NULL)
		event->payload = DatumGetJsonbPCopy(JsonbPGetDatum(event->payload));
}
