-- track_row reports each row that a statement has written once, whatever the
-- statement and the table are; and what is no valid event is an error or, if
-- on_invalid_event says so, a dead letter.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/sql/include/setup.sql'
\i :setup
SET onside_attribution.on_invalid_event = error;

\set user '''550e8400-e29b-41d4-a716-446655440000'''

-- The same trigger for each row and for each statement
CREATE TABLE by_row (id int PRIMARY KEY, install_id uuid, currency text, total numeric, paid_at timestamptz DEFAULT '2026-05-05 12:00+00', purchase_uuid uuid);
CREATE TABLE by_statement (LIKE by_row INCLUDING ALL);
CREATE TRIGGER report AFTER INSERT ON by_row FOR EACH ROW
EXECUTE FUNCTION onside_attribution.track_row('event_name=purchase_completed', 'installation_id=install_id', 'payload.currency=currency',
                                              'payload.amount=total', 'event_datetime=paid_at', 'event_id=purchase_uuid');
CREATE TRIGGER report AFTER INSERT ON by_statement REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT
EXECUTE FUNCTION onside_attribution.track_row('event_name=purchase_completed', 'installation_id=install_id', 'payload.currency=currency',
                                              'payload.amount=total', 'event_datetime=paid_at', 'event_id=purchase_uuid');
INSERT INTO by_row VALUES (1, :user, 'USD', 9.90, '2026-05-05 12:00+00', '0a0b0c0d-0001-4002-8003-000000000001');
INSERT INTO by_statement VALUES (1, :user, 'USD', 9.90, '2026-05-05 12:00+00', '0a0b0c0d-0001-4002-8003-000000000002');
SELECT onside_attribution.preview('0a0b0c0d-0001-4002-8003-000000000001');
SELECT replace(onside_attribution.preview('0a0b0c0d-0001-4002-8003-000000000002'), '000000000002', '000000000001') =
       onside_attribution.preview('0a0b0c0d-0001-4002-8003-000000000001');
TRUNCATE onside_attribution.outbox;
-- Several rows, in their order; an event_id of its own for each that has none
INSERT INTO by_row SELECT n, :user, 'EUR', n FROM generate_series(2, 4) AS n;
INSERT INTO by_statement SELECT n, :user, 'EUR', n FROM generate_series(2, 4) AS n;
SELECT payload FROM recorded;
SELECT count(DISTINCT event_id) FROM onside_attribution.outbox;
TRUNCATE onside_attribution.outbox;
-- No row, no event
INSERT INTO by_row SELECT * FROM by_row WHERE false;
INSERT INTO by_statement SELECT * FROM by_statement WHERE false;
-- A purchase made outside the app
INSERT INTO by_row VALUES (5, NULL, 'EUR', 1), (6, :user, 'EUR', 2);
INSERT INTO by_statement VALUES (5, NULL, 'EUR', 3), (6, :user, 'EUR', 4), (7, NULL, 'EUR', 'NaN');
SELECT payload FROM recorded;
TRUNCATE onside_attribution.outbox;
-- Savepoints
BEGIN;
INSERT INTO by_row VALUES (10, :user, 'EUR', 10);
SAVEPOINT a;
INSERT INTO by_row VALUES (11, :user, 'EUR', 11);
INSERT INTO by_statement VALUES (11, :user, 'EUR', 11.5);
ROLLBACK TO a;
INSERT INTO by_statement VALUES (12, :user, 'EUR', 12);
SAVEPOINT b;
INSERT INTO by_row VALUES (13, :user, 'EUR', 13);
RELEASE b;
COMMIT;
SELECT payload -> 'amount', xid = max(xid) OVER (), id < lead(id) OVER (ORDER BY id) FROM onside_attribution.outbox ORDER BY id;
TRUNCATE onside_attribution.outbox;
-- COPY
COPY by_row (id, install_id, total) FROM stdin;
20	550e8400-e29b-41d4-a716-446655440000	20.0
21	\N	21.0
22	550e8400-e29b-41d4-a716-446655440000	22.0
\.
COPY by_statement (id, install_id, total) FROM stdin;
20	550e8400-e29b-41d4-a716-446655440000	20.1
21	\N	21.1
22	550e8400-e29b-41d4-a716-446655440000	22.1
\.
SELECT payload FROM recorded;
TRUNCATE onside_attribution.outbox;
-- INSERT ... ON CONFLICT: an INSERT trigger reports what was inserted.
INSERT INTO by_row VALUES (20, :user, 'EUR', 1), (30, :user, 'EUR', 30) ON CONFLICT DO NOTHING;
INSERT INTO by_statement VALUES (20, :user, 'EUR', 2), (30, :user, 'EUR', 30.1) ON CONFLICT (id) DO UPDATE SET total = 0;
-- UPDATE and DELETE are nothing to it.
UPDATE by_row SET total = 5;
UPDATE by_statement SET total = 5;
DELETE FROM by_row WHERE id = 1;
SELECT payload FROM recorded;
TRUNCATE onside_attribution.outbox;
-- MERGE
MERGE INTO by_row USING (VALUES (20), (40)) AS v (n) ON id = n
WHEN MATCHED THEN UPDATE SET total = 0 WHEN NOT MATCHED THEN INSERT VALUES (n, :user, 'EUR', n);
MERGE INTO by_statement USING (VALUES (20), (40)) AS v (n) ON id = n
WHEN MATCHED THEN UPDATE SET total = 0 WHEN NOT MATCHED THEN INSERT VALUES (n, :user, 'EUR', n + 0.1);
SELECT payload FROM recorded;
TRUNCATE onside_attribution.outbox;
-- In a data-modifying WITH, and in a function that catches an error
WITH w AS (INSERT INTO by_row VALUES (50, :user, 'EUR', 50) RETURNING total)
INSERT INTO by_statement SELECT 50, :user, 'EUR', total + 0.1 FROM w;
DO $$
BEGIN
    INSERT INTO t.by_row VALUES (51, gen_random_uuid(), 'EUR', 51);
    BEGIN
        INSERT INTO t.by_row VALUES (52, gen_random_uuid(), 'EUR', 52), (52, gen_random_uuid(), 'EUR', 52);
    EXCEPTION WHEN unique_violation THEN
        INSERT INTO t.by_statement VALUES (52, gen_random_uuid(), 'EUR', 52.1);
    END;
