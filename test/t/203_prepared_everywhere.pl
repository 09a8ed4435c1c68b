# Many prepared transactions with events, made by several sessions, committed
# and rolled back out of order by others: before and after a crash of the server
# and before and after a failover.  The events of those that were committed
# arrive, those of the others never; while one is open, neither the cursor nor
# the emptying of segments passes it by.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use OnsideSandbox;
use OnsideTest;
use OnsideTopology;

my $n = 48;
my $sandbox = OnsideSandbox->start;

# Small segments, so that what is prepared early is in one that others leave.
my $first = onside_node('first', sandbox => $sandbox,
	init => { allows_streaming => 1 },
	conf => <<"CONF");
max_prepared_transactions = @{[ $n + 1 ]}
onside_attribution.segment_size = '1MB'
CONF
create_extension($first, 'postgres');
record($first, 'postgres', 1);
my $second = make_standby($first, 'second');

my $note = q{INSERT INTO noted SELECT onside_attribution.track('prepared', gen_random_uuid(), '{}'), 'prepared'};

# Several sessions, in turn; each transaction differs.
my @sessions = map { $first->background_psql('postgres') } 1 .. 4;
foreach my $i (1 .. $n)
{
	my $session = $sessions[ $i % @sessions ];
	my $body = join('; ', ($note) x (1 + $i % 3));
	$body .= "; SAVEPOINT a; $note; ROLLBACK TO a" if $i % 4 == 0;
	$body .= "; SAVEPOINT b; $note; RELEASE b" if $i % 5 == 0;
	$session->query_safe("BEGIN; $body; PREPARE TRANSACTION 'p$i'");

	# The log goes on in between, also past a segment's end.
	$first->safe_psql('postgres', <<'SQL') if $i % 8 == 0;
INSERT INTO noted
SELECT onside_attribution.track('between', gen_random_uuid(), jsonb_build_object('x', repeat('y', 1500))), 'between'
FROM generate_series(1, 300)
SQL
}
$_->quit foreach @sessions;

sub prepared
{
	my ($node) = @_;
	return $node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts');
}

# Ends every third of those that are left, from several sessions at once and
# out of order: some are committed, the others rolled back.
sub end_some
{
	my ($node, $every, $what) = @_;
	my @gids = split /\n/, $node->safe_psql('postgres',
		"SELECT gid FROM pg_prepared_xacts ORDER BY md5(gid)");
	@gids = @gids[ grep { $_ % $every == 0 } 0 .. $#gids ];
	my @ending = map { $node->background_psql('postgres') } 1 .. 3;
	foreach my $i (0 .. $#gids)
	{
		my $action = $i % 3 == 2 ? 'ROLLBACK' : 'COMMIT';
		$ending[ $i % @ending ]->query_until(qr/^/, "$action PREPARED '$gids[$i]';\n");
	}
	$_->quit foreach @ending;
	wait_for_flush($node, 'postgres', "$what: sent");
	arrived_ok($sandbox, recorded($node, 'postgres'),
		"$what: those that were committed arrived, others did not");
	return;
}

is(prepared($first), $n, "$n transactions are prepared");
wait_for_flush($first, 'postgres', 'flush waits for none of them');
arrived_ok($sandbox, recorded($first, 'postgres'), 'nothing of them has arrived');
poll_status($first, 'postgres', { state_reason => qr/segment of the outbox is in use/ },
	'they keep a segment from being emptied, and status says so');
end_some($first, 3, 'first');
is(prepared($first), 32, 'others are left');

crash($first);
$first->start;
poll_worker($first, 'postgres');
is(prepared($first), 32, 'crash: they are still there');
record($first, 'postgres', 5);
end_some($first, 3, 'after a crash');
my $left = prepared($first);

wait_for_standby($first, $second);
crash($first);
$second->promote;
poll_worker($second, 'postgres');
is(prepared($second), $left, "failover: $left are still there");
record($second, 'postgres', 5);
end_some($second, 2, 'after a failover');
crash($second);
$second->start;
poll_worker($second, 'postgres');
end_some($second, 1, 'after another crash, the rest');
is(prepared($second), 0, 'none is left');

# With nothing open, all that was delivered can go.
poll_status($second, 'postgres', { pending => 0, state => 'idle', state_reason => undef },
	'nothing is pending, or in the way of emptying');

$second->stop;
$sandbox->stop;
done_testing();
