/*-------------------------------------------------------------------------
 *
 * test_event_id.c
 *		The event_id of a key, without a server.
 *
 * The promise held here: a key has the UUID that docs/recording.md's rule gives it, on
 * every machine and for ever.  The expected values were computed by another
 * program, in Python.  Every part, every byte and every boundary between parts
 * counts, whatever the length; and each result is a version 4 UUID.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <stdio.h>

#include "record/event_id.h"

/* postgres.h points these at the server's own */
#undef printf
#undef sprintf

static int	passed = 0;
static int	failed = 0;

static void
ok(bool condition, const char *what)
{
	if (condition)
		passed++;
	else
		failed++;
	printf("%sok %d - %s\n", condition ? "" : "not ", passed + failed, what);
}

/* The event_id as text, in a buffer that the next call uses again. */
static const char *
text_of(const pg_uuid_t *id)
{
	static char buf[37];
	char	   *p = buf;

	for (int i = 0; i < UUID_LEN; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*p++ = '-';
		p += sprintf(p, "%02x", id->data[i]);
	}
	return buf;
}

static bool
is_v4(const pg_uuid_t *id)
{
	return (id->data[6] & 0xf0) == 0x40 && (id->data[8] & 0xc0) == 0x80;
}

typedef struct Vector
{
	const char *expected;
	const char *parts[4];
} Vector;

static void
test_vectors(void)
{
	static const Vector vectors[] = {
		{"3346c9a9-2201-438e-8609-6180e40e5021", {"orders", "51"}},
		{"3b196fd4-907b-4df5-9c30-90e9835f2f7c", {"a"}},
		{"601d5476-e2cc-4e2c-87a2-bba7a3226597", {"ab", "c"}},
		{"3fafa1cf-2f19-47c1-929b-eb20cf0983f7", {"a", "bc"}},
		{"c3494ca1-a2cf-4eeb-8a11-ded316fb55b8", {"abc"}},
		{"e7fa8174-d147-4e73-9548-36b6f2193353", {"", "abc"}},
		/* two, three and four bytes a character */
		{"38ba3c88-5de9-44ad-aeee-fafa527e75a3",
			{"caf\xc3\xa9",
			"\xe2\x82\xac \xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e \xf0\x9f\x8d\x95"}},
		/* a block of SHA-256 that is just full, and one that is not any more */
		{"86919c2a-ec9e-4c79-b3ff-b1a271ce8b3e",
		{"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}},
		{"e9ab7bd2-679f-477c-ac36-3c094f8cfdb6",
		{"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}},
		{"6b26ad96-2d15-4651-8ec5-0901a6c57835",
			{"00000000-0000-4000-8000-000000000000", "purchase_completed",
			"public.orders", "9223372036854775807"}},
	};

	for (int i = 0; i < (int) lengthof(vectors); i++)
	{
		OnsideKeyPart parts[4];
		int			n = 0;
		pg_uuid_t	id;

		for (; n < 4 && vectors[i].parts[n] != NULL; n++)
		{
			parts[n].data = vectors[i].parts[n];
			parts[n].len = strlen(vectors[i].parts[n]);
		}
		ok(onside_event_id_of_key(parts, n, &id) &&
		   strcmp(text_of(&id), vectors[i].expected) == 0,
		   vectors[i].expected);
	}
}

static void
test_long(void)
{
	static char text[100000];
	OnsideKeyPart part = {text, sizeof(text)};
	pg_uuid_t	id;

	memset(text, 'x', sizeof(text));
	ok(onside_event_id_of_key(&part, 1, &id) &&
	   strcmp(text_of(&id), "e74e1bf4-8cf2-4ca0-a485-a7e702228f8c") == 0,
	   "a part of 100,000 bytes");
}

/* Every way to cut 130 bytes in two, and every byte of them, is a UUID of its own. */
static void
test_all_differ(void)
{
	enum
	{
		LEN = 130
	};
	static pg_uuid_t seen[2 * LEN + 1];
	char		text[LEN];
	int			n = 0;
	bool		valid = true;
	bool		differ = true;

	memset(text, 'k', LEN);
	for (int cut = 0; cut <= LEN; cut++)
	{
		OnsideKeyPart parts[2] = {{text, cut}, {text + cut, LEN - cut}};

		valid &= onside_event_id_of_key(parts, 2, &seen[n++]);
	}
	for (int i = 0; i < LEN; i++)
	{
		OnsideKeyPart part = {text, LEN};

		text[i] = '\0';
		valid &= onside_event_id_of_key(&part, 1, &seen[n++]);
		text[i] = 'k';
	}
	for (int i = 0; i < n; i++)
	{
		valid &= is_v4(&seen[i]);
		for (int j = 0; j < i; j++)
			differ &= memcmp(&seen[i], &seen[j], sizeof(pg_uuid_t)) != 0;
	}
	ok(valid, "all are version 4 UUIDs");
	ok(differ, "all differ");
}

int
main(void)
{
	test_vectors();
	test_long();
	test_all_differ();
	printf("%d passed, %d failed\n", passed, failed);
	return failed > 0;
}
