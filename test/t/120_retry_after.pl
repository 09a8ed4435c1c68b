# A 429, and a 503 with Retry-After, are waited out: at least as long as they
# ask, in whichever form they ask, measured by the API's own clock, and never
# longer than an hour.  What is no Retry-After is not obeyed.  resume(), and a
# reload that changes a setting of ours, end the wait at once.  The wait outlives
# the worker and the server.

use POSIX ();
use OnsideTest;
use OnsidePeer;

my ($node, $sandbox) = sending_node();
my $worker = worker_pid($node, 'postgres');

sub settled_ok
{
	my ($case, @ids) = @_;
	wait_for_flush($node, 'postgres', "$case: all is settled");
	arrived_ok($sandbox, \@ids, "$case: it has arrived");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.dead_letter'),
		0, "$case: nothing is in dead_letter");
	my $row = poll_status($node, 'postgres',
		{ state => 'idle', pending => 0, next_attempt_at => undef }, "$case: idle afterwards");
	is($row->{worker_pid}, $worker, "$case: the worker is the same process");
	return;
}

# The next attempt, in seconds after the answer that it follows.
sub wait_in_status
{
	return $node->safe_psql('postgres', <<'SQL');
SELECT extract(epoch FROM next_attempt_at - last_error_at) FROM onside_attribution.status
SQL
}

# HTTP-dates of a moment, in the three forms of RFC 9110.
sub imf { return POSIX::strftime('%a, %d %b %Y %H:%M:%S GMT', gmtime $_[0]) }
sub rfc850 { return POSIX::strftime('%A, %d-%b-%y %H:%M:%S GMT', gmtime $_[0]) }
sub asctime { return POSIX::strftime('%a %b %e %H:%M:%S %Y', gmtime $_[0]) }

POSIX::setlocale(POSIX::LC_ALL(), 'C');

# ---------------------------------------------------------------------------
# Every form in which one can be asked to wait
# ---------------------------------------------------------------------------

# A setting that each reload changes.
my $batch = 900;

# The API's clock is three days slow, which must not matter.
my $clock = time - 3 * 86400;
my %date = (Date => imf($clock));
my %far = (Date => imf($clock + 20 * 365 * 86400));

foreach (
	[ 'seconds', 120, 429, { 'Retry-After' => '120' } ],
	[ 'seconds with a fraction', 120.5, 503, { 'Retry-After' => '120.5' } ],
	[ 'seconds with blanks', 120, 503, { 'Retry-After' => " 120\t" } ],
	[ 'a fraction of a second', 120.5, 429, { 'Retry-After' => '120.5' } ],
	[ 'IMF-fixdate', 300, 429, { %date, 'Retry-After' => imf($clock + 300) } ],
	[ 'RFC 850 date', 300, 503, { %date, 'Retry-After' => rfc850($clock + 300) } ],
	[ 'asctime date', 300, 429, { %date, 'Retry-After' => asctime($clock + 300) } ],
	[ 'a clock 20 years off', 300, 503, { %far, 'Retry-After' => imf($clock + 20 * 365 * 86400 + 300) } ],
	[ 'too many seconds', 3600, 429, { 'Retry-After' => '99999999999' } ],
	[ 'more digits than any integer has', 3600, 503, { 'Retry-After' => '9' x 60 } ],
	[ 'a date in 2099', 3600, 503, { %date, 'Retry-After' => 'Wed, 31 Dec 2098 23:59:59 GMT' } ])
{
	my ($form, $seconds, $status, $headers) = @$_;
	my $case = "$status, $form";
	$sandbox->reset;
	$sandbox->behave({ status => $status, times => 1, headers => $headers });
	my $id = track($node, 'postgres');
	poll_status(
		$node,
		'postgres',
		{   state => 'backing_off',
			state_reason => qr/./,
			last_error => qr/HTTP $status/,
			next_attempt_at => qr/./,
			pending => 1,
			in_flight => 0
		},
		"$case: backing off");
	my $wait = wait_in_status();
	cmp_ok($wait, '>=', $seconds - 0.01, "$case: as long as asked for");
	cmp_ok($wait, '<', ($seconds == 3600 ? 3600 : $seconds * 1.1) + 1, "$case: and not longer");
	is($sandbox->report->{requests}, 1, "$case: nothing is sent meanwhile");

	# Both ways of ending it, by turns.
	my $end = $status == 429 ? 'resume()' : 'a reload';
	if ($status == 429) { $node->safe_psql('postgres', 'SELECT onside_attribution.resume()') }
	else
	{
		$node->append_conf('postgresql.conf', 'onside_attribution.batch_max_events = ' . ++$batch);
		$node->reload;
	}
	settled_ok("$case, ended by $end", $id);
	is($sandbox->report->{requests}, 2, "$case: two requests were made");
}

