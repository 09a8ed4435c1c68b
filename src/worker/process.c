/*-------------------------------------------------------------------------
 *
 * process.c
 *		How the launcher and the workers are registered, connect and sleep.
 *
 * ALTER SYSTEM, ALTER DATABASE and ALTER ROLE can set anything for our
 * processes, too, and whoever owns a database may set what any user may.  So
 * the settings that could do us harm are fixed, from PGC_S_OVERRIDE, which
 * none of those three overrides: neither when the connection is made nor at a
 * reload.  They are fixed before connecting, so that they hold for what
 * connecting itself does; a worker under a transaction_timeout of a few
 * milliseconds would not come up otherwise.
 *
 * Settings that are left alone, because they cannot do harm:
 *
 * - statement_timeout, idle_in_transaction_session_timeout,
 *	 idle_session_timeout, log_statement, log_duration: they are the business of
 *	 the loop that executes what a client sends;
 * - default_transaction_deferrable: means something to serializable
 *	 transactions alone; row_security: a superuser passes by all policies;
 * - default_tablespace, temp_tablespaces, default_table_access_method,
 *	 default_toast_compression: we make no table, and spill nothing;
 * - vacuum_cost_delay: we do not vacuum; work_mem and what steers the planner:
 *	 our statements are about single rows;
 * - DateStyle, TimeZone, client_encoding and their like: what is sent does not
 *	 depend on them (see event.c);
 * - backtrace_functions, log_error_verbosity, debug_print_*: they make the log
 *	 longer, for who wants that;
 * - zero_damaged_pages and others of a superuser's alone: he means it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "worker/process.h"

/* Settings that a version of PostgreSQL does not have are passed over. */
static const char *const fixed[][2] = {
	/* As somebody else we could not write our own tables. */
	{"role", "none"},

	/*
	 * A trigger or rule that somebody has put on one of our tables would be
	 * executed with our rights, a superuser's; in this role none is.
	 */
	{"session_replication_role", "replica"},

	/* What we call is PostgreSQL's, whoever made something of that name. */
	{"search_path", "pg_catalog, pg_temp"},

	/* We wait for a lock as long as it takes; an error would end us. */
	{"lock_timeout", "0"},

	/* Ends a process, also while it waits for a lock. */
	{"transaction_timeout", "0"},

	/* We write. */
	{"default_transaction_read_only", "off"},

	/* A new snapshot for each look, and no serialization failures. */
	{"default_transaction_isolation", "read committed"},

	/* jit_above_cost = 0 would compile each little statement. */
	{"jit", "off"},

	/* Nor does a little statement take other background workers. */
	{"max_parallel_workers_per_gather", "0"},

	/* An error that is caught would end the process. */
	{"exit_on_error", "off"},

	/* What we write can be lost: it is sent, or done, again. */
	{"synchronous_commit", "off"},
};

void
onside_process_describe(BackgroundWorker *worker, const char *type,
						const char *function)
{
	memset(worker, 0, sizeof(*worker));
	worker->bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker->bgw_start_time = BgWorkerStart_RecoveryFinished;
	strlcpy(worker->bgw_library_name, "onside_attribution",
			sizeof(worker->bgw_library_name));
	strlcpy(worker->bgw_function_name, function,
			sizeof(worker->bgw_function_name));
	strlcpy(worker->bgw_type, type, sizeof(worker->bgw_type));
	strlcpy(worker->bgw_name, type, sizeof(worker->bgw_name));
}

void
onside_process_sleep(long timeout, uint32 wait_event)
{
	(void) WaitLatch(MyLatch,
					 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 timeout, wait_event);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

void
onside_process_connect(Oid database)
{
	for (int i = 0; i < (int) lengthof(fixed); i++)
		if (GetConfigOption(fixed[i][0], true, false) != NULL)
			SetConfigOption(fixed[i][0], fixed[i][1], PGC_SUSET,
							PGC_S_OVERRIDE);

	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);

	/* The bootstrap superuser's name can be looked up only now. */
	StartTransactionCommand();
	SetConfigOption("session_authorization",
					GetUserNameFromId(BOOTSTRAP_SUPERUSERID, false), PGC_SUSET,
					PGC_S_OVERRIDE);
	CommitTransactionCommand();
	MemoryContextSwitchTo(TopMemoryContext);
}
