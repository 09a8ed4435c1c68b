/*-------------------------------------------------------------------------
 *
 * doctor_events.c
 *		doctor(): the checks of what becomes of events.
 *
 * The last answer, what waits and for what, the outbox's segments, dead letters
 * and the tables that report events.  See doctor.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "delivery.h"
#include "doctor.h"
#include "outbox.h"
#include "segment.h"
#include "settings.h"
#include "shape.h"
#include "shmem.h"

/* Of a list in a detail, no more than this is shown. */
#define MAX_LISTED	10

/* ----------
 * What somebody has done to our tables
 * ----------
 */

void
onside_doctor_tables(OnsideDoctor *doctor)
{
	char	   *problems;

	if (!doctor->tables_known)
	{
		onside_doctor_row(doctor, "tables", ONSIDE_UNKNOWN,
						  "see the check version", NULL);
		return;
	}
	problems = onside_shape_report(&doctor->tables_known);
	if (problems == NULL)
		onside_doctor_row(doctor, "tables", ONSIDE_GOOD,
						  "the extension's tables are as it needs them", NULL);
	else
		onside_doctor_row(doctor, "tables", ONSIDE_BAD, problems,
						  "The extension writes and reads these tables directly, without triggers, rules and constraints. Undo these changes with ALTER TABLE or DROP; columns that can be null and have no default, and indexes on columns that are not unique, may stay.");
}

/* ----------
 * The last answer
 * ----------
 */

static const struct
{
	const char *state;
	const char *hint;
}			answer_hints[] =
{
	{"unauthorized",
	"Put the right user:password into the credentials file, then SELECT onside_attribution.resume();"},
	{"misconfigured",
	"Something else answers than the attribution API: correct onside_attribution.endpoint, then SELECT pg_reload_conf();"},
	{"refusing",
	"The API refuses every event: check that onside_attribution.endpoint and the account are the right ones, then SELECT onside_attribution.resume();"},
	{"backing_off",
	"It is tried again by itself. After a repair, SELECT onside_attribution.resume(); makes it be tried at once."},
};

static void
check_last_answer(OnsideDoctor *doctor)
{
	bool		works = strcmp(doctor->state, "idle") == 0 ||
		strcmp(doctor->state, "sending") == 0;
	const char *hint = NULL;

	if (doctor->worker_pid == NULL)
	{
		onside_doctor_row(doctor, "last_answer", ONSIDE_UNKNOWN,
						  "there is no worker to ask", NULL);
		return;
	}
	for (int i = 0; i < (int) lengthof(answer_hints); i++)
		if (strcmp(doctor->state, answer_hints[i].state) == 0)
			hint = answer_hints[i].hint;

	/* A state that comes from the settings is no answer's. */
	if (strcmp(doctor->state, "misconfigured") == 0 && doctor->first_bad != NULL)
		hint = NULL;

	/* Not because of an answer, and this session sees no reason. */
	if (strcmp(doctor->state, "misconfigured") == 0 &&
		(doctor->last_error == NULL || !doctor->last_was_error) &&
		doctor->first_bad == NULL)
		onside_doctor_row(doctor, "last_answer", ONSIDE_BAD,
						  psprintf("the worker sends nothing: %s",
								   doctor->reason != NULL ? doctor->reason : "no reason is known"),
						  "The worker may have newer settings than this session: connect again, call doctor() there, and follow its hints.");
	else if (doctor->last_error == NULL && doctor->last_success_at == NULL)
		onside_doctor_row(doctor, "last_answer", ONSIDE_GOOD,
						  "none yet since the worker was started", NULL);
	else if (!doctor->last_was_error)
		onside_doctor_row(doctor, "last_answer", ONSIDE_GOOD,
						  psprintf("accepted, at %s", doctor->last_success_at),
						  NULL);
	else
		onside_doctor_row(doctor, "last_answer",
						  works ? ONSIDE_GOOD :
						  hint != NULL ? ONSIDE_BAD : ONSIDE_UNKNOWN,
						  psprintf("%s, at %s%s%s", doctor->last_error,
								   doctor->last_error_at,
								   doctor->next_attempt_at != NULL ? "; next attempt at " : "",
								   doctor->next_attempt_at != NULL ? doctor->next_attempt_at : ""),
						  hint);
}

/* ----------
 * What waits
 * ----------
 */