# ---------------------------------------------------------------------------
# What is no Retry-After: the usual back-off, which is short here
# ---------------------------------------------------------------------------

foreach (
	[ 'none', {} ],
	[ 'none with a clock far ahead', { Date => imf($clock + 20 * 365 * 86400) } ],
	[ 'negative', { 'Retry-After' => '-120' } ],
	[ 'zero', { 'Retry-After' => '0' } ],
	[ 'words', { 'Retry-After' => 'in two hours' } ],
	[ 'empty', { 'Retry-After' => '' } ],
	[ 'bytes', { 'Retry-After' => "\x{e4}\x{ff}\x{80}%s%n" } ],
	[ 'long', { 'Retry-After' => '1 ' x 4000 } ],
	[ 'a date that is past', { %date, 'Retry-After' => imf($clock - 300) } ])
{
	my ($form, $headers) = @$_;
	foreach my $status (429, 503)
	{
		my $case = "$status, $form";
		$sandbox->reset;
		$sandbox->behave({ status => $status, times => 2, headers => $headers });
		my $id = track($node, 'postgres');

		# Nobody ends this wait: were it obeyed, flush would time out.
		settled_ok($case, $id);
		is($sandbox->report->{requests}, 3, "$case: three requests were made");
	}
}

# ---------------------------------------------------------------------------
# What only raw bytes can say
# ---------------------------------------------------------------------------

my $wire = OnsidePeer->start;
$node->append_conf('postgresql.conf', "onside_attribution.endpoint = '" . $wire->url . "'");
$node->reload;

my $now = 'Date: ' . imf($clock);
my ($soon, $later) = (imf($clock + 60), imf($clock + 300));
foreach (
	[ 'the longer of two is first', 120, 'Retry-After: 120', 'Retry-After: 60' ],
	[ 'the longer of two is last', 120, 'Retry-After: 60', 'Retry-After: 120' ],
	[ 'two dates', 300, $now, "Retry-After: $later", "Retry-After: $soon" ],
	[ 'seconds and a later date', 300, "Retry-After: $later", 'Retry-After: 60', $now ],
	[ 'more seconds than a date', 600, "Retry-After: $soon", $now, 'Retry-After: 600' ],
	[ 'garbage before seconds', 120, 'Retry-After: soon', 'Retry-After: 120' ],
	[ 'garbage behind seconds', 120, 'Retry-After: 120', 'Retry-After: -1' ],
	[ 'a past date and seconds', 120, $now, 'Retry-After: ' . imf($clock - 60), 'Retry-After: 120' ],
	[ 'a date before Date', 300, "Retry-After: $later", $now ],
	[ 'a date without Date', 300, 'Retry-After: OURS' ],
	[ 'a date and a Date that is none', 300, 'Retry-After: OURS', 'Date: now' ],
	[ 'in small letters', 120, 'retry-after:120' ],
	[ 'a fraction', 90.5, 'Retry-After: 90.5' ],
	[ 'ten years', 3600, 'Retry-After: 315360000' ],
	[ 'ten years as a date', 3600, $now, 'Retry-After: ' . imf($clock + 315360000) ],
	[ 'an exponent', undef, 'Retry-After: 1e3' ],
	[ 'hexadecimal', undef, 'Retry-After: 0x100' ],
	[ 'infinity', undef, 'Retry-After: inf' ],
	[ 'no number', undef, 'Retry-After: nan' ],
	[ 'a sign', undef, 'Retry-After: +500' ],
	[ 'a unit', undef, 'Retry-After: 500 s' ],
	[ 'a list', undef, 'Retry-After: 500, 500' ],
	[ 'a version', undef, 'Retry-After: 500.1.2' ],
	[ 'a point', undef, 'Retry-After: .' ],
	[ 'a day', undef, 'Retry-After: Monday' ],
	[ 'a longer name', undef, 'Retry-After-All: 500' ],
	[ 'of an interim answer', undef, \"HTTP/1.1 103 Early Hints\r\nRetry-After: 500\r\n\r\n" ],
	[ 'behind an interim answer', 120,
		\"HTTP/1.1 103 Early Hints\r\nRetry-After: 500\r\n\r\n", 'Retry-After: 120' ],
	[ 'in a trailer', undef, \'', 'Trailer: Retry-After' ])
{
	my ($form, $seconds, @headers) = @$_;
	my $before = ref $headers[0] ? ${ shift @headers } : '';

	# By our own clock, which goes on until the answer is there.
	my $until = time + 300;
	my $ours = grep { s/OURS/imf($until)/e } @headers;
	my $body = $form =~ /trailer/
	  ? "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nRetry-After: 500\r\n\r\n"
	  : "Content-Length: 0\r\n\r\n";
	$wire->behave({ times => 1,
		answer => "${before}HTTP/1.1 429 No\r\n" . join('', map { "$_\r\n" } @headers) . $body });
	track($node, 'postgres');
	if (defined $seconds)
	{
		poll_status($node, 'postgres', { state => 'backing_off', last_error => qr/HTTP 429/, in_flight => 0 },
			"$form: backing off");
		my $wait = wait_in_status();
		if ($ours)
		{
			cmp_ok($node->safe_psql('postgres',
					'SELECT extract(epoch FROM next_attempt_at) FROM onside_attribution.status'),
				'>=', $until - 0.01, "$form: until then");
		}
		else
		{
			cmp_ok($wait, '>=', $seconds - 0.01, "$form: $seconds s");
		}
		cmp_ok($wait, '<', $seconds * 1.1 + 1, "$form: and not longer");
		$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
	}
	wait_for_flush($node, 'postgres', "$form: all is settled");
	is(scalar @{ $wire->requests }, 2, "$form: by the second request");
}

