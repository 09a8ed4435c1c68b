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
 * Stands in place of a setting's value that was refused where there was no
 * earlier value to stay with.  Never an address, and never a file of ours.
 */
#define ONSIDE_REFUSED_VALUE	"?"
#define ONSIDE_REFUSED_PROBLEM \
	"Its value was refused when the server was started; the server's log says why."

/*
 * Is this an address that events and credentials may be sent to?  https
 * anywhere, http only to a loopback address (127.0.0.0/8, ::1, localhost).
 * Returns NULL if so, else why not, as a constant string.  May be called
 * anywhere, the postmaster included.
 */
extern const char *onside_address_endpoint_problem(const char *url);

/* The same for a proxy; "" is none. */
extern const char *onside_address_proxy_problem(const char *proxy);

/* Does what is sent there stay on this machine?  Allocates nothing. */
extern bool onside_address_is_loopback(const struct sockaddr *address);

#endif							/* ONSIDE_ADDRESS_H */
