/*-------------------------------------------------------------------------
 *
 * progress.c
 *		How far delivery has come, in memory and on disk.
 *
 * The settled cursor is in memory here and is written to delivery_cursor soon
 * after it has moved, at once if somebody waits in flush() or if dead letters
 * are moved with it.  Not each time, because every version of that row stays
 * while somebody holds a snapshot.  After a crash the events in between are
 * sent again, with the event_id they had.
 *
 * What the API has refused goes to dead_letter in the transaction that moves the
 * cursor past it.  If that cannot be written (a full disk, a lock), memory keeps
 * what is settled, nothing is sent again, and writing is tried again later; see
 * txn.c.  So that memory is bounded, sending stops when too many refused events
 * wait to be written.
 *
 * Nobody else writes delivery_cursor.  A row that is not the one that was
 * written last, whoever has done that, is replaced by what memory says.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "compat.h"
#include "crash_guard.h"
#include "dead_letter.h"
#include "outbox.h"
#include "progress.h"
#include "segment.h"
#include "send/sender.h"
#include "stats.h"
#include "txn.h"

/*
 * What has been delivered is written no more often than this (ms): it costs an
 * xid and a version of the row; and much less often while somebody holds a
 * snapshot that keeps the old versions.  Whether somebody does is looked at so
 * often.
 */
#define PERSIST_INTERVAL		50
#define PERSIST_INTERVAL_HELD	2000
#define PROBE_INTERVAL			1000

/* Segments are looked after so often while events pass; ms. */
#define MAINTENANCE_INTERVAL	1000

/* With so many refused events not yet in dead_letter, no more is sent. */
#define MAX_UNBURIED			4000

static OnsideSlot *slot;
static const char *database_name;

static OnsideDelivery delivery;
static int64 settled_count;

static bool persist_due;		/* the row lacks something that was settled */
static int64 persisted_at;
static bool snapshot_held;
static TransactionId probe_xid; /* wrote the row when was last looked */
static int64 probed_at;
static int64 requests_before;	/* those of predecessors */
static int64 retries_before;

/* Refused events that are not in dead_letter yet, and the memory they are in. */
static List *unburied;
static MemoryContext unburied_context;
static TimestampTz unburied_since;

static bool maintenance_due;
static int64 maintained_at;
static const char *blocked;		/* see onside_segment_empty() */

static OnsideBrake writing = {.work = "write how far delivery has come"};
static OnsideBrake burying = {.work = "move refused events to dead_letter"};
static OnsideBrake maintaining = {.work = "look after the segments of the outbox"};
static OnsideBrake checking = {.work = "read delivery_cursor"};

/* ----------
 * The row
 * ----------
 */

/*
 * What wrote the row a while ago is long over; is the version that it replaced
 * still kept for somebody?
 */
static void
look_for_held_snapshot(void)
{
	if (onside_ms_until(probed_at, PROBE_INTERVAL) > 0)
		return;
	snapshot_held = TransactionIdIsValid(probe_xid) &&
		onside_delivery_is_held(probe_xid);
	probe_xid = GetTopTransactionId();
	probed_at = onside_clock();
}

/* Brings the counters up to date and writes the row. */
static void
store(void)
{
	const OnsideSenderStatus *sender = onside_sender_status();

	delivery.requests = requests_before + sender->requests;
	delivery.retries = retries_before + sender->retries;
	delivery.not_before = sender->not_before;
	onside_delivery_store(&delivery);
	look_for_held_snapshot();
}

/* The row has been committed. */
static void
is_stored(void)
{
	persist_due = false;
	persisted_at = onside_clock();
	ConditionVariableBroadcast(&slot->settled_cv);
}

static bool
somebody_waits(void)
{
	return pg_atomic_read_u32(&slot->flush_waiters) > 0;
}

/*
 * A Retry-After is to outlive us and the server, and so is its end.  There are
 * few of them, so they are written before anybody is told of the back-off.
 */
static bool
not_before_has_changed(void)
{
	return onside_sender_status()->not_before != delivery.not_before;
}

/* Milliseconds until the row is to be written; -1 for never. */
static long
persist_timeout(void)
{
	const OnsideBrake *brake = unburied != NIL ? &burying : &writing;
	long		timeout;

	if (!persist_due && !not_before_has_changed())
		return -1;
	if (somebody_waits() || not_before_has_changed() || unburied != NIL)
		timeout = 0;
	else
		timeout = onside_ms_until(persisted_at, snapshot_held ?
								  PERSIST_INTERVAL_HELD : PERSIST_INTERVAL);
	return Max(timeout, onside_brake_timeout(brake));
}

