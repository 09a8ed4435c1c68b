/*-------------------------------------------------------------------------
 *
 * launcher.h
 *		The background worker that runs a worker for each database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_LAUNCHER_H
#define ONSIDE_LAUNCHER_H

#include "postgres.h"

/* Registers the launcher; from _PG_init, if preloaded. */
extern void onside_launcher_register(void);

extern PGDLLEXPORT void onside_launcher_main(Datum arg);

#endif							/* ONSIDE_LAUNCHER_H */
