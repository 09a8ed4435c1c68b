/*-------------------------------------------------------------------------
 *
 * credentials.h
 *		The credentials file.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_CREDENTIALS_H
#define ONSIDE_CREDENTIALS_H

#include "postgres.h"

/*
 * Reads "user:password" from the file.  Returns it, allocated in the current
 * memory context, or NULL and in *problem what is wrong with the file (never
 * what is in it) and what to do about it.
 */
extern char *onside_credentials_read(const char *path, char **problem);

#endif							/* ONSIDE_CREDENTIALS_H */
