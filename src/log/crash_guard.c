/*-------------------------------------------------------------------------
 *
 * crash_guard.c
 *		No process of ours crashes in a loop.
 *
 * A worker that dies by a signal makes the postmaster end all sessions and
 * recover.  The worker would be started again a second later, and meet the same
 * event.  So each of our processes keeps a record of itself in a file: that it
 * runs, what it is doing, and when its predecessors crashed.  Every orderly end
 * takes the mark "running" away.  Whoever is about to start the next process,
 * and finds the mark, counts a crash.  That is the launcher; the launcher
 * itself does so for its own predecessor.  After the third crash within ten
 * minutes no process is started for a quarter of an hour, or until somebody
 * calls resume(); the view "status" says so.
 *
 * During that wait no worker runs.  A worker that waits would be worse:
 * connecting to the database may be what crashes, and a connected worker would
 * stand in the way of DROP DATABASE. The view "status" reads this record and no
 * table, since reading a table may be what crashes.
 *
 * Only time in which a process of ours has run counts for the ten minutes.
 * Otherwise a server whose recovery takes longer than ten minutes would crash
 * for ever.  The wait does not count either, so the first crash after a wait
 * leads to the next wait.
 *
 * An orderly end is
 *
 * - proc_exit(), for whatever reason, the postmaster's death included:
 *	 onside_crash_guard_end() is called when the process leaves its slot, before
 *	 anybody can start another process;
 *
 * - SIGQUIT, which the postmaster sends when another process has crashed, or to
 *	 shut down immediately; and SIGABRT if it comes from the postmaster, which
 *	 send_abort_for_crash has it send instead.  A handler takes the mark away.
 *
 * For SIGSEGV and its like the handler writes down which signal it was and
 * where the process was, and lets the signal do what it does without us.
 * Nobody can handle SIGKILL; then the file has what was written at the last
 * step.  The handler opens the file by its name, because in a process with
 * damaged memory a file descriptor may be that of a table.
 *
 * If the machine loses power, or all processes are killed at once, the mark
 * stays and counts as one crash, which does no harm.  The file is never synced.
 * It is in pg_stat_tmp, which base backups and pg_rewind leave out, since it is
 * about the processes of this data directory.  A file that cannot be read
 * counts as missing.  If the file cannot be written, the server's log says so,
 * and nothing stops a crash loop.
 *
 * No locks: each file has one writer at a time, the process itself while it
 * runs, and otherwise whoever starts it or calls resume().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "log/crash_guard.h"

/* After this number of crashes within this time of running (us) ... */
#define MAX_CRASHES		3
#define CRASH_PERIOD	(INT64CONST(10) * 60 * USECS_PER_SEC)

/* ... no process is started for this long; ms. */
#define CRASH_WAIT		(15 * 60 * 1000)

#define FILE_PREFIX		"onside_attribution."
#define FILE_SUFFIX		".run"

/*
 * The file's content.  test/t/260_crash_loop.pl knows it, too: integers in the
 * machine's byte order, without gaps.
 */
#define RECORD_MAGIC	0x4f415231	/* to change with Record */

typedef struct Record
{
	uint32		magic;
	uint32		running;		/* 1 until the process ends in an orderly way */
	int32		signal;			/* that ended it; 0 for SIGKILL, or none */
	int32		step;			/* OnsideStep */
	uint64		xid;			/* where in the log; 0 for no place */
	int64		id;
	int64		ran;			/* how long these processes ran in all; us */
	TimestampTz wait_until;		/* no process before this; 0 for no wait */
	TimestampTz crashed_at[MAX_CRASHES];	/* newest last; 0 for none */
	int64		crashed_ran[MAX_CRASHES];	/* what "ran" was then */
} Record;

static const char *const step_names[] = {
	"starting", "waiting", "reading the outbox", "sending",
	"moving events to dead_letter", "emptying the outbox",
	"writing how far delivery has come", "setting events aside",
	"reading the events that are aside", "looking for dead letters that are due",
	"counting what is pending", "looking whether something has changed",
};

/* The signals by which a process tells that it is broken. */
static const int crash_signals[] = {SIGQUIT, SIGABRT, SIGSEGV, SIGBUS, SIGILL};

/* This process's own record, the file's name, and the file. */
static Record mine;
static char my_path[MAXPGPATH];
static int	my_fd = -1;
static int64 began_at;			/* onside_clock() */
static int64 ran_before;		/* "ran" of its predecessors */

/* ----------
 * The file
 * ----------
 */

/* The name of a process's file. */
static void
make_path(char *path, Oid process)
{
	snprintf(path, MAXPGPATH, "%s/" FILE_PREFIX "%u" FILE_SUFFIX,
			 PG_STAT_TMP_DIR, process);
}

