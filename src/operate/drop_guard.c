/*-------------------------------------------------------------------------
 *
 * drop_guard.c
 *		DROP EXTENSION does not take events along that are still to be sent.
 *
 * DROP EXTENSION comes in many forms: by name, with CASCADE, by DROP OWNED,
 * or from "pg_restore --clean".  Each form first locks everything, so that no
 * other transaction can still commit an event.  Then it removes the
 * extension's members one by one, and the extension itself last.  The object
 * access hook calls this file for each relation.  When the first of ours is
 * about to be dropped, all of them can still be read.  A new snapshot is
 * taken, which sees what this transaction has recorded, too.
 *
 * The error is the one of a table with pending trigger events (55006): the
 * extension is in use.  TRUNCATE discards the events.
 *
 * At most ONSIDE_MAX_COUNTED rows are counted, so the check costs the same at
 * any backlog.  Tables that cannot be read, because somebody has altered them, do
 * not keep the extension from being dropped: there is a warning then.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "commands/extension.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "attempt.h"
#include "log/dead_letter.h"
#include "log/shmem.h"
#include "log/tables.h"
#include "operate/control.h"
#include "operate/drop_guard.h"
#include "version.h"

/* Is this one of the extension's tables and views? */
static bool
is_member(Oid relid)
{
	Oid			schema = get_namespace_oid(ONSIDE_SCHEMA, true);
	Oid			extension;

	if (!OidIsValid(schema) || get_rel_namespace(relid) != schema)
		return false;
	extension = getExtensionOfObject(RelationRelationId, relid);
	return OidIsValid(extension) &&
		extension == get_extension_oid("onside_attribution", true);
}

/* Is everything there that is read here?  Otherwise the dropping has begun. */
static bool
are_tables_there(void)
{
	for (int segment = 1; segment <= ONSIDE_SEGMENTS; segment++)
		if (!OidIsValid(onside_relation_oid(psprintf("outbox_%d", segment))) ||
			!OidIsValid(onside_relation_oid(psprintf("outbox_%d_xid_id_idx",
													 segment))))
			return false;
	return OidIsValid(onside_relation_oid("delivery_cursor")) &&
		OidIsValid(onside_relation_oid("aside")) &&
		OidIsValid(onside_relation_oid("dead_letter"));
}

/* A count for people. */
static char *
print_count(int64 n)
{
	return n > ONSIDE_MAX_COUNTED ?
		psprintf("more than %d", ONSIDE_MAX_COUNTED) :
		psprintf(INT64_FORMAT, n);
}

/* What goes with the extension, counted. */
typedef struct Losses
{
	bool		drops_dead_letter;	/* is it dead_letter that is dropped? */
	OnsidePending pending;
	int64		dead_letters;
} Losses;

/* Runs in a subtransaction: the tables may be in any state. */
static void
count_losses(void *arg)
{
	Losses	   *losses = arg;
	OnsideDelivery delivery = {0};

	PushActiveSnapshot(GetLatestSnapshot());
	onside_count_pending(&delivery, &losses->pending);
	if (losses->pending.events > 0 || losses->drops_dead_letter)
		losses->dead_letters = onside_dead_letter_count(ONSIDE_MAX_COUNTED + 1,
														NULL);
	PopActiveSnapshot();
}

/*
 * Somebody cancels, the server lacks something, or the transaction is to be
 * repeated: the tables may be sound.
 */
static bool
says_nothing_of_tables(const ErrorData *error)
{
	return onside_attempt_was_interrupted(error) ||
		error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
		ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_TRANSACTION_ROLLBACK;
}

/*
 * Called for each relation that is dropped.  Looks when a member of the
 * extension goes and everything is still there.  Pending events are an error,
 * dead letters a NOTICE.
 */
void
onside_drop_guard_check(Oid relid)
{
	Losses		losses = {0};
	ErrorData  *error;

	/*
	 * An update script may drop what it likes, and the tables of another
	 * version may look different.
	 */
	if (creating_extension || !is_member(relid) || !are_tables_there() ||
		onside_version_problem() != NULL)
		return;

	/* Dead letters are named in the error, or when their table is dropped. */
	losses.drops_dead_letter = relid == onside_relation_oid("dead_letter");
	error = onside_attempt(count_losses, &losses, true);
	if (error != NULL && says_nothing_of_tables(error))
		ReThrowError(error);

	/*
	 * Dropping it may be how a DBA mends it.  dead_letter is the first of our
	 * tables that goes, so there is one warning.
	 */
	if (error != NULL && losses.pending.events == 0)
	{
		if (losses.drops_dead_letter)
			ereport(WARNING,
					(errcode(ERRCODE_WARNING),
					 errmsg("extension onside_attribution is dropped without a look at its events: %s",
							error->message)));
		return;
	}

	if (losses.pending.events > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot drop extension onside_attribution because it has pending events"),
				 losses.dead_letters == 0 ?
				 errdetail("Events that have not been delivered: %s.",
						   print_count(losses.pending.events)) :
				 errdetail("Events that have not been delivered: %s; dead letters: %s.",
						   print_count(losses.pending.events), print_count(losses.dead_letters)),
				 errhint("Wait for them with SELECT onside_attribution.flush(), or discard them with TRUNCATE onside_attribution.outbox, onside_attribution.aside.")));
	if (losses.dead_letters > 0)
		ereport(NOTICE,
				(errmsg_plural("dropping extension onside_attribution with %s dead letter",
							   "dropping extension onside_attribution with %s dead letters",
							   losses.dead_letters, print_count(losses.dead_letters))));
}
