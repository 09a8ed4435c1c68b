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
 * What has become of events that is more than "delivered" (fates, see sender.h)
 * is carried out in the transaction that moves the cursor past them: the refused
 * go to dead_letter, and rows of aside and dead_letter that were accepted go.  If
 * that cannot be written (a full disk, a lock), memory keeps the fates, nothing is
 * sent again, and writing is tried again later; see txn.c.  So that memory is
 * bounded, sending stops when too many wait to be written.
 *
 * What is not decided soon leaves the log for the table aside, likewise.
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
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "compat.h"
#include "log/aside.h"
#include "log/crash_guard.h"
#include "log/dead_letter.h"
#include "log/outbox.h"
#include "log/segment.h"
#include "log/tables.h"
#include "worker/chance.h"
#include "worker/counting.h"
#include "worker/progress.h"
#include "worker/reader.h"
#include "worker/sending.h"
#include "worker/txn.h"

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

/* So many fates are carried out, or events set aside, in one transaction. */
#define WRITE_AT_ONCE			500

/* So often at the end. */
#define ASIDE_AT_EXIT			20

/* Setting aside is tried again so soon if it could not be done; us. */
#define ASIDE_AGAIN				INT64CONST(1000000)

static OnsideSlot *slot;
static const char *database_name;

static OnsideDelivery delivery;
static OnsideSender *sender;
static OnsideDelivery before;	/* what a predecessor has left: its counters */
static int64 settled_before;	/* slot->status.settled when this began */

static bool persist_due;		/* the row lacks something that was settled */
static int64 persisted_at;
static bool snapshot_held;
static TransactionId probe_xid; /* wrote the row when was last looked */
static int64 probed_at;
static int64 published;			/* events settled, as publish_counts() told */
static int	written;			/* fates of the present transaction */
static int	burying_now;		/* dead letters that it makes */
static int64 buried;			/* that were made */
static TimestampTz unwritten_since;	/* there are fates; or 0 */

/* Where the reading of aside has come to; and is there more? */
static TimestampTz aside_recorded_at;
static pg_uuid_t aside_id;
static bool more_aside;

static bool maintenance_due;
static int64 maintained_at;
static const char *blocked;		/* see onside_segment_empty() */

static OnsideBrake writing = {
	.work = "write how far delivery has come",
	.step = ONSIDE_STEP_WRITING
};
static OnsideBrake burying = {
	.work = "move refused events to dead_letter",
	.step = ONSIDE_STEP_BURYING
};
static OnsideBrake leaving = {
	.work = "set events aside",
	.step = ONSIDE_STEP_SETTING_ASIDE
};
static OnsideBrake loading = {
	.work = "read the events that are aside",
	.step = ONSIDE_STEP_READING_ASIDE
};
static OnsideBrake maintaining = {
	.work = "look after the segments of the outbox",
	.step = ONSIDE_STEP_EMPTYING
};
static OnsideBrake checking = {
	.work = "read delivery_cursor",
	.step = ONSIDE_STEP_LOOKING
};

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

/* Refused events that are not in dead_letter yet; they are as pending as before. */
static int
count_unburied(void)
{
	int			n = 0;

	for (int i = 0; i < sender->nfates; i++)
		n += sender->fates[i].kind == ONSIDE_FATE_REFUSED;
	return n;
}

/* Brings the counters up to date and writes the row. */
static void
store(void)
{
	const OnsideSendingStatus *status = onside_sending_status();

	delivery.delivered = before.delivered + sender->delivered +
		sender->healed;
	delivery.dead_lettered = before.dead_lettered + buried + burying_now;
	delivery.requests = before.requests + status->requests;
	delivery.retries = before.retries + status->retries;
	delivery.not_before = onside_sending_not_before();
	delivery.refused_in_row = sender->refused_in_row;
	delivery.trouble_since = sender->trouble == 0 ? 0 :
		onside_clock_timestamp(sender->trouble_us);
	onside_delivery_store(&delivery);
	look_for_held_snapshot();
}

