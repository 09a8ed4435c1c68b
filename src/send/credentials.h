/*-------------------------------------------------------------------------
 *
 * credentials.h
 *		The credentials files: the API's and the proxy's.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_CREDENTIALS_H
#define ONSIDE_CREDENTIALS_H

#include "postgres.h"

/* RFC 7617 sets no limit; no real user:password is near this one. */
#define ONSIDE_CREDENTIALS_MAX	4096

/*
 * Reads "user:password" from the file that the setting names.  Returns it,
 * allocated in the current memory context, or NULL and in *problem what is
 * wrong with the file (never what is in it) and what to do about it.
 */
extern char *onside_credentials_read(const char *setting, const char *path,
									 char **problem);

/*
 * Overwrites and frees what onside_credentials_read() returned; NULL is none.
 */
extern void onside_credentials_free(char *credentials);

#endif							/* ONSIDE_CREDENTIALS_H */
