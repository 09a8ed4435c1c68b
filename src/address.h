/*-------------------------------------------------------------------------
 *
 * address.h
 *		Where requests may go.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_ADDRESS_H
#define ONSIDE_ADDRESS_H

#include "postgres.h"

#include <sys/socket.h>

/*
 * Is this an address that events and credentials may be sent to?  https
 * anywhere, http only to a loopback address (127.0.0.0/8, ::1, localhost).
 * Returns NULL if so, else why not, as a constant string.  May be called
 * anywhere, the postmaster included.
 */
extern const char *onside_address_endpoint_problem(const char *url);

/* The same for a proxy; "" is none. */
extern const char *onside_address_proxy_problem(const char *proxy);

/* "user:password" in the address of a proxy, palloc'd; NULL if there is none. */
extern char *onside_address_credentials(const char *proxy, bool decoded);

/* Does what is sent there stay on this machine?  Allocates nothing. */
extern bool onside_address_is_loopback(const struct sockaddr *address);

#endif							/* ONSIDE_ADDRESS_H */
