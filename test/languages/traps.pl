# The traps of docs/languages.md; test/t/380_languages.pl calls them.  What takes a
# client is a program beside this file, which prints "what: result" a line; an
# error is a result, too.

use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Utils;
use Test::More;

use OnsideTest;

sub language_traps
{
	my ($text, $node, $psql, $database, $tried, $all) = @_;
	my %tried = map { $_ => 1 } @$tried;
	my $id = '0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9';

	# What one of the programs here prints, as a hash; none where its client is missing.
	my $probe = sub {
		my ($client, $name, %options) = @_;
		return unless $tried{$client};
		$text->write($name, slurp_file("$FindBin::RealBin/../languages/$name"));
		my @interpreter =
			$name =~ /\.py$/ ? '/usr/bin/python3'
		  : $name =~ /\.rb$/ ? ('ruby', '-W0')
		  : $name =~ /\.php$/ ? 'php'
		  : 'node_modules/.bin/tsx';
		my ($status, $output) = $text->run([ @interpreter, $name ],
			{ %{ $database->($options{database} // 'traps', $options{role}) }, CAST => $text->file('cast.sql'), %{ $options{env} // {} } });
		is($status, 0, "$name: it runs") or diag($output);
		note($output);
		return $output =~ /^([^:\n]+): (.*)$/mg;
	};
	my $records = sub { return $node->safe_psql($_[0] // 'traps', 'SELECT count(*) FROM onside_attribution.outbox') };

	# Its events stay where they are: nothing is sent from here.
	$node->safe_psql('postgres', 'CREATE ROLE admin SUPERUSER LOGIN');
	$node->safe_psql('postgres', 'CREATE DATABASE traps');
	$node->safe_psql('postgres', 'ALTER DATABASE traps SET onside_attribution.enabled = off');
	$node->safe_psql('traps', 'CREATE EXTENSION onside_attribution');
	$node->safe_psql('traps', $text->file('shop.sql') =~ s/^CREATE ROLE.*\n//mr);
	my $empty = sub { $node->safe_psql('traps', 'TRUNCATE orders, onside_attribution.outbox') };

	my %traps;

	$traps{'Types of parameters'} = sub {
		my $cast = $text->file('cast.sql');
		my $prepared = "SET ROLE shop_app; PREPARE c AS $cast; EXECUTE c('$id', 9.9, 'usd', '2026-05-05 12:00+00', '51', '{\"sku\": \"gems\"}')";
		$empty->();
		is($node->safe_psql('traps', $prepared),
			$node->safe_psql('traps', q{SELECT onside_attribution.event_id('orders', '51')}), 'cast.sql');

		my @clients = (
			[ 'psycopg 3', 'types_psycopg.py' ], [ 'psycopg2', 'types_psycopg2.py' ], [ 'SQLAlchemy', 'types_sqlalchemy.py' ],
			[ 'PDO', 'types.php' ], [ 'Active Record', 'types.rb' ], [ 'Prisma', 'types.ts' ]);
		my %said;
		foreach (@clients)
		{
			my ($client, $name) = @$_;
			my %result = $probe->($client, $name) or next;
			foreach my $what (grep { /^cast/ } keys %result)
			{
				is($result{$what}, '3346c9a9-2201-438e-8609-6180e40e5021', "$client: $what");
			}
			$said{"$client $_"} = $result{$_} foreach keys %result;
		}
		is($node->safe_psql('traps', q{SELECT DISTINCT payload FROM onside_attribution.outbox WHERE payload ? 'sku'}),
			'{"sku": "gems", "amount": "9.90", "currency": "USD"}', 'with the casts, all of them record the same');

		my %expected = (
			'psycopg 3 float' => qr/track_purchase\(unknown, double precision, unknown\) does not exist/,
			'psycopg 3 Decimal' => qr/^9\.90$/,
			'psycopg 3 key' => qr/event_id\(unknown, smallint\) does not exist/,
			'psycopg 3 dict' => qr/cannot adapt type 'dict'/,
			'psycopg 3 named' => qr/^9\.90$/,
			'psycopg2 float' => qr/^9\.9$/,
			'psycopg2 key' => qr/event_id\(unknown, integer\) does not exist/,
			'psycopg2 dict' => qr/can't adapt type 'dict'/,
			'SQLAlchemy colons' => qr/syntax error at or near ":"/,
			'SQLAlchemy dict' => qr/can't adapt type 'dict'/,
			'PDO float' => qr/^9\.9$/,
			'PDO colons' => qr/^9\.90$/,
			'PDO key' => qr/^3346c9a9/,
			'PDO empty' => qr/payload must be a JSON object/,
			'PDO object' => qr/^[0-9a-f-]{36}$/,
			'Active Record BigDecimal' => qr/^9\.9$/,
			'Active Record colons' => qr/^9\.90$/,
			'Active Record key' => qr/event_id\(unknown, integer\) does not exist/,
			'Active Record hash' => qr/can't quote/,
			'Prisma number' => qr/^9\.9$/,
			'Prisma key' => qr/^3346c9a9/,
			'Prisma pg number' => qr/^9\.9$/,
			'Prisma pg array' => qr/invalid input syntax for type json/,
			'Prisma pg stringify' => qr/^1$/,
			'Prisma void' => qr/Failed to deserialize column of type 'void'/,
			'Prisma void executed' => qr/^1$/);
		foreach my $what (sort keys %expected)
		{
			my ($client) = grep { index($what, "$_ ") == 0 } map { $_->[0] } @clients;
			next unless $tried{$client};
			like($said{$what}, $expected{$what}, $what);
		}

		# A time without an offset.
		is($node->safe_psql('traps', "SET TimeZone = 'Asia/Tokyo'; " . $prepared =~ s/\+00//r
				  . q{; RESET ROLE; SELECT event_datetime AT TIME ZONE 'UTC' FROM onside_attribution.outbox ORDER BY xid DESC LIMIT 1}) =~ s/.*\n//r,
			'2026-05-05 03:00:00', 'a time without an offset is read in the session\'s zone');
	};

	$traps{'Results'} = sub {
		is($node->safe_psql('traps', q{SELECT string_agg(proname, ' ' ORDER BY proname) FROM pg_proc
			WHERE pronamespace = 'onside_attribution'::regnamespace AND proname IN ('flush', 'replay', 'forget', 'pause', 'resume') AND prorettype = 'void'::regtype}),
			'pause resume', 'what returns void');
		my %result = $probe->('psycopg 3', 'results.py');
		is($result{type}, 'UUID', 'psycopg: a UUID') if %result;
		%result = $probe->('PDO', 'results.php', role => 'admin');
		is($result{lastInsertId}, $result{id}, 'PDO: lastInsertId is the order') if %result;
		if ($tried{JDBC})
		{
			$text->write('Update.java', slurp_file("$FindBin::RealBin/../languages/Update.java"));
			my ($status, $output) = $text->run([ 'java', '-cp', '/usr/share/java/postgresql.jar', 'Update.java' ], $database->('traps'));
			like($output, qr/^A result was returned when none was expected\.$/m, 'JDBC: executeUpdate');
		}
	};

	$traps{'A SELECT that is not executed, or elsewhere'} = sub {
		like(($psql->('traps', "BEGIN READ ONLY; SELECT onside_attribution.track('e', '$id', '{}')"))[2],
			qr/cannot execute recording an event in a read-only transaction/, 'a read-only transaction');
		$empty->();
		my %result = $probe->('Active Record', 'cache.rb');
		if (%result)
		{
			is($result{select_value}, 1, 'Active Record: of three equal ones in its query cache, select_value runs one');
			is($result{exec_query}, 3, 'exec_query runs all');
			is($result{execute}, 3, 'and execute');
		}
		$node->safe_psql('traps', 'CREATE ROLE shop_reader LOGIN IN ROLE shop_app; ALTER ROLE shop_reader SET default_transaction_read_only = on');
		%result = $probe->('Laravel', 'replica.php', env => { ONSIDE_PORT => $node->port });
		if (%result)
		{
			like($result{select}, qr/read-only transaction/, 'Laravel: a select goes to the replica');
			is($result{statement}, 'recorded', 'a statement does not');
			is($result{'in a transaction'}, 'recorded', 'nor does a select in a transaction');
		}
	};

	$traps{'The row is not there yet'} = sub {
		$empty->();
		foreach ([ 'SQLAlchemy', 'buy_sqlalchemy.py', qr/^    session\.flush\(\).*\n/m, qr/order\.id\}/, '1000000 + (order.id or 0)}' ],
			[ 'Doctrine', 'buy_doctrine.php', qr/^    \$em->flush\(\);.*\n/m, qr/\[\$order->id\]/, '[$order->id ?? 0]' ])
		{
			my ($client, $name, $flush, $key, $none) = @$_;
			next unless $tried{$client};
			my $program = $text->file($name);
			ok($program =~ s/$flush// && $program =~ s/$key/$none/, "$name flushes");
			$text->write("late_$name", $program);
			my ($status, $output) = $text->run([ $name =~ /py$/ ? '/usr/bin/python3' : 'php', "late_$name" ], $database->('traps'));
			is($status, 0, "$name without it: no error") or diag($output);
			is($node->safe_psql('traps', q{SELECT count(*) FROM onside_attribution.outbox WHERE event_name = 'purchase_completed'}), 0, 'and no event');
		}
		ok(1, 'tried with the units of work that are installed');
	};

	$traps{'An error in the transaction'} = sub {
		$empty->();
		my ($rc) = $psql->('traps', "BEGIN; INSERT INTO orders (total, currency) VALUES (1, 'USD'); SELECT onside_attribution.track('', '$id', '{}')");
		is($rc, 3, 'an invalid event is an error');
		is($node->safe_psql('traps', 'SELECT count(*) FROM orders'), 0, 'and takes the order along');
		my %result = $probe->('psycopg 3', 'savepoints.py');
		if (%result)
		{
			is($result{kept}, 'True', 'savepoint.py keeps the order');
			like($result{'not recorded'}, qr/payload must be a JSON object/, 'and catches the error');
			is($result{'without it'}, 'False', 'catching it without a savepoint does not');
		}
	};

	$traps{'A model of the outbox'} = sub {
		$empty->();
		$node->safe_psql('traps', 'GRANT INSERT ON onside_attribution.outbox TO shop_app');
		my $insert = 'INSERT INTO onside_attribution.outbox';
		like(($psql->('traps', "$insert (event_name, payload, installation_id, segment) VALUES ('e', '{}', '$id', NULL)"))[2],
			qr/no partition of relation "outbox" found for row/, 'NULL for segment');
		like(($psql->('traps', "$insert (event_name, payload, event_datetime, installation_id) VALUES ('e', '{}', NULL, '$id')"))[2],
			qr/event_datetime must not be null/, 'NULL for event_datetime');
		like(($psql->('traps', "SET ROLE shop_app; $insert (event_name, payload, installation_id) VALUES ('e', '{}', '$id') RETURNING event_id"))[2],
			qr/permission denied/, 'RETURNING needs SELECT');
		$node->safe_psql('traps', "SET ROLE shop_app; $insert (event_name, payload, installation_id) VALUES ('e', '{}', '$id')");
		like(($psql->('traps', q{UPDATE onside_attribution.outbox SET payload = '{"a": 1}'}))[2], qr/the outbox is append-only/, 'UPDATE');

		my %result = $probe->('Django', 'model.py');
		is($result{recorded}, 1, 'Django records by outbox_model.py, with INSERT alone') if %result;
		%result = $probe->('SQLAlchemy', 'model_sqlalchemy.py');
		is($result{recorded}, 1, 'SQLAlchemy, too') if %result;
		%result = $probe->('Drizzle', 'model.ts');
		if (%result)
		{
			is($result{drizzle}, 1, 'Drizzle, too');
			like($result{returning}, qr/permission denied/, 'but not with returning()');
			is($result{typeorm}, 1, 'TypeORM with an event_id, too');
			like($result{generated}, qr/permission denied/, 'but not if it is to ask for that');
		}
		%result = $probe->('Laravel', 'model.php');
		is($result{recorded}, 1, 'Laravel without $incrementing, too') if %result;
		%result = $probe->('Active Record', 'model.rb');
		like($result{'without SELECT'}, qr/permission denied/, 'Active Record asks for the event_id') if %result;
		$node->safe_psql('traps', 'GRANT SELECT (event_id) ON onside_attribution.outbox TO shop_app');
		%result = $probe->('Active Record', 'model.rb');
		if (%result)
		{
			is($result{'without SELECT'}, 1, 'and may, with SELECT on that column');
			like($result{'all columns'}, qr/no partition of relation "outbox"/, 'writing all columns, it sends NULL for segment');
			is($result{'five columns'}, 1, 'with ignored_columns it does not');
		}
		$node->safe_psql('traps', 'REVOKE INSERT ON onside_attribution.outbox FROM shop_app; REVOKE SELECT (event_id) ON onside_attribution.outbox FROM shop_app');
	};

	# The template is made by the trap about it; others use it.
	my $template = sub {
		return if $node->safe_psql('postgres', q{SELECT count(*) FROM pg_database WHERE datname = 'shop_template'}) eq '1';
		$node->safe_psql('postgres', $text->file('template.sql') . 'CREATE ROLE ci LOGIN CREATEDB IN ROLE shop_app');
	};

	$traps{'Migrations and dumps of the schema'} = sub {
		like(($psql->('traps', 'DROP TABLE onside_attribution.outbox CASCADE'))[2], qr/because extension onside_attribution requires it/, 'DROP TABLE');
		$node->safe_psql('traps', $text->file('attach.sql'));

		my %result = $probe->('SQLAlchemy', 'migrations.py', role => 'admin');
		if (%result)
		{
			is($result{'by itself'}, 0, 'Alembic leaves the schema alone');
			cmp_ok($result{include_schemas}, '>=', 8, 'with include_schemas it drops our tables');
			is($result{include_name}, 0, 'with include_name it does not');
		}
		%result = $probe->('Django', 'inspectdb.py', role => 'admin');
		is($result{tables}, 'orders', 'inspectdb') if %result;
		%result = $probe->('Active Record', 'schema.rb', role => 'admin');
		if (%result)
		{
			is($result{tables}, 'orders', 'schema.rb');
			is($result{extension}, 'true', 'it enables the extension');
			is($result{trigger}, 'false', 'it has no trigger');
		}
		%result = $probe->('Doctrine', 'schema.php', role => 'admin');
		if (%result)
		{
			is($result{introspected}, 'orders', 'Doctrine compares what is in the search_path');
			cmp_ok($result{names}, '>=', 8, 'and lists the names of our tables, too');
			is($result{filtered}, 'orders', 'with the filter it does not');
			is($result{'introspected with it'}, 'orders', 'and compares the same');
		}
		%result = $probe->('TypeORM', 'synchronize.ts', role => 'admin');
		if (%result)
		{
			is($result{orders}, 0, 'TypeORM leaves the schema alone');
			cmp_ok($result{outbox}, '>', 5, 'an entity of the outbox would change it');
			like($result{synchronized}, qr/cannot change table/, 'which is refused');
			is($result{'not synchronized'}, 0, 'with synchronize: false it would not');
		}
		drizzle_kit_ok($text, $database) if $tried{Drizzle};

		# What pg_dump writes, loaded by a role that is no superuser.
		$template->();
		$node->safe_psql('traps', 'CREATE FUNCTION no_more() RETURNS int LANGUAGE sql AS $$ SELECT 1 $$');
		my %dump = (public => ['--schema=public', '--no-comments'], all => [], 'no comments' => ['--no-comments']);
		foreach my $how (sort keys %dump)
		{
			my ($dump, $err) = run_command([ 'pg_dump', '-h', $node->host, '-p', $node->port, '-U', 'admin',
				'--schema-only', '--no-owner', '--no-privileges', @{ $dump{$how} }, 'traps' ]);
			$dump =~ s/^CREATE SCHEMA public;\n//m;
			$text->write('structure.sql', $dump);
			like($dump, qr/CREATE TRIGGER onside_purchase_completed/, "$how: the trigger is in it");
			is($dump =~ /CREATE EXTENSION/ ? 1 : 0, $how eq 'public' ? 0 : 1, "$how: the extension");
			foreach my $from (qw(template0 shop_template))
			{
				$node->safe_psql('postgres', 'DROP DATABASE IF EXISTS loaded');
				$node->safe_psql('postgres', "CREATE DATABASE loaded TEMPLATE $from OWNER ci");
				$node->safe_psql('loaded', 'GRANT CREATE ON SCHEMA public TO ci');
				my ($status, $output) = $text->run([qw(sh -c), 'psql -X -v ON_ERROR_STOP=1 -f structure.sql "$DATABASE_URL"'], $database->('loaded', 'ci'));
				my $expected =
					$from eq 'template0' ? ($how eq 'public' ? qr/schema "onside_attribution" does not exist/ : qr/permission denied to create extension/)
				  : $how eq 'all' ? qr/must be owner of extension/
				  : undef;
				if ($expected) { like($output, $expected, "$how into $from") }
				else { is($status, 0, "$how into $from") or diag($output) }
			}
		}
		$node->safe_psql('postgres', 'DROP DATABASE loaded');

		%result = $probe->('Laravel', 'wipe.php', role => 'migrator', env => { OWNER => own_table($node, 'wiped') });
		if (%result)
		{
			is($result{public}, 'dropped', 'Laravel drops the tables of the search_path');
			like($result{'with our schema'}, qr/must be owner|requires it/, 'and fails with our schema in that');
		}
		$node->safe_psql('traps', q{SELECT onside_attribution.detach('orders', 'purchase_completed')});
	};

	$traps{'Tests that roll back'} = sub {
		$node->safe_psql('traps', 'GRANT SELECT ON onside_attribution.pending TO shop_app; TRUNCATE onside_attribution.outbox');
		foreach my $deferred (qw(false true))
		{
			$node->safe_psql('traps', $text->file('attach.sql') =~ s/\)\s*;\s*\z/, deferred => $deferred);/r);
			is($node->safe_psql('traps', 'SET ROLE shop_app; ' . $text->file('rolled_back.sql')),
				'purchase_completed|{"amount": "9.90", "currency": "USD"}', "rolled_back.sql, deferred $deferred");
			is($node->safe_psql('traps', 'SET ROLE shop_app; ' . $text->file('rolled_back.sql') =~ s/^SET CONSTRAINTS.*\n//mr),
				$deferred eq 'true' ? '' : 'purchase_completed|{"amount": "9.90", "currency": "USD"}', 'and without SET CONSTRAINTS');
			is($records->(), 0, 'nothing is left of it');
			$node->safe_psql('traps', q{SELECT onside_attribution.detach('orders', 'purchase_completed')});
		}
		$template->();
		my %result = $probe->('Django', 'testcase.py', role => 'ci', database => 'postgres');
		is($result{outcome}, 'OK', 'a TestCase of Django, in a copy of the template') if %result;
	};

	$traps{'Cleaners'} = sub {
		$empty->();
		$node->safe_psql('traps', $text->file('attach.sql'));
		$node->safe_psql('traps', "INSERT INTO orders (installation_id, total, currency) VALUES ('$id', 9.90, 'USD'); TRUNCATE orders CASCADE");
		is($records->(), 1, 'TRUNCATE of the orders leaves the event, and makes none');
		my %result = $probe->('Active Record', 'cleaner.rb', role => 'admin');
		if (%result)
		{
			is($result{truncation}, 0, 'DatabaseCleaner empties the orders');
			is($result{outbox}, 1, 'and not the outbox');
		}
		my $everything = <<'SQL';
DO $$ BEGIN EXECUTE (SELECT 'TRUNCATE ' || string_agg(format('%I.%I', schemaname, tablename), ', ') || ' CASCADE'
    FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')); END $$;
SQL
		$node->safe_psql('traps', 'ALTER TABLE orders OWNER TO shop_app');
		like(($psql->('traps', "SET ROLE shop_app; $everything"))[2], qr/permission denied for table/, 'all schemas, as an ordinary role');
		$node->safe_psql('traps', 'ALTER TABLE orders OWNER TO CURRENT_USER');
		$node->safe_psql('traps', $everything);
		is($records->(), 0, 'all schemas, as a superuser: the events are gone');
		like(($psql->('traps', $text->file('attach.sql') =~ s/purchase_completed/order_made/r))[2], qr/namespace is empty\nHINT: .*Put its row back/s, 'attach says what is missing');
		$node->safe_psql('traps', 'INSERT INTO onside_attribution.namespace (id) VALUES (gen_random_uuid())');
		$node->safe_psql('traps', $text->file('attach.sql') =~ s/purchase_completed/order_made/r);
		$node->safe_psql('traps', "INSERT INTO orders (installation_id, total, currency) VALUES ('$id', 9.90, 'USD')");
		is($records->(), 2, 'and recording goes on');
	};

	$traps{'Databases made from a template'} = sub {
		$template->();
		my ($status, $output) = $text->run([qw(createdb -h 127.0.0.1 -U ci -T shop_template -p), $node->port, 'test_1']);
		is($status, 0, 'createdb -T, with CREATEDB alone') or diag($output);
		$node->safe_psql('test_1', $text->file('shop.sql') =~ s/^CREATE ROLE.*\n//mr);
		$node->safe_psql('test_1', "SET ROLE shop_app; SELECT onside_attribution.track('e', '$id', '{}')");
		is($records->('test_1'), 1, 'the copy records');
		is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE datname = 'shop_template'}), 0, 'the template has no worker');
		poll_worker($node, 'test_1');
		$node->safe_psql('postgres', 'CREATE DATABASE test_2 TEMPLATE test_1');
		is($records->('test_2'), 1, 'a copy of a database whose worker runs has its events');
		$node->safe_psql('postgres', 'DROP DATABASE test_1');
		$node->safe_psql('postgres', 'DROP DATABASE test_2');
	};

	$traps{'Databases that must not send'} = sub {
		like($node->safe_psql('postgres', "LOAD 'onside_attribution'; " . $text->file('shared.sql')), qr/^onside_attribution\.credentials_file\|/m,
			'shared.sql shows the credentials of a server that shares them');
		my $conf = $node->data_dir . '/postgresql.conf';
		my ($file) = slurp_file($conf) =~ /credentials_file = '(.*)'/;
		my $shared = slurp_file($conf);
		append_to_file($conf, '');
		open(my $fh, '>', $conf) or die;
		print $fh $shared =~ s/^onside_attribution\.(credentials_file|endpoint).*\n//mgr;
		close($fh);
		my ($endpoint) = $shared =~ /endpoint = '(.*)'/;
		$node->safe_psql('postgres', "LOAD 'onside_attribution'; ALTER DATABASE shop SET onside_attribution.credentials_file = '$file'");
		$node->safe_psql('postgres', "LOAD 'onside_attribution'; ALTER DATABASE shop SET onside_attribution.endpoint = '$endpoint'");
		$node->reload;
		is($node->safe_psql('postgres', $text->file('shared.sql')) =~ s/^onside_attribution\.(?!credentials_file|endpoint).*\n?//mgr, '', 'and none where they belong to a database');

		$node->safe_psql('postgres', 'CREATE DATABASE test_3 TEMPLATE shop');
		poll_status($node, 'test_3', { state => 'misconfigured', state_reason => qr/credentials_file is not set/ }, 'a copy of the shop has none');
		like(($psql->('test_3', "SET ROLE shop_app; ALTER DATABASE test_3 SET onside_attribution.credentials_file = '$file'"))[2],
			qr/permission denied|must be owner/, 'and gets none from an ordinary role');
		track($node, 'shop', 'from_the_shop');
		wait_for_flush($node, 'shop', 'the shop still sends');
		$node->safe_psql('postgres', 'DROP DATABASE test_3');
	};

	$traps{'Poolers'} = sub {
		my $pgbouncer = (grep { -x } map { "$_/pgbouncer" } qw(/usr/sbin /usr/bin))[0];
		unless ($pgbouncer)
		{
			plan skip_all => 'PgBouncer is not installed' unless $all;
			fail('PgBouncer is installed');
			return;
		}
		through_pgbouncer($text, $node, $psql, $database, \%tried, $pgbouncer);
	};

	return %traps;
}

# A database with a table of its own role, and its name.
sub own_table
{
	my ($node, $name) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $name TEMPLATE shop_template");
	$node->safe_psql($name, 'GRANT CREATE ON SCHEMA public TO migrator; SET ROLE migrator; CREATE TABLE orders (id int)');
	return $name;
}

sub drizzle_kit_ok
{
	my ($text, $database) = @_;
	my $environment = $database->('traps', 'admin');
	$text->write('drizzle_schema.ts', slurp_file("$FindBin::RealBin/../languages/drizzle_schema.ts"));
	foreach my $schemas ('', 'schemaFilter: ["public", "onside_attribution"],')
	{
		$text->write('drizzle.config.ts', <<TS);
import { defineConfig } from "drizzle-kit";
export default defineConfig({ dialect: "postgresql", schema: "./drizzle_schema.ts", out: "./drizzle", $schemas
  dbCredentials: { url: process.env.DATABASE_URL! } });
TS
		my (undef, $output) = $text->run([qw(node_modules/.bin/drizzle-kit push)], $environment);
		if ($schemas) { like($output, qr/about to delete onside_attribution schema/, 'drizzle-kit push with our schema wants to delete it') }
		else { like($output, qr/No changes detected/, 'drizzle-kit push by itself leaves it alone') }
	}
	return;
}

sub through_pgbouncer
{
	my ($text, $node, $psql, $database, $tried, $pgbouncer) = @_;
	my $listen = PostgreSQL::Test::Cluster::get_free_port();
	my $port = $node->port;
	$text->write('pgbouncer.ini', <<INI);
[databases]
shop = host=127.0.0.1 port=$port user=shop_app
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $listen
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 1
ignore_startup_parameters = extra_float_digits
INI
	my $log = "$text->{directory}/pgbouncer.log";
	my $pooler = IPC::Run::start([ $pgbouncer, "$text->{directory}/pgbouncer.ini" ], '<', \undef, '>&', $log);
	my $ask = sub {
		my $out = '';
		IPC::Run::run([ 'psql', '-XqAt', '-h', '127.0.0.1', '-p', $listen, '-U', 'shop_app', '-c', $_[0], 'shop' ], '<', \undef, '>&', \$out);
		chomp $out;
		return $out;
	};
	ok(wait_until(sub { $ask->('SELECT 1') eq '1' }), 'PgBouncer answers') or diag(slurp_file($log));

	my %url = (%$tried);
	foreach my $title (sort keys %url)
	{
		my $client = $OnsideLanguages::clients{$title};
		my $environment = $database->('shop', 'shop_app', $listen);
		$environment->{JDBC_DATABASE_URL} .= '&prepareThreshold=0';
		$environment->{DATABASE_URL} .= '?statement_cache_mode=describe' if $title eq 'pgx';
		$node->safe_psql('shop', 'TRUNCATE orders');
		foreach my $round (1, 2)
		{
			my ($status, $output) = $text->run($client->{run}, $environment);
			is($status, 0, "$title, round $round") or diag($output);
		}
		is(scalar(() = orders('shop') =~ /purchase_completed/g), 2, "$title: both are recorded");
	}

	$ask->('SET onside_attribution.on_invalid_event = error');
	is($ask->('SHOW onside_attribution.on_invalid_event'), 'error', 'a SET stays for the next client');
	$ask->('RESET onside_attribution.on_invalid_event');
	$ask->('BEGIN; SET LOCAL onside_attribution.on_invalid_event = error; COMMIT');
	is($ask->('SHOW onside_attribution.on_invalid_event'), 'dead_letter', 'a SET LOCAL does not');
	$pooler->kill_kill;
	return;
}

1;
