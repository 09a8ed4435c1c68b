/*-------------------------------------------------------------------------
 *
 * status.c
 *		The function beneath the view "status".
 *
 * While a worker runs, everything comes from what it publishes in shared
 * memory, at the same cost whatever the backlog.  Without one, the counters
 * come from delivery_cursor, and pending events are counted up to a bound.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lwlock.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

#include "delivery.h"
#include "outbox.h"
#include "settings.h"
#include "shmem.h"
#include "window.h"

PG_FUNCTION_INFO_V1(onside_worker_status);

enum
{
	STATUS_WORKER_PID,
	STATUS_STATE,
	STATUS_STATE_REASON,
	STATUS_PENDING,
	STATUS_OLDEST_PENDING_AGE,
	STATUS_IN_FLIGHT,
	STATUS_DELIVERED,
	STATUS_DEAD_LETTERED,
	STATUS_REQUESTS,
	STATUS_RETRIES,
	STATUS_LAST_SUCCESS_AT,
	STATUS_LAST_ERROR,
	STATUS_LAST_ERROR_AT,
	STATUS_NEXT_ATTEMPT_AT,
	STATUS_COLUMNS
};

/* Without a worker, no more events than this are counted. */
#define MAX_COUNTED 10000

static void
set_text(Datum *values, bool *nulls, int i, const char *str)
{
	nulls[i] = str == NULL || str[0] == '\0';
	if (!nulls[i])
		values[i] = CStringGetTextDatum(str);
}

static void
set_time(Datum *values, bool *nulls, int i, TimestampTz t)
{
	nulls[i] = t == 0;
	values[i] = TimestampTzGetDatum(t);
}

static void
set_age(Datum *values, bool *nulls, TimestampTz recorded_at)
{
	TimestampTz now = GetCurrentTimestamp();

	nulls[STATUS_OLDEST_PENDING_AGE] = recorded_at == 0;
	if (recorded_at != 0)
		values[STATUS_OLDEST_PENDING_AGE] =
			DirectFunctionCall2(timestamp_mi, TimestampTzGetDatum(Max(now, recorded_at)),
								TimestampTzGetDatum(recorded_at));
}

static const char *
why_not_running(OnsideSlot *slot)
{
	if (!onside_shmem_available())
		return "the library is not preloaded: add onside_attribution to shared_preload_libraries and restart the server";
	if (RecoveryInProgress())
		return "this server is a standby: the primary sends, and this one does when it is promoted";
	if (onside_launcher_pid() == 0)
		return "the launcher is not running; see the server's log";
	if (slot == NULL)
	{
		for (int i = 0; i < onside_max_databases; i++)
			if (!OidIsValid(onside_slot_get(i)->database))
				return "the launcher has not got to this database yet";
		return "as many databases as onside_attribution.max_databases allows are served already: increase it and restart the server";
	}
	if (slot->status.reason[0] != '\0')
		return slot->status.reason;
	return "a worker is about to be started";
}

typedef struct Count
{
	int64		n;
	TimestampTz oldest;
} Count;

static bool
count_event(TupleTableSlot *row, const OnsidePosition *pos, void *arg)
{
	Count	   *count = (Count *) arg;
	bool		isnull;

	if (count->n == MAX_COUNTED)
		return false;
	if (count->n++ == 0)
		count->oldest =
			DatumGetTimestampTz(slot_getattr(row, Anum_outbox_recorded_at,
											 &isnull));
	return true;
}

/* From the tables, where no worker tells. */
static void
status_without_worker(OnsideSlot *slot, Datum *values, bool *nulls)
{
	OnsideDelivery delivery = {0};
	Count		count = {0};
	bool		counted;
	const char *reason = why_not_running(slot);

	onside_delivery_load(&delivery, NULL);
	values[STATUS_DELIVERED] = Int64GetDatum(delivery.delivered);
	values[STATUS_DEAD_LETTERED] = Int64GetDatum(delivery.dead_lettered);
	values[STATUS_REQUESTS] = Int64GetDatum(delivery.requests);
	values[STATUS_RETRIES] = Int64GetDatum(delivery.retries);

	counted = onside_window_read_until(&delivery.settled, NULL, count_event,
									   &count);
	onside_cursor_release(&delivery.settled);

	values[STATUS_STATE] =
		CStringGetTextDatum(onside_state_name(ONSIDE_NOT_RUNNING));
	if (!counted)
		reason = psprintf("%s (more than %d events are pending)", reason,
						  MAX_COUNTED);
	set_text(values, nulls, STATUS_STATE_REASON, reason);
	values[STATUS_PENDING] = Int64GetDatum(count.n);
	set_age(values, nulls, count.oldest);
	values[STATUS_IN_FLIGHT] = Int32GetDatum(0);
	nulls[STATUS_WORKER_PID] = true;
	nulls[STATUS_LAST_SUCCESS_AT] = true;
	nulls[STATUS_LAST_ERROR] = true;
	nulls[STATUS_LAST_ERROR_AT] = true;
	nulls[STATUS_NEXT_ATTEMPT_AT] = true;
}

static void
status_of_worker(OnsideSlot *slot, pid_t pid, Datum *values, bool *nulls)
{
	OnsideStatus status;
	int64		pending = onside_slot_pending(slot);

	LWLockAcquire(slot->lock, LW_SHARED);
	status = slot->status;
	LWLockRelease(slot->lock);

	values[STATUS_WORKER_PID] = Int32GetDatum(pid);
	values[STATUS_STATE] = CStringGetTextDatum(onside_state_name(status.state));
	set_text(values, nulls, STATUS_STATE_REASON, status.reason);
	values[STATUS_PENDING] = Int64GetDatum(pending);
	set_age(values, nulls, pending > 0 ? status.oldest_recorded_at : 0);
	values[STATUS_IN_FLIGHT] = Int32GetDatum(status.in_flight);
	values[STATUS_DELIVERED] = Int64GetDatum(status.delivered);
	values[STATUS_DEAD_LETTERED] = Int64GetDatum(status.dead_lettered);
	values[STATUS_REQUESTS] = Int64GetDatum(status.requests);
	values[STATUS_RETRIES] = Int64GetDatum(status.retries);
	set_time(values, nulls, STATUS_LAST_SUCCESS_AT, status.last_success_at);
	set_text(values, nulls, STATUS_LAST_ERROR, status.last_error);
	set_time(values, nulls, STATUS_LAST_ERROR_AT, status.last_error_at);
	set_time(values, nulls, STATUS_NEXT_ATTEMPT_AT, status.next_attempt_at);
}

/* worker_status() */
Datum
onside_worker_status(PG_FUNCTION_ARGS)
{
	OnsideSlot *slot = onside_slot_find(MyDatabaseId);
	pid_t		pid = slot == NULL ? 0 : slot->worker_pid;
	TupleDesc	tupdesc;
	Datum		values[STATUS_COLUMNS] = {0};
	bool		nulls[STATUS_COLUMNS] = {0};

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	if (pid != 0 && slot->status.state != ONSIDE_NOT_RUNNING)
		status_of_worker(slot, pid, values, nulls);
	else
		status_without_worker(slot, values, nulls);

	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc),
													  values, nulls)));
}
