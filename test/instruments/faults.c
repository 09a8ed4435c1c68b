/*-------------------------------------------------------------------------
 *
 * faults.c
 *		A machine whose disk is full, and whose clock can be set.
 *
 * Loaded into a server of the tests with LD_PRELOAD.  Two files in the directory
 * of the environment variable ONSIDE_FAULTS say what is wrong at the moment:
 *
 *	 full	as long as it is there, no file below base/ can grow; each call that
 *			would have made one grow fails with ENOSPC, and adds a byte to the
 *			file "refused"
 *	 clock	so many seconds are added to the time of day
 *	 crash	its content is "PID PATH": that process dies by SIGSEGV when it writes
 *			the next time to a file with PATH in its path, and takes this file away
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
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

int
gettimeofday(struct timeval *tv, void *tz)
{
	const char *path = fault_path("clock");
	int			fd = path == NULL ? -1 : open(path, O_RDONLY);
	struct timespec now;
	char		text[32] = "";

	(void) tz;
	clock_gettime(CLOCK_REALTIME, &now);
	tv->tv_sec = now.tv_sec;
	tv->tv_usec = now.tv_nsec / 1000;
	if (fd >= 0)
	{
		if (read(fd, text, sizeof(text) - 1) > 0)
			tv->tv_sec += atol(text);
		close(fd);
	}
	return 0;
}
