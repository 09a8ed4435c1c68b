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
 * All of it is guarded by the slot's lock.  The slot's worker writes it, in each
 * turn of its loop; nobody else does while a worker is in the slot, so the worker
 * itself may read it without the lock.  While none is in, the launcher writes
 * "reason", and who gives the slot to another database clears everything.  Who
 * takes a copy under the lock sees numbers of one moment, at most one turn of the
 * worker's loop ago.
 */
typedef struct OnsideStatus
{
	OnsideState state;			/* ONSIDE_NOT_RUNNING also while a worker
								 * starts */
	char		reason[ONSIDE_REASON_MAX];
	bool		objects_differ; /* see version.h; no number below is kept.
								 * Stays when that worker leaves: its
								 * successor does not log it again */
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
	ONSIDE_SLOT_STARTING,		/* it has been registered, or looks around */
	ONSIDE_SLOT_RUNNING,		/* it has found the extension */
	ONSIDE_SLOT_ABSENT,			/* it found no extension and left */
} OnsideSlotState;

/*
 * How a database is served.  service.c alone reads and writes this, under the
 * lock of all slots; others get a copy, of a moment that may be over.
 *
 * The states, and who makes each step:
 *
 *		FREE -> WANTED			onside_service_request(): by the commit of CREATE
 *								EXTENSION, and by the launcher for a database that
 *								it does not know
 *		WANTED -> STARTING		the launcher, about to register a worker
 *		STARTING -> WANTED		the launcher, when the worker could not be
 *								registered or has ended without taking the slot
 *		STARTING -> RUNNING		the worker, when it has found the extension
 *		STARTING, RUNNING -> WANTED		the worker, when it leaves
 *		STARTING, RUNNING -> ABSENT		the worker, when it leaves because there is
 *								no extension (any more)
 *		ABSENT -> WANTED		onside_service_request()
 *		ABSENT, WANTED -> FREE	the launcher, and the database loses its slot
 *
 * A worker is in the slot (worker_pid is set) only in STARTING and RUNNING: it
 * takes the slot in STARTING or not at all, and the launcher takes no slot out of
 * STARTING while a worker is in.  So in WANTED, ABSENT and FREE nobody but the
 * launcher, and who requests or holds the slot, changes it.
 *
 * A slot in FREE has no database, unless a command holds it; see "holds".
 *
 * Four flags go beside the states:
 *
 * "wanted_again" is for CREATE EXTENSION while a worker is about to find that
 * there is none.  A request sets it in any state but FREE and ABSENT.  The worker
 * clears it when it takes the slot, before it looks for the extension, and so
 * sees what was committed before.  If it is set when the worker leaves as ABSENT,
 * the extension was made after that look: the state becomes WANTED instead.
 *
 * "orderly" is how the last worker ended.  The worker clears it when it takes the
 * slot and sets it in the step with which it leaves, if it left because somebody
 * asked it to or because a successor is to start over; one that is turned away from
 * a closed slot sets it, too.  The launcher starts the next worker at once then, and
 * otherwise waits as after a failure.
 *
 * "holds" counts the commands (DROP DATABASE and its like) that keep workers out.
 * While it is not 0, no worker takes the slot, one that is in leaves, and the
 * launcher neither starts one nor frees the slot.  A command holds the slot of a
 * database that has none by taking a free one; the state stays FREE, and the last
 * command that lets go gives it back.
 *
 * "dismissed" is the launcher's: no worker can connect to the database (it was
 * dropped, became a template or allows no connections).  No worker takes the slot,
 * one that is in leaves, and then the launcher frees the slot.
 *
 * A slot with holds or dismissed is closed; onside_service_is_closed().
 */
typedef struct OnsideService
{
	OnsideSlotState state;
	pid_t		worker_pid;		/* of the worker that is in the slot, or 0.
								 * That process is alive as long as one holds
								 * the lock: it leaves the slot under it
								 * before it ends */
	bool		wanted_again;
	bool		orderly;
	bool		found;			/* a worker has found the extension since the
								 * database got the slot; set by the worker */
	int			holds;
	bool		dismissed;
} OnsideService;

/*
 * One database.  Each field is guarded by the lock of all slots, or by the slot's
 * own lock, or is a single word that is read and written atomically.  Who wants
 * both locks takes that of all slots first.
 *
 * A session finds its database's slot without a lock, and the slot may be given
 * to another database at any time after that: the extension was dropped, or the
 * database dismissed.  Sessions that record hold a lock on the extension's tables,
 * so the former cannot happen to them; the latter can.  What such a session does
 * to the atomic words then counts for the other database.  None of that loses an
 * event or sends one twice: these words say when to look and what to show, and
 * the tables say what there is.
 */
