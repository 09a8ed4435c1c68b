/*-------------------------------------------------------------------------
 *
 * test_credentials.c
 *		What a credentials file may be, and what is taken of it.
 *
 * The promise held here: a regular file of the server's user that nobody else
 * can reach, or of root's that at most a group can read, with one line
 * user:password.  What frames the line is no part of it; everything else is,
 * byte for byte.  Whatever is wrong is said without a word of the content.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/fd.h"

#include "send/credentials.h"

/* postgres.h points these at the server's own */
#undef printf
#undef snprintf

/* ----------
 * The server's part
 * ----------
 */

int
OpenTransientFile(const char *name, int flags)
{
	return open(name, flags);
}

int
CloseTransientFile(int fd)
{
	return close(fd);
}

static int	passed = 0;
static int	failed = 0;

static void
ok(bool condition, const char *what, const char *detail)
{
	if (condition)
		passed++;
	else
		failed++;
	printf("%sok %d - %s\n", condition ? "" : "not ", passed + failed, what);
	if (!condition)
		printf("# %s\n", detail == NULL ? "NULL" : detail);
}

/* ----------
 * Files
 * ----------
 */

static char dir[] = "/tmp/test_credentials.XXXXXX";
static char file[100];

static void
write_file(const char *content, size_t len, mode_t mode)
{
	int			fd = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	if (fd < 0 || write(fd, content, len) != (ssize_t) len ||
		fchmod(fd, mode) != 0 || close(fd) != 0)
	{
		perror(file);
		exit(1);
	}
}

/* Is it refused, with this reason, and without its secret? */
static void
refused_ok(const char *path, const char *reason, const char *what)
{
	char	   *problem = NULL;
	char	   *read = onside_credentials_read("credentials_file", path,
												  &problem);

	ok(read == NULL && problem != NULL && strstr(problem, reason) != NULL &&
	   strstr(problem, "secret") == NULL, what, problem);
	if (problem != NULL)
		pfree(problem);
}

static void
content_refused_ok(const char *content, size_t len, const char *reason,
				   const char *what)
{
	write_file(content, len, 0600);
	refused_ok(file, reason, what);
}

#define CONTENT(literal) literal, sizeof(literal) - 1

static void
test_files(void)
{
	static char endless[100000];
	char		other[120];
	char	   *problem = NULL;
	char	   *read;

	refused_ok("", "credentials_file is not set", "none");
	refused_ok("/nowhere",
			   "could not open credentials_file \"/nowhere\": No such file",
			   "one that is missing");
	refused_ok(dir, "is not a regular file", "a directory");
	refused_ok("/dev/zero", "is not a regular file", "a device");
	snprintf(other, sizeof(other), "%s/fifo", dir);
	ok(mkfifo(other, 0600) == 0, "a FIFO", "cannot be made");
	refused_ok(other, "is not a regular file", "is not waited for");
	unlink(other);

	/* /etc/passwd is root's, whoever runs this. */
	refused_ok("/etc/passwd", geteuid() == 0 ? "group or others" :
			   "is root's and has more permissions than reading for its group",
			   "one of root's that all can read");
	for (mode_t mode = 1; mode < 0100; mode <<= 1)
	{
		write_file(CONTENT("shop:secret\n"), 0600 | mode);
		refused_ok(file, "permissions for group or others; chmod it to 0600",
				   "one that others can reach");
	}
	snprintf(other, sizeof(other), "%s/link", dir);
	ok(symlink(file, other) == 0, "a link", "cannot be made");
	refused_ok(other, "group or others", "is as bad as the file");
	write_file(CONTENT("shop:secret\n"), 0600);
	read = onside_credentials_read("x", other, &problem);
	ok(read != NULL, "or as good", problem);
	onside_credentials_free(read);
	unlink(other);

	content_refused_ok(CONTENT(""), "user:password", "an empty file");
	content_refused_ok(CONTENT("secret\n"), "user:password", "no password");
	content_refused_ok(CONTENT(":secret\n"), "user:password", "no user");
	content_refused_ok(CONTENT("\xef\xbb\xbf\n"), "user:password",
					   "a BOM alone");
	content_refused_ok(CONTENT("shop:secret\n\n\n"), "more than one line",
					   "two blank lines behind it");
	content_refused_ok(CONTENT("\nshop:secret\n"), "more than one line",
					   "a blank line before it");
	content_refused_ok(CONTENT("shop:secret\nshop:secret\n"),
					   "more than one line", "two lines");
	content_refused_ok(CONTENT("shop:sec\tret\n"), "control characters",
					   "a tab");
	content_refused_ok(CONTENT("shop:secret\0x"), "a zero byte", "a zero byte");
	memset(endless, 'x', sizeof(endless));
	memcpy(endless, "u:", 2);
	content_refused_ok(endless, sizeof(endless), "longer than",
					   "one without end");
	content_refused_ok(endless, ONSIDE_CREDENTIALS_MAX + 1, "longer than",
					   "a byte too much");
}

static void
test_lines(void)
{
	static const char *const lines[] = {
		"shop:secret", "shop:", "shop:   ", "shop:a:b::c:", "100%25:%3a%zz%",
		"caf\xc3\xa9:\xe2\x82\xac \xf0\x9f\x98\x80", "shop:f\xfcr alle",
		"a@b/c?d#e:f@g/h?i#j\\", "a\"b'c;d:e\"f'g;h"
	};
	static const char *const ends[] = {"", "\n", "\r\n", "\n\n", "\r\n\r\n"};
	static char longest[ONSIDE_CREDENTIALS_MAX + 1];
	char	   *problem = NULL;
	char	   *read;

	for (int i = 0; i < (int) lengthof(lines); i++)
	{
		bool		right = true;

		for (int j = 0; j < 2 * (int) lengthof(ends); j++)
		{
			char		content[200];
			int			len = snprintf(content, sizeof(content), "%s%s%s",
									   j % 2 == 0 ? "" : "\xef\xbb\xbf",
									   lines[i], ends[j / 2]);

			write_file(content, len, 0600);
			read = onside_credentials_read("credentials_file", file, &problem);
			right &= read != NULL && strcmp(read, lines[i]) == 0;
			onside_credentials_free(read);
		}
		ok(right, lines[i], problem);
	}

	memset(longest, 'x', ONSIDE_CREDENTIALS_MAX);
	memcpy(longest, "u:", 2);
	write_file(longest, ONSIDE_CREDENTIALS_MAX, 0600);
	read = onside_credentials_read("credentials_file", file, &problem);
	ok(read != NULL && strcmp(read, longest) == 0, "the longest", problem);
	onside_credentials_free(read);
}

int
main(void)
{
	if (mkdtemp(dir) == NULL)
	{
		perror(dir);
		return 1;
	}
	snprintf(file, sizeof(file), "%s/credentials", dir);
	test_files();
	test_lines();
	unlink(file);
	rmdir(dir);
	printf("%d passed, %d failed\n", passed, failed);
	return failed == 0 ? 0 : 1;
}