/* Moves the refused events into dead_letter. */
static void
bury(void)
{
	ListCell   *lc;

	foreach(lc, unburied)
	{
		const OnsideRefusedEvent *refused = lfirst(lc);
		OnsideEvent event;
		TimestampTz recorded_at;

		onside_crash_guard_step(ONSIDE_STEP_BURYING, &refused->pos);

		/* Somebody may have deleted it meanwhile. */
		if (onside_window_fetch(&refused->pos, &event, &recorded_at))
			onside_dead_letter_insert(&event, refused->http_status,
									  refused->error, refused->attempts,
									  recorded_at, NULL);
	}
}

/* Says in the log what has been moved, and forgets it. */
static void
buried(void)
{
	const OnsideRefusedEvent *first = linitial(unburied);

	ereport(LOG,
			(errmsg_plural("onside_attribution: %d event of database \"%s\" was refused for good and moved to dead_letter",
						   "onside_attribution: %d events of database \"%s\" were refused for good and moved to dead_letter",
						   list_length(unburied),
						   list_length(unburied), database_name),
			 errdetail("The API said: %s", first->error)));
	unburied = NIL;
	MemoryContextReset(unburied_context);
}

/* Body of a transaction: the dead letters, and the row that is past them. */
static void
write_all(void *arg)
{
	bury();
	store();
}

static void
publish_counts(void)
{
	onside_stats_publish(slot);
	LWLockAcquire(slot->lock, LW_EXCLUSIVE);
	onside_progress_report(&slot->status);
	LWLockRelease(slot->lock);
}

static void
persist(void)
{
	bool		done;

	persist_due = true;			/* also if this fails */
	if (unburied == NIL)
		done = onside_txn_run(&writing, ONSIDE_USES_CURSOR, write_all, NULL);
	else
		done = onside_txn_run(&burying, ONSIDE_USES_CURSOR |
							  ONSIDE_USES_LOG | ONSIDE_USES_DEAD_LETTER,
							  write_all, NULL);
	if (!done)
		return;
	onside_brake_release(&writing);	/* that was part of it */
	if (unburied != NIL)
	{
		buried();
		publish_counts();
	}
	is_stored();
}

/* ----------
 * Settling
 * ----------
 */

/* Takes over refused events, which are in somebody else's memory. */
static void
note_refused(const List *refused)
{
	MemoryContext old = MemoryContextSwitchTo(unburied_context);
	ListCell   *lc;

	foreach(lc, refused)
	{
		OnsideRefusedEvent *copy = palloc(sizeof(OnsideRefusedEvent));

		*copy = *(OnsideRefusedEvent *) lfirst(lc);
		copy->error = pstrdup(copy->error);
		if (unburied == NIL)
			unburied_since = GetCurrentTimestamp();
		unburied = lappend(unburied, copy);
	}
	MemoryContextSwitchTo(old);
}

bool
onside_progress_may_send(void)
{
	return list_length(unburied) < MAX_UNBURIED;
}

void
onside_progress_advance(const OnsideCursor *settled)
{
	onside_cursor_copy(&delivery.settled, settled);
}