typedef struct OnsideSlot
{
	/*
	 * InvalidOid if free.  Written under the lock of all slots, and last of
	 * all when a slot is taken, so that who finds the slot by it sees the
	 * fields below as they were made for this database.
	 */
	pg_atomic_uint32 database;

	OnsideService service;		/* guarded by the lock of all slots */

	/*
	 * Workers that have left the slot and are still connected to the
	 * database. Each counts itself in, under the lock of all slots, in the
	 * step in which it leaves, and out when it is not connected any more.  It
	 * is never reset: who left while another database had the slot only makes
	 * a command wait a moment longer.
	 */
	pg_atomic_uint32 leaving;

	/*
	 * resume() was called, and no worker has heard of it: the next one is
	 * started without a wait.  Set by sessions after resume() has committed,
	 * before they wake worker and launcher; cleared by the worker that it has
	 * woken, or by the launcher that starts one.
	 */
	pg_atomic_uint32 start_now;

	/*
	 * The worker's number in PostgreSQL's array of processes, or
	 * ONSIDE_NO_PROC. Written by the worker when it takes and leaves the
	 * slot.  Who reads it and sets the latch may hit a process that has that
	 * number since: a latch that is set for nothing does no harm.
	 */
	pg_atomic_uint32 procno;

	/*
	 * ONSIDE_WAKE_*.  Anybody sets bits; the worker takes all of them before
	 * it looks at what they stand for, and does not sleep while there are
	 * any.
	 */
	pg_atomic_uint32 wakeup;

	/*
	 * Outbox segment to write to, 1 ..  Written by the worker when it moves
	 * on. Who reads it may write to an older one at any time after that; what
	 * the worker empties it has locked first.
	 */
	pg_atomic_uint32 segment;

	/*
	 * Events committed since the slot was taken: sessions add theirs after
	 * their commit, so for a moment it is behind what is visible.  And the
	 * number at which the sleeping worker is to be woken, which only the
	 * worker writes.  Each side writes its own word, then reads the other's,
	 * with a barrier in between.
	 */
	pg_atomic_uint64 recorded;
	pg_atomic_uint64 wake_at;

	/*
	 * Sessions that wait in flush(), which count themselves in and out.
	 * Never reset.  The worker that reads it writes and sends sooner than it
	 * would.
	 */
	pg_atomic_uint32 flush_waiters;

	/* Added to by sessions while they record; read for "stats" and doctor(). */
	pg_atomic_uint64 skipped;	/* rows without an installation_id */
	pg_atomic_uint64 repeated;	/* a mapper's events with another's event_id */

	/*
	 * Raised when events were withdrawn, or put aside by SQL, and never
	 * reset, since a worker may have noted it: see onside_slot_wake().
	 */
	pg_atomic_uint32 epoch;

	/*
	 * Only ever raised while a database has the slot; see
	 * onside_slot_may_withdraw().
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
	 * What the server's log was told last.  The worker's own; its successor
	 * reads it after it has taken the slot, and so after this one has left
	 * it.
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

/* Installs the hooks that ask for shared memory; from _PG_init, if preloaded. */
extern void onside_shmem_init(void);

/* Is the shared state there (the library was preloaded)? */
extern bool onside_shmem_available(void);

/*
 * The slot of a database, or NULL.  Takes no lock: see OnsideSlot for what may
 * become of it meanwhile.
 */
extern OnsideSlot *onside_slot_find(Oid database);

/* Slot i, 0 .. onside_max_databases - 1. */
extern OnsideSlot *onside_slot_get(int i);

/* Whose slot is it?  InvalidOid if it is free. */
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
 * For stats_file.c, in the postmaster, while no other process has the shared
 * memory: slot i is this database's, which had these statistics and wants a
 * worker.
 */
extern void onside_slot_restore(int i, Oid database, const OnsideStats *stats);

/* Is this process the worker that is in the slot? */
extern bool onside_slot_is_mine(OnsideSlot *slot);

/*
 * Sets the reasons and wakes the database's worker.  Safe in callbacks.
 * ONSIDE_WAKE_WITHDRAWN: a transaction has committed that has deleted events which
 * may be pending, or has put some aside by SQL.  That raises "epoch": whoever reads
 * that and then takes a snapshot sees all that was withdrawn before.  It can be
 * raised for nothing.
 */
extern void onside_slot_wake(OnsideSlot *slot, uint32 why);

/*
 * A transaction that has withdrawn events was prepared, and may be committed in a
 * session that does not know what it has done.  onside_slot_may_withdraw(): has
 * this transaction, which was prepared, perhaps withdrawn events?  The slot keeps
 * no list of them but the end of their numbers, and so says yes of older ones, too.
 */
extern void onside_slot_withdraw_later(OnsideSlot *slot,
									   FullTransactionId xid);
extern bool onside_slot_may_withdraw(OnsideSlot *slot, FullTransactionId xid);

/* n events were committed: wakes the worker if it wants to know by now. */
extern void onside_slot_count(OnsideSlot *slot, int64 n);

/*
 * The worker, before it sleeps: to be woken when "wanted" more events than
 * "noticed" have been committed (0: not by any number).  False if they have.
 */
extern bool onside_slot_arm(OnsideSlot *slot, uint64 noticed, uint64 wanted);

/*
 * Events of this session's database that are committed and not settled, as far as
 * they were counted; 0 if the slot is not that database's any more.
 */
extern int64 onside_slot_pending(OnsideSlot *slot);

/*
 * A copy of the status, with the pid of the worker that is in the slot (or 0) and
 * the number of pending events, all of one moment.
 */
extern pid_t onside_slot_read_status(OnsideSlot *slot, OnsideStatus *status,
									 int64 *pending);

/*
 * Has the worker told of so many delivered and dead-lettered events?  It does so a
 * moment after the commit that settles them.  True also if no worker tells, or the
 * slot is not this session's database's any more.
 */
extern bool onside_slot_tells(OnsideSlot *slot, int64 settled);

/*
 * The slot's statistics: to zero, or as they are shown and saved.  The caller
 * holds the slot's lock, or nobody else has the slot.
 */
extern void onside_slot_clear_stats(OnsideSlot *slot);
extern void onside_slot_read_stats(OnsideSlot *slot, OnsideStats *stats);

/*
 * The launcher's latch.  forget tells it to look at every database again, the
 * ones included in which it found no extension.
 */
extern void onside_launcher_attach(void);
extern void onside_launcher_detach(void);
extern void onside_launcher_wake(bool forget);
extern bool onside_launcher_take_forget(void);
extern pid_t onside_launcher_pid(void);

#endif							/* ONSIDE_SHMEM_H */
