/*-------------------------------------------------------------------------
 *
 * sim.c
 *		Lives through simulated days, and says which promise one has broken.
 *
 *		sim [--from SEED] [--days N]	days drawn from these seeds
 *		sim --trace SEED				the story of one
 *		sim [--trace] FILE ...			days that are written down
 *
 * See README.md.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "world.h"

static double
seconds(int64 us)
{
	return (double) us / SECOND;
}

static bool
live(const Day *day, const char *name, bool trace, bool say)
{
	Outcome		outcome;

	world_run(day, trace, &outcome);
	if (outcome.broken != NULL)
		printf("not ok - %s: not kept: %s\n", name, outcome.broken);
	else if (say)
		printf("ok - %s\n", name);
	if (say || trace)
		printf("# %d events, " INT64_FORMAT " requests (" INT64_FORMAT " failed), "
			   INT64_FORMAT " connections, p99 %.3f s, slowest %.3f s, last %.3f s, "
			   "%d dead, %d healthy ones ever, recovered after %.3f s\n",
			   outcome.events, outcome.requests, outcome.failed,
			   outcome.connections, seconds(outcome.p99),
			   seconds(outcome.slowest), seconds(outcome.last_accepted),
			   outcome.dead, outcome.healthy_dead,
			   outcome.recovered == NEVER ? -1.0 : seconds(outcome.recovered));
	fflush(stdout);
	return outcome.broken == NULL;
}

static bool
live_seed(uint64 seed, bool trace)
{
	Day			day;
	char		name[64];

	day_random(&day, seed);
	snprintf(name, sizeof(name), "seed " UINT64_FORMAT, seed);
	return live(&day, name, trace, false);
}

int
main(int argc, char **argv)
{
	uint64		from = 1;
	uint64		days = 1000;
	bool		trace = false;
	int			passed = 0;
	int			failed = 0;
	int			i;

	for (i = 1; i < argc && strncmp(argv[i], "--", 2) == 0; i++)
	{
		if (strcmp(argv[i], "--from") == 0 && i + 1 < argc)
			from = strtoull(argv[++i], NULL, 10);
		else if (strcmp(argv[i], "--days") == 0 && i + 1 < argc)
			days = strtoull(argv[++i], NULL, 10);
		else if (strcmp(argv[i], "--trace") == 0)
			trace = true;
		else
		{
			fprintf(stderr, "usage: sim [--from SEED] [--days N] | --trace SEED | [--trace] FILE ...\n");
			return 2;
		}
	}
	if (trace && i + 1 == argc && strspn(argv[i], "0123456789") == strlen(argv[i]))
		return live_seed(strtoull(argv[i], NULL, 10), true) ? 0 : 1;
	if (i < argc)
		for (; i < argc; i++)
		{
			Day			day;

			day_read(&day, argv[i]);
			if (live(&day, argv[i], trace, true))
				passed++;
			else
				failed++;
		}
	else
		for (uint64 seed = from; seed < from + days; seed++)
		{
			if (live_seed(seed, false))
				passed++;
			else
				failed++;
		}
	printf("%d passed, %d failed\n", passed, failed);
	return failed == 0 ? 0 : 1;
}
