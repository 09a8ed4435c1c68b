# An outage writes two lines into the server's log: one when its state has lasted
# 5 s and one when it ends, however long it is, however many attempts fail, and
# in however many ways.  One that is over before writes none, and neither does an
# event that fails while others are accepted; a request never does.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use Test::More;

use OnsideSandbox;
use OnsideTest;
use OnsideWire;

my $wire = OnsideWire->new('main', conf => <<'CONF');
onside_attribution.batch_max_events = 10
onside_attribution.request_timeout = '500ms'
CONF
my $node = $wire->node;
my $seconds = scale(12, 30);

sub lines
{
	my ($position) = @_;
	return map { /\] onside_attribution worker ++(?!DETAIL:|HINT:)(.*)/ ? $1 : () } split /\n/, log_since($node, $position);
}

# Purchases that come in for so many seconds.
sub shop_for
{
	my ($for) = @_;
	wait_until(sub { $wire->record('good', 3); return 0 }, $for, 0.3);
	return;
}

foreach my $case (
	[ '503', { status => 503 } ],
	[ 'closed connections', { fault => 'close_no_answer' } ],
	[ 'failures of several kinds', { one_of => [ map({ { status => $_ } } 500, 502, 503, 408), { fault => 'reset_after_upload' }, { fault => 'black_hole' } ] } ],
	[ '404', { status => 404 } ],
	[ '401', { status => 401 } ],
	[ '429', { status => 429 } ],
	[ '400', { status => 400 } ])
{
	my ($name, $rule) = @$case;
	subtest "an outage with $name" => sub {
		my $position = log_position($node);
		$wire->behave($rule);
		shop_for($seconds);
		my @begin = lines($position);

		# With 400, at most ten events end in dead_letter, which is said besides.
		@begin = grep { !/dead_letter/ } @begin;
		is(scalar @begin, 1, "$name: one line when it has lasted 5 s") or diag(join "\n", @begin);
		like($begin[0] // '', qr/database "postgres"/, "$name: which says of which database");
		cmp_ok($wire->sandbox->used, '>', 5, "$name: many attempts have failed");
		$wire->behave;
		wait_for_flush($node, 'postgres', "$name: it has ended");
		poll_status($node, 'postgres', { state => 'idle' }, "$name: idle");
		$wire->healed($name);
		my @lines = grep { !/dead_letter/ } lines($position);
		is(scalar @lines, 2, "$name: and one when it has ended") or diag(join "\n", @lines);
	};
}

subtest 'a short one' => sub {
	foreach my $rule ({ status => 503, times => 3 }, { fault => 'reset_after_upload', times => 3 }, { status => 404, times => 2 })
	{
		my $position = log_position($node);
		my $began = time;
		$wire->behave($rule);
		$wire->record('good', 3);
		wait_for_flush($node, 'postgres', 'a short outage is over');
		my @lines = lines($position);
		SKIP: {
			skip 'this machine is so slow that it was a long one' if time - $began > 4;
			is(join("\n", @lines), '', 'it writes nothing');
		}
	}
};

subtest 'an event that fails while others are accepted' => sub {
	my $position = log_position($node);
	$wire->behave(on({ event_name => 'bad' }, { status => 500 }));
	my ($bad) = $wire->record('bad');
	shop_for(8);
	is(join("\n", grep { !/dead_letter|aside/ } lines($position)), '', 'it is no state of the endpoint, and writes nothing');
	$wire->behave;
	$wire->sql('UPDATE onside_attribution.dead_letter SET retry_at = clock_timestamp(); SELECT onside_attribution.resume()');
	$wire->arrive([$bad], patience(), 'it');
};

$wire->clean('in the end');
$node->stop;
done_testing();
