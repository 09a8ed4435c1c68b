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

typedef enum OnsideSecretKind
{
	ONSIDE_SECRET_API,
	ONSIDE_SECRET_PROXY,
} OnsideSecretKind;

#define ONSIDE_SECRET_KINDS	(ONSIDE_SECRET_PROXY + 1)

/*
 * These credentials ("user:password") are in use from now on.  The ones before
 * them stay hidden, too: what is under way was sent with them.
 */
extern void onside_secret_set(OnsideSecretKind kind, const char *credentials);

/*
 * Puts "***" in the place of credentials in a text, which never gets longer
 * by it.  cut: the text went on, so its end may be the beginning of one.
 * Text that takes too long to look through is replaced whole.
 */
extern void onside_secret_hide(char *text, bool cut);

#endif							/* ONSIDE_SECRET_H */
