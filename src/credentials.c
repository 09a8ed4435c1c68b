/*-------------------------------------------------------------------------
 *
 * credentials.c
 *		The credentials file.
 *
 * One line "user:password" in a regular file that belongs to the server's user
 * and that nobody else has access to, as for the server's own private keys.
 * The file is opened first and judged by its descriptor, so that it cannot be
 * exchanged in between.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/fd.h"

#include "credentials.h"

/* RFC 7617 sets no limit; no real user:password is near this one. */
#define MAX_CREDENTIALS 4096

/* Judges the file; returns NULL if it may be used. */
static char *
problem_of_file(int fd, const char *path)
{
	struct stat st;

	if (fstat(fd, &st) != 0)
		return psprintf("could not stat credentials_file \"%s\": %m", path);
	if (!S_ISREG(st.st_mode))
		return psprintf("credentials_file \"%s\" is not a regular file", path);
	if (st.st_uid != geteuid())
		return psprintf("credentials_file \"%s\" is not owned by the server's user; chown it",
						path);
	if ((st.st_mode & (S_IRWXG | S_IRWXO)) != 0)
		return psprintf("credentials_file \"%s\" has permissions for group or others; chmod it to 0600",
						path);
	return NULL;
}

/* Judges the content, and cuts off the end of the line. */
static char *
problem_of_content(char *buf, const char *path)
{
	size_t		len = strlen(buf);
	char	   *colon;

	if (len > 0 && buf[len - 1] == '\n')
		buf[--len] = '\0';
	if (len > 0 && buf[len - 1] == '\r')
		buf[--len] = '\0';

	colon = strchr(buf, ':');
	if (colon == NULL || colon == buf || colon[1] == '\0')
		return psprintf("credentials_file \"%s\" does not hold one line user:password",
						path);
	for (char *p = buf; *p != '\0'; p++)
		if ((unsigned char) *p < 0x20 || *p == 0x7f)
			return psprintf("credentials_file \"%s\" holds more than one line or control characters",
							path);
	return NULL;
}

char *
onside_credentials_read(const char *path, char **problem)
{
	char	   *buf;
	int			fd;
	ssize_t		len;

	if (path == NULL || path[0] == '\0')
	{
		*problem = pstrdup("onside_attribution.credentials_file is not set");
		return NULL;
	}

	/* It could be a FIFO, or a terminal. */
	fd = OpenTransientFile(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | PG_BINARY);
	if (fd < 0)
	{
		*problem = psprintf("could not open credentials_file \"%s\": %m", path);
		return NULL;
	}

	*problem = problem_of_file(fd, path);
	if (*problem != NULL)
	{
		CloseTransientFile(fd);
		return NULL;
	}

	buf = palloc0(MAX_CREDENTIALS + 1);
	len = read(fd, buf, MAX_CREDENTIALS + 1);
	if (len < 0)
		*problem = psprintf("could not read credentials_file \"%s\": %m", path);
	else if (len > MAX_CREDENTIALS)
		*problem = psprintf("credentials_file \"%s\" is longer than %d bytes",
							path, MAX_CREDENTIALS);
	else if (strlen(buf) != (size_t) len)
		*problem = psprintf("credentials_file \"%s\" contains a zero byte",
							path);
	else
		*problem = problem_of_content(buf, path);
	CloseTransientFile(fd);

	if (*problem != NULL)
	{
		explicit_bzero(buf, MAX_CREDENTIALS + 1);
		pfree(buf);
		return NULL;
	}
	return buf;
}