END
$$;
SELECT payload FROM recorded ORDER BY payload ->> 'amount';
TRUNCATE onside_attribution.outbox;

-- UPDATE triggers see the new row.
CREATE TABLE orders (id int PRIMARY KEY, install_id uuid, status text, total numeric);
CREATE TRIGGER paid AFTER UPDATE ON orders FOR EACH ROW WHEN (NEW.status = 'paid' AND OLD.status IS DISTINCT FROM 'paid')
EXECUTE FUNCTION onside_attribution.track_row('event_name=paid', 'installation_id=install_id', 'payload.total=total');
CREATE TRIGGER changed AFTER UPDATE ON orders REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT
EXECUTE FUNCTION onside_attribution.track_row('event_name=changed', 'installation_id=install_id', 'payload.total=total');
CREATE TRIGGER written AFTER INSERT OR UPDATE OF status ON orders FOR EACH ROW
EXECUTE FUNCTION onside_attribution.track_row('event_name=written', 'installation_id=install_id', 'payload.total=total', 'payload.status=status');
INSERT INTO orders VALUES (1, :user, 'new', 1), (2, :user, 'new', 2);
UPDATE orders SET total = total + 0.5;
UPDATE orders SET status = 'paid' WHERE id = 1;
UPDATE orders SET status = 'paid';
SELECT event_name, payload FROM recorded ORDER BY event_name, payload ->> 'total', payload ->> 'status';
TRUNCATE onside_attribution.outbox;
-- Two triggers of one statement each read the whole transition table, after
-- one in PL/pgSQL that reads it, too.
CREATE FUNCTION a_reader() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM new_rows LIMIT 1;
    RAISE NOTICE '% rows', (SELECT count(*) FROM new_rows);
    RETURN NULL;
