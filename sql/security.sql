-- Nothing that a user can put into the way of the extension is taken for
-- something of its own, and nothing of a user's runs with more than the rights
-- of whoever runs it.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/sql/include/setup.sql'
\i :setup

\set user '''550e8400-e29b-41d4-a716-446655440000'''

-- What the catalog has to say.  The extension's objects, and what belongs to
-- them: rules of views, constraints, defaults, triggers.
CREATE VIEW parts AS
    WITH members AS (
        SELECT classid, objid FROM pg_depend
        WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
          AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'onside_attribution')
    )
    SELECT classid, objid FROM members
    UNION
    SELECT d.classid, d.objid FROM pg_depend d
    JOIN members m ON (d.refclassid, d.refobjid) = (m.classid, m.objid)
    WHERE d.deptype IN ('a', 'i', 'P', 'S')
    UNION
    SELECT 'pg_rewrite'::regclass, r.oid FROM pg_rewrite r JOIN members m ON m.classid = 'pg_class'::regclass AND m.objid = r.ev_class;
-- They use each other and what initdb made, and nothing else, whatever the
-- search_path was.
CREATE VIEW foreign_parts AS
    SELECT pg_describe_object(d.classid, d.objid, d.objsubid) AS object, pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid) AS uses
    FROM pg_depend d JOIN parts p ON (d.classid, d.objid) = (p.classid, p.objid)
    WHERE d.refobjid >= 16384 AND d.refclassid <> 'pg_extension'::regclass
      AND (d.refclassid, d.refobjid) NOT IN (SELECT classid, objid FROM parts);
SELECT count(*) > 50 FROM parts;
SELECT * FROM foreign_parts;
-- (it sees one that does not belong there)
BEGIN;
CREATE TYPE foreigner AS ENUM ('one');
ALTER TABLE onside_attribution.control ADD COLUMN note foreigner;
SELECT * FROM foreign_parts;
ROLLBACK;
-- All of it is its owner's.
SELECT pg_describe_object(p.classid, p.objid, 0)
FROM parts p
LEFT JOIN pg_class c ON p.classid = 'pg_class'::regclass AND c.oid = p.objid
LEFT JOIN pg_proc f ON p.classid = 'pg_proc'::regclass AND f.oid = p.objid
LEFT JOIN pg_type t ON p.classid = 'pg_type'::regclass AND t.oid = p.objid
LEFT JOIN pg_namespace n ON p.classid = 'pg_namespace'::regclass AND n.oid = p.objid
WHERE coalesce(c.relowner, f.proowner, t.typowner, n.nspowner) <> (SELECT extowner FROM pg_extension WHERE extname = 'onside_attribution');
-- Nothing runs with its owner's rights, and what is text that is parsed when it
-- is called has a search_path of its own.
SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'onside_attribution'::regnamespace AND prosecdef;
SELECT oid::regprocedure, proconfig FROM pg_proc
WHERE pronamespace = 'onside_attribution'::regnamespace
  AND prolang IN (SELECT oid FROM pg_language WHERE lanname NOT IN ('c', 'internal'))
  AND NOT coalesce(proconfig @> ARRAY['search_path=pg_catalog, pg_temp'], false);
-- What a view leaves out, a function in a reader's WHERE does not see either.
SELECT oid::regclass FROM pg_class
WHERE relnamespace = 'onside_attribution'::regnamespace AND relkind = 'v'
  AND pg_get_viewdef(oid) ~ '\m(WHERE|JOIN|HAVING|LIMIT|CASE)\M'
  AND NOT coalesce('security_barrier=true' = ANY (reloptions), false);
-- No object to come is granted to anybody.
SELECT * FROM pg_default_acl WHERE defaclnamespace = 'onside_attribution'::regnamespace;

