/*-------------------------------------------------------------------------
 *
 * stats_file.h
 *		The statistics survive a restart of the server.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_STATS_FILE_H
#define ONSIDE_STATS_FILE_H

/* From _PG_init, if preloaded, after onside_shmem_init(). */
extern void onside_stats_file_init(void);

#endif							/* ONSIDE_STATS_FILE_H */
