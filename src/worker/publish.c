/*-------------------------------------------------------------------------
 *
 * publish.c
 *		Tells others how things stand.
 *
 * At the end of each turn of the worker's loop, the state and all counters go
 * to shared memory, under the slot's own lock.  The views "status" and "stats"
 * read them there.  A state that has changed goes to pg_stat_activity, too.
 *
 * The server's log gets a line when a trouble has lasted for a while, and a
 * line when the trouble is over.  The slot has the state that was logged last,
 * so a successor does not log it again.
 *
 * To know the age of the oldest pending event, the worker may have to look into
 * the log, in a transaction; see reader.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "pgstat.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "settings.h"
#include "worker/backlog.h"
#include "worker/configuration.h"
#include "worker/counting.h"
#include "worker/progress.h"
#include "worker/publish.h"
#include "worker/reader.h"
#include "worker/sending.h"
#include "worker/txn.h"
#include "worker/undecided.h"

/* A trouble that has lasted so long gets a line in the log; ms. */
#define LOGGED_AFTER			5000

void
onside_publish_init(OnsideWorker *worker)
{
	worker->publish.last_state = ONSIDE_IDLE;
	worker->publish.reported = ONSIDE_NOT_RUNNING;
}

/* ----------
 * State and reason
 * ----------
 */

/* Is it a state that a person may have to do something about? */
static bool
is_trouble(OnsideState state)
{
	return state != ONSIDE_IDLE && state != ONSIDE_SENDING;
}

/*
 * What the worker cannot do now, whatever the state; or NULL.  If there are
 * several obstacles, those to reading and writing events come first.
 */
static const char *
what_is_in_the_way(OnsideWorker *worker)
{
	const OnsideProgress *progress = &worker->progress;
	const OnsideBrake *brakes[] = {&worker->reader.brake, &progress->burying,
		&progress->writing, &worker->undecided.leaving,
		&worker->undecided.loading, &progress->checking,
		&progress->maintaining, &worker->configuration.controlling,
	&worker->configuration.looking};

	for (int i = 0; i < (int) lengthof(brakes); i++)
		if (onside_brake_problem(brakes[i]) != NULL)
			return onside_brake_problem(brakes[i]);
	return progress->blocked;
}

/*
 * The state, and its reason, which may be NULL.  What a person has decided
 * comes first, then what is missing, then what the sender says.
 */
static OnsideState
current_state(OnsideWorker *worker, const OnsideSendingStatus *sending,
			  const char **reason)
{
	const OnsideConfiguration *configuration = &worker->configuration;

	/* What a person has decided. */
	*reason = NULL;
	if (!onside_enabled)
	{
		*reason = "onside_attribution.enabled is off in this database";
		return ONSIDE_DISABLED;
	}
	if (configuration->paused)
	{
		*reason = configuration->pause_reason != NULL ?
			configuration->pause_reason :
			"paused with onside_attribution.pause()";
		return ONSIDE_PAUSED;
	}

	/* What is missing. */
	if (!configuration->has_credentials)
	{
		*reason = configuration->problem;
		return ONSIDE_MISCONFIGURED;
	}

	/* What the sender says; but idle means that nothing is left to do. */
	if (sending->reason[0] != '\0')
		*reason = sending->reason;
	if (sending->state == ONSIDE_IDLE && !onside_undecided_is_drained(worker))
		return ONSIDE_SENDING;
	return sending->state;
}

/* An obstacle, and then the state's reason; NULL if there is neither. */
static const char *
whole_reason(OnsideWorker *worker, const char *reason)
{
	OnsidePublish *publish = &worker->publish;
	const char *obstacle = what_is_in_the_way(worker);

	if (obstacle == NULL || reason == NULL)
		return obstacle != NULL ? obstacle : reason;
	snprintf(publish->both, sizeof(publish->both), "%s; %s", obstacle, reason);
	return publish->both;
}

/*
 * When the oldest pending event was recorded; 0 for none.  Looks where events
 * are: at the sender, in the log, among the unwritten fates, and in aside.
 */
static TimestampTz
oldest_recorded(OnsideWorker *worker)
{
	TimestampTz times[] = {onside_sending_oldest(worker),
		onside_reader_oldest_recorded(worker),
		worker->progress.unwritten_since,
	worker->undecided.more ? worker->backlog.aside_oldest : 0};
	TimestampTz oldest = 0;

	for (int i = 0; i < (int) lengthof(times); i++)
		if (times[i] != 0 && (oldest == 0 || times[i] < oldest))
			oldest = times[i];
	return oldest;
}

/* ----------
 * Log and pg_stat_activity
 * ----------
 */

/*
 * The first line of an outage comes when nothing has been well for a while,
 * even if the state changes again and again meanwhile.  A later line comes
 * when another state has lasted for a while.
 */
long
onside_publish_timeout(OnsideWorker *worker)
{
	const OnsidePublish *publish = &worker->publish;
	OnsideState logged = worker->slot->logged_state;

	if (!is_trouble(publish->last_state) || publish->last_state == logged)
		return -1;
	return onside_ms_until(is_trouble(logged) ? publish->last_state_at :
						   publish->trouble_at, LOGGED_AFTER);
}

