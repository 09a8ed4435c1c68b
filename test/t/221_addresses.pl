# Credentials and events go where the settings say and nowhere else.  Without
# TLS that is this machine, however its address is spelled and through whatever
# proxy.  A setting cannot put anything into a request but an address, and what
# it has of a password is not repeated, nor is a file that a setting names.

use MIME::Base64 ();
use OnsideTest;
use OnsideFault;

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox);
create_extension($node, 'postgres');
my $fault = OnsideFault->new(node => $node, sandbox => $sandbox);
$fault->survived('delivery');

# "ok", or what is said of the value.
sub set_to
{
	my ($name, $value) = @_;
	my ($retval, $out, $err) = $node->psql('postgres',
		"LOAD 'onside_attribution'; SET onside_attribution.$name = :'value'",
		extra_params => [ '-v', "value=$value", '-v', 'VERBOSITY=verbose' ]);
	return 'ok' if $retval == 0;
	return $err;
}

sub shown
{
	my ($value) = @_;
	$value =~ s/([^ -~])/sprintf '\\x%02x', ord $1/ge;
	return $value;
}

# ---------------------------------------------------------------------------
# How an endpoint can be spelled
# ---------------------------------------------------------------------------

# This machine, in all the ways that libcurl takes for it
foreach my $url (
	'HTTP://LOCALHOST', 'HtTp://127.0.0.1:8080/x', 'http://127.1/', 'http://2130706433/',
	'http://0x7f.1/', 'http://0177.0.0.1/', 'http://127.255.255.254/',
	'http://[::1]/', 'http://[0:0:0:0:0:0:0:1]/', 'http://127.0.0.1?@evil.example/',
	'http://127.0.0.1#@evil.example/', 'https://evil.example/')
{
	is(set_to('endpoint', $url), 'ok', "endpoint $url");
}
foreach my $url (
	# another name that begins or ends like this machine's
	'http://127.0.0.1.evil.example/', 'http://127.0.0.1%2eevil.example/', 'http://localhost.evil.example/',
	'http://evil.localhost/', 'http://localhost./', 'http://evil.example/127.0.0.1',
	'http://evil.example?127.0.0.1', 'http://evil.example#127.0.0.1',
	# what looks like a host is a user
	'http://localhost@evil.example/', 'http://127.0.0.1:80@evil.example/', 'http://127.0.0.1\@evil.example/',
	'http://evil.example\@127.0.0.1/', 'http://[::1]@evil.example/', 'http://LOCALHOST%2F@evil.example/',
	# addresses that are not loopback, or perhaps not
	'http://0.0.0.0/', 'http://0/', 'http://[::]/', 'http://128.0.0.1/', 'http://126.255.255.255/',
	'http://4294967297/', 'http://[::ffff:127.0.0.1]/', 'http://[::127.0.0.1]/', 'http://[fe80::1]/',
	"http://\xef\xbc\x91\xef\xbc\x92\xef\xbc\x97.0.0.1/", "http://\xe2\x93\x9bocalhost/",
	'http://localhost%00.evil.example/', 'http://127.0.0.1;evil.example/', 'http://localhost,evil.example/',
	'http://127.0.0.1 .evil.example/', 'http://[::1]evil.example/', 'http://[::1/',
	# other schemes, or none
	'file:///etc/passwd', 'file://localhost/etc/passwd', 'ftp://127.0.0.1/', 'gopher://127.0.0.1/', 'dict://127.0.0.1/',
	'unix:/tmp/socket', 'httpsx://127.0.0.1/', 'https', 'https://', '//127.0.0.1/', '127.0.0.1', '',
	# credentials
	'https://user:password@evil.example/', 'https://@evil.example/', 'https://:@evil.example/', 'https://user@evil.example/',
	# control characters and blanks
	"https://onside.io/\r\nX-Evil: yes", "https://onside.io/\nX-Evil: yes", "\nhttps://onside.io/",
	"https://onside.io/\t", "https://onside.io\x7f/", 'https://onside.io/ HTTP/1.1', ' https://onside.io/')
{
	like(set_to('endpoint', $url), qr/22023: invalid value for parameter/, 'endpoint ' . shown($url));
}

# ---------------------------------------------------------------------------
# Proxies
# ---------------------------------------------------------------------------

