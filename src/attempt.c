/*-------------------------------------------------------------------------
 *
 * attempt.c
 *		Something that may fail, in a subtransaction; and settings for a while.
 *
 * For code of a user's that is called, and for tables that may be in any
 * state.  The subtransaction gives back what was locked, undoes what was set,
 * and leaves the caller with the memory context and resource owner that it
 * had.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/guc.h"
#include "utils/resowner.h"

#include "attempt.h"

/*
 * The error is copied before the subtransaction is rolled back: that frees
 * what belongs to it.
 */
ErrorData *
onside_attempt(void (*function) (void *arg), void *arg, bool keep)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	/* The function allocates in the caller's context, not in ours. */
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		function(arg);
		if (keep)
			ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();

	/* Without an error, and with "keep", it has been released above. */
	if (!keep || error != NULL)
		RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return error;
}

/* By the error's class: 57 is an operator's, 53 a lack of resources. */
bool
onside_attempt_was_interrupted(const ErrorData *error)
{
	return ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_OPERATOR_INTERVENTION ||
		ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_INSUFFICIENT_RESOURCES;
}

void
onside_set_for_now(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}