static void
publish_counts(void)
{
	published = onside_progress_settled_count();
	onside_counting_publish(slot);
	LWLockAcquire(slot->lock, LW_EXCLUSIVE);
	onside_progress_report(&slot->status);
	LWLockRelease(slot->lock);
}

/* The row has been committed.  flush() waits until its counters are known, too. */
static void
is_stored(void)
{
	persist_due = false;
	persisted_at = onside_clock();
	publish_counts();
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
	TimestampTz now = onside_sending_not_before();
	int64		difference = now - delivery.not_before;

	/* the same moment by two clocks */
	return (now == 0) != (delivery.not_before == 0) ||
		Max(difference, -difference) > USECS_PER_SEC / 10;
}

/* Milliseconds until the row is to be written; -1 for never. */
static long
persist_timeout(void)
{
	const OnsideBrake *brake = sender->nfates > 0 ? &burying : &writing;
	bool		asked = not_before_has_changed();
	long		timeout;

	if (!persist_due && !asked && sender->nfates == 0)
		return -1;
	if (somebody_waits() || asked)
		timeout = 0;
	else
		timeout = onside_ms_until(persisted_at, snapshot_held ?
								  PERSIST_INTERVAL_HELD : PERSIST_INTERVAL);
	return Max(timeout, onside_brake_timeout(brake));
}

/* Copies an event of the log that is about to leave it. */
typedef struct Copy
{
	bool		found;
	OnsideEvent event;
	TimestampTz recorded_at;
} Copy;

static bool
copy_event(TupleTableSlot *row, const OnsidePosition *pos, void *arg)
{
	Copy	   *copy = arg;

	onside_outbox_read_event(row, &copy->event);
	onside_outbox_copy_event(&copy->event);
	copy->recorded_at = onside_outbox_recorded_at(row);
	copy->found = true;
	return false;
}

/* False if somebody has deleted it meanwhile. */
static bool
fetch(const OnsideItem *item, Copy *copy)
{
	copy->found = false;
	if (item->home == ONSIDE_IN_LOG)
	{
		OnsidePosition pos = onside_item_position(item);

		onside_crash_guard_at(&pos);
		onside_window_fetch(&pos, 1, copy_event, copy);
	}
	else
		copy->found = onside_aside_fetch(onside_item_id(item), &copy->event,
										 &copy->recorded_at);
	return copy->found;
}

/* Moves a refused event into dead_letter. */
static void
bury(const OnsideFate *fate)
{
	Copy		copy;
	TimestampTz now = GetCurrentTimestamp();

	if (fetch(&fate->item, &copy) &&
		!onside_dead_letter_holds(&copy.event))
	{
		burying_now++;
		onside_dead_letter_insert(NULL, &copy.event, fate->words->status,
								  fate->words->text, fate->tries,
								  copy.recorded_at,
								  onside_chances_retry_at(now, 0), NULL);
	}
	if (fate->item.home == ONSIDE_IN_ASIDE)
		(void) onside_aside_delete(onside_item_id(&fate->item));
}

static void
carry_out(const OnsideFate *fate)
{
	switch (fate->kind)
	{
		case ONSIDE_FATE_ACCEPTED:
			if (fate->item.home == ONSIDE_IN_ASIDE)
				(void) onside_aside_delete(onside_item_id(&fate->item));
			else
				(void) onside_dead_letter_delete(onside_item_id(&fate->item));
			break;
		case ONSIDE_FATE_REFUSED:
			bury(fate);
			break;
		case ONSIDE_FATE_POSTPONED:
			(void) onside_dead_letter_postpone(onside_item_id(&fate->item),
											   fate->words->status,
											   fate->words->text,
											   GetCurrentTimestamp(),
											   onside_sending_accepted_at());
			break;
		case ONSIDE_FATE_PUT_OFF:
			(void) onside_dead_letter_postpone(onside_item_id(&fate->item), 0,
											   NULL, GetCurrentTimestamp(), 0);
			break;
	}
}

