# OnsideSandbox: starts, steers and stops the sandbox API from a TAP test.
#
# The sandbox API (test/sandbox/sandbox_api.py) is a child process of the test.
# It is steered through its control port, which answers also while every
# connection of the data port hangs in a fault.  Whatever happens to the test,
# the child ends: DESTROY and END stop it, and the child itself watches for the
# end of its parent, so that not even kill -9 of the test leaves it behind.
#
# Only core modules are used.  Every method dies when the sandbox does not do
# what it was asked: a test must not go on with a rule that was not taken.
#
#   my $sandbox = OnsideSandbox->start(user => 'u', password => 'p');
#   $node->append_conf('postgresql.conf',
#       "onside_attribution.endpoint = '" . $sandbox->url . "'");
#   $sandbox->behave({ status => 503, times => 2, headers => { 'Retry-After' => '1' } });
#   my $report = $sandbox->wait_distinct(100, 30);
#   is($report->{distinct}, 100, 'every event arrived');
#   $sandbox->stop;

package OnsideSandbox;

use strict;
use warnings;

use Cwd            ();
use File::Basename ();
use File::Spec     ();
use File::Temp     ();
use HTTP::Tiny     ();
use JSON::PP       ();
use POSIX          ();
use Scalar::Util   ();
use Time::HiRes    ();

my $script = File::Spec->catfile(
	File::Basename::dirname(Cwd::abs_path(__FILE__)),
	File::Spec->updir, 'sandbox', 'sandbox_api.py');

# The running ones, weakly, for END.
my %running;

# OnsideSandbox->start(%options)
# Starts the server and waits until it listens.  Options, all of them optional:
#
#   dir               where port file and sandbox.log go (a temporary directory)
#   host              127.0.0.1 or ::1
#   port              a fixed port, to start again where another one has ended
#   user, password    the credentials asked for (sandbox, sandbox)
#   credentials_file  a file with user:password, read again when it changes
#   tls_cert, tls_key PEM files; the data port then speaks TLS
#   poison            refuse batches with an event whose text contains this
#   sink              true: count events without looking at them
#   keep_events       how many of the first events kept() can return (1000)
#   log               file that gets a line "epoch event_id crc32" per accepted event
#   history           true: note what history() returns
#   progress          true: one line a second about the arrivals in sandbox.log
#   max_lifetime      seconds after which the server ends by itself (3600)
sub start
{
	my ($class, %options) = @_;
	my $self = bless { owner => $$ }, $class;

	$self->{dir} = delete $options{dir} // File::Temp::tempdir(CLEANUP => 1);
	$self->{host} = $options{host} // '127.0.0.1';
	$self->{scheme} = $options{tls_cert} ? 'https' : 'http';
	$self->{logfile} = File::Spec->catfile($self->{dir}, 'sandbox.log');

	# The environment's proxy is not for loopback.
	$self->{http} = HTTP::Tiny->new(
		timeout => 30,
		proxy => undef,
		http_proxy => undef,
		https_proxy => undef);

	my $port_file = File::Spec->catfile($self->{dir}, "sandbox.port.$$." . ++$self->{starts});
	unlink $port_file;
	my @command = (
		_python(), $script,
		'--port-file' => $port_file,
		'--parent-pid' => $$,
		_arguments(max_lifetime => 3600, %options));
	$self->{pid} = _spawn($self->{logfile}, @command);
	$running{ $self->{pid} } = $self;
	Scalar::Util::weaken($running{ $self->{pid} });

	@{$self}{qw(port control_port)} = $self->_read_ports($port_file);
	return $self;
}

# Addresses: url, port, control_port, pid, logfile
# url is the full address of the API, for onside_attribution.endpoint.
sub url
{
	my ($self) = @_;
	return "$self->{scheme}://"
	  . $self->_authority($self->{port})
	  . '/attribution-api/v1/events';
}

sub port { return $_[0]{port} }
sub control_port { return $_[0]{control_port} }
sub pid { return $_[0]{pid} }
sub logfile { return $_[0]{logfile} }

