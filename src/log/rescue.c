/*-------------------------------------------------------------------------
 *
 * rescue.c
 *		A replicated TRUNCATE does not discard what this server has recorded.
 *
 * A publication of all tables brings a TRUNCATE of the publisher's outbox to
 * the subscriber, where it would discard events that the subscriber has
 * recorded and not sent.  A TRUNCATE of control would end the subscriber's
 * pause.  A BEFORE ROW trigger can make an apply worker skip a row, but
 * nothing can make it skip a TRUNCATE.  So one trigger notes before the
 * TRUNCATE what must not be lost, and another trigger puts it back afterwards:
 * pending events, with their event_ids, at the end of the log; the rows of
 * aside; the pause; and the row of namespace.  Rows that came from the
 * publisher are kept, too.
 *
 * We do this in apply workers alone: a person who calls TRUNCATE means it.
 * The notes are kept in memory to the end of the transaction.  They take as
 * much memory as there is pending.
 *
 * Whoever has called TRUNCATE, the worker is told at commit that events are
 * gone.
 *
 * TRUNCATE's own AccessExclusiveLock keeps others out between the two
 * triggers.  An error in a trigger ends the apply worker's transaction, which
 * starts over.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heaptoast.h"
#include "access/relscan.h"
#include "access/xact.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "replication/logicalworker.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#include "log/aside.h"
#include "log/commit.h"
#include "log/delivery.h"
#include "log/insert.h"
#include "log/namespace.h"
#include "log/outbox.h"
#include "log/shape.h"
#include "log/shmem.h"
#include "log/tables.h"

PG_FUNCTION_INFO_V1(onside_before_truncate);
PG_FUNCTION_INFO_V1(onside_after_truncate);

/*
 * The notes, in TopTransactionContext.  They are those of the transaction that
 * began at "taken_in"; in any other transaction they are stale.
 */
static struct
{
	TimestampTz taken_in;
	List	   *events;			/* of OnsideEvent */
	List	   *aside;			/* of HeapTuple */
	bool		pause;
	text	   *pause_reason;
	bool		has_namespace;
	pg_uuid_t	namespace_id;
}			notes;

/* Drops the notes of an earlier transaction, whose memory is gone. */
static void
begin_notes(void)
{
	if (notes.taken_in == GetCurrentTransactionStartTimestamp())
		return;
	memset(&notes, 0, sizeof(notes));
	notes.taken_in = GetCurrentTransactionStartTimestamp();
}

/* Notes the pending events of a segment. */
static void
note_pending(Relation segment)
{
	OnsideDelivery delivery = {0};
	const char *problem;
	SysScanDesc scan;

	(void) onside_shape_require(segment, true);

	/* The cursor tells what is pending. */
	onside_delivery_load(&delivery, NULL, &problem);
	scan = systable_beginscan(segment, InvalidOid, false, GetActiveSnapshot(),
							  0, NULL);
	while (HeapTupleIsValid(systable_getnext(scan)))
	{
		TupleTableSlot *row = scan->slot;
		MemoryContext old;
		OnsideEvent *event;

		CHECK_FOR_INTERRUPTS();
		slot_getallattrs(row);

		/* What is settled need not come back. */
		if (onside_cursor_covers(&delivery.settled,
								 DatumGetFullTransactionId(row->tts_values[Anum_outbox_xid - 1]),
								 DatumGetInt64(row->tts_values[Anum_outbox_id - 1])))
			continue;

		/* Copy the event to where it lives until the end of the transaction. */
		old = MemoryContextSwitchTo(TopTransactionContext);
		event = palloc(sizeof(OnsideEvent));
		onside_outbox_read_event(row, event);
		onside_outbox_copy_event(event);
		notes.events = lappend(notes.events, event);
		MemoryContextSwitchTo(old);
	}
	systable_endscan(scan);
	onside_cursor_release(&delivery.settled);
}

/* Notes the rows of aside, including their TOASTed values. */
static void
note_aside(Relation aside)
{
	HeapTuple	tuple;
	SysScanDesc scan;

	(void) onside_shape_require(aside, true);

	/* Read the whole table, in any order. */
	scan = systable_beginscan(aside, InvalidOid, false, GetActiveSnapshot(),
							  0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

		CHECK_FOR_INTERRUPTS();

		/* TOASTed values go with the TRUNCATE, so copy them, too. */
		notes.aside = lappend(notes.aside,
							  HeapTupleHasExternal(tuple) ?
							  toast_flatten_tuple(tuple,
												  RelationGetDescr(aside)) :
							  heap_copytuple(tuple));
		MemoryContextSwitchTo(old);
	}
	systable_endscan(scan);
}

