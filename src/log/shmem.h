/*-------------------------------------------------------------------------
 *
 * shmem.h
 *		What the launcher, the workers and all backends share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_SHMEM_H
#define ONSIDE_SHMEM_H

#include "access/transam.h"
#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"

#include "log/counters.h"

#define ONSIDE_REASON_MAX		512
#define ONSIDE_ERROR_MAX		1024

/* The states of the view "status", in the order of state_names in shmem.c. */
typedef enum OnsideState
{
	ONSIDE_NOT_RUNNING,
	ONSIDE_IDLE,
	ONSIDE_SENDING,
	ONSIDE_BACKING_OFF,
	ONSIDE_PAUSED,
	ONSIDE_UNAUTHORIZED,
	ONSIDE_MISCONFIGURED,
	ONSIDE_REFUSING,
	ONSIDE_DISABLED,
} OnsideState;

/* Why a worker is woken; bits of OnsideSlot.wakeup. */
#define ONSIDE_WAKE_COMMIT		0x01	/* events were committed */
#define ONSIDE_WAKE_CONTROL		0x02	/* table "control" has changed */
#define ONSIDE_WAKE_RESUME		0x04	/* end any wait */
#define ONSIDE_WAKE_FLUSH		0x08	/* somebody waits in flush() */
#define ONSIDE_WAKE_CHECK		0x10	/* has the extension changed? */
#define ONSIDE_WAKE_WITHDRAWN	0x20	/* "epoch" was raised */

/*
 * What the worker publishes for the view "status".
 *
 * The slot's lock guards all of it.  The slot's worker writes it in each turn
 * of its loop.  Nobody else writes while a worker is in the slot, so the worker
 * itself may read without the lock.  While no worker is in the slot, the
 * launcher writes "reason", and onside_slot_reset() clears everything.  A copy
 * that was taken under the lock shows the numbers of one moment, at most one
 * turn of the worker's loop ago.
 */
typedef struct OnsideStatus
{
	OnsideState state;			/* ONSIDE_NOT_RUNNING also while a worker
								 * starts */
	char		reason[ONSIDE_REASON_MAX];
	bool		objects_differ; /* see version.h; the numbers below are not
								 * kept then.  Stays when the worker leaves,
								 * so that its successor does not log it
								 * again */
	int64		uncounted;		/* see onside_slot_pending() */
	int64		settled;		/* events since the slot was taken */
	int			in_flight;		/* requests under way */
	int64		delivered;		/* cumulative, as in delivery_cursor */
	int64		dead_lettered;
	int64		requests;
	int64		retries;
	TimestampTz oldest_recorded_at; /* of what is pending; 0 if nothing is */
	TimestampTz last_success_at;	/* 0 for never */
	TimestampTz last_error_at;	/* 0 for never */
	TimestampTz next_attempt_at;	/* 0 if not waiting */
	char		last_error[ONSIDE_ERROR_MAX];
} OnsideStatus;

/* How the launcher and its workers stand with a database; see OnsideService. */
typedef enum OnsideSlotState
{
	ONSIDE_SLOT_FREE,			/* no worker is wanted */
	ONSIDE_SLOT_WANTED,			/* a worker is to be started */
	ONSIDE_SLOT_STARTING,		/* a worker is registered, or looks around */
	ONSIDE_SLOT_RUNNING,		/* the worker has found the extension */
	ONSIDE_SLOT_ABSENT,			/* a worker found no extension and left */
} OnsideSlotState;

