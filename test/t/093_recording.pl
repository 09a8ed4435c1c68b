# What docs/recording.md and docs/recipes.md say is so: each example runs, in order, and
# shows the output below it; mappers are inlined, where that is promised; and what the
# examples record arrives.

use FindBin;
use OnsideTest;
use OnsideExamples;

my $tree = "$FindBin::RealBin/../..";

# The recipes look into the outbox, where delivered events are for a while.
my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox, conf => "onside_attribution.retention = '1h'");
my %text;
foreach my $page ('recording', 'recipes')
{
	$node->safe_psql('postgres', "CREATE DATABASE $page");
	my $text = $text{$page} = OnsideExamples->new($node, $page, "$tree/docs/$page.md");
	my ($rc) = $text->run_sql('SELECT 1; SELECT no_such_function(); SELECT 2');
	isnt($rc, 0, "$page: an example that fails would be noticed");
	$text->outputs_follow_ok;
}

# Every recipe of the table of contents has a heading and an example of its own.
my $text = $text{recipes};
my @anchors = $text->content =~ /^\| .* \| \[.*\]\(#(.*)\) \|$/mg;
cmp_ok(scalar @anchors, '>=', 13, 'there are recipes');
my %sections = map { my ($title, $body) = /\A([^\n]*)\n(.*)\z/s; (lc($title =~ s/[^\w ]//gr =~ s/ /-/gr), $body) }
  split /^## /m, $text->content;
foreach my $anchor (@anchors)
{
	like($sections{$anchor}, qr/^```sql\n.*^```text\n/ms, "$anchor: a recipe that shows what comes out");
}

sub runs_ok
{
	my ($text, $example) = @_;
	$text->example_ok($example);

	# attach says by a NOTICE that a mapper is not inlined.
	return unless $example->[1] =~ /^CREATE FUNCTION/m;
	my (undef, $names, $said) = $text->run_sql(<<SQL);
SELECT onside_attribution.attach(source, event_name || '!', mapper => mapper::regproc)
FROM onside_attribution.attached WHERE event_name NOT LIKE '%!' AND position(split_part(mapper, '.', 2) IN \$doc\$$example->[1]\$doc\$) > 0;
SELECT onside_attribution.detach(source, event_name) FROM onside_attribution.attached WHERE event_name LIKE '%!';
SQL
	like($names, qr/^onside_.*!$/m, 'a mapper of it can be attached');
	if ($example->[1] =~ /SECURITY DEFINER/) { like($said, qr/is not inlined/, 'it says that it is not inlined') }
	else { unlike($said, qr/is not inlined/, 'its mappers are inlined') }
	return;
}

my %least = (recording => 8, recipes => 15);
my %dead = (recording => 0, recipes => 1);
my @recorded;
foreach my $page ('recording', 'recipes')
{
	runs_ok($text{$page}, $_) foreach $text{$page}->examples;
	wait_for_flush($node, $page, "$page: all that the examples record is delivered");
	my $ids = committed($node, $page, 'SELECT DISTINCT event_id FROM onside_attribution.outbox');
	cmp_ok(scalar @$ids, '>=', $least{$page}, "$page: the examples record events");
	push @recorded, @$ids;
	is($node->safe_psql($page, 'SELECT count(*) FROM onside_attribution.dead_letter'), $dead{$page},
		"$page: none of them is refused but what cannot be an event");
}
arrived_ok($sandbox, \@recorded, 'they arrive');

$node->stop;
done_testing();
