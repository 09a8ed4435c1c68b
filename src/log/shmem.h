/*-------------------------------------------------------------------------
 *
 * shmem.h
 *		What the launcher, the workers and all backends share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_SHMEM_H
#define ONSIDE_SHMEM_H

#include "postgres.h"

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

/* What the worker publishes for the view "status"; guarded by the lock. */
typedef struct OnsideStatus
{
	OnsideState state;
	char		reason[ONSIDE_REASON_MAX];
	bool		objects_differ; /* see version.h; no number below is kept */
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

/* How the launcher and its workers stand with a database. */
typedef enum OnsideSlotState
{
	ONSIDE_SLOT_FREE,
	ONSIDE_SLOT_WANTED,			/* a worker is to be started */
	ONSIDE_SLOT_STARTING,		/* it has been registered, or looks around */
	ONSIDE_SLOT_RUNNING,		/* it has found the extension */
	ONSIDE_SLOT_ABSENT,			/* it found no extension and left */
} OnsideSlotState;

/*
 * One database.  "database" and "state" are written under the lock of the
 * control structure; a backend may read its own slot's "database" without.
 */
typedef struct OnsideSlot
{
	Oid			database;		/* InvalidOid if free */
	OnsideSlotState state;
	pid_t		worker_pid;
	pid_t		left_pid;		/* of the last worker that has left the slot */
	bool		wanted_again;	/* CREATE EXTENSION, while a worker is in */
	bool		orderly;		/* the last worker asked for another */
	bool		found;			/* a worker has found the extension */
	int			holds;			/* commands that keep workers out */
	pg_atomic_uint32 start_now; /* resume() was called, and no worker has
								 * heard of it: the next one does not wait */
	bool		dismissed;		/* the database is not to be served (now) */
	pg_atomic_uint32 procno;	/* worker's, or ONSIDE_NO_PROC */
	pg_atomic_uint32 wakeup;	/* ONSIDE_WAKE_* */
	pg_atomic_uint32 segment;	/* outbox segment to write to, 1 .. */
	pg_atomic_uint64 recorded;	/* events committed since slot was taken */
	pg_atomic_uint64 wake_at;	/* worker sleeps until recorded is this */
	pg_atomic_uint32 flush_waiters; /* sessions that wait in flush() */
	pg_atomic_uint64 skipped;	/* rows without an installation_id */
	pg_atomic_uint64 repeated;	/* a mapper's events with another's event_id */
	pg_atomic_uint32 epoch;		/* raised when events were withdrawn, or put
								 * aside by SQL: see onside_slot_wake() */
	pg_atomic_uint64 withdrawers_end;	/* see onside_slot_may_withdraw() */
	LWLock	   *lock;			/* guards status and stats */
	OnsideStatus status;
	OnsideStats stats;			/* see onside_slot_read_stats() */
	OnsideState logged_state;	/* what the server's log was told last; the
								 * workers' own, one after the other */
	ConditionVariable settled_cv;	/* the cursor has moved */
	ConditionVariable worker_cv;	/* a worker has left */
} OnsideSlot;

#define ONSIDE_NO_PROC	PG_UINT32_MAX

/* Copies a text into size bytes; cuts it at the end of a character. */
extern void onside_copy_text(char *to, const char *from, int size);

extern const char *onside_state_name(OnsideState state);

/* Installs the hooks that ask for shared memory; from _PG_init, if preloaded. */
extern void onside_shmem_init(void);

/* Is the shared state there (the library was preloaded)? */
extern bool onside_shmem_available(void);

/* The slot of a database, or NULL. */
extern OnsideSlot *onside_slot_find(Oid database);

/*
 * The slot of a database, taken if it had none and marked as one that wants a
 * worker.  NULL if all max_databases slots are taken.
 */
extern OnsideSlot *onside_slot_request(Oid database);

/*
 * Gives a slot back, unless it has left that state meanwhile or is held.  The
 * launcher alone does this.
 */
extern bool onside_slot_free(OnsideSlot *slot, OnsideSlotState state);

/*
 * Keeps workers out of a database until onside_slot_let_go().  If it has no
 * slot, takes one, so that none is started meanwhile; NULL if there is none,
 * and then there will be no worker.
 */
extern OnsideSlot *onside_slot_hold(Oid database);
extern void onside_slot_let_go(OnsideSlot *slot);

/* Is the worker to leave, or not to come in? */
extern bool onside_slot_is_closed(OnsideSlot *slot);

/* This process's worker leaves its slot in this state. */
extern void onside_slot_leave(OnsideSlot *slot, OnsideSlotState state);

/* Slot i, 0 .. onside_max_databases - 1. */
extern OnsideSlot *onside_slot_get(int i);

/* The lock for database and state of all slots. */
extern LWLock *onside_slots_lock(void);

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

/* Events committed and not settled, as far as they were counted. */
extern int64 onside_slot_pending(OnsideSlot *slot);

/*
 * Has the worker told of so many delivered and dead-lettered events?  It does so a
 * moment after the commit that settles them.  True also if no worker tells.
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