END
$$;
CREATE TRIGGER a_reader AFTER UPDATE ON orders REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION a_reader();
CREATE TRIGGER z_reader AFTER UPDATE ON orders REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION a_reader();
CREATE TRIGGER changed_too AFTER UPDATE ON orders REFERENCING NEW TABLE AS my_rows FOR EACH STATEMENT
EXECUTE FUNCTION onside_attribution.track_row('event_name=changed too', 'installation_id=install_id', 'payload.total=total');
UPDATE orders SET total = total + 1;
SELECT event_name, payload FROM recorded ORDER BY event_name, payload ->> 'total';
TRUNCATE onside_attribution.outbox;
-- A transition table that does not fit work_mem
SET work_mem = '64kB';
INSERT INTO by_statement SELECT n, :user, repeat('x', 100), n FROM generate_series(1001, 6000) AS n;
RESET work_mem;
SELECT count(*), count(DISTINCT event_id), sum((payload ->> 'amount')::int) = (1001 + 6000) * 5000 / 2 FROM onside_attribution.outbox;
TRUNCATE onside_attribution.outbox;

-- Partitions: through the parent and directly, each row once, with columns in
-- another order
CREATE TABLE sales (id int, install_id uuid, total numeric) PARTITION BY RANGE (id);
CREATE TABLE sales_1 (total numeric, dropped int, id int, install_id uuid);
ALTER TABLE sales_1 DROP dropped;
ALTER TABLE sales ATTACH PARTITION sales_1 FOR VALUES FROM (1) TO (100);
CREATE TABLE sales_2 PARTITION OF sales FOR VALUES FROM (100) TO (200) PARTITION BY LIST (id);
SELECT onside_attribution.attach('sales', 'sold', 'install_id', '{"id": "id", "total": "total"}');
CREATE TABLE sales_2_rest PARTITION OF sales_2 DEFAULT;
INSERT INTO sales VALUES (1, :user, 1), (101, :user, 101);
INSERT INTO sales_1 (id, install_id, total) VALUES (2, :user, 2);
INSERT INTO sales_2 VALUES (102, :user, 102);
INSERT INTO sales_2_rest VALUES (103, :user, 103);
COPY sales FROM stdin;
4	550e8400-e29b-41d4-a716-446655440000	4
104	550e8400-e29b-41d4-a716-446655440000	104
\.
SELECT event_name, payload FROM recorded ORDER BY payload -> 'id';
TRUNCATE onside_attribution.outbox;
-- A condition, on columns that each partition has elsewhere
SELECT onside_attribution.attach('sales', 'dear', 'install_id', '{"id": "id"}', operation => 'INSERT OR UPDATE', condition => 'NEW.total > 100 AND NEW.id < 150');
INSERT INTO sales VALUES (5, :user, 101), (6, :user, 99), (106, :user, 101), (151, :user, 101);
UPDATE sales SET total = 102 WHERE id IN (6, 151);
SELECT event_name, payload FROM recorded ORDER BY event_name, payload -> 'id';
SELECT onside_attribution.detach('sales', 'dear');
TRUNCATE onside_attribution.outbox;
-- To PostgreSQL, and so to an INSERT trigger, a row that moves to another
-- partition is inserted there (map event_id, and it is the same event).
UPDATE sales SET id = 107 WHERE id = 5;
SELECT event_name, payload FROM recorded;
TRUNCATE onside_attribution.outbox;
-- A partition of its own that comes and goes
CREATE TABLE sales_3 (LIKE sales);
ALTER TABLE sales ATTACH PARTITION sales_3 FOR VALUES FROM (200) TO (300);
INSERT INTO sales VALUES (201, :user, 201);
ALTER TABLE sales DETACH PARTITION sales_3;
INSERT INTO sales_3 VALUES (202, :user, 202);
SELECT payload FROM recorded;
TRUNCATE onside_attribution.outbox;

-- Inheritance: a table reports its own rows.
CREATE TABLE parent (install_id uuid, a int);
CREATE TABLE child (b int) INHERITS (parent);
SELECT onside_attribution.attach('parent', 'parent', 'install_id', '{"a": "a"}');
SELECT onside_attribution.attach('child', 'child', 'install_id', '{"b": "b"}', operation => 'INSERT OR UPDATE');
INSERT INTO parent VALUES (:user, 1);
INSERT INTO child VALUES (:user, 2, 2);
UPDATE parent SET a = 3;
SELECT event_name, payload FROM recorded;
TRUNCATE onside_attribution.outbox;

