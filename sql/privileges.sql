-- Nobody can use anything of the extension until it is granted, and what is
-- granted is enough for what it is for.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/sql/include/setup.sql'
\i :setup

\set user '''550e8400-e29b-41d4-a716-446655440000'''
CREATE ROLE regress_onside_nobody;
CREATE ROLE regress_onside_shop;
CREATE ROLE regress_onside_orm;
CREATE ROLE regress_onside_dba;
CREATE ROLE regress_onside_monitor IN ROLE pg_monitor;
CREATE ROLE regress_onside_reporting;
GRANT USAGE, CREATE ON SCHEMA t TO regress_onside_nobody, regress_onside_shop, regress_onside_orm, regress_onside_dba, regress_onside_monitor, regress_onside_reporting;
SELECT onside_attribution.track('e', :user, '{}', event_id => '0a0b0c0d-0001-4002-8003-000000000001');

-- The catalog has no grant to PUBLIC, nor to anybody but pg_monitor.
CREATE VIEW objects AS
    SELECT 'schema' AS kind, nspname::text AS name, coalesce(nspacl, acldefault('n', nspowner)) AS acl, nspowner AS owner
    FROM pg_namespace WHERE nspname = 'onside_attribution'
    UNION ALL
    SELECT 'function', oid::regprocedure::text, coalesce(proacl, acldefault('f', proowner)), proowner
    FROM pg_proc WHERE pronamespace = 'onside_attribution'::regnamespace
    UNION ALL
    SELECT 'relation', oid::regclass::text, coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)), relowner
    FROM pg_class WHERE relnamespace = 'onside_attribution'::regnamespace AND relkind NOT IN ('i', 'I', 'c')
    UNION ALL
    SELECT 'column', attrelid::regclass || '.' || attname, attacl, relowner
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE relnamespace = 'onside_attribution'::regnamespace AND attacl IS NOT NULL
    UNION ALL
    SELECT 'type', oid::regtype::text, coalesce(typacl, acldefault('T', typowner)), typowner
    FROM pg_type WHERE typnamespace = 'onside_attribution'::regnamespace AND typtype NOT IN ('c', 'b');
SELECT kind, count(*) > 0 FROM objects GROUP BY kind ORDER BY kind;
SELECT kind, name, privilege_type, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END
FROM objects, aclexplode(acl)
WHERE grantee <> owner AND grantee <> 'pg_monitor'::regrole ORDER BY 1, 2, 3;
-- And pg_monitor can look, but not touch.
SELECT DISTINCT kind, privilege_type FROM objects, aclexplode(acl) WHERE grantee = 'pg_monitor'::regrole ORDER BY 1, 2;
-- SECURITY DEFINER functions find nothing of a user's.
SELECT oid::regprocedure FROM pg_proc
WHERE pronamespace = 'onside_attribution'::regnamespace AND prosecdef AND (proconfig IS NULL OR NOT proconfig && ARRAY['search_path=pg_catalog, pg_temp', 'search_path=pg_catalog,pg_temp']);

-- Who has nothing can do nothing: not even name an object, nor with the
-- schema's USAGE use one.
CREATE FUNCTION walk() RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    object record;
    command text;
    result text;
BEGIN
    FOR object IN
        SELECT 'relation' AS kind, oid::regclass::text AS name, NULL AS arguments, relkind::text AS detail FROM pg_class
        WHERE relnamespace = 'onside_attribution'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'S')
        UNION ALL
        SELECT 'function', oid::regproc::text,
               (SELECT coalesce(string_agg(format(CASE prokind WHEN 'p' THEN 'NULL::%s' ELSE '(SELECT NULL::%s)' END, format_type(a, NULL)), ', '), '') FROM unnest(proargtypes) AS a), prokind::text
        FROM pg_proc WHERE pronamespace = 'onside_attribution'::regnamespace AND prorettype <> 'trigger'::regtype
        ORDER BY 1, 2
    LOOP
        FOREACH command IN ARRAY CASE
            WHEN object.kind = 'relation' THEN
                ARRAY['SELECT FROM %s', 'INSERT INTO %s DEFAULT VALUES', 'DELETE FROM %s', 'TRUNCATE %s', 'LOCK TABLE %s IN ACCESS SHARE MODE',
                      'COMMENT ON TABLE %s IS NULL', 'DROP TABLE %s']
            WHEN object.detail = 'p' THEN ARRAY['CALL %s(' || object.arguments || ')']
            ELSE ARRAY['SELECT %s(' || object.arguments || ')'] END
        LOOP
            result := t.try(format(command, object.name));
            IF result !~ '^42501 (permission denied for|must be owner of)' AND result !~ '^42809 "\w+" is not a table'
               AND NOT (object.detail = 'v' AND result ~ '^(55000|42809)') THEN
                RETURN NEXT format(command, object.name) || ': ' || result;
            END IF;
        END LOOP;
    END LOOP;
