# A copy of the server starts to live beside its original: a standby that is
# promoted while its primary goes on, a copy of the data directory, one with
# another system identifier (as pg_createsubscriber makes it), one whose
# transaction ids have gone on.  Whatever the copy believes of the cursor that it
# has got, nothing that is pending is lost, in none of them, and flush() there is
# true only when it has been sent.  The original sends nothing twice because of
# its copies.

use PostgreSQL::Test::RecursiveCopy;
use OnsideTest;
use OnsideTopology;

my $sandbox = OnsideSandbox->start(keep_events => 0);
my $original = onside_node('original', sandbox => $sandbox,
	init => { allows_streaming => 1 },
	conf => <<'CONF');
onside_attribution.batch_max_events = 10
CONF
create_extension($original, 'postgres');
my $standby = make_standby($original, 'standby');

# Delivered events, pending ones, a transaction that is prepared and will be
# committed in each of them.
my $prepared = 0;

sub fill
{
	my ($what) = @_;
	record($original, 'postgres', 20, 'delivered');
	wait_for_flush($original, 'postgres');
	$sandbox->behave({ status => 503 });
	record($original, 'postgres', 20, $what);
	$original->safe_psql('postgres', <<SQL);
BEGIN;
INSERT INTO noted SELECT onside_attribution.track('$what', gen_random_uuid(), '{}'), '$what';
PREPARE TRANSACTION '$what';
SQL
	record($original, 'postgres', 20, $what);
	poll_status($original, 'postgres', { state => 'backing_off', pending => 40 }, "$what: 40 events are pending");
	return;
}

# The copy has an API of its own, which is away at first.
sub prepare_copy
{
	my ($copy) = @_;
	my $there = OnsideSandbox->start(keep_events => 0);
	$there->behave({ status => 503 });
	$copy->append_conf('postgresql.conf', "onside_attribution.endpoint = '" . $there->url . "'");
	return $there;
}

# All that was pending arrives from there, and what is recorded later.
sub copy_ok
{
	my ($copy, $there, $what, $may_repeat) = @_;

	poll_worker($copy, 'postgres');
	is($copy->safe_psql('postgres', "SELECT onside_attribution.flush('200 ms')"), 'f', "$what: nothing is settled yet");
	is( $copy->safe_psql('postgres', qq{SELECT count(DISTINCT event_id) FROM onside_attribution.pending WHERE event_name = '$what'}),
		40, "$what: the copy has what is pending");
	record($copy, 'postgres', 5, $what);
	$copy->safe_psql('postgres', "COMMIT PREPARED '$what'");
	poll_status($copy, 'postgres', { pending => sub { $_[0] >= 46 } }, "$what: status counts it");
	$there->behave();
	wait_for_flush($copy, 'postgres', "$what: the copy sends");
	my $events = $there->events;
	my @ids = @{ recorded($copy, 'postgres', $what) };
	is(scalar @ids, 46, "$what: with what was prepared");
	is(scalar(grep { !$events->{$_} } @ids), 0, "$what: all of it arrives from the copy");
	my %known = map { $_ => 1 } @{ recorded($copy, 'postgres') };
	is(scalar(grep { !$known{$_} } keys %$events), 0, "$what: and nothing that was never committed");
	$may_repeat
	  ? note(scalar(keys %$events) . ' events came from it')
	  : is(scalar keys %$events, 46, "$what: and nothing that the original has delivered before");
	$copy->restart;
	poll_worker($copy, 'postgres');
	record($copy, 'postgres', 5, $what);
	wait_for_flush($copy, 'postgres', "$what: it goes on");
	is(scalar(grep { $there->events->{$_} > 1 } keys %$events), 0, "$what: with nothing sent twice by itself");
	$copy->stop;
	$there->stop;

	# The original knows nothing of it.
	$original->start if !defined $original->{_pid};
	poll_worker($original, 'postgres');
	$original->safe_psql('postgres', "COMMIT PREPARED '$what'");
	record($original, 'postgres', 5, $what);
	$sandbox->behave();
	wait_for_flush($original, 'postgres', "$what: the original sends");
	arrived_ok($sandbox, recorded($original, 'postgres'), "$what: all of it arrives from the original");
	nothing_came_twice($sandbox, "$what: once");
	return;
}

# A copy of the stopped original's data directory.
sub clone
{
	my ($name) = @_;
	my $clone = PostgreSQL::Test::Cluster->new($name);
	PostgreSQL::Test::RecursiveCopy::copypath($original->data_dir, $clone->data_dir);
	chmod(0700, $clone->data_dir) or die "could not chmod: $!";
	$clone->append_conf('postgresql.conf', 'port = ' . $clone->port);
	$clone->append_conf('postgresql.conf', "unix_socket_directories = '" . $clone->host . "'");
	return $clone;
}

# ---------------------------------------------------------------------------
# Another system identifier
# ---------------------------------------------------------------------------

# CRC-32C, which PostgreSQL's control file ends in.
sub crc32c
{
	my ($bytes) = @_;
	my $crc = 0xFFFFFFFF;
	foreach my $byte (unpack 'C*', $bytes)
	{
		$crc ^= $byte;
		$crc = ($crc >> 1) ^ ($crc & 1 ? 0x82F63B78 : 0) for 1 .. 8;
	}
	return $crc ^ 0xFFFFFFFF;
}

# What pg_createsubscriber (17) does to a standby that it takes over.
sub change_identifier
{
	my ($node) = @_;
	my $file = $node->data_dir . '/global/pg_control';
	my $control = slurp_file($file);
	my ($end) = grep { crc32c(substr $control, 0, $_) == unpack 'L', substr $control, $_, 4 } map { 4 * $_ } 50 .. 127;
	die 'pg_control has no checksum' unless $end;
	substr($control, 0, 8) = pack 'Q', 1 + unpack 'Q', substr $control, 0, 8;
	substr($control, $end, 4) = pack 'L', crc32c(substr $control, 0, $end);
	open(my $fh, '>', $file) or die "could not open $file: $!";
	binmode $fh;
	print $fh $control;
	close($fh) or die "could not write $file: $!";
	$node->command_ok([ 'pg_resetwal', $node->data_dir ], 'pg_resetwal');
	return;
}

sub identifier
{
	my ($node) = @_;
	return $node->safe_psql('postgres', 'SELECT system_identifier FROM pg_control_system()');
}

# ---------------------------------------------------------------------------
# The copies
# ---------------------------------------------------------------------------

fill('promoted');
wait_for_standby($original, $standby);
my $there = prepare_copy($standby);
$standby->reload;
$standby->promote;
copy_ok($standby, $there, 'promoted');

foreach my $case (
	[ 'cloned', sub { } ],
	[ 'identified', \&change_identifier, 1 ],
	[ 'advanced', sub { advance_xids($_[0], 3_000_000) }, 1 ],
	[ 'crashed', sub { } ])
{
	my ($what, $change, $may_repeat) = @$case;
	fill($what);
	$original->stop($what eq 'crashed' ? 'immediate' : 'fast');
	my $clone = clone($what);
	my $there = prepare_copy($clone);
	$change->($clone);
	$original->start;
	$clone->start;
	isnt(identifier($clone), identifier($original), "$what: another system") if $what eq 'identified';
	copy_ok($clone, $there, $what, $may_repeat);
}

$original->stop;
$sandbox->stop;
done_testing();
