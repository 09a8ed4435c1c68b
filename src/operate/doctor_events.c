/*-------------------------------------------------------------------------
 *
 * doctor_events.c
 *		doctor(): the checks of what becomes of events.
 *
 * The checks of the last answer, of what waits and for what, of the outbox's
 * segments, of dead letters, and of the tables that report events.  See
 * doctor.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "attach/attached.h"
#include "log/dead_letter.h"
#include "log/delivery.h"
#include "log/namespace.h"
#include "log/segment.h"
#include "log/shmem.h"
#include "log/tables.h"
#include "operate/control.h"
#include "operate/doctor.h"
#include "record/mapping.h"
#include "settings.h"

/* Of a list in a detail, no more than this is shown. */
#define MAX_LISTED	10

/* ----------
 * The last answer
 * ----------
 */

/* What to do about the states that come from answers. */
static const struct
{
	const char *state;
	const char *hint;
}			answer_hints[] =
{
	{"unauthorized",
	"Put the right user:password into the credentials file, then SELECT onside_attribution.resume();"},
	{"misconfigured",
	"Correct what state_reason in onside_attribution.status names (onside_attribution.endpoint, proxy or ca_file), then SELECT pg_reload_conf();"},
	{"refusing",
	"The API refuses every event: check that onside_attribution.endpoint and the account are the right ones, then SELECT onside_attribution.resume();"},
	{"backing_off",
	"It is tried again by itself. After a repair, SELECT onside_attribution.resume(); makes it be tried at once."},
};