/*
 * Reads the record of a process.  False if there is none.  Raises no error,
 * takes no lock and no memory: a commit callback calls this, too.
 */
static bool
read_record(Oid process, Record *record)
{
	char		path[MAXPGPATH];
	int			fd;
	bool		ok;

	make_path(path, process);

	/* No PostgreSQL function: those can fail with an error. */
	fd = open(path, O_RDONLY | PG_BINARY, 0);
	if (fd < 0)
		return false;

	/* Another version may have written the file, or a crash cut it. */
	ok = read(fd, record, sizeof(Record)) == sizeof(Record) &&
		record->magic == RECORD_MAGIC &&
		record->step >= 0 && record->step < (int) lengthof(step_names);
	close(fd);
	return ok;
}

/* Writes the file from its beginning.  Safe in a signal handler. */
static bool
write_record(int fd, const Record *record)
{
	return pwrite(fd, record, sizeof(Record), 0) == sizeof(Record);
}

/* Writes into the process's file if there is one.  Safe in a signal handler. */
static void
overwrite_file(const char *path, const Record *record)
{
	int			fd = open(path, O_WRONLY | PG_BINARY, 0);

	if (fd >= 0)
	{
		(void) write_record(fd, record);
		close(fd);
	}
}

/* ----------
 * The process itself
 * ----------
 */

/*
 * Signal handler: writes down how the process ends, and lets it end.
 * Everything in here is allowed in a signal handler.
 */
static void
end_by_signal(int signo, siginfo_t *info, void *context)
{
	bool		told_to = signo == SIGQUIT ||
		(info->si_code == SI_USER && info->si_pid == PostmasterPid);

	/* The mark goes if the postmaster has asked for this end. */
	mine.running = mine.running && !told_to;
	mine.signal = signo;
	overwrite_file(my_path, &mine);

	/* End as PostgreSQL's own handler of SIGQUIT does. */
	if (signo == SIGQUIT)
		_exit(2);

	/* The signal is blocked until this function has returned. */
	signal(signo, SIG_DFL);
	raise(signo);
}

/* Opens the file, and makes it if it is not there. */
static bool
open_file(void)
{
	my_fd = BasicOpenFile(my_path, O_RDWR | O_CREAT | PG_BINARY);
	if (my_fd < 0)
		return false;

	/* PostgreSQL counts descriptors that it has not opened itself. */
	ReserveExternalFD();
	return write_record(my_fd, &mine);
}

/*
 * Goes on where the predecessor's record ends.  The handlers are installed
 * before the file says "running", so that a SIGQUIT can take the mark away.
 */
void
onside_crash_guard_begin(Oid process)
{
	struct sigaction action = {0};

	make_path(my_path, process);
	if (!read_record(process, &mine))
		memset(&mine, 0, sizeof(mine));

	/* Keep what the predecessors have left: crashes, and time. */
	mine.magic = RECORD_MAGIC;
	mine.running = 1;
	mine.signal = 0;
	mine.step = ONSIDE_STEP_STARTING;
	mine.xid = 0;
	mine.id = 0;
	ran_before = mine.ran;
	began_at = onside_clock();

	/* Block all signals while a handler runs. */
	action.sa_sigaction = end_by_signal;
	action.sa_flags = SA_SIGINFO;
	sigfillset(&action.sa_mask);
	for (int i = 0; i < (int) lengthof(crash_signals); i++)
		sigaction(crash_signals[i], &action, NULL);

	/* Without a file the process runs all the same. */
	if (!open_file())
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", my_path),
				 errdetail("If this process of onside_attribution crashes, nothing keeps it from crashing again.")));
}

/*
 * Costs a system call of a microsecond.  So the worker calls this once for a
 * request, not once for an event.
 */
void
onside_crash_guard_step(OnsideStep step, const OnsidePosition *pos)
{
	mine.step = step;
	mine.xid = 0;
	if (pos != NULL)
		onside_crash_guard_at(pos);
	mine.ran = ran_before + onside_clock() - began_at;
	(void) write_record(my_fd, &mine);
}

/*
 * Notes the place in memory alone, for the signal handler.  The worker calls
 * this for each event, so it must cost no more than a store.
 */
void
onside_crash_guard_at(const OnsidePosition *pos)
{
	mine.xid = U64FromFullTransactionId(pos->xid);
	mine.id = pos->id;
}

void
onside_crash_guard_end(void)
{
	mine.running = 0;
	onside_crash_guard_step(ONSIDE_STEP_STARTING, NULL);
}

/* ----------
 * Who starts it
 * ----------
 */

/*
 * Called before a process is started.  If the record of its predecessor says
 * "running", the predecessor has crashed.  Writes the crash down, and the wait
 * if there were too many crashes.
 */
