/*-------------------------------------------------------------------------
 *
 * doctor.h
 *		doctor(): its rows, and how its checks look at tables.
 *
 * For doctor_*.c; see doctor.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_DOCTOR_H
#define ONSIDE_DOCTOR_H

#include "postgres.h"

#include "lib/stringinfo.h"
#include "nodes/execnodes.h"

#include "record/mapping.h"

typedef enum OnsideVerdict
{
	ONSIDE_UNKNOWN,
	ONSIDE_GOOD,
	ONSIDE_BAD,
} OnsideVerdict;

/* What the checks learn, for those that follow. */
typedef struct OnsideDoctor
{
	ReturnSetInfo *rsinfo;
	const char *database;		/* name, quoted */
	const char *first_bad;		/* check; NULL while there is none */
	bool		tables_known;	/* they can be read without a crash */
	bool		standby;
	bool		may_run;		/* there could be a worker */
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

/* Adds a row that is good if there is no problem (NULL), and else bad. */
extern void onside_doctor_judge(OnsideDoctor *doctor, const char *check,
								const char *problem, const char *good,
								const char *hint);

/*
 * The commands that set this for the server, or for the database if that
 * overrides it: "ALTER SYSTEM SET onside_attribution.name = value; SELECT
 * pg_reload_conf();"
 */
extern char *onside_doctor_set_command(OnsideDoctor *doctor, const char *name,
									   const char *value);

/* A check that looks at tables or catalogs; it adds its row itself. */
typedef void (*OnsideLook) (OnsideDoctor *doctor);

/*
 * Calls the look in a subtransaction that is rolled back, with a search_path
 * of pg_catalog alone: nothing stays locked.  If the look fails, the check's
 * row says why, so the state of no table keeps the other checks from being
 * made.
 */
extern void onside_doctor_look(OnsideDoctor *doctor, const char *check,
							   OnsideLook look);

/*
 * The same for a look at tables of ours.  If the checks version and tables
 * have failed, the tables are not looked at, and the row says so.
 */
extern void onside_doctor_look_at_tables(OnsideDoctor *doctor,
										 const char *check, OnsideLook look);

/*
 * In a look: the OID of a table of ours, locked for reading with all that
 * belongs to it.  It waits for nobody: a table that somebody has locked ends
 * the look.  No privilege is checked.
 */
extern Oid	onside_doctor_table(const char *name);

/* Likewise for a relation; false if somebody has it locked. */
extern bool onside_doctor_try_lock(Oid relid);

/*
 * In a look: runs a query on catalogs, with the caller's rights; how many rows
 * it has, and a value of its result, NULL for NULL.
 */
extern int	onside_doctor_query(const char *query);
extern char *onside_doctor_value(int row, int column);

/*
 * In a look: who has had the relation locked for some seconds, and how to end
 * that; false if nobody has.  With exclusive, who locks out its readers.
 */
extern bool onside_doctor_holder(Oid relid, bool exclusive, StringInfo detail,
								 char **hint);

/*
 * What is wrong with the mapper of a trigger on this table, to be read after
 * its name ("does not exist"); NULL if nothing is wrong.  *remark: what keeps
 * the mapper from being inlined, to be read in the same way, or NULL.
 */
extern char *onside_doctor_mapper(Oid relid, const OnsideMapping *mapping,
								  char **remark);

/* The look at the subscriptions that bring events: see subscriptions.c. */
extern void onside_doctor_subscriptions(OnsideDoctor *doctor);

/* The checks of files and connections: see doctor_endpoint.c. */
extern void onside_doctor_endpoint(OnsideDoctor *doctor);

/* The checks from the last answer on: see doctor_events.c. */
extern void onside_doctor_events(OnsideDoctor *doctor);

#endif							/* ONSIDE_DOCTOR_H */