# What arrived
#   report          the summary, a hash reference
#   events          { event_id => how often it was accepted }
#   arrivals        { event_id => [count, first epoch, last epoch] }
#   kept            [ the first events, as structures ]
#   kept_text       the same as the JSON text in which they were sent
#   requests        [ a record per request, oldest first ]
#   history         { event_id => { came, first, last, first_answer, last_answer,
#                   accepted } }, if it was started with history => 1
#   accepted(@ids)  how many of these events have been accepted
sub report { return $_[0]->_get('/report') }
sub events { return $_[0]->_get('/events') }
sub arrivals { return $_[0]->_get('/arrivals') }
sub kept { return $_[0]->_get('/kept') }
sub requests { return $_[0]->_get('/requests') }
sub history { return $_[0]->_get('/history') }

sub accepted
{
	my ($self, @ids) = @_;
	my $events = $self->events;
	return scalar grep { $events->{$_} } @ids;
}

sub kept_text
{
	my ($self) = @_;
	return $self->_call('GET', '/kept');
}

# Waiting: wait_distinct($n, $timeout), wait_events, wait_requests
# Return the report as soon as at least $n distinct events (events with their
# repetitions, requests) have arrived, or after $timeout seconds (30).  Its key
# reached is true or false accordingly.
sub wait_distinct { return shift->_wait('distinct', @_) }
sub wait_events { return shift->_wait('events', @_) }
sub wait_requests { return shift->_wait('requests', @_) }

# Steering
#   behave(@rules)             replaces the rules; none: be healthy.  Returns them
#   rules                      the rules with how often each was used
#   used                       how often the first one was
#   poison($text)              refuse batches with $text in an event; undef: off
#   limits(max_body => n, max_events => n)
#   credentials($user, $password)
#   tls($cert, $key)           another certificate for new connections
#   reset                      forgets what arrived, not the rules
#
# docs/sandbox.md describes the rules.
#
# Rules in short: on(\%match, \%answer), sick(\%answer, [$new])
#
# on is a rule for requests with an event (or on a connection) of a kind, as in
# behave(on({ event_name => 'bad' }, { status => 500 })).  sick is
# one for the connections that are open now and, with a number, for as many new
# ones.  Both are functions.
sub on
{
	my ($match, $answer) = @_;
	return { %$answer, match => $match };
}

