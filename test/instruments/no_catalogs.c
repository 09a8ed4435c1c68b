/*-------------------------------------------------------------------------
 *
 * no_catalogs.c
 *		Message catalogs are never bound.
 *
 * Preloaded with AddressSanitizer.  With its runtime, libldap, which Debian's
 * servers are linked with, leaves the lock of glibc's message catalogs released
 * once too often (seen with gcc 12 and glibc 2.36), and bindtextdomain() then
 * waits for it for ever.  Tests need no translations.
 *
 *-------------------------------------------------------------------------
 */
#include <stddef.h>

extern char *bindtextdomain(const char *domain, const char *directory);
extern char *bind_textdomain_codeset(const char *domain, const char *codeset);
extern char *textdomain(const char *domain);

char *
bindtextdomain(const char *domain, const char *directory)
{
	return NULL;
}

char *
bind_textdomain_codeset(const char *domain, const char *codeset)
{
	return NULL;
}

char *
textdomain(const char *domain)
{
	return NULL;
}
