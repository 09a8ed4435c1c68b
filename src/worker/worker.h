/*-------------------------------------------------------------------------
 *
 * worker.h
 *		The background worker that sends one database's events.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_WORKER_H
#define ONSIDE_WORKER_H

#include "postgres.h"

#include "postmaster/bgworker.h"

/* Registers a worker for a database, with its slot; false if there is no room. */
extern bool onside_worker_register(Oid database, int slot_no,
								   BackgroundWorkerHandle **handle);

extern PGDLLEXPORT void onside_worker_main(Datum slot_no);

#endif							/* ONSIDE_WORKER_H */