sub sick
{
	my ($answer, $new) = @_;
	return on({ connection_up_to => ($new // 0) + 0 }, $answer);
}

sub behave
{
	my ($self, @rules) = @_;
	return $self->_post('/behave', \@rules);
}

sub rules { return $_[0]->_get('/behave') }
sub used { return $_[0]->rules->[0]{used} }

sub poison
{
	my ($self, $contains) = @_;
	return $self->_post('/poison', { contains => $contains });
}

sub limits
{
	my ($self, %limits) = @_;
	return $self->_post('/limits', { map { $_ => $limits{$_} + 0 } keys %limits });
}

sub credentials
{
	my ($self, $user, $password) = @_;
	return $self->_post('/credentials', { user => $user, password => $password });
}

sub tls
{
	my ($self, $cert, $key) = @_;
	return $self->_post('/tls', { cert => $cert, key => $key });
}

sub reset
{
	my ($self) = @_;
	return $self->_post('/reset', {});
}

# OnsideSandbox->proxy(%options)
# What stands in front of a sandbox, with url, port and stop.  It takes
# user and password, and answer($bytes) has it say that to everything,
# answer(undef) ends it; asked has the head of each request, line by line.
sub proxy
{
	my ($class, %options) = @_;
	my $self = bless { owner => $$, host => '127.0.0.1', scheme => 'http' }, $class;
	my $dir = $self->{dir} = File::Temp::tempdir(CLEANUP => 1);
	my $port_file = File::Spec->catfile($dir, 'port');
	$self->{answer} = File::Spec->catfile($dir, 'answer');
	$self->{logfile} = File::Spec->catfile($dir, 'middle.log');
	$self->{pid} = _spawn($self->{logfile}, _python(), '-B',
		File::Spec->catfile(File::Basename::dirname($script), 'middle.py'),
		"--answer=$self->{answer}", _arguments(%options),
		'--port-file' => $port_file, '--parent-pid' => $$);
	$running{ $self->{pid} } = $self;
	Scalar::Util::weaken($running{ $self->{pid} });
	($self->{port}) = $self->_read_ports($port_file);
	return $self;
}

sub answer
{
	my ($self, $bytes) = @_;
	return unlink $self->{answer} unless defined $bytes;
	open(my $fh, '>', "$self->{answer}.new") or die "could not write $self->{answer}: $!";
	print $fh $bytes;
	close $fh;
	rename "$self->{answer}.new", $self->{answer} or die "could not rename: $!";
	return;
}

sub asked
{
	my ($self) = @_;
	open(my $fh, '<', "$self->{answer}.log") or return;
	return <$fh>;
}

# stop
# Ends the server and waits for it.  Does nothing when it is stopped already.
sub stop
{
	my ($self) = @_;
	my $pid = delete $self->{pid} or return;

	# A forked child of the test has a copy of this object but not the server.
	return if $self->{owner} != $$;

	# END and DESTROY must not change the exit status of the test.
	local ($?, $!, $@);
	delete $running{$pid};
	kill 'TERM', $pid;
	return if _reaped($pid, 10);
	kill 'KILL', $pid;
	waitpid($pid, 0);
	return;
}

sub DESTROY
{
	my ($self) = @_;
	$self->stop;
	return;
}

END
{
	$_->stop for grep { defined } values %running;
}

# ---------------------------------------------------------------------------

# PostgreSQL's test environment may put another python3 first in PATH.
sub _python
{
	return -x '/usr/bin/python3'
	  ? ('/usr/bin/python3')
	  : ('/usr/bin/env', 'python3');
}

sub _arguments
{
	my (%options) = @_;
	my @arguments;
	foreach my $name (sort keys %options)
	{
		my $value = $options{$name};
		(my $flag = "--$name") =~ tr/_/-/;
		if ($name =~ /^(?:sink|progress|history)$/)
		{
			push @arguments, $flag if $value;
		}
		elsif (defined $value)
		{
			push @arguments, "$flag=$value";
		}
	}
	return @arguments;
}

sub _spawn
{
	my ($logfile, @command) = @_;
	my $pid = fork() // die "could not fork: $!";
	return $pid if $pid;

	# The child.  POSIX::_exit, because END is the parent's.
	open(STDIN, '<', File::Spec->devnull)
	  && open(STDOUT, '>>', $logfile)
	  && open(STDERR, '>&', \*STDOUT)
	  && exec { $command[0] } @command;
	POSIX::_exit(127);
}

sub _read_ports
{
	my ($self, $port_file) = @_;
	my $deadline = Time::HiRes::time() + 30;
	until (-e $port_file)
	{
		my $ended = waitpid($self->{pid}, POSIX::WNOHANG());
		my $late = Time::HiRes::time() > $deadline;
		if ($ended || $late)
		{
			delete $running{ delete $self->{pid} } if $ended;
			$self->stop;
			die "the sandbox did not start, see $self->{logfile}:\n" . $self->_log_text;
		}
		Time::HiRes::sleep(0.01);
	}
	open(my $fh, '<', $port_file) or die "could not open $port_file: $!";
	my @ports = split ' ', scalar <$fh>;
	close $fh;
	unlink $port_file;
	return @ports;
}

sub _log_text
{
	my ($self) = @_;
	open(my $fh, '<', $self->{logfile}) or return '';
	local $/;
	return scalar(<$fh>) // '';
}

sub _reaped
{
	my ($pid, $seconds) = @_;
	my $deadline = Time::HiRes::time() + $seconds;
	while (Time::HiRes::time() < $deadline)
	{
		return 1 if waitpid($pid, POSIX::WNOHANG()) != 0;
		Time::HiRes::sleep(0.01);
	}
	return 0;
}

sub _authority
{
	my ($self, $port) = @_;
	my $host = $self->{host} =~ /:/ ? "[$self->{host}]" : $self->{host};
	return "$host:$port";
}

sub _wait
{
	my ($self, $what, $n, $timeout) = @_;
	$timeout //= 30;
	local $self->{http}{timeout} = $timeout + 30;
	return $self->_get("/wait?$what=$n&timeout=$timeout");
}

sub _get
{
	my ($self, $path) = @_;
	return JSON::PP::decode_json($self->_call('GET', $path));
}

sub _post
{
	my ($self, $path, $value) = @_;
	return JSON::PP::decode_json($self->_call('POST', $path, JSON::PP::encode_json($value)));
}

sub _call
{
	my ($self, $method, $path, $content) = @_;
	my $response = $self->{http}->request(
		$method,
		'http://' . $self->_authority($self->{control_port}) . $path,
		defined $content ? { content => $content } : {});
	die "sandbox: $method $path: $response->{status} $response->{content}"
	  unless $response->{success};
	return $response->{content};
}

1;
