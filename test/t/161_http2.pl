# Where the server offers HTTP/2, it is spoken, and everything holds as it does
# over HTTP/1.1: requests share a connection, at most as many as the server
# allows; a GOAWAY, a refused or reset stream, a connection that ends in the
# middle and settings without end cost no event and dead-letter none.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use JSON::PP ();
use PostgreSQL::Test::Utils;
use Test::More;

use OnsideFault;
use OnsideSandbox;
use OnsideTest;
use OnsideTls;

plan skip_all => 'openssl is not installed' unless OnsideTls::available();

# ---------------------------------------------------------------------------
# An HTTP/2 front of the sandbox API, of the standard library: TLS with ALPN h2.
# It reads frames, and hands each whole body to the sandbox over HTTP/1.1.  Of
# HPACK it needs nothing: it looks at no header, and what it says is in the
# static table.  The file "behave" holds how to misbehave, as JSON; each line of
# "log" is something that happened.
# ---------------------------------------------------------------------------

my $dir = PostgreSQL::Test::Utils::tempdir();
append_to_file("$dir/front.py", <<'PYTHON');
import base64, http.client, json, os, signal, socket, ssl, struct, sys, threading, time

directory, cert, key, sandbox_port = sys.argv[1:]
signal.alarm(900)
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
STATUS = {204: b"\x89", 200: b"\x88", 400: b"\x8c", 404: b"\x8d", 500: b"\x8e"}
AUTHORIZATION = "Basic " + base64.b64encode(b"sandbox:sandbox").decode()
log_lock = threading.Lock()


def log(what):
    with log_lock, open(directory + "/log", "a") as f:
        f.write(what + "\n")


def behaviour():
    try:
        with open(directory + "/behave") as f:
            return json.load(f)
    except OSError:
        return {}


def ask_sandbox(body):
    connection = http.client.HTTPConnection("127.0.0.1", int(sandbox_port), timeout=60)
    connection.request("POST", "/attribution-api/v1/events", body,
                       {"Content-Type": "application/json", "Authorization": AUTHORIZATION})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, text