/*
 * Body of a transaction: fates, and the row that is past them.  As long as there
 * are more of them, the row stays where it is.
 */
static void
write_all(void *arg)
{
	written = Min(sender->nfates, WRITE_AT_ONCE);
	burying_now = 0;
	for (int i = 0; i < written; i++)
		carry_out(&sender->fates[i]);
	if (written == sender->nfates)
		store();
}

/* Tells whom it concerns what has been written, and forgets it. */
static void
forget_written(void)
{
	int			refused = 0;
	const char *words = NULL;

	for (int i = 0; i < written; i++)
	{
		const OnsideFate *fate = &sender->fates[i];

		if (fate->kind != ONSIDE_FATE_REFUSED)
			continue;
		if (refused++ == 0)
			words = fate->words->text;
	}
	if (written > 0)
		onside_chance_expect(onside_chances_retry_at(GetCurrentTimestamp(),
														 0));
	if (refused > 0)
	{
		onside_count(ONSIDE_COUNT_DEAD_LETTERED, refused);
		ereport(LOG,
				(errmsg_plural("onside_attribution: %d event of database \"%s\" was refused for good and moved to dead_letter",
							   "onside_attribution: %d events of database \"%s\" were refused for good and moved to dead_letter",
							   refused, refused, database_name),
				 errdetail("The API said: %s", words)));
	}
	onside_sender_forget_fates(sender, written);
	buried += burying_now;
	burying_now = 0;
}

static void
persist(void)
{
	persist_due = true;			/* also if this fails */
	do
	{
		bool		fates = sender->nfates > 0;

		if (!onside_txn_run(fates ? &burying : &writing, fates ?
							ONSIDE_USES_CURSOR | ONSIDE_USES_LOG |
							ONSIDE_USES_DEAD_LETTER | ONSIDE_USES_ASIDE :
							ONSIDE_USES_CURSOR, write_all, NULL))
			return;
		forget_written();
	} while (sender->nfates > 0);
	onside_brake_release(&writing); /* that was part of it */
	onside_brake_release(&burying);
	unwritten_since = 0;
	is_stored();
}

/* ----------
 * Settling
 * ----------
 */

void
onside_progress_settle(void)
{
	int64		seq = onside_sender_settled(sender);

	if (onside_reader_settled(seq, &delivery.settled))
	{
		onside_reader_forget(seq);
		persist_due = true;
		maintenance_due = true;
	}
	if (sender->nfates > 0)
	{
		if (unwritten_since == 0)
			unwritten_since = GetCurrentTimestamp();
		maintenance_due = true;
	}

	/* While the cursor stands still, counters do not. */
	if (before.delivered + sender->delivered + sender->healed !=
		delivery.delivered)
		persist_due = true;

	/* Before flush() may return. */
	if (onside_progress_settled_count() != published)
		publish_counts();
}

/* ----------
 * Aside
 * ----------
 */

/* Events that leave the log, and how they are known aside. */
typedef struct Leaving
{
	OnsideLeaving items[WRITE_AT_ONCE];
	OnsideItem	was[WRITE_AT_ONCE];
	pg_uuid_t	ids[WRITE_AT_ONCE];
	int			n;
} Leaving;

/* Body of a transaction: they go aside, and the row moves past them. */
static void
write_aside(void *arg)
{
	Leaving    *leave = arg;
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < leave->n; i++)
	{
		const OnsideWords *words = leave->items[i].words;
		Copy		copy;

		/* What is gone is found to be so when it is tried again. */
		if (fetch(&leave->was[i], &copy))
			onside_aside_insert(&leave->ids[i], &copy.event,
								words == NULL ? 0 : words->status,
								words == NULL ? "it was under way when the worker ended" :
								words->text, copy.recorded_at, now);
	}
	store();
}

