/*-------------------------------------------------------------------------
 *
 * compat.h
 *		What differs between the PostgreSQL versions that we build against.
 *
 * This is the only file of src/ that looks at PG_VERSION_NUM.  What
 * PostgreSQL has only renamed is written with its new name everywhere, and
 * defined here as the old one for older servers (pg_noreturn).  Where
 * arguments or meaning differ, there is a macro with the prefix onside_.
 * Whoever uses one of these names includes this file.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ONSIDE_COMPAT_H
#define ONSIDE_COMPAT_H

#include "postgres.h"

#include "access/genam.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "catalog/pg_database.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "commands/tablecmds.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "rewrite/rewriteHandler.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/jsonb.h"
#include "utils/resowner.h"
#include "utils/wait_event.h"

/* 19 moved get_database_name() to lsyscache.h. */
#if PG_VERSION_NUM >= 190000
#include "utils/lsyscache.h"
#else
#include "commands/dbcommands.h"
#endif

#if PG_VERSION_NUM < 150000
#error "onside_attribution needs PostgreSQL 15 or later"
#endif

/* 18 turned the attribute behind a declaration into a word before it. */
#if PG_VERSION_NUM < 180000
#define pg_noreturn pg_attribute_noreturn()
#endif

/* 18 has virtual generated columns, which a row does not store. */
#if PG_VERSION_NUM >= 180000
#define onside_expand_generated_columns(node, rel, rt_index) \
	expand_generated_columns_in_expr(node, rel, rt_index)
#else
#define onside_expand_generated_columns(node, rel, rt_index) (node)
#endif

/* 19 gave signal handlers a second argument, and SIG_IGN a cast to that. */
#if PG_VERSION_NUM < 190000
#define PG_SIG_IGN SIG_IGN
#endif

/* 17 replaced PGPROC's pgprocno by a global, and ProcNumber got a type. */
#if PG_VERSION_NUM >= 170000
#define ONSIDE_MY_PROCNO		((int) MyProcNumber)
#else
#define ONSIDE_MY_PROCNO		(MyProc->pgprocno)
#endif

/* 17 renamed ShmemVariableCache. */
#if PG_VERSION_NUM >= 170000
#define onside_oldest_clog_xid() (TransamVariables->oldestClogXid)
#else
#define onside_oldest_clog_xid() (ShmemVariableCache->oldestClogXid)
#endif

/* 19 added the flags. */
#if PG_VERSION_NUM >= 190000
#define onside_table_beginscan(rel, snapshot, nkeys, keys) \
	table_beginscan(rel, snapshot, nkeys, keys, 0)
#define onside_table_beginscan_tidrange(rel, snapshot, first, last) \
	table_beginscan_tidrange(rel, snapshot, first, last, 0)
#else
#define onside_table_beginscan(rel, snapshot, nkeys, keys) \
	table_beginscan(rel, snapshot, nkeys, keys)
#define onside_table_beginscan_tidrange(rel, snapshot, first, last) \
	table_beginscan_tidrange(rel, snapshot, first, last)
#endif

/* 18 added the instrumentation argument, 19 the flags. */
#if PG_VERSION_NUM >= 190000
#define onside_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, NULL, nkeys, 0, 0)
#elif PG_VERSION_NUM >= 180000
#define onside_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, NULL, nkeys, 0)
#else
#define onside_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, nkeys, 0)
#endif

/* 16 added onlySummarizing, 19 turned the booleans into flags. */
#if PG_VERSION_NUM >= 190000
#define onside_insert_index_entries(rri, slot, estate, summaries) \
	ExecInsertIndexTuples(rri, estate, (summaries) ? EIIT_ONLY_SUMMARIZING : 0, slot, NIL, NULL)
#elif PG_VERSION_NUM >= 160000
#define onside_insert_index_entries(rri, slot, estate, summaries) \
	ExecInsertIndexTuples(rri, slot, estate, false, false, NULL, NIL, summaries)
#else
#define onside_insert_index_entries(rri, slot, estate, summaries) \
	ExecInsertIndexTuples(rri, slot, estate, false, false, NULL, NIL)
