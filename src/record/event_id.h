/*-------------------------------------------------------------------------
 *
 * event_id.h
 *		The event_id of a row that has a key and no version 4 UUID.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_EVENT_ID_H
#define ONSIDE_EVENT_ID_H

#include "postgres.h"

#include "utils/uuid.h"

/* A part of a key, in UTF-8. */
typedef struct OnsideKeyPart
{
	const char *data;
	int			len;			/* bytes */
} OnsideKeyPart;

/*
 * A stable UUID in the form of version 4: the first 16 bytes of the SHA-256
 * over the parts, with version and variant set.  Each part is preceded by its
 * number of bytes, as eight bytes in network order.  False if the hash cannot
 * be computed, for lack of memory or because OpenSSL refuses.
 */
extern bool onside_event_id_of_key(const OnsideKeyPart *parts, int nparts,
								   pg_uuid_t *id);

/*
 * The same, or an error.  In the header, since event_id.c uses nothing of the
 * server's.
 */
static inline void
onside_event_id_require(const OnsideKeyPart *parts, int nparts, pg_uuid_t *id)
{
	if (!onside_event_id_of_key(parts, nparts, id))
		elog(ERROR, "could not compute a SHA-256 hash");
}

#endif							/* ONSIDE_EVENT_ID_H */
