/*-------------------------------------------------------------------------
 *
 * trouble.c
 *		What is wrong with the endpoint, in words for a person.
 *
 * The sender says which trouble it is.  "status" and the server's log say in
 * words whose fault it looks like, since when it lasts, when it is tried next,
 * and what a person can do about it.  sending.c calls this, and it cannot
 * fail.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/datetime.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "worker/trouble.h"

/* Writes a moment as a person reads it, to the second. */
static void
write_moment(char *buffer, size_t size, int64 moment)
{
	TimestampTz at = onside_clock_timestamp(moment);

	strlcpy(buffer, timestamptz_to_str(at - at % USECS_PER_SEC), size);
}

/* How the last request has failed, while the API is down or away. */
static const char *
failure_in_words(OnsideAnswerKind kind)
{
	switch (kind)
	{
		case ONSIDE_ANSWER_COMPLETE:
			return "the API cannot be reached or fails: it answers that it has failed";
		case ONSIDE_ANSWER_TIMEOUT:
			return "the API cannot be reached or fails: it does not answer in time";
		case ONSIDE_ANSWER_MALFORMED:
			return "the API cannot be reached or fails: what comes back is not a whole HTTP answer";
		case ONSIDE_ANSWER_NO_CONNECTION:
		case ONSIDE_ANSWER_NOT_TRUSTED:
		case ONSIDE_ANSWER_PROXY_REFUSED:
			break;
	}
	return "the API cannot be reached or fails: no connection to it can be made, or it breaks";
}

/*
 * Fills in state, reason and next attempt of the status.  The reason has four
 * parts: what it looks like, since when, what is next, and what a person can
 * do.
 */
void
onside_trouble_explain(OnsideWorker *worker, OnsideTrouble trouble)
{
	static const struct
	{
		OnsideState state;
		const char *what;
		const char *hint;
	}			troubles[] = {
		[ONSIDE_TROUBLE_WAITS] = {ONSIDE_BACKING_OFF,
			"the API asks to send less (429, or 503 with Retry-After)",
		"no action is needed; resume() ends the wait at once"},
		[ONSIDE_TROUBLE_FAILS] = {ONSIDE_BACKING_OFF,
			NULL,
		"if it lasts, see last_error and ask whoever runs the API or the network"},
		[ONSIDE_TROUBLE_UNAUTHORIZED] = {ONSIDE_UNAUTHORIZED,
			"the API does not accept the credentials (401 or 403)",
		"correct credentials_file, which is read again before each attempt, or ask the API's operator about the account"},
		[ONSIDE_TROUBLE_MISCONFIGURED] = {ONSIDE_MISCONFIGURED,
			"what answers is not the attribution API",
		"correct onside_attribution.endpoint and reload; last_error says what was answered"},
		[ONSIDE_TROUBLE_PROXY] = {ONSIDE_MISCONFIGURED,
			"the proxy refuses to pass requests on",
		"correct onside_attribution.proxy or proxy_credentials_file, or the proxy's rules"},
		[ONSIDE_TROUBLE_CERTIFICATE] = {ONSIDE_MISCONFIGURED,
			"what answers is not known to be the API: its certificate cannot be trusted",
		"correct onside_attribution.ca_file or endpoint, or have the certificate renewed"},
		[ONSIDE_TROUBLE_REFUSING] = {ONSIDE_REFUSING,
			"the API refuses every event and has accepted none",
		"check that endpoint and account are the right ones; last_error has the API's words; ten events are in dead_letter at most, and are tried again by themselves"},
	};
	const OnsideSender *sender = worker->sender;
	OnsideSendingStatus *status = &worker->sending.status;
	const char *what = troubles[trouble].what;
	int64		next = onside_sender_next_attempt(sender, onside_clock());
	int64		since = sender->trouble_us;
	char		since_text[MAXDATELEN + 1];
	char		next_text[MAXDATELEN + 32] = "it is tried again now";

	if (what == NULL)
		what = failure_in_words(sender->failure_kind);

	/*
	 * If nothing has failed since the last acceptance, it is a wait that the
	 * API has asked for: it began with that answer.
	 */
	if (sender->trouble == 0)
		since = sender->pace.throttled_at;
	write_moment(since_text, sizeof(since_text), since);

	/* When is the next attempt? */
	if (next != 0)
	{
		strcpy(next_text, "next attempt at ");
		write_moment(next_text + strlen(next_text),
					 sizeof(next_text) - strlen(next_text), next);
	}
	status->state = troubles[trouble].state;
	snprintf(status->reason, sizeof(status->reason), "%s, since %s; %s; %s",
			 what, since_text, next_text, troubles[trouble].hint);
	status->next_attempt_at = next == 0 ? 0 : onside_clock_timestamp(next);
}
