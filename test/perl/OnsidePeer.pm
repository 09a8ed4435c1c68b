# OnsidePeer: a peer that says any bytes at any moment, and notes what it saw.
#
# The sandbox API speaks proper HTTP and misbehaves in ways that it knows.  This
# peer knows nothing of the API: it reads a request, answers with the bytes that
# the test gave, and notes everything that happened.  With a certificate it
# speaks TLS and offers HTTP/2, which it cannot speak.  It ends with the test.
#
#   my $peer = OnsidePeer->start;
#   $peer->behave({ answer => "HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n",
#       when => 'head', then => 'reset', times => 2 });
#   is($peer->requests->[0]{connection}, 1, 'over the first connection');

package OnsidePeer;

use strict;
use warnings;

use File::Temp ();
use IPC::Run   ();
use JSON::PP   ();

use OnsideTest;
use PostgreSQL::Test::Utils ();

my $source = <<'PYTHON';
import json, os, re, signal, socket, ssl, struct, sys, threading

directory, host, port, cert, key = sys.argv[1:]
signal.alarm(900)
lock = threading.Lock()
rules, version = [], None

def log(what, connection, **more):
    with lock, open(directory + "/log", "a") as f:
        f.write(json.dumps({"what": what, "connection": connection, **more}) + "\n")

def next_rule():
    global rules, version
    with lock:
        with open(directory + "/rules") as f:
            now = os.fstat(f.fileno()).st_ino
            if now != version:
                version, rules = now, json.load(f)
        for rule in rules:
            if rule.get("times") != 0:
                if "times" in rule:
                    rule["times"] -= 1
                return rule
    return {}

def receive(sock):
    data = sock.recv(65536)
    if not data:
        raise EOFError
    return data

def answer_requests(sock, n):
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            data += receive(sock)
        head, data = data.split(b"\r\n\r\n", 1)
        length = int(re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)[1])
        rule = next_rule()
        wanted = {"head": 0, "part": length // 2}.get(rule.get("when"), length)
        while len(data) < wanted:
            data += receive(sock)
        log("request", n, head=head.decode("latin1"), length=length)
        sock.sendall(rule.get("answer", "HTTP/1.1 204 No Content\r\n\r\n").encode("latin1"))
        then = rule.get("then", "keep")
        if then == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if then in ("reset", "close"):
            return
        if then == "linger":
            # As nginx does it: no more from here, and what still comes is read.
            sock.shutdown(socket.SHUT_WR)
            while True:
                receive(sock)
        if then == "hang":
            threading.Event().wait()
        while len(data) < length:
            data += receive(sock)
        data = data[length:]

def serve(sock, n):
    log("connection", n)
    try:
        if cert:
            sock = context.wrap_socket(sock, server_side=True)
            log("tls", n, alpn=sock.selected_alpn_protocol())
        answer_requests(sock, n)
    except (OSError, EOFError):
        pass
    sock.close()
    log("closed", n)

def watch():
    sys.stdin.buffer.read()
    os._exit(0)

if cert:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["h2", "http/1.1"])
server = socket.create_server((host, int(port)))
threading.Thread(target=watch, daemon=True).start()
print(server.getsockname()[1], flush=True)
number = 0
while True:
    accepted, _ = server.accept()
    number += 1
    threading.Thread(target=serve, args=(accepted, number), daemon=True).start()
PYTHON

# OnsidePeer->start(%options)
# Options: host (127.0.0.1), port (any), tls_cert and tls_key.
sub start
{
	my ($class, %options) = @_;
	my $self = bless { dir => File::Temp::tempdir(CLEANUP => 1), out => '' }, $class;
	my $python = -x '/usr/bin/python3' ? '/usr/bin/python3' : 'python3';

	$self->{scheme} = $options{tls_cert} ? 'https' : 'http';
	$self->{host} = $options{host} // '127.0.0.1';
	PostgreSQL::Test::Utils::append_to_file("$self->{dir}/wire.py", $source);
	$self->behave;
	$self->{run} = IPC::Run::start(
		[   $python, "$self->{dir}/wire.py", $self->{dir}, $self->{host},
			$options{port} // 0, $options{tls_cert} // '', $options{tls_key} // '' ],
		'<', \$self->{in}, '>', \$self->{out}, '2>', "$self->{dir}/stderr");
	wait_until(sub { $self->{run}->pump_nb; $self->{out} =~ /\n/ }, 30)
	  or die 'the peer does not start: ' . PostgreSQL::Test::Utils::slurp_file("$self->{dir}/stderr");
	($self->{port}) = $self->{out} =~ /(\d+)/;
	return $self;
}

sub port { return $_[0]{port} }

sub url
{
	my ($self, $host) = @_;
	$host //= $self->{host};
	return "$self->{scheme}://$host:$self->{port}/attribution-api/v1/events";
}

# behave(@rules)
# For the requests from now on, the first rule that has times left; without any
# the answer is 204.  Keys: answer (the bytes), when (it is sent after the
# head, after part of the body, else after all of it), then (close,
# reset, linger, hang, else the next request is read), times.  What
# was noted before is forgotten.
sub behave
{
	my ($self, @rules) = @_;
	PostgreSQL::Test::Utils::append_to_file("$self->{dir}/rules.new", JSON::PP::encode_json(\@rules));
	rename("$self->{dir}/rules.new", "$self->{dir}/rules") or die "rename: $!";
	unlink "$self->{dir}/log";
	return;
}

# noted($what), requests
# What happened, oldest first, as hash references with connection (counted from
# 1): connection, tls (with alpn), request (with head and
# length), closed.
sub noted
{
	my ($self, $what) = @_;
	return [] unless -e "$self->{dir}/log";
	return [ grep { $_->{what} eq $what } map { JSON::PP::decode_json($_) } grep { /\}$/ }
		  split /\n/, PostgreSQL::Test::Utils::slurp_file("$self->{dir}/log") ];
}

sub requests { return $_[0]->noted('request') }

# stop
sub stop
{
	my ($self) = @_;
	my $run = delete $self->{run} or return;
	$run->kill_kill;
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $!, $@);
	$self->stop;
	return;
}

1;
