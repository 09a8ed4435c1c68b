# Nobody gains a right through us: whatever shape a plain role gives to its table,
# and whatever it does with that table through the extension, its functions run
# as that role and as nobody else, and it is no superuser afterwards.
#
# A matrix: each shape of a table that calls a function of the role's, times each
# thing that the role can do.  Then what an operator does while such tables are
# attached, and what the worker does.

use OnsideTest;

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox, conf => <<'CONF');
onside_attribution.on_invalid_event = dead_letter
log_min_messages = log
CONF
create_extension($node, 'postgres');

# ---------------------------------------------------------------------------
# The role, and its functions
# ---------------------------------------------------------------------------

# Each tells the server's log who runs it, which no ROLLBACK takes back, and
# tries for more.  What is declared immutable is evaluated in the most places.
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE mallory LOGIN;
CREATE SCHEMA AUTHORIZATION mallory;
GRANT USAGE ON SCHEMA onside_attribution TO mallory;
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA onside_attribution TO mallory;
SET SESSION AUTHORIZATION mallory;
CREATE FUNCTION mallory.worse(what text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE LOG 'evil % as %/%', what, current_user, session_user;
    BEGIN
        ALTER ROLE mallory SUPERUSER;
        RAISE LOG 'evil % made a superuser', what;
    EXCEPTION WHEN insufficient_privilege THEN NULL;
    END;
END
$$;
CREATE FUNCTION mallory.evil(what text) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
    PERFORM mallory.worse(what);
    RETURN 0;
END
$$;
CREATE FUNCTION mallory.evil_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM mallory.worse(TG_ARGV[0]);
    RETURN coalesce(NEW, OLD);
END
$$;
SQL

# What an event trigger sees is what PostgreSQL's own commands do, as whoever
# calls them.
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE LOG 'watched % as %', tg_tag, current_user;
END
$$;
CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION watch();
SQL

sub as_mallory
{
	my ($sql) = @_;
	my ($stdout, $stderr) = ('', '');
	my $retval = $node->psql('postgres', $sql,
		extra_params => [ '-U', 'mallory' ], stdout => \$stdout, stderr => \$stderr);
	return ($retval, $stdout, $stderr);
}

# ---------------------------------------------------------------------------
# The shapes
# ---------------------------------------------------------------------------

# "t" is the table; its column "uid" is never null, and a key by itself.
my $columns = "id bigint, inst uuid, total numeric, uid uuid NOT NULL DEFAULT gen_random_uuid()";
my $plain = "CREATE TABLE t ($columns, PRIMARY KEY (id));";
my %shapes = (
	'partition key' => "CREATE TABLE t ($columns) PARTITION BY RANGE ((id + mallory.evil('x')));
		CREATE TABLE t_1 PARTITION OF t DEFAULT;",
	'partition key below' => "CREATE TABLE t ($columns) PARTITION BY RANGE (id);
		CREATE TABLE t_1 PARTITION OF t DEFAULT PARTITION BY LIST ((id + mallory.evil('x')));
		CREATE TABLE t_1_1 PARTITION OF t_1 DEFAULT;",
	'partition bound' => "CREATE TABLE t ($columns, PRIMARY KEY (id)) PARTITION BY RANGE (id);
		CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (mallory.evil('x')) TO (1000);
		CREATE TABLE t_2 PARTITION OF t DEFAULT;",
	'index expression' => "$plain CREATE INDEX ON t ((id + mallory.evil('x')));",
	'unique index expression' => "$plain CREATE UNIQUE INDEX ON t ((id + mallory.evil('x')));",
	'index predicate' => "$plain CREATE INDEX ON t (id) WHERE mallory.evil('x') = 0 AND id > 0;",
	'check constraint' => "$plain ALTER TABLE t ADD CHECK (mallory.evil('x') = 0);",
	'default' => "$plain ALTER TABLE t ALTER total SET DEFAULT mallory.evil('x');",
	'generated column' => "$plain ALTER TABLE t DROP total;
		ALTER TABLE t ADD total int GENERATED ALWAYS AS (mallory.evil('x')) STORED;",
	'domain' => "CREATE DOMAIN d AS numeric CHECK (mallory.evil('x') = 0);
		$plain ALTER TABLE t ALTER total TYPE d;",
	'array of a domain' => "CREATE DOMAIN d AS numeric CHECK (mallory.evil('x') = 0);
		$plain ALTER TABLE t ADD c d[] DEFAULT '{1}';",
	'domain as key' => "CREATE DOMAIN d AS bigint CHECK (mallory.evil('x') = 0);
		CREATE TABLE t ($columns, PRIMARY KEY (id)); ALTER TABLE t ALTER id TYPE d;",
	'policy' => "$plain ALTER TABLE t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
		CREATE POLICY p ON t USING (mallory.evil('x') = 0) WITH CHECK (mallory.evil('x') = 0);",
	'rule' => "$plain CREATE RULE r AS ON INSERT TO t DO ALSO SELECT mallory.evil('x');
		CREATE RULE r2 AS ON UPDATE TO t DO ALSO SELECT mallory.evil('x');",
	'trigger' => "$plain CREATE TRIGGER a BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION mallory.evil_trigger('x');
		CREATE TRIGGER z AFTER INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION mallory.evil_trigger('x');
		CREATE TRIGGER s AFTER INSERT OR UPDATE ON t FOR EACH STATEMENT EXECUTE FUNCTION mallory.evil_trigger('x');
		CREATE CONSTRAINT TRIGGER c AFTER INSERT OR UPDATE ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION mallory.evil_trigger('x');
		CREATE TRIGGER w AFTER INSERT OR UPDATE ON t FOR EACH ROW WHEN (mallory.evil('x') = 0) EXECUTE FUNCTION mallory.evil_trigger('x');",
	'condition' => $plain,
	'condition with an operator' => "CREATE FUNCTION mallory.is_evil(bigint, bigint) RETURNS boolean IMMUTABLE LANGUAGE sql AS \$\$SELECT mallory.evil('x') = 0\$\$;
		CREATE OPERATOR mallory.=== (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = mallory.is_evil); $plain",
	'condition with a cast' => "CREATE TYPE e AS ENUM ('a');
		CREATE FUNCTION mallory.to_e(bigint) RETURNS e IMMUTABLE LANGUAGE plpgsql AS \$\$BEGIN PERFORM mallory.evil('x'); RETURN 'a'; END\$\$;
		CREATE CAST (bigint AS e) WITH FUNCTION mallory.to_e(bigint); $plain",
	'condition with a literal' => "CREATE DOMAIN d AS numeric CHECK (mallory.evil('x') = 0);
		CREATE TYPE c AS (d d); $plain ALTER TABLE t ADD c c DEFAULT '(1)';",
	'child' => "CREATE TABLE parent ($columns, CHECK (mallory.evil('x') = 0)); CREATE INDEX ON parent ((id + mallory.evil('x')));
		CREATE TABLE t (PRIMARY KEY (id)) INHERITS (parent);",
	'parent' => "$plain CREATE TABLE child (PRIMARY KEY (id), CHECK (mallory.evil('x') = 0)) INHERITS (t); CREATE INDEX ON child ((id + mallory.evil('x')));");
my %conditions = (
	'condition' => q{mallory.evil('x') = 0},
	'condition with an operator' => q{NEW.id OPERATOR(mallory.===) 1},
	'condition with a cast' => q{NEW.id::mallory.e = 'a'},
	'condition with a literal' => q{NEW.c = '(1)'::mallory.c});

# ---------------------------------------------------------------------------
# The things to do
# ---------------------------------------------------------------------------

# In this order, each in a session of its own, so that nothing is cached.
my $uuid = $OnsideTest::installation;
my @actions = (
	[ attach => undef ],
	[ INSERT => "INSERT INTO mallory.t (id, inst) VALUES (1, '$uuid'), (2, NULL)" ],
	[ 'INSERT, invalid' => "INSERT INTO mallory.t (id, inst, uid) VALUES (3, '$uuid', '$uuid'), (4, '$uuid', '00000000-0000-1000-8000-000000000000')" ],
	[ UPDATE => "UPDATE mallory.t SET inst = inst" ],
	[ backfill => "CALL onside_attribution.backfill('mallory.t', 'e')" ],
	[ 'backfill again' => "CALL onside_attribution.backfill('mallory.t', 'e')" ],
	[ doctor => 'SELECT * FROM onside_attribution.doctor()' ],
	[ 'rename a column' => 'ALTER TABLE mallory.t RENAME inst TO renamed' ],
	[ 'rename it back' => 'ALTER TABLE mallory.t RENAME renamed TO inst' ],
	[ 'rename the table' => 'ALTER TABLE mallory.t RENAME TO renamed' ],
	[ 'and that back' => 'ALTER TABLE mallory.renamed RENAME TO t' ],
	[ 'drop a mapped column' => 'BEGIN; ALTER TABLE mallory.t DROP uid CASCADE; ROLLBACK' ],
	[ 'CREATE PARTITION OF' => "BEGIN; CREATE TABLE mallory.p (LIKE mallory.t) PARTITION BY LIST ((id + mallory.evil('x')));
		ALTER TABLE mallory.p ATTACH PARTITION mallory.t DEFAULT; INSERT INTO mallory.p (id, inst) VALUES (9, '$uuid'); COMMIT" ],
	[ 'DETACH PARTITION' => 'ALTER TABLE mallory.p DETACH PARTITION mallory.t' ],
	[ 'the rest' => "SELECT onside_attribution.pause(); SELECT onside_attribution.resume(); SELECT onside_attribution.retry_dead_letters();
		SELECT onside_attribution.replay('-infinity'); SELECT onside_attribution.forget('$uuid'); SELECT onside_attribution.flush('0'); SELECT onside_attribution.preview('$uuid')" ],
	[ detach => "SELECT onside_attribution.detach('mallory.t', 'e')" ],
	[ 'attach, once more' => undef ]);

# What ran as anybody else since a position of the log, and how much ran at all.
sub judge
{
	my ($position, $what) = @_;
	my $log = log_since($node, $position);
	my @foreign = grep { !m{ as mallory/mallory(?: at character \d+)?$} } $log =~ /LOG: +(evil .*)$/mg;
	my %foreign = map { $_ => 1 } @foreign;
	my $worst = $node->safe_psql('postgres', "SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'");

	is(join('; ', sort keys %foreign) . $worst, 'f', "$what: nothing ran as anybody else");
	$node->safe_psql('postgres', 'ALTER ROLE mallory NOSUPERUSER') if $worst ne 'f';
	unlike($log, qr/terminated by signal|PANIC/, "$what: no process crashed");
	return scalar(() = $log =~ m{LOG: +evil .* as mallory/mallory(?: at character \d+)?$}mg);
}

# Takes away what the role has made of its table, and its settings.
sub clean_up
{
	$node->safe_psql('postgres', <<'SQL');
SET client_min_messages = warning;
ALTER ROLE mallory RESET ALL;
DO $$
DECLARE
    victim record;
BEGIN
    FOR victim IN SELECT relname FROM pg_class WHERE relnamespace = 'mallory'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition LOOP
        EXECUTE format('DROP TABLE IF EXISTS mallory.%I CASCADE', victim.relname);
    END LOOP;
    FOR victim IN SELECT typname FROM pg_type WHERE typnamespace = 'mallory'::regnamespace AND typtype IN ('d', 'c', 'e') LOOP
        EXECUTE format('DROP TYPE IF EXISTS mallory.%I CASCADE', victim.typname);
    END LOOP;
END
$$;
SQL
	return;
}

my $events = 0;
foreach my $shape (sort keys %shapes)
{
	my ($retval, undef, $err) = as_mallory("SET search_path = mallory; SET client_min_messages = warning;\n$shapes{$shape}");
	is($err, '', "$shape: the role makes its table");
	my $ran = 0;
	my $attach = sprintf(q{SELECT onside_attribution.attach('mallory.t', 'e', 'inst', '{"amount": "total"}', NULL, 'uid', 'INSERT OR UPDATE', %s)},
		$conditions{$shape} ? "\$c\$$conditions{$shape}\$c\$" : 'NULL');
	foreach (@actions)
	{
		my ($action, $sql) = @$_;
		my $position = log_position($node);
		($retval, undef, $err) = as_mallory($sql // $attach);

		# Not all can be done with each table, but most of it.
		is($err =~ /ERROR/ ? $err : '', '', "$shape, $action: done")
		  unless $action =~ /PARTITION|rest|INSERT, invalid|drop/
		  || ($shape eq 'child' && $action =~ /rename/)
		  || ($shape eq 'policy' && $action =~ /backfill/);
		$ran += judge($position, "$shape, $action");
		like(log_since($node, $position), qr/watched CREATE TRIGGER as mallory/,
			"$shape, $action: an event trigger sees it as the role's")
		  if $action =~ /^attach/;
	}
	cmp_ok($ran, '>', 0, "$shape: the function was called at all");

	# What an operator does about a server with such a table, and what the worker
	# does, must not run anything of the role's.
	my $position = log_position($node);
	$node->safe_psql('postgres', <<'SQL');
SELECT * FROM onside_attribution.attached;
SELECT * FROM onside_attribution.backfill_progress;
SELECT * FROM onside_attribution.status, onside_attribution.stats;
SELECT * FROM onside_attribution.pending;
SELECT * FROM onside_attribution.doctor();
SQL
	wait_for_flush($node, 'postgres', "$shape: the worker sends what was recorded");
	is(judge($position, "$shape, operator and worker"), 0, "$shape, operator and worker: nor as the role");
	clean_up();
	my $now = $node->safe_psql('postgres', 'SELECT delivered + dead_lettered FROM onside_attribution.status');
	cmp_ok($now, '>', $events, "$shape: events of it have left");
	$events = $now;
}

# ---------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------

# Everything that a role can set for itself, at its extremes; then all of the
# above with a table that calls its functions wherever it can.
my $everything = "CREATE DOMAIN d AS numeric CHECK (mallory.evil('x') = 0); $plain ALTER TABLE t ALTER total TYPE d;"
  . join(';', map { (my $rest = $shapes{$_}) =~ s/^\Q$plain\E//; $rest } 'index expression', 'index predicate', 'check constraint', 'rule', 'trigger');
foreach my $extreme ('max', 'min')
{
	my ($retval, undef, $err) = as_mallory("SET search_path = mallory; SET client_min_messages = warning;\n$everything");
	is($err, '', "settings, $extreme: the role makes its table");
	my (undef, $settings) = as_mallory(<<"SQL");
SELECT name || '|' || CASE vartype
    WHEN 'bool' THEN CASE boot_val WHEN 'on' THEN 'off' ELSE 'on' END
    WHEN 'enum' THEN enumvals[CASE '$extreme' WHEN 'min' THEN 1 ELSE array_length(enumvals, 1) END]
    WHEN 'string' THEN coalesce(boot_val, '')
    ELSE CASE WHEN '$extreme' = 'max' THEN max_val WHEN min_val IN ('0', '-1') THEN '1' ELSE min_val END END
FROM pg_settings WHERE context IN ('user', 'superuser')
SQL
	my @set;
	foreach (split /\n/, $settings)
	{
		my ($name, $value) = split /\|/;

		# With these nothing could be done at all.
		next if $name =~ /_timeout$|^client_encoding$|^log_|default_transaction_read_only|^default_tablespace|^local_preload_libraries|^temp_file_limit/;
		push @set, "ALTER ROLE mallory SET $name = " . ($name eq 'search_path' ? 'mallory, pg_catalog' : "'$value'") . ";\n";
	}
	(undef, undef, $err) = $node->psql('postgres', join('', @set), extra_params => [ '-U', 'mallory' ], on_error_stop => 0);
	my $refused = () = $err =~ /ERROR/g;
	cmp_ok(@set - $refused, '>', 100, "settings, $extreme: there are many");
	($retval, undef, $err) = as_mallory('SELECT');
	is($retval, 0, "settings, $extreme: the role can connect with them") or diag($err);
	is((as_mallory('SHOW search_path'))[1], 'mallory, pg_catalog', "settings, $extreme: they are in force");

	my $attach = q{SELECT onside_attribution.attach('mallory.t', 'e', 'inst', '{"amount": "total"}', NULL, 'uid', 'INSERT OR UPDATE', 'mallory.evil(''x'') = 0')};
	my ($ran, $done) = (0, 0);
	foreach (@actions)
	{
		my ($action, $sql) = @$_;
		my $position = log_position($node);
		$done++ if (as_mallory($sql // $attach))[0] == 0;
		$ran += judge($position, "settings, $extreme, $action");
	}
	cmp_ok($ran, '>', 0, "settings, $extreme: the function was called at all");
	cmp_ok($done, '>', @actions / 2, "settings, $extreme: most can be done");
	clean_up();
	wait_for_flush($node, 'postgres', "settings, $extreme: the worker sends what was recorded");
}

# ---------------------------------------------------------------------------
# What could
# ---------------------------------------------------------------------------

# Nothing takes up its owner's rights.
is($node->safe_psql('postgres', <<'SQL'), '', 'no function is SECURITY DEFINER');
SELECT proname FROM pg_proc WHERE pronamespace = 'onside_attribution'::regnamespace AND prosecdef ORDER BY 1
SQL

$node->stop;
done_testing();
