/*-------------------------------------------------------------------------
 *
 * progress.c
 *		How far delivery has come, in memory and on disk.
 *
 * The settled cursor is in memory here, and is written to delivery_cursor soon
 * after it has moved; at once if somebody waits in flush().  It is not written
 * each time, because each version of that row stays while somebody holds a
 * snapshot.  After a crash the events in between are sent again, each under its
 * event_id.
 *
 * The transaction that moves the cursor past events also carries out their
 * fates; see fate.c.  If it fails (a full disk, a lock), memory keeps the
 * fates, so that nothing is sent again, and writing is tried again later; see
 * txn.c.  When too many fates wait to be written, sending.c stops sending, so
 * memory is bounded.
 *
 * Nobody else writes delivery_cursor.  If its row is not the one that we wrote
 * last, whoever has changed it, the row is replaced by what memory says.
 *
 * This file also empties segments that are settled (log/segment.c), and has the
 * counters of the row.  The worker's loop calls it in each turn.
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
#include "log/crash_guard.h"
#include "log/durable.h"
#include "log/segment.h"
#include "log/tables.h"
#include "worker/counting.h"
#include "worker/fate.h"
#include "worker/progress.h"
#include "worker/reader.h"
#include "worker/sending.h"
#include "worker/txn.h"

/*
 * How often the row is written, at most; ms.  Each time costs an xid and a
 * version of the row.  The longer interval is for when somebody holds a
 * snapshot that keeps the old versions.
 */
#define PERSIST_INTERVAL		50
#define PERSIST_INTERVAL_HELD	2000

/* How often we check whether a session holds an old snapshot; ms. */
#define PROBE_INTERVAL			1000

/* How often segments are looked after while events pass; ms. */
#define MAINTENANCE_INTERVAL	1000

/* ----------
 * The row
 * ----------
 */

/*
 * Does somebody hold a snapshot that keeps old versions of the row?  The write
 * that we remember is long over, so otherwise nobody would need the version
 * that it replaced.
 */
static void
look_for_held_snapshot(OnsideWorker *worker)
{
	OnsideProgress *progress = &worker->progress;

	if (onside_ms_until(progress->probed_at, PROBE_INTERVAL) > 0)
		return;
	progress->snapshot_held = TransactionIdIsValid(progress->probe_xid) &&
		onside_delivery_is_held(progress->probe_xid);
	progress->probe_xid = GetTopTransactionId();
	progress->probed_at = onside_clock();
}

/* Events that were delivered, by this worker and those before it. */
static int64
count_delivered(OnsideWorker *worker)
{
	return worker->progress.before.delivered + worker->sender->delivered +
		worker->sender->healed;
}

/*
 * Brings the counters of the row up to date, and writes the row.  "delivery"
 * then says what the row will be if the caller's transaction commits.
 */
void
onside_progress_store(OnsideWorker *worker)
{
	OnsideProgress *progress = &worker->progress;
	OnsideSender *sender = worker->sender;
	const OnsideSendingStatus *status = onside_sending_status(worker);
	const OnsideDelivery *before = &progress->before;
	OnsideDelivery *delivery = &progress->delivery;

	delivery->delivered = count_delivered(worker);
	delivery->dead_lettered = before->dead_lettered + progress->buried +
		progress->burying_now;
	delivery->requests = before->requests + status->requests;
	delivery->retries = before->retries + status->retries;

	/* What the sender of a successor needs. */
	delivery->not_before = onside_sending_not_before(worker);
	delivery->refused_in_row = sender->refused_in_row;
	delivery->trouble_since = sender->trouble == 0 ? 0 :
		onside_clock_timestamp(sender->trouble_us);
	onside_delivery_store(delivery);
	look_for_held_snapshot(worker);
}

/*
 * Publishes the counters ahead of publish.c, which publishes everything at the
 * end of each turn.
 */
static void
publish_counts(OnsideWorker *worker)
{
	worker->progress.published = onside_progress_settled_count(worker);
	onside_counting_publish(worker);
	LWLockAcquire(worker->slot->lock, LW_EXCLUSIVE);
	onside_progress_report(worker, &worker->slot->status);
	LWLockRelease(worker->slot->lock);
}

