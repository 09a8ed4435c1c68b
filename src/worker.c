/*-------------------------------------------------------------------------
 *
 * worker.c
 *		The background worker that sends one database's events.
 *
 * A loop around one wait.  Woken by a commit, it takes a snapshot, reads what
 * has become visible into a batch, hands that to the sender, and goes on:
 *
 *		read (window.c) -> batch.c -> sender.c -> http.c
 *							 settled <- sender.c
 *
 * The reading cursor runs ahead of the settled one; between them are the open
 * batch and the sender's queue.  Each read is a transaction of its own; none
 * is open, and no snapshot is held, while requests are under way.
 *
 * The settled cursor is in memory here and is written to delivery_cursor soon
 * after it has moved, at once if somebody waits in flush() or if dead letters
 * are moved with it.  Not each time, because every version of that row stays
 * while somebody holds a snapshot.  After a crash the events in between are
 * sent again, with the event_id they had.
 *
 * An error in a transaction of ours (disk full, a corrupt table) ends the
 * process; the launcher starts another.  Whatever the network does is not an
 * error, it is the sender's business.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_db_role_setting.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "batch.h"
#include "compat.h"
#include "credentials.h"
#include "dead_letter.h"
#include "delivery.h"
#include "http.h"
#include "outbox.h"
#include "segment.h"
#include "sender.h"
#include "settings.h"
#include "shmem.h"
#include "window.h"
#include "worker.h"

/*
 * Commits that no callback sees (logical replication's prepared ones) are
 * found by looking, so often; ms.
 */
#define POLL_INTERVAL			15000

/*
 * The cursor is written no more often than this (ms): it costs an xid and a
 * version of the row.  If the table has grown, somebody holds a snapshot that
 * keeps the old versions.
 */
#define PERSIST_INTERVAL		50
#define PERSIST_INTERVAL_HELD	2000
#define PERSIST_HELD_BLOCKS		4

/* Segments are looked after so often while events pass; ms. */
#define MAINTENANCE_INTERVAL	1000

/* Delivered events leave a segment that does not fill up after this; ms. */
#define IDLE_EMPTY_INTERVAL		60000

/* Rows counted in one go, with other work in between. */
#define COUNT_CHUNK				20000

/* How long requests under way may hold up a restart for new settings; ms. */
#define RESTART_GRACE			1000

static OnsideSlot *slot;
static char database_name[NAMEDATALEN];

static OnsideDelivery delivery; /* delivery.settled is the settled cursor */
static OnsideCursor reading;	/* the reading cursor */
static OnsideBatch *open_batch;
static bool unread;				/* there may be events to read */
static uint64 read_recorded;	/* slot->recorded before the last read */

static bool persist_due;		/* the row lacks something that was settled */
static bool cursor_moved;		/* it lacks snapshots, if nothing else */
static TimestampTz persisted_at;
static int64 persisted_requests;	/* requests of this process in the row */
static int64 persisted_retries;
static TimestampTz maintained_at;
static TimestampTz emptied_at;
static bool maintenance_due;

static int64 settled_count;		/* events settled since the slot was taken */
static TimestampTz peeked_oldest;

static bool counting;			/* counting the backlog */
static OnsideCursor count_cursor;
static int64 count_total;
static int64 count_recorded;	/* slot->recorded when it began */
static int64 count_settled;		/* settled_count when it began */

static bool paused;
static char *pause_reason;
static char *credentials;
static char *credentials_problem;
static char *database_settings;
static bool restart_wanted;
static TimestampTz restart_deadline;
static uint32 wait_event_idle;
static uint32 wait_event_request;

/* ----------
 * Transactions
 * ----------
 */

static void
begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
}

static void
commit(void)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(TopMemoryContext);
}

/* ----------
 * Ending
 * ----------
 */

