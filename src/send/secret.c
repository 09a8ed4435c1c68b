/*-------------------------------------------------------------------------
 *
 * secret.c
 *		Credentials that a peer says back to us.
 *
 * An error page can quote the request that it is about, with its Authorization
 * or Proxy-Authorization header; and what an answer says is shown in "status",
 * in dead_letter, by doctor() and in the log.  So request.c has credentials
 * taken out of an answer first: user:password, the header's token, and the
 * password alone, as it is and in base64.  A password that is so short that it
 * would be found in any text is not looked for alone.
 *
 * A peer quotes credentials in the language of its answer: escaped for JSON,
 * a URL or HTML, some characters or all, one language within another, or with
 * letters spoilt that it has read in another encoding than ours.  These forms
 * are too many to list.  So a text is compared with the secret character by
 * character, and each character of the text is tried as what it is and as
 * everything that it can stand for.  That does not undo encodings that move
 * bits across characters; of these, base64 alone is looked for.
 *
 * No SQL and no network.  http.c tells which credentials are in use, and the
 * process keeps these and the ones before them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/base64.h"
#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "send/secret.h"

/* Shorter passwords are words: "a", "test", "shop". */
#define SHORTEST_PASSWORD	6

/* A prefix this short reveals nothing about the secret. */
#define HARMLESS_PREFIX		3

#define MASK				"***"
#define MASK_LEN			3

/* What is looked for; of two that begin alike, the longer one comes first. */
enum
{
	FORM_CREDENTIALS,
	FORM_TOKEN,					/* base64, without padding */
	FORM_PASSWORD,
	FORM_PASSWORD_TOKEN,
	FORMS
};

typedef struct Secret
{
	char	   *credentials;	/* NULL for none */
	char	   *forms[FORMS];	/* NULL for those that are not looked for */
} Secret;

/*
 * What must not be shown, and what was in use before.  These are the
 * process's, since any text that it shows may have them in it.
 */
static Secret current[ONSIDE_SECRET_KINDS];
static Secret previous[ONSIDE_SECRET_KINDS];

/* ----------
 * The forms
 * ----------
 */

/* Overwrites and frees a string, and makes the pointer NULL. */
static void
wipe_string(char **str)
{
	if (*str != NULL)
	{
		explicit_bzero(*str, strlen(*str));
		pfree(*str);
		*str = NULL;
	}
}

/* The secret in base64, without padding, which not everybody writes. */
static char *
token_of(const char *secret)
{
	int			len = strlen(secret);
	int			size = pg_b64_enc_len(len);
	char	   *token = MemoryContextAlloc(TopMemoryContext, size + 1);

	/* PostgreSQL 18 takes bytes, the ones before it take characters */
	size = Max(pg_b64_encode((const void *) secret, len, token, size), 0);
	while (size > 0 && token[size - 1] == '=')
		size--;
	token[size] = '\0';
	return token;
}

/*
 * Makes the forms that are looked for.  With an empty password there are
 * none.
 */
void
onside_secret_set(OnsideSecretKind kind, const char *credentials)
{
	const char *colon = strchr(credentials, ':');
	const char *password = colon != NULL ? colon + 1 : "";
	Secret	   *now = &current[kind];
	Secret	   *before = &previous[kind];

	if (now->credentials != NULL && strcmp(now->credentials, credentials) == 0)
		return;

	/* What was in use until now takes the place of what was before. */
	wipe_string(&before->credentials);
	for (int i = 0; i < FORMS; i++)
		wipe_string(&before->forms[i]);
	*before = *now;
	memset(now, 0, sizeof(*now));

	/* user:password; then the password alone, unless it could be a word. */
	now->credentials = MemoryContextStrdup(TopMemoryContext, credentials);
	if (password[0] == '\0')
		return;
	now->forms[FORM_CREDENTIALS] =
		MemoryContextStrdup(TopMemoryContext, credentials);
	now->forms[FORM_TOKEN] = token_of(credentials);
	if (strlen(password) < SHORTEST_PASSWORD)
		return;
	now->forms[FORM_PASSWORD] = MemoryContextStrdup(TopMemoryContext, password);
	now->forms[FORM_PASSWORD_TOKEN] = token_of(password);
}

/* ----------
 * Reading a text that may be encoded
 * ----------
 */

/* So many escapes can be wrapped around one another. */
#define DEPTH		3

