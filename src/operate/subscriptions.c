/*-------------------------------------------------------------------------
 *
 * subscriptions.c
 *		The view "subscriptions", and what doctor() says about them.
 *
 * Events that another server has recorded come into the outbox by logical
 * replication.  Half a dozen catalogs and views tell how a subscription does,
 * and their columns change with the version.  One query puts them together,
 * and says in words what is wrong.  Everybody may read these catalogs, so the
 * query runs with the caller's rights.  One thing is hidden from roles
 * outside of pg_read_all_stats: since when a worker has run.
 *
 * A worker that fails is started again after some seconds, so the presence of
 * a worker says little.  A subscription fails if there were errors and its
 * worker is young, or if its worker has not heard of the publisher yet.  The
 * error itself is in the server's log alone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "compat.h"
#include "log/event.h"
#include "log/tables.h"
#include "operate/doctor.h"

PG_FUNCTION_INFO_V1(onside_subscription_status);

/*
 * Those of this database that write into a table of ours.  15 has no
 * leader_pid and no worker_type, and 19 counts the errors of sequences by
 * themselves: hence to_jsonb().  A healthy publisher is heard of every
 * wal_receiver_timeout / 2 at least, which is 30 s.
 */
#define QUERY \
	"SELECT name, enabled, worker_pid, tables, tables_ready, received_lsn, last_message_at, last_message_delay, errors," \
	" CASE WHEN NOT enabled THEN 'it is disabled'" \
	"  WHEN worker_pid IS NULL THEN format('no apply worker is running; errors so far: %s', errors)" \
	"  WHEN errors > 0 AND started_at > clock_timestamp() - interval '1 minute'" \
	"   THEN format('errors so far: %s; its worker was started again at %s', errors, started_at)" \
	"  WHEN last_message_at IS NULL THEN 'its worker has not heard of the publishing server yet'" \
	"  WHEN tables_ready < tables THEN format('the initial copy has not ended: %s of %s tables are ready', tables_ready, tables)" \
	"  WHEN last_message_at < clock_timestamp() - interval '3 minutes'" \
	"   THEN format('its worker has heard of the publishing server last at %s', last_message_at)" \
	" END AS problem" \
	" FROM (SELECT s.subname AS name, s.subenabled AS enabled, w.pid AS worker_pid, r.tables, r.tables_ready," \
	"  w.received_lsn, w.last_msg_receipt_time AS last_message_at," \
	"  w.last_msg_receipt_time - w.last_msg_send_time AS last_message_delay," \
	"  coalesce(e.errors, 0) AS errors, a.backend_start AS started_at" \
	"  FROM pg_subscription s" \
	"  JOIN LATERAL (SELECT count(*) AS tables, count(*) FILTER (WHERE r.srsubstate = 'r') AS tables_ready" \
	"   FROM pg_subscription_rel r JOIN pg_class c ON c.oid = r.srrelid" \
	"   JOIN pg_namespace n ON n.oid = c.relnamespace" \
	"   WHERE r.srsubid = s.oid AND n.nspname = '" ONSIDE_SCHEMA "') r ON r.tables > 0" \
	"  LEFT JOIN LATERAL (SELECT w.* FROM pg_stat_subscription w WHERE w.subid = s.oid AND w.relid IS NULL" \
	"   AND w.pid IS NOT NULL AND to_jsonb(w) ->> 'leader_pid' IS NULL" \
	"   AND coalesce(to_jsonb(w) ->> 'worker_type', 'apply') = 'apply' LIMIT 1) w ON true" \
	"  LEFT JOIN pg_stat_activity a ON a.pid = w.pid" \
	"  LEFT JOIN LATERAL (SELECT sum(c.value::bigint)::bigint AS errors" \
	"   FROM pg_stat_subscription_stats e, jsonb_each_text(to_jsonb(e)) c" \
	"   WHERE e.subid = s.oid AND c.key LIKE '%error\\_count') e ON true" \
	"  WHERE NOT pg_is_in_recovery() AND s.subdbid =" \
	"   (SELECT oid FROM pg_database WHERE datname = current_database())) q" \
	" ORDER BY name"

enum
{
	COLUMN_NAME = 1,
	COLUMN_ENABLED,
	COLUMN_WORKER_PID,
	COLUMN_LAST_MESSAGE_AT = 7,
	COLUMN_PROBLEM = 10
};

/* Beneath the view; its search_path is pg_catalog by its definition. */
Datum
onside_subscription_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	SPI_connect();
	if (SPI_execute(QUERY, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not look at the subscriptions");
	for (uint64 i = 0; i < SPI_processed; i++)
		tuplestore_puttuple(rsinfo->setResult, SPI_tuptable->vals[i]);
	SPI_finish();
	return (Datum) 0;
}

#define ENABLE_HINT \
	"ALTER SUBSCRIPTION %s ENABLE; If an error has disabled it (disable_on_error), the server's log says which: repair that first."
#define PROBLEM_HINT \
	"If it does not pass by itself: the server's log says why, look for \"logical replication\"." \
	" On the publishing server, pg_replication_slots shows whether the slot is there and not lost." \
	" docs/managed.md says how to start over without losing an event."

/* Adds a row for each subscription, or a row that says that there is none. */
void
onside_doctor_subscriptions(OnsideDoctor *doctor)
{
	int			n = onside_doctor_query(QUERY);

	/* None: a standby has its primary's subscriptions, and no workers. */
	if (n == 0 && doctor->standby)
		onside_doctor_row(doctor, "subscriptions", ONSIDE_UNKNOWN,
						  "this server is a standby: the primary subscribes",
						  NULL);
	else if (n == 0)
		onside_doctor_row(doctor, "subscriptions", ONSIDE_GOOD,
						  "none brings events of another server", NULL);

	/* A row for each; the query says what is wrong with it, or NULL. */
	for (int i = 0; i < n; i++)
	{
		char	   *name = onside_doctor_value(i, COLUMN_NAME);
		char	   *problem = onside_doctor_value(i, COLUMN_PROBLEM);
		bool		enabled = onside_doctor_value(i, COLUMN_ENABLED)[0] == 't';

		onside_doctor_judge(doctor, "subscriptions", problem == NULL ? NULL :
							psprintf("subscription \"%s\": %s", name, problem),
							psprintf("subscription \"%s\": process %s, last message at %s",
									 name,
									 onside_doctor_value(i, COLUMN_WORKER_PID),
									 onside_doctor_value(i, COLUMN_LAST_MESSAGE_AT)),
							enabled ? PROBLEM_HINT :
							psprintf(ENABLE_HINT, quote_identifier(name)));
	}
}
