# OnsideWire: what the tests 310 to 329 have in common.
#
# They ask what the contract says about answers: who arrives and when, who ends
# in dead_letter, and what must never be seen on the wire whatever happened.
#
#   my $wire = OnsideWire->new('main', conf => '...');
#   $wire->behave(on({ event_name => 'bad' }, { status => 500 }));
#   my ($bad) = $wire->record('bad');
#   my @good = $wire->record('good', 200);
#   $wire->arrive(\@good, 20, 'those behind it');
#   $wire->traffic_until(sub { $wire->dead->{$bad} }, 'it is given up');
#   $wire->clean('in the end');

package OnsideWire;

use strict;
use warnings;

use Exporter qw(import);
use JSON::PP ();
use Test::More;
use Time::HiRes ();

use OnsideSandbox;
use OnsideTest;

our @EXPORT = qw(on sick);

*on = \&OnsideSandbox::on;
*sick = \&OnsideSandbox::sick;

# OnsideWire->new($name, [sandbox => $sandbox], [conf => $lines])
# A server with the extension in "postgres" and a sandbox that notes histories.
sub new
{
	my ($class, $name, %options) = @_;
	my $sandbox = $options{sandbox} // OnsideSandbox->start(history => 1);
	my $node = onside_node(
		$name,
		sandbox => $sandbox,
		conf => $options{conf});
	create_extension($node, 'postgres');
	return bless { node => $node, sandbox => $sandbox, good => [], made => 0,
		log => log_position($node) }, $class;
}

sub node { return $_[0]{node} }
sub sandbox { return $_[0]{sandbox} }
sub behave { my ($self, @rules) = @_; return $self->{sandbox}->behave(@rules) }
sub sql { return $_[0]{node}->safe_psql('postgres', $_[1]) }
sub said { return OnsideTest::status($_[0]{node}, 'postgres') }

# record($event_name, [$n, $datetime]), one_by_one($event_name, $n)
# Records events in one transaction, or each in its own; returns their ids.  Those
# called "good" are remembered, for clean.
sub record
{
	my ($self, $name, $n, $datetime) = @_;
	$n //= 1;
	$datetime //= 'now()';
	my $from = $self->{made} + 1;
	my $to = $self->{made} += $n;
	my @ids = split /\n/, $self->sql(<<SQL);
SELECT onside_attribution.track('$name', gen_random_uuid(), jsonb_build_object('i', i), $datetime)
FROM generate_series($from, $to) i
SQL
	push @{ $self->{good} }, @ids if $name eq 'good';
	return @ids;
}

sub one_by_one
{
	my ($self, $name, $n) = @_;
	my @ids = split /\n/, $self->sql("SELECT onside_attribution.track('$name', gen_random_uuid(), '{}');\n" x $n);
	push @{ $self->{good} }, @ids if $name eq 'good';
	return @ids;
}

# arrive(\@ids, $seconds, $what)
# Tests that these are accepted within so many seconds.
sub arrive
{
	my ($self, $ids, $seconds, $what) = @_;
	my $began = Time::HiRes::time();
	my $arrived;
	my $ok = wait_until(sub { ($arrived = $self->{sandbox}->accepted(@$ids)) == @$ids }, $seconds);
	ok($ok, "$what: arrived within $seconds s");
	$ok
	  ? note(sprintf '%s: after %.1f s', $what, Time::HiRes::time() - $began)
	  : diag("$arrived of " . @$ids . ' arrived; status: ' . JSON::PP->new->canonical->encode($self->said));
	return $ok;
}

# traffic_until($condition, $what, [$seconds])
# Records a good event every 0.3 s until the condition is true, and tests that it
# becomes so: what is accepted is what failures are compared with.
sub traffic_until
{
	my ($self, $condition, $what, $seconds) = @_;
	my $began = Time::HiRes::time();
	my $ok = wait_until(sub { $self->record('good'); $condition->() }, $seconds, 0.3);
	ok($ok, $what);
	$ok
	  ? note(sprintf '%s: after %.1f s', $what, Time::HiRes::time() - $began)
	  : diag('status: ' . JSON::PP->new->canonical->encode($self->said));
	return $ok;
}

# dead, aside
# { event_id => its row } of dead_letter and aside.
sub dead { return $_[0]->_rows('dead_letter') }
sub aside { return $_[0]->_rows('aside') }

sub _rows
{
	my ($self, $table) = @_;
	return JSON::PP::decode_json($self->sql(<<SQL));
SELECT coalesce(jsonb_object_agg(event_id, to_jsonb(t)), '{}') FROM onside_attribution.$table t
SQL
}

# healed($what)
# Tests that within two minutes all that is called good has arrived and none of it
# is in dead_letter, without anybody's help.
sub healed
{
	my ($self, $what) = @_;
	my ($arrived, $dead);
	my %good = map { $_ => 1 } @{ $self->{good} };
	my $began = Time::HiRes::time();
	my $ok = wait_until(
		sub {
			$arrived = $self->{sandbox}->accepted(keys %good);
			$dead = eval { grep { $good{$_} } keys %{ $self->dead } } // return 0;
			return $arrived == keys(%good) && $dead == 0;
		}, patience(), 0.2);
	ok($ok, "$what: what is good has arrived, and none of it is dead");
	$ok
	  ? note(sprintf '%s: after %.1f s', $what, Time::HiRes::time() - $began)
	  : diag("$arrived of " . keys(%good) . " arrived, $dead dead; status: " . eval { JSON::PP->new->canonical->encode($self->said) });
	return $ok;
}

# clean($what, [%allowed])
# What never happens, whatever the API does: a crash, an event twice in flight or
# in one request, other bytes under the same event_id, a request out of bounds.
# crashes says that the test itself has ended processes by force.
sub clean
{
	my ($self, $what, %allowed) = @_;
	my $report = $self->{sandbox}->report;
	unlike(log_since($self->{node}, $self->{log}), qr/was terminated by signal|PANIC:|TRAP:/, "$what: nothing has crashed")
	  unless $allowed{crashes};
	is($report->{mismatched}, 0, "$what: an event's bytes are always the same");
	is($report->{twice_in_request}, 0, "$what: no event is twice in a request");
	is($report->{twice_in_flight}, 0, "$what: no event is in flight twice") unless $allowed{twice_in_flight};
	cmp_ok($report->{max_body}, '<', 1_000_000, "$what: no body is too large");
	cmp_ok($report->{max_events}, '<=', 1000, "$what: no batch is too large");
	return;
}

1;