static void
check_backlog(OnsideDoctor *doctor)
{
	const char *hint;
	char	   *detail;

	if (doctor->pending == NULL)
	{
		onside_doctor_row(doctor, "backlog", ONSIDE_UNKNOWN,
						  "see the check version", NULL);
		return;
	}
	if (strcmp(doctor->pending, "0") == 0)
	{
		onside_doctor_row(doctor, "backlog", ONSIDE_GOOD, "nothing is pending",
						  NULL);
		return;
	}

	detail = psprintf("%s events are pending, the oldest for %s, in state %s%s%s",
					  doctor->pending,
					  doctor->oldest_age != NULL ? doctor->oldest_age : "a moment",
					  doctor->state, doctor->reason != NULL ? ": " : "",
					  doctor->reason != NULL ? doctor->reason : "");
	if (doctor->first_bad != NULL)
		hint = psprintf("Follow the hint of the check %s.", doctor->first_bad);
	else if (strcmp(doctor->state, "sending") != 0)
		hint = psprintf("Sending goes on by itself when the state %s ends; SELECT onside_attribution.resume(); makes the worker try at once.",
						doctor->state);
	else
		hint = psprintf("They come in faster than the API takes them: ALTER SYSTEM SET onside_attribution.max_in_flight = %d; SELECT pg_reload_conf(); and see request_ms_p50 in onside_attribution.stats.",
						Min(onside_max_in_flight * 2, 64));
	onside_doctor_row(doctor, "backlog",
					  doctor->backlog_is_old ? ONSIDE_BAD : ONSIDE_GOOD,
					  detail, hint);
}

/* ----------
 * Segments
 * ----------
 */

/*
 * Who has had a lock on the segment for some seconds, and how to end that; false
 * if nobody has.  A prepared transaction is known by the lock on its transaction
 * number.
 */
static bool
find_holder(Oid relid, StringInfo detail, char **hint)
{
	char	   *query =
		psprintf("SELECT l.pid, p.gid, a.usename, a.state, a.xact_start"
				 " FROM pg_catalog.pg_locks l"
				 " LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid"
				 " LEFT JOIN pg_catalog.pg_locks x ON l.pid IS NULL AND x.pid IS NULL"
				 "  AND x.locktype = 'transactionid'"
				 "  AND x.virtualtransaction = l.virtualtransaction"
				 " LEFT JOIN pg_catalog.pg_prepared_xacts p"
				 "  ON p.transaction = x.transactionid"
				 " WHERE l.locktype = 'relation' AND l.relation = %u AND l.granted"
				 " AND l.database = (SELECT oid FROM pg_catalog.pg_database"
				 "  WHERE datname = pg_catalog.current_database())"
				 " AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()"
				 " AND a.backend_type IS DISTINCT FROM 'onside_attribution worker'"
				 " AND coalesce(a.xact_start, p.prepared, '-infinity')"
				 "  < pg_catalog.clock_timestamp() - interval '5 seconds'"
				 " ORDER BY a.xact_start NULLS FIRST LIMIT 1", relid);
	char	   *pid;
	char	   *gid;

	onside_doctor_query(query);
	if (SPI_processed == 0)
		return false;
	pid = onside_doctor_value(0, 1);
	gid = onside_doctor_value(0, 2);
	if (pid != NULL)
	{
		char	   *user = onside_doctor_value(0, 3);
		char	   *state = onside_doctor_value(0, 4);
		char	   *since = onside_doctor_value(0, 5);

		appendStringInfo(detail, "in use by process %s (%s, %s, in a transaction since %s)",
						 pid, user != NULL ? user : "no user",
						 state != NULL ? state : "state unknown",
						 since != NULL ? since : "an unknown time");
		*hint = psprintf("Have that transaction end, or SELECT pg_terminate_backend(%s);",
						 pid);
	}
	else
	{
		char	   *name = quote_literal_cstr(gid != NULL ? gid : "?");

		appendStringInfo(detail, "in use by the prepared transaction %s", name);
		*hint = psprintf("COMMIT PREPARED %s; or ROLLBACK PREPARED %s;", name,
						 name);
	}
	return true;
}

static void
check_outbox(OnsideDoctor *doctor)
{
	OnsideDelivery delivery = {0};
	StringInfoData detail;
	OnsideVerdict ok = ONSIDE_GOOD;
	char	   *hint = NULL;

	if (!doctor->tables_known)
	{
		onside_doctor_row(doctor, "outbox", ONSIDE_UNKNOWN,
						  "see the checks version and tables", NULL);
		return;
	}

	PushActiveSnapshot(GetLatestSnapshot());
	onside_delivery_load(&delivery, NULL);
	initStringInfo(&detail);
	for (int i = 1; i <= ONSIDE_SEGMENTS; i++)
	{
		OnsideSegmentReport report;

		onside_segment_report(i, &delivery.settled, &report);
		appendStringInfo(&detail, "%ssegment %d has " UINT64_FORMAT " kB%s",
						 i > 1 ? "; " : "", i, report.bytes / 1024,
						 i == delivery.segment ? ", is written to" : "");
		if (report.bytes == 0)
			continue;
		if (report.unsettled)
			appendStringInfoString(&detail, ", has pending events");
		else if (i == delivery.segment)
			continue;
		else if (report.retained)
			appendStringInfoString(&detail, ", is kept for onside_attribution.retention");
		else
		{
			appendStringInfoString(&detail, ", is delivered, ");
			if (find_holder(onside_segment_oid(i), &detail, &hint))
				ok = ONSIDE_BAD;
			else
				appendStringInfoString(&detail, doctor->worker_pid != NULL ?
									   "is emptied within a minute" :
									   "is emptied when there is a worker");
		}
	}
	onside_cursor_release(&delivery.settled);
	PopActiveSnapshot();
	onside_doctor_row(doctor, "outbox", ok, detail.data, hint);
}

