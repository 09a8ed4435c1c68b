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

/* Copies how a database is served, and which database has the slot. */
extern OnsideService onside_service_look(OnsideSlot *slot, Oid *database);

/*
 * Has a worker started for a database, which gets a slot if it has none.
 * Returns the slot; NULL if all max_databases slots are taken.
 */
extern OnsideSlot *onside_service_request(Oid database);

/* For commands that fail while anybody is connected to the database. */

/*
 * Keeps workers out of a database until onside_service_let_go().  A database
 * without a slot gets one, so that no worker is started meanwhile.  NULL if no
 * slot is free; then a worker is started only if one becomes free meanwhile.
 */
extern OnsideSlot *onside_service_hold(Oid database);
extern void onside_service_let_go(OnsideSlot *slot);

/* Has every worker left the slot, and disconnected? */
extern bool onside_service_is_over(OnsideSlot *slot);

/* Ends the worker that is in the slot, like pg_terminate_backend(). */
extern void onside_service_terminate(OnsideSlot *slot);

/* For the launcher. */

/*
 * Changes the state from one to another.  Returns false, and changes nothing,
 * if the slot is in a third state, or if a worker is in it.
 */
extern bool onside_service_step(OnsideSlot *slot, OnsideSlotState from,
								OnsideSlotState to);

/*
 * Sets "dismissed" to a value, and has the worker notice.  Does nothing if the
 * slot is another database's by now.
 */
extern void onside_service_dismiss(OnsideSlot *slot, Oid database,
								   bool dismissed);

/*
 * Frees a slot.  Returns false, and changes nothing, if the slot is another
 * database's by now, or in another state, or is held.
 */
extern bool onside_service_free(OnsideSlot *slot, Oid database,
								OnsideSlotState state);

/* Has the last worker of the slot crashed?  True once for each crash. */
extern bool onside_service_has_crashed(OnsideSlot *slot);

/* For the worker. */

/*
 * This process takes a slot, before it connects to the database.  NULL if no
 * worker is wanted there (any more).
 */
extern OnsideSlot *onside_service_enter(int slot_no, Oid database);

/* The worker has found the extension. */
extern void onside_service_found(OnsideSlot *slot);

/* Must the worker leave the slot? */
extern bool onside_service_is_closed(OnsideSlot *slot);

/*
 * This process leaves its slot, if it is in it, and the slot gets this state.
 * "orderly" as in OnsideService.
 */
extern void onside_service_leave(OnsideSlot *slot, OnsideSlotState state,
								 bool orderly);

#endif							/* ONSIDE_SERVICE_H */