/*
 * How a database is served.  service.c alone reads and writes this, under the
 * lock of all slots.  Others get a copy, which may be outdated at once.
 *
 * The states, and who makes each step:
 *
 *		FREE -> WANTED			onside_service_request(), called by the commit
 *								of CREATE EXTENSION, and by the launcher for a
 *								database that it does not know
 *		WANTED -> STARTING		the launcher, about to register a worker
 *		STARTING -> WANTED		the launcher, when the worker could not be
 *								registered or has ended without taking the slot
 *		STARTING -> RUNNING		the worker, when it has found the extension
 *		STARTING or RUNNING -> WANTED	the worker, when it leaves
 *		STARTING or RUNNING -> ABSENT	the worker, when it leaves because there
 *								is no extension (any more)
 *		ABSENT -> WANTED		onside_service_request()
 *		ABSENT or WANTED -> FREE	the launcher: the database loses its slot
 *
 * A worker is in the slot (worker_pid is set) only in STARTING and RUNNING.  It
 * takes the slot in STARTING or not at all, and the launcher takes no slot out
 * of STARTING while a worker is in the slot.  So in WANTED, ABSENT and FREE
 * only the launcher, and whoever requests or holds the slot, changes it.
 *
 * A slot in FREE has no database, unless a command holds it; see "holds".
 *
 * Four flags go beside the states:
 *
 * "wanted_again" is for a CREATE EXTENSION that commits while a worker is about
 * to find no extension.  A request sets it in any state but FREE and ABSENT.
 * The worker clears it when it takes the slot, before it looks for the
 * extension, and so sees what was committed before.  If the flag is set when
 * the worker leaves as ABSENT, the extension was made after that look, and the
 * state becomes WANTED instead.
 *
 * "orderly" says how the last worker ended.  The worker clears it when it takes
 * the slot.  It sets it in the step with which it leaves, if somebody has asked
 * it to leave or if a successor shall start over.  A worker that is turned away
 * from a closed slot sets it, too.  If the flag is set, the launcher starts the
 * next worker at once; otherwise it waits as after a failure.
 *
 * "holds" counts the commands (DROP DATABASE and its like) that keep workers
 * out.  While it is not 0, no worker takes the slot, a worker that is in the
 * slot leaves, and the launcher neither starts a worker nor frees the slot.  If
 * the database has no slot, the command takes a free slot and holds that.  The
 * state stays FREE, and the last command that lets go gives the slot back.
 *
 * "dismissed" is set by the launcher if no worker can connect to the database:
 * it was dropped, became a template or allows no connections.  No worker takes
 * the slot, a worker that is in the slot leaves, and then the launcher frees
 * the slot.
 *
 * A slot that is held or dismissed is closed; see onside_service_is_closed().
 */
typedef struct OnsideService
{
	OnsideSlotState state;
	pid_t		worker_pid;		/* of the worker that is in the slot, or 0.
								 * Whoever holds the lock knows that this
								 * process is alive: it leaves the slot, under
								 * the lock, before it ends */
	bool		wanted_again;
	bool		orderly;
	bool		found;			/* a worker has found the extension since the
								 * database got the slot; set by the worker */
	int			holds;
	bool		dismissed;
} OnsideService;

/*
 * What belongs to one database.  Each field is guarded by the lock of all
 * slots, or by the slot's own lock, or is a single word that is read and
 * written atomically.  Whoever wants both locks takes the lock of all slots
 * first.
 *
 * A session finds its database's slot without a lock.  At any time after that,
 * the slot may be given to another database, because the extension was dropped
 * or the database dismissed.  A session that records holds a lock on the
 * extension's tables, so the extension cannot be dropped; but the database can
 * be dismissed.  What the session then does to the atomic words counts for the
 * other database.  That neither loses an event nor sends an event twice: these
 * words say when to look and what to show, and the tables say what there is.
 */
