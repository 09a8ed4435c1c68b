/*-------------------------------------------------------------------------
 *
 * status.c
 *		The function beneath the view "status".
 *
 * While a worker runs, everything comes from what it publishes in shared
 * memory, at the same cost whatever the backlog.  Without one, the counters
 * come from delivery_cursor, and pending events are counted up to a bound, if
 * nobody has locked the tables: it never waits for a lock.  While none is
 * started because too many have crashed, no table is read.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "log/aside.h"
#include "log/crash_guard.h"
#include "log/delivery.h"
#include "log/locks.h"
#include "log/shape.h"
#include "log/shmem.h"
#include "log/tables.h"
#include "log/window.h"
#include "settings.h"
#include "version.h"

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

#define STATUS_USES \
	(ONSIDE_USES_LOG | ONSIDE_READS_CURSOR | ONSIDE_READS_ASIDE)

static void
set_text(Datum *values, bool *nulls, int i, const char *str)
{
	nulls[i] = str == NULL || str[0] == '\0';
	if (!nulls[i])
		values[i] = CStringGetTextDatum(str);
}

static void
set_int64(Datum *values, bool *nulls, int i, int64 n)
{
	nulls[i] = false;
	values[i] = Int64GetDatum(n);
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

/* A reason that this database's row in pg_database gives, or NULL. */
static const char *
why_not_served(void)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID,
										ObjectIdGetDatum(MyDatabaseId));
	const char *reason = NULL;
	Form_pg_database db;

	if (!HeapTupleIsValid(tuple))
		return NULL;
	db = (Form_pg_database) GETSTRUCT(tuple);
	if (db->datistemplate)
		reason = "this database is a template, and events are not sent from one: ALTER DATABASE ... IS_TEMPLATE false changes that";
	else if (!db->datallowconn)
		reason = "this database does not allow connections, which the worker needs, too: ALTER DATABASE ... ALLOW_CONNECTIONS true changes that";
	ReleaseSysCache(tuple);
	return reason;
}

/*
 * Why no worker runs, given what the database's slot says (NULL if it has none);
 * what concerns the whole server comes first.
 */
static const char *
why_not_running(pid_t pid, const OnsideStatus *status)
{
	const char *reason;

	if (!onside_shmem_available())
		return "the library is not preloaded: add onside_attribution to shared_preload_libraries and restart the server";
	if (RecoveryInProgress())
		return "this server is a standby: the primary sends, and this one does when it is promoted";
	reason = why_not_served();
	if (reason != NULL)
		return reason;
	if (onside_launcher_pid() == 0)
		return "the launcher is not running; see the server's log";
	if (status == NULL)
	{
		for (int i = 0; i < onside_max_databases; i++)
			if (!OidIsValid(onside_slot_database(onside_slot_get(i))))
				return "the launcher has not got to this database yet";
		return "as many databases as onside_attribution.max_databases allows are served already: increase it and restart the server";
	}
	if (pid != 0)
		return "a worker is starting; if that lasts, pg_stat_activity shows what it waits for";
	if (status->reason[0] != '\0')
		return status->reason;
	return "a worker is about to be started";
}

/* How things stand, and no number. */
static void
status_alone(pid_t pid, OnsideState state, const char *reason, Datum *values,
			 bool *nulls)
{
	memset(nulls, true, STATUS_COLUMNS * sizeof(bool));
	nulls[STATUS_WORKER_PID] = pid == 0;
	values[STATUS_WORKER_PID] = Int32GetDatum(pid);
	nulls[STATUS_STATE] = false;
	values[STATUS_STATE] = CStringGetTextDatum(onside_state_name(state));
	set_text(values, nulls, STATUS_STATE_REASON, reason);
}

/* What is pending according to the tables, up to one more than MAX_COUNTED. */
static OnsidePending
count_pending(const OnsideCursor *settled)
{
	OnsidePending pending = onside_window_pending(settled, NULL,
												  MAX_COUNTED + 1);
	TimestampTz oldest;

	pending.events += onside_aside_count(MAX_COUNTED + 1, &oldest);
	if (oldest != 0 && (pending.oldest == 0 || oldest < pending.oldest))
		pending.oldest = oldest;
	return pending;
}

