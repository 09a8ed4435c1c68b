# When flush() has returned, status counts what it has waited for: as delivered or
# dead-lettered, and no longer as pending.  Some wait as one does; some look again
# and again, so that they look at any moment, also just when it is written.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use IPC::Run qw(start finish);
use PostgreSQL::Test::Utils;
use Test::More;

use OnsideSandbox;
use OnsideTest;

my $rounds = scale(120, 1200);
my @shops = qw(postgres north south west);

my $sandbox = OnsideSandbox->start(poison => 'counterfeit', keep_events => 0);
my $node = onside_node('main', sandbox => $sandbox);
foreach my $shop (@shops)
{
	$node->safe_psql('postgres', "CREATE DATABASE $shop") if $shop ne 'postgres';
	create_extension($node, $shop);
	track($node, $shop);
	wait_for_flush($node, $shop);
}

# In one session each, which asks at once, by statements that are planned already.
# Every tenth event is refused.
my $script = '';
foreach my $wait ('PERFORM onside_attribution.flush();', q{WHILE NOT onside_attribution.flush('1 ms') LOOP END LOOP;})
{
	my $name = $script eq '' ? 'wait' : 'look';
	$script .= <<"SQL";
CREATE FUNCTION pg_temp.$name() RETURNS text LANGUAGE plpgsql AS \$\$
BEGIN
	$wait
	RETURN (SELECT delivered + dead_lettered || '|' || pending FROM onside_attribution.status);
END \$\$;
SQL
}
foreach my $round (1 .. $rounds)
{
	my $payload = $round % 10 ? '{}' : '{"note": "counterfeit"}';
	my $name = $round % 20 ? 'look' : 'wait';
	$script .= <<"SQL";
DO \$\$ BEGIN PERFORM onside_attribution.track('a', gen_random_uuid(), '$payload'); END \$\$;
SELECT pg_temp.$name();
SQL
}
my $file = PostgreSQL::Test::Utils::tempdir() . '/ask.sql';
append_to_file($file, $script);

my %counted = map { $_ => '' } @shops;
my @asking = map { start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-f', $file, '-d', $node->connstr($_) ], '>', \$counted{$_}) } @shops;
finish($_) foreach @asking;

foreach my $shop (@shops)
{
	my @counted = split /\n/, $counted{$shop};
	my @wrong = grep { $counted[$_] ne ($_ + 2) . '|0' } 0 .. $#counted;
	is(scalar @counted, $rounds, "$shop: it is asked each time");
	is(scalar @wrong, 0, "$shop: status counts each event when flush() has returned")
	  or diag(map { "round $_: $counted[$_]\n" } @wrong);
}

$node->stop;
$sandbox->stop;
done_testing();