typedef struct OnsideSlot
{
	/*
	 * InvalidOid if free.  Written under the lock of all slots.  When a slot
	 * is taken, this is written last, so that whoever finds the slot by it
	 * sees the fields below as they were made for this database.
	 */
	pg_atomic_uint32 database;

	OnsideService service;		/* guarded by the lock of all slots */

	/*
	 * How many workers have left the slot and are still connected to the
	 * database.  A worker counts itself in, under the lock of all slots, in
	 * the step in which it leaves, and out when it is no longer connected.
	 * The number is never reset: a worker that left while another database
	 * had the slot only makes a command wait a moment longer.
	 */
	pg_atomic_uint32 leaving;

	/*
	 * resume() was called, and no worker has heard of it: the next worker is
	 * started without a wait.  Sessions set this after resume() has committed,
	 * before they wake worker and launcher.  The worker that was woken clears
	 * it, or the launcher that starts a worker.
	 */
	pg_atomic_uint32 start_now;

	/*
	 * The worker's number in PostgreSQL's array of processes, or
	 * ONSIDE_NO_PROC.  The worker writes it when it takes and when it leaves
	 * the slot.  Another process may have the number by the time somebody has
	 * read it and sets the latch: a latch that is set for nothing does no harm.
	 */
	pg_atomic_uint32 procno;

	/*
	 * ONSIDE_WAKE_*.  Anybody sets bits.  The worker takes all of them before
	 * it looks at what they stand for, and does not sleep while a bit is set.
	 */
	pg_atomic_uint32 wakeup;

	/*
	 * The outbox's segment to write to, from 1 on.  The worker writes this
	 * when writing moves on.  A session may read it and write to that segment
	 * at any later time.  That is safe, because the worker locks a segment
	 * before it empties it.
	 */
	pg_atomic_uint32 segment;

	/*
	 * "recorded" counts the events committed since the slot was taken.
	 * Sessions add theirs after their commit, so for a moment it is behind
	 * what is visible.  "wake_at" is the count at which a session wakes the
	 * sleeping worker; only the worker writes it.  Each side writes its own
	 * word, then reads the other's, with a barrier in between.
	 */
	pg_atomic_uint64 recorded;
	pg_atomic_uint64 wake_at;

	/*
	 * How many sessions wait in flush().  They count themselves in and out.
	 * Never reset.  While it is not 0, the worker writes and sends sooner.
	 */
	pg_atomic_uint32 flush_waiters;

	/* Sessions add to these while they record, for "stats" and doctor(). */
	pg_atomic_uint64 skipped;	/* rows without an installation_id */
	pg_atomic_uint64 repeated;	/* events of a mapper that have the event_id
								 * of another event */

	/*
	 * Raised when events were withdrawn, or put aside by SQL; see
	 * onside_slot_wake().  Never reset, since a worker may have noted it.
	 */
	pg_atomic_uint32 epoch;

	/*
	 * The numbers of prepared transactions that may withdraw events are below
	 * this; see onside_slot_may_withdraw().  While a database has the slot,
	 * this is only ever raised.
	 */
	pg_atomic_uint64 withdrawers_end;

	LWLock	   *lock;			/* set once; guards status and stats */
	OnsideStatus status;

	/*
	 * The worker adds what it has counted, stats_reset() zeroes it; see
	 * onside_slot_read_stats().
	 */
	OnsideStats stats;

	/*
	 * The state that the server's log was told last.  Only the worker in the
	 * slot reads and writes this; a successor takes the slot after its
	 * predecessor has left.
	 */
	OnsideState logged_state;

	ConditionVariable settled_cv;	/* the cursor has moved, or the worker
									 * left */
	ConditionVariable worker_cv;	/* a worker has left, or is gone for good */
} OnsideSlot;

#define ONSIDE_NO_PROC	PG_UINT32_MAX

/* Copies a text into size bytes; cuts it at the end of a character. */
extern void onside_copy_text(char *to, const char *from, int size);

extern const char *onside_state_name(OnsideState state);

/* Installs the hooks for shared memory; called by _PG_init, if preloaded. */
extern void onside_shmem_init(void);

/* Is the shared state there (the library was preloaded)? */
extern bool onside_shmem_available(void);

/*
 * The slot of a database, or NULL.  Takes no lock; OnsideSlot says what may
 * become of the slot meanwhile.
 */
extern OnsideSlot *onside_slot_find(Oid database);

/* Slot i, 0 .. onside_max_databases - 1. */
extern OnsideSlot *onside_slot_get(int i);