# On an acknowledgement it means nothing.
$wire->behave({ answer => "HTTP/1.1 204 No Content\r\nRetry-After: 500\r\n\r\n" });
foreach (1 .. 2)
{
	track($node, 'postgres');
	wait_for_flush($node, 'postgres', 'on a 204');
}
poll_status($node, 'postgres', { state => 'idle', next_attempt_at => undef }, 'on a 204: idle');
$node->append_conf('postgresql.conf', "onside_attribution.endpoint = '" . $sandbox->url . "'");
$node->reload;

# ---------------------------------------------------------------------------
# A wait that ends by itself
# ---------------------------------------------------------------------------

foreach (
	[ 'seconds', { 'Retry-After' => '2' } ],
	[ 'a date', { %date, 'Retry-After' => imf($clock + 2) } ])
{
	my ($form, $headers) = @$_;
	$sandbox->reset;
	$sandbox->behave({ status => 429, times => 1, headers => $headers });
	my $id = track($node, 'postgres');
	settled_ok("two seconds as $form", $id);

	my ($refused, $taken) = @{ $sandbox->requests };
	cmp_ok($taken->{time} - $refused->{time},
		'>=', 2, "two seconds as $form: they were waited for");
}

# ---------------------------------------------------------------------------
# It outlives the worker, the server, and another event
# ---------------------------------------------------------------------------

$sandbox->reset;
$sandbox->behave({ status => 429, times => 1, headers => { 'Retry-After' => '1800' } });
my @ids = split /\n/, $node->safe_psql('postgres', <<'SQL');
SELECT onside_attribution.track('x', gen_random_uuid(), '{}') FROM generate_series(1, 100)
SQL
poll_status($node, 'postgres', { state => 'backing_off', next_attempt_at => qr/./ },
	'Retry-After 1800: backing off');
my $next = $node->safe_psql('postgres', 'SELECT next_attempt_at FROM onside_attribution.status');

my %end = (
	'the worker is ended' =>
	  sub { $node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)") },
	'the server is restarted' => sub { $node->restart },
	'the server crashes' => sub { $node->stop('immediate'); $node->start });
foreach my $end (sort keys %end)
{
	# What the worker writes reaches the disk within three rounds of the WAL
	# writer; to rely on less would be to rely on luck.
	$node->safe_psql('postgres', "SELECT txid_current(); CHECKPOINT");
	$end{$end}();
	$worker = poll_worker($node, 'postgres', $worker);
	push @ids, track($node, 'postgres');
	my $row = poll_status(
		$node,
		'postgres',
		{   state => 'backing_off',
			state_reason => qr/./,
			next_attempt_at => qr/./,
			pending => scalar @ids
		},
		"$end: still backing off");
	is( $node->safe_psql('postgres', <<SQL), 't', "$end: until the same time");
SELECT abs(extract(epoch FROM next_attempt_at - '$next')) < 1 FROM onside_attribution.status
SQL
	is($sandbox->report->{requests}, 1, "$end: nothing was sent");
}

$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
settled_ok('resumed after all of it', @ids);

# And what resume() has ended does not come back.
($sandbox->reset, @ids = ());
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
$worker = poll_worker($node, 'postgres', $worker);
settled_ok('a worker after that', track($node, 'postgres'));

$node->stop;
done_testing();