-- Two events of one table; columns that come and go
CREATE TABLE two (gone int, install_id uuid, a int, b text);
SELECT onside_attribution.attach('two', 'first', 'install_id', '{"a": "a"}');
SELECT onside_attribution.attach('two', 'second', 'install_id', '{"b": "b"}');
ALTER TABLE two DROP gone;
ALTER TABLE two ADD c int DEFAULT 5;
INSERT INTO two VALUES (:user, 1, 'x');
SELECT event_name, payload FROM recorded ORDER BY 1;
TRUNCATE onside_attribution.outbox;
-- Mappings follow a column that is renamed, and say so if it is dropped.
ALTER TABLE two RENAME b TO d;
ALTER TABLE two RENAME install_id TO "first=b";
ALTER TABLE two RENAME c TO b;
INSERT INTO two VALUES (:user, 2, 'renamed', 6);
SELECT event_name, payload FROM recorded ORDER BY 1;
SELECT trigger_name, installation_id, payload FROM onside_attribution.attached WHERE source = 'two'::regclass ORDER BY 1;
TRUNCATE onside_attribution.outbox;
BEGIN;
ALTER TABLE two RENAME a TO z;
ROLLBACK;
INSERT INTO two VALUES (:user, 3, 'x');
SELECT payload FROM recorded ORDER BY 1;
TRUNCATE onside_attribution.outbox;
ALTER TABLE two DROP d;
SELECT try($$INSERT INTO two VALUES (gen_random_uuid(), 1, 5)$$);
ALTER TABLE two ADD d text;
ALTER TABLE two RENAME "first=b" TO install_id;
ALTER TABLE two ALTER install_id TYPE bytea USING NULL;
SELECT try($$INSERT INTO two VALUES ('x', 1, 5)$$);
ALTER TABLE two DROP install_id;
SELECT try($$INSERT INTO two VALUES (1, 5)$$);
SELECT count(*) FROM onside_attribution.outbox;
-- Those of partitions follow with their parent.
CREATE TABLE renamed (id int, install_id uuid, a int) PARTITION BY LIST (id);
CREATE TABLE renamed_1 PARTITION OF renamed FOR VALUES IN (1);
CREATE TABLE renamed_2 (a int, id int, install_id uuid);
ALTER TABLE renamed ATTACH PARTITION renamed_2 FOR VALUES IN (2);
SELECT onside_attribution.attach('renamed', 'parted', 'install_id', '{"a": "a"}');
ALTER TABLE renamed RENAME a TO b;
INSERT INTO renamed VALUES (1, :user, 1), (2, :user, 2);
SELECT payload FROM recorded;
TRUNCATE onside_attribution.outbox;
-- A table that becomes a partition reports what comes in through its parent.
CREATE TABLE becomes_part (LIKE renamed);
SELECT onside_attribution.attach('becomes_part', 'part', 'install_id', '{"b": "b"}');
ALTER TABLE renamed ATTACH PARTITION becomes_part FOR VALUES IN (3);
SELECT event_name, level FROM onside_attribution.attached WHERE source = 'becomes_part'::regclass;
INSERT INTO renamed VALUES (3, :user, 3);
INSERT INTO becomes_part VALUES (3, :user, 4);
SELECT event_name, payload FROM recorded ORDER BY 1, 2;
TRUNCATE onside_attribution.outbox;
ALTER TABLE renamed DETACH PARTITION becomes_part;
INSERT INTO becomes_part VALUES (3, :user, 5);
SELECT event_name, payload FROM recorded ORDER BY 1, 2;
TRUNCATE onside_attribution.outbox;
-- One that is partitioned itself keeps its trigger, made by hand, which goes on
-- seeing what it saw before; attached again, it sees the rest, too.
CREATE TABLE sub (id int, install_id uuid, b int) PARTITION BY LIST (b);
CREATE TABLE sub_1 PARTITION OF sub DEFAULT;
CREATE TRIGGER by_statement AFTER INSERT ON sub REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT
EXECUTE FUNCTION onside_attribution.track_row('event_name=sub', 'installation_id=install_id', 'payload.b=b');
INSERT INTO sub VALUES (4, :user, 1);
ALTER TABLE renamed ATTACH PARTITION sub FOR VALUES IN (4);
SELECT onside_attribution.detach('renamed', 'parted');
INSERT INTO sub VALUES (4, :user, 2);
INSERT INTO renamed VALUES (4, :user, 3);
SELECT onside_attribution.detach('sub', 'sub');
SELECT onside_attribution.attach('sub', 'sub', 'install_id', '{"b": "b"}');
INSERT INTO sub VALUES (4, :user, 4);
INSERT INTO renamed VALUES (4, :user, 5);
SELECT event_name, payload FROM recorded;
TRUNCATE onside_attribution.outbox;
-- And one that inherits
CREATE TABLE grown_up (install_id uuid, a int);
CREATE TABLE grown (install_id uuid, a int);
SELECT onside_attribution.attach('grown', 'grown', 'install_id', '{"a": "a"}', operation => 'UPDATE');
SELECT onside_attribution.attach('grown_up', 'grown up', 'install_id', '{"a": "a"}', operation => 'UPDATE');
ALTER TABLE grown INHERIT grown_up;
INSERT INTO grown VALUES (:user, 1);
SELECT onside_attribution.detach('grown_up', 'grown up');
UPDATE grown_up SET a = 2;
SELECT event_name, payload FROM recorded;
TRUNCATE onside_attribution.outbox;
-- What a table leaves says nothing, and its triggers stay as they are.
SELECT onside_attribution.detach('grown', 'grown');
CREATE TRIGGER by_statement AFTER INSERT ON grown_up REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT
EXECUTE FUNCTION onside_attribution.track_row('event_name=grown up', 'installation_id=install_id', 'payload.a=a');
CREATE TRIGGER by_statement AFTER INSERT ON sub REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT
EXECUTE FUNCTION onside_attribution.track_row('event_name=sub by statement', 'installation_id=install_id', 'payload.b=b');
ALTER TABLE grown NO INHERIT grown_up;
ALTER TABLE renamed DETACH PARTITION sub;
ALTER TABLE grown INHERIT grown_up;

