/*-------------------------------------------------------------------------
 *
 * worker.c
 *		The background worker that sends one database's events.
 *
 * A loop around one wait.  Woken by a commit, it has the reader take what has
 * become visible, and data goes one way:
 *
 *		reader.c (window.c -> batch.c) -> sending.c (sender.c -> http.c)
 *										  sending.c -> progress.c
 *
 * This file keeps the rest together: settings, credentials, pausing, when to
 * wake up, and telling the world how things stand.
 *
 * An error in a transaction of ours (a full disk, a locked or damaged table) ends
 * neither the process nor what it can do without that transaction; see txn.c.
 * Whatever the network does is not an error, it is the sender's business.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_db_role_setting.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "compat.h"
#include "log/crash_guard.h"
#include "log/delivery.h"
#include "log/service.h"
#include "log/tables.h"
#include "log/window.h"
#include "send/address.h"
#include "send/credentials.h"
#include "send/http.h"
#include "settings.h"
#include "version.h"
#include "worker/backlog.h"
#include "worker/chance.h"
#include "worker/counting.h"
#include "worker/process.h"
#include "worker/progress.h"
#include "worker/reader.h"
#include "worker/sending.h"
#include "worker/txn.h"
#include "worker/worker.h"

/*
 * Commits that no callback sees (logical replication's prepared ones) are
 * found by looking, so often; ms.
 */
#define POLL_INTERVAL			15000

/* What could not be looked for is looked for again so soon; ms. */
#define RECHECK_INTERVAL		500

/* A trouble that has lasted so long gets a line in the log; ms. */
#define LOGGED_AFTER			5000

/* How long requests under way may hold up a restart for new settings; ms. */
#define RESTART_GRACE			1000

static OnsideSlot *slot;
static char database_name[NAMEDATALEN];

static uint64 noticed;			/* slot->recorded when was last looked */
static uint32 epoch;			/* slot->epoch when was last looked */
static bool withdrawal_due;		/* and what it stands for is to be done */
static bool paused;
static char *pause_reason;
static bool has_credentials;
static char *configuration_problem;
static char *database_settings;
static bool restart_wanted;
static int64 restart_wanted_at;
static bool control_due;		/* the table "control" is to be read */
static bool control_known;		/* and has been, once */
static bool settings_due;		/* the database's settings are to be compared */
static bool check_due;			/* has the extension changed? */
static OnsideBrake looking = {
	.work = "look whether the extension has changed",
	.step = ONSIDE_STEP_LOOKING
};
static OnsideBrake controlling = {
	.work = "read whether sending is paused",
	.step = ONSIDE_STEP_LOOKING
};
static OnsideState last_state = ONSIDE_IDLE;
static int64 last_state_at;
static int64 trouble_at;		/* when all was well last */
static uint32 wait_event_idle;
static uint32 wait_event_request;

