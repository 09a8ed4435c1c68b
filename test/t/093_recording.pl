# What docs/recipes.md says is so: each recipe runs, in order, and shows the output
# below it; what is attached is inlined, where that is promised; and what the recipes
# record arrives.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use Test::More;

use OnsideExamples;
use OnsideSandbox;
use OnsideTest;

my $tree = "$FindBin::RealBin/../..";

# The recipes look into the outbox, where delivered events are for a while.
my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox, conf => "onside_attribution.retention = '1h'");
$node->safe_psql('postgres', 'CREATE DATABASE shop');
my $text = OnsideExamples->new($node, 'shop', "$tree/docs/recipes.md");

my ($rc) = $text->run_sql('SELECT 1; SELECT no_such_function(); SELECT 2');
isnt($rc, 0, 'an example that fails would be noticed');
my @examples = $text->examples;
$text->outputs_follow_ok;

# Every recipe of the table of contents has a heading and an example of its own.
my @anchors = $text->content =~ /^\| .* \| \[.*\]\(#(.*)\) \|$/mg;
cmp_ok(scalar @anchors, '>=', 13, 'there are recipes');
my %sections = map { my ($title, $body) = /\A([^\n]*)\n(.*)\z/s; (lc($title =~ s/[^\w ]//gr =~ s/ /-/gr), $body) }
  split /^## /m, $text->content;
foreach my $anchor (@anchors)
{
	like($sections{$anchor}, qr/^```sql\n.*^```text\n/ms, "$anchor: a recipe that shows what comes out");
}

foreach my $example (@examples)
{
	$text->example_ok($example);

	# attach says by a NOTICE that a mapper is not inlined.
	my (undef, $names, $said) = $text->run_sql(<<SQL) if $example->[1] =~ /^CREATE FUNCTION/m;
SELECT onside_attribution.attach(source, event_name || '!', mapper => mapper::regproc)
FROM onside_attribution.attached WHERE event_name NOT LIKE '%!' AND position(split_part(mapper, '.', 2) IN \$doc\$$example->[1]\$doc\$) > 0;
SELECT onside_attribution.detach(source, event_name) FROM onside_attribution.attached WHERE event_name LIKE '%!';
SQL
	next unless defined $said;
	like($names, qr/^onside_.*!$/m, 'a mapper of it can be attached');
	if ($example->[1] =~ /SECURITY DEFINER/) { like($said, qr/is not inlined/, 'it says that it is not inlined') }
	else { unlike($said, qr/is not inlined/, 'its mappers are inlined') }
}

wait_for_flush($node, 'shop', 'all that they record is delivered');
my $ids = committed($node, 'shop', 'SELECT DISTINCT event_id FROM onside_attribution.outbox');
cmp_ok(scalar @$ids, '>=', 15, 'the recipes record events');
arrived_ok($sandbox, $ids, 'they arrive');
is($node->safe_psql('shop', 'SELECT count(*) FROM onside_attribution.dead_letter'), 1,
	'none of them is refused but the one that cannot be an event');

$node->stop;
$sandbox->stop;
done_testing();
