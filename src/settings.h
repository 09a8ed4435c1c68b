/*-------------------------------------------------------------------------
 *
 * settings.h
 *		The settings onside_attribution.*, as C variables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_SETTINGS_H
#define ONSIDE_SETTINGS_H

#include "postgres.h"

#include "api.h"

typedef enum OnsideInvalidEventAction
{
	ONSIDE_INVALID_ERROR,
	ONSIDE_INVALID_DEAD_LETTER,
} OnsideInvalidEventAction;

extern char *onside_endpoint;
extern char *onside_credentials_file;
extern char *onside_ca_file;
extern char *onside_proxy;
extern char *onside_proxy_credentials_file;
extern bool onside_enabled;
extern int	onside_batch_max_events;
extern int	onside_batch_max_bytes;
extern int	onside_max_in_flight;
extern int	onside_linger;			/* ms */
extern int	onside_connect_timeout; /* ms */
extern int	onside_request_timeout; /* ms */
extern int	onside_retry_initial_delay; /* ms */
extern int	onside_retry_max_delay; /* ms */
extern int	onside_retention;		/* s */
extern int	onside_segment_size;	/* kB */
extern int	onside_on_invalid_event;	/* OnsideInvalidEventAction */
extern int	onside_max_databases;

/*
 * Defines them all, but for current_segment, which is outbox.c's.  _PG_init()
 * reserves the prefix afterwards.  max_databases has an effect only while
 * shared_preload_libraries is being processed.
 */
extern void onside_settings_define(void);

#endif							/* ONSIDE_SETTINGS_H */
