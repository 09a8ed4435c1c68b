# The credentials file is a regular file of the server's user, closed to
# others, with one line user:password.  Anything else is refused, status says
# why, and nothing at all is sent; when it has been put right, a reload is
# enough.  What frames the line is no part of it, the password may be empty,
# what is sent is what stands there, and a file that changes is noticed by itself.  What is in it appears nowhere.

use File::Spec ();
use MIME::Base64 ();
use POSIX ();
use OnsideTest;
use OnsidePeer;

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
refused_ok(write_credentials($node, "shop:$password\n", 0644, 'open'),
	qr/permissions for group or others.*0600/, 'readable for all');
refused_ok(write_credentials($node, "shop:$password\n", 0640, 'group'),
	qr/permissions for group or others.*0600/, 'readable for the group');
refused_ok(write_credentials($node, "shop:$password\n", 0602, 'written'),
	qr/permissions for group or others.*0600/, 'writable for others');
refused_ok(write_credentials($node, "shop:$password\n", 0000, 'closed'),
	qr/could not open credentials_file .*Permission denied/, 'not readable')
  if $> != 0;
refused_ok(write_credentials($node, '', 0600, 'empty'), qr/user:password/, 'empty');
refused_ok(write_credentials($node, "shop\n", 0600, 'user'), qr/user:password/,
	'no password');
refused_ok(write_credentials($node, ":$password\n", 0600, 'nouser'),
	qr/user:password/, 'no user');
refused_ok(write_credentials($node, "shop:$password\n\n\n", 0600, 'blank'),
	qr/more than one line/, 'two empty lines behind it');
refused_ok(write_credentials($node, "\nshop:$password\n", 0600, 'before'),
	qr/more than one line/, 'an empty line before it');
refused_ok(write_credentials($node, "\xef\xbb\xbf\n", 0600, 'bom'),
	qr/user:password/, 'a BOM and nothing else');
refused_ok(
	write_credentials($node, "shop:$password\nshop:$password\n", 0600, 'two'),
	qr/more than one line/, 'two lines');
refused_ok(write_credentials($node, "shop:$password\0x", 0600, 'zero'),
	qr/zero byte/, 'a zero byte');
refused_ok(write_credentials($node, 'shop:' . 'x' x 100_000, 0600, 'long'),
	qr/longer than/, 'endless');
refused_ok(File::Spec->rel2abs($node->basedir), qr/not a regular file/, 'a directory');
my $fifo = "$good.fifo";
POSIX::mkfifo($fifo, 0600) or die;
refused_ok($fifo, qr/not a regular file/, 'a FIFO');
refused_ok('/etc/passwd', qr/is root's and has more permissions than reading for its group/,
	'a file of root that all can read') if -e '/etc/passwd';
refused_ok('/dev/zero', qr/not a regular file|not owned/, 'a device');

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

# Without a reload it is noticed, if later, that a file has been repaired.
set_credentials_file("$good.missing");
poll_status($node, 'postgres', { state => 'misconfigured' }, 'missing again');
push @ids, track($node, 'postgres');
write_credentials($node, "shop:$password\n", 0600, 'credentials.missing');
wait_for_flush($node, 'postgres', 'a repaired file is found without a reload');

# ---------------------------------------------------------------------------
# What frames the line
# ---------------------------------------------------------------------------

# On the wire: what is sent is what stands in the file, byte for byte.
my $wire = OnsidePeer->start;
$node->append_conf('postgresql.conf', "onside_attribution.endpoint = '" . $wire->url . "'");
foreach (
	[ 'no line end', "shop:secret", '', '' ],
	[ 'LF', "shop:secret", '', "\n" ],
	[ 'CRLF', "shop:secret", '', "\r\n" ],
	[ 'a BOM', "shop:secret", "\xef\xbb\xbf", "\n" ],
	[ 'a BOM and CRLF', "shop:secret", "\xef\xbb\xbf", "\r\n" ],
	[ 'a BOM and no line end', "shop:secret", "\xef\xbb\xbf", '' ],
	[ 'a blank line behind it', "shop:secret", '', "\n\n" ],
	[ 'a blank line with CRLF', "shop:secret", "\xef\xbb\xbf", "\r\n\r\n" ],
	[ 'an empty password', "shop:", '', "\n" ],
	[ 'an empty password and no line end', "shop:", '', '' ],
	[ 'an empty password, a BOM and CRLF', "shop:", "\xef\xbb\xbf", "\r\n" ],
	[ 'an empty password and a blank line', "shop:", '', "\n\n" ],
	[ 'a password of blanks', "shop:   ", '', "\n" ],
	[ 'colons', "shop:a:b::c:", '', "\n" ],
	[ 'UTF-8', "caf\xc3\xa9:\xe2\x82\xac \xf0\x9f\x98\x80", '', "\n" ],
	[ 'percent signs', "100%25:%3a%zz%", '', "\n" ],
	[ 'what means something in a URL', 'a@b/c?d#e:f@g/h?i#j\\', '', "\n" ],
	[ 'quotes and semicolons', q(a"b'c;d:e"f'g;h), '', "\n" ],
	[ 'as long as they may be', 'shop:' . 'x' x 4090, '', "\n" ])
{
	my ($what, $is, $before, $after) = @$_;
	$wire->behave;
	set_credentials_file(write_credentials($node, "$before$is$after", 0600, 'framed'));
	track($node, 'postgres');
	wait_for_flush($node, 'postgres', $what);
	my %sent = map { /^authorization: *(.*?)\r?$/im ? ($1 => 1) : ('none' => 1) }
	  map { $_->{head} } @{ $wire->requests };
	is(join(' | ', sort keys %sent), 'Basic ' . MIME::Base64::encode_base64($is, ''),
		"$what: it arrives as it is");
}
$node->append_conf('postgresql.conf', "onside_attribution.endpoint = '" . $sandbox->url . "'");

# A file that is good as it is, and is replaced as Kubernetes does it: by another
# link.  Nothing is refused meanwhile, so only a look can notice it.
{
	my $dir = File::Spec->rel2abs($node->basedir);
	write_credentials($node, "shop:$password\n", 0600, 'secret.1');
	write_credentials($node, "shop:\n\n\n", 0600, 'secret.2');
	symlink("$dir/secret.1", "$dir/secret") or die;
	$sandbox->credentials('shop', $password);
	set_credentials_file("$dir/secret");
	push @ids, track($node, 'postgres');
	wait_for_flush($node, 'postgres', 'a link');
	symlink("$dir/secret.2", "$dir/secret.new") or die;
	rename("$dir/secret.new", "$dir/secret") or die;
	poll_status($node, 'postgres', { state => 'misconfigured', state_reason => qr/more than one line/ },
		'a link to another file is noticed, without a reload or a request');
}

# ---------------------------------------------------------------------------
# Rotation
# ---------------------------------------------------------------------------

$sandbox->credentials('shop', $password);
set_credentials_file($good);
my $worker = worker_pid($node, 'postgres');
my $password2 = "n\xc3\xa4chstes pa\"ss'wort\\";
write_credentials($node, "shop:$password2\n");
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
