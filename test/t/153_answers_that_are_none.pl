# Whatever a peer says instead of an answer, in whatever time, is cut off and
# retried: a request ends after request_timeout, an answer without end is not
# read to it, and the worker's memory stays what it was.  Nothing is lost and
# nothing dead-lettered for it, and "status" says printable words about it.

use JSON::PP ();
use OnsideTest;
use OnsideFault;

my ($node, $sandbox) = sending_node(conf => "onside_attribution.request_timeout = '60s'\n"
	  . "onside_attribution.retry_max_delay = '20ms'\n");
my $fault = OnsideFault->new(node => $node, sandbox => $sandbox);

my %backing_off = (
	state => 'backing_off',
	state_reason => qr/cannot be reached or fails/,
	last_error => qr/\A[ -~]+\z/,
	retries => qr/^[1-9]/);

# ---------------------------------------------------------------------------
# Too slow
# ---------------------------------------------------------------------------

# While the answer may still come it is no failure; when request_timeout is
# over it is one, and the next attempt is made.
foreach my $rule (
	{ fault => 'black_hole' },
	{ fault => 'slow_loris', interval => 0.05 })
{
	my $name = $rule->{fault};

	$fault->configure(request_timeout => '3s');
	$fault->survived(
		$name,
		begin => sub { $sandbox->behave($rule) },
		while => { state => 'sending', in_flight => qr/^[1-9]/, pending => 3, state_reason => undef },
		during => sub {
			$fault->record(1);
			is($node->safe_psql('postgres', "SELECT onside_attribution.flush('1 ms')"),
				'f', "$name: recording goes on, and flush says that it is not delivered");
			poll_status($node, 'postgres', { %backing_off, last_error => qr/tim(?:e|ed )out/i },
				"$name: a failure when request_timeout is over");
			$fault->configure(request_timeout => '200ms');
			my $tried = $sandbox->used;
			ok(wait_until(sub { $sandbox->used >= $tried + 3 }), "$name: it is tried again");
		},
		end => sub { $sandbox->behave; $fault->configure(request_timeout => '60s') });
}

# ---------------------------------------------------------------------------
# Not HTTP, or not to its end
# ---------------------------------------------------------------------------

# (test/unit/test_answer.c has more of them.)
foreach my $case ([ { fault => 'garbage' }, qr/HTTP/ ], [ { fault => 'bad_chunk', status => 400 }, qr/chunk/i ],
	[ { fault => 'truncated_body', status => 413 }, qr/./ ])
{
	my ($rule, $error) = @$case;
	my $name = join ' ', $rule->{fault}, $rule->{status} // ();
	$fault->survived(
		$name,
		begin => sub { $sandbox->behave($rule) },
		while => { %backing_off, last_error => $error },
		during => sub {
			ok(wait_until(sub { $sandbox->used >= 4 }), "$name: it is tried again");
		},
		end => sub { $sandbox->behave });
}

# ---------------------------------------------------------------------------
# Without end
# ---------------------------------------------------------------------------

# A peer that sends as fast as it can, forty times.  What the worker has for
# itself must not grow with what was sent: each of these answers is more than
# what it may grow by at all.
foreach my $rule (
	{ fault => 'endless_headers', status => 204 },
	{ fault => 'endless_body', status => 503 })
{
	my $name = "$rule->{fault} $rule->{status}";
	my ($before, $after);

	$fault->survived(
		$name,
		begin => sub { $sandbox->behave($rule) },

		# Three events would be tried a few times a minute.
		events => 60,
		while => { state => 'backing_off' },
		during => sub {
			wait_until(sub { $sandbox->used >= 5 });
			$before = memory_of($fault->pid);
			ok(wait_until(sub { $sandbox->used >= 40 }), "$name: it was sent again and again");
			$after = memory_of($fault->pid);
		},
		end => sub { $sandbox->behave });
	note("$name: VmRSS $before->{VmRSS} kB before, $after->{VmRSS} kB after 35 requests");
	cmp_ok($after->{RssAnon}, '<', $before->{RssAnon} + 1024,
		"$name: the worker's memory is flat");
}

# ---------------------------------------------------------------------------
# An answer that is too long is still an answer
# ---------------------------------------------------------------------------

# A 400 that says a word about each of a thousand events is longer than what
# we care to read; its status has come nevertheless, and the one bad event must
# not hold up the others for ever.
{
	my @good = $fault->record(2);
	wait_for_flush($node, 'postgres');
	$node->safe_psql('postgres', q{SELECT onside_attribution.pause()});
	my ($bad) = $fault->record(1, '{"rotten": true}');
	push @good, $fault->record(5);
	$fault->expect_dead($bad);
	$sandbox->behave({ fault => 'big_error', status => 400, match => { contains => 'rotten' } });
	$node->safe_psql('postgres', q{SELECT onside_attribution.resume()});
	$fault->settled('a 400 with ten megabytes');
	is( $node->safe_psql('postgres',
			'SELECT http_status, length(error) FROM onside_attribution.dead_letter'),
		'400|1024', 'a 400 with ten megabytes: its first kilobyte is kept');
	$sandbox->behave;
}

$node->stop;
done_testing();