/* Has what is not decided soon leave the log.  Returns true if something has. */
static bool
set_aside(void)
{
	static Leaving leave;
	OnsideCursor old = {0};
	bool		done;

	leave.n = onside_sender_review(sender, onside_clock(), leave.items,
								   WRITE_AT_ONCE);
	if (leave.n == 0)
		return false;
	if (sender->nfates > 0)
		persist();
	if (sender->nfates > 0 || onside_brake_timeout(&leaving) > 0)
	{
		onside_sender_review_at(sender, onside_clock() + ASIDE_AGAIN);
		return false;
	}

	/* The cursor is the one that is right when they have left. */
	for (int i = 0; i < leave.n; i++)
	{
		leave.was[i] = *leave.items[i].item;
		onside_event_next_id(&leave.ids[i]);
		leave.items[i].item->home = ONSIDE_IN_ASIDE;
		onside_item_set_id(leave.items[i].item, &leave.ids[i]);
	}
	onside_cursor_copy(&old, &delivery.settled);
	(void) onside_reader_settled(onside_sender_settled(sender),
								 &delivery.settled);
	done = onside_txn_run(&leaving, ONSIDE_USES_CURSOR | ONSIDE_USES_LOG |
						  ONSIDE_USES_ASIDE, write_aside, &leave);
	if (done)
	{
		onside_reader_forget(onside_sender_settled(sender));
		onside_sender_is_aside(sender);
		maintenance_due = true;
		is_stored();
	}
	else
	{
		for (int i = 0; i < leave.n; i++)
			*leave.items[i].item = leave.was[i];
		onside_cursor_copy(&delivery.settled, &old);
		onside_sender_review_at(sender, onside_clock() + ASIDE_AGAIN);
	}
	onside_cursor_release(&old);
	return done;
}

/* Those of aside that the sender does not know. */
typedef struct Load
{
	HTAB	   *known;
	int			n;
	int			room;
	OnsideItem *items;
} Load;

static void
note_known(OnsideItem *item, void *arg)
{
	if (item->home == ONSIDE_IN_ASIDE)
		(void) hash_search((HTAB *) arg, onside_item_id(item), HASH_ENTER,
						   NULL);
}

static bool
load_one(const pg_uuid_t *id, const pg_uuid_t *event_id,
		 TimestampTz recorded_at, int bytes, void *arg)
{
	Load	   *load = arg;

	if (load->n == load->room)
		return false;
	aside_recorded_at = recorded_at;
	aside_id = *id;
	if (hash_search(load->known, id, HASH_FIND, NULL) == NULL)
	{
		OnsideItem *item = &load->items[load->n++];

		memset(item, 0, sizeof(*item));
		item->home = ONSIDE_IN_ASIDE;
		onside_item_set_id(item, id);
		memcpy(item->event_id, event_id->data, UUID_LEN);
		item->recorded_at = recorded_at;
		item->bytes = bytes;
	}
	return true;
}

/* Body of a transaction. */
static void
read_aside(void *arg)
{
	Load	   *load = arg;

	load->n = 0;
	onside_aside_read(aside_recorded_at,
					  aside_recorded_at == 0 ? NULL : &aside_id, load_one,
					  load);
}