END
$$;
SET ROLE regress_onside_nobody;
SELECT walk();
RESET ROLE;
GRANT USAGE ON SCHEMA onside_attribution TO regress_onside_nobody;
SET ROLE regress_onside_nobody;
SELECT walk();
CREATE TABLE nobodys (install_id uuid);
SELECT try($$CREATE TRIGGER x AFTER INSERT ON nobodys FOR EACH ROW EXECUTE FUNCTION onside_attribution.track_row('event_name=e', 'installation_id=install_id')$$);
SELECT try($$SELECT onside_attribution.attach('nobodys', 'e', 'install_id', '{}')$$);
SELECT try($$CREATE FUNCTION mine() RETURNS trigger LANGUAGE c AS '$libdir/onside_attribution', 'onside_track_row'$$);
SELECT try('DROP EXTENSION onside_attribution');
RESET ROLE;

-- Tables of those who have nothing to do with it are changed as ever.
REVOKE USAGE ON SCHEMA onside_attribution FROM regress_onside_nobody;
SET ROLE regress_onside_nobody;
CREATE FUNCTION other_trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER other AFTER INSERT ON nobodys FOR EACH ROW EXECUTE FUNCTION other_trigger();
ALTER TABLE nobodys ADD a int, ADD b int, ADD c int;
ALTER TABLE nobodys RENAME a TO z;
ALTER TABLE nobodys ALTER c TYPE bigint, DROP b;
CREATE TABLE nobodys_child () INHERITS (nobodys);
ALTER TABLE nobodys_child NO INHERIT nobodys;
ALTER TABLE nobodys_child INHERIT nobodys;
CREATE TABLE nobodys_parted (LIKE nobodys) PARTITION BY LIST (z);
CREATE TABLE nobodys_1 PARTITION OF nobodys_parted FOR VALUES IN (1);
CREATE TABLE nobodys_2 (LIKE nobodys);
CREATE TRIGGER other AFTER INSERT ON nobodys_2 FOR EACH ROW EXECUTE FUNCTION other_trigger();
ALTER TABLE nobodys_parted ATTACH PARTITION nobodys_2 FOR VALUES IN (2);
ALTER TABLE nobodys_parted DETACH PARTITION nobodys_2;
CREATE VIEW nobodys_view AS SELECT z FROM nobodys;
ALTER VIEW nobodys_view RENAME z TO y;
CREATE TYPE nobodys_type AS (a int, b int);
ALTER TYPE nobodys_type RENAME ATTRIBUTE a TO z;
ALTER TYPE nobodys_type DROP ATTRIBUTE b;
DROP TABLE nobodys, nobodys_child, nobodys_parted, nobodys_2 CASCADE;
DROP TYPE nobodys_type;
DROP FUNCTION other_trigger;
-- So is an attached one, and its trigger follows.
RESET ROLE;
CREATE TABLE nobodys (install_id uuid, a int);
SELECT onside_attribution.attach('nobodys', 'e', 'install_id', '{"a": "a"}');
ALTER TABLE nobodys OWNER TO regress_onside_nobody;
SET ROLE regress_onside_nobody;
ALTER TABLE nobodys RENAME a TO z;
RESET ROLE;
SELECT payload FROM onside_attribution.attached WHERE source = 'nobodys'::regclass;
-- But attach and detach take USAGE, also where somebody else has named them.
GRANT EXECUTE ON FUNCTION onside_attribution.attach, onside_attribution.detach TO regress_onside_nobody;
CREATE VIEW attaching AS SELECT onside_attribution.attach('nobodys', 'f', 'install_id', '{}');
CREATE VIEW detaching AS SELECT onside_attribution.detach('nobodys', 'e');
GRANT SELECT ON attaching, detaching TO regress_onside_nobody;
SET ROLE regress_onside_nobody;
SELECT try('SELECT * FROM attaching');
SELECT try('SELECT * FROM detaching');
RESET ROLE;
SELECT event_name FROM onside_attribution.attached WHERE source = 'nobodys'::regclass;
DROP TABLE nobodys CASCADE;
REVOKE EXECUTE ON FUNCTION onside_attribution.attach, onside_attribution.detach FROM regress_onside_nobody;

