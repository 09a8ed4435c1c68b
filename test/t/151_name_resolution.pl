# A name that does not resolve, or a resolver that hangs, is a failure like any
# other: events wait, "status" says it, and all arrives when the name resolves.
# A hanging resolver holds up neither the worker nor its end, and no signal
# handler of the server's ever runs on one of its threads.

use Time::HiRes qw(time);
use OnsideTest;
use OnsideFault;
use OnsideMachine;
use OnsideTls;

plan skip_all => 'openssl is not installed' unless OnsideTls::available();

my $tls = OnsideTls->new;
my $ca = $tls->authority('test');
my ($cert, $key) = $tls->certificate($ca, host => '*.hanging.test');
my $sandbox = OnsideSandbox->start(tls_cert => $cert, tls_key => $key);

# The system's resolver could be replaced only in a mount namespace, and would be
# asked over the network.
my $machine = OnsideMachine->new or plan skip_all => 'NOT TESTED: gcc cannot make faults.so';

# libcurl remembers a name for a minute, and a connection that is open needs
# none; so each case takes a new one.
my $names = 0;

sub url
{
	return sprintf 'https://n%d.hanging.test:%d/attribution-api/v1/events',
	  ++$names, $sandbox->port;
}

my $node = onside_node('main', sandbox => $sandbox,
	conf => "onside_attribution.endpoint = '" . url() . "'\n"
	  . "onside_attribution.ca_file = '$ca->{cert}'\n");
create_extension($node, 'postgres');
my $fault = OnsideFault->new(node => $node, sandbox => $sandbox);

$fault->record;
$fault->settled('a name that resolves');

# ---------------------------------------------------------------------------
# A name that is not there
# ---------------------------------------------------------------------------

$fault->survived(
	'a name that does not resolve',
	begin => sub { $fault->configure(endpoint => 'https://name.invalid/attribution-api/v1/events') },
	while => {
		state => 'backing_off',
		state_reason => qr/cannot be reached/,
		last_error => qr/resolve.*name\.invalid/i,
		retries => qr/^[1-9]/
	},
	end => sub { $fault->configure(endpoint => url()) });

# ---------------------------------------------------------------------------
# A resolver that hangs
# ---------------------------------------------------------------------------

# The threads of a process besides the first, with the signals they block.
sub other_threads
{
	my ($pid) = @_;
	my @masks;
	foreach my $status (glob "/proc/$pid/task/*/status")
	{
		next if $status eq "/proc/$pid/task/$pid/status";
		my $text = eval { slurp_file($status) } // next;
		push @masks, $1 if $text =~ /^SigBlk:\s+([0-9a-f]+)/m;
	}
	return @masks;
}

# Makes the resolver hang, and the worker ask it.
sub hang_resolver
{
	$machine->hang_resolver;
	$fault->configure(endpoint => url());
	return;
}

hang_resolver();
$fault->survived(
	'a resolver that hangs',
	while => { state => 'sending', in_flight => qr/^[1-9]/ },
	during => sub {
		ok(wait_until(sub { other_threads($fault->pid) > 0 }), 'a thread waits for the resolver');
		foreach my $blocked (other_threads($fault->pid))
		{
			# HUP 1, INT 2, QUIT 3, USR1 10, USR2 12, ALRM 14, TERM 15, URG 23
			my $mask = hex substr($blocked, -8);
			is_deeply([ grep { !($mask & (1 << ($_ - 1))) } 1, 2, 3, 10, 12, 14, 15, 23 ],
				[], 'it blocks the signals of the server');
		}
		$fault->configure(connect_timeout => '100ms');
	},
	end => sub { $machine->answer_resolver });
$fault->configure(connect_timeout => '100ms');

hang_resolver();
$fault->survived(
	'a resolver that hangs longer than connect_timeout',
	while => {
		state => 'backing_off',
		last_error => qr/tim(?:e|ed )out/i,
		retries => qr/^\d\d/
	},
	end => sub { $machine->answer_resolver });
ok(wait_until(sub { other_threads($fault->pid) == 0 }), 'no thread is left of it');
$fault->configure(connect_timeout => '60s');

# ---------------------------------------------------------------------------
# Its end meanwhile
# ---------------------------------------------------------------------------

# The bound is far from what it takes, and far below what the resolver takes.
sub ends_at_once
{
	my ($name, $end) = @_;
	hang_resolver();
	$fault->record(1);
	poll_status($node, 'postgres', { state => 'sending', in_flight => qr/^[1-9]/ }, "$name: it hangs");
	ok(wait_until(sub { other_threads($fault->pid) > 0 }), "$name: in the resolver");
	my $pid = $fault->pid;
	my $began = time();
	$end->($pid);
	ok(wait_until(sub { !process_exists($pid) }, 20, 0.001), "$name: the worker ends");
	my $took = time() - $began;
	note(sprintf '%s: the worker took %.3f s to end', $name, $took);
	cmp_ok($took, '<', 5, "$name: at once");
	return;
}

sub new_worker
{
	my ($name) = @_;
	$machine->answer_resolver;
	$fault->{pid} = poll_worker($node, 'postgres', $fault->pid);
	$fault->settled($name);
	return;
}

ends_at_once('SIGTERM', sub { kill 'TERM', $_[0] });
new_worker('SIGTERM');
ends_at_once('pg_terminate_backend',
	sub { $node->safe_psql('postgres', "SELECT pg_terminate_backend($_[0])") });
new_worker('pg_terminate_backend');
ends_at_once('pg_ctl stop -m fast', sub { $node->stop('fast') });
$node->start;
new_worker('pg_ctl stop -m fast');

$node->stop;
done_testing();
