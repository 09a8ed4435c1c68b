/*-------------------------------------------------------------------------
 *
 * doctor_mapper.c
 *		doctor(): is a trigger's mapper there, and does it fit its tables?
 *
 * The validator of the function's language checks its body.  The validator of
 * LANGUAGE sql looks up each table and column; the one of plpgsql checks the
 * syntax alone.  Other languages' validators can run code, and are not called.
 *
 * Even looking up what a body means can run a user's code: a type's input
 * function reads a literal, and for a field of a composite type that can run a
 * domain's CHECK.  So the validator runs as the function's owner, who has
 * chosen that code, in a security-restricted context.  A privilege that the
 * owner lacks, or a lock, is not reported.
 *
 * Of the settings that the function sets for itself, search_path alone is
 * followed: another one could end the session in which doctor() runs.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/proclang.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "attach/mapper_check.h"
#include "attempt.h"
#include "operate/doctor.h"
#include "record/mapper.h"

#define SEARCH_PATH "search_path="

/* The mapper to validate. */
typedef struct Validation
{
	Oid			function;
	const OnsideMapping *mapping;
} Validation;

/* The validator of a language that may be called, or InvalidOid. */
static Oid
validator_of(Oid language)
{
	HeapTuple	tuple;
	Oid			validator = InvalidOid;

	if (language != SQLlanguageId &&
		language != get_language_oid("plpgsql", true))
		return InvalidOid;
	tuple = SearchSysCache1(LANGOID, ObjectIdGetDatum(language));
	if (HeapTupleIsValid(tuple))
	{
		validator = ((Form_pg_language) GETSTRUCT(tuple))->lanvalidator;
		ReleaseSysCache(tuple);
	}
	return validator;
}

/* The search_path that the function sets for itself, or NULL. */
static char *
own_search_path(HeapTuple function)
{
	bool		isnull;
	Datum		config = SysCacheGetAttr(PROCOID, function,
										 Anum_pg_proc_proconfig, &isnull);
	Datum	   *items;
	int			n;

	if (isnull)
		return NULL;

	/* each item is "name=value" */
	deconstruct_array(DatumGetArrayTypeP(config), TEXTOID, -1, false,
					  TYPALIGN_INT, &items, NULL, &n);
	for (int i = 0; i < n; i++)
	{
		char	   *item = TextDatumGetCString(items[i]);

		if (strncmp(item, SEARCH_PATH, strlen(SEARCH_PATH)) == 0)
			return item + strlen(SEARCH_PATH);
	}
	return NULL;
}

/*
 * Calls the validator with the search_path that the function has when it is
 * called.
 */
static void
run_validator(void *arg)
{
	Validation *this = (Validation *) arg;
	HeapTuple	tuple = SearchSysCache1(PROCOID,
										ObjectIdGetDatum(this->function));
	Form_pg_proc proc;
	Oid			validator;
	char	   *path;

	if (!HeapTupleIsValid(tuple))
		return;
	/* Its own search_path, or the one that attach() was called with. */
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	validator = validator_of(proc->prolang);
	path = own_search_path(tuple);
	if (path == NULL)
		path = unconstify(char *, onside_mapping_search_path(this->mapping));
	if (OidIsValid(validator))
	{
		int			context;
		Oid			user;

		/* An error leaves the owner's rights to onside_attempt() to undo. */
		onside_set_for_now("search_path", path);
		onside_set_for_now("check_function_bodies", "on");
		GetUserIdAndSecContext(&user, &context);
		SetUserIdAndSecContext(proc->proowner, context |
							   SECURITY_LOCAL_USERID_CHANGE |
							   SECURITY_RESTRICTED_OPERATION);
		(void) OidFunctionCall1(validator, ObjectIdGetDatum(this->function));
		SetUserIdAndSecContext(user, context);
	}
	ReleaseSysCache(tuple);
}

/*
 * What the validator finds, or NULL.  The subtransaction is always rolled
 * back, so nothing stays locked or set, and the user is the caller again.
 */
static char *
validation_error(Oid function, const OnsideMapping *mapping)
{
	Validation	this = {function, mapping};
	ErrorData  *error = onside_attempt(run_validator, &this, false);

	if (error == NULL || error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
		error->sqlerrcode == ERRCODE_INSUFFICIENT_PRIVILEGE)
		return NULL;
	if (onside_attempt_was_interrupted(error))
		ReThrowError(error);
	return psprintf("is broken%s: %s", onside_mapper_error_place(error),
					error->message);
}

/* Looks at the function in the catalog first, and then has it validated. */
char *
onside_doctor_mapper(Oid relid, const OnsideMapping *mapping, char **remark)
{
	Oid			row_type =
		get_rel_type_id(onside_mapper_takes(mapping->mapper, relid));
	Oid			function = onside_mapper_find(mapping->mapper, row_type);
	char	   *problem;
	int			sqlstate;

	if (!OidIsValid(function))
		return psprintf("does not exist for %s", format_type_be(row_type));
	problem = onside_mapper_problem(function, row_type, &sqlstate);
	if (problem == NULL)
		problem = validation_error(function, mapping);
	*remark = problem == NULL ? onside_mapper_obstacles(function) : NULL;
	return problem;
}
