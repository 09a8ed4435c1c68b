/*-------------------------------------------------------------------------
 *
 * namespace.h
 *		What distinguishes the keys of this database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_NAMESPACE_H
#define ONSIDE_NAMESPACE_H

#include "utils/uuid.h"

#define ONSIDE_NAMESPACE_LOST "the table onside_attribution.namespace is empty"
#define ONSIDE_NAMESPACE_HINT "Put its row back: INSERT INTO onside_attribution.namespace (id) VALUES (...), with the id that the arguments of this database's triggers have, or gen_random_uuid() if there are none."

/*
 * Reads the row of the table "namespace".  No privilege is checked.  False if
 * the row is missing.
 */
extern bool onside_namespace_read(pg_uuid_t *id);

/* Inserts the row, which is missing. */
extern void onside_namespace_put_back(const pg_uuid_t *id);

#endif							/* ONSIDE_NAMESPACE_H */
