# Makes the picture of README.md: "make dashboard-picture".
#
# A shop sells for some minutes.  Meanwhile the API fails for a while, refuses
# some events, and for a while does not know the password.  Everything is real:
# server, worker, exporter, Prometheus; only the API is the sandbox, which
# answers after 20 ms.  In the end every purchase must have arrived.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../test/perl";

use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

use OnsideMetrics;
use OnsideSandbox;
use OnsideTest;

my $picture = $ENV{ONSIDE_TEST_PICTURE} // "$PostgreSQL::Test::Utils::tmp_check/dashboard.svg";

my $sandbox = OnsideSandbox->start(keep_events => 0);
my $node = onside_node('main', sandbox => $sandbox, conf => <<'CONF');
onside_attribution.segment_size = '512kB'
onside_attribution.retry_initial_delay = '1s'
onside_attribution.retry_max_delay = '5s'
CONF
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE onside_monitor LOGIN IN ROLE pg_monitor;
CREATE DATABASE shop;
SQL
create_extension($node, 'shop');
$node->safe_psql('shop', <<'SQL');
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY, installation uuid, total numeric, note text);
SELECT onside_attribution.attach('orders', 'purchase_completed', 'installation',
           '{"amount": "total", "note": "note"}');
SQL
my $metrics = OnsideMetrics->start($node, 'onside_monitor', ['shop']);
my $healthy = { times => undef, delay => 0.02 };
$sandbox->behave($healthy);

# One of ten is bought outside the app.
my $script = "$PostgreSQL::Test::Utils::tmp_check/shop.sql";
append_to_file($script, <<'SQL');
\set outside random(1, 10)
\set total random(99, 9999)
INSERT INTO orders (installation, total, note)
VALUES (CASE WHEN :outside > 1 THEN gen_random_uuid() END, :total / 100.0, 'app');
SQL

my @buyers;

# Purchases at this rate for so long, beside what else happens.
sub sell
{
	my ($rate, $seconds) = @_;
	push @buyers, IPC::Run::start(
		[
			'pgbench', '--no-vacuum', '--client=2', "--rate=$rate", "--time=$seconds",
			"--file=$script", $node->connstr('shop')
		], '>', '/dev/null', '2>&1');
	return;
}

# The story is told by the clock.
sub seconds { sleep $_[0]; return }

seconds(5);
sell(100, 200);
sell(150, 40);
seconds(40);
$sandbox->behave({ status => 503, times => undef });
seconds(30);
$sandbox->behave($healthy);
$node->safe_psql('shop', 'SELECT onside_attribution.resume()');
seconds(25);
$sandbox->poison('counterfeit');
$node->safe_psql('shop', <<'SQL');
INSERT INTO orders (installation, total, note)
SELECT gen_random_uuid(), 1, CASE WHEN i % 50 = 0 THEN 'counterfeit' ELSE 'app' END FROM generate_series(1, 600) i
SQL
seconds(20);
$sandbox->credentials('sandbox', 'changed');
seconds(30);
$sandbox->credentials('sandbox', 'sandbox');
$node->safe_psql('shop', 'SELECT onside_attribution.resume()');
seconds(10);
sell(250, 30);
IPC::Run::finish($_) foreach @buyers;
seconds(10);

wait_for_flush($node, 'shop', 'everything is delivered or refused');
is( $sandbox->report->{distinct} + $node->safe_psql('shop', 'SELECT count(*) FROM onside_attribution.dead_letter'),
	$node->safe_psql('shop', 'SELECT count(*) FROM orders WHERE installation IS NOT NULL'),
	'as much as was sold');
command_ok(
	[
		'/usr/bin/python3', '-B', "$OnsideMetrics::directory/picture.py", $metrics->prometheus,
		"$OnsideMetrics::directory/dashboard.json", $picture, '--database=shop'
	],
	"the picture is drawn: $picture");

$metrics->stop;
$node->stop;
$sandbox->stop;
done_testing();
