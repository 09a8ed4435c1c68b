/*-------------------------------------------------------------------------
 *
 * sink.c
 *	  An API that does nothing but read events and answer 204.
 *
 * The benchmarks measure who sends, so what receives has to be too quick to
 * matter: one thread, epoll, HTTP/1.1 with keep-alive and Content-Length, and
 * nothing else of HTTP.  It understands no JSON.  It counts events by their
 * braces: a purchase has two, its payload's and its own, and a request one more.
 *
 *	  POST anything		a batch of events: 204, after the delay
 *	  GET /reset?delay_us=N&stamps=0|1	zeroes the counters; "stamps" makes it
 *						remember when each event arrived
 *	  GET /counts		what came since, as JSON, and when (CLOCK_MONOTONIC, ns)
 *	  GET /arrivals		the stamps since the last such request: pairs of int64,
 *						the number in the last 12 digits of the event_id and when
 *						the whole body had been read
 *
 * Listens on a free port of 127.0.0.1, prints its number, and ends with its
 * parent.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

/* The API's limit is 1 MB; headers come on top. */
#define REQUEST_MAX		(1024 * 1024 + 16384)
#define CONNECTIONS_MAX 1024

#define ANSWER			"HTTP/1.1 204 No Content\r\n\r\n"
#define EVENT_ID		"\"event_id\":\""
#define UUID_LENGTH		36

typedef struct Connection
{
	int			fd;
	size_t		length;			/* bytes in request */
	size_t		head;			/* length of the head, 0 until it is complete */
	size_t		total;			/* length of head and body */
	int64_t		due;			/* when to answer */
	struct Connection *next;	/* in the queue of those to be answered */
	char		request[REQUEST_MAX];
} Connection;

typedef struct Stamp
{
	int64_t		id;
	int64_t		arrived;
} Stamp;

static int	epoll_fd;
static int	timer_fd;
static int64_t delay;
static bool keep_stamps;

/* The delay is the same for all, so the queue is in the order of "due". */
static Connection *queue_head;
static Connection **queue_tail = &queue_head;

static struct
{
	int64_t		requests;
	int64_t		answered;
	int64_t		events;
	int64_t		bytes;
	int64_t		first;			/* when the first request had been read */
	int64_t		last;			/* when the last one was answered */
} counts;

static Stamp *stamps;
static size_t stamps_used;
static size_t stamps_size;

static void
fail(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void
watch(int fd, void *data)
{
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = data};

	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
		fail("epoll_ctl");
}

/* A peer that does not read is not waited for: our answers are short. */
static bool
send_all(int fd, const char *data, size_t length)
{
	while (length > 0)
	{
		ssize_t		sent = send(fd, data, length, MSG_NOSIGNAL);

		if (sent < 0 && errno == EINTR)
			continue;
		if (sent <= 0)
			return false;
		data += sent;
		length -= sent;
	}
	return true;
}

static void
remember_arrivals(const char *body, size_t length, int64_t arrived)
{
	const char *end = body + length;
	const char *p = body;

	while ((p = memmem(p, end - p, EVENT_ID, strlen(EVENT_ID))) != NULL)
	{
		char		number[13];

		p += strlen(EVENT_ID);
		if (end - p < UUID_LENGTH)
			return;
		memcpy(number, p + UUID_LENGTH - 12, 12);
		number[12] = '\0';
		if (stamps_used == stamps_size)
		{
			stamps_size = stamps_size ? 2 * stamps_size : 65536;
			stamps = realloc(stamps, stamps_size * sizeof(Stamp));
			if (!stamps)
				fail("realloc");
		}
		stamps[stamps_used++] = (Stamp) {strtoll(number, NULL, 16), arrived};
	}
}

static int64_t
count_braces(const char *data, size_t length)
{
	int64_t		braces = 0;

	for (size_t i = 0; i < length; i++)
		braces += data[i] == '{';
	return braces;
}

static int64_t
parameter(const char *request, const char *name)
{
	const char *p = strstr(request, name);

	return p ? strtoll(p + strlen(name), NULL, 10) : 0;
}

static bool
answer_control(Connection *c)
{
	char		json[256] = "";
	const char *body = json;
	size_t		length;
	char		head[128];
	bool		sent;

	c->request[c->head - 1] = '\0';
	if (strncmp(c->request, "GET /arrivals", 13) == 0)
	{
		body = (char *) stamps;
		length = stamps_used * sizeof(Stamp);
		stamps_used = 0;
	}
	else
	{
		if (strncmp(c->request, "GET /reset", 10) == 0)
		{
			memset(&counts, 0, sizeof(counts));
			stamps_used = 0;
			delay = 1000 * parameter(c->request, "delay_us=");
			keep_stamps = parameter(c->request, "stamps=") != 0;
		}
		length = snprintf(json, sizeof(json),
						  "{\"requests\": %lld, \"answered\": %lld,"
						  " \"events\": %lld, \"bytes\": %lld,"
						  " \"first\": %lld, \"last\": %lld}",
						  (long long) counts.requests,
						  (long long) counts.answered,
						  (long long) counts.events,
						  (long long) counts.bytes,
						  (long long) counts.first,
						  (long long) counts.last);
	}
	snprintf(head, sizeof(head),
			 "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", length);
	sent = send_all(c->fd, head, strlen(head)) &&
		send_all(c->fd, body, length);
	c->length = 0;
	c->head = 0;
	return sent;
}

