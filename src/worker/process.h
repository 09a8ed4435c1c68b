/*-------------------------------------------------------------------------
 *
 * process.h
 *		How the launcher and the workers connect.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_PROCESS_H
#define ONSIDE_PROCESS_H

#include "postgres.h"

/*
 * Connects this background worker as the bootstrap superuser to a database, or
 * with InvalidOid to none, and makes sure that no setting can do it harm.
 */
extern void onside_process_connect(Oid database);

#endif							/* ONSIDE_PROCESS_H */