/* Leaves the slot; "state" tells the launcher what to do with it. */
static void
leave(OnsideSlotState state)
{
	LWLockAcquire(onside_slots_lock(), LW_EXCLUSIVE);
	if (slot->worker_pid == MyProcPid)
	{
		slot->worker_pid = 0;
		pg_atomic_write_u32(&slot->procno, ONSIDE_NO_PROC);
		slot->state = state;
		slot->status.state = ONSIDE_NOT_RUNNING;
	}
	LWLockRelease(onside_slots_lock());

	ConditionVariableBroadcast(&slot->worker_cv);
	ConditionVariableBroadcast(&slot->settled_cv);
	onside_launcher_wake(false);
}

static void
before_exit(int code, Datum arg)
{
	leave(ONSIDE_SLOT_WANTED);
}

/* The extension is not (or no longer) in this database. */
static void
leave_absent(void)
{
	ereport(DEBUG1,
			(errmsg("onside_attribution: database \"%s\" does not have the extension",
					database_name)));
	leave(ONSIDE_SLOT_ABSENT);
	proc_exit(0);
}

/* In a transaction. */
static void
check_extension(void)
{
	if (!OidIsValid(get_extension_oid("onside_attribution", true)) ||
		!OidIsValid(onside_relation_oid("delivery_cursor")))
		leave_absent();
}

/* ----------
 * The cursor's row
 * ----------
 */

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
	persist_due = cursor_moved = false;
	persisted_at = GetCurrentTimestamp();
}

static long
persist_interval(void)
{
	static bool held = false;
	static TimestampTz looked_at = 0;

	/* The size of the table says whether old versions can be removed. */
	if (TimestampDifferenceExceeds(looked_at, persisted_at, 1000))
	{
		begin();
		check_extension();
		held = onside_delivery_blocks() > PERSIST_HELD_BLOCKS;
		commit();
		looked_at = persisted_at;
	}
	return held ? PERSIST_INTERVAL_HELD : PERSIST_INTERVAL;
}

static bool
somebody_waits(void)
{
	return pg_atomic_read_u32(&slot->flush_waiters) > 0;
}

/* Milliseconds until the row is to be written; -1 for never. */
static long
persist_timeout(void)
{
	if (somebody_waits() && (persist_due || cursor_moved))
		return 0;
	if (!persist_due)
		return -1;
	return TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
										   TimestampTzPlusMilliseconds(persisted_at,
																	   persist_interval()));
}

static void
persist(void)
{
	begin();
	check_extension();
	store();
	commit();
	ConditionVariableBroadcast(&slot->settled_cv);
}

/*
 * SIGTERM: save how far we are, so that a restart sends little or nothing
 * again.  Not worth waiting for anything.
 */
static void
persist_at_exit(void)
{
	if (!persist_due)
		return;

	HOLD_INTERRUPTS();
	begin();
	if (OidIsValid(onside_relation_oid("delivery_cursor")) &&
		ConditionalLockRelationOid(onside_relation_oid("delivery_cursor"),
								   RowExclusiveLock))
		store();
	commit();
	RESUME_INTERRUPTS();
}

/* ----------
 * Settings
 * ----------
 */

/* What ALTER DATABASE and ALTER ROLE have set for this process. */
static char *
read_database_settings(void)
{
	StringInfoData buf;
	Relation	rel = table_open(DbRoleSettingRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0,
										  NULL);
	HeapTuple	tuple;

	initStringInfo(&buf);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_db_role_setting form = (Form_pg_db_role_setting) GETSTRUCT(tuple);
		bool		isnull;
		Datum		config = heap_getattr(tuple,
										  Anum_pg_db_role_setting_setconfig,
										  RelationGetDescr(rel), &isnull);

		if (isnull ||
			(form->setdatabase != MyDatabaseId &&
			 form->setdatabase != InvalidOid) ||
			(form->setrole != GetUserId() && form->setrole != InvalidOid))
			continue;
		appendStringInfo(&buf, "%u %u ", form->setdatabase, form->setrole);
		appendStringInfoString(&buf,
							   DatumGetCString(OidFunctionCall1(F_ARRAY_OUT,
																config)));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return MemoryContextStrdup(TopMemoryContext, buf.data);
}

