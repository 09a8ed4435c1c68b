/*-------------------------------------------------------------------------
 *
 * status.c
 *		The function beneath the view "status".
 *
 * While a worker runs, everything comes from what the worker publishes in
 * shared memory, at the same cost whatever the backlog.  Without a worker,
 * the counters come from delivery_cursor, and pending events are counted up
 * to a bound.  Tables are read only if nobody has locked them: status never
 * waits for a lock.  While no worker is started because too many have
 * crashed, no table is read.
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

#include "log/crash_guard.h"
#include "log/locks.h"
#include "log/shape.h"
#include "log/shmem.h"
#include "log/tables.h"
#include "operate/control.h"
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

#define STATUS_USES \
	(ONSIDE_USES_LOG | ONSIDE_READS_CURSOR | ONSIDE_READS_ASIDE)

/* The row that is returned.  A column is NULL until it is set. */
typedef struct StatusRow
{
	Datum		values[STATUS_COLUMNS];
	bool		nulls[STATUS_COLUMNS];
} StatusRow;

static void
set_status_value(StatusRow *row, int column, Datum value)
{
	row->nulls[column] = false;
	row->values[column] = value;
}

/* No text, or an empty one, is NULL. */
static void
set_status_text(StatusRow *row, int column, const char *str)
{
	if (str != NULL && str[0] != '\0')
		set_status_value(row, column, CStringGetTextDatum(str));
}

/* 0 is no time, and NULL. */
static void
set_status_time(StatusRow *row, int column, TimestampTz time)
{
	if (time != 0)
		set_status_value(row, column, TimestampTzGetDatum(time));
}

/* How things stand, in words. */
static void
set_status_state(StatusRow *row, pid_t pid, OnsideState state,
				 const char *reason)
{
	if (pid != 0)
		set_status_value(row, STATUS_WORKER_PID, Int32GetDatum(pid));
	set_status_text(row, STATUS_STATE, onside_state_name(state));
	set_status_text(row, STATUS_STATE_REASON, reason);
}

/* The numbers that a worker publishes, and that delivery_cursor keeps. */
static void
set_status_counts(StatusRow *row, int64 delivered, int64 dead_lettered,
				  int64 requests, int64 retries)
{
	set_status_value(row, STATUS_DELIVERED, Int64GetDatum(delivered));
	set_status_value(row, STATUS_DEAD_LETTERED, Int64GetDatum(dead_lettered));
	set_status_value(row, STATUS_REQUESTS, Int64GetDatum(requests));
	set_status_value(row, STATUS_RETRIES, Int64GetDatum(retries));
}

/* What is to be sent.  The clock may have been set back since "oldest". */
static void
set_status_pending(StatusRow *row, int64 pending, TimestampTz oldest,
				   int in_flight)
{
	Datum		now = TimestampTzGetDatum(Max(GetCurrentTimestamp(), oldest));

	set_status_value(row, STATUS_PENDING, Int64GetDatum(pending));
	set_status_value(row, STATUS_IN_FLIGHT, Int32GetDatum(in_flight));
	if (oldest != 0)
		set_status_value(row, STATUS_OLDEST_PENDING_AGE,
						 DirectFunctionCall2(timestamp_mi, now,
											 TimestampTzGetDatum(oldest)));
}

/* Why this database is not served, by its row in pg_database; or NULL. */
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
 * Why no worker runs, given what the database's slot says (NULL: it has no
 * slot).  What concerns the whole server comes first.
 */