class Connection:
    def __init__(self, sock):
        self.sock = sock
        self.send_lock = threading.Lock()
        self.bodies = {}
        self.behave = behaviour()
        self.streams = 0

    def frame(self, kind, flags, stream, payload=b""):
        with self.send_lock:
            self.sock.sendall(struct.pack(">I", len(payload))[1:] + bytes((kind, flags))
                              + struct.pack(">I", stream) + payload)

    def read(self, n):
        data = b""
        while len(data) < n:
            more = self.sock.recv(n - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def goaway(self, last, error=0):
        log("goaway")
        self.frame(GOAWAY, 0, 0, struct.pack(">II", last, error))

    def run(self):
        log("connection")
        if self.read(24) != b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":
            log("not HTTP/2")
            return
        settings = b""
        if "max_streams" in self.behave:
            settings = struct.pack(">HI", 3, self.behave["max_streams"])
        self.frame(SETTINGS, 0, 0, settings)
        self.frame(WINDOW, 0, 0, struct.pack(">I", 1 << 30))
        if self.behave.get("flood"):
            log("flood")
            while True:
                self.frame(SETTINGS, 0, 0, struct.pack(">HI", 3, 100) * 100)
                self.frame(PING, 0, 0, b"12345678")
        while True:
            head = self.read(9)
            length = int.from_bytes(head[:3], "big")
            kind, flags = head[3], head[4]
            stream = int.from_bytes(head[5:], "big") & 0x7fffffff
            self.handle(kind, flags, stream, self.read(length))

    def handle(self, kind, flags, stream, payload):
        if kind == SETTINGS and not flags & 1:
            self.frame(SETTINGS, 1, 0)
        elif kind == PING and not flags & 1:
            self.frame(PING, 1, 0, payload)
        elif kind == RST:
            self.bodies.pop(stream, None)
        elif kind == HEADERS:
            self.streams += 1
            if not self.behave.get("sticky"):
                self.behave = behaviour()
            self.bodies[stream] = b""
            log("stream %d open %d" % (stream, len(self.bodies)))
            if len(self.bodies) > self.behave.get("max_streams", 100):
                # It was opened before our settings were known there.
                log("refused")
                del self.bodies[stream]
                self.frame(RST, 0, stream, struct.pack(">I", 7))
                return
            self.begun(stream)
            if flags & 1:
                self.whole(stream)
        elif kind == DATA and stream in self.bodies:
            if flags & 8:
                payload = payload[1:len(payload) - payload[0]]
            self.bodies[stream] += payload
            if payload:
                self.frame(WINDOW, 0, stream, struct.pack(">I", len(payload)))
            if flags & 1:
                self.whole(stream)

    def begun(self, stream):
        if self.behave.get("refuse_stream") and self.streams % 2:
            log("refused")
            del self.bodies[stream]
            self.frame(RST, 0, stream, struct.pack(">I", 7))
        elif self.behave.get("reset_stream") and self.streams % 2:
            log("reset")
            del self.bodies[stream]
            self.frame(RST, 0, stream, struct.pack(">I", 2))
        elif self.behave.get("goaway_unprocessed") and self.streams > 1:
            # What came last is not taken, and may be sent elsewhere at once.
            self.goaway(stream - 2)
            del self.bodies[stream]
        elif self.behave.get("goaway_and_close"):
            self.goaway(0, self.behave.get("error", 0))
            raise EOFError

    def whole(self, stream):
        body = self.bodies[stream]
        if self.behave.get("goaway_whole") and self.streams >= self.behave["goaway_whole"]:
            self.goaway(stream)
        threading.Thread(target=self.answer, args=(stream, body), daemon=True).start()

    def answer(self, stream, body):
        try:
            time.sleep(self.behave.get("delay", 0))
            if self.behave.get("silent"):
                log("silent")
                return
            status, text = ask_sandbox(body)
            if self.behave.get("take_and_close"):
                log("taken")
                self.sock.shutdown(socket.SHUT_RDWR)
                return
            if self.behave.get("endless_headers"):
                log("endless")
                literal = b"\x00\x01x\x7f\x80\x3f" + b"y" * (127 + 8064)
                self.frame(HEADERS, 0, stream, STATUS[status])
                while stream in self.bodies:
                    self.frame(CONTINUATION, 0, stream, literal)
            headers = STATUS.get(status, b"\x08\x03" + str(status).encode())
            if self.behave.get("endless_body"):
                log("endless")
                self.frame(HEADERS, 4, stream, STATUS[500])
                while stream in self.bodies:
                    self.frame(DATA, 0, stream, b"x" * 8192)
            # The peer may open another one as soon as it has the answer.
            self.bodies.pop(stream, None)
            self.frame(HEADERS, 4 if text else 5, stream, headers)
            if text:
                self.frame(DATA, 1, stream, text[:8192])
        except OSError:
            pass


def serve(raw):
    try:
        with context.wrap_socket(raw, server_side=True) as sock:
            Connection(sock).run()
    except (OSError, EOFError):
        pass
    log("closed")


def watch():
    sys.stdin.buffer.read()
    os._exit(0)


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)
context.set_alpn_protocols(["h2"])
server = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=watch, daemon=True).start()
print(server.getsockname()[1], flush=True)
while True:
    connection, _ = server.accept()
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
PYTHON

my $tls = OnsideTls->new;
my $ca = $tls->authority('test');
my ($cert, $key) = $tls->certificate($ca);
my $sandbox = OnsideSandbox->start;

my $out = '';
my $python = -x '/usr/bin/python3' ? '/usr/bin/python3' : 'python3';
my $front = IPC::Run::start(
	[ $python, "$dir/front.py", $dir, $cert, $key, $sandbox->port ],
	'<pipe', \*FRONT_IN, '>', \$out, '2>', "$dir/front.err");
wait_until(sub { $front->pump_nb; $out =~ /\n/ }, 30)
  or die 'the front does not start: ' . slurp_file("$dir/front.err");
my ($port) = $out =~ /(\d+)/;

sub front_log { return -e "$dir/log" ? slurp_file("$dir/log") : '' }

# For the requests from now on; if "sticky", a connection goes on as it began.
sub behave
{
	my (%behaviour) = @_;
	append_to_file("$dir/behave.new", JSON::PP::encode_json(\%behaviour));
	rename("$dir/behave.new", "$dir/behave") or die "rename: $!";
	unlink "$dir/log";
	return;
}

my $node = onside_node('main', sandbox => $sandbox,
	conf => "onside_attribution.endpoint = 'https://localhost:$port/attribution-api/v1/events'\n"
	  . "onside_attribution.ca_file = '$ca->{cert}'\n"
	  . "onside_attribution.batch_max_events = 5\n"
	  . "onside_attribution.max_in_flight = 8\n"
	  . "onside_attribution.request_timeout = '20s'\n");
create_extension($node, 'postgres');
my $fault = OnsideFault->new(node => $node, sandbox => $sandbox);

# Each case has a connection of its own: ca_file in another place is another
# configuration.
sub new_connection
{
	my ($name) = @_;
	my $copy = "$dir/$name.crt";
	append_to_file($copy, slurp_file($ca->{cert}));
	$fault->configure(ca_file => $copy);
	return;
}