/* The database that has the slot; InvalidOid if the slot is free. */
extern Oid	onside_slot_database(OnsideSlot *slot);

/* The lock of all slots: for service.c. */
extern LWLock *onside_slots_lock(void);

/*
 * The slot of a database; if it has none, a free slot becomes its own, and
 * NULL means that none is free.  onside_slot_reset() gives a slot back.  For
 * service.c, which has the lock of all slots exclusively.
 */
extern OnsideSlot *onside_slot_take(Oid database);
extern void onside_slot_reset(OnsideSlot *slot);

/*
 * Gives slot i to a database that had these statistics, and has a worker
 * started for it.  For stats_file.c, in the postmaster, while no other process
 * has the shared memory.
 */
extern void onside_slot_restore(int i, Oid database, const OnsideStats *stats);

/* Is this process the worker that is in the slot? */
extern bool onside_slot_is_mine(OnsideSlot *slot);

/*
 * Sets the reasons (ONSIDE_WAKE_*), and wakes the database's worker.  Safe in
 * callbacks.  ONSIDE_WAKE_WITHDRAWN says that a transaction has committed which
 * has deleted events that may be pending, or has put events aside by SQL.  It
 * raises "epoch", sometimes for nothing.  Whoever reads "epoch" and then takes
 * a snapshot sees all that was withdrawn before.
 */
extern void onside_slot_wake(OnsideSlot *slot, uint32 why);

/*
 * onside_slot_withdraw_later() notes that a transaction which has withdrawn
 * events was prepared.  A session that commits it later does not know what the
 * transaction has done, and asks onside_slot_may_withdraw().  The slot keeps no
 * list of these transactions but the end of their numbers.  So the answer is
 * yes for every older transaction, too.
 */
extern void onside_slot_withdraw_later(OnsideSlot *slot,
									   FullTransactionId xid);
extern bool onside_slot_may_withdraw(OnsideSlot *slot, FullTransactionId xid);

/* Counts n committed events, and wakes the worker if it waits for them. */
extern void onside_slot_count(OnsideSlot *slot, int64 n);

/*
 * The worker calls this before it sleeps, to be woken when "wanted" more events
 * than "noticed" have been committed (0: by no number).  Returns false if there
 * is a reason not to sleep already.
 */
extern bool onside_slot_arm(OnsideSlot *slot, uint64 noticed, uint64 wanted);

/*
 * How many events of this session's database are pending, as far as they were
 * counted; 0 if the slot is another database's by now.
 */
extern int64 onside_slot_pending(OnsideSlot *slot);

/*
 * Copies the status, and returns the pid of the worker that is in the slot (or
 * 0) and the number of pending events, all of one moment.
 */
extern pid_t onside_slot_read_status(OnsideSlot *slot, OnsideStatus *status,
									 int64 *pending);

/*
 * Does the published status include this number of delivered and dead-lettered
 * events?  The worker publishes a moment after the commit that settles them.
 * True also if no worker publishes, or the slot is another database's by now.
 */
extern bool onside_slot_tells(OnsideSlot *slot, int64 settled);

/*
 * Sets the slot's statistics to zero, or reads them as they are shown and
 * saved.  The caller holds the slot's lock, or nobody else has the slot.
 */
extern void onside_slot_clear_stats(OnsideSlot *slot);
extern void onside_slot_read_stats(OnsideSlot *slot, OnsideStats *stats);

/*
 * The launcher attaches at its beginning and detaches at its end, so that
 * others can wake it.  "forget" tells it to look at every database again, also
 * at those in which it has found no extension; the launcher takes that word by
 * onside_launcher_take_forget().  onside_launcher_pid() is 0 while no launcher
 * runs.
 */
extern void onside_launcher_attach(void);
extern void onside_launcher_detach(void);
extern void onside_launcher_wake(bool forget);
extern bool onside_launcher_take_forget(void);
extern pid_t onside_launcher_pid(void);

#endif							/* ONSIDE_SHMEM_H */
