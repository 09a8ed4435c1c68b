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
 * Once, when the process is connected.  Tries until the database can be read,
 * and ends the process if the extension is not in it.
 */
extern void onside_configuration_init(OnsideWorker *worker);

/* Takes over what the settings and the credentials files say. */
extern void onside_configuration_read(OnsideWorker *worker);

/* SIGHUP has come. */
extern void onside_configuration_reload(OnsideWorker *worker);

/*
 * The extension may have changed; sending may have been paused or resumed.  The
 * next onside_configuration_act() looks.
 */
extern void onside_configuration_check_extension(OnsideWorker *worker);
extern void onside_configuration_check_control(OnsideWorker *worker);

/*
 * Does what is due and needs a transaction.  Ends this process if a successor
 * is wanted, or if no worker is.
 */
extern void onside_configuration_act(OnsideWorker *worker);

/* If the API does not accept the credentials, reads the files again. */
extern void onside_configuration_mind_credentials(OnsideWorker *worker);

/* May anything be sent, as far as a person has a say? */
extern bool onside_configuration_may_send(OnsideWorker *worker);

/*
 * Milliseconds until onside_configuration_act() has something to do; -1:
 * never.
 */
extern long onside_configuration_timeout(OnsideWorker *worker);

#endif							/* ONSIDE_CONFIGURATION_H */
