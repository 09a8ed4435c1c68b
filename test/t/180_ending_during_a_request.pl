# A request that hangs holds up nothing: the worker ends within a second when it
# is told to, a fast shutdown and DROP DATABASE (another one's or its own) do
# not wait for our HTTP, other sessions' barriers are served, and a cancelled
# query is none of ours.  What was under way is sent again with the same bytes.

use JSON::PP ();
use Time::HiRes qw(time);
use OnsideTest;
use OnsideFault;

# Far from what it takes (which note() says), and far below request_timeout.
my $at_once = 5;

my ($node, $sandbox) = sending_node(conf => "onside_attribution.request_timeout = '10min'\n"
	  . "onside_attribution.connect_timeout = '10min'\n");
my $fault = OnsideFault->new(node => $node, sandbox => $sandbox);
$fault->record;
$fault->settled('before anything');

# The ways in which a request can hang: its answer does not come, or comes a
# byte at a time.  accept: the batch was taken all the same.
my @hanging = (
	{ fault => 'black_hole', accept => JSON::PP::true() },
	{ fault => 'slow_loris', interval => 0.05 });

sub hang
{
	my ($rule, $name) = @_;
	$sandbox->behave($rule);
	my @ids = $fault->record;
	poll_status($node, 'postgres', { state => 'sending', in_flight => qr/^[123]$/ }, "$name: it hangs");
	ok(wait_until(sub { $sandbox->used }), "$name: at the API");

	# What hangs goes on hanging; the next request will not.
	$sandbox->behave;
	return @ids;
}

sub took_ok
{
	my ($began, $name) = @_;
	my $took = time() - $began;
	note(sprintf '%s: %.3f s', $name, $took);
	return cmp_ok($took, '<', $at_once, "$name: at once");
}

# A new worker is there, and all arrives.
sub recovered
{
	my ($name) = @_;
	$fault->{pid} = poll_worker($node, 'postgres', $fault->pid);
	$fault->settled($name);
	return;
}

foreach my $rule (@hanging)
{
	my $how = $rule->{fault};
	my ($pid, $began, $name);

	# ------------------------------------------------------------------------
	# The worker's end
	# ------------------------------------------------------------------------

	$name = "SIGTERM during a $how";
	$pid = $fault->pid;
	hang($rule, $name);
	$began = time();
	kill 'TERM', $pid;
	ok(wait_until(sub { !process_exists($pid) }, 60, 0.001), "$name: the worker ends");
	took_ok($began, $name);
	recovered($name);

	$name = "pg_terminate_backend during a $how";
	$pid = $fault->pid;
	hang($rule, $name);
	$began = time();
	is($node->safe_psql('postgres', "SELECT pg_terminate_backend($pid, 60000)"),
		't', "$name: the worker ends");
	took_ok($began, $name);
	recovered($name);

	foreach my $mode (qw(fast smart immediate))
	{
		$name = "pg_ctl stop -m $mode during a $how";
		hang($rule, $name);
		$began = time();
		$node->stop($mode);
		took_ok($began, $name);
		$node->start;
		$fault->{pid} = 0;
		recovered($name);
	}

	# ------------------------------------------------------------------------
	# What leaves it alone
	# ------------------------------------------------------------------------

	$name = "pg_cancel_backend during a $how";
	$pid = $fault->pid;
	hang($rule, $name);
	foreach my $i (1 .. 20)
	{
		$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
	}
	my ($later) = $fault->record(1);
	ok(wait_until(sub { $sandbox->accepted($later) }), "$name: what comes later passes by");
	poll_status($node, 'postgres',
		{ worker_pid => $pid, pending => qr/^[123]$/, in_flight => qr/^[123]$/ }, "$name: it goes on");

	# The hanging request would stay for ten minutes; its connection does not.
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid, 60000)");
	recovered($name);

	# ------------------------------------------------------------------------
	# What other sessions do
	# ------------------------------------------------------------------------

	# DROP DATABASE and a few others wait until every process has taken note of
	# a barrier; the worker's database has no part in it.
	$name = "DROP DATABASE of another database during a $how";
	hang($rule, $name);
	$node->safe_psql('postgres', 'CREATE DATABASE other');
	$began = time();
	$node->safe_psql('postgres', 'DROP DATABASE other');
	took_ok($began, $name);
	is(worker_pid($node, 'postgres'), $fault->pid, "$name: the same worker");
	$began = time();
	$node->safe_psql('postgres', 'CHECKPOINT; SELECT pg_reload_conf()');
	took_ok($began, "a checkpoint during a $how");
	kill 'TERM', $fault->pid;
	recovered($name);
}

$node->stop;
done_testing();