my $password = 'Xyzzy-plugh!42';
foreach my $proxy (
	'', '127.0.0.1:3128', 'http://proxy.example:3128', 'https://proxy.example', 'socks5h://[::1]:1080',
	'ftp.example:3128')
{
	is(set_to('proxy', $proxy), 'ok', "proxy $proxy");
}
foreach my $proxy (
	"http://user:$password\@proxy.example", "ftp://user:$password\@proxy.example", "file://user:$password\@x/", "http://user:$password\@pro xy",
	"http://user:$password\@proxy.example:port", "http://proxy.example/\r\nX-Evil: $password",
	"http://user:$password\n\@proxy.example", "socks9://user:$password\@proxy.example", 'http://')
{
	my $said = set_to('proxy', $proxy);
	like($said, qr/22023: invalid value for parameter "onside_attribution.proxy"\n/, 'proxy ' . shown($proxy));
	unlike($said, qr/$password/, 'which is not repeated');
}

# An endpoint here, a proxy elsewhere: TLS ends nowhere but here.
foreach my $proxy ('http://192.0.2.1:3128', 'https://192.0.2.1', 'socks5://192.0.2.1:1080', 'http://[2001:db8::1]:3128')
{
	$fault->survived(
		"no TLS, and the proxy $proxy",
		begin => sub { $fault->configure(proxy => $proxy) },
		while => { state => 'backing_off', last_error => qr/connect without TLS to an address that is not loopback/ },
		end => sub { $fault->configure(proxy => '') });
}

# One that is wrong in the configuration file stays out of the log, and at a
# start nothing is sent past it.
my $position = log_position($node);
my $bad = "http://user:$password\@proxy.example:port";
$node->append_conf('postgresql.conf', "onside_attribution.proxy = '$bad'");
$node->reload;
wait_for_log_line($node, qr/invalid value for parameter "onside_attribution\.proxy"/, $position,
	'a proxy that is none: a reload says so');
$fault->record;
$fault->settled('a proxy that is none: the one before stays');
$node->restart;
$fault->record;
poll_status($node, 'postgres',
	{ state => 'misconfigured', state_reason => qr/proxy cannot be used/, pending => 3 },
	'a proxy that is none: after a restart nothing is sent');
unlike(log_since($node, $position), qr/$password/, 'and its password is not in the log');
$fault->configure(proxy => '');
$fault->{pid} = poll_worker($node, 'postgres');
$fault->settled('without it');

# One that says back what it was told.
my $token = MIME::Base64::encode_base64("user:$password", '');
(my $written = $password) =~ s/!/%21/;
my $endpoint = $sandbox->url;
my $proxy_file = write_credentials($node, "user:$password\n", 0600, 'proxy_credentials');
foreach my $echo ("Proxy-Authorization: Basic $token", "user:$password", "no user with $password",
	"http://user:$written\@127.0.0.1/")
{
	$fault->survived(
		"a proxy that says $echo",
		begin => sub {
			$sandbox->behave({ status => 502, body => "<$echo>" });
			$fault->configure(
				proxy => 'http://127.0.0.1:' . $sandbox->port,
				proxy_credentials_file => $proxy_file);
		},
		while => { state => 'backing_off', last_error => qr/^HTTP 502: <[^>]*\*\*\*/ },
		during => sub {
			unlike($node->safe_psql('postgres', 'SELECT * FROM onside_attribution.status'),
				qr/\Q$token\E|\Q$password\E|\Q$written\E/, "a proxy that says $echo: it is hidden");
		},
		end => sub { $fault->configure(proxy => '', proxy_credentials_file => ''); $sandbox->behave });
}

# ---------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------

# Header lines behind the password, or in the user's name
my $good = 'sandbox:sandbox';
foreach my $content ("$good\rX-Evil: yes\n", "$good\r\nX-Evil: yes\n", "X-Evil\n$good\n", "$good\t\n", "$good\x7f\n", "$good\e[31m\n")
{
	$fault->survived(
		'credentials ' . shown($content),
		begin => sub { write_credentials($node, $content); $node->reload },
		while => { state => 'misconfigured', state_reason => qr/more than one line or control characters/ },
		end => sub { write_credentials($node, "$good\n"); $node->reload });
}

# Nothing of a file that ca_file names is shown, whatever it is.
my $secret = write_credentials($node, "first line: $password\nsecond line: $password\n", 0600, 'secret');
foreach my $file ($secret, "$secret.missing", $node->data_dir, '/dev/zero')
{
	$position = log_position($node);
	$fault->survived(
		"ca_file = $file",
		begin => sub {
			(my $https = $endpoint) =~ s/^http:/https:/;
			$fault->configure(ca_file => $file, endpoint => $https);
		},
		while => { state => 'misconfigured', state_reason => qr/ca_file/, last_error => qr/\A[ -~]+\z/ },
		during => sub {
			unlike($node->safe_psql('postgres', 'SELECT * FROM onside_attribution.status')
				  . log_since($node, $position),
				qr/$password|(first|second) line/, "ca_file = $file: none of it is shown");
		},
		end => sub { $fault->configure(ca_file => '', endpoint => $endpoint) });
}

$node->stop;
done_testing();
