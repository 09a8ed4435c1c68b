# What a DBA does to the extension's tables does no harm.  A table may get
# columns that can be null and have no default, plain indexes, and all that does
# not change how rows are written and read; then everything works as before.  Any
# other change is refused by the statement that makes it, in plain words.  Where
# the library was not there to refuse it, what is recorded arrives as it was
# recorded, or an error names the table, and doctor() names the change.  Never
# does a process crash.
#
# A matrix: each alteration x each table x (with the library, without it and then
# used by sessions, without it and then used by a worker).

use JSON::PP ();
use OnsideTest;

my $schema = 'onside_attribution';

# ---------------------------------------------------------------------------
# The alterations
# ---------------------------------------------------------------------------

# Each: what it is, for which tables, the statements, and what comes of it:
#
#   works    goes on working; doctor() has nothing to say
#   refused  refused; made without the library, all works
#   stops    refused; made without the library, an error names the table, or all
#            works
#
# T is the table, N its name.  A table can have words of its own in %words.
my @all = qw(outbox delivery_cursor control aside dead_letter backfill_state namespace);
my @plain = (@all[ 1 .. $#all ], 'outbox_1');
my %words = (
	outbox => { column => 'payload', nullable => 'payload', index => 'event_name', key => 'event_id' },
	outbox_1 => { column => 'payload', index => 'event_name', key => 'event_id', own_index => 'outbox_1_xid_id_idx' },
	delivery_cursor => { column => 'requests', nullable => 'not_before', index => 'segment', key => 'segment', own_index => 'delivery_cursor_pkey' },
	control => { column => 'paused', other => 'paused_at', nullable => 'pause_reason', index => 'paused', key => 'paused', own_index => 'control_pkey' },
	aside => { column => 'error', nullable => 'http_status', index => 'failed_at', key => 'event_id', own_index => 'aside_recorded_at_id_idx' },
	dead_letter => { column => 'error', nullable => 'http_status', index => 'recorded_at', key => 'event_id', own_index => 'dead_letter_event_id_idx' },
	backfill_state => { column => 'recorded', nullable => 'finished_at', index => 'updated_at', key => 'source', own_index => 'backfill_state_pkey' },
	namespace => { column => 'id', other => 'singleton', index => 'id', key => 'id', own_index => 'namespace_pkey' });

my @alterations = (
	# columns
	[ 'a nullable column', \@all, 'works', 'ALTER TABLE T ADD COLUMN note text' ],
	[ 'a column that was dropped again', \@all, 'works',
		'ALTER TABLE T ADD COLUMN note text', 'ALTER TABLE T DROP COLUMN note' ],
	[ 'twenty columns, some dropped', \@all, 'works',
		(map { "ALTER TABLE T ADD COLUMN c$_ int" } 1 .. 20),
		map { "ALTER TABLE T DROP COLUMN c$_" } 1, 7, 20 ],
	[ 'a column with a default', \@all, 'refused',
		q{ALTER TABLE T ADD COLUMN note text DEFAULT lower('X')} ],
	[ 'a default that comes later', \@all, 'refused',
		'ALTER TABLE T ADD COLUMN note text', q{ALTER TABLE T ALTER note SET DEFAULT 'x'} ],
	[ 'a column NOT NULL with a default', \@all, 'refused',
		q{ALTER TABLE T ADD COLUMN note text NOT NULL DEFAULT lower('X')} ],
	[ 'a column NOT NULL', [qw(outbox dead_letter)], 'stops',
		'ALTER TABLE T ADD COLUMN note text NOT NULL' ],
	[ 'a generated column', \@all, 'refused',
		q{ALTER TABLE T ADD COLUMN note text GENERATED ALWAYS AS ('x' || {column}::text) STORED} ],
	[ 'an identity column', [ @all[ 1 .. $#all ] ], 'refused',
		'ALTER TABLE T ADD COLUMN note bigint GENERATED ALWAYS AS IDENTITY' ],
	[ 'a column of a domain', \@all, 'refused',
		q{CREATE DOMAIN public.dom AS text DEFAULT 'x'}, 'ALTER TABLE T ADD COLUMN note public.dom' ],
	[ 'a column that is renamed', [ @all[ 1 .. $#all ] ], 'stops', 'ALTER TABLE T RENAME COLUMN {column} TO other' ],
	[ 'a column that is dropped', [qw(delivery_cursor control dead_letter)], 'stops', 'ALTER TABLE T DROP COLUMN {column}' ],
	[ 'a column of another type', [qw(delivery_cursor control dead_letter)], 'stops',
		'ALTER TABLE T ALTER {column} DROP DEFAULT', 'ALTER TABLE T ALTER {column} TYPE varchar(200)' ],
	[ 'a column that loses NOT NULL', \@all, 'stops', 'ALTER TABLE T ALTER {column} DROP NOT NULL' ],
	[ 'a column that becomes NOT NULL', [ 'dead_letter' ], 'stops', 'ALTER TABLE T ALTER {nullable} SET NOT NULL' ],

	# indexes
	[ 'an index', [ @all, 'outbox_1' ], 'works', 'CREATE INDEX mine ON T ({index})' ],
	[ 'a GIN index', [qw(outbox outbox_1 dead_letter)], 'works', 'CREATE INDEX mine ON T USING gin (payload)' ],
	[ 'an index that includes columns', [ @all, 'outbox_1' ], 'works', 'CREATE INDEX mine ON T ({index}) INCLUDE ({column})' ],
	[ 'an index on a new column', \@all, 'works',
		'ALTER TABLE T ADD COLUMN note text', 'CREATE INDEX mine ON T (note)' ],
	[ 'a unique index', [qw(outbox_1 dead_letter control)], 'stops', 'CREATE UNIQUE INDEX mine ON T ({key})' ],
	[ 'a unique constraint', [qw(outbox_1 dead_letter control)], 'stops', 'ALTER TABLE T ADD UNIQUE ({key}) DEFERRABLE' ],
	[ 'an index on an expression', [ @all, 'outbox_1' ], 'refused', 'CREATE INDEX mine ON T ((public.shown({index})))' ],
	[ 'a partial index', [ @all, 'outbox_1' ], 'refused', 'CREATE INDEX mine ON T ({index}) WHERE {index} IS NOT NULL' ],
	[ 'an exclusion constraint', [qw(outbox_1 dead_letter)], 'stops', 'ALTER TABLE T ADD EXCLUDE USING hash (event_id WITH =)' ],
	[ 'its own index dropped', [ 'outbox_1', 'aside', 'dead_letter' ], 'stops', 'DROP INDEX onside_attribution.{own_index}' ],
	[ 'its own index of another kind', ['dead_letter'], 'stops', 'DROP INDEX onside_attribution.{own_index}',
		'CREATE INDEX {own_index} ON T USING hash (event_id)' ],
	[ 'its own index renamed', \@plain, 'stops', 'ALTER INDEX onside_attribution.{own_index} RENAME TO mine' ],
	[ 'its own primary key dropped', [qw(delivery_cursor control backfill_state namespace)], 'stops', 'ALTER TABLE T DROP CONSTRAINT {own_index}' ],
	[ 'REINDEX', [ 'outbox_1', 'aside', 'dead_letter', 'control' ], 'works', 'REINDEX TABLE T' ],

	# constraints, triggers, rules, row security
	[ 'a check', [ @all, 'outbox_1' ], 'refused', 'ALTER TABLE T ADD CONSTRAINT mine CHECK ({column} IS NOT NULL)' ],
	[ 'its own check dropped', [qw(outbox delivery_cursor control)], 'refused',
		{ outbox => 'ALTER TABLE T DROP CONSTRAINT xid_is_the_recording_transaction',
		  delivery_cursor => 'ALTER TABLE T DROP CONSTRAINT delivery_cursor_singleton_check',
		  control => 'ALTER TABLE T DROP CONSTRAINT control_singleton_check' } ],
	[ 'a foreign key', [qw(outbox_1 dead_letter)], 'stops',
		'CREATE TABLE public.other (id uuid PRIMARY KEY)', 'ALTER TABLE T ADD FOREIGN KEY (event_id) REFERENCES public.other' ],
	[ 'a foreign key to it', [ 'control', 'delivery_cursor' ], 'refused',
		'CREATE TABLE public.other (s boolean REFERENCES T)' ],
	(map {
		my ($when, $level) = @$_;
		[ "a trigger $when, $level", [ @all, 'outbox_1' ], 'refused',
			"CREATE TRIGGER mine $when INSERT OR UPDATE OR DELETE ON T FOR EACH $level EXECUTE FUNCTION public.stop()" ]
	} [ 'BEFORE', 'STATEMENT' ], [ 'AFTER', 'STATEMENT' ]),
	[ 'a trigger AFTER, ROW', [ @all, 'outbox_1' ], 'refused',
		'CREATE TRIGGER mine AFTER INSERT OR DELETE ON T FOR EACH ROW EXECUTE FUNCTION public.stop()' ],
	[ 'a trigger that is there and not fired', [ @all, 'outbox_1' ], 'refused',
		'CREATE TRIGGER mine AFTER INSERT ON T FOR EACH ROW EXECUTE FUNCTION public.stop()',
		'ALTER TABLE T DISABLE TRIGGER mine' ],
	[ 'its own trigger disabled', [ 'outbox_1', 'aside' ], 'stops', 'ALTER TABLE T DISABLE TRIGGER onside_before_change' ],
	[ 'its own trigger enabled otherwise', [ 'outbox_1' ], 'stops', 'ALTER TABLE T ENABLE TRIGGER onside_before_change' ],
	[ 'its own trigger as in a restore', [ 'outbox_1' ], 'stops', 'ALTER TABLE T DISABLE TRIGGER ALL', 'ALTER TABLE T ENABLE TRIGGER ALL' ],
	[ 'its own trigger dropped', [ 'outbox_1', 'aside', 'namespace' ], 'stops',
		{ namespace => 'DROP TRIGGER onside_take_namespace ON T' }, 'DROP TRIGGER onside_before_change ON T' ],
	[ 'its own trigger renamed', [ 'outbox_1' ], 'refused', 'ALTER TRIGGER onside_before_change ON T RENAME TO mine' ],
	[ 'a rule', [ @all, 'outbox_1' ], 'refused', 'CREATE RULE mine AS ON INSERT TO T WHERE false DO ALSO SELECT 1' ],
	[ 'row security', [ @all, 'outbox_1' ], 'refused', 'ALTER TABLE T ENABLE ROW LEVEL SECURITY' ],
	[ 'row security forced', [ @all, 'outbox_1' ], 'refused', 'ALTER TABLE T FORCE ROW LEVEL SECURITY' ],
	[ 'a policy', [ @all, 'outbox_1' ], 'refused', 'CREATE POLICY mine ON T USING (false)' ],

	# where it is and who may have it
	[ 'REPLICA IDENTITY', \@plain, 'works', 'ALTER TABLE T REPLICA IDENTITY FULL', 'ALTER TABLE T REPLICA IDENTITY NOTHING' ],
	[ 'REPLICA IDENTITY with an index', [ 'control' ], 'works', 'ALTER TABLE T REPLICA IDENTITY USING INDEX {own_index}' ],
	[ 'storage parameters', \@plain, 'works', 'ALTER TABLE T SET (fillfactor = 50, autovacuum_enabled = true)',
		'ALTER TABLE T ALTER {column} SET STATISTICS 10' ],
	[ 'another owner', [ @all, 'outbox_1' ], 'works', 'ALTER TABLE T OWNER TO landlord' ],
	[ 'CLUSTER', [qw(outbox_1 dead_letter control)], 'works', 'CLUSTER T USING {own_index}' ],
	[ 'another tablespace', \@plain, 'works', 'ALTER TABLE T SET TABLESPACE elsewhere' ],
	[ 'statistics, comments, grants', [ @all, 'outbox_1' ], 'works',
		'CREATE STATISTICS public.mine ON {column}, {other} FROM T', q{COMMENT ON TABLE T IS 'mine'},
		'GRANT SELECT ON T TO landlord', 'ANALYZE T' ],
	[ 'SET LOGGED', \@plain, 'works', 'ALTER TABLE T SET LOGGED' ],
	[ 'SET UNLOGGED', \@plain, 'refused', 'ALTER TABLE T SET UNLOGGED' ],

	# what it belongs to
	[ 'another partition', ['outbox'], 'refused', 'CREATE TABLE public.four PARTITION OF T FOR VALUES IN (4)' ],
	[ 'a default partition', ['outbox'], 'refused', 'CREATE TABLE public.four (LIKE T INCLUDING CONSTRAINTS)', 'ALTER TABLE T ATTACH PARTITION public.four DEFAULT' ],
	[ 'a segment detached', ['outbox_1'], 'stops', 'ALTER TABLE onside_attribution.outbox DETACH PARTITION T' ],
	[ 'a child', [qw(delivery_cursor control dead_letter backfill_state)], 'refused', 'CREATE TABLE public.child () INHERITS (T)' ],
	[ 'a parent', ['control'], 'refused', 'CREATE TABLE public.parent (paused boolean NOT NULL)', 'ALTER TABLE T INHERIT public.parent' ],
	[ 'another name', \@plain, 'stops', 'ALTER TABLE T RENAME TO other' ],
	[ 'another schema', \@plain, 'stops', 'ALTER TABLE T SET SCHEMA public' ],
	[ 'no member of the extension, and dropped', ['backfill_state'], 'stops',
		'ALTER EXTENSION onside_attribution DROP VIEW onside_attribution.backfill_progress',
		'DROP VIEW onside_attribution.backfill_progress',
		'ALTER EXTENSION onside_attribution DROP TABLE T', 'DROP TABLE T' ],

	# by way of something else
	[ 'a column whose type is dropped', \@all, 'works',
		q{CREATE TYPE public.mood AS ENUM ('good')}, 'ALTER TABLE T ADD COLUMN note public.mood',
		'DROP TYPE public.mood CASCADE' ],
	[ 'from a function', ['dead_letter'], 'refused',
		q{DO 'BEGIN EXECUTE ''ALTER TABLE T ADD COLUMN note text DEFAULT 1''; END'} ],
	[ 'a view with a trigger INSTEAD OF', ['outbox', 'dead_letter'], 'works',
		'CREATE VIEW public.mine AS SELECT * FROM T',
		'CREATE TRIGGER mine INSTEAD OF INSERT ON public.mine FOR EACH ROW EXECUTE FUNCTION public.stop()' ]);

# The statements of an alteration, for a table.
sub statements
{
	my ($alteration, $table) = @_;
	my ($what, undef, undef, @statements) = @$alteration;
	my ($special) = grep { ref } @statements;
	@statements = grep { !ref } @statements;
	$statements[ $#statements < 0 ? 0 : $#statements ] = $special->{$table}
	  if $special && $special->{$table};
	foreach (@statements)
	{
		s/\bT\b/$schema.$table/g;
		s/\{(\w+)\}/$words{$table}{$1} \/\/ ($1 eq 'other' ? $words{$table}{index} : die "$what: $table has no $1")/ge;

		# Several tables can be altered in one database.
		s/\bmine\b/mine_$table/g;
		s/\bpublic\.(dom|other|four|child|parent|mood)\b/public.$1_$table/g;
	}
	return @statements;
}

my @cases;
foreach my $alteration (@alterations)
{
	push @cases, map { [ $alteration->[0], $_, $alteration->[2], statements($alteration, $_) ] } @{ $alteration->[1] };
}

sub literal
{
	my ($text) = @_;
	$text =~ s/'/''/g;
	return "'$text'";
}

# An array of statements, for attempt() below.
sub commands
{
	return 'ARRAY[' . join(', ', map { literal($_) } @_) . ']::text[]';
}

# ---------------------------------------------------------------------------
# What is used
# ---------------------------------------------------------------------------

# use_all(): every way in which a session writes and reads our tables, with the
# results compared.  attempt(): that after some statements, all of it undone.
my $set_up = <<'SQL';
CREATE TABLE public.source (installation_id uuid, amount numeric);
CREATE TABLE public.keyed (id bigint PRIMARY KEY, installation_id uuid);
SELECT onside_attribution.attach('public.source', 'sold', 'installation_id', '{"amount": "amount"}');
CREATE FUNCTION public.stop() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_WHEN = 'AFTER' AND TG_LEVEL = 'STATEMENT' AND TG_OP <> 'TRUNCATE' THEN
        RETURN NULL;
    END IF;
    RETURN COALESCE(NEW, OLD);
END
$$;
-- In an index it runs for whoever records an event, but not as him.
CREATE FUNCTION public.shown(value anyelement) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF current_user <> 'postgres' AND current_user <> 'landlord' THEN
        RAISE EXCEPTION 'WRONG: index expression evaluated as %', current_user;
    END IF;
    RETURN value::text;
END
$$;
CREATE FUNCTION public.expect(what text, got text, wanted text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF got IS DISTINCT FROM wanted THEN
        RAISE EXCEPTION 'WRONG: % is % instead of %', what, got, wanted;
    END IF;
END
$$;
CREATE FUNCTION public.use_all() RETURNS void LANGUAGE plpgsql
SET client_min_messages = error SET onside_attribution.on_invalid_event = dead_letter AS $$
DECLARE
    installation uuid := '11111111-2222-4333-8444-555555555555';
    id uuid;
BEGIN
    id := onside_attribution.track('tracked', installation, '{"k": 1}');
    PERFORM expect('preview', onside_attribution.preview(id)::jsonb -> 'payload' ->> 'k', '1');
    PERFORM onside_attribution.track('tracked', installation, jsonb_build_object('k', i)) FROM generate_series(2, 5) i;
    INSERT INTO onside_attribution.outbox (event_name, payload, installation_id)
        VALUES ('inserted', '{"k": 6}', installation);
    PERFORM onside_attribution.attach('public.keyed', 'keyed', 'installation_id', '{}', event_id => 'id');
    INSERT INTO public.keyed VALUES (1, installation);
    PERFORM onside_attribution.detach('public.keyed', 'keyed');
    DELETE FROM public.keyed;
    INSERT INTO onside_attribution.namespace (id) VALUES (installation);
    PERFORM onside_attribution.attach('public.keyed', 'keyed', 'installation_id', '{}', event_id => 'id');
    INSERT INTO public.keyed VALUES (1, installation);
    PERFORM onside_attribution.detach('public.keyed', 'keyed');
    DELETE FROM public.keyed;
    PERFORM expect('keyed', string_agg((p.event_id = onside_attribution.event_id(installation::text, 'keyed', 'public.keyed', '1'))::text, ', ' ORDER BY p.xid, p.id),
        'false, true') FROM onside_attribution.pending p WHERE p.event_name = 'keyed';
    DELETE FROM onside_attribution.outbox WHERE event_name = 'keyed';
    INSERT INTO public.source VALUES (installation, 9.90), (installation, 'NaN');
    PERFORM expect('the log', string_agg(format('%s %s %s', event_name, payload, o.installation_id = installation), ', ' ORDER BY o.xid, o.id),
        'tracked {"k": 1} t, tracked {"k": 2} t, tracked {"k": 3} t, tracked {"k": 4} t, tracked {"k": 5} t, inserted {"k": 6} t, sold {"amount": "9.90"} t')
        FROM onside_attribution.pending o;
    PERFORM expect('dead letters', string_agg(format('%s %s %s %s', d.event_name, d.attempts, d.http_status, d.error ~ 'NaN'), ', '),
        'sold 0  t') FROM onside_attribution.dead_letter d;
    UPDATE onside_attribution.dead_letter SET payload = '{"k": 7}', http_status = 400;
    PERFORM expect('retried', onside_attribution.retry_dead_letters()::text, '1');
    INSERT INTO onside_attribution.aside (event_name, payload, event_datetime, installation_id, error)
        VALUES ('put aside', '{"k": 8}', now(), installation, 'no');
    PERFORM expect('pending', count(*)::text, '9') FROM onside_attribution.pending;
    PERFORM onside_attribution.replay('-infinity');
    PERFORM onside_attribution.pause('because');
    PERFORM expect('paused', c.paused || coalesce(c.pause_reason, ''), 'truebecause') FROM onside_attribution.control c;
    PERFORM onside_attribution.resume();
    PERFORM expect('resumed', c.paused || coalesce(c.pause_reason, ''), 'false') FROM onside_attribution.control c;
    PERFORM onside_attribution.flush('0 s');
    PERFORM expect('forgotten', onside_attribution.forget(installation)::text, '9');
    TRUNCATE onside_attribution.outbox, onside_attribution.aside;
    PERFORM expect('truncated', count(*)::text, '0') FROM onside_attribution.outbox;
END
$$;
CREATE FUNCTION public.attempt(commands text[]) RETURNS text LANGUAGE plpgsql
SET client_min_messages = error AS $$
DECLARE
    command text;
    altered boolean := false;
    doctor text;
    state text;
    message text;
    detail text;
    hint text;
    tab text;
BEGIN
    FOREACH command IN ARRAY commands LOOP
        EXECUTE command;
    END LOOP;
    altered := true;
    IF current_setting('test.doctor', true) = 'on' THEN
        SELECT d.ok || ' ' || d.detail INTO doctor FROM onside_attribution.doctor() d WHERE d.check_name = 'tables';
    END IF;
    PERFORM public.use_all();
    RAISE EXCEPTION 'undo' USING ERRCODE = 'UNDO1';
EXCEPTION
    WHEN SQLSTATE 'UNDO1' THEN
        RETURN concat_ws(' | ', 'works', doctor);
    WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
            detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT, tab = TABLE_NAME;
        RETURN concat_ws(' | ', CASE WHEN altered THEN 'used' ELSE 'altered' END, state,
            message, 'table ' || nullif(tab, ''), nullif(detail, ''), nullif(hint, ''), doctor);
END
$$;
SQL

# ---------------------------------------------------------------------------
# The server, at first without the library
# ---------------------------------------------------------------------------

my $sandbox = OnsideSandbox->start(poison => 'rotten', keep_events => 10000);
my $space = PostgreSQL::Test::Utils::tempdir();
my $node = onside_node('main', preload => 0, sandbox => $sandbox, conf => <<'CONF');
max_worker_processes = 120
max_connections = 150
autovacuum = off
fsync = off
CONF
my $user = $node->safe_psql('postgres', 'SELECT current_user');
$set_up =~ s/'postgres'/'$user'/g;
$node->safe_psql('postgres', 'CREATE ROLE landlord SUPERUSER');
$node->safe_psql('postgres', "CREATE TABLESPACE elsewhere LOCATION '$space'");
$node->safe_psql('postgres', 'CREATE DATABASE base');
$node->safe_psql('base', 'CREATE EXTENSION onside_attribution');
$node->safe_psql('base', $set_up);
$node->safe_psql('postgres', 'CREATE DATABASE shop TEMPLATE base');

# What attempt() says of each, in a session for each or in one for all.
sub attempt
{
	my ($case) = @_;
	my (undef, undef, undef, @commands) = @$case;
	return 'SELECT public.attempt(' . commands(@commands) . ");\n";
}

# Does an error of attempt() say which table it is about?
sub names
{
	my ($result, $table) = @_;
	(my $family = $table) =~ s/_1$//;
	$result =~ s/ \| (true|false) .*//;

	# SQL of ours says which column it misses.
	return 1 if $result =~ /^used \| 42703 \| column \S*\b\Q$words{$table}{column}\E does not exist/;
	return $result =~ /^used \| (?!P0001)\w+ \| .*\b\Q$family\E/ || $result =~ /^used \| (?!P0001)\w+ \| .* no partition of relation "outbox"/;
}

my $position = log_position($node);
foreach my $case ([ 'nothing', 'outbox', 'works' ], @cases)
{
	my ($what, $table, $expected) = @$case;
	my $result = $node->safe_psql('shop', "SET test.doctor = on;\n" . attempt($case));
	my $name = "made without the library: $what, $table";
	(my $said = $result) =~ s/.*\| (true|false) //;
	my $good = $result =~ /\| true they are as the extension needs them, and none is locked$/;
	ok($expected eq 'works' ? $good : $result =~ /\| false .*\b$schema\.$table/, "$name: doctor()");
	ok( $result =~ /^works/ || $expected eq 'stops' && names($result, $table),
		"$name: all works" . ($expected eq 'stops' ? ', or an error names the table' : ''))
	  or diag($result);
	note("$name: $result") if $result !~ /^works/;
}

# An index that somebody has added is kept up, whatever it is; and no row with a
# foreign transaction's number gets in, not even with the trigger disabled.
is($node->safe_psql('shop', <<'SQL'), "t\n1\n1", 'made without the library: indexes are kept up');
SET client_min_messages = error;
CREATE INDEX ON onside_attribution.outbox_1 ((payload ->> 'k')) WHERE event_name = 'e';
CREATE UNIQUE INDEX ON onside_attribution.outbox_1 (event_id);
SELECT onside_attribution.track('e', gen_random_uuid(), '{"k": "v"}', event_id => '0a0b0c0d-0001-4002-8003-000000000001') IS NOT NULL;
SET enable_seqscan = off;
SELECT count(*) FROM onside_attribution.outbox_1 WHERE event_name = 'e' AND payload ->> 'k' = 'v';
SELECT count(*) FROM onside_attribution.outbox_1 WHERE event_id = '0a0b0c0d-0001-4002-8003-000000000001';
SQL
like(($node->psql('shop', "SELECT onside_attribution.track('e', gen_random_uuid(), '{}', event_id => '0a0b0c0d-0001-4002-8003-000000000001')"))[2],
	qr/duplicate key value violates unique constraint "outbox_1_event_id_idx"/, 'and unique ones are unique');
$node->safe_psql('shop', <<'SQL');
TRUNCATE onside_attribution.outbox;
DROP INDEX onside_attribution.outbox_1_expr_idx, onside_attribution.outbox_1_event_id_idx;
SQL
foreach ([ "'3', 1", qr/violates check constraint "xid_is_the_recording_transaction"/ ], [ 'NULL, 1', qr/null value in column "xid"/ ])
{
	my ($place, $error) = @$_;
	like(($node->psql('shop', <<SQL))[2], $error, "made without the library: trigger disabled, an xid of $place");
BEGIN;
ALTER TABLE onside_attribution.outbox_1 DISABLE TRIGGER ALL;
INSERT INTO onside_attribution.outbox (event_id, event_name, payload, installation_id, recorded_at, xid, id, segment)
VALUES ('0a0b0c0d-0001-4002-8003-000000000001', 'e', '{}', '550e8400-e29b-41d4-a716-446655440000', now(), $place, 1);
SQL
}

# A database for some alterations of all their tables at once, or for one of one
# table if it may stop something.
my (@databases, %gathered);
sub altered_database
{
	my ($expected, @those) = @_;
	my $name = sprintf 'altered_%02d', scalar @databases;
	my (%tables, $n, @statements);
	foreach my $case (@those)
	{
		my ($what, $table, undef, @commands) = @$case;
		$n++;
		s/\b(mine|note|dom|other|four|child|parent|mood)_?/$1_${n}_/g foreach @those > 1 ? @commands : ();
		push @statements, @commands;
		$tables{$table} = 1;
	}
	$node->safe_psql('postgres', "CREATE DATABASE $name TEMPLATE base STRATEGY file_copy");
	$node->safe_psql($name, join '', map { "$_;\n" } @statements);
	my %what = map { $_->[0] => 1 } @those;
	push @databases,
	  { name => $name, what => join(', ', sort(keys %what), @those > 1 ? () : keys %tables), expected => $expected,
		tables => [ sort keys %tables ], ids => {}, errors => '' };
	return;
}

foreach my $alteration (@alterations)
{
	my ($what, undef, $expected) = @$alteration;
	my @those = grep { $_->[0] eq $what } @cases;
	if ($expected eq 'stops')
	{
		altered_database($expected, $_) foreach @those;
	}
	else
	{
		push @{ $gathered{$expected} }, \@those;
	}
}
foreach my $expected (sort keys %gathered)
{
	while (my @some = splice @{ $gathered{$expected} }, 0, 4)
	{
		altered_database($expected, map { @$_ } @some);
	}
}

# One to be repaired.
$node->safe_psql('postgres', 'CREATE DATABASE broken TEMPLATE base');
$node->safe_psql('broken', <<'SQL');
ALTER TABLE onside_attribution.dead_letter ADD COLUMN note text DEFAULT 'x';
CREATE TRIGGER mine AFTER INSERT ON onside_attribution.dead_letter FOR EACH ROW EXECUTE FUNCTION public.stop();
SQL
note(scalar(@databases) . ' databases');
unlike(log_since($node, $position), qr/terminated by signal/, 'made without the library: no session has crashed');

# ---------------------------------------------------------------------------
# With the library
# ---------------------------------------------------------------------------

$node->append_conf('postgresql.conf', 'onside_attribution.max_databases = 110');
$node->append_conf('postgresql.conf', 'onside_attribution.on_invalid_event = dead_letter');
preload($node);
$node->restart;
$position = log_position($node);
poll_worker($node, 'shop');
$node->safe_psql('shop', "SELECT onside_attribution.pause()");

my @results = split /\n/, $node->safe_psql('shop', join '', map { attempt($_) } [], @cases);
is(shift @results, 'works', 'with the library: unaltered, everything works');
foreach my $case (@cases)
{
	my ($what, $table, $expected) = @$case;
	my $result = shift @results;
	my $name = "with the library: $what, $table";
	if ($expected eq 'works')
	{
		is($result, 'works', $name);
	}
	else
	{
		like($result,
			$what =~ /^no member/
			? qr/^altered \| 0A000 \| cannot take objects out of extension/
			: qr/^altered \| 0A000 \| cannot change table "$schema\.\w+" in this way \| After that, .*\Q$table\E.* \| The extension/,
			"$name: refused");
	}
}
is($node->safe_psql('shop', attempt([])), 'works', 'with the library: all is as before');

# What commits in between can only be refused beforehand.
foreach (
	[ 1, 'CREATE INDEX CONCURRENTLY mine ON T (event_name)', 'DROP INDEX CONCURRENTLY T_mine' ],
	[ 1, 'REINDEX INDEX CONCURRENTLY T_xid_id_idx' ],
	[ 1, 'REINDEX TABLE CONCURRENTLY T' ],
	[ 1, 'VACUUM FULL T' ],
	[ 1, 'VACUUM ANALYZE T' ],
	[ 0, 'CREATE UNIQUE INDEX CONCURRENTLY mine ON T (event_id)' ],
	[ 0, 'CREATE INDEX CONCURRENTLY mine ON T (lower(event_name))' ],
	[ 0, q{CREATE INDEX CONCURRENTLY mine ON T (event_id) WHERE event_name = 'x'} ],
	[ 0, 'DROP INDEX CONCURRENTLY T_xid_id_idx' ],
	[ 0, 'ALTER TABLE onside_attribution.outbox DETACH PARTITION T CONCURRENTLY' ])
{
	my ($allowed, @commands) = @$_;
	foreach my $command (@commands)
	{
		(my $sql = $command) =~ s/\bT_mine\b/$schema.mine/;
		$sql =~ s/\bT(?=\b|_)/$schema.outbox_2/g;
		my ($ret, undef, $err) = $node->psql('shop', $sql);
		$allowed
		  ? is($ret, 0, "with the library: $command")
		  : like($err, qr/ERROR:  cannot change table "$schema\.outbox(_2)?" in this way/, "with the library: $command: refused");
	}
}
is($node->safe_psql('shop', attempt([])), 'works', 'with the library: all is as before');

# pg_restore --disable-triggers asks for what is refused, and restores all the same.
$node->safe_psql('shop', 'TRUNCATE onside_attribution.outbox');
my @pending = map { track($node, 'shop') } 1 .. 2;
my $dump = $node->basedir . '/dump';
$node->command_ok([ 'pg_dump', '-Fc', '-a', '-f', $dump, $node->connstr('shop') ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->safe_psql('restored', 'CREATE EXTENSION onside_attribution');
$node->safe_psql('restored', 'SELECT onside_attribution.pause()');
my ($stdout, $stderr) = run_command([ 'pg_restore', '-a', '-n', $schema, '--disable-triggers', '-d', $node->connstr('restored'), $dump ]);
like($stderr, qr/cannot change table "$schema\.outbox_\d" in this way.*--disable-triggers/s, 'pg_restore --disable-triggers says that it need not');
is($node->safe_psql('restored', 'SELECT event_id FROM onside_attribution.pending ORDER BY 1'), join("\n", sort @pending), 'and has restored what was pending');
is($node->safe_psql('restored', "SELECT ok FROM onside_attribution.doctor() WHERE check_name = 'tables'"), 't', 'and the tables are as they have to be');

# The schema, the extension, and what CASCADE would drop with a column.
foreach (
	[ "ALTER SCHEMA $schema RENAME TO other", qr/cannot rename schema "$schema"/ ],
	[ "ALTER EXTENSION $schema SET SCHEMA public", qr/extension "$schema" does not support SET SCHEMA/ ],
	[ "ALTER TABLE $schema.outbox DROP COLUMN payload", qr/cannot change table "$schema\.outbox" in this way/ ],
	[ "ALTER TABLE $schema.outbox DROP COLUMN payload CASCADE", qr/cannot change table "$schema\.outbox" in this way/ ],
	[ "DROP TABLE $schema.outbox_3", qr/cannot drop table $schema\.outbox_3 because/ ],
	[ "DROP TABLE $schema.outbox_3 CASCADE", qr/cannot drop table $schema\.outbox_3 because/ ])
{
	my ($sql, $error) = @$_;
	my (undef, undef, $err) = $node->psql('shop', $sql);
	like($err, $error, "with the library: $sql: refused");
	unlike($err, qr/DROP \.\.\. CASCADE/, 'and nothing worse is recommended');
}

# An unrelated table of that name is anybody's.
$node->safe_psql('shop', <<'SQL');
CREATE TABLE public.outbox_1 (a int DEFAULT 1);
CREATE INDEX outbox_1_xid_id_idx ON public.outbox_1 (a);
DROP INDEX CONCURRENTLY public.outbox_1_xid_id_idx;
ALTER TABLE public.outbox_1 ADD COLUMN b text NOT NULL DEFAULT 'x', DROP COLUMN a;
DROP TABLE public.outbox_1;
SQL

# ---------------------------------------------------------------------------
# Made without the library, and now delivered from
# ---------------------------------------------------------------------------

# Runs statements one by one; returns what they say, and keeps the errors.
sub run
{
	my ($db, @statements) = @_;
	my ($ret, $out, $err) = $node->psql($db->{name}, join(";\n", "\\set VERBOSITY verbose\nSET client_min_messages = error", @statements) . ';', on_error_stop => 0);
	$db->{errors} .= $err;
	return split /\n/, $out;
}

my $payload = q(jsonb_build_object('db', current_database()::text, 'n', 1.50));
foreach my $db (@databases)
{
	my @ids = run($db,
		"SELECT onside_attribution.track('tracked', '$OnsideTest::installation', $payload)",
		"SELECT onside_attribution.track('rotten', '$OnsideTest::installation', $payload)",
		"INSERT INTO onside_attribution.outbox (event_name, payload, installation_id)
		     VALUES ('inserted', $payload, '$OnsideTest::installation') RETURNING event_id",
		"INSERT INTO source VALUES ('$OnsideTest::installation', 1.50), ('$OnsideTest::installation', 'NaN')",
		"SELECT event_id FROM onside_attribution.outbox WHERE event_name = 'sold'");
	$db->{ids}{$_} = 1 foreach grep { /^[0-9a-f-]{36}$/ } @ids;
}

# Is there an error that names the table, of a session or of the worker?
sub stopped
{
	my ($db) = @_;
	(my $family = $db->{tables}[0]) =~ s/_1$//;
	my ($column) = $words{ $db->{tables}[0] }{column};
	my $errors = $db->{errors};
	my $row = status($node, $db->{name});
	$errors .= "\nERROR: $row->{state_reason}" if $row->{state} eq 'not_running' || ($row->{state_reason} // '') =~ /^could not/;
	return $errors =~ /(?:ERROR: .*|TABLE NAME:  )(?:\b\Q$family\E|column \S*\b\Q$column\E"? (?:of relation .*)?does not exist)/;
}

# All that was recorded is settled, in each of the databases.
sub settle
{
	my ($what, $dead) = @_;
	foreach my $db (@databases)
	{
		next if $db->{stopped};
		my $row;
		my $ok = wait_until(
			sub {
				$row = eval { status($node, $db->{name}) } // return 0;
				return 1 if defined $row->{pending} && $row->{pending} eq '0'
				  && $row->{dead_lettered} >= $dead && $row->{state} eq 'idle';
				return $db->{stopped} = 1 if $db->{expected} eq 'stops' && stopped($db);
				return 0;
			});
		ok($ok, "$what: $db->{what}") or diag(JSON::PP->new->canonical->encode($row // {}) . $db->{errors});
	}
	return;
}

settle('delivered, and one dead letter', 1);
foreach my $db (grep { !$_->{stopped} } @databases)
{
	my ($dead) = run($db, "SELECT string_agg(concat_ws(' ', event_name, payload, http_status), ', ' ORDER BY event_name)
		FROM onside_attribution.dead_letter");
	like($dead // '', qr/^rotten \{"n": 1\.50, "db": "$db->{name}"\} 400, sold \{"amount": "NaN"\}$/, "the dead letters: $db->{what}")
	  unless $db->{expected} eq 'stops' && stopped($db);
}
$sandbox->poison(undef);
foreach my $db (@databases)
{
	run($db, "SELECT onside_attribution.pause('because')", 'SELECT onside_attribution.retry_dead_letters()',
		"SELECT onside_attribution.replay('-infinity')");
	my @ids = run($db, "SELECT onside_attribution.track('tracked', '$OnsideTest::installation', $payload)",
		'SELECT onside_attribution.resume()');
	$db->{ids}{$_} = 1 foreach grep { /^[0-9a-f-]{36}$/ } @ids;
}
settle('delivered after retry, replay, pause and resume', 1);

my $unseen = 0;

# What arrived is what was recorded; nothing is missing where nothing has failed.
my %kept = map { $_->{event_id} => $_ } @{ $sandbox->kept };
foreach my $db (@databases)
{
	my @arrived = grep { $kept{$_} } keys %{ $db->{ids} };
	my @missing = grep { !$kept{$_} } keys %{ $db->{ids} };
	my @wrong = grep {
		my $event = $kept{$_};
		$event->{installation_id} ne $OnsideTest::installation
		  || !($event->{event_name} eq 'sold' ? $event->{payload}{amount} eq '1.50'
			: $event->{payload}{db} eq $db->{name} && $event->{payload}{n} == 1.5)
	} @arrived;
	is("@wrong", '', "what arrived is right: $db->{what}");
	if ($db->{expected} ne 'stops' || !stopped($db))
	{
		is(scalar @missing, 0, "all has arrived: $db->{what}");
		is(scalar keys %{ $db->{ids} }, 5, "all was recorded: $db->{what}");
		is($db->{errors}, '', "without an error: $db->{what}");
	}
	my ($doctor) = run($db, "SELECT ok || ' ' || detail FROM onside_attribution.doctor() WHERE check_name = 'tables'");
	like($doctor // 'none', $db->{expected} eq 'works' ? qr/^true/ : qr/^false .*$schema\.$db->{tables}[0]/, "doctor(): $db->{what}");
	my $said = ($node->psql($db->{name}, 'BEGIN; DROP EXTENSION onside_attribution CASCADE; ROLLBACK'))[2];
	$said =~ /has pending events/ ? pass("it can be dropped, but for pending events: $db->{what}") :
	  unlike($said, qr/ERROR/, "it can be dropped: $db->{what}");
	$unseen += () = $said =~ /WARNING:.*dropped without a look at its events/g;
	run($db, 'TRUNCATE onside_attribution.outbox');
}
cmp_ok($unseen, '>', 3, 'with a warning where its tables cannot be read');
is($sandbox->report->{mismatched}, 0, 'nothing came again with other bytes');

# What is wrong already keeps nobody from anything else, nor from repairing it.
like(($node->psql('broken', "ALTER TABLE $schema.dead_letter ADD COLUMN more text DEFAULT 'x'"))[2],
	qr/cannot change table .*\n.*column "more"/, 'a table that is wrong gets nothing else that is wrong');
$node->safe_psql('broken', 'CREATE TABLE public.more (a int DEFAULT 1)');
$node->safe_psql('broken', "ALTER TABLE $schema.dead_letter ADD COLUMN more text");
$node->safe_psql('broken', "DROP TRIGGER mine ON $schema.dead_letter");
$node->safe_psql('broken', "ALTER TABLE $schema.dead_letter ALTER note DROP DEFAULT");
is($node->safe_psql('broken', "SELECT ok FROM onside_attribution.doctor() WHERE check_name = 'tables'"), 't', 'repaired step by step');

# An index that is missing: the error says what to do.
my ($db) = grep { $_->{what} eq 'its own index dropped, outbox_1' } @databases;
my ($command) = log_since($node, $position) =~ /HINT:  (CREATE INDEX outbox_1_xid_id_idx .*;)/;
ok(defined $command, 'the worker says which index it needs');
$node->safe_psql($db->{name}, $command) if defined $command;
my $id = track($node, $db->{name});
ok(wait_until(sub { $sandbox->events->{$id} }), 'and sends when it is there');

unlike(log_since($node, $position), qr/terminated by signal/, 'with the library: no process has crashed');
$node->stop;
done_testing();
