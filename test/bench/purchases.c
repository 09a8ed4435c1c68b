/*-------------------------------------------------------------------------
 *
 * purchases.c
 *	  Buys at a steady rate, and notes when each purchase was committed.
 *
 * usage: purchases CONNINFO TABLE PER_SECOND COUNT CONNECTIONS FILE [PORT]
 *
 * Each purchase is an INSERT in a transaction of its own, over one of the
 * connections in turn, at its appointed time; its number is at the end of its
 * UUID.  What is late is done at once and nothing is left out.
 *
 * With PORT the buyer itself reports each purchase after its commit, over a
 * kept-alive connection to 127.0.0.1.  That loses what was committed before a
 * crash, but nothing can be there sooner.
 *
 * Into FILE go three int64 for each purchase, in nanoseconds of
 * CLOCK_MONOTONIC: when it was due, when the INSERT was sent, and when the client
 * had the answer to it, that is to say to the commit.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <libpq-fe.h>

#define NS_PER_S	INT64_C(1000000000)

typedef struct Purchase
{
	int64_t		due;
	int64_t		sent;
	int64_t		committed;
} Purchase;

static const char *conninfo;
static const char *table;
static double per_second;
static long count;
static long connections;
static int	port;
static Purchase *purchases;
static int64_t start;
static pthread_barrier_t barrier;

static void
fail(const char *what, const char *why)
{
	fprintf(stderr, "purchases: %s: %s\n", what, why);
	exit(1);
}

static int64_t
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * NS_PER_S + t.tv_nsec;
}

static int
connect_api(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
	int			fd = socket(AF_INET, SOCK_STREAM, 0);
	int			on = 1;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 ||
		connect(fd, (struct sockaddr *) &address, sizeof(address)) != 0)
		fail("connect", "the API");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	return fd;
}

static void
report(int api, const char *uuid)
{
	char		body[512];
	char		request[1024];
	int			length;

	length = snprintf(body, sizeof(body),
					  "{\"events\":[{\"event_name\":\"purchase_completed\","
					  "\"payload\":{\"amount\": \"9.99\", \"currency\": \"USD\"},"
					  "\"event_datetime\":\"2026-05-05T12:00:00.000001Z\","
					  "\"event_id\":\"%s\",\"installation_id\":\"%s\"}]}",
					  uuid, uuid);
	length = snprintf(request, sizeof(request),
					  "POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\n"
					  "Content-Type: application/json\r\n"
					  "Content-Length: %d\r\n\r\n%s", length, body);
	if (write(api, request, length) != length ||
		read(api, request, sizeof(request)) <= 0)
		fail("request", "the API is gone");
}

static void
buy(PGconn *conn, int api, long n)
{
	Purchase   *purchase = &purchases[n];
	struct timespec due;
	char		uuid[37];
	const char *params[1] = {uuid};
	PGresult   *result;

	snprintf(uuid, sizeof(uuid), "%08lx-0000-4000-8000-%012lx", n * 2654435761 & 0xffffffff,
			 n);
	purchase->due = start + (int64_t) (n * (NS_PER_S / per_second));
	due.tv_sec = purchase->due / NS_PER_S;
	due.tv_nsec = purchase->due % NS_PER_S;
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
	purchase->sent = now();
	result = PQexecPrepared(conn, "buy", 1, params, NULL, NULL, 0);
	purchase->committed = now();
	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		fail("purchase", PQerrorMessage(conn));
	PQclear(result);
	if (api >= 0)
		report(api, uuid);
}

static void *
buyer(void *arg)
{
	PGconn	   *conn = PQconnectdb(conninfo);
	char		sql[1024];
	PGresult   *result;
	int			api = port ? connect_api() : -1;

	if (PQstatus(conn) != CONNECTION_OK)
		fail("connect", PQerrorMessage(conn));
	snprintf(sql, sizeof(sql),
			 "INSERT INTO %s (purchase_id, installation_id, currency, amount, paid_at)"
			 " VALUES ($1, gen_random_uuid(), 'USD', 9.99, clock_timestamp())", table);
	result = PQprepare(conn, "buy", sql, 0, NULL);
	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		fail("prepare", PQerrorMessage(conn));
	PQclear(result);

	/* Connecting takes a moment; nobody shall be late at the start. */
	if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD)
		start = now() + NS_PER_S / 10;
	pthread_barrier_wait(&barrier);

	for (long n = (long) (intptr_t) arg; n < count; n += connections)
		buy(conn, api, n);
	PQfinish(conn);
	return NULL;
}

int
main(int argc, char **argv)
{
	pthread_t  *threads;
	FILE	   *file;

	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (argc < 7)
		fail("usage", "CONNINFO TABLE PER_SECOND COUNT CONNECTIONS FILE [PORT]");
	conninfo = argv[1];
	table = argv[2];
	per_second = atof(argv[3]);
	count = atol(argv[4]);
	connections = atol(argv[5]);
	port = argc > 7 ? atoi(argv[7]) : 0;

	purchases = calloc(count, sizeof(Purchase));
	threads = calloc(connections, sizeof(pthread_t));
	if (!purchases || !threads)
		fail("calloc", "out of memory");
	pthread_barrier_init(&barrier, NULL, connections);
	for (long i = 0; i < connections; i++)
		if (pthread_create(&threads[i], NULL, buyer, (void *) (intptr_t) i) != 0)
			fail("pthread_create", "failed");
	for (long i = 0; i < connections; i++)
		pthread_join(threads[i], NULL);

	file = fopen(argv[6], "wb");
	if (!file || fwrite(purchases, sizeof(Purchase), count, file) != (size_t) count ||
		fclose(file) != 0)
		fail("file", argv[6]);
	return 0;
}