-- Triggers that could not work say what to do instead.
CREATE TABLE wrong (install_id uuid, a int);
CREATE FUNCTION wrong_try(definition text, command text DEFAULT 'INSERT INTO t.wrong VALUES (gen_random_uuid(), 1)') RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    result text;
BEGIN
    EXECUTE 'CREATE TRIGGER w ' || definition;
    result := t.try(command);
    DROP TRIGGER w ON t.wrong;
    RETURN result;
END
$$;
INSERT INTO wrong VALUES (NULL, 1);
\set args '(''event_name=e'', ''installation_id=install_id'')'
\set row 'FOR EACH ROW EXECUTE FUNCTION onside_attribution.track_row'
SELECT wrong_try('AFTER INSERT ON wrong ' || :'row' || $$('event_name=e', 'installation_id=install_id')$$);
TRUNCATE onside_attribution.outbox;
SELECT wrong_try('BEFORE INSERT ON wrong ' || :'row' || :'args');
SELECT wrong_try('AFTER DELETE ON wrong ' || :'row' || :'args', 'DELETE FROM t.wrong');
SELECT wrong_try('AFTER TRUNCATE ON wrong FOR EACH STATEMENT EXECUTE FUNCTION onside_attribution.track_row' || :'args', 'TRUNCATE t.wrong');
SELECT wrong_try('AFTER INSERT ON wrong FOR EACH STATEMENT EXECUTE FUNCTION onside_attribution.track_row' || :'args');
SELECT wrong_try('AFTER UPDATE ON wrong REFERENCING OLD TABLE AS o FOR EACH STATEMENT EXECUTE FUNCTION onside_attribution.track_row' || :'args', 'UPDATE t.wrong SET a = 2');
SELECT wrong_try('AFTER INSERT ON wrong ' || :'row' || '()');
SELECT wrong_try('AFTER INSERT ON wrong ' || :'row' || $$('event_name=e')$$);
SELECT wrong_try('AFTER INSERT ON wrong ' || :'row' || $$('installation_id=install_id')$$);
SELECT wrong_try('AFTER INSERT ON wrong ' || :'row' || $$('event_name')$$);
SELECT wrong_try('AFTER INSERT ON wrong ' || :'row' || $$('event_name=')$$);
SELECT wrong_try('AFTER INSERT ON wrong ' || :'row' || $$('Event_Name=e', 'installation_id=install_id')$$);
SELECT wrong_try('AFTER INSERT ON wrong ' || :'row' || $$('payload=a')$$);
SELECT wrong_try('AFTER INSERT ON wrong ' || :'row' || $$('event_name=e', 'event_name=f')$$);
SELECT wrong_try('AFTER INSERT ON wrong ' || :'row' || $$('payload.a=a', 'payload.b=a', 'payload.a=a')$$);
SELECT wrong_try('AFTER INSERT ON wrong ' || :'row' || $$('event_name=e', 'installation_id=nowhere')$$);
SELECT wrong_try('AFTER INSERT ON wrong ' || :'row' || $$('event_name=e', 'installation_id=a')$$);
SELECT wrong_try('AFTER INSERT ON wrong ' || :'row' || $$('event_name=e', 'installation_id=install_id', 'event_datetime=a')$$);
SELECT wrong_try('AFTER INSERT ON wrong ' || :'row' || $$('event_name=e', 'installation_id=install_id', 'event_id=a')$$);
SELECT wrong_try('AFTER INSERT ON wrong ' || :'row' || $$('event_name=e', 'installation_id=install_id', 'payload.x=ctid')$$);
SELECT wrong_try('AFTER INSERT ON wrong ' || :'row' || $$('event_name=e', 'installation_id=install_id', 'payload.x=A')$$);
SELECT try('SELECT onside_attribution.track_row()');
SELECT count(*) FROM onside_attribution.outbox;
-- Odd, but understood: keys and columns with anything but "=" in the key
CREATE TABLE odd ("Install=Id" uuid, "a=b" int, "ключ" text);
CREATE TRIGGER odd AFTER INSERT ON odd FOR EACH ROW
EXECUTE FUNCTION onside_attribution.track_row('event_name=a=b \ "c"', 'installation_id=Install=Id', 'payload.=a=b', 'payload.payload.x=a=b', 'payload.ключ=ключ');
INSERT INTO odd VALUES (:user, 1, 'значение');
SELECT event_name, payload FROM recorded;
TRUNCATE onside_attribution.outbox;