/* Does the API accept events?  What it said last, and what that asks for. */
static void
check_last_answer(OnsideDoctor *doctor)
{
	const char *hint = NULL;
	bool		works;

	if (doctor->worker_pid == NULL)
	{
		onside_doctor_row(doctor, "last_answer", ONSIDE_UNKNOWN,
						  "there is no worker to ask", NULL);
		return;
	}

	/* Is the state one that an answer can have led to? */
	works = strcmp(doctor->state, "idle") == 0 ||
		strcmp(doctor->state, "sending") == 0;
	for (int i = 0; i < (int) lengthof(answer_hints); i++)
		if (strcmp(doctor->state, answer_hints[i].state) == 0)
			hint = answer_hints[i].hint;

	/* A state that comes from the settings is no answer's. */
	if (strcmp(doctor->state, "misconfigured") == 0 && doctor->first_bad != NULL)
		hint = NULL;

	/* Misconfigured, not by an answer, and this session sees no reason. */
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
	else						/* an error that is over, or is not */
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

/* Does anything wait for long?  How much is pending, and why. */
static void
check_backlog(OnsideDoctor *doctor)
{
	const char *hint;
	char	   *detail;

	if (doctor->pending == NULL)
	{
		onside_doctor_row(doctor, "backlog", ONSIDE_UNKNOWN,
						  "see the checks above", NULL);
		return;
	}
	if (strcmp(doctor->pending, "0") == 0)
	{
		onside_doctor_row(doctor, "backlog", ONSIDE_GOOD, "nothing is pending",
						  NULL);
		return;
	}

	/* An earlier check may say why; otherwise the state does. */
	detail = psprintf("%s event%s pending, the oldest for %s, in state %s%s%s",
					  doctor->pending,
					  strcmp(doctor->pending, "1") == 0 ? " is" : "s are",
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
 * Says what keeps each segment from being emptied; bad if somebody's lock
 * does.
 */
static void
look_at_outbox(OnsideDoctor *doctor)
{
	OnsideDelivery delivery = {0};
	StringInfoData detail;
	OnsideVerdict ok = ONSIDE_GOOD;
	char	   *hint = NULL;
	const char *problem;

	/* Lock all that is read, or let the row say what is locked. */
	(void) onside_doctor_table("delivery_cursor");
	for (int i = 1; i <= ONSIDE_SEGMENTS; i++)
		(void) onside_doctor_table(psprintf("outbox_%d", i));

	/* Each segment: its size, and the reason why it is not emptied. */
	onside_delivery_load(&delivery, NULL, &problem);
	initStringInfo(&detail);
	for (int i = 1; i <= ONSIDE_SEGMENTS; i++)
	{
		OnsideSegmentReport report;

		onside_segment_report(i, &delivery, &report);
		appendStringInfo(&detail, "%ssegment %d has " UINT64_FORMAT " kB%s",
						 i > 1 ? "; " : "", i, report.bytes / 1024,
						 i == delivery.segment ? ", is written to" : "");

		/* The first reason that keeps the segment is the one that counts. */
		if (report.bytes == 0)
			continue;
		if (report.unsettled)
			appendStringInfoString(&detail, ", has pending events");
		else if (i == delivery.segment)
			continue;
		else if (report.retained)
			appendStringInfoString(&detail, ", is kept for onside_attribution.retention");
		else if (report.waiting)
			appendStringInfoString(&detail, ", is delivered, and emptied when it is 16 MB large or a day old");
		else
		{
			appendStringInfoString(&detail, ", is delivered, ");
			if (onside_doctor_holder(onside_segment_oid(i), false, &detail,
									 &hint))
				ok = ONSIDE_BAD;
			else
				appendStringInfoString(&detail, doctor->worker_pid != NULL ?
									   "is emptied within a minute" :
									   "is emptied when there is a worker");
		}
	}
	onside_cursor_release(&delivery.settled);

	/* Without a cursor to be believed, all events count as pending. */
	if (problem != NULL && ok == ONSIDE_GOOD)
	{
		ok = ONSIDE_UNKNOWN;
		appendStringInfo(&detail, "; the table delivery_cursor cannot be believed: %s. The worker makes it anew, and what the outbox holds is sent again",
						 problem);
	}
	onside_doctor_row(doctor, "outbox", ok, detail.data, hint);
}

/* ----------
 * Dead letters
 * ----------
 */

/* Are there dead letters?  How many, and how new the newest is. */
static void
look_at_dead_letters(OnsideDoctor *doctor)
{
	TimestampTz newest;
	int64		n;

	(void) onside_doctor_table("dead_letter");
	n = onside_dead_letter_count(ONSIDE_MAX_COUNTED + 1, &newest);
	onside_doctor_judge(doctor, "dead_letters", n == 0 ? NULL :
						n > ONSIDE_MAX_COUNTED ?
						psprintf("more than %d events were refused for good",
								 ONSIDE_MAX_COUNTED) :
						psprintf(INT64_FORMAT " event%s refused for good, the last at %s",
								 n, n == 1 ? " was" : "s were",
								 timestamptz_to_str(newest)),
						"there are none",
						"Those with a retry_at are tried again by themselves. SELECT event_id, retry_at, error FROM onside_attribution.dead_letter ORDER BY failed_at DESC; says why. Repair that, then SELECT onside_attribution.retry_dead_letters(); or DELETE FROM onside_attribution.dead_letter;");
}

/* ----------
 * Tables that report events
 * ----------
 */

/*
 * All triggers that call track_row.  Of a partition's trigger, and of the
 * second trigger of an event that has two, only whether it is enabled is
 * checked; column 4 marks these.
 */
#define TRIGGERS \
	"SELECT t.tgrelid, t.tgname, t.tgenabled IN ('D', 'R')," \
	" t.tgparentid <> 0 OR pg_catalog.row_number() OVER" \
	"  (PARTITION BY t.tgrelid, t.tgparentid <> 0, t.tgargs ORDER BY t.tgtype::integer & 4 DESC, t.tgname) > 1," \
	" t.tgnargs, t.tgargs, pg_catalog.format('%%I.%%I', n.nspname, c.relname)" \
	" FROM pg_catalog.pg_trigger t" \
	" JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid" \
	" JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace" \
	" WHERE t.tgfoid = %u AND NOT t.tgisinternal ORDER BY 7, 2"

/* What is wrong with the triggers; hint is for the first of them. */
typedef struct Broken
{
	int			n;
	int			events;			/* that are attached, broken or not */
	StringInfoData detail;
	char	   *hint;
	StringInfoData remarks;		/* on what works */
	const char *id_namespace;	/* that a trigger has noted; or NULL */
} Broken;

/* Adds a trigger that does not work; only the first ones are listed. */
static void
add_broken(Broken *broken, char *detail, char *hint)
{
	broken->n++;
	if (broken->n == 1)
		broken->hint = hint;
	if (broken->n <= MAX_LISTED)
		appendStringInfo(&broken->detail, "%s%s", broken->n > 1 ? "; " : "",
						 detail);
	else if (broken->n == MAX_LISTED + 1)
		appendStringInfoString(&broken->detail, "; and others");
}

/* Is a mapped column there?  NULL is none. */
static void
look_at_column(Broken *broken, Oid relid, const char *trigger,
			   const char *table, const OnsideMapping *mapping,
			   const char *column)
{
	if (column != NULL && get_attnum(relid, column) == InvalidAttrNumber)
		add_broken(broken,
				   psprintf("the trigger %s on %s maps the column %s, which is not there",
							trigger, table, quote_identifier(column)),
				   psprintf("SELECT onside_attribution.detach(%s, %s); and attach() again with the columns that there are",
							quote_literal_cstr(table),
							quote_literal_cstr(mapping->event_name)));
}

/* Is the trigger's mapper there, and does it fit? */
static void
look_at_mapper(Broken *broken, Oid relid, const char *trigger,
			   const char *table, const OnsideMapping *mapping)
{
	char	   *remark = NULL;
	char	   *problem = onside_doctor_mapper(relid, mapping, &remark);

	if (problem != NULL)
		add_broken(broken,
				   psprintf("the mapper %s of the trigger %s on %s %s",
							mapping->mapper, trigger, table, problem),
				   psprintf("CREATE OR REPLACE FUNCTION %s with an argument of the table's row type, and with columns that there are; or SELECT onside_attribution.detach(%s, %s);",
							mapping->mapper, quote_literal_cstr(table),
							quote_literal_cstr(mapping->event_name)));
	else if (remark != NULL)
		appendStringInfo(&broken->remarks, "; the mapper %s on %s is called for each row, not inlined: it %s",
						 mapping->mapper, table, remark);
}

/* Does the trigger fire, and are its columns or its mapper there? */
static void
look_at_trigger(Broken *broken, int row)
{
	bool		isnull;
	Oid			relid = atooid(onside_doctor_value(row, 1));
	const char *name = quote_identifier(onside_doctor_value(row, 2));
	bool		disabled = onside_doctor_value(row, 3)[0] == 't';
	bool		further = onside_doctor_value(row, 4)[0] == 't';
	int			nargs = atoi(onside_doctor_value(row, 5));
	Datum		args = SPI_getbinval(SPI_tuptable->vals[row],
									 SPI_tuptable->tupdesc, 6, &isnull);
	char	   *table = onside_doctor_value(row, 7);
	OnsideMapping *mapping;

	/*
	 * All that matters of a partition's, or second, trigger is that it fires.
	 */
	if (disabled)
		add_broken(broken,
				   psprintf("the trigger %s on %s is disabled", name, table),
				   psprintf("ALTER TABLE %s ENABLE TRIGGER %s;", table, name));
	if (further)
		return;

	broken->events++;
	mapping = onside_mapping_of_trigger(nargs, args);
	if (mapping == NULL)
	{
		add_broken(broken,
				   psprintf("the trigger %s on %s has arguments that are not understood",
							name, table),
				   psprintf("DROP TRIGGER %s ON %s; and attach() the event again",
							name, table));
		return;
	}

	/* Any trigger that has noted the namespace can give it back. */
	if (broken->id_namespace == NULL)
		broken->id_namespace = mapping->id_namespace;

	/* Its mapper, or its columns: what it does not map is NULL. */
	if (mapping->mapper != NULL)
		look_at_mapper(broken, relid, name, table, mapping);
	look_at_column(broken, relid, name, table, mapping,
				   mapping->installation_id);
	look_at_column(broken, relid, name, table, mapping,
				   mapping->event_datetime);
	look_at_column(broken, relid, name, table, mapping, mapping->event_id);
	for (int i = 0; i < mapping->npayload; i++)
		look_at_column(broken, relid, name, table, mapping,
					   mapping->payload[i].column);
}

/*
 * Is the row there that the keys of this database are told apart by?  A table
 * that is locked, or not as it should be, is the business of the check tables.
 */
static void
look_at_namespace(Broken *broken, OnsideDoctor *doctor)
{
	Oid			relid = onside_relation_oid("namespace");
	pg_uuid_t	id;

	if (!doctor->tables_known || !OidIsValid(relid) ||
		!onside_doctor_try_lock(relid) || onside_namespace_read(&id))
		return;
	add_broken(broken,
			   pstrdup(ONSIDE_NAMESPACE_LOST ": no event_id can be made of a key"),
			   psprintf("INSERT INTO onside_attribution.namespace (id) VALUES (%s);",
						broken->id_namespace == NULL ? "gen_random_uuid()" :
						quote_literal_cstr(broken->id_namespace)));
}

/*
 * Do the triggers of attached tables work?  Reads the catalogs alone: no
 * table of a user's is opened.
 */
static void
look_at_attached(OnsideDoctor *doctor)
{
	OnsideSlot *slot = onside_slot_find(MyDatabaseId);
	uint64		skipped = slot == NULL ? 0 :
		pg_atomic_read_u64(&slot->skipped);
	uint64		repeated = slot == NULL ? 0 :
		pg_atomic_read_u64(&slot->repeated);
	Broken		broken = {0};
	int			n;

	/* Look at each; what is wrong is collected in "broken". */
	initStringInfo(&broken.detail);
	initStringInfo(&broken.remarks);
	n = onside_doctor_query(psprintf(TRIGGERS, onside_find_track_row()));
	for (int i = 0; i < n; i++)
		look_at_trigger(&broken, i);
	look_at_namespace(&broken, doctor);

	/* What the counters say is no fault, and only remarked on. */
	if (repeated > 0)
		appendStringInfo(&broken.remarks, "; mappers gave the event_id of another event to " UINT64_FORMAT " events, which the API ignores",
						 repeated);

	onside_doctor_judge(doctor, "attached",
						broken.n > 0 ? broken.detail.data : NULL, n == 0 ?
						"no table is attached; events come from the functions and the outbox alone" :
						psprintf("%d event%s attached; the triggers are enabled, and columns and mappers are there%s%s",
								 broken.events, broken.events == 1 ? " is" : "s are",
								 skipped == 0 ? "" :
								 psprintf("; " UINT64_FORMAT " rows had no installation_id, or no event, and were skipped",
										  skipped), broken.remarks.data),
						broken.hint);
}

void
onside_doctor_events(OnsideDoctor *doctor)
{
	check_last_answer(doctor);
	check_backlog(doctor);
	onside_doctor_look_at_tables(doctor, "outbox", look_at_outbox);
	onside_doctor_look_at_tables(doctor, "dead_letters", look_at_dead_letters);
	onside_doctor_look(doctor, "attached", look_at_attached);
}