static void
before_exit(int code, Datum arg)
{
	onside_service_leave(slot, ONSIDE_SLOT_WANTED, onside_txn_left_orderly());
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

/* A copy for as long as the process lives; NULL stays NULL. */
static char *
keep(const char *str)
{
	return str == NULL ? NULL : MemoryContextStrdup(TopMemoryContext, str);
}

static bool
differs(const char *a, const char *b)
{
	return a == NULL || b == NULL ? a != b : strcmp(a, b) != 0;
}

/*
 * How requests are to be made, by the settings and the credentials files.  What
 * is wrong with them is in *problem; then nothing can be sent.
 */
static OnsideHttpConfig
read_http_config(char **problem)
{
	OnsideHttpConfig config = {0};
	const char *endpoint_problem = onside_address_endpoint_problem(onside_endpoint);
	const char *proxy_problem = onside_address_proxy_problem(onside_proxy);

	*problem = NULL;
	if (endpoint_problem != NULL)
		*problem = psprintf("onside_attribution.endpoint cannot be used: %s",
							endpoint_problem);
	else if (proxy_problem != NULL)
		*problem = psprintf("onside_attribution.proxy cannot be used: %s",
							proxy_problem);
	else if (onside_proxy[0] != '\0' &&
			 onside_proxy_credentials_file[0] != '\0')
		config.proxy_credentials =
			onside_credentials_read("proxy_credentials_file",
									onside_proxy_credentials_file, problem);
	if (*problem == NULL)
		config.credentials = onside_credentials_read("credentials_file",
													 onside_credentials_file,
													 problem);
	config.url = onside_endpoint;
	config.ca_file = onside_ca_file;
	config.proxy = onside_proxy;
	config.connect_timeout = onside_connect_timeout;
	return config;
}

/*
 * Takes over what settings and credentials files say.  Whatever of it has changed
 * deserves a try now, over new connections.
 */
static void
configure(void)
{
	static OnsideHttpConfig config;
	static bool was_enabled;
	char	   *problem;
	OnsideHttpConfig now = read_http_config(&problem);
	bool		first = config.url == NULL;
	bool		elsewhere = differs(now.url, config.url) ||
		differs(now.credentials, config.credentials);
	bool		changed = elsewhere || was_enabled != onside_enabled || differs(now.ca_file, config.ca_file) ||
		differs(now.proxy, config.proxy) ||
		differs(now.proxy_credentials, config.proxy_credentials) ||
		now.connect_timeout != config.connect_timeout;

	if (configuration_problem != NULL)
		pfree(configuration_problem);
	configuration_problem = problem;
	if (changed)
	{
		OnsideHttpConfig old = config;

		config.url = keep(now.url);
		config.credentials = keep(now.credentials);
		config.ca_file = keep(now.ca_file);
		config.proxy = keep(now.proxy);
		config.proxy_credentials = keep(now.proxy_credentials);
		config.connect_timeout = now.connect_timeout;
		if (config.credentials != NULL)
			onside_http_configure(&config);
		onside_credentials_free(unconstify(char *, old.credentials));
		onside_credentials_free(unconstify(char *, old.proxy_credentials));
		if (old.url != NULL)
		{
			pfree(unconstify(char *, old.url));
			pfree(unconstify(char *, old.ca_file));
			pfree(unconstify(char *, old.proxy));
		}
	}
	onside_credentials_free(unconstify(char *, now.credentials));
	onside_credentials_free(unconstify(char *, now.proxy_credentials));
	has_credentials = config.credentials != NULL;
	was_enabled = onside_enabled;

	/* What a predecessor has left is not forgotten at the start. */
	if (!first)
		onside_sending_configure(changed, elsewhere);
}

/* Ends this process soon, for a successor that starts over. */
static void
want_restart(void)
{
	restart_wanted = true;
	restart_wanted_at = onside_clock();
}

static void
reload(void)
{
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	onside_txn_hurry();
	settings_due = true;
	onside_http_renew();		/* a name may lead elsewhere by now */
	configure();
	onside_progress_request_maintenance();
}

/* Body of a transaction. */
static void
look_at_settings(void *arg)
{
	*(char **) arg = read_database_settings();
}

/*
 * A setting made by ALTER DATABASE arrives with the connection, and one that was
 * reset leaves with it: start over.
 */
static void
compare_settings(void)
{
	char	   *now;

	if (!onside_txn_run(&looking, 0, look_at_settings, &now))
		return;
	settings_due = false;
	if (strcmp(now, database_settings) != 0)
		want_restart();
	pfree(now);
}

/* What the table "control" says. */
typedef struct Control
{
	bool		paused;
	char	   *reason;
	const char *problem;
} Control;

/* Body of a transaction. */
static void
look_at_control(void *arg)
{
	Control    *control = arg;

	control->paused = onside_control_paused(&control->reason,
											&control->problem);
	if (control->reason != NULL)
		control->reason = MemoryContextStrdup(TopMemoryContext,
											  control->reason);
	if (control->problem != NULL)
		onside_control_set(false, NULL);
}

/* Takes over what the table says, or repairs it. */
static void
read_control(void)
{
	Control		control = {0};

	if (!onside_txn_run(&controlling, ONSIDE_USES_CONTROL, look_at_control,
						&control))
		return;
	control_due = false;
	control_known = true;
	paused = control.paused;
	if (pause_reason != NULL)
		pfree(pause_reason);
	pause_reason = control.reason;
	if (control.problem != NULL)
		ereport(WARNING,
				(errmsg("onside_attribution: table \"%s.control\" of database \"%s\" is written anew: %s",
						ONSIDE_SCHEMA, database_name, control.problem),
				 errdetail("Sending is not paused.")));
}

/* May anything be sent? */
static bool
may_send(void)
{
	return onside_enabled && control_known && !paused && has_credentials &&
		!restart_wanted && !onside_service_is_closed(slot);
}

/* ----------
 * Publishing
 * ----------
 */

static bool
is_trouble(OnsideState state)
{
	return state != ONSIDE_IDLE && state != ONSIDE_SENDING;
}

/* Is all settled, and written, that we know of? */
static bool
is_drained(void)
{
	return onside_sending_drained() && onside_progress_is_written() &&
		onside_progress_knows_all();
}

/* What the worker cannot do now, with any state; or NULL. */
static const char *
what_is_in_the_way(void)
{
	if (onside_reader_problem() != NULL)
		return onside_reader_problem();
	if (onside_progress_blocked() != NULL)
		return onside_progress_blocked();
	if (onside_brake_problem(&controlling) != NULL)
		return onside_brake_problem(&controlling);
	return onside_brake_problem(&looking);
}

static OnsideState
current_state(const OnsideSendingStatus *sending, const char **reason)
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
	if (!has_credentials)
	{
		*reason = configuration_problem;
		return ONSIDE_MISCONFIGURED;
	}
	if (sending->reason[0] != '\0')
		*reason = sending->reason;
	if (sending->state == ONSIDE_IDLE && !is_drained())
		return ONSIDE_SENDING;
	return sending->state;
}

