/*-------------------------------------------------------------------------
 *
 * credentials.c
 *		The credentials files: the API's and the proxy's.
 *
 * A credentials file is a regular file with one line "user:password".
 * PostgreSQL's rule for ssl_key_file applies: the file belongs to the
 * server's user and nobody else has access to it, or it belongs to root and a
 * group may read it.  Links are followed, since secret stores (Kubernetes)
 * make them.  The file is opened first and judged by its descriptor, so that
 * nobody can exchange it in between.
 *
 * The worker reads the files when it is configured, and doctor() to see
 * whether they can be used.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/fd.h"

#include "send/address.h"
#include "send/credentials.h"

/* Editors of some systems put it in front of a text in UTF-8. */
#define BYTE_ORDER_MARK "\xef\xbb\xbf"

/*
 * Judges the file by its owner and mode.  Returns NULL if the file may be
 * used, and otherwise what is wrong, to be read after the setting and the
 * file's name.
 */
static const char *
problem_of_file(int fd)
{
	struct stat st;

	if (fstat(fd, &st) != 0)
		return "cannot be examined";
	if (!S_ISREG(st.st_mode))
		return "is not a regular file";
	if (st.st_uid != geteuid() && st.st_uid != 0)
		return "is not owned by the server's user or root; chown it";
	if (st.st_uid == geteuid() && (st.st_mode & (S_IRWXG | S_IRWXO)) != 0)
		return "has permissions for group or others; chmod it to 0600";
	if (st.st_uid == 0 &&
		(st.st_mode & (S_IWGRP | S_IXGRP | S_IRWXO)) != 0)
		return "is root's and has more permissions than reading for its group; chmod it to 0640";
	return NULL;
}

/*
 * Reads the file into buf, which has room for ONSIDE_CREDENTIALS_MAX bytes and
 * two more, and judges what is in it.  What frames the line is cut off: a byte
 * order mark, the line's end, and one blank line that an editor or a
 * here-document has left.
 */
static const char *
problem_of_content(int fd, char *buf)
{
	ssize_t		len = 0;
	ssize_t		n;

	/* One byte more than is allowed tells a file that is too long. */
	while ((n = read(fd, buf + len, ONSIDE_CREDENTIALS_MAX + 1 - len)) > 0)
		len += n;
	if (n < 0)
		return "cannot be read";
	if (len > ONSIDE_CREDENTIALS_MAX)
		return "is longer than " CppAsString2(ONSIDE_CREDENTIALS_MAX) " bytes";
	if (strlen(buf) != (size_t) len)
		return "contains a zero byte";

	/* The frame. */
	for (int i = 0; i < 2 && len > 0 && buf[len - 1] == '\n'; i++)
	{
		buf[--len] = '\0';
		if (len > 0 && buf[len - 1] == '\r')
			buf[--len] = '\0';
	}
	if (strncmp(buf, BYTE_ORDER_MARK, strlen(BYTE_ORDER_MARK)) == 0)
		memmove(buf, buf + strlen(BYTE_ORDER_MARK),
				len + 1 - strlen(BYTE_ORDER_MARK));

	/* What is left has to be the one line. */
	for (char *p = buf; *p != '\0'; p++)
		if ((unsigned char) *p < 0x20 || *p == 0x7f)
			return "holds more than one line or control characters";
	if (strchr(buf, ':') == NULL || buf[0] == ':')
		return "does not hold one line user:password";
	return NULL;
}

/* What was read of a file that cannot be used is wiped. */
char *
onside_credentials_read(const char *setting, const char *path, char **problem)
{
	const char *wrong;
	char	   *buf;
	int			fd;

	/* No file is named, or the name was refused. */
	if (path == NULL || path[0] == '\0')
	{
		*problem = psprintf("onside_attribution.%s is not set", setting);
		return NULL;
	}
	if (strcmp(path, ONSIDE_REFUSED_VALUE) == 0)
	{
		*problem = psprintf("onside_attribution.%s cannot be used: %s",
							setting, ONSIDE_REFUSED_PROBLEM);
		return NULL;
	}

	/* Opening a FIFO would wait for a writer; a terminal would become ours. */
	fd = OpenTransientFile(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | PG_BINARY);
	if (fd < 0)
	{
		*problem = psprintf("could not open %s \"%s\": %m", setting, path);
		return NULL;
	}

	buf = palloc0(ONSIDE_CREDENTIALS_MAX + 2);
	wrong = problem_of_file(fd);
	if (wrong == NULL)
		wrong = problem_of_content(fd, buf);
	CloseTransientFile(fd);

	if (wrong != NULL)
	{
		*problem = psprintf("%s \"%s\" %s", setting, path, wrong);
		explicit_bzero(buf, ONSIDE_CREDENTIALS_MAX + 2);
		pfree(buf);
		return NULL;
	}
	return buf;
}

void
onside_credentials_free(char *credentials)
{
	if (credentials == NULL)
		return;
	explicit_bzero(credentials, strlen(credentials));
	pfree(credentials);
}
