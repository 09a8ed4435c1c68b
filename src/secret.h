/*-------------------------------------------------------------------------
 *
 * secret.h
 *		Credentials that a peer says back to us.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_SECRET_H
#define ONSIDE_SECRET_H

#include "postgres.h"

/*
 * These credentials ("user:password") are in use from now on.  The ones before
 * them stay hidden, too: what is under way was sent with them.
 */
extern void onside_secret_set(const char *credentials);

/*
 * Puts "***" in the place of credentials in a text, which never gets longer
 * by it.  cut: the text went on, so its end may be the beginning of one.
 */
extern void onside_secret_hide(char *text, bool cut);

#endif							/* ONSIDE_SECRET_H */
