/*-------------------------------------------------------------------------
 *
 * consumer.c
 *	  What a user would write otherwise: a process that empties a queue table.
 *
 * Up to 1,000 rows FOR UPDATE SKIP LOCKED, one POST over a kept-alive
 * connection, DELETE, COMMIT, and again.  It is C with libpq and libcurl's easy
 * interface, so that its language is no excuse, and the server builds the JSON,
 * so that all it has to do is to put commas in between.
 *
 * usage: consumer CONNINFO URL EVENT_AS_SQL once | poll MS | listen
 *
 * "once" ends when the queue is empty, and prints how many seconds of processor
 * time it and its backend have used; "poll" looks again after that many
 * milliseconds; "listen" waits for a NOTIFY, and looks after a second anyway.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include <curl/curl.h>
#include <libpq-fe.h>

#define BATCH	"1000"

static PGconn *conn;
static CURL *curl;
static char *body;
static size_t body_length;
static size_t body_size;

static void
fail(const char *what, const char *why)
{
	fprintf(stderr, "consumer: %s: %s\n", what, why);
	exit(1);
}

static PGresult *
check(PGresult *result)
{
	ExecStatusType status = PQresultStatus(result);

	if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK)
		fail("query", PQerrorMessage(conn));
	return result;
}

static void
command(const char *sql)
{
	PQclear(check(PQexec(conn, sql)));
}

static void
append(const char *data, size_t length)
{
	if (body_length + length > body_size)
	{
		body_size = 2 * (body_length + length);
		body = realloc(body, body_size);
		if (!body)
			fail("realloc", "out of memory");
	}
	memcpy(body + body_length, data, length);
	body_length += length;
}

static void
post(void)
{
	CURLcode	code;
	long		status = 0;

	curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
	curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, (long) body_length);
	code = curl_easy_perform(curl);
	if (code != CURLE_OK)
		fail("request", curl_easy_strerror(code));
	curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
	if (status != 204)
		fail("request", "the answer is not 204");
}

/* Sends a batch; false if there was nothing to send. */
static bool
send_batch(void)
{
	PGresult   *rows;
	int			n;
	static char ids[1000 * 21 + 3];
	char	   *p = ids;
	const char *params[1] = {ids};

	command("BEGIN");
	rows = check(PQexecPrepared(conn, "claim", 0, NULL, NULL, NULL, 0));
	n = PQntuples(rows);
	body_length = 0;
	append("{\"events\":[", 11);
	*p++ = '{';
	for (int i = 0; i < n; i++)
	{
		if (i > 0)
		{
			append(",", 1);
			*p++ = ',';
		}
		p = stpcpy(p, PQgetvalue(rows, i, 0));
		append(PQgetvalue(rows, i, 1), PQgetlength(rows, i, 1));
	}
	append("]}", 2);
	stpcpy(p, "}");
	PQclear(rows);
	if (n > 0)
	{
		post();
		PQclear(check(PQexecPrepared(conn, "done", 1, params, NULL, NULL, 0)));
	}
	command("COMMIT");
	return n > 0;
}

static void
sleep_ms(long ms)
{
	struct timespec t = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&t, NULL);
}

static void
wait_for_notification(void)
{
	struct pollfd fd = {.fd = PQsocket(conn), .events = POLLIN};
	PGnotify   *notification;
	bool		any = false;

	PQconsumeInput(conn);
	while ((notification = PQnotifies(conn)) != NULL)
	{
		PQfreemem(notification);
		any = true;
	}
	if (!any)
		poll(&fd, 1, 1000);
}

static double
cpu_seconds(int pid)
{
	char		path[64];
	FILE	   *file;
	unsigned long user = 0,
				system = 0;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	file = fopen(path, "r");
	if (!file ||
		fscanf(file, "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu",
			   &user, &system) != 2)
		fail("read", path);
	fclose(file);
	return (double) (user + system) / sysconf(_SC_CLK_TCK);
}

int
main(int argc, char **argv)
{
	struct curl_slist *headers = NULL;
	char		sql[4096];
	bool		once,
				listen;
	long		interval;

	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (argc < 5)
		fail("usage", "CONNINFO URL EVENT_AS_SQL once | poll MS | listen");
	once = strcmp(argv[4], "once") == 0;
	listen = strcmp(argv[4], "listen") == 0;
	interval = argc > 5 ? atol(argv[5]) : 100;

	conn = PQconnectdb(argv[1]);
	if (PQstatus(conn) != CONNECTION_OK)
		fail("connect", PQerrorMessage(conn));
	snprintf(sql, sizeof(sql), "SELECT id, %s FROM queue ORDER BY id LIMIT " BATCH
			 " FOR UPDATE SKIP LOCKED", argv[3]);
	PQclear(check(PQprepare(conn, "claim", sql, 0, NULL)));
	PQclear(check(PQprepare(conn, "done",
							"DELETE FROM queue WHERE id = ANY ($1::bigint[])", 0, NULL)));
	if (listen)
		command("LISTEN purchases");

	curl_global_init(CURL_GLOBAL_DEFAULT);
	curl = curl_easy_init();
	headers = curl_slist_append(headers, "Content-Type: application/json");
	headers = curl_slist_append(headers, "Expect:");
	curl_easy_setopt(curl, CURLOPT_URL, argv[2]);
	curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(curl, CURLOPT_USERPWD, "bench:bench");
	curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");

	for (;;)
	{
		if (send_batch())
			continue;
		if (once)
		{
			printf("%f\n", cpu_seconds(getpid()) + cpu_seconds(PQbackendPID(conn)));
			return 0;
		}
		if (listen)
			wait_for_notification();
		else
			sleep_ms(interval);
	}
}
