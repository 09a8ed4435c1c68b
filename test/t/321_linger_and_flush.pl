# linger holds a partial batch back, but not from flush(): who waits for it has
# what was committed before sent at once, in one session or several, and with
# events that come in meanwhile.

use OnsideTest;
use OnsideWire;

my $wire = OnsideWire->new('main', conf => "onside_attribution.linger = '10s'\n");
my $node = $wire->node;

sub flushed { return $wire->sql("SELECT onside_attribution.flush('2 s')") }

subtest 'it lingers' => sub {
	my ($id) = $wire->record('good');
	is($wire->sandbox->accepted($id), 0, 'an event waits for others');
	poll_status($node, 'postgres', { pending => 1 }, 'it is pending');
};

subtest 'flush' => sub {
	is(flushed(), 't', 'flush: true, within 2 s');
	my @ids = $wire->record('good', 3);
	is(flushed(), 't', 'again');
	is($wire->sandbox->accepted(@ids), 3, 'they have arrived');
	is(flushed(), 't', 'with nothing to do');
	is($wire->sql(q{SELECT onside_attribution.track('good', gen_random_uuid(), '{}') IS NOT NULL, onside_attribution.flush('2 s')}),
		't|t', 'the statement\'s own event is none that was committed before');
};

subtest 'several at once' => sub {
	my @sessions = map { $node->background_psql('postgres') } 1 .. 3;
	my @ids = $wire->record('good', 5);
	my @said = map { $_->query_until(qr/go/, "\\echo go\nSELECT 'flushed: ' || onside_attribution.flush('8 s');\n") } @sessions;
	push @ids, $wire->record('good');
	like($said[$_] . $sessions[$_]->query_safe('SELECT 1'), qr/flushed: t/, 'each gets true') foreach 0 .. $#sessions;
	is($wire->sandbox->accepted(@ids[ 0 .. 4 ]), 5, 'what was there has arrived');
	$_->quit foreach @sessions;
	is(flushed(), 't', 'and what came meanwhile');
};

subtest 'after it' => sub {
	my ($id) = $wire->record('good');
	poll_status($node, 'postgres', { pending => 1, in_flight => 0 }, 'the next one lingers again');
	$wire->arrive([$id], patience(), 'and goes when linger is over');
};

$wire->clean('in the end');
$node->stop;
done_testing();