/*
 * Logs a line when a trouble has lasted for a while, and a line when it is
 * over; none while all is well.  A successor first just sends: the trouble is
 * over only when something has been accepted.
 */
static void
log_state(OnsideWorker *worker, OnsideState state, const char *reason)
{
	OnsidePublish *publish = &worker->publish;
	OnsideSlot *slot = worker->slot;

	/* Since when has it been this state, and since when a trouble? */
	if (state != publish->last_state)
	{
		publish->last_state_at = onside_clock();
		if (!is_trouble(publish->last_state))
			publish->trouble_at = publish->last_state_at;
		publish->last_state = state;
	}

	/* Is it logged already, or well as before, or too new, or not proven? */
	if (state == slot->logged_state ||
		(!is_trouble(state) && !is_trouble(slot->logged_state)) ||
		(is_trouble(state) && onside_publish_timeout(worker) > 0) ||
		(state == ONSIDE_SENDING && slot->status.last_success_at == 0))
		return;
	slot->logged_state = state;
	ereport(LOG,
			(errmsg("onside_attribution: database \"%s\" is now %s",
					worker->database_name, onside_state_name(state)),
			 reason != NULL ? errdetail("%s", reason) : 0));
}

/* Shows state and reason in pg_stat_activity, if they have changed. */
static void
report_activity(OnsideWorker *worker, OnsideState state, const char *reason)
{
	OnsidePublish *publish = &worker->publish;
	char	   *text;

	if (reason == NULL)
		reason = "";
	if (state == publish->reported &&
		strncmp(reason, publish->reported_reason,
				sizeof(publish->reported_reason) - 1) == 0)
		return;

	/* It is new. */
	publish->reported = state;
	onside_copy_text(publish->reported_reason, reason,
					 sizeof(publish->reported_reason));
	text = psprintf("%s%s%s", onside_state_name(state),
					reason[0] != '\0' ? ": " : "", reason);

	pgstat_report_activity(state == ONSIDE_SENDING ? STATE_RUNNING : STATE_IDLE,
						   text);
	pfree(text);
}

/* ----------
 * All of it
 * ----------
 */

/*
 * Finds out everything first, so that the lock is held for copying only.  In a
 * trouble pg_stat_activity shows no reason: it would be the whole text of
 * "status".
 */
void
onside_publish_status(OnsideWorker *worker)
{
	OnsideStatus *shared = &worker->slot->status;
	TimestampTz oldest = oldest_recorded(worker);
	const OnsideSendingStatus *sending = onside_sending_status(worker);
	const char *reason;
	OnsideState state = current_state(worker, sending, &reason);
	bool		may_send = onside_configuration_may_send(worker);

	/* Nothing is pending: the count starts from here. */
	reason = whole_reason(worker, reason);
	if (onside_undecided_is_drained(worker))
		onside_backlog_is_empty(worker, worker->reader.read_recorded);

	/* For the views. */
	LWLockAcquire(worker->slot->lock, LW_EXCLUSIVE);
	shared->state = state;
	onside_copy_text(shared->reason, reason == NULL ? "" : reason,
					 sizeof(shared->reason));
	onside_progress_report(worker, shared);
	shared->in_flight = sending->in_flight;
	shared->oldest_recorded_at = oldest;
	shared->last_success_at = sending->last_success_at;
	shared->last_error_at = sending->last_error_at;
	strlcpy(shared->last_error, sending->last_error,
			sizeof(shared->last_error));
	shared->next_attempt_at = may_send ? sending->next_attempt_at : 0;
	LWLockRelease(worker->slot->lock);
	onside_counting_publish(worker);

	/* For the server's log and pg_stat_activity. */
	log_state(worker, state, reason);
	report_activity(worker, state, is_trouble(state) ? NULL : reason);
}

/*
 * Library and SQL objects do not belong together: nothing is sent, and no other
 * field of the status is kept.  This worker or one before it logs that, once.
 */
void
onside_publish_version_problem(OnsideWorker *worker, const char *problem)
{
	OnsideSlot *slot = worker->slot;
	OnsideStatus *shared = &slot->status;

	if (!shared->objects_differ)
		ereport(LOG,
				(errmsg("onside_attribution: database \"%s\" is now %s",
						worker->database_name,
						onside_state_name(ONSIDE_MISCONFIGURED)),
				 errdetail("%s", problem)));
	slot->logged_state = ONSIDE_MISCONFIGURED;
	report_activity(worker, ONSIDE_MISCONFIGURED, problem);


	/* For the views; the next worker sees that it is logged. */
	LWLockAcquire(slot->lock, LW_EXCLUSIVE);
	shared->objects_differ = true;
	shared->state = ONSIDE_MISCONFIGURED;
	onside_copy_text(shared->reason, problem, sizeof(shared->reason));
	LWLockRelease(slot->lock);
}
