# What docs/tutorial.md says is so: each example runs, in order, and psql prints what is
# below it; and exactly what it says is reported has arrived at the API.

use FindBin;
use OnsideTest;
use OnsideExamples;

my $tree = "$FindBin::RealBin/../..";

my $node = onside_node('main');
my $text = OnsideExamples->new($node, 'shop', "$tree/docs/tutorial.md", as_shown => 1);

# The stand-in is started as the text says, on another port.
my ($options) =
  $text->content =~ m!^    /usr/bin/python3 test/sandbox/sandbox_api\.py (.*) --progress$!m;
my %options = ($options // '') =~ /--(\w+) (\S+)/g;
is(join(' ', sort keys %options), 'password poison port user', 'the stand-in and its options');
delete $options{port};
my $sandbox = OnsideSandbox->start(%options, progress => 1);
$text->replace('http://127.0.0.1:8080/attribution-api/v1/events', $sandbox->url);
$text->replace('/etc/postgresql/onside.credentials', write_credentials($node, "$options{user}:$options{password}\n"));

my ($set_up, @examples) = $text->examples;
cmp_ok(scalar @examples, '>=', 15, 'it has examples');
$text->outputs_follow_ok;

# Only the first one is begun in another database, which makes that of the others.
{
	local $text->{database} = 'postgres';
	$text->example_ok($set_up);
}
my ($rc, $out) = $text->run_sql('SELECT 1 AS one');
like($out, qr/^ one \n-----\n   1\n\(1 row\)\n*\z/, 'the output is as psql shows it');
($rc) = $text->run_sql('SELECT no_such_function(); SELECT 2');
isnt($rc, 0, 'an example that fails would be noticed');

$text->example_ok($_) foreach @examples;

my @orders = map { "10000000-0000-4000-8000-00000000000$_" } 0, 1, 2, 4, 5, 6;
arrived_ok($sandbox, [ @orders, '20000000-0000-4000-8000-000000000001' ],
	'what the text says is reported has arrived, and nothing else');
nothing_came_twice($sandbox, 'once');

$node->stop;
done_testing();
