# What README.md says is so: every SQL example runs, in the order in which they
# are read, and shows the output that is printed below it; what the examples
# record arrives.  And whoever opens it can read it: it has at most 200 lines, and
# the commands to try it are on the first screen.

use FindBin;
use OnsideTest;
use OnsideExamples;

my $tree = "$FindBin::RealBin/../..";

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', conf => "onside_attribution.endpoint = '" . $sandbox->url . "'\n");
my $credentials = write_credentials($node, "sandbox:sandbox\n");
$node->safe_psql('postgres', 'CREATE DATABASE shop');
my $text = OnsideExamples->new($node, 'shop', "$tree/README.md");
$text->replace('/etc/postgresql/onside.credentials', $credentials);

# ---------------------------------------------------------------------------
# Its size
# ---------------------------------------------------------------------------

my @lines = split /\n/, slurp_file("$tree/README.md"), -1;
pop @lines;
cmp_ok(scalar @lines, '<=', 200, 'README.md has at most 200 lines');
foreach my $target ('demo', 'test')
{
	ok((grep { /^    make $target\b/ } @lines[ 0 .. 29 ]), "make $target is on the first screen");
}

# ---------------------------------------------------------------------------
# Every example runs
# ---------------------------------------------------------------------------

my ($rc) = $text->run_sql('SELECT 1; SELECT no_such_function(); SELECT 2');
isnt($rc, 0, 'an example that fails would be noticed');

my @examples = $text->examples;
cmp_ok(scalar @examples, '>=', 5, 'README.md has examples');
$text->outputs_follow_ok;
$text->example_ok($_) foreach @examples;

wait_for_flush($node, 'shop', 'all that they record is delivered');
my $ids = committed($node, 'shop', 'SELECT event_id FROM onside_attribution.outbox');
cmp_ok(scalar @$ids, '>=', 1, 'the examples record events');
arrived_ok($sandbox, $ids, 'they arrive');
is($node->safe_psql('shop', 'SELECT count(*) FROM onside_attribution.dead_letter'),
	0, 'none of them is refused');

$node->stop;
done_testing();