/* Notes whether sending is paused, and why. */
static void
note_control(void)
{
	const char *problem;
	char	   *reason;
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

	notes.pause = onside_control_paused(&reason, &problem);
	notes.pause_reason = reason == NULL ? NULL : cstring_to_text(reason);
	MemoryContextSwitchTo(old);
}

/* Is this the table namespace? */
static bool
is_namespace(Relation rel)
{
	return RelationGetRelid(rel) == onside_relation_oid("namespace");
}

/*
 * Has an apply worker caused this TRUNCATE? An error if there is no TRUNCATE.
 */
static bool
is_replicated(FunctionCallInfo fcinfo)
{
	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BY_TRUNCATE(((TriggerData *) fcinfo->context)->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("this function is a trigger of the extension's tables")));
	return IsLogicalWorker();
}

/*
 * BEFORE TRUNCATE trigger, ENABLE ALWAYS, of the segments, aside, control and
 * namespace.
 */
Datum
onside_before_truncate(PG_FUNCTION_ARGS)
{
	if (is_replicated(fcinfo))
	{
		Relation	rel = ((TriggerData *) fcinfo->context)->tg_relation;

		/*
		 * The apply worker took its snapshot before it waited for the table's
		 * lock.  What was committed in the meantime must not be lost.
		 */
		PushActiveSnapshot(GetLatestSnapshot());
		begin_notes();

		/* Each table has its own kind of notes. */
		if (onside_shape_is_segment(rel))
			note_pending(rel);
		else if (onside_shape_is_aside(rel))
			note_aside(rel);
		else if (is_namespace(rel))
			notes.has_namespace = onside_namespace_read(&notes.namespace_id);
		else
			note_control();
		PopActiveSnapshot();
	}
	return PointerGetDatum(NULL);
}

/*
 * Appends the noted events to the log again, in the segment that is written to.
 */
static void
put_back_events(void)
{
	OnsideAppend *append = onside_append_begin();
	ListCell   *lc;

	foreach(lc, notes.events)
		onside_append(append, lfirst(lc));
	onside_append_end(append);

	/* Each of them was counted when it was first recorded. */
	onside_commit_count_prepared(-list_length(notes.events));

	/* So the worker is woken although nothing is counted. */
	onside_commit_wake(ONSIDE_WAKE_COMMIT);
	notes.events = NIL;
}

/* Inserts the noted rows of aside as they were. */
static void
put_back_aside(Relation aside)
{
	OnsideInsert insert;
	ListCell   *lc;

	onside_insert_begin(&insert, RelationGetRelid(aside));
	foreach(lc, notes.aside)
	{
		TupleTableSlot *row = onside_insert_slot(&insert);

		heap_deform_tuple(lfirst(lc), RelationGetDescr(aside),
						  row->tts_values, row->tts_isnull);
		onside_insert_row(&insert);
	}
	onside_insert_end(&insert);
	notes.aside = NIL;
}

/* Pauses again.  The worker looks at control in any case. */
static void
put_back_control(void)
{
	if (notes.pause)
		onside_control_set(true, notes.pause_reason);
	onside_commit_wake(ONSIDE_WAKE_CONTROL);
}

/*
 * AFTER TRUNCATE trigger, ENABLE ALWAYS, of the same tables.  It fires when
 * all tables of the command have been emptied.
 */
Datum
onside_after_truncate(PG_FUNCTION_ARGS)
{
	bool		noted = is_replicated(fcinfo) &&
		notes.taken_in == GetCurrentTransactionStartTimestamp();
	Relation	rel = ((TriggerData *) fcinfo->context)->tg_relation;

	/* Whoever has called TRUNCATE: events are gone. */
	if (onside_shape_is_segment(rel) || onside_shape_is_aside(rel))
		onside_commit_wake(ONSIDE_WAKE_WITHDRAWN);

	/* A person's TRUNCATE has no notes: what it takes is gone. */
	if (!noted)
		return PointerGetDatum(NULL);

	/* The first of several tables puts back the notes of all segments. */
	if (onside_shape_is_segment(rel))
	{
		if (notes.events != NIL)
			put_back_events();
	}
	else if (onside_shape_is_aside(rel))
	{
		if (notes.aside != NIL)
			put_back_aside(rel);
	}
	else if (!is_namespace(rel))
		put_back_control();
	else if (notes.has_namespace)
		onside_namespace_put_back(&notes.namespace_id);
	return PointerGetDatum(NULL);
}