/* What is in the way comes first: a person can do something about it. */
static const char *
whole_reason(const char *reason)
{
	static char both[ONSIDE_REASON_MAX * 2];
	const char *obstacle = what_is_in_the_way();

	if (obstacle == NULL || reason == NULL)
		return obstacle != NULL ? obstacle : reason;
	snprintf(both, sizeof(both), "%s; %s", obstacle, reason);
	return both;
}

/*
 * Milliseconds until the present trouble is worth a line; -1 for never.  An
 * outage in which the state changes again and again is worth one, too; later
 * lines are about what lasts.
 */
static long
log_timeout(void)
{
	if (!is_trouble(last_state) || last_state == slot->logged_state)
		return -1;
	return onside_ms_until(is_trouble(slot->logged_state) ? last_state_at :
						   trouble_at, LOGGED_AFTER);
}

/*
 * One line when a trouble has lasted for a while, and one when that is over;
 * none while all is well.  To send again, as a successor does at first, is not to
 * be well again: something has to be accepted.
 */
static void
log_state(OnsideState state, const char *reason)
{
	if (state != last_state)
	{
		last_state_at = onside_clock();
		if (!is_trouble(last_state))
			trouble_at = last_state_at;
		last_state = state;
	}
	if (state == slot->logged_state ||
		(!is_trouble(state) && !is_trouble(slot->logged_state)) ||
		(is_trouble(state) && log_timeout() > 0) ||
		(state == ONSIDE_SENDING && slot->status.last_success_at == 0))
		return;
	slot->logged_state = state;
	ereport(LOG,
			(errmsg("onside_attribution: database \"%s\" is now %s",
					database_name, onside_state_name(state)),
			 reason != NULL ? errdetail("%s", reason) : 0));
}

/* For pg_stat_activity: the state, and what the worker cannot do meanwhile. */
static void
report_activity(OnsideState state, const char *reason)
{
	static OnsideState reported = ONSIDE_NOT_RUNNING;
	static char reported_reason[ONSIDE_REASON_MAX];
	char	   *text;

	if (reason == NULL)
		reason = "";
	if (state == reported &&
		strncmp(reason, reported_reason, sizeof(reported_reason) - 1) == 0)
		return;
	reported = state;
	onside_copy_text(reported_reason, reason, sizeof(reported_reason));
	text = psprintf("%s%s%s", onside_state_name(state),
					reason[0] != '\0' ? ": " : "", reason);
	pgstat_report_activity(state == ONSIDE_SENDING ? STATE_RUNNING : STATE_IDLE,
						   text);
	pfree(text);
}

