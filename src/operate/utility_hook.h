/*-------------------------------------------------------------------------
 *
 * utility_hook.h
 *		Commands that concern the workers.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_UTILITY_HOOK_H
#define ONSIDE_UTILITY_HOOK_H

/* Installs the hooks; from _PG_init. */
extern void onside_utility_hook_init(void);

#endif							/* ONSIDE_UTILITY_HOOK_H */
