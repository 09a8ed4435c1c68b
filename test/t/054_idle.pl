# A worker with nothing to send writes nothing: however many transactions others
# commit, and however often it is woken or looks by itself, the row of
# delivery_cursor stays as it is.  That row still covers all that was delivered:
# after a crash nothing is sent again, and what is recorded next arrives.

use OnsideTest;

my ($node, $sandbox) = sending_node();

sub sql { return $node->safe_psql('postgres', $_[0]) }

# Which version of the row it is.
sub row { return sql('SELECT xmin, ctid, settled FROM onside_attribution.delivery_cursor') }

# The row, when all that was recorded is settled and written.  Two flushes: the
# worker may look after the segments once more after the first.
sub row_at_rest
{
	my $row;
	wait_until(
		sub {
			wait_for_flush($node, 'postgres', 'all is delivered');
			my $before = $row // '';
			return ($row = row()) eq $before;
		}, patience(), 1.5)
	  or die 'the row never comes to rest';
	return $row;
}

track($node, 'postgres') for 1 .. 3;
$sandbox->wait_distinct(3);
my $row = row_at_rest();

subtest 'woken' => sub {
	foreach (1 .. 10)
	{
		sql('SELECT pg_current_xact_id()');
		wait_for_flush($node, 'postgres', 'flush');
	}
	sql('SELECT onside_attribution.resume()');
	$node->reload;
	poll_status($node, 'postgres', { state => 'idle' }, 'idle');
	is(row(), $row, 'nothing is written when the worker is woken');
};

# Nobody is woken by a file that changes, so the worker sees it when it looks.
subtest 'by itself' => sub {
	sql('SELECT pg_current_xact_id()');
	write_credentials($node, "no credentials\n");
	poll_status($node, 'postgres', { state => 'misconfigured' }, 'the worker has looked');
	is(row(), $row, 'nothing is written when the worker looks by itself');
	write_credentials($node, "sandbox:sandbox\n");
};

subtest 'after a crash' => sub {
	$node->stop('immediate');
	$node->start;
	track($node, 'postgres');
	$sandbox->wait_distinct(4);
	wait_for_flush($node, 'postgres', 'the next event is delivered');
	nothing_came_twice($sandbox, 'nothing is sent again');
	isnt(row(), $row, 'the row is past the new event');
};

done_testing();