/* When the oldest pending event was recorded; 0 for none. */
static TimestampTz
oldest_recorded(void)
{
	TimestampTz times[] = {onside_sending_oldest(),
		onside_reader_oldest_recorded(), onside_progress_unwritten_since(),
		onside_progress_knows_all() ? 0 : onside_backlog_aside_oldest()};
	TimestampTz oldest = 0;

	for (int i = 0; i < (int) lengthof(times); i++)
		if (times[i] != 0 && (oldest == 0 || times[i] < oldest))
			oldest = times[i];
	return oldest;
}

static void
publish(void)
{
	OnsideStatus *shared = &slot->status;
	const OnsideSendingStatus *sending;
	TimestampTz oldest = oldest_recorded();
	const char *reason;
	OnsideState state;
	bool		sends = may_send();	/* takes the lock of all slots */

	sending = onside_sending_status();
	state = current_state(sending, &reason);
	reason = whole_reason(reason);
	if (is_drained())
		onside_backlog_is_empty(onside_reader_recorded());

	LWLockAcquire(slot->lock, LW_EXCLUSIVE);
	shared->state = state;
	onside_copy_text(shared->reason, reason == NULL ? "" : reason,
					 sizeof(shared->reason));
	onside_progress_report(shared);
	shared->in_flight = sending->in_flight;
	shared->oldest_recorded_at = oldest;
	shared->last_success_at = sending->last_success_at;
	shared->last_error_at = sending->last_error_at;
	strlcpy(shared->last_error, sending->last_error,
			sizeof(shared->last_error));
	shared->next_attempt_at = sends ? sending->next_attempt_at : 0;
	LWLockRelease(slot->lock);
	onside_counting_publish(slot);

	log_state(state, reason);
	report_activity(state, is_trouble(state) ? NULL : reason);
}

/* ----------
 * The loop
 * ----------
 */

/* Body of a transaction. */
static void
look_at_version(void *arg)
{
	*(bool *) arg = onside_version_problem() != NULL;
}

/* Is the extension still there, and still the one that we know? */
static void
check_extension(void)
{
	bool		differs;

	if (!onside_txn_run(&looking, 0, look_at_version, &differs))
		return;
	check_due = false;

	/* Its tables may have another shape, also for what is to be saved. */
	if (differs)
		onside_txn_leave_orderly();
}

/* Does what a wake-up or a reload has asked for and needs a transaction. */
static void
look_around(void)
{
	if (check_due)
		check_extension();
	if (settings_due)
		compare_settings();
	if (control_due)
		read_control();
}

static void
take_wakeup(void)
{
	uint32		bits = pg_atomic_exchange_u32(&slot->wakeup, 0);
	uint64		recorded = pg_atomic_read_u64(&slot->recorded);

	if (bits == 0 && recorded == noticed)
		return;

	noticed = recorded;
	onside_reader_wake();
	check_due |= (bits & ONSIDE_WAKE_CHECK) != 0;
	control_due |= (bits & ONSIDE_WAKE_CONTROL) != 0;
	if (bits & (ONSIDE_WAKE_CHECK | ONSIDE_WAKE_RESUME))
		onside_txn_hurry();
	if (bits & ONSIDE_WAKE_RESUME)
	{
		pg_atomic_write_u32(&slot->start_now, 0);
		configure();
		onside_sending_configure(true, false);
		onside_chance_expect(GetCurrentTimestamp());
	}
	if (bits & ONSIDE_WAKE_FLUSH)
		onside_progress_check_row();
}

/* Ends this process if another is to go on, or nobody is. */
static void
restart_if_wanted(void)
{
	bool		closed = onside_service_is_closed(slot);

	if (!closed && !restart_wanted)
		return;
	if (!closed && onside_http_in_flight() > 0 &&
		onside_ms_until(restart_wanted_at, RESTART_GRACE) > 0)
		return;
	onside_progress_save_at_exit();
	onside_txn_leave_orderly();
}

