/*-------------------------------------------------------------------------
 *
 * incoming.c
 *		Events that come into our tables by INSERT and COPY.
 *
 * Users, restores and logical replication write into the tables past the
 * extension's own functions.  The trigger here checks a row like any event, and
 * overwrites its xid and id: a number from another cluster must never be taken
 * for a transaction of this one.  An invalid event is an error.  Logical
 * replication would stop at an error, so there the event becomes a dead letter.
 *
 * No locks but those of the statement; a dead letter waits for its table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "replication/logicalworker.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "utils/xid8.h"

#include "log/aside.h"
#include "log/commit.h"
#include "log/dead_letter.h"
#include "log/outbox.h"
#include "log/shape.h"
#include "log/shmem.h"
#include "log/tables.h"

PG_FUNCTION_INFO_V1(onside_before_change);

/* The recorded_at that an inserted row gets. */
static TimestampTz
recorded_at_of(TupleTableSlot *row)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz given;

	/* A restored row keeps its time, but nothing was recorded in the future. */
	if (row->tts_isnull[Anum_outbox_recorded_at - 1])
		return now;
	given = DatumGetTimestampTz(row->tts_values[Anum_outbox_recorded_at - 1]);
	return TIMESTAMP_IS_NOBEGIN(given) ? now : Min(now, given);
}

/*
 * Puts an invalid event of logical replication into dead_letter: an error would
 * stop the subscription, and with it all later events.  A second initial copy
 * brings the same events again, which are dead letters already.
 */
static void
make_dead_letter(const OnsideEvent *event, const OnsideEventError *error,
				 TimestampTz recorded_at)
{
	if (onside_dead_letter_holds(event))
		return;
	ereport(WARNING,
			(errcode(error->sqlstate),
			 errmsg(ONSIDE_INVALID_EVENT "%s", error->message),
			 errdetail("It came by logical replication and was put into dead_letter."),
			 errhint("%s", error->hint)));
	onside_dead_letter_insert(NULL, event, 0, error->message, 0, recorded_at,
							  0, NULL);
}

/*
 * Checks a row that is inserted, and completes it.  In a segment the row gets
 * its place in the log, in aside the time of a failure.  Returns NULL if the
 * row shall not be inserted.
 */
static HeapTuple
complete_row(TriggerData *trigdata, bool aside)
{
	TupleTableSlot *row = trigdata->tg_trigslot;
	OnsideEvent event;
	OnsideEventError error;
	Datum		values[4];
	bool		nulls[4] = {false, false, false, false};
	int			columns[4] = {
		Anum_outbox_event_id, Anum_outbox_recorded_at,
		Anum_outbox_xid, Anum_outbox_id
	};

	/* Apply the rules of track(), with a new event_id if there is none. */
	onside_outbox_read_event(row, &event);
	if (!event.has_event_id)
	{
		onside_event_new_id(&event.event_id);
		event.has_event_id = true;
	}
	if (!onside_event_check(&event, &error))
	{
		/* A person, or a restore, is told what is wrong. */
		if (!IsLogicalWorker())
			onside_event_throw(&error);
		make_dead_letter(&event, &error, recorded_at_of(row));
		return NULL;
	}

	/* aside keeps when the event failed; in the log, the event gets a place. */

	/* These columns change in both tables. */
	values[0] = UUIDPGetDatum(&event.event_id);
	values[1] = TimestampTzGetDatum(recorded_at_of(row));
	if (aside)
	{
		/* Somebody may not know when the event failed. */
		columns[2] = Anum_aside_failed_at;
		values[2] = row->tts_isnull[Anum_aside_failed_at - 1] ?
			TimestampTzGetDatum(GetCurrentTimestamp()) :
			row->tts_values[Anum_aside_failed_at - 1];
	}
	else
	{
		values[2] = FullTransactionIdGetDatum(GetTopFullTransactionId());
		values[3] = Int64GetDatum(onside_commit_next_id());
	}
	return heap_modify_tuple_by_cols(trigdata->tg_trigtuple,
									 RelationGetDescr(trigdata->tg_relation),
									 aside ? 3 : 4, columns, values, nulls);
}

/*
 * BEFORE INSERT OR UPDATE OR DELETE trigger of the segments and of aside,
 * ENABLE ALWAYS.  Whoever may insert needs no privilege beyond that: a trigger
 * function's EXECUTE is checked when the trigger is made.
 *
 * The worker must not send a deleted event any more, and must send an event
 * that somebody puts aside.  So the commit tells the worker to compare what it
 * has in memory with the tables.
 */
Datum
onside_before_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	bool		aside = CALLED_AS_TRIGGER(fcinfo) &&
		onside_shape_is_aside(trigdata->tg_relation);

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(trigdata->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) ||
		(!aside && !onside_shape_is_segment(trigdata->tg_relation)))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("this function is the trigger of the outbox's segments and of aside"),
				 CALLED_AS_TRIGGER(fcinfo) ?
				 errdetail("Table \"%s\" is not one of them.",
						   RelationGetRelationName(trigdata->tg_relation)) : 0));
	(void) onside_shape_require(trigdata->tg_relation, false);

	/* A deleted event is withdrawn. */
	if (TRIGGER_FIRED_BY_DELETE(trigdata->tg_event))
	{
		onside_commit_wake(ONSIDE_WAKE_WITHDRAWN);
		return PointerGetDatum(trigdata->tg_trigtuple);
	}

	/* An event that may have been sent must not change. */
	if (!TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 aside ? errmsg("an event in \"aside\" cannot be changed") :
				 errmsg("the outbox is append-only"),
				 errhint("Record another event instead of changing one.")));

	/* The worker has to read aside again. */
	if (aside)
		onside_commit_wake(ONSIDE_WAKE_WITHDRAWN);
	return PointerGetDatum(complete_row(trigdata, aside));
}
