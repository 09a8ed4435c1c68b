/*-------------------------------------------------------------------------
 *
 * onside_attribution.c
 *		Entry point of the library.
 *
 * Without preloading, all that records works and nothing is sent: there are no
 * workers, and no shared memory.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/guc.h"

#include "log/commit.h"
#include "log/outbox.h"
#include "log/shmem.h"
#include "log/stats_file.h"
#include "operate/utility_hook.h"
#include "settings.h"
#include "worker/launcher.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

/*
 * A session that loads the library, because it calls a function, gets the
 * settings and the hooks.  Preloaded, there are shared memory and a launcher.
 */
void
_PG_init(void)
{
	/* pg_upgrade's server must neither send nor be held up. */
	if (IsBinaryUpgrade)
		return;

	onside_settings_define();
	onside_outbox_init();
	MarkGUCPrefixReserved("onside_attribution");
	onside_commit_init();
	onside_utility_hook_init();

	if (!process_shared_preload_libraries_in_progress)
		return;

	onside_shmem_init();
	onside_stats_file_init();
	onside_launcher_register();
}
