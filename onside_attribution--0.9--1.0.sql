/* onside_attribution--0.9--1.0.sql */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION onside_attribution UPDATE TO '1.0'" to load this file. \quit

-- Whatever the control file says: nothing in here is looked up elsewhere.
SET LOCAL search_path = pg_catalog, pg_temp;

-- What runs with the owner's rights executes no trigger or rule that somebody
-- has put on one of the tables.
ALTER FUNCTION onside_attribution.pause(text) SET session_replication_role = replica;
ALTER FUNCTION onside_attribution.resume() SET session_replication_role = replica;
ALTER FUNCTION onside_attribution.retry_dead_letters(uuid[]) SET session_replication_role = replica;
ALTER FUNCTION onside_attribution.replay(timestamptz, timestamptz) SET session_replication_role = replica;