/* Reads the credentials file and tells http.c how to send. */
static void
configure_http(void)
{
	static char *user_password = NULL;
	OnsideHttpConfig config;
	char	   *problem;
	char	   *fresh = onside_credentials_read(onside_credentials_file,
												&problem);

	if (credentials_problem != NULL)
		pfree(credentials_problem);
	credentials_problem = fresh == NULL ? problem : NULL;

	if (user_password != NULL)
	{
		explicit_bzero(user_password, strlen(user_password));
		pfree(user_password);
	}
	user_password = fresh;
	credentials = fresh;
	if (fresh == NULL)
		return;

	config.url = onside_endpoint;
	config.credentials = user_password;
	config.ca_file = onside_ca_file;
	config.proxy = onside_proxy;
	config.connect_timeout = onside_connect_timeout;
	config.request_timeout = onside_request_timeout;
	onside_http_configure(&config);
}

static void
reload(void)
{
	char	   *before;

	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);

	/*
	 * A setting made by ALTER DATABASE arrives with the connection, and one
	 * that was reset leaves with it: start over.
	 */
	begin();
	check_extension();
	before = database_settings;
	database_settings = read_database_settings();
	commit();
	if (strcmp(before, database_settings) != 0)
	{
		restart_wanted = true;
		restart_deadline =
			TimestampTzPlusMilliseconds(GetCurrentTimestamp(), RESTART_GRACE);
	}
	pfree(before);

	configure_http();
	onside_sender_reconfigured();
	maintenance_due = true;
}

static void
read_control(void)
{
	char	   *reason;

	begin();
	check_extension();
	paused = onside_control_paused(&reason);
	if (pause_reason != NULL)
		pfree(pause_reason);
	pause_reason = reason == NULL ? NULL :
		MemoryContextStrdup(TopMemoryContext, reason);
	commit();
}

/* May anything be sent? */
static bool
may_send(void)
{
	return onside_enabled && !paused && credentials != NULL &&
		!restart_wanted && slot->held_by == 0;
}

/* ----------
 * Reading
 * ----------
 */

typedef struct ReadLimits
{
	int			max_events;
	int			max_bytes;
} ReadLimits;

static bool
add_to_open_batch(TupleTableSlot *row, const OnsidePosition *pos, void *arg)
{
	ReadLimits *limits = (ReadLimits *) arg;
	OnsideEvent event;

	onside_outbox_read_event(row, &event);
	return onside_batch_add(open_batch, &event, pos,
							DatumGetTimestampTz(row->tts_values[Anum_outbox_recorded_at - 1]),
							limits->max_events, limits->max_bytes);
}

/* Hands the open batch over. */
static void
queue_open_batch(void)
{
	onside_batch_seal(open_batch);
	onside_sender_add(open_batch);
	open_batch = NULL;
}

/*
 * Reads into the open batch.  Returns true if the batch is full.
 */
static bool
read_into_batch(ReadLimits *limits)
{
	bool		fresh = reading.window == NULL;
	bool		finished;

	if (open_batch == NULL)
		open_batch = onside_batch_create();

	read_recorded = pg_atomic_read_u64(&slot->recorded);
	begin();
	check_extension();
	finished = onside_window_read(&reading, add_to_open_batch, limits);
	commit();

	onside_cursor_copy(&open_batch->end, &reading);
	if (finished && fresh)
		unread = false;

	if (open_batch->nevents == 0)
	{
		/* Nothing: whatever there is ends here. */
		if (!onside_sender_extend_last(&reading))
		{
			onside_cursor_copy(&delivery.settled, &reading);
			cursor_moved = true;
		}
		onside_batch_free(open_batch);
		open_batch = NULL;
	}
	return !finished;
}

/* A batch that is not full goes if nothing is under way and it has lingered. */
static bool
partial_batch_may_go(void)
{
	return open_batch != NULL && !onside_sender_busy() &&
		(onside_linger == 0 ||
		 TimestampDifferenceExceeds(open_batch->opened_at,
									GetCurrentTimestamp(), onside_linger));
}

