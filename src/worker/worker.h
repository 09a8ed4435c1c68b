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

/*
 * Registers a worker for a database and its slot.  Returns false if all of
 * max_worker_processes are in use.
 */
extern bool onside_worker_register(Oid database, int slot_no,
								   BackgroundWorkerHandle **handle);

extern PGDLLEXPORT void onside_worker_main(Datum slot_no);

#endif							/* ONSIDE_WORKER_H */
