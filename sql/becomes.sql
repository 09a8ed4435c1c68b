-- becomes: an event when the expression is true now and was not before; a condition
-- on OLD binds the UPDATE alone; deferred: the row as it is at the end.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/sql/include/setup.sql'
\i :setup

\set user '''550e8400-e29b-41d4-a716-446655440000'''
CREATE TABLE o (id int PRIMARY KEY, state text, "new" text, install uuid DEFAULT '550e8400-e29b-41d4-a716-446655440000');
CREATE VIEW got AS SELECT event_name, payload ->> 'id' AS id FROM onside_attribution.outbox ORDER BY xid, outbox.id;
SELECT onside_attribution.attach('o', 'paid', 'install', '{"id": "id"}', becomes => $$NEW.state = 'paid'$$);
SELECT tgname, regexp_replace(pg_get_triggerdef(oid), 'EXECUTE.*', '') FROM pg_trigger WHERE tgrelid = 'o'::regclass ORDER BY tgname;
SELECT * FROM onside_attribution.attached;

-- Each state before, each one after: NULL counts as not.
CREATE FUNCTION moves() RETURNS TABLE (was text, becomes text, events bigint) LANGUAGE plpgsql AS $$
BEGIN
    FOR was, becomes IN SELECT a, b FROM unnest(ARRAY['none', 'new', 'paid', NULL]) a, unnest(ARRAY['new', 'paid', NULL]) b LOOP
        DELETE FROM o;
        IF was IS DISTINCT FROM 'none' THEN
            INSERT INTO o VALUES (1, was);
        END IF;
        DELETE FROM onside_attribution.outbox;
        IF was = 'none' THEN
            INSERT INTO o VALUES (1, becomes);
        ELSE
            UPDATE o SET state = becomes;
        END IF;
        SELECT count(*) INTO events FROM onside_attribution.outbox;
        RETURN NEXT;
    END LOOP;
    DELETE FROM onside_attribution.outbox;
    DELETE FROM o;
END $$;
SELECT * FROM moves();
INSERT INTO o VALUES (1, 'paid') ON CONFLICT (id) DO UPDATE SET state = excluded.state;
INSERT INTO o VALUES (1, 'paid') ON CONFLICT (id) DO UPDATE SET state = excluded.state;
SELECT * FROM got;
SELECT onside_attribution.detach('o', 'paid');
SELECT count(*) FROM pg_trigger WHERE tgrelid = 'o'::regclass;

