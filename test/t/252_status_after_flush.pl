# When flush() has returned, status counts what it has waited for: as delivered or
# dead-lettered, and no longer as pending.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use OnsideSandbox;
use OnsideTest;

my $rounds = scale(300, 3000);

my $sandbox = OnsideSandbox->start(poison => 'counterfeit', keep_events => 0);
my $node = onside_node('main', sandbox => $sandbox);
create_extension($node, 'postgres');
track($node, 'postgres');
wait_for_flush($node, 'postgres');

# In one session, which asks at once.  Every tenth event is refused.
my $script = join '', map {
	my $payload = $_ % 10 ? '{}' : '{"note": "counterfeit"}';
	<<"SQL" } 1 .. $rounds;
DO \$\$ BEGIN PERFORM onside_attribution.track('a', gen_random_uuid(), '$payload'); END \$\$;
DO \$\$ BEGIN PERFORM onside_attribution.flush(); END \$\$;
SELECT delivered + dead_lettered, pending FROM onside_attribution.status;
SQL
my @counted = split /\n/, $node->safe_psql('postgres', $script);
my @wrong = grep { $counted[$_] ne ($_ + 2) . '|0' } 0 .. $#counted;
is(scalar @counted, $rounds, 'it is asked each time');
is(scalar @wrong, 0, 'status counts each event when flush() has returned')
  or diag("round $wrong[0]: $counted[$wrong[0]]");

$node->stop;
$sandbox->stop;
done_testing();
