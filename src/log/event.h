/*-------------------------------------------------------------------------
 *
 * event.h
 *		An attribution event: its rules and its JSON.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_EVENT_H
#define ONSIDE_EVENT_H

#include "datatype/timestamp.h"
#include "lib/stringinfo.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

#include "api.h"
#include "compat.h"

/* The five fields of the API.  A NULL pointer is a missing field. */
typedef struct OnsideEvent
{
	pg_uuid_t	event_id;
	text	   *event_name;
	Jsonb	   *payload;
	TimestampTz event_datetime;
	pg_uuid_t	installation_id;
	bool		has_event_id;
	bool		has_event_datetime;
	bool		has_installation_id;
	bool		name_is_checked;	/* by onside_event_check_name() */
	bool		id_is_fresh;	/* made for want of one of its own */
} OnsideEvent;

/* What an error about an event that cannot be sent begins with. */
#define ONSIDE_INVALID_EVENT "invalid event: "

/* The hint for an event that is larger than a request. */
#define ONSIDE_TOO_LARGE_HINT \
	"A request must stay below " CppAsString2(ONSIDE_API_MAX_BYTES) \
	" bytes, and an event cannot be split."

/* Why an event cannot be sent: which field, and what to do about it. */
typedef struct OnsideEventError
{
	const char *field;
	int			sqlstate;		/* as ERRCODE_* */
	char	   *message;
	char	   *hint;
} OnsideEventError;

/* Fills in *error; the hint is copied, the message is not.  Returns false. */
extern bool onside_event_invalid(OnsideEventError *error, const char *field,
								 int sqlstate, char *message,
								 const char *hint);

/*
 * Does the event keep the API's rules (page "Server-to-server attribution
 * events": Request body, Limits)?  On false *error is filled in, in the
 * current memory context: 22004 for a missing field, 22023 for a bad value,
 * 54000 for an event that no request can hold.
 */
extern bool onside_event_check(const OnsideEvent *event,
							   OnsideEventError *error);

/*
 * The same for the event's name alone, which many events can have in common.
 */
extern bool onside_event_check_name(const text *event_name,
									OnsideEventError *error);

/*
 * The string in UTF-8, in the current memory context; NULL if UTF-8 cannot
 * express it.
 */
extern char *onside_as_utf8(char *str, int len);

/* Fills in *error for a field that is not valid UTF-8.  Returns false. */
extern bool onside_event_not_utf8(OnsideEventError *error, const char *field);

/*
 * Raises what onside_event_check found, about an event that somebody records
 * by calling a function or by an INSERT into the outbox.
 */
pg_noreturn extern void onside_event_throw(const OnsideEventError *error);

/* The same for a problem that is found before there is an event. */
pg_noreturn extern void onside_event_throw_field(const char *field,
												 int sqlstate,
												 const char *problem,
												 const char *hint);

/*
 * Appends the event's JSON object to out, in UTF-8, the same bytes for the
 * same event whatever the session's settings are.
 */
extern void onside_event_render(StringInfo out, const OnsideEvent *event);

/* A fresh UUIDv4 from libuuid. */
extern void onside_event_new_id(pg_uuid_t *id);

/* The same for one of many: from random bytes that are drawn in bulk. */
extern void onside_event_next_id(pg_uuid_t *id);

/* Is this a version 4 UUID of the RFC 9562 variant? */
extern bool onside_uuid_is_v4(const pg_uuid_t *uuid);

/* Reads the canonical text form, in either case; false if it is not one. */
extern bool onside_parse_uuid(const char *str, pg_uuid_t *result);

/*
 * Appends a time as ISO 8601 in UTC ("2026-05-05T12:00:00.5Z"), without the
 * quotes.  The time must be finite and in years 1 to 9999.
 */
extern void onside_append_datetime(StringInfo out, TimestampTz t);

/*
 * Reads an ISO 8601 date and time with "Z" or a UTC offset.  Returns false if
 * the string is anything else.
 */
extern bool onside_parse_datetime(const char *str, TimestampTz *result);

/* Can the API be told this time (finite, years 1 to 9999)? */
extern bool onside_datetime_in_range(TimestampTz t);

#endif							/* ONSIDE_EVENT_H */