/*
 * The row has been committed: publishes its counters, and then wakes the
 * sessions that wait in flush().  So after flush() they see the counters, too.
 */
void
onside_progress_is_stored(OnsideWorker *worker)
{
	worker->progress.persist_due = false;
	worker->progress.persisted_at = onside_clock();
	publish_counts(worker);
	ConditionVariableBroadcast(&worker->slot->settled_cv);
}

/*
 * Has a wait that the API asked for begun or ended since the row was written?
 * Both have to outlive this process and the server.  They are rare, so they
 * are written at once.
 */
static bool
not_before_has_changed(OnsideWorker *worker)
{
	TimestampTz now = onside_sending_not_before(worker);
	int64		difference = now - worker->progress.delivery.not_before;

	/* Two clocks give slightly different times for one moment. */
	return (now == 0) != (worker->progress.delivery.not_before == 0) ||
		Max(difference, -difference) > USECS_PER_SEC / 10;
}

/* Milliseconds until the row is to be written; -1 for never. */
static long
persist_timeout(OnsideWorker *worker)
{
	OnsideProgress *progress = &worker->progress;
	const OnsideBrake *brake = worker->sender->nfates > 0 ? &progress->burying :
		&progress->writing;
	bool		asked = not_before_has_changed(worker);
	long		timeout;

	if (!progress->persist_due && !asked && worker->sender->nfates == 0)
		return -1;
	if (pg_atomic_read_u32(&worker->slot->flush_waiters) > 0 || asked)
		timeout = 0;
	else
		timeout = onside_ms_until(progress->persisted_at,
								  progress->snapshot_held ?
								  PERSIST_INTERVAL_HELD : PERSIST_INTERVAL);
	return Max(timeout, onside_brake_timeout(worker, brake));
}

/*
 * Body of a transaction: carries out fates, and writes the row, which is past
 * their events.  If there are more fates than one transaction carries out, the
 * row is left to the last one.
 */
static void
write_all(OnsideWorker *worker, void *arg)
{
	if (onside_fate_carry_out(worker))
		onside_progress_store(worker);
}

/*
 * Carries out all fates and writes the row, in as many transactions as that
 * takes.  Stops at the first one that fails.  Without fates only
 * delivery_cursor is locked, so a lock on another table is no obstacle.
 */
void
onside_progress_persist(OnsideWorker *worker)
{
	OnsideProgress *progress = &worker->progress;

	progress->persist_due = true;	/* also if this fails */
	do
	{
		bool		fates = worker->sender->nfates > 0;
		int			uses = ONSIDE_USES_CURSOR;

		if (fates)
			uses |= ONSIDE_USES_LOG | ONSIDE_USES_DEAD_LETTER |
				ONSIDE_USES_ASIDE;
		if (!onside_txn_run(worker, fates ? &progress->burying :
							&progress->writing, uses, write_all, NULL))
			return;
		onside_fate_forget(worker);
	} while (worker->sender->nfates > 0);
	onside_brake_release(&progress->writing);	/* that was part of it */
	onside_brake_release(&progress->burying);
	progress->unwritten_since = 0;
	onside_progress_is_stored(worker);
}

void
onside_progress_persist_if_due(OnsideWorker *worker)
{
	if (persist_timeout(worker) == 0)
		onside_progress_persist(worker);
}

/*
 * At the end of the process the row is written also if it only lacks requests
 * that were counted: counters do not run backwards over a clean restart.
 */
void
onside_progress_persist_at_exit(OnsideWorker *worker)
{
	OnsideProgress *progress = &worker->progress;

	if (progress->persist_due || not_before_has_changed(worker) ||
		worker->sender->nfates > 0 ||
		progress->before.requests + onside_sending_status(worker)->requests !=
		progress->delivery.requests)
		onside_progress_persist(worker);
}

/* ----------
 * Settling
 * ----------
 */

/*
 * Takes over what the sender has settled: moves the cursor in memory, and
 * notes that it has to be written.  Writes nothing.  The counters are
 * published at once.
 */