/* From the tables, where no worker tells. */
static void
status_from_tables(pid_t pid, OnsideState state, const char *reason,
				   Datum *values, bool *nulls)
{
	OnsideDelivery delivery = {0};
	OnsidePending pending;
	char	   *problem = onside_version_problem();
	const char *row_problem;
	const char *busy;

	/* The tables of another version, or altered ones, may have any shape. */
	if (problem == NULL)
	{
		bool		usable;
		char	   *report = onside_shape_report(&usable);

		if (report != NULL && !usable)
			problem = report;
	}
	if (problem != NULL)
	{
		status_alone(pid, state, problem, values, nulls);
		return;
	}

	busy = onside_lock_tables(STATUS_USES);
	if (busy != NULL)
	{
		status_alone(pid, state,
					 psprintf("%s (%s.%s is locked by another session, so nothing more is known)",
							  reason, ONSIDE_SCHEMA, busy), values, nulls);
		return;
	}
	onside_delivery_load(&delivery, NULL, &row_problem);
	pending = count_pending(&delivery.settled);
	if (pending.events > MAX_COUNTED)
		reason = psprintf("%s (more than %d events are pending)", reason,
						  MAX_COUNTED);
	onside_cursor_release(&delivery.settled);
	onside_unlock_tables(STATUS_USES);

	status_alone(pid, state, reason, values, nulls);
	set_age(values, nulls, pending.oldest);
	set_int64(values, nulls, STATUS_PENDING,
			  Min(pending.events, MAX_COUNTED));
	set_int64(values, nulls, STATUS_DELIVERED, delivery.delivered);
	set_int64(values, nulls, STATUS_DEAD_LETTERED, delivery.dead_lettered);
	set_int64(values, nulls, STATUS_REQUESTS, delivery.requests);
	set_int64(values, nulls, STATUS_RETRIES, delivery.retries);
	nulls[STATUS_IN_FLIGHT] = false;
	values[STATUS_IN_FLIGHT] = Int32GetDatum(0);
}

/* What the worker that is in the slot has published. */
static void
status_of_worker(pid_t pid, const OnsideStatus *status, int64 pending,
				 Datum *values, bool *nulls)
{
	if (status->objects_differ)
	{
		status_from_tables(pid, status->state, status->reason, values, nulls);
		return;
	}

	values[STATUS_WORKER_PID] = Int32GetDatum(pid);
	values[STATUS_STATE] = CStringGetTextDatum(onside_state_name(status->state));
	set_text(values, nulls, STATUS_STATE_REASON, status->reason);
	set_int64(values, nulls, STATUS_PENDING, pending);
	set_age(values, nulls, pending > 0 ? status->oldest_recorded_at : 0);
	values[STATUS_IN_FLIGHT] = Int32GetDatum(status->in_flight);
	set_int64(values, nulls, STATUS_DELIVERED, status->delivered);
	set_int64(values, nulls, STATUS_DEAD_LETTERED, status->dead_lettered);
	set_int64(values, nulls, STATUS_REQUESTS, status->requests);
	set_int64(values, nulls, STATUS_RETRIES, status->retries);
	set_time(values, nulls, STATUS_LAST_SUCCESS_AT, status->last_success_at);
	set_text(values, nulls, STATUS_LAST_ERROR, status->last_error);
	set_time(values, nulls, STATUS_LAST_ERROR_AT, status->last_error_at);
	set_time(values, nulls, STATUS_NEXT_ATTEMPT_AT, status->next_attempt_at);
}

/* worker_status() */
Datum
onside_worker_status(PG_FUNCTION_ARGS)
{
	OnsideSlot *slot = onside_slot_find(MyDatabaseId);
	OnsideStatus status;
	int64		pending;
	pid_t		pid = slot == NULL ? 0 :
		onside_slot_read_status(slot, &status, &pending);
	char	   *crashes;
	TupleDesc	tupdesc;
	Datum		values[STATUS_COLUMNS] = {0};
	bool		nulls[STATUS_COLUMNS] = {0};

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	if (pid != 0 && status.state != ONSIDE_NOT_RUNNING)
		status_of_worker(pid, &status, pending, values, nulls);
	else if (pid == 0 && onside_launcher_pid() != 0 &&
			 (crashes = onside_crash_guard_reason()) != NULL)
	{
		/* What is in the tables may be what crashes who reads it. */
		status_alone(0, ONSIDE_MISCONFIGURED, crashes, values, nulls);
	}
	else
		status_from_tables(0, ONSIDE_NOT_RUNNING,
						   why_not_running(pid, slot == NULL ? NULL : &status),
						   values, nulls);

	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc),
													  values, nulls)));
}