-- A schema full of things that are named like PostgreSQL's own.  Whoever uses
-- one draws a number, which no ROLLBACK takes back.
SET client_min_messages = warning;
DROP EXTENSION onside_attribution CASCADE;
CREATE SCHEMA hostile;
CREATE SEQUENCE hostile.hijacked;
GRANT USAGE ON SCHEMA hostile TO PUBLIC;
GRANT ALL ON SEQUENCE hostile.hijacked TO PUBLIC;
SET client_min_messages = error;
DO $$
DECLARE
    op record;
    n int := 0;
    types regtype[] := '{oid,int2,int4,int8,text,name,"char",bool,regclass,regprocedure,xid8,uuid,timestamptz,interval,jsonb,pg_snapshot}';
    body text := 'BEGIN PERFORM pg_catalog.nextval(''hostile.hijacked''); RETURN NULL; END';
BEGIN
    -- operators, exact and of any two of these types
    FOR op IN
        SELECT oprname, oprleft::regtype AS l, oprright::regtype AS r, oprresult::regtype AS result FROM pg_operator
        WHERE oprleft = ANY (types) AND oprright = ANY (types) AND oprresult <> 0
        UNION
        SELECT o, l, r, 'bool' FROM unnest('{=,<>,<,>,<=,>=}'::text[]) AS o, unnest(types) AS l, unnest(types) AS r
    LOOP
        n := n + 1;
        BEGIN
            EXECUTE format('CREATE FUNCTION hostile.operator_%s(%s, %s) RETURNS %s LANGUAGE plpgsql AS %L', n, op.l, op.r, op.result, body);
            EXECUTE format('CREATE OPERATOR hostile.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = hostile.operator_%s)', op.oprname, op.l, op.r, n);
        EXCEPTION WHEN duplicate_function THEN NULL;
        END;
    END LOOP;
    -- functions of the names that occur in the extension
    FOR op IN
        SELECT DISTINCT proname, pg_get_function_identity_arguments(oid) AS arguments, prorettype::regtype AS result FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind = 'f' AND NOT proretset AND provariadic = 0
          AND proname IN ('now', 'current_setting', 'pg_current_xact_id', 'pg_visible_in_snapshot', 'substring', 'pg_get_triggerdef', 'regclass', 'int4', 'int2', 'text', 'jsonb')
          AND prorettype NOT IN ('internal'::regtype, 'cstring'::regtype)
    LOOP
        EXECUTE format('CREATE FUNCTION hostile.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L', op.proname, op.arguments, op.result, body);
    END LOOP;
    EXECUTE format('CREATE FUNCTION hostile.counted(bigint) RETURNS bigint LANGUAGE plpgsql AS %L', body);
    CREATE AGGREGATE hostile.count(*) (SFUNC = hostile.counted, STYPE = bigint, INITCOND = '0');
    -- types
    EXECUTE format('CREATE FUNCTION hostile.checked() RETURNS bool LANGUAGE plpgsql AS %L', body);
    FOR op IN SELECT unnest(types || 'regproc'::regtype || 'json'::regtype || 'numeric'::regtype) AS t LOOP
        EXECUTE format('CREATE DOMAIN hostile.%I AS pg_catalog.%1$s CHECK (hostile.checked())', (SELECT typname FROM pg_type WHERE oid = op.t));
    END LOOP;
END
$$;
CREATE TABLE hostile.pg_trigger ();
CREATE TABLE hostile.outbox ();
-- (it works)
SET search_path = hostile, pg_catalog;
SELECT 1 = 1, now(), count(*), pg_catalog.has_table_privilege('hostile.outbox', 'SELECT');
SELECT is_called FROM hostile.hijacked;
SELECT pg_catalog.setval('hostile.hijacked', 1, false);

