# What comes by logical replication from a table made by hand, on a server that does not
# have the extension: each valid event arrives, and each row that breaks a rule of
# the events is a dead letter with all that was in it, whether it comes by
# initial copy, by itself, or in a transaction that is streamed before it
# commits; savepoints and transactions that are rolled back leave nothing.  None of them stops the
# subscription.  A second initial copy brings all of it again: the events under
# their event_ids, and no dead letter twice.

use OnsideTest;

my %table = (
	plain => '',
	parts => 'PARTITION BY HASH (n)',
);
my @bad = (
	[ 'event_name', 'NULL', qr/event_name must not be null/ ],
	[ 'event_name', q{''}, qr/event_name must not be empty/ ],
	[ 'event_name', q{E' \u00a0\u200b'}, qr/event_name must not be empty or blank/ ],
	[ 'event_name', q{E'a\tb'}, qr/event_name must not contain control/ ],
	[ 'event_name', q{E'\u0085'}, qr/event_name must not contain control/ ],
	[ 'event_name', q{repeat('x', 300)}, qr/event_name must not be longer than 255/ ],
	[ 'installation_id', 'NULL', qr/installation_id must not be null/ ],
	[ 'payload', 'NULL', qr/payload must not be null/ ],
	[ 'payload', q{'[]'}, qr/payload must be a JSON object/ ],
	[ 'payload', q{'null'}, qr/payload must be a JSON object/ ],
	[ 'payload', q{jsonb_build_object('x', repeat('y', 1000000))}, qr/payload is too large: .* has \d+ bytes/ ],
	[ 'payload', q{jsonb_build_object('x', 1e1000)}, undef ],
	[ 'payload', q{(SELECT jsonb_object_agg(g, 1e100000::numeric) FROM generate_series(1, 12) g)}, qr/payload is too large/ ],
	[ 'event_datetime', 'NULL', qr/event_datetime must not be null/ ],
	[ 'event_datetime', q{'infinity'}, qr/event_datetime must be finite/ ],
	[ 'event_datetime', q{'-infinity'}, qr/event_datetime must be finite/ ],
	[ 'event_datetime', q{'10000-01-01 00:00+00'}, qr/event_datetime must be finite and in years/ ],
	[ 'event_datetime', q{'0001-12-31 00:00+00 BC'}, qr/event_datetime must be finite and in years/ ],
	[ 'event_id', q{overlay(gen_random_uuid()::text PLACING '7' FROM 15)}, qr/event_id must be a version 4/ ],
	[ 'event_id', q{overlay(gen_random_uuid()::text PLACING 'c' FROM 20)}, qr/event_id must be a version 4/ ],
	# Not sent as it is, and yet valid.
	[ 'event_name', q{repeat(U&'\00E9', 255)}, undef ],
	[ 'event_id', 'NULL', undef ],
	[ 'recorded_at', 'NULL', undef ],
	[ 'recorded_at', q{'infinity'}, undef ],
	[ 'event_datetime', q{'9999-12-31 23:59:59.999999+00'}, undef ]);
my $columns = 'event_id, event_name, payload, event_datetime, installation_id, recorded_at';

my $sandbox = OnsideSandbox->start;
my $publisher = onside_node('publisher', preload => 0, init => { allows_streaming => 'logical' },
	conf => "logical_decoding_work_mem = '64kB'\n");
my $sender = onside_node('sender', sandbox => $sandbox,
	conf => "wal_retrieve_retry_interval = '100ms'\nmax_logical_replication_workers = 10\n");

# Rows of the table as SQL: the good ones by a series, the bad ones one by one.
sub rows_sql
{
	my ($way) = @_;
	my %good = (
		event_id => 'gen_random_uuid()', event_name => "'good $way'", payload => q{'{"a": [1.50]}'},
		event_datetime => q{'2026-05-05 12:00+02'}, installation_id => q{'550e8400-e29b-41d4-a716-446655440000'},
		recorded_at => 'clock_timestamp()');
	my $n = 0;
	my @sql = ("INSERT INTO onside_attribution.outbox ($columns, n, way, bad) SELECT @{[ join ', ', @good{split /, /, $columns} ]}, n, '$way', false FROM generate_series(1, 3) n");
	foreach my $row (@bad)
	{
		my ($column, $value, $error) = @$row;
		my %values = (%good, $column => $column eq 'event_id' && $value ne 'NULL' ? "($value)::uuid" : $value);
		$values{event_name} = "'$column $n'" if $column ne 'event_name';
		push @sql, "INSERT INTO onside_attribution.outbox ($columns, n, way, bad) SELECT @{[ join ', ', @values{split /, /, $columns} ]}, n, '$way', "
		  . ($error ? 'true' : 'false') . " FROM (VALUES ($n)) v(n)";
		$n++;
	}
	return join(";\n", @sql) . ";\n";
}

sub replicated
{
	my ($database) = @_;
	$sender->poll_query_until($database, "SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel")
	  or die 'the initial copy did not end';
	$publisher->wait_for_catchup("events_$database");
	return;
}

sub subscribe
{
	my ($database) = @_;
	$sender->safe_psql($database, <<"SQL");
CREATE SUBSCRIPTION events_$database CONNECTION '@{[ $publisher->connstr ]} dbname=$database' PUBLICATION events WITH (streaming = on)
SQL
	return;
}

# All fields of the bad ones, on both sides, in one order.
my $fields = q{coalesce(event_id::text, '-'), coalesce(left(event_name, 255), '-'), md5(payload::text), event_datetime, installation_id, recorded_at};