bool
onside_crash_guard_look(Oid process)
{
	const int	last = MAX_CRASHES - 1;
	Record		record;
	char		path[MAXPGPATH];

	if (!read_record(process, &record) || !record.running)
		return false;

	/* Take the mark away, so that the crash counts once. */
	record.running = 0;

	/* Forget the oldest crash, and add this one. */
	for (int i = 0; i < last; i++)
	{
		record.crashed_at[i] = record.crashed_at[i + 1];
		record.crashed_ran[i] = record.crashed_ran[i + 1];
	}
	record.crashed_at[last] = GetCurrentTimestamp();
	record.crashed_ran[last] = record.ran;

	/* Is the oldest one that we know recent enough for a wait? */
	if (record.crashed_at[0] != 0 &&
		record.ran - record.crashed_ran[0] < CRASH_PERIOD)
		record.wait_until = TimestampTzPlusMilliseconds(record.crashed_at[last],
														CRASH_WAIT);

	make_path(path, process);
	overwrite_file(path, &record);
	return true;
}

/* Milliseconds until the record lets a process start. */
static long
remaining_wait(const Record *record)
{
	long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
													   record->wait_until);

	/* A longer wait means that the clock was set back. */
	return record->wait_until == 0 || left > CRASH_WAIT ? 0 : left;
}

long
onside_crash_guard_wait(Oid process)
{
	Record		record;

	return read_record(process, &record) ? remaining_wait(&record) : 0;
}

/* What ended the process, and where the process was then. */
static char *
describe_crash(const Record *record)
{
	char	   *place = record->xid == 0 ? "" :
		psprintf(" (at or behind the event with xid %llu, id %lld)",
				 (unsigned long long) record->xid, (long long) record->id);

	return psprintf("%s while %s%s",
					record->signal == 0 ? "killed (signal 9)" :
					psprintf("ended by signal %d (%s)", record->signal,
							 pg_strsignal(record->signal)),
					step_names[record->step], place);
}

void
onside_crash_guard_log(Oid process, const char *whose)
{
	Record		record;

	if (!read_record(process, &record))
		return;
	ereport(LOG,
			(errmsg("onside_attribution: %s has crashed", whose),
			 errdetail("It was %s.", describe_crash(&record)),
			 remaining_wait(&record) == 0 ? 0 :
			 errhint("It has crashed %d times in a short time and is started again in %d minutes, or after SELECT onside_attribution.resume().",
					 MAX_CRASHES, CRASH_WAIT / 60000)));
}

/* ----------
 * Sessions
 * ----------
 */

/* A time in words, to the second. */
static char *
print_moment(TimestampTz t)
{
	return pstrdup(timestamptz_to_str(t - t % USECS_PER_SEC));
}

/* The launcher's wait comes first, since no worker starts without it. */
char *
onside_crash_guard_reason(void)
{
	const Oid	processes[] = {InvalidOid, MyDatabaseId};

	for (int i = 0; i < (int) lengthof(processes); i++)
	{
		Record		record;

		/* Say how often, where, and what ends the wait. */
		if (read_record(processes[i], &record) && remaining_wait(&record) > 0)
			return psprintf("%s has crashed %d times since %s and is not started, because each crash ends all sessions of the server; the last time it was %s; sending goes on by itself at %s, or at once after resume(); events are recorded and not counted",
							OidIsValid(processes[i]) ? "the worker" : "the launcher",
							MAX_CRASHES, print_moment(record.crashed_at[0]),
							describe_crash(&record),
							print_moment(record.wait_until));
	}
	return NULL;
}

/*
 * Without its file, a process has no wait.  During a wait the process does not
 * run, so nobody else writes the file.
 */
void
onside_crash_guard_release(void)
{
	const Oid	processes[] = {InvalidOid, MyDatabaseId};

	for (int i = 0; i < (int) lengthof(processes); i++)
	{
		char		path[MAXPGPATH];

		make_path(path, processes[i]);
		if (onside_crash_guard_wait(processes[i]) > 0)
			(void) unlink(path);
	}
}

/* ----------
 * Databases that are gone
 * ----------
 */

/* Nobody would ever read the files of databases that are gone. */
void
onside_crash_guard_sweep(List *databases)
{
	DIR		   *dir = AllocateDir(PG_STAT_TMP_DIR);
	struct dirent *entry;

	while ((entry = ReadDirExtended(dir, PG_STAT_TMP_DIR, LOG)) != NULL)
	{
		char		path[MAXPGPATH];
		Oid			process;

		/*
		 * Keep other files, the launcher's, and those of databases that exist.
		 */
		if (sscanf(entry->d_name, FILE_PREFIX "%u" FILE_SUFFIX, &process) != 1 ||
			!OidIsValid(process) || list_member_oid(databases, process))
			continue;
		make_path(path, process);
		(void) unlink(path);
	}
	FreeDir(dir);
}