static long
loop_timeout(int64 polled_at)
{
	long		timeout = onside_ms_until(polled_at, POLL_INTERVAL);

	timeout = onside_sooner(timeout, onside_progress_timeout());
	timeout = onside_sooner(timeout, log_timeout());
	if (may_send())
	{
		timeout = onside_sooner(timeout, onside_sending_timeout());
		timeout = onside_sooner(timeout, onside_chance_timeout());
	}
	if (withdrawal_due)
		timeout = onside_sooner(timeout, RECHECK_INTERVAL);
	if (restart_wanted)
		timeout = onside_sooner(timeout, onside_ms_until(restart_wanted_at,
														 RESTART_GRACE));
	timeout = onside_sooner(timeout, onside_backlog_timeout());
	if (check_due || settings_due)
		timeout = onside_sooner(timeout, onside_brake_timeout(&looking));
	if (control_due)
		timeout = onside_sooner(timeout, onside_brake_timeout(&controlling));
	return timeout;
}

/*
 * While nothing can be sent, one event is worth a look, for the age of the
 * oldest one, and no more after it.
 */
static bool
arm_wakeup(void)
{
	uint64		wanted = may_send() ? onside_sending_wants() : 0;

	if (wanted == 0)
		wanted = onside_reader_has_some() ? 0 : 1;
	return onside_slot_arm(slot, noticed, wanted);
}

static void
poll_around(void)
{
	onside_progress_maintain(is_drained());
	onside_progress_check_row();
	onside_progress_look_aside();
	onside_chance_expect(GetCurrentTimestamp());
	(void) onside_sending_check();	/* by a prepared transaction, say */
	control_due = true;
	configure();				/* a credentials file may have changed */
	onside_reader_wake();
}

/*
 * The API does not accept the credentials: perhaps the file has better ones,
 * now or by the time of the next attempt.
 */
static void
read_credentials_again(void)
{
	const OnsideSendingStatus *sending = onside_sending_status();

	if (onside_sending_take_unauthorized() ||
		(sending->state == ONSIDE_UNAUTHORIZED && sending->in_flight == 0 &&
		 onside_sending_timeout() == 0))
		configure();
}

/*
 * Somebody has deleted events, or has put some aside: nothing is sent that was
 * deleted, and what is pending is counted anew.  What was in flight then is not
 * forgotten before its request has ended: look again after that.
 */
static void
notice_withdrawals(void)
{
	uint32		now = pg_atomic_read_u32(&slot->epoch);

	if (now != epoch)
	{
		epoch = now;
		withdrawal_due = true;
		onside_reader_start_over();
		onside_sending_suspect();
	}
	withdrawal_due |= onside_sending_take_suspect();
	if (!withdrawal_due || !onside_sending_check())
		return;
	withdrawal_due = false;
	onside_progress_look_aside();
	onside_backlog_start_counting();
}

static void
main_loop(void)
{
	int64		polled_at = onside_clock();

	for (;;)
	{
		bool		waiting;

		if (ProcDiePending)
			onside_progress_save_at_exit();
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
			reload();
		take_wakeup();
		look_around();
		restart_if_wanted();

		onside_sending_collect();
		read_credentials_again();
		notice_withdrawals();
		if (may_send())
		{
			onside_chance_look();
			onside_sending_pump();
		}
		onside_progress_settle();
		onside_progress_keep(is_drained());
		if (onside_ms_until(polled_at, POLL_INTERVAL) == 0)
		{
			poll_around();
			polled_at = onside_clock();
			continue;
		}
		if (onside_backlog_counting())
			onside_backlog_count_some();
		publish();

		if (!arm_wakeup())
			continue;
		waiting = onside_http_in_flight() > 0;
		onside_crash_guard_step(ONSIDE_STEP_WAITING, NULL);
		(void) onside_http_wait(loop_timeout(polled_at),
								waiting ? wait_event_request : wait_event_idle);
	}
}

/* ----------
 * Starting
 * ----------
 */

/* Takes the slot, or ends the process if it is not wanted there any more. */
static void
take_slot(int slot_no, Oid database)
{
	slot = onside_service_enter(slot_no, database);
	if (slot == NULL)
		proc_exit(0);

	/* Before connecting: so it runs when transactions have been aborted. */
	before_shmem_exit(before_exit, (Datum) 0);
}

