# An API that answers wrongly for a while, whatever it answers.  An operator sees
# it: "status" says whose fault it looks like, since when, what is tried next and
# what a person can do; the server's log has a line when that has lasted 5 s,
# another at its end and none for a request.  And it leaves nothing behind: at most
# ten events are given up meanwhile, for a 400 or 413 alone, and when the API is
# well again, all are delivered by themselves, those ten, too, by the same worker.
#
# All kinds go on side by side, each in a database and with an API of its own.

use OnsideTest;
use OnsideTls;

my $moment = qr/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[^;]*/;

# Whose fault it looks like, and what a person can do.
my @down = ('backing_off', qr/^the API cannot be reached or fails: it answers that it has failed,/, qr/see last_error and ask whoever runs the API or the network$/);
my @away = ('backing_off', qr/^the API cannot be reached or fails: no connection to it can be made, or it breaks,/, $down[2]);
my @late = ('backing_off', qr/^the API cannot be reached or fails: it does not answer in time,/, $down[2]);
my @garbled = ('backing_off', qr/^the API cannot be reached or fails: what comes back is not a whole HTTP answer,/, $down[2]);
my @busy = ('backing_off', qr/^the API asks to send less/, qr/no action is needed; resume\(\) ends the wait at once$/);
my @locked = ('unauthorized', qr/^the API does not accept the credentials/, qr/correct credentials_file\b/);
my @other = ('misconfigured', qr/^what answers is not the attribution API,/, qr/correct onside_attribution\.endpoint and reload/);
my @proxy = ('misconfigured', qr/^the proxy refuses to pass requests on,/, qr/correct onside_attribution\.proxy or proxy_credentials_file/);
my @fake = ('misconfigured', qr/^what answers is not known to be the API: its certificate cannot be trusted,/, qr/correct onside_attribution\.ca_file/);
my @refusing = ('refusing', qr/^the API refuses every event and has accepted none,/, qr/check that endpoint and account.*are tried again by themselves$/);
my @well = ('idle');

# Name, how the API behaves, what status shows; and more about the database.
my @rows = (
	[ '204', {}, @well ],
	[ '400', { status => 400 }, @refusing ],
	[ '413', { status => 413 }, @refusing ],
	[ '429', { status => 429 }, @busy ],
	[ '429, Retry-After', { status => 429, headers => { 'Retry-After' => '1000' } }, @busy ],
	[ '503, Retry-After', { status => 503, headers => { 'Retry-After' => '1000' } }, @busy ],
	(map { [ $_, { status => $_ }, @locked ] } 401, 403),
	(map { [ $_, { status => $_, accept => \0 }, @other ] } 200, 202, 404, 422),
	[ '302', { fault => 'redirect', location => 'http://127.0.0.1:1/' }, @other ],
	(map { [ $_, { status => $_ }, @down ] } 408, 425, 500, 503),
	[ 'closed connection', { fault => 'close_no_answer' }, @away ],
	[ 'an answer that is lost', { fault => 'close_no_answer', accept => \1 }, @away ],
	[ 'failures of several kinds', { one_of => [ (map { { status => $_ } } 500, 502, 503, 408), { fault => 'reset_after_upload' }, { fault => 'black_hole' } ] },
		'backing_off', qr/^the API cannot be reached or fails: /, $down[2], request_timeout => '300ms' ],
	[ 'nobody there', {}, @away, endpoint => 'http://127.0.0.1:' . PostgreSQL::Test::Cluster::get_free_port() ],
	[ 'timeout', { fault => 'black_hole' }, @late, request_timeout => '300ms' ],
	[ 'malformed answer', { fault => 'garbage' }, @garbled ],
	[ '407', {}, @proxy, answer => "HTTP/1.1 407 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" ]);