static const char *
why_not_running(pid_t pid, const OnsideStatus *status)
{
	const char *reason;

	if (!onside_shmem_available())
		return "the library is not preloaded: add onside_attribution to shared_preload_libraries and restart the server";
	if (RecoveryInProgress())
		return "this server is a standby: the primary sends, and this one does when it is promoted";

	/* This database, as its owner has it. */
	reason = why_not_served();
	if (reason != NULL)
		return reason;
	if (onside_launcher_pid() == 0)
		return "the launcher is not running; see the server's log";

	/* Without a slot it waits for the launcher, or for a place. */
	if (status == NULL)
	{
		for (int i = 0; i < onside_max_databases; i++)
			if (!OidIsValid(onside_slot_database(onside_slot_get(i))))
				return "the launcher has not got to this database yet";
		return "as many databases as onside_attribution.max_databases allows are served already: increase it and restart the server";
	}

	/* With a slot, its worker or the launcher has said why. */
	if (status->reason[0] != '\0')
		return status->reason;
	if (pid != 0)
		return "a worker is starting; if that lasts, pg_stat_activity shows what it waits for";
	return "a worker is about to be started";
}

/* From the tables, where no worker tells. */
static void
status_from_tables(StatusRow *row, pid_t pid, OnsideState state,
				   const char *reason)
{
	OnsideDelivery delivery = {0};
	OnsidePending pending;
	bool		usable = true;
	char	   *problem = onside_version_problem();
	char	   *report;
	const char *busy;

	/* The tables of another version, or altered ones, may have any shape. */
	if (problem == NULL && (report = onside_shape_report(&usable)) != NULL &&
		!usable)
		problem = report;
	if (problem != NULL)
	{
		set_status_state(row, pid, state, problem);
		return;
	}

	/* Wait for nobody's lock: a look must not hang. */
	busy = onside_lock_tables(STATUS_USES);
	if (busy != NULL)
	{
		set_status_state(row, pid, state,
						 psprintf("%s (%s.%s is locked by another session, so nothing more is known)",
								  reason, ONSIDE_SCHEMA, busy));
		return;
	}
	onside_count_pending(&delivery, &pending);
	onside_unlock_tables(STATUS_USES);

	if (pending.events > ONSIDE_MAX_COUNTED)
		reason = psprintf("%s (more than %d events are pending)", reason,
						  ONSIDE_MAX_COUNTED);
	set_status_state(row, pid, state, reason);
	set_status_pending(row, Min(pending.events, ONSIDE_MAX_COUNTED),
					   pending.oldest, 0);
	set_status_counts(row, delivery.delivered, delivery.dead_lettered,
					  delivery.requests, delivery.retries);
}

/* What the worker that is in the slot has published. */
static void
status_of_worker(StatusRow *row, pid_t pid, const OnsideStatus *status,
				 int64 pending)
{
	/* A worker that finds objects of another version counts nothing. */
	if (status->objects_differ)
	{
		status_from_tables(row, pid, status->state, status->reason);
		return;
	}

	set_status_state(row, pid, status->state, status->reason);
	set_status_pending(row, pending,
					   pending > 0 ? status->oldest_recorded_at : 0,
					   status->in_flight);
	set_status_counts(row, status->delivered, status->dead_lettered,
					  status->requests, status->retries);
	set_status_time(row, STATUS_LAST_SUCCESS_AT, status->last_success_at);
	set_status_text(row, STATUS_LAST_ERROR, status->last_error);
	set_status_time(row, STATUS_LAST_ERROR_AT, status->last_error_at);
	set_status_time(row, STATUS_NEXT_ATTEMPT_AT, status->next_attempt_at);
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
	StatusRow	row = {0};

	memset(row.nulls, true, sizeof(row.nulls));
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	/* A worker that has not said anything yet counts as none. */
	if (pid != 0 && status.state != ONSIDE_NOT_RUNNING)
		status_of_worker(&row, pid, &status, pending);
	else if (pid == 0 && onside_launcher_pid() != 0 &&
			 (crashes = onside_crash_guard_reason()) != NULL)
	{
		/* What is in the tables may be what crashes who reads it. */
		set_status_state(&row, 0, ONSIDE_MISCONFIGURED, crashes);
	}
	else
		status_from_tables(&row, 0, ONSIDE_NOT_RUNNING,
						   why_not_running(pid, slot == NULL ? NULL : &status));

	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc),
													  row.values,
													  row.nulls)));
}
