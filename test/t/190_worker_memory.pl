# The worker's memory does not grow with what it has sent or failed to send:
# after 2,000 batches, and after 200 requests of each kind of failure, it is
# what it was.  And an upload that nobody takes any more (its peer reads
# nothing) ends as stalled, however long a request may take.

use IO::Socket::INET ();
use JSON::PP ();
use OnsideTest;
use OnsideFault;
use OnsideMachine;

# What malloc keeps for itself, at most; kB.
my $slack = 1024;

my $stalled = OnsideSandbox->start;
my $sandbox = OnsideSandbox->start;

# The kernel makes the connection and takes what fits its buffers.
my $silent = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 5)
  or die "could not listen: $!";

my $machine = OnsideMachine->new;
my $node = onside_node('main', sandbox => $stalled,
	conf => "onside_attribution.request_timeout = '30min'\n"
	  . "onside_attribution.retry_max_delay = '20ms'\n"
	  . 'onside_attribution.endpoint = '
	  . "'http://127.0.0.1:" . $silent->sockport . "/attribution-api/v1/events'\n");

# ---------------------------------------------------------------------------
# One database's upload stalls, and the other one is busy meanwhile.
# ---------------------------------------------------------------------------

create_extension($node, 'postgres');
my $upload = OnsideFault->new(node => $node, sandbox => $stalled);
$upload->record(9, '{"filler": "' . 'x' x 900_000 . '"}');
poll_status($node, 'postgres', { state => 'sending', in_flight => 4 }, 'an upload stalls: under way');
my $upload_memory = memory_of($upload->pid)->{RssAnon};

$node->safe_psql('postgres', 'CREATE DATABASE busy');
create_extension($node, 'busy');
my $old = worker_pid($node, 'busy');
set_for_database($node, 'busy', 'endpoint', $sandbox->url);
poll_worker($node, 'busy', $old);
$old = worker_pid($node, 'busy');
set_for_database($node, 'busy', 'batch_max_events', 1);
poll_worker($node, 'busy', $old);
my $fault = OnsideFault->new(node => $node, sandbox => $sandbox, database => 'busy');

sub record_many
{
	my ($count) = @_;
	push @{ $fault->{recorded} }, split /\n/,
	  $node->safe_psql('busy', <<SQL);
SELECT onside_attribution.track('purchase_completed', gen_random_uuid(),
	jsonb_build_object('n', n, 'filler', repeat('x', n % 3000)))
FROM generate_series(1, $count) n
SQL
	return;
}

# ---------------------------------------------------------------------------
# 2,000 batches
# ---------------------------------------------------------------------------

record_many(300);
$fault->settled('to begin with');
my $before = memory_of($fault->pid);
my $requests = $sandbox->report->{requests};
record_many(2000);
$fault->settled('2,000 batches');
cmp_ok($sandbox->report->{requests} - $requests, '>=', 2000, '2,000 batches: so many requests');
my $after = memory_of($fault->pid);
note("2,000 batches: RssAnon $before->{RssAnon} kB before, $after->{RssAnon} kB after; "
	  . "VmRSS $before->{VmRSS} and $after->{VmRSS} kB");
cmp_ok($after->{RssAnon}, '<', $before->{RssAnon} + $slack, '2,000 batches: the memory is flat');

# ---------------------------------------------------------------------------
# 200 failures of each kind
# ---------------------------------------------------------------------------

foreach my $rule (
	{ status => 500 },
	{ fault => 'reset_after_upload' },
	{ fault => 'garbage' },
	{ fault => 'big_error', status => 500, bytes => 1_000_000 })
{
	my $name = join ' ', $rule->{fault} // 'status', $rule->{status} // ();
	my $used = sub { $sandbox->used };
	$sandbox->behave($rule);
	record_many(20);
	ok(wait_until(sub { $used->() >= 30 }), "$name: it fails");
	$before = memory_of($fault->pid);
	ok(wait_until(sub { $used->() >= 230 }), "$name: 200 times more");
	$after = memory_of($fault->pid);
	$sandbox->behave;
	note("200 times $name: RssAnon $before->{RssAnon} kB before, $after->{RssAnon} kB after");
	cmp_ok($after->{RssAnon}, '<', $before->{RssAnon} + $slack, "$name: the memory is flat");
	$fault->settled($name);
}

# ---------------------------------------------------------------------------
# The upload
# ---------------------------------------------------------------------------

# Its time is the worker's own (STALL_SECONDS in request.c): a minute.
$machine->set_monotonic_clock(60) if $machine;
poll_status($node, 'postgres',
	{ state => 'backing_off', last_error => qr/too slow/i },
	'an upload stalls: noticed');
cmp_ok(memory_of($upload->pid)->{RssAnon}, '<', $upload_memory + 5000,
	'an upload stalls: no more bodies than may be under way are in memory');
$upload->configure(endpoint => $stalled->url);
$node->safe_psql('postgres', 'SELECT pg_terminate_backend(' . $upload->pid . ', 60000)');
$upload->{pid} = poll_worker($node, 'postgres', $upload->pid);
$upload->settled('an upload stalls');

$node->stop;
done_testing();