my $tls = OnsideTls::available() ? OnsideTls->new : undef;
my (%trusted, %unknown, $ca);
if ($tls)
{
	$ca = $tls->authority('trusted');
	my %certificate = (trusted => [ $tls->certificate($ca) ], unknown => [ $tls->certificate($tls->authority('unknown')) ]);
	%trusted = (tls_cert => $certificate{trusted}[0], tls_key => $certificate{trusted}[1]);
	%unknown = (tls_cert => $certificate{unknown}[0], tls_key => $certificate{unknown}[1]);
	push @rows,
	  [ 'certificate', {}, @fake, tls => \%unknown ],
	  [ 'CONNECT refused', {}, @proxy, tls => \%trusted, answer => "HTTP/1.1 403 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" ];
}

my $node = onside_node('main', start => 0, conf => <<'CONF');
max_worker_processes = 64
max_connections = 100
onside_attribution.max_databases = 64
onside_attribution.retry_max_delay = '1s'
fsync = off
CONF
$node->append_conf('postgresql.conf', "onside_attribution.ca_file = '$ca->{cert}'") if $tls;
my $credentials = write_credentials($node, "sandbox:sandbox\n");
$node->append_conf('postgresql.conf', "onside_attribution.credentials_file = '$credentials'");
$node->start;

# The lines that say of a database how it stands, and the details that go with them.
sub lines
{
	my ($database) = @_;
	my (@found, $just);
	foreach my $line (split /\n/, log_since($node, 0))
	{
		$found[-1] .= " $1" if $just && $line =~ /worker  (DETAIL: .*)/;
		push @found, $1 if $just = $line =~ /(database "$database" is now .*)/;
	}
	return @found;
}

# Records so many events of a case, in one transaction.
sub record
{
	my ($case, $n) = @_;
	push @{ $case->{ids} }, split /\n/, $node->safe_psql($case->{database},
		"SELECT onside_attribution.track('e', gen_random_uuid(), '{}') FROM generate_series(1, $n)");
	return;
}

sub dead_letters
{
	my ($database) = @_;
	return $node->safe_psql($database, 'SELECT count(*) FROM onside_attribution.dead_letter');
}

# What leaves nothing behind, when the API is well again.
sub healed
{
	my ($case) = @_;
	my ($database, $sandbox) = @{$case}{qw(database sandbox)};
	poll_status($node, $database, { state => 'idle', state_reason => undef, pending => 0, next_attempt_at => undef }, 'all is well again');
	ok(wait_until(sub { dead_letters($database) == 0 }), 'no dead letter is left');
	arrived_ok($sandbox, $case->{ids}, 'what was recorded has arrived, and nothing else');
	is($sandbox->report->{twice_in_flight}, 0, 'no event was in flight twice');
	is(worker_pid($node, $database), $case->{worker}, 'the worker is the same process') unless $case->{endpoint};
	return;
}

# All other lines of workers, but for what they say of dead letters.
sub other_lines
{
	return grep { /\] onside_attribution worker / && !/DETAIL: |HINT: |dead_letter|database "d\d+" / } split /\n/, log_since($node, 0);
}

