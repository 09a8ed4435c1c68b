/*-------------------------------------------------------------------------
 *
 * assert.c
 *		Where a failed Assert() ends, with headers of a PostgreSQL that has
 *		assertions.
 *
 * The server has this function, and the libraries that we link have not.  Its
 * parameters depend on the version, so it is known to the linker alone.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>

void		assertion_failed(void) __asm__("ExceptionalCondition");

void
assertion_failed(void)
{
	abort();
}