void
onside_progress_settle(OnsideWorker *worker)
{
	OnsideProgress *progress = &worker->progress;
	int64		seq = onside_sender_settled(worker->sender);

	/*
	 * The cursor.  A newer snapshot that shows no new row is not worth
	 * writing: the row of before covers the same events.  Otherwise an idle
	 * worker would write each time that it looks, since its own write made its
	 * next snapshot a new one.
	 */
	if (onside_reader_settled(worker, seq, &progress->delivery.settled) &&
		onside_reader_forget(worker, seq))
	{
		progress->persist_due = true;
		progress->maintenance_due = true;
	}

	/* The fates; persist_timeout() knows that they have to be written. */
	if (worker->sender->nfates > 0)
	{
		if (progress->unwritten_since == 0)
			progress->unwritten_since = GetCurrentTimestamp();
		progress->maintenance_due = true;
	}

	/* The counters of the row, which may grow while the cursor stands still. */
	if (count_delivered(worker) != progress->delivery.delivered)
		progress->persist_due = true;

	/* flush() returns only after this. */
	if (onside_progress_settled_count(worker) != progress->published)
		publish_counts(worker);
}

/* ----------
 * Segments
 * ----------
 */

/* Is a time known now that was not known before? */
static bool
has_new_time(const OnsideDelivery *before, const OnsideDelivery *now)
{
	for (int i = 0; i < ONSIDE_SEGMENTS; i++)
		if ((before->begun_at[i] == 0 && now->begun_at[i] != 0) ||
			(before->left_at[i] == 0 && now->left_at[i] != 0))
			return true;
	return false;
}

/* One look after the segments. */
typedef struct Maintenance
{
	bool		drained;		/* nothing is pending */
	bool		moved;			/* new rows go to another segment now */
} Maintenance;

/*
 * Body of a transaction: has new rows go to another segment, or empties
 * segments that are settled.  If it fails half-way, the next look finds out
 * how things are.
 */
static void
look_after_segments(OnsideWorker *worker, void *arg)
{
	OnsideProgress *progress = &worker->progress;
	Maintenance *maintenance = arg;
	OnsideDelivery before = progress->delivery;

	maintenance->moved = onside_segment_move_on(&progress->delivery,
												maintenance->drained);
	if (maintenance->moved)
	{
		pg_atomic_write_u32(&worker->slot->segment,
							progress->delivery.segment);
		progress->persist_due = true;
	}

	/*
	 * Do not empty a segment in the same round: a session that has just read
	 * the old segment's number may be about to lock that segment, and would
	 * wait.  And the cursor that covers a segment has to be on disk first.
	 */
	if (progress->persist_due || worker->sender->nfates > 0)
		return;
	if (FullTransactionIdIsValid(progress->delivery.written_by))
		onside_flush_commit(progress->delivery.written_by);
	if (onside_segment_empty(&progress->delivery, &progress->blocked) > 0 ||
		has_new_time(&before, &progress->delivery))
		progress->persist_due = true;
}

/*
 * Writes the row first, if it lacks anything: only then are segments emptied.
 */
void
onside_progress_maintain(OnsideWorker *worker, bool drained)
{
	OnsideProgress *progress = &worker->progress;
	Maintenance maintenance = {.drained = drained};

	if (progress->persist_due || worker->sender->nfates > 0)
		onside_progress_persist(worker);
	if (!onside_txn_run(worker, &progress->maintaining, ONSIDE_USES_LOG,
						look_after_segments, &maintenance))
		return;
	progress->maintained_at = onside_clock();
	progress->maintenance_due = maintenance.moved;
	pgstat_report_stat(true);
}

void
onside_progress_request_maintenance(OnsideWorker *worker)
{
	worker->progress.maintenance_due = true;
}

/* ----------
 * When
 * ----------
 */

/* Milliseconds until segments are to be looked after; -1 for never. */
static long
maintenance_timeout(OnsideWorker *worker)
{
	OnsideProgress *progress = &worker->progress;

	if (!progress->maintenance_due)
		return -1;
	return Max(onside_ms_until(progress->maintained_at, MAINTENANCE_INTERVAL),
			   onside_brake_timeout(worker, &progress->maintaining));
}

void
onside_progress_maintain_if_due(OnsideWorker *worker, bool drained)
{
	if (maintenance_timeout(worker) == 0)
		onside_progress_maintain(worker, drained);
}

long
onside_progress_timeout(OnsideWorker *worker)
{
	return onside_sooner(persist_timeout(worker), maintenance_timeout(worker));
}