/* Takes events of aside into memory, as many as there is room for. */
static void
load_aside(void)
{
	Load		load = {0};
	HASHCTL		info = {0};
	TimestampTz began_at = aside_recorded_at;
	pg_uuid_t	began_id = aside_id;

	load.room = onside_sender_aside_room(sender);
	if (!more_aside || load.room == 0 || sender->nfates > 0 ||
		onside_brake_timeout(&loading) > 0)
		return;
	info.keysize = info.entrysize = sizeof(pg_uuid_t);
	info.hcxt = CurrentMemoryContext;
	load.known = hash_create("onside_attribution events aside", 256, &info,
							 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	onside_sender_visit(sender, note_known, load.known);
	load.items = palloc(load.room * sizeof(OnsideItem));
	if (onside_txn_run(&loading, ONSIDE_READS_ASIDE, read_aside, &load))
	{
		for (int i = 0; i < load.n; i++)
			onside_sender_add_aside(sender, &load.items[i], onside_clock());

		/* At the end it goes on from the beginning, for what came before. */
		if (load.n < load.room)
		{
			more_aside = began_at != 0;
			aside_recorded_at = 0;
		}
	}
	else
	{
		aside_recorded_at = began_at;
		aside_id = began_id;
	}
	pfree(load.items);
	hash_destroy(load.known);
}

void
onside_progress_look_aside(void)
{
	more_aside = true;
	aside_recorded_at = 0;
}

bool
onside_progress_knows_all(void)
{
	return !more_aside;
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
	if (persist_due || sender->nfates > 0)
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

	if (persist_due || sender->nfates > 0)
		persist();
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
	set_aside();
	if (sender->dropped > 0)
	{
		sender->dropped = 0;
		more_aside = true;
	}
	load_aside();
	if (maintenance_timeout() == 0)
		onside_progress_maintain(drained);
}

long
onside_progress_timeout(void)
{
	long		timeout = onside_sooner(persist_timeout(),
										maintenance_timeout());

	if (more_aside && onside_sender_aside_room(sender) > 0 &&
		sender->nfates == 0)
		timeout = onside_sooner(timeout,
								Max(0, onside_brake_timeout(&loading)));
	return timeout;
}

/*
 * The row is to say how far we have come, so that a successor repeats little.  What
 * holds the cursor back goes aside.
 */
void
onside_progress_save_at_exit(void)
{
	uint32		held = InterruptHoldoffCount;

	/* The process is about to be interrupted; an error would reset the count. */
	HOLD_INTERRUPTS();
	for (int i = 0; i < ASIDE_AT_EXIT; i++)
	{
		onside_sender_end(sender, onside_clock());
		if (!set_aside())
			break;
	}
	if (persist_due || not_before_has_changed() || sender->nfates > 0 ||
		before.requests + onside_sending_status()->requests !=
		delivery.requests)
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
	onside_txn_insist(&checking, ONSIDE_USES_CURSOR, load, &problem);
	if (problem != NULL)
		replace_row(problem,
					"What is in the outbox is sent again, each event under its event_id.");
	if (delivery.begun_at[delivery.segment - 1] == 0)
		delivery.begun_at[delivery.segment - 1] = GetCurrentTimestamp();
	pg_atomic_write_u32(&slot->segment, delivery.segment);
	settled_before = slot->status.settled;
	before = delivery;
	maintained_at = persisted_at = onside_clock();
	maintenance_due = true;		/* a crash may have left a segment half empty */
}

void
onside_progress_begin(void)
{
	sender = onside_sending_sender();
	onside_progress_look_aside();
}

/* ----------
 * What others want to know
 * ----------
 */

const char *
onside_progress_blocked(void)
{
	const OnsideBrake *brakes[] = {&burying, &writing, &leaving, &loading,
		&checking, &maintaining};

	for (int i = 0; i < (int) lengthof(brakes); i++)
		if (onside_brake_problem(brakes[i]) != NULL)
			return onside_brake_problem(brakes[i]);
	return blocked;
}

const OnsideDelivery *
onside_progress_delivery(void)
{
	return &delivery;
}

int64
onside_progress_settled_count(void)
{
	return settled_before + sender->delivered + sender->withdrawn +
		sender->refused - count_unburied();
}

int
onside_progress_unburied(void)
{
	return count_unburied();
}

TimestampTz
onside_progress_unwritten_since(void)
{
	return unwritten_since;
}

bool
onside_progress_is_written(void)
{
	return sender->nfates == 0 && writing.problem == NULL;
}

void
onside_progress_report(OnsideStatus *status)
{
	const OnsideSendingStatus *sending = onside_sending_status();
	/* What is not in dead_letter is as pending as it was. */
	status->settled = onside_progress_settled_count();
	status->delivered = before.delivered + sender->delivered +
		sender->healed;
	status->dead_lettered = before.dead_lettered + buried;
	status->requests = before.requests + sending->requests;
	status->retries = before.retries + sending->retries;
}
