/*-------------------------------------------------------------------------
 *
 * event_id.c
 *		The event_id of a row that has a key and no version 4 UUID.
 *
 * The API knows an event by its event_id and ignores repetitions.  A row whose
 * event_id is made of its key is the same event whoever reports it, and
 * however often: the trigger, backfill, or the trigger of a restored dump.
 *
 * Pure: no SQL, no encoding but UTF-8, no server.  row_reader.c, deferred.c and
 * the SQL function event_id() (purchase.c) call it, and test/unit.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/cryptohash.h"
#include "common/sha2.h"
#include "port/pg_bswap.h"

#include "record/event_id.h"

/* Hashes a part behind its number of bytes, so that no two lists look alike. */
static bool
add_part(pg_cryptohash_ctx *hash, const OnsideKeyPart *part)
{
	uint64		prefix = pg_hton64((uint64) part->len);

	return pg_cryptohash_update(hash, (const uint8 *) &prefix,
								sizeof(prefix)) >= 0 &&
		pg_cryptohash_update(hash, (const uint8 *) part->data,
							 part->len) >= 0;
}

/*
 * managed/recorder.sql computes the same, so that a row has the same event_id
 * on both ways.
 */
bool
onside_event_id_of_key(const OnsideKeyPart *parts, int nparts, pg_uuid_t *id)
{
	pg_cryptohash_ctx *hash = pg_cryptohash_create(PG_SHA256);
	uint8		digest[PG_SHA256_DIGEST_LENGTH];
	bool		ok;

	if (hash == NULL)
		return false;

	/* OpenSSL can refuse any of these steps. */
	ok = pg_cryptohash_init(hash) >= 0;
	for (int i = 0; i < nparts && ok; i++)
		ok = add_part(hash, &parts[i]);
	ok = ok && pg_cryptohash_final(hash, digest, sizeof(digest)) >= 0;
	pg_cryptohash_free(hash);
	if (!ok)
		return false;

	/* Version 4 and the RFC's variant, as the API wants them. */
	memcpy(id->data, digest, UUID_LEN);
	id->data[6] = (id->data[6] & 0x0f) | 0x40;
	id->data[8] = (id->data[8] & 0x3f) | 0x80;
	return true;
}
