# docs/languages.md: each program records its two events in the transaction that
# writes the order, so they are there if it commits and only then; each trap is as
# the document says.
#
# `make check-languages` installs all clients and misses none of them.  `make test`,
# for which that takes too long, tries psql and psycopg 3, which it has anyway, and
# what SQL alone shows of the traps.

use FindBin;
use OnsideTest;
use OnsideLanguages;

my $all = $ENV{ONSIDE_TEST_LANGUAGES};
my $tree = "$FindBin::RealBin/../..";
my $text = OnsideLanguages->new("$tree/docs/languages.md", PostgreSQL::Test::Utils::tempdir() . '/shop');

# Clients look for a server by TCP.
my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox, conf => <<'CONF');
listen_addresses = '127.0.0.1'
onside_attribution.retention = '1h'
CONF
my $port = $node->port;
my $id = '0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9';

sub psql
{
	my ($database, $sql) = @_;
	my ($out, $err) = ('', '');
	my $rc = $node->psql($database, $sql, stdout => \$out, stderr => \$err, on_error_stop => 1);
	return ($rc, $out, $err);
}

# What a program finds its database by.
sub database
{
	my ($name, $role, $at) = @_;
	$role //= 'shop_app';
	$at //= $port;
	return {
		DATABASE_URL => "postgresql://$role\@127.0.0.1:$at/$name",
		JDBC_DATABASE_URL => "jdbc:postgresql://127.0.0.1:$at/$name?user=$role"
	};
}

# The orders of the database, with the events of their transactions.
sub orders { return scalar $node->safe_psql($_[0], <<'SQL') }
SELECT o.total, o.currency, string_agg(e.event_name || ' ' || e.payload::text || ' ' ||
           (e.event_id = onside_attribution.event_id('orders', o.id::text)), ', ' ORDER BY e.id)
FROM orders o LEFT JOIN onside_attribution.outbox e ON e.xid::xid = o.xmin
GROUP BY o.id ORDER BY o.id
SQL
my $bought = '9.90|USD|purchase_completed {"amount": "9.90", "currency": "USD"} true, level_reached {"level": 7} false';

# ---------------------------------------------------------------------------
# The programs
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', 'CREATE DATABASE shop');
create_extension($node, 'shop');
$node->safe_psql('shop', $text->file('shop.sql'));

# A purchase that fails at the very end, whatever the program has done before.
$node->safe_psql('shop', <<'SQL');
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('shop.fail', true) = 'on' THEN RAISE 'the purchase fails'; END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION fail();
SQL

my @tried = ('psql');
$OnsideLanguages::clients{psql} = {
	quick => 1,
	has => ['true'],
	run => [ 'sh', '-c', 'psql -XqAt -v ON_ERROR_STOP=1 -f buy.sql "$DATABASE_URL"' ]
};

is(join("\n", sort grep { !/\(not tried\)$/ } $text->titles('languages')),
	join("\n", sort grep { $_ ne 'psql' } keys %OnsideLanguages::clients),
	'each client of the document is tried, or marked as not tried');

sub buys_ok
{
	my ($title) = @_;
	my $client = $OnsideLanguages::clients{$title};

	$node->safe_psql('shop', 'TRUNCATE orders');
	my ($status, $output) = $text->run($client->{run}, database('shop'));
	is($status, 0, "$title: it runs") or diag($output);
	is(orders('shop'), $bought, "$title: the order has its two events, in one transaction");

	my $before = $node->safe_psql('shop', 'SELECT count(*) FROM onside_attribution.outbox');
	my $position = log_position($node);
	$node->safe_psql('shop', q{ALTER ROLE shop_app SET shop.fail = 'on'});
	($status, $output) = $text->run($client->{run}, database('shop'));
	$node->safe_psql('shop', 'ALTER ROLE shop_app RESET shop.fail');
	isnt($status, 0, "$title: a purchase that fails is noticed");
	like(log_since($node, $position), qr/ERROR:  the purchase fails/, "$title: for the expected reason") or diag($output);
	is($node->safe_psql('shop', 'SELECT count(*) FROM orders') . '|'
		  . $node->safe_psql('shop', "SELECT count(*) - $before FROM onside_attribution.outbox"),
		'1|0', "$title: nothing of it is left, and no event");
	return;
}

foreach my $title ('psql', grep { $OnsideLanguages::clients{$_} } $text->titles('languages'))
{
	my $client = $OnsideLanguages::clients{$title};
	next unless $client->{quick} || $all;
  SKIP: {
		unless ($text->has($title))
		{
			skip("$title is not installed", 1) unless $all;
			fail("$title is installed");
			next;
		}
		if ($client->{prepare})
		{
			my ($status, $output) = $text->run($client->{prepare}, database('shop'));
			is($status, 0, "$title: it is compiled") or diag($output);
		}
		buys_ok($title);
		push @tried, $title unless $title eq 'psql';
	}
}

# An order of somebody who has no app, by the same statement.
my $without = $text->file('buy.sql') =~ s/VALUES \('$id'/VALUES (NULL/r;
isnt($without, $text->file('buy.sql'), 'buy.sql names an installation');
$node->safe_psql('shop', 'TRUNCATE orders');
is((psql('shop', $without))[0], 0, 'an order without an installation_id goes through');
is(orders('shop'), '9.90|USD|level_reached {"level": 7} false', 'and is no purchase');

wait_for_flush($node, 'shop');
arrived_ok($sandbox, committed($node, 'shop', 'SELECT event_id FROM onside_attribution.outbox'), 'all of it arrives');

# ---------------------------------------------------------------------------
# No code at all
# ---------------------------------------------------------------------------

subtest 'attach.sql' => sub {
	$node->safe_psql('postgres', 'CREATE DATABASE attached');
	create_extension($node, 'attached');
	$node->safe_psql('attached', $text->file('shop.sql') =~ s/^CREATE ROLE.*\n//mr);
	$node->safe_psql('attached', <<'SQL');
CREATE ROLE migrator LOGIN;
ALTER TABLE orders OWNER TO migrator;
GRANT EXECUTE ON FUNCTION onside_attribution.attach, onside_attribution.track_row TO migrator;
SQL
	$node->safe_psql('attached', 'SET ROLE migrator; ' . $text->file('attach.sql'));
	$node->safe_psql('attached', "SET ROLE shop_app; INSERT INTO orders (installation_id, total, currency) VALUES ('$id', 9.90, 'USD')");
	is($node->safe_psql('attached', 'SELECT payload FROM onside_attribution.outbox'), '{"amount": "9.90", "currency": "USD"}',
		'a role with these rights attaches, and a role without any records');
};

# ---------------------------------------------------------------------------
# The traps
# ---------------------------------------------------------------------------

my %traps;
require "$FindBin::RealBin/../languages/traps.pl";
%traps = language_traps($text, $node, \&psql, \&database, \@tried, $all);
is(join("\n", sort keys %traps), join("\n", sort $text->titles('traps')), 'each trap of the document is tried');
foreach my $title ($text->titles('traps'))
{
	subtest $title => $traps{$title} if $traps{$title};
}

$node->stop;
done_testing();
