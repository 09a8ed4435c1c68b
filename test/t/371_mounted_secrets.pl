# The credentials file may be a secret that Kubernetes or Docker has mounted, as
# far as PostgreSQL's rule for ssl_key_file goes: a file of root's that the
# server's group may read, behind two links, of which Kubernetes exchanges the
# second when the secret has changed.  That is noticed by itself, before the old
# password has failed.  Files with more permissions are refused, and status says
# what to do.
#
# Only root can make such files: test/setup/secrets has, if root has called
# `make test`.

use OnsideTest;

my $mount = ($ENV{ONSIDE_WORK} // '') . '/secrets';
plan skip_all => 'files of root can be had only if root calls "make test"' unless -d $mount;

my $sandbox = OnsideSandbox->start(user => 'shop', password => 'first');
my $node = onside_node('main', start => 0);
my $file = "$mount/credentials";

# As the kubelet does it: a new link, renamed over the old one.
sub mount_version
{
	my ($version, $by_itself) = @_;
	symlink("..$version", "$mount/..data_tmp") or die "symlink: $!";
	rename("$mount/..data_tmp", "$mount/..data") or die "rename: $!";
	$node->reload unless $by_itself;
	return;
}

sub refused_ok
{
	my ($version, $reason, $what, $by_itself) = @_;
	mount_version($version, $by_itself);
	poll_status($node, 'postgres', { state => 'misconfigured', state_reason => $reason }, $what);
	return;
}

sub used_ok
{
	my ($version, $what, $by_itself) = @_;
	$sandbox->credentials('shop', $version);
	mount_version($version, $by_itself);
	poll_status($node, 'postgres', { state => 'idle', state_reason => undef }, "$what is used");
	$sandbox->reset;
	my $id = track($node, 'postgres');
	wait_for_flush($node, 'postgres', "$what: an event is sent");
	is_deeply($sandbox->report->{by_status}, { 204 => 1 }, "$what: with the new password at once");
	return;
}

mount_version('first', 1);
symlink('..data/credentials', $file) or die "symlink: $!";
my ($mode, $uid, $gid) = (stat $file)[ 2, 4, 5 ];
is(sprintf('%04o', $mode & 07777), '0440', 'the file has the mode of a secret');
is($uid, 0, "it is root's");
is($gid, (split ' ', $))[0], "and the group is the server's");

$node->append_conf('postgresql.conf', "onside_attribution.endpoint = '" . $sandbox->url . "'");
$node->append_conf('postgresql.conf', "onside_attribution.credentials_file = '$file'");
$node->start;
create_extension($node, 'postgres');
track($node, 'postgres');
wait_for_flush($node, 'postgres', "a Kubernetes secret with the server's group");
my $worker = worker_pid($node, 'postgres');

# These two are noticed by themselves: nothing is sent, and nothing reloaded, between
# them, which takes until the worker looks.  The others need not wait for that.
refused_ok('default', qr/is root's and has more permissions than reading for its group; chmod it to 0640/,
	'the default mode of Kubernetes (0644) is refused', 1);
used_ok('second', 'one that was rotated', 1);
refused_ok('others', qr/could not open credentials_file .*Permission denied/,
	'without fsGroup, or another group: it cannot be read');
refused_ok('written', qr/is root's and has more permissions than reading for its group/,
	'one that the group may write is refused');
used_ok('third', 'mode 0640');
refused_ok('empty', qr/does not hold one line user:password/, 'what is no line user:password is refused');
refused_ok('nowhere', qr/could not open credentials_file .*No such file/, 'a link to nowhere');
used_ok('first', 'the first one');

# Docker mounts a single file.  Its default mode is 0444; a file of the server's
# user with 0400, as compose.yaml asks for, is as good as ours.
symlink('..default/credentials', "$mount/docker") or die "symlink: $!";
$node->append_conf('postgresql.conf', "onside_attribution.credentials_file = '$mount/docker'");
$node->reload;
poll_status($node, 'postgres',
	{ state => 'misconfigured', state_reason => qr/more permissions than reading for its group/ },
	"Docker's default mode is refused");
my $own = write_credentials($node, "shop:first\n", 0400);
$node->append_conf('postgresql.conf', "onside_attribution.credentials_file = '$own'");
$node->reload;
$sandbox->reset;
track($node, 'postgres');
wait_for_flush($node, 'postgres', "the server's own file with mode 0400");

my $doctor = $node->safe_psql('postgres',
	"SELECT ok FROM onside_attribution.doctor() WHERE check_name = 'credentials_file'");
is($doctor, 't', 'doctor() sees no fault');
is(worker_pid($node, 'postgres'), $worker, 'all by one worker');

$node->stop;
done_testing();