-- With all that in the way, the extension is made
SET client_min_messages = warning;
CREATE EXTENSION onside_attribution;
SELECT * FROM t.foreign_parts;
-- and everything of it is used.
SELECT onside_attribution.pause('hostile');
SELECT onside_attribution.resume();
SELECT onside_attribution.track('tracked', :user, '{}', event_id => '0a0b0c0d-0001-4002-8003-000000000001');
SELECT pg_catalog.length(onside_attribution.track_purchase(:user, 9.90, 'USD')::pg_catalog.text);
SELECT onside_attribution.track_batch('[{"event_name": "batch", "payload": {}, "event_datetime": "2026-05-05T12:00:00Z", "installation_id": "550e8400-e29b-41d4-a716-446655440000"}]');
INSERT INTO onside_attribution.outbox (event_name, payload, installation_id) VALUES ('inserted', '{}', :user);
SELECT event_name FROM onside_attribution.pending;
SELECT event_name FROM onside_attribution.outbox;
SELECT onside_attribution.preview('0a0b0c0d-0001-4002-8003-000000000001') IS NOT NULL;
CREATE TABLE t.source (install_id pg_catalog.uuid, total pg_catalog.numeric, rel pg_catalog.regclass, at pg_catalog.timestamptz);
SELECT onside_attribution.attach('t.source', 'sold', 'install_id', '{"total": "total", "rel": "rel", "at": "at"}');
INSERT INTO t.source VALUES (:user, 9.90, 'hostile.outbox', '2026-05-05 12:00Z');
INSERT INTO t.source VALUES (NULL, 9.90, NULL, NULL);
SET onside_attribution.on_invalid_event = 'dead_letter';
SET client_min_messages = error;
INSERT INTO t.source VALUES (:user, 'NaN', NULL, NULL);
SET client_min_messages = warning;
SELECT payload FROM onside_attribution.pending WHERE event_name OPERATOR(pg_catalog.=) 'sold';
SELECT source, event_name, payload, operation, condition, level, enabled FROM onside_attribution.attached;
UPDATE onside_attribution.dead_letter SET http_status = 400, payload = '{}';
SELECT onside_attribution.retry_dead_letters();
SELECT onside_attribution.replay('-infinity');
SELECT onside_attribution.flush('0 s');
SELECT state IS NOT NULL FROM onside_attribution.status;
SELECT onside_attribution.detach('t.source', 'sold');
CREATE TABLE t.keyed (id pg_catalog.int8 PRIMARY KEY, install_id pg_catalog.uuid);
INSERT INTO t.keyed VALUES (1, :user);
SELECT onside_attribution.attach('t.keyed', 'keyed', 'install_id', '{}', event_id => 'id', condition => 'NEW.id OPERATOR(pg_catalog.>) 0');
CALL onside_attribution.backfill('t.keyed', 'keyed');
ALTER TABLE t.keyed RENAME install_id TO renamed;
ALTER TABLE t.keyed RENAME TO renamed;
INSERT INTO t.renamed VALUES (2, :user);
SELECT event_name FROM onside_attribution.pending WHERE event_name OPERATOR(pg_catalog.=) 'keyed';
SELECT ok FROM onside_attribution.doctor() WHERE check_name OPERATOR(pg_catalog.=) 'attached';
SELECT onside_attribution.forget('0a0b0c0d-0001-4002-8003-000000000009');
DROP TABLE t.renamed;
SELECT is_called FROM hostile.hijacked;
SET search_path = t;

