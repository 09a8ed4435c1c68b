# Requests go through onside_attribution.proxy when it is set, and through
# nothing else: not through what http_proxy, HTTPS_PROXY, all_proxy or no_proxy
# say, and no .netrc has a say in the credentials.  Through a proxy, TLS is
# still from here to the API: the proxy sees no event and no credentials but its
# own, which come from proxy_credentials_file.  A proxy that refuses is said to be
# who does, and its answer is never taken for one of the API's; one that fails
# otherwise is a failure like any other.

use OnsideTest;
use OnsideFault;
use OnsideTls;

plan skip_all => 'openssl is not installed' unless OnsideTls::available();

# ---------------------------------------------------------------------------
# A server in an environment that says all the wrong things
# ---------------------------------------------------------------------------

my $tls = OnsideTls->new;
my $ca = $tls->authority('test');
my ($cert, $key) = $tls->certificate($ca);
my $sandbox = OnsideSandbox->start(tls_cert => $cert, tls_key => $key);
my $plain = OnsideSandbox->start;
my $proxy = OnsideSandbox->proxy;

sub address { return '127.0.0.1:' . $_[0]->port }

# How many requests it has seen.
sub seen { return scalar grep { /^(?:CONNECT|POST) / } $_[0]->asked }

my $home = PostgreSQL::Test::Utils::tempdir();
append_to_file("$home/.netrc", "machine localhost login netrc password netrc\n"
	  . "machine 127.0.0.1 login netrc password netrc\ndefault login netrc password netrc\n");
chmod 0600, "$home/.netrc";

my $node = onside_node('main', sandbox => $sandbox, start => 0,
	conf => "onside_attribution.ca_file = '$ca->{cert}'\n"
	  . "onside_attribution.request_timeout = '10s'\n");
{
	local @ENV{qw(http_proxy https_proxy HTTPS_PROXY all_proxy ALL_PROXY)} = ('http://' . address($proxy)) x 5;
	local @ENV{qw(no_proxy NO_PROXY)} = ('', '');
	local $ENV{HOME} = $home;
	local $ENV{NETRC} = "$home/.netrc";
	$node->start;
}
create_extension($node, 'postgres');
my $fault = OnsideFault->new(node => $node, sandbox => $sandbox);
$fault->sandbox($plain);

# With TLS and without; where the environment says a proxy, and then says none
# for any host.
$fault->survived("the environment's proxy, https");
$fault->survived("the environment's proxy, http", begin => sub { $fault->configure(endpoint => $plain->url) });
is(seen($proxy), 0, "nothing went through the environment's proxy");
is(status($node, 'postgres')->{retries}, 0, 'and .netrc changed no credentials');
is($sandbox->report->{distinct}, 3, 'to the first endpoint');
is($plain->report->{distinct}, 3, 'and to the second one');

{
	local @ENV{qw(no_proxy NO_PROXY)} = ('*', 'localhost,127.0.0.1');
	$node->restart;
	$fault->{pid} = poll_worker($node, 'postgres');
}

# ---------------------------------------------------------------------------
# Ours
# ---------------------------------------------------------------------------

# Tunnels that are open need no proxy any more, and there are as many of them as
# there were requests at once.  A reload begins with new connections.
sub close_tunnels
{
	$fault->configure;
	my $open;
	ok( wait_until(
			sub {
				$open = $sandbox->report->{open_connections} + $plain->report->{open_connections};
				return $open == 0;
			}),
		'no tunnel is open') or diag("$open are open");
	return;
}

foreach my $scheme ('http://', '')
{
	my $name = $scheme eq '' ? 'a proxy without a scheme' : 'a proxy';
	my $before = seen($proxy);
	$fault->configure(proxy => $scheme . address($proxy), endpoint => $sandbox->url);
	$fault->survived($name);
	close_tunnels();
	cmp_ok(seen($proxy), '>', $before, "$name: it goes through it");
}
my $heads = join '', $proxy->asked;
like($heads, qr/^CONNECT @{[ address($sandbox) ]} HTTP/m, 'as a tunnel');
unlike($heads, qr/c2FuZGJveDpzYW5kYm94|purchase_completed|^Authorization/m,
	'in which the proxy sees neither credentials nor events');

# ---------------------------------------------------------------------------
# A proxy that asks who we are
# ---------------------------------------------------------------------------

# What libcurl could take for something else, and what a file can have around it
my $user = 'p%41+r ü';
my $file = write_credentials($node, "wrong:wrong\n", 0600, 'proxy');
close_tunnels();
foreach my $password ('p:w%41 ü"\\/+@', '')
{
	my $asking = OnsideSandbox->proxy(user => $user, password => $password);
	write_credentials($node, "\xef\xbb\xbf$user:$password\r\n", 0600, 'proxy');
	foreach my $endpoint ($sandbox->url, $plain->url)
	{
		my $name = "the password '$password' to reach $endpoint";
		$fault->configure(proxy => address($asking), endpoint => $endpoint, proxy_credentials_file => $file);
		my $before = seen($asking);
		$fault->survived($name);
		cmp_ok(seen($asking), '>', $before, "$name: through the proxy");
		close_tunnels();
	}
	unlike(join('', $asking->asked), qr/\@/, 'and nowhere but in their header');
}

# A wrong one; when the file is replaced, that is noticed.
my $changed = OnsideSandbox->proxy(user => $user, password => 'new-password');
$fault->configure(endpoint => $sandbox->url, retry_max_delay => '1s');
$fault->survived(
	'a proxy that does not know us',
	begin => sub { $fault->configure(proxy => address($changed)) },
	while => { state => 'misconfigured', state_reason => qr/the proxy refuses/, last_error => qr/^the proxy answered 407/ },
	end => sub { write_credentials($node, "$user:new-password", 0600, 'proxy') });
