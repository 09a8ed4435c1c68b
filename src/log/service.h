/*-------------------------------------------------------------------------
 *
 * service.h
 *		How each database is served: the states of its slot.
 *
 * See OnsideService in shmem.h for the states and flags.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_SERVICE_H
#define ONSIDE_SERVICE_H

#include "log/shmem.h"

/* For everybody. */

/* A copy of how the slot's database is served, and which one that is. */
extern OnsideService onside_service_look(OnsideSlot *slot, Oid *database);

/*
 * The slot of a database, taken if it had none and marked as one that wants a
 * worker.  NULL if all max_databases slots are taken.
 */
extern OnsideSlot *onside_service_request(Oid database);

/* For commands that nobody may be connected to the database for. */

/*
 * Keeps workers out of a database until onside_service_let_go().  If it has no
 * slot, takes one, so that none is started meanwhile; NULL if there is none,
 * and then there will hardly be a worker.
 */
extern OnsideSlot *onside_service_hold(Oid database);
extern void onside_service_let_go(OnsideSlot *slot);

/* Is no worker in the slot, and none connected that has left it? */
extern bool onside_service_is_over(OnsideSlot *slot);

/* Has the worker that is in the slot end, like pg_terminate_backend(). */
extern void onside_service_terminate(OnsideSlot *slot);

/* For the launcher. */

/*
 * From one state to another; false if the slot is not in that state, or if a
 * worker is in it.
 */
extern bool onside_service_step(OnsideSlot *slot, OnsideSlotState from,
								OnsideSlotState to);

/* Sets "dismissed", and has the worker notice; nothing if the slot is not that
 * database's any more. */
extern void onside_service_dismiss(OnsideSlot *slot, Oid database,
								   bool dismissed);

/*
 * Gives a slot back, unless it is not that database's or in that state any more,
 * or is held.
 */
extern bool onside_service_free(OnsideSlot *slot, Oid database,
								OnsideSlotState state);

/* Has the last worker of the slot crashed?  Each crash is told once. */
extern bool onside_service_has_crashed(OnsideSlot *slot);

/* For the worker. */

/*
 * This process takes a slot, before it connects to the database.  NULL if it is
 * not wanted there (any more).
 */
extern OnsideSlot *onside_service_enter(int slot_no, Oid database);

/* It has found the extension. */
extern void onside_service_found(OnsideSlot *slot);

/* Is the worker to leave, or not to come in? */
extern bool onside_service_is_closed(OnsideSlot *slot);

/*
 * This process leaves its slot in that state, if it is in it; "orderly" as in
 * OnsideService.
 */
extern void onside_service_leave(OnsideSlot *slot, OnsideSlotState state,
								 bool orderly);

#endif							/* ONSIDE_SERVICE_H */
