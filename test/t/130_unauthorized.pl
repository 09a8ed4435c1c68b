# 401 and 403 are about the credentials and never about the events: state
# "unauthorized", slow probes, nothing lost, nothing dead-lettered.  The file is
# read again by itself: a rotation in the middle of a drain, here first or there
# first, needs no reload and no restart.

use OnsideTest;
use OnsideFault;

my $sandbox = OnsideSandbox->start(user => 'shop', password => 'first');
my $node = onside_node('main', start => 0);
send_to($node, $sandbox, 'shop', 'first');
$node->start;
create_extension($node, 'postgres');
my $fault = OnsideFault->new(node => $node, sandbox => $sandbox);

my %unauthorized = (
	state => 'unauthorized',
	state_reason => qr/credentials_file/,
	next_attempt_at => qr/./);

# ---------------------------------------------------------------------------
# Whatever the answer says besides
# ---------------------------------------------------------------------------

foreach (
	[ 401, 'with a scheme that we do not speak', { 'WWW-Authenticate' => 'Negotiate' } ],
	[ 403, 'with Retry-After', { 'Retry-After' => '3600' } ])
{
	my ($status, $how, $headers) = @$_;
	$fault->survived(
		"$status $how",
		begin => sub { $sandbox->behave({ status => $status, headers => $headers, body => 'no entry' }) },
		while => { %unauthorized, last_error => "HTTP $status: no entry", pending => 3 },
		during => sub {
			ok(wait_until(sub { $sandbox->used >= 4 }), 'it is tried again');
			is($sandbox->report->{by_status}{204} // 0, $sandbox->report->{accepted_requests},
				'nothing was acknowledged');
		},
		end => sub { $sandbox->behave });
}

# ---------------------------------------------------------------------------
# Rotation in the middle of a drain
# ---------------------------------------------------------------------------

# Enough batches that the middle is one.
$fault->configure(batch_max_events => 10);
my $position = log_position($node);

sub record_held_back
{
	my ($case) = @_;
	$node->safe_psql('postgres', 'SELECT onside_attribution.pause()');
	poll_status($node, 'postgres', { state => 'paused', in_flight => 0 }, "$case: held back");
	return;
}

sub go_on { $node->safe_psql('postgres', 'SELECT onside_attribution.resume()') }

# There first: the API takes the old password no longer, and the file follows
# when all has come to a stop.
$fault->survived(
	'the API first',
	begin => sub {
		record_held_back('the API first');
		$sandbox->behave({ skip => 30, status => 401 });
	},
	events => 1000,
	during => sub {
		go_on();
		my $row = poll_status($node, 'postgres', \%unauthorized, 'the API first: unauthorized');
		cmp_ok($row->{pending}, '<', 1000, 'the API first: in the middle');
		cmp_ok($row->{pending}, '>', 0, 'the API first: of a drain');

		# From now on for a real reason.
		$sandbox->credentials('shop', 'second');
		$sandbox->behave;
		my $requests = $sandbox->report->{by_status}{401};
		ok(wait_until(sub { $sandbox->report->{by_status}{401} >= $requests + 3 }),
			'the API first: still with the old password');
		is(status($node, 'postgres')->{state}, 'unauthorized', 'the API first: still unauthorized');
		write_credentials($node, "shop:second\n");
	});

# Here first: nobody notices until the API follows, and then it takes one 401
# per request that is under way.
my $refused = $sandbox->report->{by_status}{401};
$fault->survived(
	'the file first',
	begin => sub {
		record_held_back('the file first');
		# Fast at first, and then so slow that we are sure to be in time.
		$sandbox->behave({ delay => 0.01, times => 20 }, { delay => 1 });
	},
	events => 1000,
	during => sub {
		write_credentials($node, "shop:third\n");
		my $requests = $sandbox->report->{accepted_requests};

		# resume() reads the file again, like a reload.
		write_credentials($node, "shop:second\n");
		go_on();
		ok( wait_until(sub { $sandbox->report->{accepted_requests} >= $requests + 10 }),
			'the file first: it drains with the old password');
		write_credentials($node, "shop:third\n");
		ok( wait_until(sub { $sandbox->report->{accepted_requests} >= $requests + 20 }),
			'the file first: and goes on with it');
		is($sandbox->report->{by_status}{401}, $refused, 'the file first: nobody has noticed');
		cmp_ok(status($node, 'postgres')->{pending}, '>', 0, 'the file first: in the middle of a drain');
		$sandbox->credentials('shop', 'third');
		$sandbox->behave;
	},
	end => sub { wait_for_flush($node, 'postgres', 'the file first: it drains with the new password') });
my $more = $sandbox->report->{by_status}{401} - $refused;
cmp_ok($more, '>=', 1, 'the file first: the API has refused the old password');
cmp_ok($more, '<=', 4, 'the file first: no more than what was under way');

# A file that cannot be used is not used, and what is wrong with it is said; the
# last good password is not tried in its stead.
$fault->survived(
	'a file that others can read',
	begin => sub {
		$sandbox->credentials('shop', 'fourth');
		write_credentials($node, "shop:fourth\n", 0644);
	},
	while => { state => 'misconfigured', state_reason => qr/0600/, next_attempt_at => undef },
	during => sub {
		my $requests = $sandbox->report->{requests};
		is($node->safe_psql('postgres', "SELECT onside_attribution.flush('500 ms')"),
			'f', 'a file that others can read: flush returns false');
		is($sandbox->report->{requests}, $requests, 'a file that others can read: nothing is sent');
		write_credentials($node, "shop:fourth\n");
		$node->reload;
	});

# One line in the log when it has lasted 5 s, none per probe.
my @lines = log_since($node, $position) =~ /(\bunauthorized\b)/g;
cmp_ok(scalar @lines, '<=', 5, 'the log does not repeat that the credentials are refused');

# It says so once it lasts.
$position = log_position($node);
$fault->survived(
	'the log',
	begin => sub { $sandbox->behave({ status => 401 }) },
	while => \%unauthorized,
	during => sub {
		wait_for_log_line($node, qr/unauthorized/, $position, 'the log says that the credentials are refused');
	},
	end => sub { $sandbox->behave });
is($sandbox->report->{duplicates}, 0, 'nothing came twice');

$node->stop;
done_testing();