-- Whoever may make objects in the extension's schema can shadow nothing that
-- the extension itself uses.
CREATE ROLE regress_onside_mallory;
CREATE ROLE regress_onside_alice;
GRANT USAGE, CREATE ON SCHEMA t, onside_attribution TO regress_onside_mallory;
GRANT USAGE ON SCHEMA t, onside_attribution TO regress_onside_alice;
SET ROLE regress_onside_mallory;
CREATE FUNCTION onside_attribution.hijack() RETURNS bool LANGUAGE plpgsql AS 'BEGIN PERFORM nextval(''hostile.hijacked''); RETURN NULL; END';
CREATE FUNCTION onside_attribution.oid_is(oid, int) RETURNS bool LANGUAGE sql AS 'SELECT onside_attribution.hijack()';
CREATE OPERATOR onside_attribution.= (LEFTARG = oid, RIGHTARG = int, FUNCTION = onside_attribution.oid_is);
CREATE FUNCTION onside_attribution.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT now() WHERE onside_attribution.hijack()';
CREATE FUNCTION onside_attribution.retry_dead_letters(uuid) RETURNS bigint LANGUAGE sql AS 'SELECT 1 WHERE onside_attribution.hijack()';
CREATE FUNCTION onside_attribution.trigger_mapping(int) RETURNS text LANGUAGE sql AS 'SELECT '''' WHERE onside_attribution.hijack()';
SELECT try('CREATE TABLE onside_attribution.outbox ()');
SELECT try('CREATE FUNCTION onside_attribution.track_row() RETURNS trigger LANGUAGE plpgsql AS ''BEGIN END''');
SELECT try('CREATE OR REPLACE FUNCTION onside_attribution.track_row() RETURNS trigger LANGUAGE plpgsql AS ''BEGIN END''');
SELECT try('ALTER TABLE onside_attribution.outbox ADD CONSTRAINT mine CHECK (onside_attribution.hijack())');
SELECT try('ALTER TABLE onside_attribution.outbox ENABLE ROW LEVEL SECURITY');
SELECT try('CREATE RULE mine AS ON UPDATE TO onside_attribution.control DO ALSO SELECT onside_attribution.hijack()');
SELECT try('CREATE POLICY mine ON onside_attribution.outbox USING (onside_attribution.hijack())');
SELECT try('CREATE TABLE t.part PARTITION OF onside_attribution.outbox FOR VALUES IN (4)');
SELECT try('CREATE TABLE t.child () INHERITS (onside_attribution.control)');
SELECT try('CREATE INDEX ON onside_attribution.dead_letter ((onside_attribution.hijack()))');
SELECT try('CREATE TRIGGER mine AFTER INSERT ON onside_attribution.outbox EXECUTE FUNCTION onside_attribution.track_row()');
SELECT try('CREATE TABLE t.referencing (s bool REFERENCES onside_attribution.control ON UPDATE CASCADE)');
RESET ROLE;
SET search_path = onside_attribution, t;
SELECT pause();
SELECT resume();
SELECT retry_dead_letters();
SELECT count(*) FROM attached;
SELECT count(*) FROM pending;
SET search_path = t;
SELECT is_called FROM hostile.hijacked;
SET client_min_messages = error;
DROP OWNED BY regress_onside_mallory CASCADE;
SET client_min_messages = warning;