/* Reads and sends as much as may be sent now. */
static void
read_and_send(void)
{
	ReadLimits	limits;

	onside_sender_pump();
	while ((limits.max_events = onside_sender_wants(&limits.max_bytes)) > 0)
	{
		bool		full = false;

		if (unread || reading.window != NULL)
		{
			peeked_oldest = 0;
			full = read_into_batch(&limits);
		}
		else if (open_batch == NULL)
			break;

		if (full || (!unread && partial_batch_may_go()))
		{
			queue_open_batch();
			onside_sender_pump();
		}
		else if (!unread && reading.window == NULL)
			break;
		CHECK_FOR_INTERRUPTS();
	}
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
	begin();
	check_extension();
	for (int i = 0; i < settled->nrefused; i++)
	{
		const OnsideRefusedEvent *refused = &settled->refused[i];
		OnsideEvent event;
		TimestampTz recorded_at;

		/* Somebody may have deleted it meanwhile. */
		if (onside_window_fetch(&refused->pos, &event, &recorded_at))
			onside_dead_letter_insert(&event, refused->http_status,
									  refused->error, refused->attempts,
									  recorded_at);
	}
	store();
	commit();
	ConditionVariableBroadcast(&slot->settled_cv);

	ereport(LOG,
			(errmsg("onside_attribution: %d events of database \"%s\" were refused for good and moved to dead_letter",
					settled->nrefused, database_name),
			 errdetail("The API said: %s", settled->refused[0].error)));
}

static void
settle(void)
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
		delivery.dead_lettered += settled.nrefused;
		settled_count += settled.delivered + settled.nrefused;
		persist_due = true;
		maintenance_due = true;
		if (settled.nrefused > 0)
			bury(&settled);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/* ----------
 * Segments
 * ----------
 */

/* Is everything that we know of settled? */
static bool
drained(void)
{
	return !unread && reading.window == NULL && open_batch == NULL &&
		!onside_sender_busy();
}

static void
maintain(void)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		move_on = drained() &&
		TimestampDifferenceExceeds(emptied_at, now, IDLE_EMPTY_INTERVAL);
	int			segment;
	const char *blocked = NULL;
	int			emptied = 0;

	begin();
	check_extension();
	segment = onside_segment_choose(delivery.segment, move_on);
	if (segment != delivery.segment)
	{
		delivery.segment = segment;
		pg_atomic_write_u32(&slot->segment, segment);
		persist_due = true;
	}
	emptied = onside_segment_empty(segment, &delivery.settled, &blocked);
	if (emptied > 0)
		store();
	commit();

	if (emptied > 0 || move_on)
		emptied_at = now;
	maintained_at = now;
	maintenance_due = false;
	pgstat_report_stat(true);

	LWLockAcquire(slot->lock, LW_EXCLUSIVE);
	strlcpy(slot->status.blocked, blocked == NULL ? "" : blocked,
			sizeof(slot->status.blocked));
	LWLockRelease(slot->lock);
}

/* ----------
 * Counting
 * ----------
 */

static void
publish_uncounted(int64 uncounted)
{
	LWLockAcquire(slot->lock, LW_EXCLUSIVE);
	slot->status.uncounted = uncounted;
	slot->status.settled = settled_count;
	LWLockRelease(slot->lock);
}

static void
start_counting(void)
{
	onside_cursor_copy(&count_cursor, &delivery.settled);
	count_total = 0;
	count_recorded = pg_atomic_read_u64(&slot->recorded);
	count_settled = settled_count;
	counting = true;
}

typedef struct CountArg
{
	int			left;
} CountArg;

static bool
count_event(TupleTableSlot *row, const OnsidePosition *pos, void *arg)
{
	CountArg   *count = (CountArg *) arg;

	if (count->left == 0)
		return false;
	count->left--;
	count_total++;
	return true;
}