-- on_invalid_event = error: the statement fails, and nothing is left of it.
CREATE TABLE strict (id int, install_id text, total numeric, at timestamptz DEFAULT '2026-05-05 12:00+00', uid uuid, j json);
SELECT onside_attribution.attach('strict', 'strict', 'install_id', '{"total": "total", "id": "id", "j": "j"}', 'at', 'uid');
SHOW onside_attribution.on_invalid_event;
SELECT try($$INSERT INTO strict (id, install_id, total) VALUES (1, gen_random_uuid(), 1), (2, gen_random_uuid(), 'NaN')$$);
SELECT count(*) FROM strict;
SELECT count(*) FROM onside_attribution.outbox;
-- on_invalid_event = dead_letter: the purchase goes through.
SET onside_attribution.on_invalid_event = 'dead_letter';
BEGIN;
INSERT INTO strict (id, install_id, total) VALUES (1, :user, 1), (2, :user, 'NaN'), (3, 'no uuid', 3), (4, NULL, 'NaN');
INSERT INTO strict (id, install_id, total, at, uid) VALUES (5, :user, 5, 'infinity', NULL), (6, :user, 6, NULL, NULL),
                                                            (7, :user, 7, '2026-05-05 12:00+00', '017f22e2-79b0-7cc3-98c4-dc0c0c07398f');