my @cases;
foreach my $row (@rows)
{
	my ($name, $rule, $state, $fault, $hint, %more) = @$row;
	my $database = 'd' . @cases;
	my $sandbox = OnsideSandbox->start(%{ $more{tls} // {} });
	my %settings = (endpoint => $more{endpoint} // $sandbox->url);
	my $proxy = $more{answer} && OnsideSandbox->proxy;
	if ($proxy)
	{
		$proxy->answer($more{answer});
		$settings{proxy} = 'http://127.0.0.1:' . $proxy->port;
	}
	$settings{request_timeout} = $more{request_timeout} if $more{request_timeout};
	$sandbox->behave($rule);
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql('postgres', join ';', "LOAD 'onside_attribution'", map { "ALTER DATABASE $database SET onside_attribution.$_ = '$settings{$_}'" } sort keys %settings);
	create_extension($node, $database);
	push @cases, { name => $name, database => $database,  sandbox => $sandbox, proxy => $proxy,
		state => $state, fault => $fault, hint => $hint, ids => [], worker => worker_pid($node, $database), %more };
}

# More than the ten that are given up while nothing is accepted.
foreach my $case (@cases)
{
	$case->{began} = time;
	record($case, 15);
}

foreach my $case (@cases)
{
	my ($name, $database, $state) = @$case{qw(name database state)};
	subtest "answer: $name" => sub {
		if ($state eq 'idle')
		{
			wait_for_flush($node, $database);
			poll_status($node, $database, { state => 'idle', state_reason => undef, pending => 0, last_error => undef, next_attempt_at => undef }, 'all is well');
			return;
		}
		my $row = poll_status($node, $database, { state => $state, state_reason => $case->{fault}, last_error => qr/./, last_error_at => qr/./ },
			'the state, and whose fault it looks like');
		is($row->{last_success_at}, undef, 'nothing is accepted');

		# One row of status is of one moment.
		my ($since, $next) = $row->{state_reason} =~ /, since ($moment); (?:next attempt at ($moment)|it is tried again now); /
		  or diag($row->{state_reason});
		ok($since, 'since when, and what is tried next');
		is(defined $next, defined $row->{next_attempt_at}, 'as next_attempt_at says');
		my $ago = $node->safe_psql($database, "SELECT extract(epoch FROM now() - '$since')");
		cmp_ok($ago, '>=', 0, 'it began in the past');
		cmp_ok($ago, '<=', time - $case->{began} + 2, 'and no earlier than it did');
		like($row->{state_reason}, $case->{hint}, 'what a person can do');
		like($row->{next_attempt_at} // 'never', qr/^\d/, 'a wait that the API asked for has an end') if $name =~ /Retry-After/;

		ok(wait_until(sub { lines($database) }), 'the log has a line');
		my @lines = lines($database);
		is(scalar @lines, 1, 'one') or diag(join "\n", @lines);
		like($lines[0], qr/^database "$database" is now $state DETAIL: /, 'which says what the state is');
		my ($detail) = $lines[0] =~ /DETAIL: +(.*)/;
		like($detail, $case->{fault}, 'and why');
		like($detail, qr/, since $moment; .*$case->{hint}/, 'since when, and what to do');

		# Others come in meanwhile, alone and in a crowd.
		record($case, $_) foreach 1, 30, 1;
	};
}

# The ends of all of them.
foreach my $case (@cases)
{
	my ($name, $database, $state) = @$case{qw(name database state)};
	subtest "answer: $name, and its end" => sub {
		cmp_ok(status($node, $database)->{requests}, '>=', 5, 'many requests had been sent') unless $name =~ /^204|Retry-After/;
		cmp_ok(dead_letters($database), '<=', $state eq 'refusing' ? 10 : 0, 'how many are given up meanwhile');
		$case->{proxy}->answer(undef) if $case->{proxy};
		$case->{sandbox}->behave;
		$case->{sandbox}->tls(@trusted{qw(tls_cert tls_key)}) if $name eq 'certificate';
		set_for_database($node, $database, 'endpoint', $case->{sandbox}->url) if $case->{endpoint};
		$node->safe_psql($database, 'SELECT onside_attribution.resume()') if $name =~ /Retry-After/;
		healed($case);
		my $wanted = $state eq 'idle' ? 0 : 2;
		my @lines;
		wait_until(sub { (@lines = lines($database)) >= $wanted });
		is(scalar @lines, $wanted, 'the log has a line for the beginning and one for the end') or diag(join "\n", @lines);
		like($lines[1], qr/database "$database" is now (?:idle|sending)$/, 'which says that it is over') if $lines[1];
	};
}

# In the first of the databases, from now on.
my $shop = $cases[0]{database};
my $sandbox = $cases[0]{sandbox};

subtest 'an outage that is short' => sub {
	foreach my $rule ({ status => 503 }, { fault => 'reset_after_upload' }, { status => 404 })
	{
		my ($before, $began) = (scalar(() = lines($shop)), time);
		$sandbox->behave({ %$rule, times => 3 });
		record($cases[0], 3);
		wait_for_flush($node, $shop, 'it is over');
		SKIP:
		{
			skip 'this machine is so slow that it was a long one', 1 if time - $began > 4;
			is(scalar(() = lines($shop)), $before, 'the log has no line');
		}
	}
};

# The orders in which answers come are those of test/sim; this is all of them.
subtest 'an outage in every way' => sub {
	my $before = () = lines($shop);
	$sandbox->behave({ one_of => [ (map { { status => $_, accept => \0, delay => [ 0, 0.05 ] } } 200, 302, 400, 401, 403, 404, 408, 413, 500, 503),
		(map { { fault => $_, delay => [ 0, 0.05 ] } } qw(close_no_answer reset_after_upload garbage truncated_body bad_chunk)) ] });
	record($cases[0], $_) foreach 1000, 3, 1, 40, 1, 250;
	ok(wait_until(sub { lines($shop) > $before }), 'the log has a line');
	my $used = $sandbox->used;
	ok(wait_until(sub { $sandbox->used > $used + 15 }), 'requests go on');
	cmp_ok(dead_letters($shop), '<=', 10, 'how many are given up meanwhile');
	$sandbox->behave;
	healed($cases[0]);
	my @lines;
	ok(wait_until(sub { (@lines = lines($shop)) && $lines[-1] =~ /is now (?:idle|sending)$/ }), 'and another for its end');
	cmp_ok(@lines - $before, '<=', 3, 'none for a request') or diag(join "\n", @lines);
};

subtest 'an event that fails while others are accepted' => sub {
	my $before = () = lines($shop);
	$sandbox->behave({ status => 500, match => { event_name => 'bad' } });
	my $good = 'SELECT onside_attribution.track(\'good\', gen_random_uuid(), \'{}\')';
	track($node, $shop, 'bad');
	my $row;
	ok( wait_until(
			sub {
				$node->safe_psql($shop, $good);
				$row = status($node, $shop);
				return ($row->{state_reason} // '') =~ /^events aside: 1;/;
			}, undef, 0.2),
		'status says that it is aside');
	like($row->{state_reason}, qr/failed while others were accepted, so it looks like the events/, 'whose fault it looks like');
	like($row->{state_reason}, qr/each is tried again by itself/, 'what is tried next');
	like($row->{state_reason}, qr/error of the table aside says why/, 'what a person can do');
	like($row->{state}, qr/^(?:idle|sending)$/, 'it is no state of the endpoint');
	$node->safe_psql($shop, $good);
	ok( wait_until(
			sub {
				$row = status($node, $shop);
				return $row->{pending} == $node->safe_psql($shop, 'SELECT count(*) FROM onside_attribution.aside');
			}),
		'pending counts it');
	is($row->{pending}, 1, 'and nothing else');

	# Nothing else is sent, so nothing else is accepted.
	my $used = $sandbox->used;
	ok( wait_until(
			sub {
				$row = status($node, $shop);
				fail("state $row->{state}") if $row->{state} ne 'sending';
				return $row->{state} ne 'sending' || $sandbox->used >= $used + 2;
			}),
		'it fails again and again');
	like($row->{state_reason}, qr/^events aside: 1;/, 'which is no state of the endpoint either');
	is(scalar(() = lines($shop)), $before, 'the log has no line');
	track($node, $shop, 'bad');
	poll_status($node, $shop, { state => 'backing_off', state_reason => $down[1], pending => 2 }, 'a new one that fails may be the endpoint\'s');
	$sandbox->behave;
	wait_for_flush($node, $shop);
	poll_status($node, $shop, { state => 'idle', state_reason => undef, pending => 0 }, 'all is well again');
};

is(join("\n", other_lines()), '', 'nothing else is in the log');

$node->stop;
done_testing();
