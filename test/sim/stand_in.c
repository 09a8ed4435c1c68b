/*-------------------------------------------------------------------------
 *
 * stand_in.c
 *		What src/send takes of the server, without one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

MemoryContext CurrentMemoryContext = NULL;

static void *
need(void *p)
{
	if (p == NULL)
		abort();
	return p;
}

void *
MemoryContextAlloc(MemoryContext context, Size size)
{
	(void) context;
	return need(malloc(size));
}

void *
MemoryContextAllocZero(MemoryContext context, Size size)
{
	(void) context;
	return need(calloc(1, size));
}

void *
palloc(Size size)
{
	return need(malloc(size));
}

void *
palloc0(Size size)
{
	return need(calloc(1, size));
}

void *
repalloc(void *p, Size size)
{
	return need(realloc(p, size));
}

void
pfree(void *p)
{
	free(p);
}

#if PG_VERSION_NUM < 160000
void
ExceptionalCondition(const char *condition, const char *type,
					 const char *file, int line)
#else
void
ExceptionalCondition(const char *condition, const char *file, int line)
#endif
{
	fprintf(stderr, "%s:%d: %s\n", file, line, condition);
	abort();
}
