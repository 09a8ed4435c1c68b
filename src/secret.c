/*-------------------------------------------------------------------------
 *
 * secret.c
 *		Credentials that a peer says back to us.
 *
 * An error page can show the request that it is about, with its Authorization
 * or Proxy-Authorization header; and what an answer says is shown in "status",
 * in dead_letter and in the log.  So what stands for the credentials is taken
 * out of it first: the header's token, user:password, and the password alone
 * unless it is so short that it would be found in any text.
 *
 * It is found as it was sent.  A peer that encodes it in some way of its own
 * cannot be guarded against, but then it is the one whom we gave it to.
 *
 * No SQL, no network, no allocation that can be left behind.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/base64.h"
#include "utils/memutils.h"

#include "secret.h"

/* Shorter passwords are words: "a", "test", "shop". */
#define SHORTEST_PASSWORD	6

/* So much of the beginning of one tells nothing. */
#define HARMLESS_PREFIX		3

#define MASK				"***"
#define MASK_LEN			3

/* As it may appear, the longest form first; NULL if there is none. */
typedef struct Secret
{
	char	   *forms[3];
} Secret;

static Secret current[ONSIDE_SECRET_KINDS];
static Secret previous[ONSIDE_SECRET_KINDS];

static void
forget(char **str)
{
	if (*str != NULL)
	{
		explicit_bzero(*str, strlen(*str));
		pfree(*str);
		*str = NULL;
	}
}

static char *
token_of(const char *credentials)
{
	int			len = strlen(credentials);
	int			size = pg_b64_enc_len(len);
	char	   *token = MemoryContextAlloc(TopMemoryContext, size + 1);

	/* PostgreSQL 18 takes bytes, the ones before it take characters */
	size = pg_b64_encode((const void *) credentials, len, token, size);
	token[Max(size, 0)] = '\0';
	return token;
}

void
onside_secret_set(OnsideSecretKind kind, const char *credentials)
{
	const char *colon = strchr(credentials, ':');
	Secret	   *now = &current[kind];
	Secret	   *before = &previous[kind];

	if (now->forms[0] != NULL && strcmp(now->forms[0], credentials) == 0)
		return;

	for (int i = 0; i < (int) lengthof(now->forms); i++)
	{
		forget(&before->forms[i]);
		before->forms[i] = now->forms[i];
		now->forms[i] = NULL;
	}

	now->forms[0] = MemoryContextStrdup(TopMemoryContext, credentials);
	now->forms[1] = token_of(credentials);
	if (colon != NULL && strlen(colon + 1) >= SHORTEST_PASSWORD)
		now->forms[2] = MemoryContextStrdup(TopMemoryContext, colon + 1);
}

static void
hide_form(char *text, const char *form, bool cut)
{
	size_t		len = strlen(form);
	size_t		text_len;
	char	   *found = text;

	if (len < MASK_LEN)
		return;

	while ((found = strstr(found, form)) != NULL)
	{
		memcpy(found, MASK, MASK_LEN);
		memmove(found + MASK_LEN, found + len, strlen(found + len) + 1);
		found += MASK_LEN;
	}

	text_len = strlen(text);
	for (size_t n = Min(len - 1, text_len); cut && n > HARMLESS_PREFIX; n--)
	{
		if (memcmp(text + text_len - n, form, n) == 0)
		{
			strcpy(text + text_len - n, MASK);
			break;
		}
	}
}

static void
hide(char *text, const Secret *secret, bool cut)
{
	for (int i = 0; i < (int) lengthof(secret->forms); i++)
	{
		if (secret->forms[i] != NULL)
			hide_form(text, secret->forms[i], cut);
	}
}

void
onside_secret_hide(char *text, bool cut)
{
	for (int kind = 0; kind < ONSIDE_SECRET_KINDS; kind++)
	{
		hide(text, &current[kind], cut);
		hide(text, &previous[kind], cut);
	}
}