-- track for a role with just EXECUTE and USAGE
GRANT USAGE ON SCHEMA onside_attribution TO regress_onside_shop;
GRANT EXECUTE ON FUNCTION onside_attribution.track, onside_attribution.track_purchase, onside_attribution.track_batch TO regress_onside_shop;
SET ROLE regress_onside_shop;
SELECT onside_attribution.track('tracked', :user, '{}', event_id => '0a0b0c0d-0001-4002-8003-000000000002');
SELECT onside_attribution.track_purchase(:user, 1, 'USD') IS NOT NULL;
SELECT onside_attribution.track_batch('[{"event_name": "batch", "payload": {}, "event_datetime": "2026-05-05T12:00:00Z", "installation_id": "550e8400-e29b-41d4-a716-446655440000"}]');
SELECT try('SELECT FROM onside_attribution.outbox');
SELECT try('SELECT onside_attribution.preview(''0a0b0c0d-0001-4002-8003-000000000002'')');
RESET ROLE;
SELECT event_name FROM recorded;
TRUNCATE onside_attribution.outbox;

-- attach for one with EXECUTE on it and on track_row, and a table of its own;
-- inserting into that table needs no more than before.
GRANT EXECUTE ON FUNCTION onside_attribution.attach, onside_attribution.detach TO regress_onside_shop;
SET ROLE regress_onside_shop;
CREATE TABLE shops (install_id uuid, total numeric);
SELECT try($$SELECT onside_attribution.attach('shops', 'sold', 'install_id', '{"total": "total"}')$$);
RESET ROLE;
GRANT EXECUTE ON FUNCTION onside_attribution.track_row TO regress_onside_shop;
SET ROLE regress_onside_shop;
SELECT onside_attribution.attach('shops', 'sold', 'install_id', '{"total": "total"}');
INSERT INTO shops VALUES (:user, 9.90);
SELECT session_user = current_user, current_user;
-- Where others may insert, what they insert is reported.
GRANT INSERT ON shops TO regress_onside_nobody;
RESET ROLE;
SET ROLE regress_onside_nobody;
INSERT INTO shops VALUES (:user, 10);
SET onside_attribution.on_invalid_event = 'dead_letter';
SET client_min_messages = error;
INSERT INTO shops VALUES (:user, 'NaN');
RESET client_min_messages;
RESET onside_attribution.on_invalid_event;
RESET ROLE;
SELECT event_name, payload FROM recorded;
SELECT payload FROM onside_attribution.dead_letter;
SET ROLE regress_onside_shop;
SELECT onside_attribution.detach('shops', 'sold');
RESET ROLE;
TRUNCATE onside_attribution.outbox, onside_attribution.dead_letter;