-- What is a user's runs as whoever writes to the table: a condition, the check
-- of a domain, a default, a generated column.  What makes text or JSON of a
-- value runs nothing of a user's at all.
CREATE TABLE ran (what text, as_whom name);
GRANT ALL ON ran TO PUBLIC;
GRANT USAGE, CREATE ON SCHEMA t TO regress_onside_mallory;
GRANT USAGE ON SCHEMA onside_attribution TO regress_onside_mallory;
GRANT EXECUTE ON FUNCTION onside_attribution.attach, onside_attribution.track_row TO regress_onside_mallory;
SET ROLE regress_onside_mallory;
CREATE FUNCTION note(what text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN INSERT INTO t.ran VALUES (what, current_user); RETURN true; END $$;
CREATE DOMAIN checked AS text CHECK (t.note('domain'));
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TYPE pair AS (a checked, b mood);
CREATE FUNCTION mood_diff(mood, mood) RETURNS float8 LANGUAGE sql IMMUTABLE AS $$ SELECT 1.0::float8 WHERE t.note('subtype_diff') $$;
CREATE TYPE moods AS RANGE (SUBTYPE = mood, SUBTYPE_DIFF = mood_diff);
CREATE FUNCTION to_json(pair) RETURNS json LANGUAGE sql AS $$ SELECT '{}'::json WHERE t.note('cast to json') $$;
CREATE FUNCTION to_text(mood) RETURNS text LANGUAGE sql AS $$ SELECT '' WHERE t.note('cast to text') $$;
CREATE CAST (pair AS json) WITH FUNCTION to_json(pair) AS IMPLICIT;
CREATE CAST (mood AS text) WITH FUNCTION to_text(mood) AS IMPLICIT;
CREATE TABLE typed (
    install_id uuid,
    a checked DEFAULT CASE WHEN note('default') THEN 'a' END,
    b mood,
    c pair,
    d moods,
    e pair[]);
CREATE TRIGGER report AFTER INSERT ON typed FOR EACH ROW WHEN (t.note('condition')) EXECUTE FUNCTION onside_attribution.track_row(
    'event_name=e', 'installation_id=install_id', 'payload.a=a', 'payload.b=b', 'payload.c=c', 'payload.d=d', 'payload.e=e');
GRANT INSERT ON typed TO regress_onside_alice;
RESET ROLE;
GRANT SELECT ON typed TO regress_onside_alice;
TRUNCATE ran;
SET ROLE regress_onside_alice;
INSERT INTO typed (install_id, b, c, d, e) VALUES (:user, 'good', ROW('x', 'bad'), '[good,bad]', ARRAY[ROW('y', 'good')::pair]);
RESET ROLE;
SELECT DISTINCT what, as_whom FROM ran ORDER BY 1, 2;
SELECT payload FROM onside_attribution.outbox WHERE event_name = 'e';

-- An event trigger sees attach's CREATE TRIGGER, as the caller's.
CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO t.ran VALUES (tg_tag, current_user); END $$;
TRUNCATE ran;
GRANT INSERT ON ran TO PUBLIC;
CREATE EVENT TRIGGER regress_onside_ddl ON ddl_command_end WHEN TAG IN ('CREATE TRIGGER') EXECUTE FUNCTION on_ddl();
SET ROLE regress_onside_mallory;
SELECT onside_attribution.attach('typed', 'f', 'install_id', '{}');
RESET ROLE;
DROP EVENT TRIGGER regress_onside_ddl;
SELECT * FROM ran;

-- What CREATE TRIGGER needs, attach does: to find the table, too.
CREATE SCHEMA regress_onside_closed;
CREATE TABLE regress_onside_closed.source (install_id uuid);
GRANT TRIGGER ON regress_onside_closed.source TO regress_onside_mallory;
SELECT 'regress_onside_closed.source'::regclass::oid AS closed \gset
SET ROLE regress_onside_mallory;
SELECT try(format('SELECT onside_attribution.attach(%s, ''e'', ''install_id'', ''{}'')', :closed));
RESET ROLE;
DROP SCHEMA regress_onside_closed CASCADE;

-- A setting that is made before the library is there to say whose it is counts
-- no more than one after that.
\c -
SET search_path = t;
SET client_min_messages = error;
SET SESSION AUTHORIZATION regress_onside_alice;
SELECT try('SET onside_attribution.endpoint = ''https://evil.example/''') IS NOT NULL,
       try('SET onside_attribution.credentials_file = ''/etc/passwd''') IS NOT NULL,
       try('SET onside_attribution.current_segment = ''9''') IS NOT NULL;
SELECT try('ALTER ROLE regress_onside_alice SET onside_attribution.endpoint = ''https://evil.example/''');
RESET SESSION AUTHORIZATION;
SELECT onside_attribution.track('after', :user, '{}') IS NOT NULL;
INSERT INTO onside_attribution.outbox (event_name, payload, installation_id) VALUES ('inserted', '{}', :user) RETURNING segment;
SELECT current_setting('onside_attribution.endpoint'), current_setting('onside_attribution.credentials_file');

-- A schema that is there already, and somebody else's, is not moved into.
TRUNCATE onside_attribution.outbox;
DROP EXTENSION onside_attribution CASCADE;
DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO regress_onside_mallory', current_database()); END $$;
SET ROLE regress_onside_mallory;
CREATE SCHEMA onside_attribution;
RESET ROLE;
SELECT try('CREATE EXTENSION onside_attribution');
DROP SCHEMA onside_attribution;

DROP OWNED BY regress_onside_mallory, regress_onside_alice CASCADE;
DROP ROLE regress_onside_mallory, regress_onside_alice;
DROP SCHEMA hostile CASCADE;
CREATE EXTENSION onside_attribution;
