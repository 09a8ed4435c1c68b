# A row that has a key is one event for ever: of each type of key, and whichever
# trigger reports the row, its event_id is event_id(namespace, event_name in lower
# case, schema.table, key) with the names of when it was attached.  Neither a
# rename, a setting of the session, detach and attach, a dump of any kind nor the
# encoding changes it.  The namespace is the database's own: a dump brings it
# along, replication does not, and nothing that is wrong with it or with a key
# fails a purchase.

use OnsideTest;

my $node = onside_node('main', init => { allows_streaming => 'logical' },
	conf => <<'CONF');
onside_attribution.enabled = off
autovacuum = off
max_worker_processes = 20
CONF

sub create_database
{
	my ($database, $encoding) = @_;
	$node->safe_psql('postgres',
		"CREATE DATABASE $database ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
	return;
}

sub sql
{
	my ($database, $sql) = @_;
	return $node->safe_psql($database, $sql);
}

sub namespace
{
	my ($database) = @_;
	return sql($database, 'SELECT * FROM onside_attribution.namespace');
}

# Statements by themselves, each with the SQLSTATE of its error, or what it returns.
sub try
{
	my ($database, $sql) = @_;
	my ($ret, $out, $error) = $node->psql($database, $sql, extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	return $error =~ /ERROR:\s+(\w{5})/ ? $1 : $out;
}

# ---------------------------------------------------------------------------
# Each type of key, in each way
# ---------------------------------------------------------------------------

# Values, each with its text in an event_id; none: the value is an event_id itself.
my $v4 = '3346c9a9-2201-438e-8609-6180e40e5021';
my $v7 = '018f6d3e-5b7a-7000-8000-000000000001';
my %keys = (
	smallint => [ [ '-7', '-7' ], [ '0', '0' ] ],
	integer => [ [ '51', '51' ], [ '-2147483648', '-2147483648' ] ],
	bigint => [ [ '9223372036854775807', '9223372036854775807' ] ],
	'shop.number' => [ [ '5', '5' ] ],
	text => [ [ 'Order 7 ', 'Order 7 ' ], [ "caf\xc3\xa9 \xe2\x82\xac", "caf\xc3\xa9 \xe2\x82\xac" ], [ uc $v4, undef ] ],
	varchar => [ [ 'x', 'x' ], [ $v7, $v7 ] ],
	'varchar(40)' => [ [ "a''b", "a''b" ], [ $v4, undef ] ],
	'char(40)' => [ [ 'ab', 'ab' ], [ $v4, undef ] ],
	'shop.code' => [ [ 'q', 'q' ] ],
	uuid => [ [ $v7, $v7 ], [ $v4, undef ], [ '00000000-0000-0000-0000-000000000000', '00000000-0000-0000-0000-000000000000' ] ],
	'shop.id' => [ [ $v7, $v7 ], [ $v4, undef ] ]);

my %ways = (
	statement => {},
	row => { condition => 'true' },
	deferred => { deferred => 1 },
	partition => { parted => 1 },
	leaf => { parted => 1, into => ' leaf' },
	'deferred partition' => { parted => 1, deferred => 1 },
	alone => { alone => 1 });

# The tables' names need quotes, and are reserved or not, in whatever version.
my %tables;
foreach my $type (sort keys %keys)
{
	foreach my $way (sort keys %ways)
	{
		$tables{"$type $way"} = { %{ $ways{$way} }, type => $type };
	}
}
$tables{$_} = { type => 'bigint' } foreach qw(order User orders);

sub attach_all
{
	my ($schema, $prefix) = @_;
	return join '', map {
		my ($name, $table) = ($_, $tables{$_});
		my $arguments = "'Bought', 'install', '{\"tag\": \"tag\"}', event_id => 'k'"
		  . ($table->{condition} ? ", condition => '$table->{condition}'" : '')
		  . ($table->{deferred} ? ', deferred => true' : '');
		"SELECT onside_attribution.attach('\"$schema\".\"$prefix$name\"', $arguments);\n"
	} sort keys %tables;
}

# Writes every row again, and says what they are reported as: tag, key and event_id.
sub reported
{
	my ($database, $schema, $prefix, $set, $column) = @_;
	$column //= 'k';
	my $script = ($set // '') . "TRUNCATE onside_attribution.outbox, onside_attribution.dead_letter;\n";
	foreach my $name (sort keys %tables)
	{
		my $table = $tables{$name};
		my $into = "\"$schema\".\"$prefix$name" . ($table->{into} // '') . '"';
		my $n = 0;
		$script .= "TRUNCATE \"$schema\".\"$prefix$name\";\n";
		$script .= "INSERT INTO $into ($column, tag) VALUES ('$_->[0]', '$name " . $n++ . "');\n"
		  foreach @{ $keys{ $table->{type} } };
	}
	$script .= "SELECT payload ->> 'tag', event_id FROM onside_attribution.outbox ORDER BY 1;\n";
	$script .= "SELECT 'dead letter', error FROM onside_attribution.dead_letter;\n";
	return sql($database, $script);
}

my $set_up = <<'SQL';
CREATE SCHEMA shop;
CREATE DOMAIN shop.number AS bigint;
CREATE DOMAIN shop.code AS char(12);
CREATE DOMAIN shop.id AS uuid CHECK (VALUE IS NOT NULL);
SQL
foreach my $name (sort keys %tables)
{
	my $table = $tables{$name};
	$set_up .= "CREATE TABLE shop.\"$name\" (tag text, install uuid DEFAULT gen_random_uuid(), k $table->{type} PRIMARY KEY)"
	  . ($table->{parted} ? ' PARTITION BY HASH (k)' : '') . ";\n";

	# Its columns have other numbers.
	$set_up .= "CREATE TABLE shop.\"$name leaf\" (k $table->{type} PRIMARY KEY, gone int, install uuid DEFAULT gen_random_uuid(), tag text);\n"
	  . "ALTER TABLE shop.\"$name leaf\" DROP gone;\n"
	  . "ALTER TABLE shop.\"$name\" ATTACH PARTITION shop.\"$name leaf\" FOR VALUES WITH (MODULUS 1, REMAINDER 0);\n"
	  if $table->{parted};

	# A partition by itself is the root's rows all the same.
	if ($table->{alone})
	{
		$set_up .= "CREATE TABLE shop.\"$name root\" (LIKE shop.\"$name\" INCLUDING ALL) PARTITION BY HASH (k);\n"
		  . "ALTER TABLE shop.\"$name root\" ATTACH PARTITION shop.\"$name\" FOR VALUES WITH (MODULUS 1, REMAINDER 0);\n";
	}
}

create_database('shop', 'UTF8');
create_extension($node, 'shop');
sql('shop', $set_up . attach_all('shop', ''));

my @rows;
foreach my $name (sort keys %tables)
{
	my $source = "shop.$name" . ($tables{$name}{alone} ? ' root' : '');
	my $n = 0;
	foreach (@{ $keys{ $tables{$name}{type} } })
	{
		my ($value, $text) = @$_;
		push @rows, "('$name " . $n++ . "', " .
		  (defined $text ? "'$source', '$text', NULL::uuid)" : "NULL, NULL, '$value')");
	}
}
my $expected = sql('shop', <<SQL);
SELECT tag, COALESCE(own, onside_attribution.event_id(n.id::text, 'bought', source, key))
FROM onside_attribution.namespace n, (VALUES @{[ join ', ', @rows ]}) v (tag, source, key, own) ORDER BY tag
SQL
cmp_ok(scalar(split /\n/, $expected), '>', 100, 'the matrix has many cases');

is(reported('shop', 'shop', ''), $expected, 'each type of key, in each way');
is(reported('shop', 'shop', '', "SET quote_all_identifiers = on; SET bytea_output = escape; SET search_path = shop;\n"),
	$expected, 'whatever the session has set');

# Backfill makes the same of the rows that are there.
sql('shop', "TRUNCATE onside_attribution.outbox;\n" . join '', map { "CALL onside_attribution.backfill('shop.\"$_\"', 'Bought');\n" } sort keys %tables);
is(sql('shop', "SELECT payload ->> 'tag', event_id FROM onside_attribution.outbox ORDER BY 1"), $expected, 'and by backfill');

# ---------------------------------------------------------------------------
# What changes nothing
# ---------------------------------------------------------------------------

sql('shop', join '', "ALTER SCHEMA shop RENAME TO \"Old shop\";\n",
	map { "ALTER TABLE \"Old shop\".\"$_\" RENAME TO \"was $_\";\n"
		  . (($tables{$_}{into} // '') && "ALTER TABLE \"Old shop\".\"$_ leaf\" RENAME TO \"was $_ leaf\";\n") } sort keys %tables);
is(reported('shop', 'Old shop', 'was '), $expected, 'a table and a schema that are renamed');

sub rename_column
{
	my ($from, $to) = @_;
	sql('shop', join '', map {
			my $root = $tables{$_}{alone} ? "$_ root" : "was $_";
			"ALTER TABLE \"Old shop\".\"$root\" RENAME $from TO $to;\n"
		} sort keys %tables);
	return;
}
rename_column('k', 'key');
is(reported('shop', 'Old shop', 'was ', '', 'key'), $expected, 'a column that is renamed');
rename_column('key', 'k');

# Its trigger follows it, to row level.
my @alone = grep { /statement/ } sort keys %tables;
sql('shop', join '', map { <<SQL } @alone);
CREATE TABLE "Old shop"."new $_" (LIKE "Old shop"."was $_" INCLUDING ALL) PARTITION BY HASH (k);
ALTER TABLE "Old shop"."new $_" ATTACH PARTITION "Old shop"."was $_" FOR VALUES WITH (MODULUS 1, REMAINDER 0);
SQL
is(reported('shop', 'Old shop', 'was '), $expected, 'a table that becomes a partition');
sql('shop', join '', map { <<SQL } @alone);
ALTER TABLE "Old shop"."new $_" DETACH PARTITION "Old shop"."was $_";
DROP TABLE "Old shop"."new $_";
SQL

sql('shop', join '', map { "ALTER TABLE \"Old shop\".\"was $_\" RENAME TO \"$_\";\n"
		  . (($tables{$_}{into} // '') && "ALTER TABLE \"Old shop\".\"was $_ leaf\" RENAME TO \"$_ leaf\";\n") } sort keys %tables);
sql('shop', 'ALTER SCHEMA "Old shop" RENAME TO shop');
sql('shop', join '', map { "SELECT onside_attribution.detach('shop.\"$_\"', 'Bought');\n" } sort keys %tables);
sql('shop', "SET quote_all_identifiers = on;\n" . attach_all('shop', ''));
is(reported('shop', 'shop', ''), $expected, 'detach and attach, by a session that quotes all names');

my $namespace = namespace('shop');
like($namespace, qr/^t\|[0-9a-f]{8}-[0-9a-f]{4}-4/, 'there is one namespace');
my $dir = $node->basedir . '/dumps';
mkdir $dir or die;
my @from = (-d => $node->connstr('shop'));
$node->command_ok([ 'pg_dump', @from, @$_ ], "pg_dump @$_")
  foreach [ -f => "$dir/plain" ], [ '--inserts', -f => "$dir/inserts" ], [ '-Fc', -f => "$dir/custom" ],
	[ '--schema-only', -f => "$dir/schema" ], [ '--data-only', -f => "$dir/data" ];
my $psql = sub { [ qw(psql -X -q -v ON_ERROR_STOP=1 -o /dev/null -d), $node->connstr($_[0]), -f => "$dir/$_[1]" ] };
my %restore = (
	plain => sub { $psql->($_[0], 'plain') },
	inserts => sub { $psql->($_[0], 'inserts') },
	parallel => sub { [ qw(pg_restore --exit-on-error -j3 -d), $node->connstr($_[0]), "$dir/custom" ] },
	apart => sub { ($psql->($_[0], 'schema'), $psql->($_[0], 'data')) },

	# As a cluster is made ready for a restore: its own namespace does not win.
	there => sub { [ qw(psql -X -q -c), 'CREATE EXTENSION onside_attribution', '-d', $node->connstr($_[0]) ], $psql->($_[0], 'plain') });
foreach my $way (sort keys %restore)
{
	create_database($way, 'UTF8');
	local $ENV{PGOPTIONS} = '-c session_replication_role=replica' if $way eq 'apart';
	$node->command_ok($_, "$way: restored") foreach $restore{$way}->($way);
	delete $ENV{PGOPTIONS};
	is(namespace($way), $namespace, "$way: the namespace came along, and is the only one");
	is(reported($way, 'shop', ''), $expected, "$way: the same events");
	if ($way eq 'plain')
	{
		sql($way, join '', map { "SELECT onside_attribution.detach('shop.\"$_\"', 'Bought');\n" } sort keys %tables);
		sql($way, attach_all('shop', ''));
		is(reported($way, 'shop', ''), $expected, "$way: also where they are attached there");
	}
	sql('postgres', "DROP DATABASE $way");
}

# ---------------------------------------------------------------------------
# Encodings
# ---------------------------------------------------------------------------

# As it is typed in UTF-8.
my $cafe = "caf\xc3\xa9";
my $in_utf8 = sql('shop', "SELECT onside_attribution.event_id('$cafe', 'x')");
my @encodings = qw(LATIN1 LATIN9 WIN1252 SQL_ASCII EUC_JIS_2004);
foreach my $encoding (@encodings)
{
	my $database = 'db_' . lc $encoding;
	create_database($database, $encoding);
	create_extension($node, $database);
	local $ENV{PGCLIENTENCODING} = 'UTF8';
	is(sql($database, "SELECT onside_attribution.event_id('$cafe', 'x')"), $in_utf8, "$encoding: event_id()");
	sql($database, <<SQL);
CREATE TABLE "$cafe" (k text PRIMARY KEY, install uuid DEFAULT gen_random_uuid());
SELECT onside_attribution.attach('"$cafe"', '$cafe', 'install', '{}', event_id => 'k');
INSERT INTO "$cafe" VALUES ('$cafe');
SQL
	my ($id) = namespace($database) =~ /\|(.*)/;
	is(sql($database, 'SELECT event_id FROM onside_attribution.outbox'),
		sql('shop', "SELECT onside_attribution.event_id('$id', '$cafe', 'public.$cafe', '$cafe')"),
		"$encoding: a key");
}

# Bytes that are no text in UTF-8: the event is invalid, and the purchase is not.
foreach my $where ([ 'SQL_ASCII', 'SQL_ASCII', "caf\xe9" ], [ 'WIN1252', 'WIN1252', "a\x81" ])
{
	my ($encoding, $client, $key) = @$where;
	my $database = 'db_' . lc $encoding;
	local $ENV{PGCLIENTENCODING} = $client;
	sql($database, <<SQL);
TRUNCATE onside_attribution.outbox;
CREATE TABLE keyed (k text PRIMARY KEY, install uuid DEFAULT gen_random_uuid());
SELECT onside_attribution.attach('keyed', 'bought', 'install', '{}', event_id => 'k');
SQL
	is(try($database, "INSERT INTO keyed VALUES ('good'), ('$key') RETURNING 1"), "1\n1",
		"$encoding: a key that is no UTF-8 fails no purchase");
	is(sql($database, 'SELECT (SELECT count(*) FROM onside_attribution.outbox), (SELECT string_agg(error, $$,$$) FROM onside_attribution.dead_letter)'),
		'1|event_id must be valid UTF-8', "$encoding: its event is a dead letter");
	is(try($database, "SET onside_attribution.on_invalid_event = error; INSERT INTO keyed VALUES ('b$key')"), '22023',
		"$encoding: or an error, if that is asked for");
	is(try($database, "SELECT onside_attribution.event_id('a', '$key')"), '22023', "$encoding: as event_id() has");
}
sql('postgres', 'DROP DATABASE db_' . lc) foreach @encodings;

# ---------------------------------------------------------------------------
# What is none
# ---------------------------------------------------------------------------

# Each type in which a key can be empty, and an installation_id.
create_database('none', 'UTF8');
create_extension($node, 'none');
foreach my $type ('text', 'varchar', 'varchar(40)', 'char(40)', 'padded')
{
	foreach my $level ('statement', 'row', 'partition')
	{
		my $condition = $level eq 'row' ? ", condition => 'true'" : '';
		my ($parted, $part) = $level eq 'partition' ?
		  ('PARTITION BY LIST (n)', 'CREATE TABLE part PARTITION OF keyed DEFAULT;') : ('', '');
		sql('none', <<SQL);
CREATE DOMAIN padded AS char(40);
CREATE TABLE keyed (k $type, install $type, n int) $parted;
$part
SET client_min_messages = error;
SELECT onside_attribution.attach('keyed', 'bought', 'install', '{}', event_id => 'k' $condition);
SQL
		my $before = sql('none', 'SELECT skipped FROM onside_attribution.stats');
		is(try('none', "INSERT INTO keyed VALUES ('', '', 1), ('a', NULL, 1), ('b', '', 1) RETURNING n"), "1\n1\n1",
			"$type, $level: an empty installation_id fails no purchase");
		is(sql('none', "SELECT skipped - $before, (SELECT count(*) FROM onside_attribution.outbox), (SELECT count(*) FROM onside_attribution.dead_letter) FROM onside_attribution.stats"),
			'3|0|0', "$type, $level: is skipped, and counted");
		is(try('none', "INSERT INTO keyed VALUES ('', '$v7', 1), (NULL, '$v7', 1), ('c', '$v7', 1) RETURNING n"), "1\n1\n1",
			"$type, $level: nor does an empty key");
		is(sql('none', 'SELECT count(DISTINCT event_id), (SELECT string_agg(error, $$,$$) FROM onside_attribution.dead_letter) FROM onside_attribution.outbox'),
			'2|event_id must not be empty', "$type, $level: which is invalid, where NULL has a fresh one");
		sql('none', 'DROP TABLE keyed; DROP DOMAIN padded; TRUNCATE onside_attribution.outbox, onside_attribution.dead_letter');
	}
}

# ---------------------------------------------------------------------------
# Whoever writes
# ---------------------------------------------------------------------------

# Who attaches needs no right to the namespace, and who writes none to anything.
sql('none', <<SQL);
CREATE ROLE merchant;
CREATE ROLE clerk;
GRANT EXECUTE ON FUNCTION onside_attribution.attach, onside_attribution.track_row TO merchant;
CREATE SCHEMA merchant AUTHORIZATION merchant;
SET ROLE merchant;
CREATE TABLE merchant.sale (k int PRIMARY KEY, install uuid);
SELECT onside_attribution.attach('merchant.sale', 'sold', 'install', '{}', event_id => 'k');
CREATE TABLE merchant.byhand (k int PRIMARY KEY, install uuid);
CREATE TRIGGER t AFTER INSERT ON merchant.byhand FOR EACH ROW EXECUTE FUNCTION
	onside_attribution.track_row('event_name=sold', 'installation_id=install', 'event_id=k');
GRANT USAGE ON SCHEMA merchant TO clerk;
GRANT INSERT ON merchant.sale, merchant.byhand TO clerk;
SET ROLE clerk;
INSERT INTO merchant.sale VALUES (1, '$v7');
INSERT INTO merchant.byhand VALUES (1, '$v7');
SQL
is(sql('none', <<'SQL'), 't', 'no role needs a right to the namespace');
SELECT array_agg(event_id ORDER BY id) = (SELECT ARRAY[onside_attribution.event_id(id::text, 'sold', 'merchant.sale', '1'),
	onside_attribution.event_id(id::text, 'sold', 'merchant.byhand', '1')] FROM onside_attribution.namespace) FROM onside_attribution.outbox
SQL
is(try('none', "SET ROLE clerk; $_"), '42501', "nor has one: $_")
  foreach 'SELECT FROM onside_attribution.namespace', 'INSERT INTO onside_attribution.namespace DEFAULT VALUES';
sql('none', 'DROP SCHEMA merchant CASCADE; TRUNCATE onside_attribution.outbox');

# ---------------------------------------------------------------------------
# A trigger made by hand
# ---------------------------------------------------------------------------

sql('none', <<'SQL');
CREATE SCHEMA hand;
CREATE TABLE hand.root (k bigint PRIMARY KEY, install uuid DEFAULT gen_random_uuid()) PARTITION BY HASH (k);
CREATE TABLE hand.leaf PARTITION OF hand.root FOR VALUES WITH (MODULUS 1, REMAINDER 0);
CREATE TRIGGER report AFTER INSERT ON hand.root FOR EACH ROW EXECUTE FUNCTION
	onside_attribution.track_row('event_name=Bought', 'installation_id=install', 'event_id=k');
SQL
my $session = $node->background_psql('none');
sub by_hand_ok
{
	my ($schema, $root, $what) = @_;
	$session->query_safe("TRUNCATE onside_attribution.outbox; TRUNCATE $schema.$root; INSERT INTO $schema.$root VALUES (51)");
	is(sql('none', 'SELECT event_id FROM onside_attribution.outbox'),
		sql('none', "SELECT onside_attribution.event_id(id::text, 'bought', '$schema.$root', '51') FROM onside_attribution.namespace"),
		"by hand: $what");
	return;
}
by_hand_ok('hand', 'root', 'the database\'s namespace, and the name of the root');
sql('none', 'ALTER TABLE hand.root RENAME TO other');
by_hand_ok('hand', 'other', 'as it is at the moment, also in a session that has written before');
sql('none', 'ALTER SCHEMA hand RENAME TO foot');
by_hand_ok('foot', 'other', 'so is that of its schema');
sql('none', 'INSERT INTO onside_attribution.namespace (id) VALUES (gen_random_uuid())');
by_hand_ok('foot', 'other', 'and the namespace');

# Somebody has lost it.
sql('none', 'DELETE FROM onside_attribution.namespace');
is(try('none', 'INSERT INTO foot.other VALUES (52) RETURNING k'), 52, 'without a namespace no purchase fails');
like(sql('none', 'SELECT error FROM onside_attribution.dead_letter'), qr/namespace is empty/, 'a dead letter says why');
is(try('none', 'INSERT INTO foot.other VALUES (53, NULL) RETURNING k'), 53, 'and what is no event needs none');
is(try('none', q{CREATE TABLE t (k int PRIMARY KEY, i uuid); SELECT onside_attribution.attach('t', 'e', 'i', '{}', event_id => 'k')}),
	'55000', 'attach has an error');
sql('none', q{INSERT INTO onside_attribution.namespace (id) VALUES (gen_random_uuid())});
by_hand_ok('foot', 'other', 'it works again with a new one');
sql('none', 'DROP TABLE t');
$session->quit;

# ---------------------------------------------------------------------------
# Another database's namespace
# ---------------------------------------------------------------------------

my $subscriber = onside_node('subscriber', conf => 'onside_attribution.enabled = off');
sql('none', 'CREATE PUBLICATION everything FOR ALL TABLES');
create_extension($subscriber, 'postgres');
$subscriber->safe_psql('postgres', 'CREATE SCHEMA foot; CREATE TABLE foot.leaf (k bigint PRIMARY KEY, install uuid)');
my $own = $subscriber->safe_psql('postgres', 'SELECT * FROM onside_attribution.namespace');
$subscriber->safe_psql('postgres',
	"CREATE SUBSCRIPTION s CONNECTION '@{[ $node->connstr ]} dbname=none' PUBLICATION everything");
$subscriber->wait_for_subscription_sync($node, 's');
foreach (
	[ 'SELECT', 'the initial copy' ],
	[ 'INSERT INTO onside_attribution.namespace (id) VALUES (gen_random_uuid())', 'a row that takes the place of another' ],
	[ 'UPDATE onside_attribution.namespace SET id = gen_random_uuid()', 'an UPDATE' ],
	[ 'DELETE FROM onside_attribution.namespace', 'a DELETE' ],
	[ 'INSERT INTO onside_attribution.namespace (id) VALUES (gen_random_uuid())', 'an INSERT' ],
	[ 'TRUNCATE onside_attribution.namespace', 'a TRUNCATE' ],
	[ 'TRUNCATE onside_attribution.namespace, onside_attribution.control', 'a TRUNCATE of several' ])
{
	my ($statement, $what) = @$_;
	sql('none', $statement);
	$node->wait_for_catchup('s');
	is($subscriber->safe_psql('postgres', 'SELECT * FROM onside_attribution.namespace'), $own, "replicated: $what");
}

$subscriber->stop;
$node->stop;
done_testing();
