/*-------------------------------------------------------------------------
 *
 * faults.c
 *		A machine whose disk is full, whose clocks can be set, and whose names
 *		move.
 *
 * Loaded into a server of the tests with LD_PRELOAD.  Files in the directory of
 * the environment variable ONSIDE_FAULTS say what is wrong at the moment:
 *
 *	 full	as long as it is there, no file below base/ can grow; each call that
 *			would have made one grow fails with ENOSPC, and adds a byte to the
 *			file "refused"
 *	 clock	so many seconds are added to the time of day
 *	 ahead	and so many to the monotonic clock
 *	 hang	as long as it is there, *.hanging.test does not resolve, for two
 *			minutes at most; then it is 127.0.0.1
 *	 address	where moving.test is
 *	 crash	its content is "PID PATH": that process dies by SIGSEGV when it writes
 *			the next time to a file with PATH in its path, and takes this file away
 *
 * *.invalid is never there.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The real function of this name. */
#define REAL(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))

static const char *
fault_path(const char *name)
{
	static __thread char path[1024];
	const char *directory = getenv("ONSIDE_FAULTS");

	if (directory == NULL)
		return NULL;
	snprintf(path, sizeof(path), "%s/%s", directory, name);
	return path;
}

/* Is the file below this directory? */
static int
is_below(int fd, const char *directory)
{
	char		link[64];
	char		path[1024];
	ssize_t		len;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	len = readlink(link, path, sizeof(path) - 1);
	if (len < 0)
		return 0;
	path[len] = '\0';
	return strstr(path, directory) != NULL;
}

static void
crash_if_wanted(int fd)
{
	const char *name = fault_path("crash");
	FILE	   *file = name == NULL ? NULL : fopen(name, "r");
	char		path[256];
	int			pid = 0;

	if (file == NULL)
		return;
	if (fscanf(file, "%d %255s", &pid, path) != 2)
		pid = 0;
	fclose(file);
	if (pid == getpid() && is_below(fd, path) && unlink(fault_path("crash")) == 0)
		raise(SIGSEGV);
}

/* Would the file have to grow, and must not?  Sets errno. */
static int
is_refused(int fd, off_t end)
{
	const char *path;
	struct stat st;
	int			refused;

	crash_if_wanted(fd);
	path = fault_path("full");

	if (path == NULL || access(path, F_OK) != 0 || !is_below(fd, "/base/") ||
		fstat(fd, &st) != 0 || end <= st.st_size)
		return 0;

	refused = open(fault_path("refused"), O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (refused >= 0)
	{
		(void) !write(refused, ".", 1);
		close(refused);
	}
	errno = ENOSPC;
	return 1;
}

static off_t
length_of(const struct iovec *iov, int n)
{
	off_t		length = 0;

	for (int i = 0; i < n; i++)
		length += iov[i].iov_len;
	return length;
}

ssize_t
pwrite(int fd, const void *buf, size_t count, off_t offset)
{
	return is_refused(fd, offset + count) ? -1 :
		REAL(pwrite) (fd, buf, count, offset);
}

ssize_t
pwrite64(int fd, const void *buf, size_t count, off_t offset)
{
	return is_refused(fd, offset + count) ? -1 :
		REAL(pwrite64) (fd, buf, count, offset);
}

ssize_t
pwritev(int fd, const struct iovec *iov, int n, off_t offset)
{
	return is_refused(fd, offset + length_of(iov, n)) ? -1 :
		REAL(pwritev) (fd, iov, n, offset);
}

ssize_t
pwritev64(int fd, const struct iovec *iov, int n, off_t offset)
{
	return is_refused(fd, offset + length_of(iov, n)) ? -1 :
		REAL(pwritev64) (fd, iov, n, offset);
}

/* These two return the error. */
int
posix_fallocate(int fd, off_t offset, off_t length)
{
	return is_refused(fd, offset + length) ? ENOSPC :
		REAL(posix_fallocate) (fd, offset, length);
}

int
posix_fallocate64(int fd, off_t offset, off_t length)
{
	return is_refused(fd, offset + length) ? ENOSPC :
		REAL(posix_fallocate64) (fd, offset, length);
}

/* The file's content; "" if there is none. */
static const char *
text_of(const char *name, char *text, int size)
{
	const char *path = fault_path(name);
	int			fd = path == NULL ? -1 : open(path, O_RDONLY);
	ssize_t		len = fd < 0 ? -1 : read(fd, text, size - 1);

	if (fd >= 0)
		close(fd);
	text[len > 0 ? len : 0] = '\0';
	return text;
}

int
clock_gettime(clockid_t clock, struct timespec *now)
{
	static __typeof__(&clock_gettime) real;
	char		text[32];
	int			result;

	if (real == NULL)
		real = REAL(clock_gettime);
	result = real(clock, now);
	if (clock == CLOCK_MONOTONIC)
		now->tv_sec += atol(text_of("ahead", text, sizeof(text)));
	return result;
}

int
gettimeofday(struct timeval *tv, void *tz)
{
	struct timespec now;
	char		text[32];

	(void) tz;
	clock_gettime(CLOCK_REALTIME, &now);
	tv->tv_sec = now.tv_sec + atol(text_of("clock", text, sizeof(text)));
	tv->tv_usec = now.tv_nsec / 1000;
	return 0;
}

static int
ends_with(const char *name, const char *end)
{
	size_t		len = name == NULL ? 0 : strlen(name);

	return len > strlen(end) && strcmp(name + len - strlen(end), end) == 0;
}

int
getaddrinfo(const char *node, const char *service,
			const struct addrinfo *hints, struct addrinfo **res)
{
	char		text[64];

	if (ends_with(node, ".invalid"))
		return EAI_NONAME;
	if (ends_with(node, ".hanging.test"))
	{
		const char *hang = fault_path("hang");

		for (int i = 0; i < 12000 && access(hang, F_OK) == 0; i++)
			usleep(10000);
		node = "127.0.0.1";
	}
	else if (node != NULL && strcmp(node, "moving.test") == 0)
		node = text_of("address", text, sizeof(text));
	return REAL(getaddrinfo) (node, service, hints, res);
}
