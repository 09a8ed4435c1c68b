/*-------------------------------------------------------------------------
 *
 * locks.h
 *		Locks on the extension's tables that nobody waits for.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_LOCKS_H
#define ONSIDE_LOCKS_H

/* What a piece of work uses of our tables, with their indexes; bits. */
#define ONSIDE_USES_LOG			0x01	/* reads the segments */
#define ONSIDE_READS_CURSOR		0x02	/* reads delivery_cursor */
#define ONSIDE_USES_CURSOR		0x04	/* writes delivery_cursor */
#define ONSIDE_USES_DEAD_LETTER	0x08	/* writes dead_letter */
#define ONSIDE_USES_CONTROL		0x10	/* reads or repairs control */
#define ONSIDE_READS_ASIDE		0x20	/* reads aside */
#define ONSIDE_USES_ASIDE		0x40	/* writes aside */

/*
 * Takes all of these locks if all are free at once, and returns NULL.
 * Otherwise keeps none, and returns the name of what another session has
 * locked.
 */
extern const char *onside_lock_tables(int uses);

/* Releases these locks before the end of the transaction. */
extern void onside_unlock_tables(int uses);

#endif							/* ONSIDE_LOCKS_H */