$fault->configure(retry_max_delay => '200ms');

# It can say back what we said, as the API can.
$fault->configure(endpoint => $plain->url);
foreach my $said ("$user:new-password", 'cCU0MStyIMO8Om5ldy1wYXNzd29yZA==')
{
	$fault->survived(
		"a proxy that says $said",
		begin => sub { $changed->answer("HTTP/1.1 500 No\r\nContent-Length: " . length($said) . "\r\nConnection: close\r\n\r\n$said") },
		while => { state => 'backing_off', last_error => qr/^HTTP 500: \*\*\*=*$/ },
		end => sub { $changed->answer(undef) });
}
unlike(slurp_file($node->logfile), qr/new-password|cCU0MStyIMO8|bmV3LXBh/, 'nothing of it is in the log');
$fault->configure(endpoint => $sandbox->url);

# Nothing is sent with a file that cannot be used, and status says which.
close_tunnels();
$fault->survived(
	'a file that others can read',
	begin => sub { chmod 0644, $file; $node->reload },
	while => { state => 'misconfigured', state_reason => qr/^proxy_credentials_file ".*" has permissions for group or others/ },
	end => sub { chmod 0600, $file; $node->reload });

# Without a proxy, nobody asks.
$fault->configure(proxy => '', proxy_credentials_file => '/nowhere');
$fault->survived('a file for no proxy');
$fault->configure(proxy => 'http://' . address($proxy), proxy_credentials_file => '');

# ---------------------------------------------------------------------------
# A proxy that fails
# ---------------------------------------------------------------------------

my %backing_off = (
	state => 'backing_off',
	state_reason => qr/cannot be reached or fails/,
	last_error => qr/\A[ -~]+\z/,
	retries => qr/^[1-9]/);
my $refuses = qr/the proxy refuses/;

# 325 has more of those that refuse.
foreach my $case (
	[ '407', "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n" ],
	[ '302', "HTTP/1.1 302 Found\r\nLocation: " . $plain->url . "\r\nContent-Length: 0\r\n\r\n" ],
	[ '204', "HTTP/1.1 204 No Content\r\n\r\n" ],
	[ 'garbage', "\x16\x03\x01 what\r\n\r\n" ],
	[ 'headers without end', "HTTP/1.1 200 OK\r\n" . "X-Endless: yes\r\n" x 200_000 ])
{
	my ($what, $answer) = @$case;
	close_tunnels();
	$fault->survived(
		"a proxy that answers $what",
		begin => sub { $proxy->answer($answer) },
		while => $what =~ /^[34]/
		? { state => 'misconfigured', state_reason => $refuses, last_error => "the proxy answered $what" }
		: \%backing_off,
		during => sub {
			is($node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.pending'),
				3, 'nothing is settled by it');
		},
		end => sub { $proxy->answer(undef) });
}

# The same where it reads the requests, which it does without TLS: 407 is its
# own, and anything else may be the API's.
$fault->configure(endpoint => $plain->url);
$fault->survived(
	'a proxy that answers 407 to a request',
	begin => sub { $proxy->answer("HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 7\r\nConnection: close\r\n\r\nwho are") },
	while => { state => 'misconfigured', state_reason => $refuses, last_error => 'the proxy answered 407: who are' },
	end => sub { $proxy->answer(undef) });
$fault->configure(endpoint => $sandbox->url);

# And where the API says 407 itself, through the tunnel, the proxy is not blamed.
$fault->survived(
	'an API that answers 407',
	begin => sub { $sandbox->behave({ status => 407, body => 'not the proxy' }) },
	while => { state => 'misconfigured', state_reason => qr/onside_attribution\.endpoint/, last_error => qr/^HTTP 407: not the proxy/ },
	end => sub { $sandbox->behave });

# SOCKS: one that refuses, and one that finds nobody there.
foreach my $case (
	[ 'socks5', 'does not allow it', "\x05\x00\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00", 1 ],
	[ 'socks5', 'finds nobody', "\x05\x00\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00", 0 ],
	[ 'socks5h', 'says no user', "\x05\xff", 1 ],
	[ 'socks4a', 'refuses', "\x00\x5b\x00\x00\x00\x00\x00\x00", 1 ])
{
	my ($scheme, $what, $bytes, $refused) = @$case;
	close_tunnels();
	$fault->survived(
		"a $scheme proxy that $what",
		begin => sub {
			$proxy->answer($bytes);
			$fault->configure(proxy => "$scheme://" . address($proxy));
		},
		while => $refused
		? { state => 'misconfigured', state_reason => $refuses, last_error => qr/^the proxy refused: \S/ }
		: \%backing_off,
		end => sub { $proxy->answer(undef); $fault->configure(proxy => '') });
}

my $closed = PostgreSQL::Test::Cluster::get_free_port();
$fault->survived(
	'a proxy that is not there',
	begin => sub { $fault->configure(proxy => "http://127.0.0.1:$closed") },
	while => { %backing_off, last_error => qr/\b$closed\b|over proxy 127\.0\.0\.1 after/ },
	during => sub { is($sandbox->report->{in_progress}, 0, 'no way around it') },
	end => sub { $fault->configure(proxy => '') });

my $before = seen($proxy);
$fault->survived('no proxy any more');
is(seen($proxy), $before, 'nothing goes through it');

$node->stop;
done_testing();