/* Counts some of the backlog that a predecessor left. */
static void
count_some(void)
{
	CountArg	arg = {COUNT_CHUNK};
	bool		fresh = count_cursor.window == NULL;

	if (fresh)
		count_recorded = pg_atomic_read_u64(&slot->recorded);
	begin();
	check_extension();
	if (onside_window_read(&count_cursor, count_event, &arg) && fresh)
		counting = false;
	commit();
	publish_uncounted(count_total - count_recorded + count_settled);
	if (!counting)
		onside_cursor_release(&count_cursor);
}

/* Nothing is pending: whatever the counters say, they start from here. */
static void
correct_count(void)
{
	publish_uncounted(settled_count - (int64) read_recorded);
	if (counting)
	{
		counting = false;
		onside_cursor_release(&count_cursor);
	}
}

static bool
take_recorded_at(TupleTableSlot *row, const OnsidePosition *pos, void *arg)
{
	bool		isnull;

	*(TimestampTz *) arg =
		DatumGetTimestampTz(slot_getattr(row, Anum_outbox_recorded_at,
										 &isnull));
	return false;
}

/* When the oldest event that is not settled was recorded; 0 for none. */
static TimestampTz
oldest_recorded_at(void)
{
	TimestampTz oldest = onside_sender_oldest();
	OnsideCursor peeking = {0};

	if (oldest != 0)
		return oldest;
	if (open_batch != NULL)
		return open_batch->events[0].recorded_at;
	if (peeked_oldest != 0 || !unread)
		return peeked_oldest;

	/* There may be some that nobody may send now. */
	read_recorded = pg_atomic_read_u64(&slot->recorded);
	onside_cursor_copy(&peeking, &reading);
	begin();
	check_extension();
	if (onside_window_read(&peeking, take_recorded_at, &peeked_oldest) &&
		reading.window == NULL)
	{
		/* There are none. */
		onside_cursor_copy(&reading, &peeking);
		onside_cursor_copy(&delivery.settled, &peeking);
		cursor_moved = true;
		unread = false;
	}
	commit();
	onside_cursor_release(&peeking);
	return peeked_oldest;
}

/* ----------
 * Publishing
 * ----------
 */

static OnsideState
current_state(const OnsideSenderStatus *sender, const char **reason)
{
	*reason = NULL;
	if (!onside_enabled)
	{
		*reason = "onside_attribution.enabled is off in this database";
		return ONSIDE_DISABLED;
	}
	if (paused)
	{
		*reason = pause_reason != NULL ? pause_reason :
			"paused with onside_attribution.pause()";
		return ONSIDE_PAUSED;
	}
	if (credentials == NULL)
	{
		*reason = credentials_problem;
		return ONSIDE_MISCONFIGURED;
	}
	if (sender->reason[0] != '\0')
		*reason = sender->reason;
	if (sender->state == ONSIDE_IDLE && !drained())
		return ONSIDE_SENDING;
	return sender->state;
}

static bool
is_trouble(OnsideState state)
{
	return state != ONSIDE_IDLE && state != ONSIDE_SENDING;
}

/* One line when a state changes, and none while all is well. */
static void
log_state(OnsideState before, OnsideState after, const char *reason)
{
	if (before == after || (!is_trouble(before) && !is_trouble(after)))
		return;
	ereport(LOG,
			(errmsg("onside_attribution: database \"%s\" is now %s",
					database_name, onside_state_name(after)),
			 reason != NULL ? errdetail("%s", reason) : 0));
}

static void
report_activity(OnsideState state)
{
	static OnsideState reported = ONSIDE_NOT_RUNNING;

	if (state == reported)
		return;
	reported = state;
	pgstat_report_activity(state == ONSIDE_SENDING ? STATE_RUNNING : STATE_IDLE,
						   onside_state_name(state));
}

