/*-------------------------------------------------------------------------
 *
 * choice.h
 *		What is sent next.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_CHOICE_H
#define ONSIDE_CHOICE_H

#include "postgres.h"

#include "send/sender_state.h"

/*
 * Order what goes next while failures are few, and after many.  The caller has
 * set nothing but the order's timeout.  False if nothing is to go now.
 */
extern bool onside_choice_at_once(OnsideSender *sender, int64 now, int offers,
								  OnsideOrder *order);
extern bool onside_choice_in_wait(OnsideSender *sender, int64 now, int offers,
								  OnsideOrder *order);

/* May one more request go, of what has failed (again), or of what has not? */
extern bool onside_choice_has_room(const OnsideSender *sender, bool again);

/* Which never-sent events may go, of those that are offered? */
extern int	onside_choice_fresh(const OnsideSender *sender, int offers);

/* From when on a batch of never-sent events need not be full. */
extern int64 onside_choice_partial_from(const OnsideSender *sender);

/* Is a probe in flight? */
extern bool onside_choice_probe_is_out(const OnsideSender *sender);

/* May a dead letter go now, as far as other requests are concerned? */
extern bool onside_choice_may_take_chance(const OnsideSender *sender,
										  int offers);

#endif							/* ONSIDE_CHOICE_H */