-- Another's table: only with TRIGGER on it, and on what it consists of
CREATE TABLE others (install_id uuid, id int) PARTITION BY LIST (id);
CREATE TABLE others_1 PARTITION OF others FOR VALUES IN (1);
CREATE TABLE others_2 PARTITION OF others FOR VALUES IN (2);
SET ROLE regress_onside_shop;
SELECT try($$SELECT onside_attribution.attach('others', 'e', 'install_id', '{}')$$);
SELECT try($$SELECT onside_attribution.attach('pg_catalog.pg_class', 'e', 'relname', '{}')$$);
SELECT try($$SELECT onside_attribution.attach('onside_attribution.outbox', 'e', 'installation_id', '{}')$$);
RESET ROLE;
GRANT TRIGGER ON others, others_1 TO regress_onside_shop;
SET ROLE regress_onside_shop;
SELECT try($$SELECT onside_attribution.attach('others', 'e', 'install_id', '{}')$$);
RESET ROLE;
GRANT TRIGGER ON others_2 TO regress_onside_shop;
SET ROLE regress_onside_shop;
SELECT onside_attribution.attach('others', 'e', 'install_id', '{}');
SELECT current_user;
-- (dropping a trigger takes the table's owner, as ever)
SELECT try($$SELECT onside_attribution.detach('others', 'e')$$);
RESET ROLE;
-- The lock is not even asked for by who may not have it: here is one in whose
-- way it would be, were it taken first.
CREATE TABLE busy (install_id uuid);
SET ROLE regress_onside_shop;
BEGIN;
SELECT try($$SELECT onside_attribution.attach('busy', 'e', 'install_id', '{}')$$);
SELECT count(*) FROM pg_locks WHERE relation = 't.busy'::regclass AND mode = 'ShareRowExclusiveLock';
ROLLBACK;
RESET ROLE;
-- What the caller cannot name stays out of the condition.
CREATE SCHEMA regress_onside_hidden;
CREATE FUNCTION regress_onside_hidden.secret(int) RETURNS boolean LANGUAGE sql AS 'SELECT true';
SET ROLE regress_onside_shop;
SELECT try($$SELECT onside_attribution.attach('others', 'f', 'install_id', '{}', condition => 'regress_onside_hidden.secret(NEW.id)')$$);
SET search_path = t, regress_onside_hidden;
SELECT try($$SELECT onside_attribution.attach('others', 'f', 'install_id', '{}', condition => 'secret(NEW.id)')$$);
CREATE FUNCTION t.secret(int) RETURNS boolean LANGUAGE sql AS 'SELECT true';
SET search_path = regress_onside_hidden, t;
SELECT onside_attribution.attach('others', 'f', 'install_id', '{}', condition => 'secret(NEW.id)');
RESET search_path;
RESET ROLE;
SET search_path = pg_catalog;
SELECT substring(pg_get_triggerdef(oid), 'WHEN .* EXECUTE') FROM pg_trigger WHERE tgname = 'onside_f' AND tgparentid = 0;
SET search_path = t;
SELECT current_user = session_user;
DROP TABLE others;
DROP FUNCTION secret;
DROP SCHEMA regress_onside_hidden CASCADE;
-- An attached event for the views below
SET ROLE regress_onside_shop;
SELECT onside_attribution.attach('shops', 'sold', 'install_id', '{}');
RESET ROLE;

-- INSERT on the outbox and USAGE is all that an ORM or COPY needs.
GRANT USAGE ON SCHEMA onside_attribution TO regress_onside_orm;
GRANT INSERT ON onside_attribution.outbox TO regress_onside_orm;
SET ROLE regress_onside_orm;
INSERT INTO onside_attribution.outbox (event_name, payload, installation_id) VALUES ('inserted', '{}', :user);
COPY onside_attribution.outbox (event_name, payload, installation_id) FROM stdin;
copied	{}	550e8400-e29b-41d4-a716-446655440000
\.
SELECT try($$INSERT INTO onside_attribution.outbox (event_name, payload, installation_id) VALUES ('e', '[]', gen_random_uuid())$$);
SELECT try($$INSERT INTO onside_attribution.outbox (event_name, payload, installation_id) VALUES ('e', '{}', gen_random_uuid()) RETURNING event_id$$);
SELECT try('SELECT FROM onside_attribution.outbox');
SELECT try('DELETE FROM onside_attribution.outbox');
SELECT try($$INSERT INTO onside_attribution.outbox_1 (event_name, payload, installation_id) VALUES ('e', '{}', gen_random_uuid())$$);
RESET ROLE;
SELECT event_name FROM recorded;
TRUNCATE onside_attribution.outbox;

-- Column privileges do
GRANT SELECT (event_id) ON onside_attribution.outbox TO regress_onside_orm;
SET ROLE regress_onside_orm;
INSERT INTO onside_attribution.outbox (event_name, payload, installation_id) VALUES ('inserted', '{}', :user) RETURNING event_id IS NOT NULL;
SELECT try('SELECT payload FROM onside_attribution.outbox');
RESET ROLE;
TRUNCATE onside_attribution.outbox;

-- A monitor sees the status.
SET ROLE regress_onside_monitor;
SELECT count(*) FROM onside_attribution.status;
SELECT try('SELECT FROM onside_attribution.outbox');
SELECT try('SELECT FROM onside_attribution.dead_letter');
SELECT try('SELECT onside_attribution.pause()');
RESET ROLE;

-- Views need SELECT and, attached, its function.
GRANT USAGE ON SCHEMA onside_attribution TO regress_onside_reporting;
GRANT SELECT ON onside_attribution.pending, onside_attribution.attached, onside_attribution.dead_letter TO regress_onside_reporting;
GRANT EXECUTE ON FUNCTION onside_attribution.trigger_mapping TO regress_onside_reporting;
SET ROLE regress_onside_reporting;
SELECT count(*) FROM onside_attribution.pending;
SELECT source, event_name FROM onside_attribution.attached;
SELECT count(*) FROM onside_attribution.dead_letter;
RESET ROLE;

-- pause and resume need no right to the table beneath.
GRANT USAGE ON SCHEMA onside_attribution TO regress_onside_dba;
GRANT EXECUTE ON FUNCTION onside_attribution.pause, onside_attribution.resume TO regress_onside_dba;
SET ROLE regress_onside_dba;
SELECT onside_attribution.pause('by a role');
SELECT try('UPDATE onside_attribution.control SET paused = false');
RESET ROLE;
SELECT paused, pause_reason FROM onside_attribution.control;
SET ROLE regress_onside_dba;
SELECT onside_attribution.resume();
RESET ROLE;
SELECT paused, pause_reason, paused_at FROM onside_attribution.control;

SET client_min_messages = warning;
DROP OWNED BY regress_onside_nobody, regress_onside_shop, regress_onside_orm, regress_onside_dba, regress_onside_monitor, regress_onside_reporting;
DROP ROLE regress_onside_nobody, regress_onside_shop, regress_onside_orm, regress_onside_dba, regress_onside_monitor, regress_onside_reporting;
