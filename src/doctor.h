/*-------------------------------------------------------------------------
 *
 * doctor.h
 *		doctor(): everything to look at when nothing arrives.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_DOCTOR_H
#define ONSIDE_DOCTOR_H

#include "postgres.h"

#include "nodes/execnodes.h"

typedef enum OnsideVerdict
{
	ONSIDE_UNKNOWN,
	ONSIDE_GOOD,
	ONSIDE_BAD,
} OnsideVerdict;

/* What the checks know of each other. */
typedef struct OnsideDoctor
{
	ReturnSetInfo *rsinfo;
	const char *database;		/* name, quoted */
	const char *first_bad;		/* check; NULL while there is none */
	bool		tables_known;	/* of the library's version, and readable */
	bool		standby;
	bool		may_run;		/* a worker could be there */
	const char *overridden;		/* " name  name ": set for this database */

	/* of worker_status(), as text; NULL if not known */
	char	   *worker_pid;
	char	   *state;
	char	   *reason;
	char	   *pending;
	char	   *oldest_age;
	bool		backlog_is_old;
	char	   *last_error;
	char	   *last_error_at;
	char	   *last_success_at;
	bool		last_was_error;
	char	   *next_attempt_at;
} OnsideDoctor;

/* Adds a row. */
extern void onside_doctor_row(OnsideDoctor *doctor, const char *check,
							  OnsideVerdict ok, const char *detail,
							  const char *hint);

/* Runs a query within SPI; a value of its result, NULL for NULL. */
extern void onside_doctor_query(const char *query);
extern char *onside_doctor_value(int row, int column);

/* Are our tables as they have to be? */
extern void onside_doctor_tables(OnsideDoctor *doctor);

/* The checks from the last answer on: see doctor_events.c. */
extern void onside_doctor_events(OnsideDoctor *doctor);

#endif							/* ONSIDE_DOCTOR_H */