static void
publish(void)
{
	static OnsideState last_state = ONSIDE_IDLE;
	OnsideStatus *shared = &slot->status;
	const OnsideSenderStatus *sender;
	TimestampTz oldest = oldest_recorded_at();
	const char *reason;
	OnsideState state;

	sender = onside_sender_status();
	state = current_state(sender, &reason);
	if (drained())
		correct_count();

	LWLockAcquire(slot->lock, LW_EXCLUSIVE);
	shared->state = state;
	strlcpy(shared->reason, reason == NULL ? "" : reason,
			sizeof(shared->reason));
	shared->settled = settled_count;
	shared->in_flight = sender->in_flight;
	shared->delivered = delivery.delivered;
	shared->dead_lettered = delivery.dead_lettered;
	shared->requests = delivery.requests + sender->requests -
		persisted_requests;
	shared->retries = delivery.retries + sender->retries - persisted_retries;
	shared->oldest_recorded_at = oldest;
	shared->last_success_at = sender->last_success_at;
	shared->last_error_at = sender->last_error_at;
	strlcpy(shared->last_error, sender->last_error,
			sizeof(shared->last_error));
	shared->next_attempt_at = sender->next_attempt_at;
	LWLockRelease(slot->lock);

	log_state(last_state, state, reason);
	report_activity(state);
	last_state = state;
}

/* ----------
 * The loop
 * ----------
 */

static void
take_wakeup(void)
{
	uint32		bits = pg_atomic_exchange_u32(&slot->wakeup, 0);

	if (bits == 0)
		return;

	unread = true;
	if (bits & ONSIDE_WAKE_CHECK)
	{
		begin();
		check_extension();
		commit();
	}
	if (bits & ONSIDE_WAKE_CONTROL)
		read_control();
	if (bits & ONSIDE_WAKE_RESUME)
	{
		configure_http();
		onside_sender_clear_backoff();
	}
	if ((bits & ONSIDE_WAKE_RECOUNT) && !counting)
		start_counting();
}

/* Ends this process if another is to go on, or nobody is. */
static void
restart_if_wanted(void)
{
	bool		held = slot->held_by != 0;

	if (!held && !restart_wanted)
		return;
	if (!held && onside_http_in_flight() > 0 &&
		GetCurrentTimestamp() < restart_deadline)
		return;
	persist_at_exit();
	proc_exit(0);
}

static long
min_timeout(long a, long b)
{
	if (a < 0 || b < 0)
		return Max(a, b);
	return Min(a, b);
}

static long
until(TimestampTz since, long interval)
{
	return TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
										   TimestampTzPlusMilliseconds(since,
																	   interval));
}

static long
loop_timeout(TimestampTz polled_at)
{
	long		timeout = until(polled_at, POLL_INTERVAL);

	timeout = min_timeout(timeout, persist_timeout());
	if (maintenance_due)
		timeout = min_timeout(timeout,
							  until(maintained_at, MAINTENANCE_INTERVAL));
	if (may_send() && !drained())
		timeout = min_timeout(timeout, onside_sender_timeout());
	if (open_batch != NULL && onside_linger > 0 && !onside_sender_busy())
		timeout = min_timeout(timeout,
							  until(open_batch->opened_at, onside_linger));
	if (restart_wanted)
		timeout = min_timeout(timeout, until(restart_deadline, 0));
	if (counting)
		timeout = 0;
	return timeout;
}

static void
poll_around(void)
{
	unread = true;
	if (credentials == NULL)
		configure_http();
	maintain();
}

static void
main_loop(void)
{
	TimestampTz polled_at = GetCurrentTimestamp();

	for (;;)
	{
		bool		waiting;

		if (ProcDiePending)
			persist_at_exit();
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
			reload();
		take_wakeup();
		restart_if_wanted();

		(void) onside_sender_collect();
		settle();
		if (onside_sender_take_unauthorized() ||
			(onside_sender_status()->state == ONSIDE_UNAUTHORIZED &&
			 onside_sender_timeout() < 0 && onside_http_in_flight() == 0))
			configure_http();
		if (may_send())
			read_and_send();

		if (persist_timeout() == 0)
			persist();
		if (maintenance_due && until(maintained_at, MAINTENANCE_INTERVAL) == 0)
			maintain();
		if (until(polled_at, POLL_INTERVAL) == 0)
		{
			poll_around();
			polled_at = GetCurrentTimestamp();
			continue;
		}
		if (counting)
			count_some();
		publish();

		waiting = onside_http_in_flight() > 0;
		(void) onside_http_wait(loop_timeout(polled_at),
								waiting ? wait_event_request : wait_event_idle);
	}
}

