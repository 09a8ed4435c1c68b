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
#include "sender.h"
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

/* Delivered events leave a segment that does not fill up after this; ms. */
#define IDLE_EMPTY_INTERVAL		60000

static OnsideSlot *slot;
static const char *database_name;

static OnsideDelivery delivery;
static int64 settled_count;

static bool persist_due;		/* the row lacks something that was settled */
static int64 persisted_at;
static bool snapshot_held;
static TransactionId probe_xid; /* wrote the row when was last looked */
static int64 probed_at;
static int64 persisted_requests;	/* requests of this process in the row */
static int64 persisted_retries;

static bool maintenance_due;
static int64 maintained_at;
static int64 emptied_at;
static const char *blocked;		/* see onside_segment_empty() */

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

	delivery.requests += sender->requests - persisted_requests;
	delivery.retries += sender->retries - persisted_retries;
	persisted_requests = sender->requests;
	persisted_retries = sender->retries;
	delivery.not_before = sender->not_before;
	onside_delivery_store(&delivery);
	look_for_held_snapshot();
	persist_due = false;
	persisted_at = onside_clock();
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
	if (not_before_has_changed())
		return 0;
	if (!persist_due)
		return -1;
	if (somebody_waits())
		return 0;
	return onside_ms_until(persisted_at, snapshot_held ?
						   PERSIST_INTERVAL_HELD : PERSIST_INTERVAL);
}

static void
persist(void)
{
	onside_txn_begin();
	store();
	onside_txn_commit();
	ConditionVariableBroadcast(&slot->settled_cv);
}

/* ----------
 * Settling
 * ----------
 */

/*
 * Moves the refused events into dead_letter and, in the same transaction, the
 * cursor past them.
 */
static void
bury(const OnsideSettled *settled)
{
	const OnsideRefusedEvent *first = linitial(settled->refused);
	ListCell   *lc;

	onside_crash_guard_step(ONSIDE_STEP_BURYING, &first->pos);
	onside_txn_begin();
	foreach(lc, settled->refused)
	{
		const OnsideRefusedEvent *refused = lfirst(lc);
		OnsideEvent event;
		TimestampTz recorded_at;

		/* Somebody may have deleted it meanwhile. */
		if (onside_window_fetch(&refused->pos, &event, &recorded_at))
			onside_dead_letter_insert(&event, refused->http_status,
									  refused->error, refused->attempts,
									  recorded_at);
	}
	store();
	onside_txn_commit();
	ConditionVariableBroadcast(&slot->settled_cv);

	ereport(LOG,
			(errmsg_plural("onside_attribution: %d event of database \"%s\" was refused for good and moved to dead_letter",
						   "onside_attribution: %d events of database \"%s\" were refused for good and moved to dead_letter",
						   list_length(settled->refused),
						   list_length(settled->refused), database_name),
			 errdetail("The API said: %s", first->error)));
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
		onside_cursor_copy(&delivery.settled, &settled.end);
		onside_cursor_release(&settled.end);
		delivery.delivered += settled.delivered;
		delivery.dead_lettered += list_length(settled.refused);
		settled_count += settled.delivered + list_length(settled.refused);
		onside_stats_count(ONSIDE_COUNT_DELIVERED, settled.delivered);
		onside_stats_count(ONSIDE_COUNT_DEAD_LETTERED,
						   list_length(settled.refused));

		/* Before flush() may return. */
		onside_stats_publish(slot);
		LWLockAcquire(slot->lock, LW_EXCLUSIVE);
		onside_progress_report(&slot->status);
		LWLockRelease(slot->lock);
		persist_due = true;
		maintenance_due = true;
		if (settled.refused != NIL)
			bury(&settled);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/* ----------
 * Segments
 * ----------
 */

void
onside_progress_maintain(bool drained)
{
	bool		move_on = drained &&
		onside_ms_until(emptied_at, IDLE_EMPTY_INTERVAL) == 0;
	bool		moved;
	int			segment;
	int			emptied = 0;

	onside_crash_guard_step(ONSIDE_STEP_EMPTYING, NULL);
	onside_txn_begin();
	segment = onside_segment_choose(delivery.segment, move_on);
	moved = segment != delivery.segment;
	if (moved)
	{
		delivery.segment = segment;
		pg_atomic_write_u32(&slot->segment, segment);
		persist_due = true;
	}
	else
		emptied = onside_segment_empty(segment, &delivery.settled, &blocked);
	if (emptied > 0)
		store();
	onside_txn_commit();

	if (emptied > 0 || move_on)
		emptied_at = onside_clock();
	maintained_at = onside_clock();

	/*
	 * Who has read the old segment's number just before may be about to lock
	 * it, and would wait if it were being emptied.
	 */
	maintenance_due = moved;
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
	return onside_ms_until(maintained_at, MAINTENANCE_INTERVAL);
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
	if (persist_timeout() < 0)
		return;

	/* Nothing in here may wait, since nothing could end it. */
	HOLD_INTERRUPTS();
	if (onside_txn_try_begin())
	{
		store();
		onside_txn_commit();
	}
	RESUME_INTERRUPTS();
}

/* ----------
 * What others want to know
 * ----------
 */

/*
 * The transaction that wrote the cursor came after all that the cursor covers,
 * so this is a server whose transaction IDs were set back (pg_resetwal).  New
 * events would pass for settled and be emptied away.
 */
static void
check_cursor(const OnsideCursor *cursor)
{
	if (FullTransactionIdPrecedes(ReadNextFullTransactionId(),
								  cursor->done->xmax))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("table \"%s.delivery_cursor\" is ahead of this server's transactions",
						ONSIDE_SCHEMA),
				 errdetail("The server's transaction IDs were set back."),
				 errhint("Dump and restore the databases, as the manual says of pg_resetwal; a dump takes along what is to be sent.")));
}

void
onside_progress_init(OnsideSlot *my_slot, const char *my_database_name)
{
	slot = my_slot;
	database_name = my_database_name;
	onside_delivery_load(&delivery, NULL);
	check_cursor(&delivery.settled);
	pg_atomic_write_u32(&slot->segment, delivery.segment);
	settled_count = slot->status.settled;
	emptied_at = maintained_at = persisted_at = onside_clock();
}

const char *
onside_progress_blocked(void)
{
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
	return settled_count;
}

void
onside_progress_report(OnsideStatus *status)
{
	const OnsideSenderStatus *sender = onside_sender_status();

	status->settled = settled_count;
	status->delivered = delivery.delivered;
	status->dead_lettered = delivery.dead_lettered;
	status->requests = delivery.requests + sender->requests -
		persisted_requests;
	status->retries = delivery.retries + sender->retries - persisted_retries;
}