/* One meaning of what is at a place of the text. */
typedef struct Unit
{
	uint32		c;				/* a byte, or a code point */
	bool		wide;			/* it is a code point that is not ASCII */
	int			len;			/* bytes in the text */
} Unit;

#define MAX_UNITS	8
#define ANY_SIGN	0x110000	/* some character, but no letter or digit */

/* A text that takes more steps than this is made to be endless. */
#define MAX_STEPS	1000000

#define LETTERS \
	"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

/* Steps of the present comparison; its functions call each other again. */
static int	steps;

static int	read_units(const char *p, int depth, Unit *units);

/*
 * Takes one of these characters, however it is encoded; returns its length in
 * the text, or 0.  The longest meaning comes first, so "\\" is one backslash
 * rather than two.
 */
static int
take_character(const char *p, int depth, const char *set, uint32 *c)
{
	Unit		units[MAX_UNITS];
	int			n = read_units(p, depth, units);

	for (int i = 0; i < n; i++)
		if (!units[i].wide && units[i].c != 0 &&
			strchr(set, (int) units[i].c) != NULL)
		{
			*c = units[i].c;
			return units[i].len;
		}
	return 0;
}

/* Takes min to max digits, however encoded; returns their length, or 0. */
static int
take_number(const char *p, int depth, int base, int min, int max, uint32 *value)
{
	const char *set = base == 16 ? "0123456789abcdefABCDEF" :
		base == 10 ? "0123456789" : "01234567";
	int			len = 0;
	int			n;

	*value = 0;
	for (n = 0; n < max; n++)
	{
		uint32		c;
		int			digit = take_character(p + len, depth, set, &c);

		if (digit == 0)
			break;

		/* | 0x20 makes a letter small */
		len += digit;
		*value = *value * base +
			(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
	}
	return n < min ? 0 : len;
}

/*
 * Reads what follows a backslash, as JSON, C, Python and PHP write it.
 * Returns its length, or 0 if it is no escape.
 */
static int
read_backslash(const char *p, int depth, Unit *unit)
{
	uint32		c;
	uint32		low;
	int			len;
	int			more;

	/* \u and four digits: UTF-16 */
	unit->wide = false;
	if ((len = take_character(p, depth, "u", &c)) > 0 &&
		(more = take_number(p + len, depth, 16, 4, 4, &unit->c)) > 0)
	{
		len += more;
		unit->wide = true;
		if (unit->c < 0xd800 || unit->c > 0xdbff)
			return len;

		/* The first half of a pair: the other half must follow. */
		if ((more = take_character(p + len, depth, "\\", &c)) == 0)
			return 0;
		len += more;
		if ((more = take_character(p + len, depth, "u", &c)) == 0)
			return 0;
		len += more;
		if ((more = take_number(p + len, depth, 16, 4, 4, &low)) == 0)
			return 0;
		unit->c = 0x10000 + ((unit->c - 0xd800) << 10) +
			((low - 0xdc00) & 0x3ff);
		return len + more;
	}

	/* A byte as \x41 or \101, or a sign that is protected. */
	if ((len = take_character(p, depth, "x", &c)) > 0 &&
		(more = take_number(p + len, depth, 16, 2, 2, &unit->c)) > 0)
		return len + more;
	if ((len = take_number(p, depth, 8, 3, 3, &unit->c)) > 0)
		return len;
	return take_character(p, depth, "\"\\/'`$!#%&()*+,-.:;<=>?@[]^_{|}~ ",
						  &unit->c);
}

/*
 * Reads what follows an ampersand in HTML and XML.  Returns its length, or 0
 * if it is no entity.
 */
static int
read_entity(const char *p, int depth, Unit *unit)
{
	static const struct
	{
		const char *name;
		char		c;
	}			names[] =
	{
		{"amp", '&'}, {"lt", '<'}, {"gt", '>'}, {"quot", '"'}, {"apos", '\''},
	};
	char		name[10];
	uint32		c = 0;
	int			len;
	int			more;
	int			n = 0;

	/* &#x41; or &#65; is a code point, anything else a name. */
	unit->wide = true;
	if ((len = take_character(p, depth, "#", &c)) > 0)
	{
		if ((more = take_character(p + len, depth, "xX", &c)) > 0)
		{
			len += more;
			more = take_number(p + len, depth, 16, 1, 6, &unit->c);
		}
		else
			more = take_number(p + len, depth, 10, 1, 7, &unit->c);
		if (more == 0)
			return 0;
		len += more;
	}
	else
	{
		/* Few names are longer than nine letters. */
		while (n < (int) sizeof(name) - 1 &&
			   (more = take_character(p + len, depth, LETTERS, &c)) > 0)
		{
			name[n++] = c;
			len += more;
		}
		name[n] = '\0';
		if (n < 2)
			return 0;

		/* The other names are too many: each stands for any sign. */
		unit->c = ANY_SIGN;
		for (int i = 0; i < (int) lengthof(names); i++)
			if (strcmp(name, names[i].name) == 0)
				unit->c = names[i].c;
	}

	/* An entity ends in a semicolon. */
	more = take_character(p + len, depth, ";", &c);
	return more == 0 ? 0 : len + more;
}

/* Adds a meaning, the longest first; returns how many there are then. */
static int
add_unit(Unit *units, int n, Unit unit)
{
	int			i;

	if (unit.c < 0x80)
		unit.wide = false;

	/* Is it known, or is there no more room? */
	for (i = 0; i < n; i++)
		if (units[i].c == unit.c && units[i].wide == unit.wide &&
			units[i].len == unit.len)
			return n;
	if (n == MAX_UNITS)
		return n;
	for (i = n; i > 0 && units[i - 1].len < unit.len; i--)
		units[i] = units[i - 1];
	units[i] = unit;
	return n + 1;
}

/*
 * The length of a UTF-8 character that is not ASCII, and its code point; or
 * 0.
 */
static int
character_at(const char *str, uint32 *c)
{
	const unsigned char *p = (const unsigned char *) str;
	int			len = pg_utf_mblen(p);

	if (*p < 0x80 || strnlen(str, len) < (size_t) len ||
		!pg_utf8_islegal(p, len))
		return 0;
	*c = utf8_to_unicode(p);
	return len;
}

/*
 * Finds all meanings of the text at this place: the byte, the character, and
 * what an escape that begins here stands for.  The signs of which the escape
 * is made may be escaped themselves, depth - 1 times.  Returns how many
 * meanings there are.
 */
static int
read_units(const char *p, int depth, Unit *units)
{
	Unit		first[MAX_UNITS];
	Unit		unit = {(unsigned char) *p, false, 1};
	int			nfirst;
	int			n = add_unit(units, 0, unit);

	/* What is there without any escape. */
	steps++;
	if ((unit.len = character_at(p, &unit.c)) > 0)
	{
		unit.wide = true;
		n = add_unit(units, n, unit);
	}
	if (depth == 0 || *p == '\0' || strchr("%\\&", *p) == NULL)
		return n;

	/* An escape's first sign, which may be escaped; then what follows it. */
	nfirst = read_units(p, depth - 1, first);
	for (int i = 0; i < nfirst; i++)
	{
		const char *rest = p + first[i].len;
		int			len = 0;

		memset(&unit, 0, sizeof(unit));
		if (first[i].wide)
			len = 0;
		else if (first[i].c == '%')
			len = take_number(rest, depth - 1, 16, 2, 2, &unit.c);
		else if (first[i].c == '\\')
			len = read_backslash(rest, depth - 1, &unit);
		else if (first[i].c == '&')
			len = read_entity(rest, depth - 1, &unit);
		if (len > 0)
		{
			unit.len = first[i].len + len;
			n = add_unit(units, n, unit);
		}
		n = add_unit(units, n, first[i]);
	}

	/*
	 * Two bytes are a Latin-1 character in UTF-8, each escaped by itself.  The
	 * first of them is 0xc2 or 0xc3, the second one is a continuation.
	 */
	nfirst = n;
	memcpy(first, units, n * sizeof(Unit));
	for (int i = 0; i < nfirst; i++)
	{
		Unit		second[MAX_UNITS];
		int			nsecond = 0;

		if (first[i].c == 0xc2 || first[i].c == 0xc3)
			nsecond = read_units(p + first[i].len, depth - 1, second);
		for (int j = 0; j < nsecond; j++)
			if ((second[j].c & ~0x3f) == 0x80)
			{
				unit.c = (first[i].c & 3) << 6 | (second[j].c & 0x3f);
				unit.wide = true;
				unit.len = first[i].len + second[j].len;
				n = add_unit(units, n, unit);
			}
	}
	return n;
}

/* ----------
 * Finding a secret
 * ----------
 */

/*
 * How many bytes of the secret can this meaning stand for?  0 if it is
 * another character.  *fewer is a second answer, or 0: a peer that takes the
 * secret for text of another encoding puts one sign for each character, or
 * for each byte.
 */
static int
stands_for(const Unit *unit, const char *secret, bool token, int *fewer)
{
	unsigned char s = *secret;
	uint32		character = 0;
	int			len = character_at(secret, &character);
	bool		letter = ('a' <= (s | 0x20) && (s | 0x20) <= 'z') ||
		('0' <= s && s <= '9');

	*fewer = 0;
	if (unit->c == s)
		return 1;				/* also as a character of Latin-1 */
	if (len > 0 && unit->c == character)
		return len;				/* also as a byte of Latin-1 */

	/* A sign in place of a character that the peer could not read. */
	if ((s >= 0x80 && (unit->c == '?' || unit->c == 0xfffd)) ||
		(!letter && unit->c == ANY_SIGN))
	{
		*fewer = len > 1 ? 1 : 0;
		return Max(len, 1);
	}

	/* A blank in a URL's query, and the base64 that is made for URLs. */
	return (unit->c == '+' && s == ' ') ||
		(token && unit->c == '-' && s == '+') ||
		(token && unit->c == '_' && s == '/');
}

/* Is the rest of the text an escape or a character that was cut off? */
static bool
is_torn(const char *p)
{
	return (strchr("%\\&", *p) != NULL && strlen(p) < 12 &&
			p[strcspn(p, " \t\r\n\"'<>()")] == '\0') ||
		((unsigned char) *p >= 0x80 && strlen(p) < MAX_MULTIBYTE_CHAR_LEN);
}

/*
 * Is the secret here?  Returns its end in the text, or NULL.  "matched" bytes
 * of it have been found.  If the text is cut, a secret of which more than
 * HARMLESS_PREFIX bytes are there can end with the text.
 */
static const char *
match_secret(const char *p, const char *secret, bool token, bool cut,
			 int matched)
{
	Unit		units[MAX_UNITS];
	int			n;

	if (*secret == '\0')
		return p;
	if (cut && matched > HARMLESS_PREFIX && *p == '\0')
		return p;
	if (*p == '\0' || steps > MAX_STEPS)
		return NULL;

	/* Try each meaning; the rest of the secret has to follow. */
	n = read_units(p, DEPTH, units);
	for (int i = 0; i < n; i++)
	{
		int			fewer;
		int			len = stands_for(&units[i], secret, token, &fewer);
		const char *next = p + units[i].len;
		const char *end = NULL;

		if (len > 0)
			end = match_secret(next, secret + len, token, cut, matched + len);
		if (end == NULL && fewer > 0)
			end = match_secret(next, secret + fewer, token, cut,
							   matched + fewer);
		if (end != NULL)
			return end;
	}

	/* No meaning fits, unless what is here was cut off in the middle. */
	return cut && matched > HARMLESS_PREFIX && is_torn(p) ?
		p + strlen(p) : NULL;
}

/* Puts MASK in the place of one form, wherever it is. */
static void
hide_form(char *text, const char *form, bool token, bool cut)
{
	/* It would make the text longer. */
	if (strlen(form) < MASK_LEN)
		return;
	for (char *p = text; *p != '\0'; p++)
	{
		const char *end = match_secret(p, form, token, cut, 0);
		int			len;

		if (end == NULL)
			continue;
		len = Min(MASK_LEN, end - p);
		memcpy(p, MASK, len);
		memmove(p + len, end, strlen(end) + 1);
		p += len - 1;
	}
}

/* Puts MASK in the place of each form of these credentials. */
static void
hide_forms(char *text, const Secret *secret, bool cut)
{
	for (int i = 0; i < FORMS; i++)
		if (secret->forms[i] != NULL)
			hide_form(text, secret->forms[i],
					  i == FORM_TOKEN || i == FORM_PASSWORD_TOKEN, cut);
}

void
onside_secret_hide(char *text, bool cut)
{
	/* All share one count of steps: it is what the whole text takes. */
	steps = 0;
	for (int kind = 0; kind < ONSIDE_SECRET_KINDS; kind++)
	{
		hide_forms(text, &current[kind], cut);
		hide_forms(text, &previous[kind], cut);
	}
	if (steps > MAX_STEPS && strlen(text) >= MASK_LEN)
		strcpy(text, MASK);
}