-- NEW in each spelling, and what only looks like it.
CREATE FUNCTION is_paid(o) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$SELECT $1.state = 'paid'$$;
CREATE FUNCTION definition(becomes text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
BEGIN
    PERFORM onside_attribution.attach('o', 'paid', 'install', '{}', becomes => becomes);
    SELECT regexp_replace(pg_get_triggerdef(oid), '.*ROW WHEN (.*) EXECUTE.*', '\1') INTO result FROM pg_trigger WHERE tgname = 'onside2_paid';
    PERFORM onside_attribution.detach('o', 'paid');
    RETURN result;
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE || ' ' || SQLERRM;
END $$;
SELECT definition($$new.state = 'paid'$$);
SELECT definition($$"new".state = 'paid' AND NEW . state <> 'NEW.state'$$);
SELECT definition($$(NEW).state = 'paid' -- NEW.state$$);
SELECT definition($$NEW."new" = 'NEW' /* NEW.x */ AND NEW.state IS NOT NULL$$);
SELECT definition('is_paid(NEW)');
SELECT definition('NEW IS NOT NULL');
SELECT definition('ROW(NEW.*) IS NOT NULL');
SELECT definition($$CASE WHEN NEW.id > 1 THEN NEW.state = 'paid' ELSE coalesce(NEW.state, NEW."new") = 'x' END$$);
ALTER TABLE o RENAME "new" TO other;
SELECT definition($$(NEW).state = 'paid' -- NEW.state$$);
SELECT definition('is_paid(NEW)');
SELECT definition('NEW IS NOT NULL');
SELECT definition($$U&"\006eew".state = 'paid'$$);
SELECT definition($$OLD.state = 'paid'$$);
SELECT definition($$NEW.state = 'paid') OR (true$$);
SELECT definition($$NEW.nothing = 'paid'$$);
SELECT definition('NEW.id');
SELECT try($$SELECT onside_attribution.attach('o', 'paid', 'install', '{}', becomes => 'true', condition => 'true')$$);
SELECT try($$SELECT onside_attribution.attach('o', 'paid', 'install', '{}', becomes => 'true', operation => 'UPDATE')$$);

-- A condition on OLD
SELECT try($$SELECT onside_attribution.attach('o', 'e', 'install', '{}', condition => 'OLD.id = 1')$$);
SELECT onside_attribution.attach('o', 'renewed', 'install', '{"id": "id"}', operation => 'INSERT OR UPDATE', condition => 'OLD.state IS DISTINCT FROM NEW.state');
SELECT operation, condition, becomes, level FROM onside_attribution.attached;
TRUNCATE onside_attribution.outbox, o;
INSERT INTO o VALUES (1, 'a'), (2, 'b');
UPDATE o SET state = 'b';
SELECT * FROM got;
SELECT onside_attribution.detach('o', 'renewed');

-- On a partitioned table a row that moves is inserted again.
CREATE TABLE p (id int, part int, state text, install uuid DEFAULT '550e8400-e29b-41d4-a716-446655440000', PRIMARY KEY (id, part)) PARTITION BY LIST (part);
CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
CREATE TABLE p2 (install uuid DEFAULT '550e8400-e29b-41d4-a716-446655440000', state text, gone int, part int NOT NULL, id int NOT NULL);
ALTER TABLE p2 DROP gone;
ALTER TABLE p ATTACH PARTITION p2 FOR VALUES IN (2);
SELECT try($$SELECT onside_attribution.attach('p', 'paid', 'install', '{}', becomes => $a$NEW.state = 'paid'$a$)$$);
SELECT try($$SELECT onside_attribution.attach('p', 'paid', 'install', '{"id": "id"}', event_id => 'id', becomes => $a$NEW.state = 'paid'$a$)$$);
TRUNCATE onside_attribution.outbox;
INSERT INTO p VALUES (1, 1, 'new'), (2, 2, 'paid');
UPDATE p SET state = 'paid' WHERE id = 1;
UPDATE p SET part = 2 WHERE id = 1;
SELECT id, count(DISTINCT event_id), count(*) FROM (SELECT payload ->> 'id' AS id, event_id FROM onside_attribution.outbox) e GROUP BY id ORDER BY id;
SELECT onside_attribution.detach('p', 'paid');

-- Two rows whose keys read alike in the order of their partition's columns.
SELECT onside_attribution.attach('p', 'inserted', 'install', '{"id": "id", "part": "part"}', deferred => true);
TRUNCATE onside_attribution.outbox, p;
INSERT INTO p VALUES (2, 1), (1, 2);
SELECT payload FROM onside_attribution.outbox ORDER BY payload;
SELECT onside_attribution.detach('p', 'inserted');
-- A condition that is NULL is not met, whatever the row before was.
SELECT onside_attribution.attach('p', 'paid', 'install', '{"id": "id"}', condition => $$NEW.state = 'paid'$$, deferred => true);
TRUNCATE onside_attribution.outbox;
BEGIN;
INSERT INTO p VALUES (5, 1, 'paid'), (6, 1, 'paid'), (7, 1, 'paid');
UPDATE p SET state = NULL WHERE id IN (6, 7);
COMMIT;
SELECT payload FROM onside_attribution.outbox ORDER BY payload;
SELECT onside_attribution.detach('p', 'paid');

-- Deferred: the row as it is at the end, once a row and transaction.
CREATE TABLE nokey (install uuid);
SELECT try($$SELECT onside_attribution.attach('nokey', 'e', 'install', '{}', deferred => true)$$);
CREATE TABLE d (id int PRIMARY KEY, state text, ref int, install uuid DEFAULT '550e8400-e29b-41d4-a716-446655440000');
SELECT onside_attribution.attach('d', 'paid', 'install', '{"id": "id", "ref": "ref", "state": "state"}', becomes => $$NEW.state = 'paid'$$, deferred => true);
SELECT regexp_replace(pg_get_triggerdef(oid), 'EXECUTE.*', '') FROM pg_trigger WHERE tgrelid = 'd'::regclass AND NOT tgisinternal ORDER BY tgname;
SELECT becomes, deferred FROM onside_attribution.attached WHERE source = 'd'::regclass;
CREATE VIEW paid AS SELECT payload ->> 'id' AS id, payload ->> 'ref' AS ref FROM onside_attribution.outbox ORDER BY xid, outbox.id;
TRUNCATE onside_attribution.outbox;
\echo the reference is written after the state
BEGIN;
INSERT INTO d VALUES (1, 'new');
UPDATE d SET state = 'paid';
UPDATE d SET ref = 7;
SELECT count(*) FROM paid;
COMMIT;
SELECT * FROM paid;
\echo paid, refunded: none
TRUNCATE onside_attribution.outbox;
BEGIN; INSERT INTO d VALUES (2, 'paid'); UPDATE d SET state = 'refunded' WHERE id = 2; COMMIT;
SELECT * FROM paid;
\echo deleted: none
BEGIN; INSERT INTO d VALUES (3, 'paid'); DELETE FROM d WHERE id = 3; COMMIT;
SELECT * FROM paid;
\echo paid, refunded, paid: one
BEGIN; INSERT INTO d VALUES (4, 'paid'); UPDATE d SET state = 'refunded' WHERE id = 4; UPDATE d SET state = 'paid', ref = 4 WHERE id = 4; COMMIT;
SELECT * FROM paid;
\echo deleted and inserted again: one
TRUNCATE onside_attribution.outbox;
BEGIN; INSERT INTO d VALUES (5, 'paid', 1); DELETE FROM d WHERE id = 5; INSERT INTO d VALUES (5, 'paid', 2); COMMIT;
SELECT * FROM paid;
\echo another key: one
TRUNCATE onside_attribution.outbox;
BEGIN; INSERT INTO d VALUES (6, 'paid', 1); UPDATE d SET id = 60 WHERE id = 6; COMMIT;
SELECT * FROM paid;
\echo rolled back savepoints
TRUNCATE onside_attribution.outbox;
BEGIN; INSERT INTO d VALUES (7, 'new');
SAVEPOINT s; UPDATE d SET state = 'paid' WHERE id = 7; SET CONSTRAINTS ALL IMMEDIATE; SELECT count(*) FROM paid; ROLLBACK TO s;
SAVEPOINT s; UPDATE d SET state = 'paid', ref = 7 WHERE id = 7; RELEASE s; COMMIT;
SELECT * FROM paid;
\echo early, and not again
TRUNCATE onside_attribution.outbox;
BEGIN; INSERT INTO d VALUES (8, 'paid', 1); SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED;
UPDATE d SET state = 'new' WHERE id = 8; UPDATE d SET state = 'paid', ref = 2 WHERE id = 8; COMMIT;
SELECT * FROM paid;
\echo several rows, in one statement and by COPY
TRUNCATE onside_attribution.outbox;
INSERT INTO d SELECT n, 'paid', n FROM generate_series(10, 12) n;
COPY d (id, state) FROM stdin;
13	paid
14	new
\.
SELECT * FROM paid;
\echo a condition on OLD keeps the OLD of then
SELECT onside_attribution.detach('d', 'paid');
SELECT onside_attribution.attach('d', 'up', 'install', '{"id": "id", "ref": "ref"}', operation => 'UPDATE', condition => 'NEW.ref > OLD.ref', deferred => true);
TRUNCATE onside_attribution.outbox;
BEGIN; UPDATE d SET ref = ref + 1 WHERE id = 10; UPDATE d SET ref = ref + 1 WHERE id = 10; COMMIT;
BEGIN; UPDATE d SET ref = ref + 1 WHERE id = 11; UPDATE d SET ref = ref - 5 WHERE id = 11; COMMIT;
SELECT * FROM paid;
\echo a row that moves to another partition
SELECT onside_attribution.attach('p', 'paid', 'install', '{"id": "id", "ref": "part"}', event_id => 'id', becomes => $$NEW.state = 'paid'$$, deferred => true);
TRUNCATE p;
INSERT INTO p VALUES (1, 1, 'new');
TRUNCATE onside_attribution.outbox;
BEGIN; UPDATE p SET state = 'paid'; UPDATE p SET part = 2; COMMIT;
SELECT * FROM paid;
BEGIN; UPDATE p SET state = 'new'; UPDATE p SET state = 'paid', part = 1; UPDATE p SET part = 2; UPDATE p SET state = 'refunded'; COMMIT;
SELECT * FROM paid;
\echo the key is gone
ALTER TABLE d DROP CONSTRAINT d_pkey;
TRUNCATE onside_attribution.outbox;
BEGIN; UPDATE d SET ref = ref + 1 WHERE id = 10; UPDATE d SET ref = ref + 1 WHERE id = 10; COMMIT;
SELECT * FROM paid;

-- What was looked at early: once an event was recorded, and again when the row has changed.
CREATE TABLE e (id int PRIMARY KEY, state text, ref int, install uuid, buy uuid);
SELECT onside_attribution.attach('e', 'e', 'install', '{"id": "id", "ref": "ref"}', condition => $$NEW.state = 'paid'$$, operation => 'INSERT OR UPDATE', deferred => true);
\set one '''550e8400-e29b-41d4-a716-446655440000'''
\echo without an installation_id at first
TRUNCATE onside_attribution.outbox;
BEGIN; INSERT INTO e VALUES (1, 'paid', 1); SET CONSTRAINTS ALL IMMEDIATE; UPDATE e SET install = :one WHERE id = 1; COMMIT;
SELECT * FROM paid;
\echo recorded, and then touched
TRUNCATE onside_attribution.outbox;
BEGIN; INSERT INTO e VALUES (2, 'paid', 1, :one); SET CONSTRAINTS ALL IMMEDIATE; UPDATE e SET ref = 2 WHERE id = 2; COMMIT;
SELECT * FROM paid;
\echo early and rolled back: as it is in the end
TRUNCATE onside_attribution.outbox;
BEGIN; INSERT INTO e VALUES (3, 'paid', 1, :one); SAVEPOINT s; SET CONSTRAINTS ALL IMMEDIATE; SELECT * FROM paid; ROLLBACK TO s;
SAVEPOINT s; SAVEPOINT t; UPDATE e SET ref = 2 WHERE id = 3; RELEASE t; RELEASE s; COMMIT;
SELECT * FROM paid;
\echo versions that were rolled back after they were looked at
TRUNCATE onside_attribution.outbox;
BEGIN; INSERT INTO e VALUES (30, 'paid', 1, :one); UPDATE e SET ref = 2 WHERE id = 30; SAVEPOINT s; UPDATE e SET ref = 3 WHERE id = 30; UPDATE e SET ref = 4 WHERE id = 30;
SET CONSTRAINTS ALL IMMEDIATE; SELECT * FROM paid; ROLLBACK TO s; COMMIT;
SELECT * FROM paid;
\echo and written anew in their place
TRUNCATE onside_attribution.outbox;
BEGIN; INSERT INTO e VALUES (31, 'paid', 1, :one); UPDATE e SET ref = 2 WHERE id = 31; SAVEPOINT s; UPDATE e SET ref = 3 WHERE id = 31; SAVEPOINT t;
SET CONSTRAINTS ALL IMMEDIATE; RELEASE t; ROLLBACK TO s; UPDATE e SET ref = 5 WHERE id = 31; UPDATE e SET ref = 6, state = 'new' WHERE id = 31; UPDATE e SET ref = 7, state = 'paid' WHERE id = 31; COMMIT;
SELECT * FROM paid;
\echo and deleted in the end
TRUNCATE onside_attribution.outbox;
BEGIN; INSERT INTO e VALUES (32, 'paid', 1, :one); UPDATE e SET ref = 2 WHERE id = 32; SELECT 1 FROM e WHERE id = 32 FOR UPDATE; UPDATE e SET ref = 3 WHERE id = 32; DELETE FROM e WHERE id = 32; INSERT INTO e VALUES (32, 'new', 4, :one); COMMIT;
SELECT * FROM paid;
\echo another row in the same place
TRUNCATE onside_attribution.outbox;
BEGIN; TRUNCATE e; INSERT INTO e VALUES (4, 'paid', 1, :one); SET CONSTRAINTS ALL IMMEDIATE; TRUNCATE e; INSERT INTO e VALUES (5, 'paid', 1, :one); COMMIT;
SELECT * FROM paid;
\echo not detached in between
SELECT try($$INSERT INTO e VALUES (6, 'paid', 1, '550e8400-e29b-41d4-a716-446655440000'); SELECT onside_attribution.detach('e', 'e')$$);
BEGIN; INSERT INTO e VALUES (6, 'paid', 1, :one); SET CONSTRAINTS ALL IMMEDIATE; SELECT onside_attribution.detach('e', 'e'); COMMIT;
\echo an event_id of its own that has changed is another event
SELECT onside_attribution.attach('e', 'e', 'install', '{"id": "id", "ref": "ref"}', event_id => 'ref', condition => $$NEW.state = 'paid'$$, operation => 'INSERT OR UPDATE', deferred => true);
TRUNCATE onside_attribution.outbox;
BEGIN; INSERT INTO e VALUES (7, 'paid', 1, :one); SET CONSTRAINTS ALL IMMEDIATE; UPDATE e SET state = 'paid' WHERE id = 7; UPDATE e SET ref = 2 WHERE id = 7; COMMIT;
SELECT * FROM paid;
SELECT onside_attribution.detach('e', 'e');
\echo a mapper that fails for what is not complete, with two events a row
SET client_min_messages = error;
CREATE FUNCTION two(e) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS
    $$ SELECT $1.install, jsonb_build_object('id', $1.id, 'ref', 100 / $1.ref + n), NULL::timestamptz, NULL::uuid FROM generate_series(1, 2) n $$;
SELECT onside_attribution.attach('e', 'e', mapper => 'two', condition => $$NEW.state = 'paid'$$, operation => 'INSERT OR UPDATE', deferred => true);
TRUNCATE onside_attribution.outbox, onside_attribution.dead_letter;
BEGIN; INSERT INTO e VALUES (8, 'paid', 0, :one); UPDATE e SET buy = NULL WHERE id = 8; SET CONSTRAINTS ALL IMMEDIATE;
UPDATE e SET ref = 10 WHERE id = 8; UPDATE e SET ref = 20 WHERE id = 8; COMMIT;
SELECT * FROM paid;
SELECT count(*) FROM onside_attribution.dead_letter;
RESET client_min_messages;

-- Disabled is what does not fire: all triggers of an attachment, or some of them.
CREATE TABLE f (id int PRIMARY KEY, state text, install uuid) PARTITION BY RANGE (id);
CREATE TABLE f1 PARTITION OF f FOR VALUES FROM (1) TO (2);
CREATE TABLE f2 PARTITION OF f FOR VALUES FROM (2) TO (4) PARTITION BY RANGE (id);
CREATE TABLE f2a PARTITION OF f2 FOR VALUES FROM (2) TO (3);
SELECT onside_attribution.attach('f', 'f', 'install', '{}', event_id => 'id', becomes => $$NEW.state = 'paid'$$);
CREATE FUNCTION enabled(command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE 'ALTER TABLE ' || command;
    RETURN (SELECT coalesce(enabled::text, 'partly') FROM onside_attribution.attached WHERE source = 'f'::regclass);
END
$$;
SELECT command, enabled(command) FROM unnest(ARRAY[
    'f ENABLE TRIGGER USER', 'f DISABLE TRIGGER onside_f', 'f DISABLE TRIGGER onside2_f', 'f ENABLE TRIGGER onside_f', 'f ENABLE TRIGGER onside2_f',
    'f1 DISABLE TRIGGER onside_f', 'f1 ENABLE TRIGGER onside_f', 'f2a DISABLE TRIGGER onside2_f', 'f2a ENABLE ALWAYS TRIGGER onside2_f', 'f2a ENABLE REPLICA TRIGGER onside2_f',
    'f ENABLE REPLICA TRIGGER onside_f, ENABLE REPLICA TRIGGER onside2_f', 'f DISABLE TRIGGER USER', 'f1 ENABLE TRIGGER USER', 'f ENABLE TRIGGER USER']) AS command;