/* ----------
 * Whose row it is
 * ----------
 */

/* Logs that the row is replaced, and has it written. */
static void
have_row_replaced(OnsideWorker *worker, const char *problem,
				  const char *consequence)
{
	ereport(WARNING,
			(errmsg("onside_attribution: table \"%s.delivery_cursor\" of database \"%s\" is written anew: %s",
					ONSIDE_SCHEMA, worker->database_name, problem),
			 errdetail("%s", consequence)));
	worker->progress.persist_due = true;
}

/* Body of a transaction: is the row the one that we have written? */
static void
compare_row(OnsideWorker *worker, void *arg)
{
	const char **problem = arg;
	OnsideDelivery found = {0};

	onside_delivery_load(&found, NULL, problem);
	if (*problem == NULL &&
		!FullTransactionIdEquals(found.written_by,
								 worker->progress.delivery.written_by))
		*problem = "its row is not the one that the worker has written";
	onside_cursor_release(&found.settled);
}

void
onside_progress_check_row(OnsideWorker *worker)
{
	const char *problem;

	/* The row is about to be written anyway. */
	if (worker->progress.persist_due)
		return;
	if (onside_txn_run(worker, &worker->progress.checking, ONSIDE_USES_CURSOR,
					   compare_row, &problem) &&
		problem != NULL)
		have_row_replaced(worker, problem, "No event is sent again.");
}

/* Body of a transaction: reads the row that a predecessor has left. */
static void
load_row(OnsideWorker *worker, void *arg)
{
	onside_delivery_load(&worker->progress.delivery, NULL, arg);
}

/*
 * Tries until the row can be read: without it nothing can be done.  If the row
 * is missing or damaged, delivery begins with the first event of the outbox.
 */
void
onside_progress_init(OnsideWorker *worker)
{
	OnsideProgress *progress = &worker->progress;
	OnsideDelivery *delivery = &progress->delivery;
	const char *problem;

	onside_brake_init(&progress->writing, "write how far delivery has come",
					  ONSIDE_STEP_WRITING);
	onside_brake_init(&progress->burying,
					  "move refused events to dead_letter",
					  ONSIDE_STEP_BURYING);
	onside_brake_init(&progress->maintaining,
					  "look after the segments of the outbox",
					  ONSIDE_STEP_EMPTYING);
	onside_brake_init(&progress->checking, "read delivery_cursor",
					  ONSIDE_STEP_LOOKING);

	onside_txn_insist(worker, &progress->checking, ONSIDE_USES_CURSOR,
					  load_row, &problem);
	if (problem != NULL)
		have_row_replaced(worker, problem,
						  "What is in the outbox is sent again, each event under its event_id.");

	/* Which segment new rows go to, and since when. */
	if (delivery->begun_at[delivery->segment - 1] == 0)
		delivery->begun_at[delivery->segment - 1] = GetCurrentTimestamp();
	pg_atomic_write_u32(&worker->slot->segment, delivery->segment);

	/* We alone write the status, so we read it without the lock. */
	progress->settled_before = worker->slot->status.settled;
	progress->before = *delivery;
	progress->maintained_at = progress->persisted_at = onside_clock();

	/* A crash may have come between moving the cursor and emptying. */
	progress->maintenance_due = true;
}

/* ----------
 * What others want to know
 * ----------
 */

int64
onside_progress_settled_count(OnsideWorker *worker)
{
	OnsideSender *sender = worker->sender;

	/* A refused event that is not in dead_letter yet is still pending. */
	return worker->progress.settled_before + sender->delivered +
		sender->withdrawn + sender->refused -
		onside_fate_count_unburied(worker);
}

bool
onside_progress_is_written(OnsideWorker *worker)
{
	return worker->sender->nfates == 0 &&
		worker->progress.writing.problem == NULL;
}

void
onside_progress_report(OnsideWorker *worker, OnsideStatus *status)
{
	const OnsideProgress *progress = &worker->progress;
	const OnsideSendingStatus *sending = onside_sending_status(worker);

	status->settled = onside_progress_settled_count(worker);
	status->delivered = count_delivered(worker);
	status->dead_lettered = progress->before.dead_lettered + progress->buried;
	status->requests = progress->before.requests + sending->requests;
	status->retries = progress->before.retries + sending->retries;
}
