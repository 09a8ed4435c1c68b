# The credentials file is a regular file of the server's user, closed to
# others, with one line user:password.  Anything else is refused, status says
# why, and nothing at all is sent; when it has been put right, a reload is
# enough, and a file that changes is noticed by itself.  What is in it appears
# nowhere.  (test/unit/test_credentials.c has all kinds of files and lines.)

use File::Spec ();
use POSIX ();

use OnsideTest;

my $password = 'k4rl-marx:allee';
my $sandbox = OnsideSandbox->start(user => 'shop', password => $password);
my $node = onside_node('main', start => 0);
send_to($node, $sandbox, 'shop', $password);
my $good = File::Spec->rel2abs($node->basedir . '/credentials');
$node->append_conf('postgresql.conf', 'log_min_messages = debug1');
$node->append_conf('postgresql.conf', 'log_statement = all');
$node->start;
create_extension($node, 'postgres');

my @ids = track($node, 'postgres');
wait_for_flush($node, 'postgres', 'a password with a colon');
my $requests = $sandbox->report->{requests};

# Points credentials_file at a file that is refused.
sub refused_ok
{
	my ($file, $reason, $what) = @_;
	set_credentials_file($file);
	poll_status($node, 'postgres',
		{ state => 'misconfigured', state_reason => $reason }, "$what: misconfigured");
	push @ids, track($node, 'postgres');
	is( $node->safe_psql('postgres', "SELECT onside_attribution.flush('50 ms')"),
		'f', "$what: flush returns false");
	return;
}

sub set_credentials_file
{
	my ($file) = @_;
	$node->adjust_conf('postgresql.conf', 'onside_attribution.credentials_file',
		"'$file'");
	$node->reload;
	return;
}

refused_ok('', qr/credentials_file is not set/, 'none');
refused_ok("$good.missing", qr/could not open credentials_file .*No such file/, 'missing');
refused_ok(write_credentials($node, "shop:$password\n", 0640, 'open'),
	qr/permissions for group or others.*0600/, 'readable for the group');
refused_ok(write_credentials($node, "shop:$password\nshop:$password\n", 0600, 'two'),
	qr/more than one line/, 'two lines');
my $fifo = "$good.fifo";
POSIX::mkfifo($fifo, 0600) or die;
refused_ok($fifo, qr/not a regular file/, 'a FIFO');

# A link is as good as the file that it leads to: secret stores use them.
symlink(File::Spec->rel2abs($node->basedir . '/open'), "$good.link") or die;
refused_ok("$good.link", qr/permissions for group or others/, 'a link to an open one');

is($sandbox->report->{requests}, $requests, 'nothing was sent all the while');
my $row = status($node, 'postgres');
is($row->{pending}, @ids - 1, 'the events are pending');

symlink($good, "$good.link2") or die;
set_credentials_file("$good.link2");
wait_for_flush($node, 'postgres', 'a link to a good one');
arrived_ok($sandbox, \@ids, 'everything arrived');
poll_status($node, 'postgres', { state => 'idle', state_reason => undef }, 'idle');

# Without a reload it is noticed within 15 s that a file has changed.  In one
# database a file that was missing comes.  In the other a good one is replaced as
# Kubernetes does it, by another link: nothing is refused meanwhile, so only a look
# can notice it.
{
	my $dir = File::Spec->rel2abs($node->basedir);
	$node->safe_psql('postgres', 'CREATE DATABASE late');
	create_extension($node, 'late');
	set_for_database($node, 'late', 'credentials_file', "$good.missing");
	poll_status($node, 'late', { state => 'misconfigured' }, 'missing again');
	push @ids, track($node, 'late');

	write_credentials($node, "shop:$password\n", 0600, 'secret.1');
	write_credentials($node, "shop:\n\n\n", 0600, 'secret.2');
	symlink("$dir/secret.1", "$dir/secret") or die;
	set_credentials_file("$dir/secret");
	push @ids, track($node, 'postgres');
	wait_for_flush($node, 'postgres', 'a link');
	symlink("$dir/secret.2", "$dir/secret.new") or die;
	rename("$dir/secret.new", "$dir/secret") or die;
	write_credentials($node, "shop:$password\n", 0600, 'credentials.missing');
	poll_status($node, 'postgres', { state => 'misconfigured', state_reason => qr/more than one line/ },
		'a link to another file is noticed, without a reload or a request');
	wait_for_flush($node, 'late', 'a repaired file is found, too');
}

# ---------------------------------------------------------------------------
# Rotation
# ---------------------------------------------------------------------------

set_credentials_file($good);
my $worker = worker_pid($node, 'postgres');
my $password2 = "n\xc3\xa4chstes pa\"ss'wort\\";
write_credentials($node, "\xef\xbb\xbfshop:$password2\r\n");
$sandbox->credentials('shop', "n\x{e4}chstes pa\"ss'wort\\");
$node->reload;
push @ids, track($node, 'postgres');
wait_for_flush($node, 'postgres', 'rotated and reloaded');

# Rotated there first: 401 until the file follows, and no reload is needed.
$sandbox->credentials('shop', 'third');
push @ids, track($node, 'postgres');
$row = poll_status($node, 'postgres',
	{ state => 'unauthorized', state_reason => qr/credentials_file/, last_error => qr/401/ },
	'rotated at the API: unauthorized');
write_credentials($node, "shop:third\n");
wait_for_flush($node, 'postgres', 'the file follows, without a reload');
arrived_ok($sandbox, \@ids, 'everything arrived');
is(worker_pid($node, 'postgres'), $worker, 'all by the same worker');
poll_status($node, 'postgres', { state => 'idle', state_reason => undef }, 'idle');

# ---------------------------------------------------------------------------
# Nowhere to be seen
# ---------------------------------------------------------------------------

my $log = slurp_file($node->logfile);
my $views = $node->safe_psql('postgres', <<'SQL');
SELECT * FROM pg_settings WHERE name LIKE 'onside%';
SELECT * FROM pg_stat_activity;
SELECT * FROM onside_attribution.status;
SELECT * FROM pg_file_settings;
SQL
foreach my $secret ($password, $password2, 'third', 'marx')
{
	ok(index($log, $secret) < 0, 'a password is not in the log');
	ok(index($views, $secret) < 0, 'nor in a view');
}
$node->safe_psql('postgres', 'CREATE ROLE somebody_else LOGIN');
my ($ret, $stdout, $stderr) = $node->psql(
	'postgres',
	'SHOW onside_attribution.credentials_file',
	extra_params => [ '-U', 'somebody_else' ]);
like($stderr, qr/must be superuser|permission denied|pg_read_all_settings/,
	'not even the path is for everybody');

$node->stop;
done_testing();