sub all_right
{
	my ($database, $what) = @_;
	replicated($database);
	wait_for_flush($sender, $database, "$what: sent");
	my $made = $publisher->safe_psql($database, 'SELECT count(*) FROM onside_attribution.outbox WHERE NOT bad AND event_id IS NULL');
	my @with_id = split /\n/, $publisher->safe_psql($database, 'SELECT event_id FROM onside_attribution.outbox WHERE NOT bad AND event_id IS NOT NULL');
	my $arrived = $sandbox->events;
	is(scalar(grep { !$arrived->{$_} } @with_id), 0, "$what: each valid event arrived");
	my $sort = 'ORDER BY event_id, event_name, event_datetime, md5(payload::text), installation_id';
	is($sender->safe_psql($database, "SELECT $fields FROM onside_attribution.dead_letter $sort"),
		$publisher->safe_psql($database, "SELECT $fields FROM onside_attribution.outbox WHERE bad $sort"),
		"$what: each invalid row is a dead letter, once, with all that was in it");
	is($sender->safe_psql($database, 'SELECT count(*) FROM onside_attribution.dead_letter WHERE attempts <> 0 OR http_status IS NOT NULL OR retry_at IS NOT NULL OR source IS NOT NULL'),
		0, "$what: never sent, and not to be tried again by itself");
	is($sender->safe_psql($database, "SELECT apply_error_count + sync_error_count FROM pg_stat_subscription_stats WHERE subname = 'events_$database'"),
		0, "$what: the subscription had no error");
	return @with_id + $made;
}

my $sent = 0;
foreach my $database (sort keys %table)
{
	$_->safe_psql('postgres', "CREATE DATABASE $database") foreach $publisher, $sender;
	create_extension($sender, $database);
	$publisher->safe_psql($database, <<"SQL");
CREATE SCHEMA onside_attribution;
CREATE TABLE onside_attribution.outbox (event_id uuid, event_name text, payload jsonb, event_datetime timestamptz, installation_id uuid,
	recorded_at timestamptz, n int, way text, bad boolean) $table{$database};
@{[ $table{$database} ? join '', map { "CREATE TABLE onside_attribution.part_$_ PARTITION OF onside_attribution.outbox FOR VALUES WITH (MODULUS 3, REMAINDER $_);\n" } 0 .. 2 : '' ]}
CREATE PUBLICATION events FOR TABLE onside_attribution.outbox ($columns) WITH (publish = 'insert', publish_via_partition_root = true);
SQL
	$publisher->safe_psql($database, rows_sql('copy'));
	subscribe($database);
	all_right($database, "$database, initial copy");

	$publisher->safe_psql($database, rows_sql('apply'));
	all_right($database, "$database, one by one");

	# More than logical_decoding_work_mem.
	my $filler = "INSERT INTO onside_attribution.outbox ($columns, n, way, bad) SELECT gen_random_uuid(), 'filler', jsonb_build_object('x', repeat(md5(g::text), 30)), now(), gen_random_uuid(), now(), g, 'stream', false FROM generate_series(1, 300) g;\n";
	my $bad = rows_sql('stream');
	$publisher->safe_psql($database, "BEGIN;\n$filler SAVEPOINT a;\n$bad ROLLBACK TO a;\n$bad SAVEPOINT b;\n$filler ROLLBACK TO b;\nCOMMIT;\nBEGIN;\n$filler$bad ROLLBACK;\n");
	$sent += all_right($database, "$database, streamed");
	cmp_ok($publisher->safe_psql($database, "SELECT stream_txns FROM pg_stat_replication_slots WHERE slot_name = 'events_$database'"),
		'>', 0, "$database: it was streamed");
}
nothing_came_twice($sandbox, 'nothing came twice');
is(scalar keys %{ $sandbox->events }, $sent, 'and nothing else came');

# The errors are those that the functions raise.
foreach my $row (grep { $_->[2] } @bad)
{
	my ($column, $value, $error) = @$row;
	ok((grep { /$error/ } split /\n/, $sender->safe_psql('plain', 'SELECT error FROM onside_attribution.dead_letter')), "a dead letter says $error");
}

# A new subscription with its initial copy: all that the table holds comes again.
foreach my $database (sort keys %table)
{
	my $dead = $sender->safe_psql($database, 'SELECT count(*) FROM onside_attribution.dead_letter');
	my $before = $sandbox->events;
	$sender->safe_psql($database, "DROP SUBSCRIPTION events_$database");
	$sender->safe_psql($database, 'SELECT onside_attribution.pause()') if $database eq 'parts';
	$publisher->safe_psql($database, rows_sql('between'));
	subscribe($database);
	replicated($database);
	if ($database eq 'parts')
	{
		# Once more, while they are pending: each event is there twice.
		$sender->safe_psql($database, "DROP SUBSCRIPTION events_$database");
		subscribe($database);
		replicated($database);
		is($sender->safe_psql($database, "SELECT count(*) FROM (SELECT FROM onside_attribution.pending WHERE event_name = 'good between' GROUP BY event_id HAVING count(*) = 2) twice"),
			3, 'events are pending twice');
		$sender->safe_psql($database, 'SELECT onside_attribution.resume()');
	}
	all_right($database, "$database, copied again");
	my $after = $sandbox->events;
	is(join(' ', grep { !$after->{$_} } keys %$before), '', "$database: none is lost");
}
is($sandbox->report->{violations} // 0, 0, 'and no request was against the rules');

$_->stop foreach $sender, $publisher;
$sandbox->stop;
done_testing();
