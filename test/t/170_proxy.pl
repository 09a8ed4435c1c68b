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
# A proxy: CONNECT and plain requests, a line for each into its log, together
# with all that it saw in the clear.  A file beside it says what to answer
# instead.  It ends with us.
# ---------------------------------------------------------------------------

my $dir = PostgreSQL::Test::Utils::tempdir();
append_to_file("$dir/proxy.py", <<'PYTHON');
import base64, os, re, signal, socket, sys, threading

directory = sys.argv[1]
signal.alarm(600)
log = open(directory + "/proxy.log", "ab", buffering=0)
server = socket.create_server(("127.0.0.1", 0))

def pump(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass

def serve(client):
    head = b""
    try:
        # Each of what we say is short, and read as far as it is wanted.
        with open(directory + "/socks", "rb") as f:
            client.recv(65536)
            client.sendall(f.read())
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
        client.close()
        return
    except OSError:
        pass
    while b"\r\n\r\n" not in head:
        data = client.recv(65536)
        if not data:
            return
        head += data
    log.write(head + b"\n--\n")
    try:
        with open(directory + "/answer", "rb") as f:
            answer = f.read()
    except OSError:
        answer = None
    if answer is not None:
        client.sendall(answer)
        client.close()
        return
    try:
        with open(directory + "/credentials", "rb") as f:
            wanted = b"Proxy-Authorization: Basic " + base64.b64encode(f.read())
    except OSError:
        wanted = None
    if wanted is not None and wanted not in head.split(b"\r\n"):
        client.sendall(b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n")
        client.close()
        return
    connect = re.match(rb"CONNECT ([^ :]+):(\d+) HTTP/1.1\r\n", head)
    plain = re.match(rb"(\w+) http://([^ :/]+):(\d+)(/\S*) ", head)
    if connect:
        upstream = socket.create_connection((connect[1].decode(), int(connect[2])))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    else:
        upstream = socket.create_connection((plain[2].decode(), int(plain[3])))
        # One request a connection: the next one could be for another server.
        upstream.sendall(plain[1] + b" " + plain[4] + b" "
                         + head[plain.end():].replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
    threading.Thread(target=pump, args=(upstream, client), daemon=True).start()
    pump(client, upstream)

def watch():
    # The pipe to the test closes when it ends.
    sys.stdin.buffer.read()
    os._exit(0)

threading.Thread(target=watch, daemon=True).start()
print(server.getsockname()[1], flush=True)
while True:
    connection, _ = server.accept()
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
PYTHON
my ($in, $out) = ('', '');
my $python = -x '/usr/bin/python3' ? '/usr/bin/python3' : 'python3';
my $proxy = IPC::Run::start([ $python, "$dir/proxy.py", $dir ],
	'<pipe', \*PROXY_IN, '>', \$out);
wait_until(sub { $proxy->pump_nb; $out =~ /\n/ }, 30) or die 'the proxy does not start';
my ($proxy_port) = $out =~ /(\d+)/;

sub proxy_log { return -e "$dir/proxy.log" ? slurp_file("$dir/proxy.log") : '' }
sub proxy_seen { return scalar(() = proxy_log() =~ /^--$/mg) }

sub proxy_answers
{
	my ($answer) = @_;
	unlink "$dir/answer";
	return unless defined $answer;
	append_to_file("$dir/answer.new", $answer);
	rename("$dir/answer.new", "$dir/answer") or die "rename: $!";
	return;
}

# ---------------------------------------------------------------------------
# A server in an environment that says all the wrong things
# ---------------------------------------------------------------------------

my $tls = OnsideTls->new;
my $ca = $tls->authority('test');
my ($cert, $key) = $tls->certificate($ca);
my $sandbox = OnsideSandbox->start(tls_cert => $cert, tls_key => $key);
my $plain = OnsideSandbox->start;

my $home = "$dir/home";
mkdir $home or die "mkdir: $!";
append_to_file("$home/.netrc", "machine localhost login netrc password netrc\n"
	  . "machine 127.0.0.1 login netrc password netrc\ndefault login netrc password netrc\n");
chmod 0600, "$home/.netrc";

my $node = onside_node('main', sandbox => $sandbox, start => 0,
	conf => "onside_attribution.ca_file = '$ca->{cert}'\n"
	  . "onside_attribution.request_timeout = '10s'\n");
{
	my $wrong = "http://127.0.0.1:$proxy_port";
	local @ENV{qw(http_proxy https_proxy HTTPS_PROXY all_proxy ALL_PROXY)} = ($wrong) x 5;
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
$fault->record;
$fault->settled("the environment's proxy, https");
$fault->configure(endpoint => $plain->url);
$fault->record;
$fault->settled("the environment's proxy, http");
is(proxy_seen(), 0, "nothing went through the environment's proxy");
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

my $credentials = 'c2FuZGJveDpzYW5kYm94';	# sandbox:sandbox
foreach my $scheme ('http://', '')
{
	my $name = $scheme eq '' ? 'a proxy without a scheme' : 'a proxy';
	my $before = proxy_seen();
	$fault->configure(proxy => "${scheme}127.0.0.1:$proxy_port", endpoint => $sandbox->url);
	$fault->record;
	$fault->settled($name);
	close_tunnels();
	cmp_ok(proxy_seen(), '>', $before, "$name: it goes through it");
}
like(proxy_log(), qr/^CONNECT 127\.0\.0\.1:@{[$sandbox->port]} HTTP/m, 'as a tunnel');
unlike(proxy_log(), qr/\Q$credentials\E|purchase_completed|^Authorization/m,
	'in which the proxy sees neither credentials nor events');

# ---------------------------------------------------------------------------
# A proxy that asks who we are
# ---------------------------------------------------------------------------

sub proxy_wants
{
	my ($wanted) = @_;
	unlink "$dir/credentials";
	return unless defined $wanted;
	append_to_file("$dir/credentials.new", $wanted);
	rename("$dir/credentials.new", "$dir/credentials") or die "rename: $!";
	return;
}

# What libcurl could take for something else, and what a file can have around it
my $proxy_user = 'p%41+r ü';
my @proxy_passwords = ('p:w%41 ü"\\/+@', '', 'plain-password');
my $proxy_file = write_credentials($node, "wrong:wrong\n", 0600, 'proxy');
close_tunnels();
foreach my $password (@proxy_passwords)
{
	foreach my $endpoint ($sandbox->url, $plain->url)
	{
		my $name = "the password '$password' to reach $endpoint";
		proxy_wants("$proxy_user:$password");
		write_credentials($node, "\xef\xbb\xbf$proxy_user:$password\r\n", 0600, 'proxy');
		$fault->configure(endpoint => $endpoint, proxy_credentials_file => $proxy_file);
		my $before = proxy_seen();
		$fault->record;
		$fault->settled($name);
		cmp_ok(proxy_seen(), '>', $before, "$name: through the proxy");
		close_tunnels();
	}
}
unlike(proxy_log(), qr/\@/, 'and nowhere but in their header');

# A wrong one; when the file is replaced, that is noticed.
$fault->configure(endpoint => $sandbox->url, retry_max_delay => '1s');
$fault->survived(
	'a proxy that does not know us',
	begin => sub { proxy_wants("$proxy_user:new-password") },
	while => { state => 'misconfigured', state_reason => qr/the proxy refuses/, last_error => qr/^the proxy answered 407/ },
	end => sub { write_credentials($node, "$proxy_user:new-password", 0600, 'proxy') });
$fault->configure(retry_max_delay => '200ms');

# It can say back what we said, as the API can.
$fault->configure(endpoint => $plain->url);
foreach my $said ($proxy_user . ':new-password', 'new-password', 'new%2Dpassword', '\\u006eew-password',
	'cCU0MStyIMO8Om5ldy1wYXNzd29yZA==', 'bmV3LXBhc3N3b3Jk')
{
	$fault->survived(
		"a proxy that says $said",
		begin => sub { proxy_answers("HTTP/1.1 500 No\r\nContent-Length: " . length($said) . "\r\n\r\n$said") },
		while => { state => 'backing_off', last_error => qr/^HTTP 500: \*\*\*=*$/ },
		end => sub { proxy_answers(undef) });
}
unlike(slurp_file($node->logfile), qr/new-password|new%2Dpassword|006eew|cCU0MStyIMO8|bmV3LXBh/, 'nothing of it is in the log');
$fault->configure(endpoint => $sandbox->url);

# Nothing is sent with a file that cannot be used, and status says which.
close_tunnels();
$fault->survived(
	'a file that others can read',
	begin => sub { chmod 0644, $proxy_file; $node->reload },
	while => { state => 'misconfigured', state_reason => qr/^proxy_credentials_file ".*" has permissions for group or others/ },
	end => sub { chmod 0600, $proxy_file; $node->reload });

# Without a proxy, nobody asks.
$fault->configure(proxy => '', proxy_credentials_file => '/nowhere');
$fault->record;
$fault->settled('a file for no proxy');
$fault->configure(proxy => "http://127.0.0.1:$proxy_port", proxy_credentials_file => '');
proxy_wants(undef);

# ---------------------------------------------------------------------------
# A proxy that fails
# ---------------------------------------------------------------------------

my %backing_off = (
	state => 'backing_off',
	state_reason => qr/cannot be reached or fails/,
	last_error => qr/\A[ -~]+\z/);

foreach my $case (
	[ '407', "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n" ],
	[ '403', "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n" ],
	[ '400', "HTTP/1.1 400 Bad Request\r\nContent-Length: 5\r\n\r\nwrong" ],
	[ '401', "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n" ],
	[ '429', "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n" ],
	[ '204', "HTTP/1.1 204 No Content\r\n\r\n" ],
	[ '302', "HTTP/1.1 302 Found\r\nLocation: " . $plain->url . "\r\nContent-Length: 0\r\n\r\n" ],
	[ '503', "HTTP/1.1 503 Unavailable\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n" ],
	[ 'garbage', "\x16\x03\x01 what\r\n\r\n" ],
	[ 'nothing', '' ],
	[ 'headers without end', "HTTP/1.1 200 OK\r\n" . "X-Endless: yes\r\n" x 200_000 ])
{
	my ($what, $answer) = @$case;
	close_tunnels();
	$fault->survived(
		"a proxy that answers $what",
		begin => sub { proxy_answers($answer) },
		while => $what =~ /^(?!2)\d+$/
		? { state => 'misconfigured', state_reason => qr/the proxy refuses/, last_error => qr/^the proxy answered $what$/ }
		: { %backing_off, retries => sub { $_[0] > 0 } },
		during => sub {
			is($node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.pending'),
				3, "a proxy that answers $what: nothing is settled by it");
		},
		end => sub { proxy_answers(undef) });
}

# The same where it reads the requests, which it does without TLS: 407 is its
# own, and anything else may be the API's.
$fault->configure(endpoint => $plain->url);
$fault->survived(
	'a proxy that answers 407 to a request',
	begin => sub { proxy_answers("HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 7\r\n\r\nwho are") },
	while => { state => 'misconfigured', state_reason => qr/the proxy refuses/, last_error => qr/^the proxy answered 407: who are$/ },
	end => sub { proxy_answers(undef) });
$fault->configure(endpoint => $sandbox->url);

# And where the API says 407 itself, through the tunnel, the proxy is not blamed.
$fault->survived(
	'an API that answers 407',
	begin => sub { $sandbox->behave({ status => 407, body => 'not the proxy' }) },
	while => { state => 'misconfigured', state_reason => qr/onside_attribution\.endpoint/, last_error => qr/^HTTP 407: not the proxy/ },
	end => sub { $sandbox->behave });

# ---------------------------------------------------------------------------
# SOCKS: one that refuses, and one that finds nobody there
# ---------------------------------------------------------------------------

foreach my $case (
	[ 'socks5', 'says no user', "\x05\xff", 1 ],
	[ 'socks5', 'does not allow it', "\x05\x00\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00", 1 ],
	[ 'socks5', 'finds nobody', "\x05\x00\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00", 0 ],
	[ 'socks5h', 'does not allow it', "\x05\x00\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00", 1 ],
	[ 'socks4', 'refuses', "\x00\x5b\x00\x00\x00\x00\x00\x00", 1 ],
	[ 'socks4a', 'refuses', "\x00\x5b\x00\x00\x00\x00\x00\x00", 1 ],
	[ 'socks5', 'closes', '', 0 ])
{
	my ($scheme, $what, $bytes, $refused) = @$case;
	close_tunnels();
	$fault->survived(
		"a $scheme proxy that $what",
		begin => sub {
			append_to_file("$dir/socks.new", $bytes);
			rename("$dir/socks.new", "$dir/socks") or die "rename: $!";
			$fault->configure(proxy => "$scheme://127.0.0.1:$proxy_port");
		},
		while => $refused
		? { state => 'misconfigured', state_reason => qr/the proxy refuses/, last_error => qr/^the proxy refused: \S/ }
		: { %backing_off, retries => sub { $_[0] > 0 } },
		end => sub { unlink "$dir/socks"; $fault->configure(proxy => '') });
}

my $closed = PostgreSQL::Test::Cluster::get_free_port();
$fault->survived(
	'a proxy that is not there',
	begin => sub { $fault->configure(proxy => "http://127.0.0.1:$closed") },
	while => { %backing_off, last_error => qr/\b$closed\b|over proxy 127\.0\.0\.1 after/ },
	during => sub {
		is($sandbox->report->{in_progress}, 0, 'a proxy that is not there: and no way around it');
	},
	end => sub { $fault->configure(proxy => '') });

my $before = proxy_seen();
$fault->record;
$fault->settled('no proxy any more');
is(proxy_seen(), $before, 'no proxy any more: nothing goes through it');

$node->stop;
close PROXY_IN;
$proxy->finish;
done_testing();