my $n = 0;

sub survived
{
	my ($name, $behaviour, %case) = @_;
	behave(%$behaviour);
	new_connection(++$n);
	$fault->survived($name, events => 60, %case,
		end => sub { behave(); $case{end}->() if $case{end} });
	return;
}

# ---------------------------------------------------------------------------

survived('HTTP/2', { delay => 0.05 },
	begin => sub { $node->safe_psql('postgres', 'SELECT onside_attribution.pause()') },
	during => sub {
		$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
		wait_for_flush($node, 'postgres');
		my $log = front_log();
		unlike($log, qr/not HTTP/, 'it is spoken');
		is(scalar(() = $log =~ /^connection$/mg), 1, 'over one connection');
		like($log, qr/open [2-8]$/m, 'with several requests at once');
		unlike($log, qr/open (9|\d\d)$/m, 'and no more than max_in_flight');
	});
is(status($node, 'postgres')->{retries}, 0, 'at the first attempt');

survived('two streams at most', { max_streams => 2, delay => 0.02 });

foreach my $case (
	[ 'GOAWAY after the third request, which is answered', { goaway_whole => 3, delay => 0.02 } ],
	[ 'GOAWAY after each request, which is answered', { goaway_whole => 1 } ],
	[ 'GOAWAY that leaves the last request out', { goaway_unprocessed => 1, delay => 0.02 } ],
	[ 'every other stream is refused', { refuse_stream => 1 } ],
	[ 'every other stream is reset', { reset_stream => 1 } ])
{
	my ($name, $behaviour) = @$case;
	survived($name, $behaviour,
		during => sub {
			ok(wait_until(sub { front_log() =~ /^(goaway|refused|reset)$/m }),
				"$name: it happened");
		});
}

my %backing_off = (
	state => 'backing_off',
	state_reason => qr/cannot be reached or fails/,
	last_error => qr/\A[ -~]+\z/);

foreach my $case (
	[ 'GOAWAY and the end', { goaway_and_close => 1 } ],
	[ 'GOAWAY with an error and the end', { goaway_and_close => 1, error => 11 } ],
	[ 'taken, and no answer', { take_and_close => 1 }, again => 1 ],
	[ 'headers without end', { endless_headers => 1 }, again => 1 ],
	[ 'a body without end', { endless_body => 1 }, again => 1 ])
{
	my ($name, $behaviour, %case) = @$case;
	my $memory;
	survived($name, $behaviour, %case,
		while => \%backing_off,
		during => sub {
			my $retries = status($node, 'postgres')->{retries};
			$memory = memory_of($fault->pid)->{RssAnon};
			poll_status($node, 'postgres', { retries => sub { $_[0] >= $retries + 20 } },
				"$name: it is tried again and again");
			cmp_ok(memory_of($fault->pid)->{RssAnon}, '<', $memory + 1024,
				"$name: the worker's memory is flat");
		});
}

# Nothing that is an answer: request_timeout ends it at the latest.
foreach my $case (
	[ 'silence', { silent => 1 }, qr/tim(?:e|ed )out/i ],
	[ 'settings without end', { flood => 1 }, qr/./ ])
{
	my ($name, $behaviour, $error) = @$case;
	$fault->configure(request_timeout => '500ms');
	survived($name, $behaviour,
		while => { %backing_off, last_error => $error },
		during => sub {
			my $memory = memory_of($fault->pid)->{RssAnon};
			my $retries = status($node, 'postgres')->{retries};
			poll_status($node, 'postgres', { retries => sub { $_[0] >= $retries + 3 } },
				"$name: it is tried again");
			cmp_ok(memory_of($fault->pid)->{RssAnon}, '<', $memory + 1024,
				"$name: the worker's memory is flat");
		},
		end => sub { $fault->configure(request_timeout => '20s') });
}

# A connection that has gone dead, while others can be made: the next attempt
# must not be made over it.
{
	$fault->configure(request_timeout => '500ms');
	survived('one connection is dead', { silent => 1, sticky => 1 },
		while => { %backing_off, last_error => qr/tim(?:e|ed )out/i });
	$fault->configure(request_timeout => '20s');
}

# The events that are refused are found as over HTTP/1.1.
{
	$sandbox->poison('rotten');
	survived('a 400', {},
		begin => sub { $fault->expect_dead($fault->record(1, '{"rotten": true}')) });
	$sandbox->poison(undef);
}

$node->stop;
close FRONT_IN;
$front->finish;
done_testing();
