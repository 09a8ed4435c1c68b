# managed/recorder.sql, installed by a plain role into a server without our library, takes
# and refuses what the extension does: the SQL tests of recording are run against it, and
# what comes out differs from expected/ by test/managed/*.diff and nothing else.  Of columns of
# any type, and keys, both make the same events, byte for byte.

use FindBin;
use IPC::Run ();
use OnsideTest;
use OnsideTopology qw(install_recorder);

my $top = "$FindBin::RealBin/../..";
my $recorder = "$top/managed/recorder.sql";

my $plain = onside_node('plain', preload => 0, conf => "wal_level = logical\n");
$plain->safe_psql('postgres', 'CREATE ROLE shop LOGIN CREATEROLE');
$plain->safe_psql('postgres', 'CREATE DATABASE shop OWNER shop');

# ---------------------------------------------------------------------------
# The SQL tests of the extension

my $dir = PostgreSQL::Test::Utils::tempdir();
mkdir $_ foreach "$dir/sql", "$dir/sql/include";
my $setup = slurp_file("$top/sql/include/setup.sql");
$setup =~ s/^DO \$\$.*?^\$\$;\n//ms or die 'setup.sql looks different';
$setup =~ s/^DROP EXTENSION.*\nCREATE EXTENSION.*\n/DROP PUBLICATION IF EXISTS onside_attribution;\nDROP SCHEMA IF EXISTS onside_attribution CASCADE;\n\\i $recorder\n\\set ON_ERROR_STOP off\n/m
  or die 'setup.sql looks different';