void
onside_progress_settle(void)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "onside_attribution settled",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	OnsideSettled settled;

	if (onside_sender_settle(&settled))
	{
		int			refused = list_length(settled.refused);

		onside_cursor_copy(&delivery.settled, &settled.end);
		onside_cursor_release(&settled.end);
		delivery.delivered += settled.delivered;
		delivery.dead_lettered += refused;
		settled_count += settled.delivered + refused;
		onside_stats_count(ONSIDE_COUNT_DELIVERED, settled.delivered);
		onside_stats_count(ONSIDE_COUNT_DEAD_LETTERED, refused);
		note_refused(settled.refused);
		persist_due = true;
		maintenance_due = true;

		/* Before flush() may return. */
		publish_counts();
		if (refused > 0)
			persist();
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/* ----------
 * Segments
 * ----------
 */

/* What looking after the segments has come to. */
typedef struct Maintenance
{
	bool		drained;
	bool		moved;
	int			emptied;
} Maintenance;

/* Body of a transaction.  What fails half-way is looked at anew. */
static void
look_after_segments(void *arg)
{
	Maintenance *maintenance = arg;

	maintenance->moved = onside_segment_move_on(&delivery,
												maintenance->drained);
	if (maintenance->moved)
	{
		pg_atomic_write_u32(&slot->segment, delivery.segment);
		persist_due = true;
	}

	/*
	 * Not in the same round: who has read the old segment's number just before
	 * may be about to lock it, and would wait.  And what covers a segment has
	 * to be on disk.
	 */
	if (persist_due || unburied != NIL)
		return;
	if (FullTransactionIdIsValid(delivery.written_by))
		onside_flush_commit(delivery.written_by);
	maintenance->emptied = onside_segment_empty(&delivery, &blocked);
	if (maintenance->emptied > 0)
		persist_due = true;
}

void
onside_progress_maintain(bool drained)
{
	Maintenance maintenance = {.drained = drained};

	if (persist_due || unburied != NIL)
		persist();
	onside_crash_guard_step(ONSIDE_STEP_EMPTYING, NULL);
	if (!onside_txn_run(&maintaining, ONSIDE_USES_LOG, look_after_segments,
						&maintenance))
		return;
	maintained_at = onside_clock();
	maintenance_due = maintenance.moved;
	pgstat_report_stat(true);
}

void
onside_progress_request_maintenance(void)
{
	maintenance_due = true;
}

/* ----------
 * When
 * ----------
 */

static long
maintenance_timeout(void)
{
	if (!maintenance_due)
		return -1;
	return Max(onside_ms_until(maintained_at, MAINTENANCE_INTERVAL),
			   onside_brake_timeout(&maintaining));
}

void
onside_progress_keep(bool drained)
{
	if (persist_timeout() == 0)
		persist();
	if (maintenance_timeout() == 0)
		onside_progress_maintain(drained);
}

long
onside_progress_timeout(void)
{
	return onside_sooner(persist_timeout(), maintenance_timeout());
}

void
onside_progress_save_at_exit(void)
{
	uint32		held = InterruptHoldoffCount;

	if (!persist_due && !not_before_has_changed())
		return;

	/* The process is about to be interrupted; an error would reset the count. */
	HOLD_INTERRUPTS();
	persist();
	InterruptHoldoffCount = held;
}

/* ----------
 * Whose row it is
 * ----------
 */

/* Says that the row is replaced, and sees to it. */
static void
replace_row(const char *problem, const char *consequence)
{
	ereport(WARNING,
			(errmsg("onside_attribution: table \"%s.delivery_cursor\" of database \"%s\" is written anew: %s",
					ONSIDE_SCHEMA, database_name, problem),
			 errdetail("%s", consequence)));
	persist_due = true;
}

/* Body of a transaction: is the row the one that we have written? */
static void
check_row(void *arg)
{
	const char **problem = arg;
	OnsideDelivery found = {0};

	onside_delivery_load(&found, NULL, problem);
	if (*problem == NULL &&
		!FullTransactionIdEquals(found.written_by, delivery.written_by))
		*problem = "its row is not the one that the worker has written";
	onside_cursor_release(&found.settled);
}

void
onside_progress_check_row(void)
{
	const char *problem;

	/* It is about to be written anyway. */
	if (persist_due)
		return;
	if (onside_txn_run(&checking, ONSIDE_USES_CURSOR, check_row, &problem) &&
		problem != NULL)
		replace_row(problem, "No event is sent again.");
}

/* Body of a transaction. */
static void
load(void *arg)
{
	onside_delivery_load(&delivery, NULL, arg);
}

void
onside_progress_init(OnsideSlot *my_slot, const char *my_database_name)
{
	const char *problem;

	slot = my_slot;
	database_name = my_database_name;
	unburied_context = AllocSetContextCreate(TopMemoryContext,
											 "onside_attribution dead letters",
											 ALLOCSET_DEFAULT_SIZES);
	onside_txn_insist(&checking, ONSIDE_USES_CURSOR, load, &problem);
	if (problem != NULL)
		replace_row(problem,
					"What is in the outbox is sent again, each event under its event_id.");
	if (delivery.begun_at[delivery.segment - 1] == 0)
		delivery.begun_at[delivery.segment - 1] = GetCurrentTimestamp();
	pg_atomic_write_u32(&slot->segment, delivery.segment);
	settled_count = slot->status.settled;
	requests_before = delivery.requests;
	retries_before = delivery.retries;
	maintained_at = persisted_at = onside_clock();
	maintenance_due = true;		/* a crash may have left a segment half empty */
}

/* ----------
 * What others want to know
 * ----------
 */

const char *
onside_progress_blocked(void)
{
	if (burying.problem != NULL)
		return burying.problem;
	if (writing.problem != NULL)
		return writing.problem;
	if (checking.problem != NULL)
		return checking.problem;
	if (maintaining.problem != NULL)
		return maintaining.problem;
	return blocked;
}

const OnsideCursor *
onside_progress_settled(void)
{
	return &delivery.settled;
}

TimestampTz
onside_progress_not_before(void)
{
	return delivery.not_before;
}

int64
onside_progress_settled_count(void)
{
	return settled_count - list_length(unburied);
}

TimestampTz
onside_progress_unwritten_since(void)
{
	return unburied == NIL ? 0 : unburied_since;
}

bool
onside_progress_is_written(void)
{
	return unburied == NIL && writing.problem == NULL;
}

void
onside_progress_report(OnsideStatus *status)
{
	const OnsideSenderStatus *sender = onside_sender_status();

	/* What is not in dead_letter is as pending as it was. */
	status->settled = onside_progress_settled_count();
	status->delivered = delivery.delivered;
	status->dead_lettered = delivery.dead_lettered - list_length(unburied);
	status->requests = requests_before + sender->requests;
	status->retries = retries_before + sender->retries;
}