/* ----------
 * Starting
 * ----------
 */

/*
 * ALTER DATABASE and ALTER ROLE can set anything for us, too; these would do
 * harm.
 */
static void
fix_settings(void)
{
	static const char *const fixed[][2] = {
		{"search_path", "pg_catalog, pg_temp"},
		{"statement_timeout", "0"},
		{"lock_timeout", "0"},
		{"transaction_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_deferrable", "off"},
		{"session_replication_role", "origin"},
		{"row_security", "on"},
		{"synchronous_commit", "off"},	/* what we write can be lost */
	};

	for (int i = 0; i < (int) lengthof(fixed); i++)
		if (GetConfigOption(fixed[i][0], true, false) != NULL)
			SetConfigOption(fixed[i][0], fixed[i][1], PGC_SUSET,
							PGC_S_OVERRIDE);
}

/* Takes the slot, unless it has been given to another database meanwhile. */
static void
take_slot(int slot_no, Oid database)
{
	slot = onside_slot_get(slot_no);
	LWLockAcquire(onside_slots_lock(), LW_EXCLUSIVE);
	if (slot->database != database || slot->worker_pid != 0 ||
		slot->held_by != 0)
	{
		LWLockRelease(onside_slots_lock());
		proc_exit(0);
	}
	slot->worker_pid = MyProcPid;
	slot->state = ONSIDE_SLOT_RUNNING;
	pg_atomic_write_u32(&slot->procno, ONSIDE_MY_PROCNO);
	LWLockRelease(onside_slots_lock());

	/* Before connecting: so it runs when transactions have been aborted. */
	before_shmem_exit(before_exit, (Datum) 0);
}

static void
load(void)
{
	begin();
	strlcpy(database_name, get_database_name(MyDatabaseId),
			sizeof(database_name));
	check_extension();
	onside_delivery_load(&delivery, NULL);
	database_settings = read_database_settings();
	commit();

	onside_cursor_copy(&reading, &delivery.settled);
	pg_atomic_write_u32(&slot->segment, delivery.segment);
	settled_count = slot->status.settled;
	unread = true;
	emptied_at = maintained_at = persisted_at = GetCurrentTimestamp();
}

void
onside_worker_main(Datum slot_no)
{
	Oid			database;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	pqsignal(SIGINT, SIG_IGN);	/* there is no query of ours to cancel */
	BackgroundWorkerUnblockSignals();

	memcpy(&database, MyBgworkerEntry->bgw_extra, sizeof(database));
	take_slot(DatumGetInt32(slot_no), database);
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	MemoryContextSwitchTo(TopMemoryContext);
	fix_settings();

	wait_event_idle = onside_wait_event("OnsideAttributionIdle");
	wait_event_request = onside_wait_event("OnsideAttributionRequest");

	load();
	read_control();
	onside_http_init();
	onside_sender_init(delivery.not_before);
	configure_http();
	start_counting();
	pgstat_report_appname("onside_attribution worker");

	main_loop();
}

bool
onside_worker_register(OnsideSlot *for_slot, int slot_no,
					   BackgroundWorkerHandle **handle)
{
	BackgroundWorker worker = {0};

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "onside_attribution",
			sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "onside_worker_main",
			sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_type, "onside_attribution worker",
			sizeof(worker.bgw_type));
	snprintf(worker.bgw_name, sizeof(worker.bgw_name),
			 "onside_attribution worker for database %u", for_slot->database);
	worker.bgw_main_arg = Int32GetDatum(slot_no);
	worker.bgw_notify_pid = MyProcPid;
	memcpy(worker.bgw_extra, &for_slot->database, sizeof(Oid));

	return RegisterDynamicBackgroundWorker(&worker, handle);
}