#endif

/* 16 told updates that indexes of summaries alone (BRIN) have to know of. */
#if PG_VERSION_NUM >= 160000
typedef TU_UpdateIndexes OnsideUpdateIndexes;

#define onside_update_needs_indexes(indexes) ((indexes) != TU_None)
#define onside_update_needs_summaries(indexes) ((indexes) == TU_Summarizing)
#define onside_is_summary(info) ((info)->ii_Summarizing)
#else
typedef bool OnsideUpdateIndexes;

#define onside_update_needs_indexes(indexes) (indexes)
#define onside_update_needs_summaries(indexes) false
#define onside_is_summary(info) false
#endif

/* 19 added the options. */
#if PG_VERSION_NUM >= 190000
#define onside_table_tuple_update(rel, tid, slot, cid, snapshot, wait, failure, mode, indexes) \
	table_tuple_update(rel, tid, slot, cid, 0, snapshot, InvalidSnapshot, wait, failure, mode, indexes)
#else
#define onside_table_tuple_update(rel, tid, slot, cid, snapshot, wait, failure, mode, indexes) \
	table_tuple_update(rel, tid, slot, cid, snapshot, InvalidSnapshot, wait, failure, mode, indexes)
#endif

/* 16 added run_as_table_owner. */
#if PG_VERSION_NUM >= 160000
#define onside_truncate(rels, relids) \
	ExecuteTruncateGuts(rels, relids, NIL, DROP_RESTRICT, false, false)
#else
#define onside_truncate(rels, relids) \
	ExecuteTruncateGuts(rels, relids, NIL, DROP_RESTRICT, false)
#endif

/* 16 merged the ownership checks into one. */
#if PG_VERSION_NUM >= 160000
#define onside_owns_database(oid) \
	object_ownercheck(DatabaseRelationId, oid, GetUserId())
#else
#define onside_owns_database(oid) pg_database_ownercheck(oid, GetUserId())
#endif

/* 16 has also merged the functions that check privileges. */
#if PG_VERSION_NUM >= 160000
#define onside_namespace_aclcheck(oid, mode) \
	object_aclcheck(NamespaceRelationId, oid, GetUserId(), mode)
#else
#define onside_namespace_aclcheck(oid, mode) \
	pg_namespace_aclcheck(oid, GetUserId(), mode)
#endif

#if PG_VERSION_NUM >= 160000
#define onside_function_aclcheck(oid, mode) \
	object_aclcheck(ProcedureRelationId, oid, GetUserId(), mode)
#else
#define onside_function_aclcheck(oid, mode) \
	pg_proc_aclcheck(oid, GetUserId(), mode)
#endif

/* 17 lets extensions name their wait events. */
#if PG_VERSION_NUM >= 170000
#define onside_wait_event(name) WaitEventExtensionNew(name)
#else
#define onside_wait_event(name) PG_WAIT_EXTENSION
#endif

/* 17 gave CreateWaitEventSet a resource owner in place of a context. */
#if PG_VERSION_NUM >= 170000
typedef ResourceOwner OnsideWaitEventSetOwner;

#define onside_create_wait_event_set(n) CreateWaitEventSet(NULL, n)
#else
typedef MemoryContext OnsideWaitEventSetOwner;

#define onside_create_wait_event_set(n) \
	CreateWaitEventSet(TopMemoryContext, n)
#endif

/* 19 merged the parse state and the result of building a jsonb value. */
#if PG_VERSION_NUM >= 190000
typedef JsonbInState OnsideJsonbBuilder;

#define onside_jsonb_push(builder, token, value) \
	pushJsonbValue(builder, token, value)
#else
typedef struct OnsideJsonbBuilder
{
	JsonbParseState *parseState;
	JsonbValue *result;
} OnsideJsonbBuilder;

#define onside_jsonb_push(builder, token, value) \
	((builder)->result = pushJsonbValue(&(builder)->parseState, token, value))
#endif

#endif							/* ONSIDE_COMPAT_H */
