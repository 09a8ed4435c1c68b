/*-------------------------------------------------------------------------
 *
 * attempt.h
 *		Something that may fail, in a subtransaction; and settings for a while.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_ATTEMPT_H
#define ONSIDE_ATTEMPT_H

#include "postgres.h"

/*
 * Calls a function in a subtransaction and in the current memory context.  An
 * error rolls back what the function did and is returned, copied; NULL means
 * no error.  Without "keep", the subtransaction is rolled back in any case.
 */
extern ErrorData *onside_attempt(void (*function) (void *arg), void *arg,
								 bool keep);

/*
 * Did the error come from outside: somebody cancels, or the server lacks
 * something?  Whoever made an attempt raises such an error again.
 */
extern bool onside_attempt_was_interrupted(const ErrorData *error);

/*
 * Gives any of the server's settings a value until the caller ends the GUC
 * nest level, or the subtransaction, that it has begun.
 */
extern void onside_set_for_now(const char *name, const char *value);

#endif							/* ONSIDE_ATTEMPT_H */
