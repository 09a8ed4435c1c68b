# OnsideFault: what has to hold through and after every fault below HTTP.
#
# A case makes the network or the peer misbehave, records events meanwhile,
# looks at the view "status" while it lasts, ends it, and then asks the same
# questions each time: did everything that was committed arrive, and nothing
# that was rolled back; did what came twice come with the same bytes; is
# dead_letter as empty as it should be; is it still the same worker; and is
# that idle again.
#
#   my $fault = OnsideFault->new(node => $node, sandbox => $sandbox);
#   $fault->survived(
#       'a reset',
#       begin => sub { $sandbox->behave({ fault => 'reset_after_upload' }) },
#       while => { state => 'backing_off', last_error => qr/reset/ },
#       end => sub { $sandbox->behave });

package OnsideFault;

use strict;
use warnings;

use OnsideTest;
use Test::More;

# OnsideFault->new(node => $node, sandbox => $sandbox, [database => $name])
# The sandbox can be exchanged with sandbox($other); what arrived at either
# counts.
sub new
{
	my ($class, %options) = @_;
	my $self = bless {
		database => 'postgres',
		sandboxes => [ delete $options{sandbox} ],
		recorded => [],
		dead_ids => [],
		%options
	}, $class;

	$self->{pid} = poll_worker($self->{node}, $self->{database});
	return $self;
}

sub pid { return $_[0]{pid} }

sub sandbox
{
	my ($self, $sandbox) = @_;
	push @{ $self->{sandboxes} }, $sandbox if $sandbox;
	return $self->{sandboxes}[-1];
}

# configure(%settings)
# Writes settings of onside_attribution into postgresql.conf and reloads: the
# worker goes on as the same process.
sub configure
{
	my ($self, %settings) = @_;
	my $node = $self->{node};

	foreach my $name (sort keys %settings)
	{
		$node->append_conf('postgresql.conf',
			"onside_attribution.$name = '$settings{$name}'");
	}

	# A new session's settings are the postmaster's.  It has signalled the worker
	# by then, which is before anything that such a session has it do.
	my $loaded = $node->safe_psql('postgres', 'SELECT pg_conf_load_time()');
	$node->reload;
	wait_until(
		sub { $node->safe_psql('postgres', 'SELECT pg_conf_load_time()') ne $loaded });
	return;
}

# record([$count, $payload])
# Commits so many events (3), each in a transaction of its own, and rolls another
# one back.  Returns the event_ids.
sub record
{
	my ($self, $count, $payload) = @_;
	$count //= 3;
	$payload //= '{"currency": "USD", "amount": "9.99"}';
	my $call = "onside_attribution.track('%s', '$OnsideTest::installation', %s)";
	my $committed = sprintf $call, 'purchase_completed', "\$json\$$payload\$json\$";
	my $rolled_back = sprintf $call, 'rolled_back', q('{}');

	my @ids = split /\n/,
	  $self->{node}->safe_psql($self->{database},
		"SELECT $committed;\n" x $count
		  . "BEGIN; DO \$do\$ BEGIN PERFORM $rolled_back; END \$do\$; ROLLBACK;");
	die 'not as many events as wanted' if @ids != $count;
	push @{ $self->{recorded} }, @ids;
	return @ids;
}

# survived($name, %case)
# One case, as a subtest.  All keys are optional:
#
#   begin    starts the fault
#   events   how many events are recorded while it lasts (3)
#   payload  of these
#   while    what "status" has to say while it lasts, as for poll_status
#   during   called after that has been seen
#   end      ends the fault
#   again    true: events have to arrive more than once because of it
sub survived
{
	my ($self, $name, %case) = @_;
	my @ids;
	subtest $name => sub {
		my $again = $self->_duplicates;
		$case{begin}->() if $case{begin};
		@ids = $self->record($case{events}, $case{payload});
		poll_status($self->{node}, $self->{database}, $case{while}, 'the state while it lasts')
		  if $case{while};
		$case{during}->(@ids) if $case{during};
		$case{end}->() if $case{end};
		$self->settled($name);
		cmp_ok($self->_duplicates, '>', $again, 'events came again') if $case{again};
	};
	return @ids;
}

# settled($name)
# What has to hold once the fault is over.  It waits for the delivery first.
sub settled
{
	my ($self, $name) = @_;
	my ($node, $database) = @{$self}{qw(node database)};

	wait_for_flush($node, $database, "$name: all is settled");
	poll_status(
		$node, $database,
		{
			state => 'idle',
			state_reason => undef,
			pending => 0,
			in_flight => 0,
			next_attempt_at => undef,
			oldest_pending_age => undef
		},
		"$name: idle afterwards");

	my %dead = map { $_ => 1 } split /\n/,
	  $node->safe_psql($database,
		'SELECT event_id FROM onside_attribution.dead_letter');
	# What was refused may have been accepted meanwhile, by its second chance.
	my %belongs = map { $_ => 1 } @{ $self->{dead_ids} };
	is_deeply([ grep { !$belongs{$_} } sort keys %dead ], [],
		"$name: nothing is in dead_letter that does not belong there");
	arrived_ok($self->{sandboxes}, [ grep { !$dead{$_} } @{ $self->{recorded} } ],
		"$name: what was committed arrived");
	is(worker_pid($node, $database), $self->{pid}, "$name: the same worker");
	return;
}

# expect_dead(@event_ids)
# These belong into dead_letter.
sub expect_dead
{
	my ($self, @ids) = @_;
	push @{ $self->{dead_ids} }, @ids;
	return;
}

sub _duplicates
{
	my ($self) = @_;
	my $duplicates = 0;
	$duplicates += $_->report->{duplicates} foreach @{ $self->{sandboxes} };
	return $duplicates;
}

1;
