/*-------------------------------------------------------------------------
 *
 * row_outcome.c
 *		What becomes of a row's event: recorded, a dead letter, an error.
 *
 * The purchase comes first.  With on_invalid_event = dead_letter, a row that
 * is not a valid event is let through with a WARNING that names the table and
 * the column, and the event goes into dead_letter.  With on_invalid_event =
 * error the statement fails.
 *
 * Called by row.c and row_mapped.c, for a trigger's rows and for backfill's.
 * The only lock that is waited for here is the one on dead_letter, which
 * another session may hold for an hour.  A purchase waits for
 * DEAD_LETTER_PATIENCE at most.  After that the event is kept in the server's
 * log, in the text of the WARNING.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/relcache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "log/dead_letter.h"
#include "log/shmem.h"
#include "record/row_outcome.h"
#include "settings.h"

/* How long a purchase waits for a lock on dead_letter; ms. */
#define DEAD_LETTER_PATIENCE	1000

void
onside_row_count_skipped(OnsideRowReader *reader, int64 rows)
{
	OnsideSlot *slot = onside_slot_find(MyDatabaseId);

	if (slot != NULL)
		pg_atomic_fetch_add_u64(&slot->skipped, rows);
	if (reader->backfill != NULL)
		reader->backfill->skipped += rows;
}

bool
onside_row_is_due(OnsideRowReader *reader, bool has_datetime, TimestampTz t)
{
	if (reader->backfill == NULL || !has_datetime ||
		(t >= reader->backfill->since && t <= reader->backfill->until))
		return true;
	reader->backfill->not_due++;
	return false;
}

/* The name of the column that this field is mapped to; NULL if none is. */
static const char *
find_mapped_column(OnsideRowReader *reader, const char *field)
{
	if (strcmp(field, "installation_id") == 0)
		return reader->installation_id.name;
	if (strcmp(field, "event_datetime") == 0)
		return reader->event_datetime.name;
	if (strcmp(field, "event_id") == 0)
		return reader->event_id.name;
	for (int i = 0; i < reader->npayload; i++)
		if (strcmp(field, reader->payload[i].field) == 0)
			return reader->payload[i].name;
	return NULL;
}

/*
 * The values of the primary key's columns, as PostgreSQL shows them in its own
 * errors.  BuildIndexValueDescription() returns NULL if whoever writes the row
 * may not read them.
 */
char *
onside_row_key(Relation rel, TupleTableSlot *row)
{
	Relation	index;
	Datum		values[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];
	char	   *key;

	/* This fills in rd_pkindex. */
	list_free(RelationGetIndexList(rel));
	if (!OidIsValid(rel->rd_pkindex))
		return NULL;
	index = index_open(rel->rd_pkindex, AccessShareLock);
	for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index); i++)
		values[i] = slot_getattr(row, index->rd_index->indkey.values[i],
								 &nulls[i]);
	key = BuildIndexValueDescription(index, values, nulls);
	index_close(index, AccessShareLock);
	return key;
}

/*
 * Says what is wrong with a row.  Whoever wrote the row may not know that the
 * table is attached, so the DETAIL says that, and which column is at fault.
 * "outcome" is the end of the DETAIL: what was done with the row.
 */
