/*-------------------------------------------------------------------------
 *
 * counting.c
 *		What the worker has counted and not yet published.
 *
 * The worker counts in memory of its own, without a lock.  In each turn of its
 * loop it adds what it has counted to its slot, under the slot's lock.  So an
 * event costs a few instructions, a reader sees numbers that belong together,
 * and stats_reset() can set them to zero from any session.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "api.h"
#include "worker/counting.h"

/*
 * 204, 400, 413, 429 and 503 have a counter each; 401 and 403 share one, and
 * so do 408 and 425.  All other statuses are counted by their first digit.
 */
OnsideCounter
onside_counting_of_status(int http_status)
{
	/* Those that have a counter. */
	switch (http_status)
	{
		case ONSIDE_API_ACCEPTED:
			return ONSIDE_COUNT_204;
		case ONSIDE_API_REFUSED:
			return ONSIDE_COUNT_400;
		case 401:
		case 403:
			return ONSIDE_COUNT_401_403;
		case 408:
		case 425:
			return ONSIDE_COUNT_408_425;
		case ONSIDE_API_TOO_LARGE:
			return ONSIDE_COUNT_413;
		case ONSIDE_API_THROTTLED:
			return ONSIDE_COUNT_429;
		case 503:
			return ONSIDE_COUNT_503;
	}

	/* All others; HTTP knows no status below 100 or above 599. */
	switch (http_status / 100)
	{
		case 2:
			return ONSIDE_COUNT_OTHER_2XX;
		case 3:
			return ONSIDE_COUNT_3XX;
		case 4:
			return ONSIDE_COUNT_OTHER_4XX;
		case 5:
			return ONSIDE_COUNT_OTHER_5XX;
	}
	return ONSIDE_COUNT_MALFORMED;
}

static void
add_stats(OnsideStats *to, const OnsideStats *from)
{
	for (int i = 0; i < ONSIDE_COUNTERS; i++)
		to->counters[i] += from->counters[i];
	onside_histogram_merge(&to->delivery, &from->delivery);
	onside_histogram_merge(&to->request, &from->request);
}

/* Takes no lock if nothing has been counted. */
void
onside_counting_publish(OnsideWorker *worker)
{
	static const OnsideStats nothing = {0};

	if (memcmp(&worker->counted, &nothing, sizeof(nothing)) == 0)
		return;
	LWLockAcquire(worker->slot->lock, LW_EXCLUSIVE);
	add_stats(&worker->slot->stats, &worker->counted);
	LWLockRelease(worker->slot->lock);
	memset(&worker->counted, 0, sizeof(worker->counted));
}