/* ----------
 * Dead letters
 * ----------
 */

static void
check_dead_letters(OnsideDoctor *doctor)
{
	char	   *n;
	char	   *newest;

	if (!doctor->tables_known)
	{
		onside_doctor_row(doctor, "dead_letters", ONSIDE_UNKNOWN,
						  "see the checks version and tables", NULL);
		return;
	}
	onside_doctor_query("SELECT pg_catalog.count(*), pg_catalog.max(failed_at)"
						" FROM onside_attribution.dead_letter");
	n = onside_doctor_value(0, 1);
	newest = onside_doctor_value(0, 2);
	if (newest == NULL)
		onside_doctor_row(doctor, "dead_letters", ONSIDE_GOOD,
						  "there are none", NULL);
	else
		onside_doctor_row(doctor, "dead_letters", ONSIDE_BAD,
						  psprintf("%s events were refused for good, the last at %s",
								   n, newest),
						  "SELECT event_id, error FROM onside_attribution.dead_letter ORDER BY failed_at DESC; says why. Repair that, then SELECT onside_attribution.retry_dead_letters(); or DELETE FROM onside_attribution.dead_letter;");
}

/* ----------
 * Tables that report events
 * ----------
 */

/* Triggers that do not fire, or whose columns are not there any more. */
#define BROKEN_TRIGGERS \
	"SELECT pg_catalog.format('the trigger %I on %s is disabled'," \
	"  tgname, tgrelid::regclass)," \
	" pg_catalog.format('ALTER TABLE %s ENABLE TRIGGER %I;'," \
	"  tgrelid::regclass, tgname)" \
	" FROM pg_catalog.pg_trigger" \
	" WHERE tgfoid = 'onside_attribution.track_row()'::regprocedure" \
	" AND NOT tgisinternal AND tgenabled IN ('D', 'R')" \
	" UNION ALL" \
	" SELECT pg_catalog.format('the trigger %I on %s maps the column %I," \
	" which is not there', a.trigger_name, a.source, m.c)," \
	" pg_catalog.format('SELECT onside_attribution.detach(%L, %L);" \
	" and attach() again with the columns that there are'," \
	"  a.source, a.event_name)" \
	" FROM onside_attribution.attached a," \
	" LATERAL (SELECT pg_catalog.unnest(ARRAY[installation_id, event_datetime, event_id])" \
	"  UNION SELECT value FROM pg_catalog.jsonb_each_text(a.payload)) m(c)" \
	" WHERE m.c IS NOT NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute" \
	"  WHERE attrelid = a.source AND attname = m.c::name" \
	"  AND attnum > 0 AND NOT attisdropped)" \
	" UNION ALL" \
	" SELECT pg_catalog.format('the trigger %I on %s has arguments that are not understood'," \
	"  trigger_name, source)," \
	" pg_catalog.format('DROP TRIGGER %I ON %s; and attach() the event again'," \
	"  trigger_name, source)" \
	" FROM onside_attribution.attached WHERE event_name IS NULL"

static void
check_attached(OnsideDoctor *doctor)
{
	StringInfoData detail;
	char	   *hint;
	char	   *n;
	uint64		broken;

	onside_doctor_query(BROKEN_TRIGGERS);
	broken = SPI_processed;
	if (broken > 0)
	{
		initStringInfo(&detail);
		for (uint64 i = 0; i < Min(broken, MAX_LISTED); i++)
			appendStringInfo(&detail, "%s%s", i > 0 ? "; " : "",
							 onside_doctor_value(i, 1));
		if (broken > MAX_LISTED)
			appendStringInfoString(&detail, "; and others");
		hint = onside_doctor_value(0, 2);
		onside_doctor_row(doctor, "attached", ONSIDE_BAD, detail.data, hint);
		return;
	}

	onside_doctor_query("SELECT pg_catalog.count(*) FROM onside_attribution.attached");
	n = onside_doctor_value(0, 1);
	onside_doctor_query("SELECT skipped FROM onside_attribution.delivery_stats()"
						" WHERE skipped > 0");
	onside_doctor_row(doctor, "attached", ONSIDE_GOOD,
					  strcmp(n, "0") == 0 ?
					  "no table is attached; events come from the functions and the outbox alone" :
					  psprintf("%s triggers are enabled and their columns are there%s",
							   n, SPI_processed == 0 ? "" :
							   psprintf("; %s rows had no installation_id and were skipped",
										onside_doctor_value(0, 1))), NULL);
}

void
onside_doctor_events(OnsideDoctor *doctor)
{
	check_last_answer(doctor);
	check_backlog(doctor);
	check_outbox(doctor);
	check_dead_letters(doctor);
	check_attached(doctor);
}
