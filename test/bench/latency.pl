#!/usr/bin/perl

# latency.pl: from commit to arrival, one purchase at a time on an idle server.
#
# A benchmark and no test: it prints figures and judges nothing.  Each purchase
# is a transaction of its own, recorded with track(), with a pause after it.
# "Commit" is the moment at which the client had its answer; "arrival" is the
# moment at which the sandbox API had the whole request.  The two are processes
# of one machine, so their clocks are one.  An arrival before the client's
# answer counts as negative: the worker is woken while the answer travels.
#
# Run by `make bench-latency`.  ONSIDE_TEST_PURCHASES and ONSIDE_TEST_PAUSE (in
# seconds) in the environment say how many there are, and how far apart.

use strict;
use warnings;

# The modules for tests send what we print to a log.
my $out;
BEGIN { open($out, '>&', \*STDOUT) or die "could not dup stdout: $!" }

use Test::More;
use Time::HiRes ();

use OnsideSandbox;
use OnsideTest;
use PostgreSQL::Test::Utils;

my $purchases = $ENV{ONSIDE_TEST_PURCHASES} // 300;
my $pause     = $ENV{ONSIDE_TEST_PAUSE}     // 0.03;

my $sandbox = OnsideSandbox->start;
my $node    = onside_node('latency', sandbox => $sandbox);
create_extension($node, 'postgres');
track($node, 'postgres', 'warm_up');
wait_for_flush($node, 'postgres');

# One session; pgbench would not tell when a transaction ended.
my $psql = $node->background_psql('postgres', on_error_stop => 1);
my %committed;
foreach (1 .. $purchases)
{
	my $id = $psql->query_safe(
		"SELECT onside_attribution.track_purchase(gen_random_uuid(), 9.99, 'USD')");

	$committed{$id} = Time::HiRes::time();
	Time::HiRes::sleep($pause);
}
$psql->quit;
wait_for_flush($node, 'postgres');

my $arrivals = $sandbox->arrivals;
my $recorded = $node->safe_psql('postgres',
	'SELECT event_id, extract(epoch FROM recorded_at) FROM onside_attribution.outbox');
my %recorded = map { split /\|/ } split /\n/, $recorded;
my (@after_commit, @after_recording);
foreach my $id (keys %committed)
{
	push @after_commit,    1000 * ($arrivals->{$id}[1] - $committed{$id});
	push @after_recording, 1000 * ($arrivals->{$id}[1] - $recorded{$id});
}

report('from the client\'s commit to arrival', @after_commit);
report('from the call of track() to arrival, commit included',
	@after_recording);

$node->stop;
$sandbox->stop;
done_testing();

sub report
{
	my ($what, @values) = @_;
	my @sorted = sort { $a <=> $b } @values;

	printf $out "%s, %d purchases: p50 %.2f ms, p99 %.2f ms, max %.2f ms\n", $what,
	  scalar @sorted, $sorted[ @sorted * 0.5 ], $sorted[ @sorted * 0.99 ],
	  $sorted[-1];
}
