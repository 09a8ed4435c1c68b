# The credentials appear nowhere: not in the log at any level, not in a view, a
# table or a setting, and not among a process's arguments, whatever is wrong
# with them, with the file or with the peer, and even if the peer sends them
# back in its answer, encoded as answers are.

use JSON::PP ();
use MIME::Base64 ();
use OnsideTest;
use OnsideFault;

my $user = 'shopkeeper';
my @passwords = ('Xyzzy-plugh:42%s', 'Quux?corge/grault+', "waldo'fred\\thud\"");
my $sandbox = OnsideSandbox->start(user => $user, password => $passwords[0]);
my $node = onside_node('main', start => 0);
send_to($node, $sandbox, $user, $passwords[0]);
$node->append_conf('postgresql.conf', <<'CONF');
log_min_messages = debug5
log_error_verbosity = verbose
log_statement = all
log_connections = on
CONF
$node->start;
create_extension($node, 'postgres');
my $fault = OnsideFault->new(node => $node, sandbox => $sandbox);

# What must not be seen: each password, the token that stands for it in a
# request, and a telling part of either.
my %secrets;
foreach my $password (@passwords)
{
	my $token = MIME::Base64::encode_base64("$user:$password", '');
	$secrets{$password} = "the password $password";
	$secrets{ substr $password, 0, 10 } = "the beginning of $password";
	$secrets{$token} = "the token of $password";
	$secrets{ substr $token, 0, length($token) - 4 } = "the beginning of the token of $password";
	$secrets{ substr $token, 16, 12 } = "the middle of the token of $password";
}

# Every place that can be looked at, with what has been logged since the last
# look.  The log shows what we ask for, too: so the questions do not name the
# secrets.
my $logged = 0;
my @queries = (
	'SELECT * FROM pg_stat_activity',
	'SELECT * FROM pg_settings',
	'SELECT * FROM pg_file_settings',
	'SELECT * FROM pg_db_role_setting',
	'SELECT * FROM onside_attribution.status',
	'SELECT * FROM onside_attribution.dead_letter',
	'SELECT * FROM onside_attribution.delivery_cursor',
	'SELECT * FROM onside_attribution.control',
	'SELECT * FROM onside_attribution.outbox',
	'SELECT * FROM onside_attribution.stats',
	'SELECT * FROM onside_attribution.doctor()');

sub places
{
	my %places = (log => log_since($node, $logged));
	$logged += length $places{log};
	my $all = $node->safe_psql('postgres', join '', map { "\\echo >>> $_\n$_;\n" } @queries);
	foreach (split /^>>> /m, $all)
	{
		my ($query, $rows) = split /\n/, $_, 2;
		$places{$query} = $rows if defined $rows;
	}
	my $worker = worker_pid($node, 'postgres');
	$places{"$_ of the worker"} = slurp_file("/proc/$worker/$_") foreach qw(cmdline environ comm);
	return \%places;
}

sub hidden_ok
{
	my ($case) = @_;
	my $places = places();
	my @seen;
	foreach my $place (sort keys %$places)
	{
		foreach my $secret (sort keys %secrets)
		{
			push @seen, "$secrets{$secret} in $place" if index($places->{$place}, $secret) >= 0;
		}
	}
	is_deeply(\@seen, [], "$case: nothing can be seen");
	return;
}

# That this test sees something at all.
{
	my $places = places();
	like($places->{log}, qr/DEBUG:/, 'the log is as verbose as it gets');
	like($places->{'SELECT * FROM pg_settings'}, qr/credentials_file/, 'the settings of the extension are there');
	like($places->{'SELECT * FROM pg_stat_activity'}, qr/onside_attribution worker/, 'so is the worker');
}

$fault->survived('delivery');
hidden_ok('delivery');

# ---------------------------------------------------------------------------
# Whatever is wrong
# ---------------------------------------------------------------------------

foreach (
	[ 'backing_off', { status => 503 } ],
	[ 'unauthorized', { status => 401, headers => { 'WWW-Authenticate' => 'Basic realm="x"' } } ],
	[ 'misconfigured', { fault => 'redirect', location => 'http://127.0.0.1:1/' } ],
	[ 'backing_off', { fault => 'garbage' } ],
	[ 'backing_off', { fault => 'reset_after_upload' } ])
{
	my ($state, $rule) = @$_;
	my $case = $rule->{fault} // "HTTP $rule->{status}";
	$fault->survived(
		$case,
		begin => sub { $sandbox->behave($rule) },
		while => { state => $state },
		during => sub { hidden_ok($case) },
		end => sub { $sandbox->behave });
}

# With the file itself.
foreach (
	[ 'two lines', "$user:$passwords[0]\n$user:$passwords[1]\n", 0600 ],
	[ 'open to all', "$user:$passwords[0]\n", 0644 ])
{
	my ($case, $content, $mode) = @$_;
	$fault->survived(
		$case,
		begin => sub { write_credentials($node, $content, $mode); $node->reload },
		while => { state => 'misconfigured', state_reason => qr/credentials_file/ },
		during => sub { hidden_ok($case) },
		end => sub { write_credentials($node, "$user:$passwords[0]\n"); $node->reload });
}

# A rotation.
foreach my $password (@passwords[ 1, 2 ])
{
	$fault->survived(
		'a rotation',
		begin => sub { $sandbox->credentials($user, $password) },
		while => { state => 'unauthorized' },
		end => sub { write_credentials($node, "$user:$password\n") });
	hidden_ok('a rotation');
}

# ---------------------------------------------------------------------------
# A peer that says what it was told, as an error page can
# ---------------------------------------------------------------------------

my $password = $passwords[2];
my $token = MIME::Base64::encode_base64("$user:$password", '');

# test/unit/test_secret.c has the other ways in which answers are written.
my $in_json = join '', map { sprintf '\u%04x', ord } split //, $password;
$secrets{$in_json} = 'the password in JSON';
my %echoes = (
	'the header' => "POST / HTTP/1.1\r\nAuthorization: Basic $token\r\nHost: x\r\n",
	'the password across the end of what is kept' => 'x' x (1024 - length($password) + 2) . $password,
	'user and password, and the password in JSON' => "{\"error\": \"$user:$password $in_json\"}");
foreach my $echo (sort keys %echoes)
{
	$fault->survived(
		"an error with $echo",
		begin => sub { $sandbox->behave({ status => 500, body => $echoes{$echo} }) },
		while => { state => 'backing_off', last_error => qr/^HTTP 500: / },
		during => sub { hidden_ok("an error with $echo") },
		end => sub { $sandbox->behave });

	$sandbox->behave({ status => 400, body => $echoes{$echo}, match => { contains => 'rotten' } });
	my ($bad) = $fault->record(1, '{"rotten": true}');
	$fault->expect_dead($bad);
	$fault->settled("a refusal with $echo");
	hidden_ok("a refusal with $echo");
	$sandbox->behave;
}

$node->stop;
done_testing();
