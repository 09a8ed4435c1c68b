/*-------------------------------------------------------------------------
 *
 * configuration.h
 *		What the worker was told to do: settings, credentials, pause, DROP.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_CONFIGURATION_H
#define ONSIDE_CONFIGURATION_H

#include "postgres.h"

#include "worker/state.h"

/*
 * Once, when the process is connected.  Goes on trying until the database can be
 * read, and ends the process if the extension is not in it.
 */
extern void onside_configuration_init(OnsideWorker *worker);

/* Takes over what settings and credentials files say. */
extern void onside_configuration_read(OnsideWorker *worker);

/* SIGHUP has come. */
extern void onside_configuration_reload(OnsideWorker *worker);

/*
 * Has the extension changed; was sending paused or resumed?  To be looked up by the
 * next onside_configuration_act().
 */
extern void onside_configuration_check_extension(OnsideWorker *worker);
extern void onside_configuration_check_control(OnsideWorker *worker);

/*
 * Looks up what was asked for and needs a transaction, and ends this process if
 * another is to go on, or nobody is.
 */
extern void onside_configuration_act(OnsideWorker *worker);

/* The API does not accept the credentials: perhaps the file has better ones. */
extern void onside_configuration_mind_credentials(OnsideWorker *worker);

/* May anything be sent? */
extern bool onside_configuration_may_send(OnsideWorker *worker);

/* Milliseconds until onside_configuration_act() has something to do; -1: never. */
extern long onside_configuration_timeout(OnsideWorker *worker);

#endif							/* ONSIDE_CONFIGURATION_H */