static bool
answer_events(Connection *c)
{
	size_t		rest = c->length - c->total;

	counts.last = now();
	counts.answered++;
	memmove(c->request, c->request + c->total, rest);
	c->length = rest;
	c->head = 0;
	return send_all(c->fd, ANSWER, strlen(ANSWER));
}

static void
close_connection(Connection *c)
{
	close(c->fd);
	free(c);
}

static void
set_timer(void)
{
	struct itimerspec t = {0};

	if (queue_head)
	{
		t.it_value.tv_sec = queue_head->due / 1000000000;
		t.it_value.tv_nsec = queue_head->due % 1000000000;
	}
	if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &t, NULL) != 0)
		fail("timerfd_settime");
}

static void
answer_those_due(void)
{
	int64_t		time = now();

	while (queue_head && queue_head->due <= time)
	{
		Connection *c = queue_head;

		queue_head = c->next;
		if (!queue_head)
			queue_tail = &queue_head;
		if (answer_events(c))
			watch(c->fd, c);
		else
			close_connection(c);
	}
	set_timer();
}

/* The whole request is there.  False closes the connection. */
static bool
serve(Connection *c)
{
	int64_t		time = now();
	const char *body = c->request + c->head;
	size_t		length = c->total - c->head;

	if (strncmp(c->request, "POST ", 5) != 0)
		return answer_control(c);

	if (counts.requests++ == 0)
		counts.first = time;
	counts.bytes += length;
	counts.events += (count_braces(body, length) - 1) / 2;
	if (keep_stamps)
		remember_arrivals(body, length, time);
	if (delay == 0)
		return answer_events(c);

	/* Not read from until it is answered, so that it cannot go away. */
	epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
	c->due = time + delay;
	c->next = NULL;
	*queue_tail = c;
	queue_tail = &c->next;
	if (queue_head == c)
		set_timer();
	return true;
}

/* Is a whole request there?  Sets head and total. */
static bool
complete(Connection *c)
{
	if (c->head == 0)
	{
		char	   *end = memmem(c->request, c->length, "\r\n\r\n", 4);
		char	   *field;

		if (!end)
			return false;
		*end = '\0';
		field = strcasestr(c->request, "\nContent-Length:");
		c->head = end + 4 - c->request;
		c->total = c->head +
			(field ? strtoull(field + strlen("\nContent-Length:"), NULL, 10) : 0);
		if (c->total > REQUEST_MAX)
			c->total = REQUEST_MAX + 1;
	}
	return c->length >= c->total;
}

static bool
receive(Connection *c)
{
	ssize_t		got = recv(c->fd, c->request + c->length,
						   REQUEST_MAX - c->length, 0);

	if (got < 0 && (errno == EINTR || errno == EAGAIN))
		return true;
	if (got <= 0)
		return false;
	c->length += got;
	if (complete(c))
		return serve(c);
	return c->length < REQUEST_MAX;
}

static void
accept_connection(int listener)
{
	int			fd = accept(listener, NULL, NULL);
	int			on = 1;
	Connection *c;

	if (fd < 0)
		return;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	c = calloc(1, sizeof(Connection));
	if (!c)
		fail("calloc");
	c->fd = fd;
	watch(fd, c);
}

static int
start_listening(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t	length = sizeof(address);
	int			fd = socket(AF_INET, SOCK_STREAM, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || bind(fd, (struct sockaddr *) &address, length) != 0 ||
		listen(fd, CONNECTIONS_MAX) != 0 ||
		getsockname(fd, (struct sockaddr *) &address, &length) != 0)
		fail("could not listen");
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	return fd;
}

int
main(void)
{
	int			listener;
	int			timer_mark;

	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() == 1)
		return 1;
	epoll_fd = epoll_create1(0);
	timer_fd = timerfd_create(CLOCK_MONOTONIC, 0);
	if (epoll_fd < 0 || timer_fd < 0)
		fail("could not set up");
	listener = start_listening();
	watch(listener, NULL);
	watch(timer_fd, &timer_mark);

	for (;;)
	{
		struct epoll_event events[64];
		int			n = epoll_wait(epoll_fd, events, 64, -1);

		for (int i = 0; i < n; i++)
		{
			void	   *data = events[i].data.ptr;

			if (data == NULL)
				accept_connection(listener);
			else if (data == &timer_mark)
			{
				uint64_t	expirations;

				if (read(timer_fd, &expirations, sizeof(expirations)) > 0)
					answer_those_due();
			}
			else if (!receive(data))
				close_connection(data);
		}
	}
}