INSERT INTO strict (id, install_id, j) VALUES (8, :user, '"\u0000"'), (9, :user, '{"fine": true}');
SELECT bool_and(recorded_at BETWEEN now() AND clock_timestamp() AND failed_at BETWEEN recorded_at AND clock_timestamp()) FROM onside_attribution.dead_letter;
COMMIT;
SELECT count(*) FROM strict;
SELECT payload FROM recorded;
SELECT event_name, payload, event_datetime AT TIME ZONE 'UTC', installation_id, http_status, attempts, error FROM onside_attribution.dead_letter ORDER BY payload -> 'id';
-- Each has an event_id, a new one if the row has none, that a retry keeps.
SELECT payload -> 'id', event_id IS NOT NULL, CASE WHEN payload -> 'id' = '7' THEN event_id END FROM onside_attribution.dead_letter ORDER BY payload -> 'id';
DELETE FROM onside_attribution.dead_letter;
TRUNCATE onside_attribution.outbox;
-- What is rolled back is no dead letter, either.
BEGIN;
INSERT INTO strict (id, install_id) VALUES (10, 'no uuid');
ROLLBACK;
SELECT count(*) FROM onside_attribution.dead_letter;
-- One too large, and one that jsonb could not even hold: its payload stays in
-- its row.
SET client_min_messages = error;
CREATE TABLE large (install_id uuid, a text, b text, c text);
SELECT onside_attribution.attach('large', 'large', 'install_id', '{"a": "a", "b": "b", "c": "c"}');
INSERT INTO large VALUES (:user, repeat('a', 1000000)), (:user, repeat('a', 120000000));
SELECT regexp_replace(error, 'has \d+ bytes', 'has N bytes'), length(payload ->> 'a') FROM onside_attribution.dead_letter ORDER BY length(error);
DELETE FROM onside_attribution.dead_letter;
SET client_min_messages = notice;
-- A column that is no more: the purchase goes through with that, too.
ALTER TABLE strict DROP total;
INSERT INTO strict (id, install_id) VALUES (11, :user);
ALTER TABLE strict DROP install_id;
INSERT INTO strict (id) VALUES (12);
SELECT event_name, payload, installation_id, error FROM onside_attribution.dead_letter ORDER BY payload -> 'id';
SELECT count(*) FROM onside_attribution.outbox;
-- But a trigger that is wrong as a whole stays an error.
SELECT wrong_try('BEFORE INSERT ON wrong ' || :'row' || :'args');
-- And track is not a trigger: its caller decides.
SELECT try($$SELECT onside_attribution.track('', gen_random_uuid(), '{}')$$);
SET onside_attribution.on_invalid_event = error;
-- What a trigger's arguments mean is kept from statement to statement, until its
-- table changes.
TRUNCATE onside_attribution.outbox;
CREATE TABLE kept (install_id uuid, a text, b text);
SELECT onside_attribution.attach('kept', 'first', 'install_id', '{"v": "a"}');
INSERT INTO kept VALUES (:user, 'a', 'b');
INSERT INTO kept VALUES (:user, 'a again', 'b');
CREATE OR REPLACE TRIGGER onside_first AFTER INSERT ON kept REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT
EXECUTE FUNCTION onside_attribution.track_row('event_name=second', 'installation_id=install_id', 'payload.v=b');
INSERT INTO kept VALUES (:user, 'a', 'now b');
ALTER TABLE kept DROP b, ADD b int;
INSERT INTO kept (install_id, b) VALUES (:user, 1);
ALTER TABLE kept ALTER b TYPE numeric(5, 2);
INSERT INTO kept (install_id, b) VALUES (:user, 2);
-- Also when the change is undone
BEGIN;
SAVEPOINT a;
ALTER TABLE kept DROP b, ADD b boolean;
INSERT INTO kept (install_id, b) VALUES (:user, true);
ROLLBACK TO a;
INSERT INTO kept (install_id, b) VALUES (:user, 3);
COMMIT;
SELECT event_name, payload FROM recorded;
-- An error in the middle of a statement leaves nothing behind.
SELECT try($$INSERT INTO kept (install_id, b) SELECT gen_random_uuid(), CASE n WHEN 2 THEN numeric 'NaN' ELSE n END FROM generate_series(1, 3) AS n$$);
INSERT INTO kept (install_id, b) VALUES (:user, 4);
SELECT event_name, payload FROM recorded OFFSET 6;
-- More tables than are kept, each in turn and twice
TRUNCATE onside_attribution.outbox;
DO $$
BEGIN
    FOR i IN 1 .. 70 LOOP
        EXECUTE format('CREATE TABLE many_%s (install_id uuid, v int)', i);
        PERFORM onside_attribution.attach(format('many_%s', i)::regclass, 'e' || i, 'install_id', '{"v": "v"}');
    END LOOP;
    FOR round IN 1 .. 2 LOOP
        FOR i IN 1 .. 70 LOOP
            EXECUTE format('INSERT INTO many_%s VALUES (gen_random_uuid(), %s)', i, i);
        END LOOP;
    END LOOP;
END
$$;
SELECT count(*), count(DISTINCT event_name), bool_and(event_name = 'e' || (payload ->> 'v')) FROM onside_attribution.outbox;
