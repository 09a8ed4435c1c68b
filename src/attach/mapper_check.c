/*-------------------------------------------------------------------------
 *
 * mapper_check.c
 *		Can this function be a mapper of this table?
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "attach/mapper_check.h"

void
onside_mapper_check(Oid function, Oid relid, OnsideMapping *mapping)
{
	elog(ERROR, "not here yet");
}
