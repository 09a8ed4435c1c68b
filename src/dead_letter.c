/*-------------------------------------------------------------------------
 *
 * dead_letter.c
 *		Events that were refused for good.
 *
 * They come from the worker, which moves them here in the transaction that
 * moves the cursor past them, and from track_row, which lets an invalid row
 * through if on_invalid_event says so.  They leave by retry_dead_letters.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "dead_letter.h"
#include "insert.h"
#include "outbox.h"

static text *
clipped_text(const char *str)
{
	int			len = strlen(str);

	if (len > ONSIDE_DEAD_LETTER_ERROR_MAX)
		len = pg_mbcliplen(str, len, ONSIDE_DEAD_LETTER_ERROR_MAX);
	return cstring_to_text_with_len(str, len);
}

void
onside_dead_letter_insert(const OnsideEvent *event, int http_status,
						  const char *error, int attempts,
						  TimestampTz recorded_at)
{
	OnsideInsert insert;
	TupleTableSlot *slot;
	Datum	   *values;
	bool	   *nulls;

	onside_insert_begin(&insert, onside_table_oid("dead_letter"));
	slot = onside_insert_slot(&insert);
	values = slot->tts_values;
	nulls = slot->tts_isnull;

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
	values[Anum_dead_letter_http_status - 1] = Int32GetDatum(http_status);
	nulls[Anum_dead_letter_http_status - 1] = http_status == 0;
	values[Anum_dead_letter_error - 1] = PointerGetDatum(clipped_text(error));
	nulls[Anum_dead_letter_error - 1] = false;
	values[Anum_dead_letter_attempts - 1] = Int32GetDatum(attempts);
	nulls[Anum_dead_letter_attempts - 1] = false;
	values[Anum_dead_letter_recorded_at - 1] = TimestampTzGetDatum(recorded_at);
	nulls[Anum_dead_letter_recorded_at - 1] = false;
	values[Anum_dead_letter_failed_at - 1] =
		TimestampTzGetDatum(GetCurrentTimestamp());
	nulls[Anum_dead_letter_failed_at - 1] = false;

	onside_insert_row(&insert);
	onside_insert_end(&insert);
}