/* Body of a transaction. */
static void
look_at_database(void *arg)
{
	strlcpy(database_name, get_database_name(MyDatabaseId),
			sizeof(database_name));
	database_settings = read_database_settings();
}

/* Ends the process if the extension is not in this database. */
static void
find_extension(void)
{
	onside_txn_init(slot);
	onside_txn_insist(&looking, 0, look_at_database, NULL);

	onside_service_found(slot);
}

/* Says in "status" and, once, in the log why this process does nothing. */
static void
publish_version_problem(const char *problem)
{
	OnsideStatus *shared = &slot->status;

	if (!shared->objects_differ)
		ereport(LOG,
				(errmsg("onside_attribution: database \"%s\" is now %s",
						database_name, onside_state_name(ONSIDE_MISCONFIGURED)),
				 errdetail("%s", problem)));
	slot->logged_state = ONSIDE_MISCONFIGURED;
	report_activity(ONSIDE_MISCONFIGURED, problem);

	LWLockAcquire(slot->lock, LW_EXCLUSIVE);
	shared->objects_differ = true;
	shared->state = ONSIDE_MISCONFIGURED;
	onside_copy_text(shared->reason, problem, sizeof(shared->reason));
	LWLockRelease(slot->lock);
}

/* Body of a transaction. */
static void
look_for_matching_version(void *arg)
{
	char	   *problem = onside_version_problem();

	*(bool *) arg = problem != NULL;
	if (problem != NULL)
		publish_version_problem(problem);
}

/*
 * Touches none of the extension's tables while they are of another version
 * than the library.  When that is over a successor takes over: settings and
 * caches may be out of date by then.
 */
static void
wait_for_matching_version(void)
{
	bool		waited = false;

	/* Nothing is sent, so no commit has to wake us. */
	(void) onside_slot_arm(slot, 0, 0);
	for (;;)
	{
		bool		differs;

		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (onside_service_is_closed(slot))
			onside_txn_leave_orderly();
		pg_atomic_write_u32(&slot->wakeup, 0);

		onside_txn_insist(&looking, 0, look_for_matching_version, &differs);
		if (!differs)
			break;

		waited = true;
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 POLL_INTERVAL, wait_event_idle);
	}
	if (waited)
		onside_txn_leave_orderly();

	LWLockAcquire(slot->lock, LW_EXCLUSIVE);
	slot->status.objects_differ = false;
	LWLockRelease(slot->lock);
}

void
onside_worker_main(Datum slot_no)
{
	Oid			database;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	pqsignal(SIGINT, PG_SIG_IGN);	/* there is no query of ours to cancel */
	BackgroundWorkerUnblockSignals();

	memcpy(&database, MyBgworkerEntry->bgw_extra, sizeof(database));
	take_slot(DatumGetInt32(slot_no), database);
	onside_crash_guard_begin(database);
	onside_process_connect(database);

	wait_event_idle = onside_wait_event("OnsideAttributionIdle");
	wait_event_request = onside_wait_event("OnsideAttributionRequest");

	find_extension();
	wait_for_matching_version();
	onside_snapshots_live_in(TopMemoryContext);
	onside_progress_init(slot, database_name);
	control_due = true;
	onside_http_init();
	epoch = pg_atomic_read_u32(&slot->epoch);
	onside_sending_init(onside_progress_delivery());
	onside_reader_init(slot, &onside_progress_delivery()->settled);
	onside_chance_init(onside_sending_sender());
	onside_progress_begin();
	configure();
	onside_backlog_init(slot);
	onside_backlog_start_counting();
	pgstat_report_appname("onside_attribution worker");

	main_loop();
}

bool
onside_worker_register(Oid database, int slot_no,
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
			 "onside_attribution worker for database %u", database);
	worker.bgw_main_arg = Int32GetDatum(slot_no);
	worker.bgw_notify_pid = MyProcPid;
	memcpy(worker.bgw_extra, &database, sizeof(Oid));

	return RegisterDynamicBackgroundWorker(&worker, handle);
}