# What PL\/pgSQL cannot say in the context stands in the detail.
$setup =~ s/(context = PG_EXCEPTION_CONTEXT);/$1, detail = PG_EXCEPTION_DETAIL;/ or die;
$setup =~ s/    context text;\n/    context text;\n    detail text;\n/ or die;
$setup =~ s/substring\(context, /substring(context || detail, / or die;
append_to_file("$dir/sql/include/setup.sql", $setup);
$ENV{PG_ABS_SRCDIR} = $dir;

# Which line of PL/pgSQL it was does not matter, nor does a fresh UUID.
sub normal
{
	my ($text) = @_;
	my (@lines, $in_context);
	foreach my $line (split /\n/, $text)
	{
		$in_context = 1, next if $line =~ /^CONTEXT:/;
		next if $in_context && $line =~ m{^(SQL (statement|expression|function)|PL/pgSQL|trigger|mapper|[ \t"])};
		$in_context = 0;
		$line =~ s/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/UUID/g;
		$line =~ s/pg_temp_\d+/pg_temp_N/g;
		push @lines, $line;
	}
	return join "\n", @lines, '';
}

foreach my $test (qw(recording batch columns keys becomes mapper))
{
	local $ENV{PGOPTIONS} = '-c timezone=America/Los_Angeles -c datestyle=Postgres,MDY';
	my $out;
	IPC::Run::run([ 'psql', '-Xaq', '-d', $plain->connstr('shop') ], '<', "$top/sql/$test.sql", '>', \$out, '2>&1');
	my ($got, $expected) = ("$dir/$test.out", "$dir/$test.expected");
	append_to_file($got, normal($out));
	append_to_file($expected, normal(slurp_file("$top/expected/$test.out")));
	my $diff = '';
	IPC::Run::run([ 'diff', $expected, $got ], '>', \$diff);
	my $known = "$top/test/managed/$test.diff";
	is($diff, -e $known ? slurp_file($known) : '', "sql/$test.sql differs as is known, and not else");
}

# ---------------------------------------------------------------------------
# A plain role, and the same events as the extension's

my $extension = onside_node('extension', conf => "onside_attribution.enabled = off\n");
create_extension($extension, 'postgres');
$plain->safe_psql('postgres', 'CREATE DATABASE same OWNER shop');
install_recorder($plain, 'same', 'shop', 'installed by a role that owns the database and nothing else');
is($plain->safe_psql('same', q{SELECT count(*) FROM pg_proc WHERE pronamespace = 'onside_attribution'::regnamespace AND proowner <> 'shop'::regrole}), 0,
	'and all of it is that role\'s');

my $namespace = $extension->safe_psql('postgres', 'SELECT id FROM onside_attribution.namespace');
$plain->safe_psql('same', "UPDATE onside_attribution.namespace SET id = '$namespace'");

# Values of each type, the odd ones among them, and random ones.
srand 1;
my %values = (
	smallint => [ -32768, 0, 7 ], integer => [ 51, -1 ], bigint => [ '9223372036854775807', 0 ], boolean => [ 'true', 'false' ],
	numeric => [ '9.90', '-0.000', '1e30', '123456789012345678901234567890.123456789' ], 'numeric(12,4)' => [ '5', '0.1' ],
	real => [ '0.1', '1e20', '-3.4e38', '1.17549e-38' ], 'double precision' => [ '0.1', '1e300', '5e-324', '123456789012345680' ],
	text => [ q{O'Reilly "x" \\ é 😀}, '', ' a ' ], 'varchar(20)' => [ 'x' ], 'char(8)' => [ 'ab', '' ],
	timestamptz => [ '2026-05-05 12:00:00.100+02', '0001-01-01 00:00:00+00', '9999-12-31 23:59:59.999999+00', '2026-05-05 12:00:10+00' ],
	timestamp => [ '2026-05-05 12:00:00', '2026-02-28 23:59:59.000001' ], date => [ '2026-05-05', '0001-01-01', '9999-12-31' ],
	uuid => [ '018f6d3e-5b7a-7000-8000-000000000001', '3346C9A9-2201-438E-8609-6180E40E5021' ],
	json => [ '{"b": [1, 2.50, null], "a": "\u00e9"}', '1e5' ], jsonb => [ '{"b": [1, 2.50, null], "a": {}}', '"x"' ],
	interval => [ '1 day 02:03:04.5', '-1 year' ], bytea => [ '\\x00ff' ], inet => [ '10.0.0.1/8' ], 'int[]' => [ '{1,NULL,3}' ],
	time => [ '12:34:56.7' ], timetz => [ '12:34:56.7-05' ], bit => [ '1' ], int4range => [ '[1,5)' ], xml => [ '<a/>' ], point => [ '(1,0.1)' ],
	mood => [ 'happy' ], positive => [ '5' ], label => [ 'x' ]);
push @{ $values{numeric} }, map { sprintf '%.*f', int rand 12, (rand 2 - 1) * 10**int rand 12 } 1 .. 20;
push @{ $values{'double precision'} }, map { (rand 2 - 1) * 10**(int(rand 600) - 300) } 1 .. 20;
push @{ $values{real} }, map { (rand 2 - 1) * 10**(int(rand 70) - 35) } 1 .. 20;
push @{ $values{timestamptz} }, map { sprintf '20%02d-%02d-%02d %02d:%02d:%02d.%0*d+%02d', rand 100, 1 + rand 12, 1 + rand 28, rand 24, rand 60, rand 60, 1 + rand 6, rand 1000000, rand 15 } 1 .. 20;
s/(\.\d{6})\d+/$1/ foreach @{ $values{timestamptz} };

my $types = <<'SQL';
CREATE TYPE mood AS ENUM ('happy'); CREATE DOMAIN positive AS numeric(5,1) CHECK (VALUE > 0); CREATE DOMAIN label AS varchar(5);
SQL
my @sql = ($types);
my $n = 0;
foreach my $type (sort keys %values)
{
	my $table = 't' . $n++;
	push @sql, "CREATE TABLE $table (id int PRIMARY KEY, v $type, install uuid DEFAULT '550e8400-e29b-41d4-a716-446655440000')";
	push @sql, "SELECT onside_attribution.attach('$table', 'e', 'install', '{\"v\": \"v\", \"null\": \"v\"}', event_id => 'id', condition => " . ($n % 2 ? "'true'" : 'NULL') . ')';
	my $id = 0;
	push @sql, map { 'INSERT INTO ' . $table . ' VALUES (' . $id++ . ', ' . (defined $_ ? q{'} . s/'/''/gr . q{'} : 'NULL') . ')' } @{ $values{$type} }, undef;
}
foreach my $type (qw(smallint bigint text varchar uuid char(8) positive label))
{
	next if $type eq 'positive';
	my $table = 'k' . $n++;
	push @sql, "CREATE TABLE $table (k $type PRIMARY KEY, at timestamptz DEFAULT '2026-05-05', install text DEFAULT '550e8400-e29b-41d4-a716-446655440000')";
	push @sql, "SELECT onside_attribution.attach('$table', 'Bought É', 'install', '{}', 'at', 'k')";
	push @sql, map { "INSERT INTO $table VALUES ('$_')" } $type eq 'uuid' ? @{ $values{uuid} } : (1, 51, 7);
}
push @sql, q{SELECT onside_attribution.track('by hand', '550e8400-e29b-41d4-a716-446655440000', '{"a": [1.50, {"é": "\u0001"}]}', '2026-05-05 12:00+02', '3346c9a9-2201-438e-8609-6180e40e5021')};
push @sql, q{SELECT onside_attribution.track_purchase('550e8400-e29b-41d4-a716-446655440000', 9.90, 'usd', '2026-05-05 12:00+02', '3346c9a9-2201-438e-8609-6180e40e5022', '{"x": 1}')};
my $script = join(";\n", @sql) . ";\n";

my %events;
foreach my $side ([ $extension, 'postgres', '' ], [ $plain, 'same', ' user=shop' ])
{
	my ($node, $database, $user) = @$side;
	my $errors;
	local $ENV{PGOPTIONS} = '-c extra_float_digits=0 -c datestyle=German -c timezone=Asia/Tokyo -c client_min_messages=error';
	IPC::Run::run([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($database) . $user ], '<', \$script, '>', \my $none, '2>', \$errors)
	  or diag($errors);
	$events{$database} = $node->safe_psql($database, <<'SQL');
SELECT CASE WHEN event_name = 'e' THEN regexp_replace(onside_attribution.preview(event_id), '"event_datetime":"[^"]*"', '"now"')
	ELSE onside_attribution.preview(event_id) END FROM onside_attribution.outbox ORDER BY event_id
SQL
}
cmp_ok(scalar(split /\n/, $events{postgres}), '>', 150, 'many events');
append_to_file("$dir/events.$_", $events{$_}) foreach keys %events;
my $out;
IPC::Run::run([ 'diff', "$dir/events.postgres", "$dir/events.same" ], '>', \$out);
is($out, '', 'the same bytes and event_ids on both sides');

# ---------------------------------------------------------------------------
# Who writes, and what is left for doctor()

$plain->safe_psql('postgres', 'CREATE ROLE clerk LOGIN');
$plain->safe_psql('same', 'GRANT INSERT ON t0, t1 TO clerk', extra_params => [ '-U', 'shop' ]);
my (undef, undef, $err) = $plain->psql('same', 'INSERT INTO t0 (id) VALUES (1000)', extra_params => [ '-U', 'clerk' ]);
like($err, qr/permission denied for function/, 'who may not record does not get through');
$plain->safe_psql('same', 'GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA onside_attribution TO clerk', extra_params => [ '-U', 'shop' ]);
$plain->safe_psql('same', 'INSERT INTO t0 (id) VALUES (1000); INSERT INTO t1 (id) VALUES (1000)', extra_params => [ '-U', 'clerk' ]);
(undef, undef, $err) = $plain->psql('same', 'SELECT * FROM onside_attribution.outbox', extra_params => [ '-U', 'clerk' ]);
like($err, qr/permission denied for table outbox/, 'who may record does not read');
foreach my $name ('flush()', 'pause()', 'resume()', "retry_dead_letters()", "replay('2026-01-01')", 'stats_reset()')
{
	(undef, undef, $err) = $plain->psql('same', "SELECT onside_attribution.$name");
	like($err, qr/is on the sending side.*HINT:/s, "$name says where it is");
}
is($plain->safe_psql('same', q{SELECT string_agg(check_name || ' ' || ok, ', ' ORDER BY check_name) FROM onside_attribution.doctor()}),
	'attached true, dead_letters true, outbox true, privileges true, publication true, slot false, wal_level true', 'doctor() misses a subscription alone');
$plain->safe_psql('same', 'DELETE FROM onside_attribution.namespace');
like($plain->safe_psql('same', q{SELECT detail || ' ' || hint FROM onside_attribution.doctor() WHERE NOT ok AND check_name = 'attached'}),
	qr/namespace is empty: .* VALUES \('$namespace'\);$/, 'doctor() knows the namespace that is lost');
(undef, undef, $err) = $plain->psql('same', q{SELECT onside_attribution.attach('t0', 'lost', 'install', '{}', event_id => 'id')});
like($err, qr/attach: the table onside_attribution\.namespace is empty/, 'and so is what needs it');
$plain->safe_psql('same', "INSERT INTO onside_attribution.namespace (id) VALUES ('$namespace')");
$plain->safe_psql('same', 'ALTER TABLE t0 RENAME v TO w');
like($plain->safe_psql('same', q{SELECT detail FROM onside_attribution.doctor() WHERE NOT ok AND check_name = 'attached'}),
	qr/column "v" of relation "t0", mapped to payload.(v|null), does not exist/, 'doctor() names a column that is gone');

# ---------------------------------------------------------------------------
# The week that the outbox keeps

$plain->safe_psql('same', 'DELETE FROM onside_attribution.outbox');
my $track = q{SELECT onside_attribution.track('e', gen_random_uuid(), '{}')};
my $oldest = $plain->safe_psql('same', q{SELECT onside_attribution.part_of(((clock_timestamp() AT TIME ZONE 'UTC')::date + 2))});
my $old = "INSERT INTO onside_attribution.outbox (event_id, event_name, payload, installation_id, part) VALUES (gen_random_uuid(), 'old', '{}', gen_random_uuid(), $oldest)";
$plain->safe_psql('same', "$old; UPDATE onside_attribution.room SET day = day - 1");
my $reader = $plain->background_psql('same');
$reader->query_safe("BEGIN; SELECT count(*) FROM onside_attribution.outbox_$oldest");
$plain->safe_psql('same', $track);
is($plain->safe_psql('same', 'SELECT count(*) FROM onside_attribution.outbox'), 2, 'whoever reads the oldest day keeps it, and nobody waits');
$reader->query_safe('COMMIT');
$plain->safe_psql('same', "BEGIN; $track; ROLLBACK");
is($plain->safe_psql('same', 'SELECT count(*) FROM onside_attribution.outbox'), 2, 'what is rolled back empties nothing');
$plain->safe_psql('same', $track);
is($plain->safe_psql('same', q{SELECT string_agg(DISTINCT event_name, ',') || count(*) FROM onside_attribution.outbox}), 'e2', 'then it is emptied, once a day');
$plain->safe_psql('same', "$old; $track");
is($plain->safe_psql('same', 'SELECT count(*) FROM onside_attribution.outbox'), 4, 'and no more on that day');
$reader->quit;
$_->stop foreach $plain, $extension;
done_testing();