static void
report_invalid_row(int elevel, OnsideRowReader *reader, Relation rel,
				   const OnsideEventError *error, const char *outcome)
{
	const char *column = reader->mapper != NULL ? NULL :
		find_mapped_column(reader, error->field);
	char	   *key = NULL;
	StringInfoData detail;

	/* Why this table's rows are events at all. */
	initStringInfo(&detail);
	appendStringInfo(&detail,
					 "Rows of table \"%s\" are reported as event \"%s\"",
					 RelationGetRelationName(rel),
					 text_to_cstring(reader->event_name));
	if (reader->mapper != NULL)
		appendStringInfo(&detail, ", by the mapper %s",
						 onside_mapper_name(reader->mapper));
	if (column != NULL)
		appendStringInfo(&detail, ", with column \"%s\" as %s", column,
						 error->field);

	/* Whoever calls backfill has not written the row, so it is named. */
	if (reader->backfill != NULL && reader->row != NULL)
		key = onside_row_key(rel, reader->row);
	if (key != NULL)
		appendStringInfo(&detail, ". This is the row %s", key);
	appendStringInfo(&detail, ".%s", outcome);

	/* A column at fault is named in the error's own field, too. */
	ereport(elevel,
			(errcode(error->sqlstate),
			 errmsg(ONSIDE_INVALID_EVENT "%s", error->message),
			 errdetail_internal("%s", detail.data),
			 elevel < ERROR ? errhint("%s", error->hint) :
			 errhint("%s To let such rows through, set onside_attribution.on_invalid_event to dead_letter.",
					 error->hint),
			 column != NULL ? errtablecolname(rel, column) : errtable(rel)));
}

/*
 * The fields that the event has, as text for a person: all that is left of an
 * event for which dead_letter was locked.
 */
static char *
describe_event(const OnsideEvent *event)
{
	StringInfoData text;

	initStringInfo(&text);

	/* What could not be read is left out. */
	if (event->has_event_id)
		appendStringInfo(&text, "event_id %s, ",
						 onside_column_uuid_text(&event->event_id));
	if (event->has_installation_id)
		appendStringInfo(&text, "installation_id %s, ",
						 onside_column_uuid_text(&event->installation_id));
	if (event->has_event_datetime)
		appendStringInfo(&text, "event_datetime %s, ",
						 timestamptz_to_str(event->event_datetime));
	appendStringInfo(&text, "payload %s", event->payload == NULL ? "unknown" :
					 JsonbToCString(NULL, &event->payload->root,
									VARSIZE(event->payload)));
	return text.data;
}

/* A backfill counts the dead letters of its rows. */
void
onside_row_let_through(OnsideRowReader *reader, Relation rel,
					   const OnsideEvent *event,
					   const OnsideEventError *error)
{
	Oid			root = onside_mapping_root(RelationGetRelid(rel));

	if (reader->backfill != NULL)
		reader->backfill->dead_lettered++;

	/* The WARNING has the whole event if dead_letter cannot be had. */
	if (!onside_dead_letter_lock(DEAD_LETTER_PATIENCE))
	{
		report_invalid_row(WARNING, reader, rel, error,
						   psprintf(" This row was let through. Its event is kept in this message alone, since dead_letter is locked by another session: %s.",
									describe_event(event)));
		return;
	}

	/* Whoever writes the row is told, and so is the server's log. */
	report_invalid_row(WARNING, reader, rel, error,
					   " This row was let through and its event put into dead_letter.");
	onside_dead_letter_insert(NULL, event, 0, error->message, 0,
							  GetCurrentTimestamp(), 0,
							  onside_mapping_table_name(root));
}

/*
 * Appends a valid event to the outbox, once.  An invalid event is an error or a
 * dead letter, by on_invalid_event.
 */
void
onside_row_settle(OnsideRowReader *reader, Relation rel,
				  const OnsideEvent *event,
				  const OnsideEventError *error, OnsideAppend **append,
				  MemoryContext append_context)
{
	if (error != NULL)
	{
		if (onside_on_invalid_event != ONSIDE_INVALID_DEAD_LETTER)
			report_invalid_row(ERROR, reader, rel, error, "");
		onside_row_let_through(reader, rel, event, error);
		return;
	}

	/* A deferred trigger can fire several times for one row. */
	if (reader->deferred != NULL &&
		!onside_deferred_is_new(reader->deferred, event))
		return;

	/* The first event of the statement opens the outbox. */
	if (*append == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(append_context);

		*append = onside_append_begin();
		MemoryContextSwitchTo(old);
	}
	onside_append(*append, event);
	if (reader->backfill != NULL)
		reader->backfill->recorded++;
}
