# What a server says before it has read the request is seen as what it is: a
# 413, 401 or 429 that comes while the body is still on its way, over TLS and
# without, whether the server then reads on, closes, resets or does nothing.
# HTTP/2, over which libcurl loses such an answer, is not spoken even where it
# is offered.

use JSON::PP ();
use OnsideTest;
use OnsideTls;
use OnsidePeer;

plan skip_all => 'openssl is not installed' unless OnsideTls::available();

my $tls = OnsideTls->new;
my $ca = $tls->authority('test');
my ($cert, $key) = $tls->certificate($ca);
my %wire = (
	https => OnsidePeer->start(tls_cert => $cert, tls_key => $key),
	http => OnsidePeer->start);

my $node = onside_node('main', start => 0,
	conf => "onside_attribution.ca_file = '$ca->{cert}'\n"
	  . "onside_attribution.retry_initial_delay = '10ms'\n"
	  . "onside_attribution.retry_max_delay = '20ms'\n");
$node->append_conf('postgresql.conf', "onside_attribution.endpoint = '"
	  . $wire{https}->url . "'\nonside_attribution.credentials_file = '"
	  . write_credentials($node, "u:p\n") . "'\n");
$node->start;
create_extension($node, 'postgres');

# What so many requests ended with, by the view "stats", which follows.
sub outcomes
{
	my ($requests) = @_;
	my %seen;
	wait_until(
		sub {
			my ($row) = @{ JSON::PP::decode_json($node->safe_psql('postgres',
					'SELECT json_agg(s) FROM onside_attribution.stats s')) };
			%seen = map { $_ => $row->{$_} } grep { $row->{$_} }
			  grep { /^(responses_|timeouts|connection_failures|malformed)/ } keys %$row;
			my $n = 0;
			$n += $_ foreach values %seen;
			return $n >= $requests;
		});
	return \%seen;
}

# 900 kB, which is more than the buffers of the sockets hold here.
my $filler = '{"filler": "' . 'x' x 300_000 . '"}';

sub record_large
{
	$node->safe_psql('postgres', <<SQL);
SELECT onside_attribution.track('large', '$OnsideTest::installation', '$filler')
FROM generate_series(1, 3)
SQL
	return;
}

my %column = (413 => 'responses_413', 401 => 'responses_401_403', 429 => 'responses_429');

foreach my $scheme (qw(https http))
{
	my $wire = $wire{$scheme};
	my %agreed;
	$node->append_conf('postgresql.conf', "onside_attribution.endpoint = '" . $wire->url . "'");
	$node->reload;
	$node->safe_psql('postgres', 'SELECT onside_attribution.flush()');

	foreach my $then (qw(linger close reset keep hang))
	{
		foreach my $case ([ 'head', 413 ], [ 'part', 413 ], [ 'head', 401 ], [ 'part', 429 ])
		{
			my ($when, $status) = @$case;
			my $name = "$scheme: $status after the $when, then $then";
			my $body = '{"error": "early"}';
			my $answer = "HTTP/1.1 $status Early\r\nContent-Length: " . length($body)
			  . ($then eq 'keep' ? '' : "\r\nConnection: close") . "\r\n\r\n$body";

			# A reset, which the end of a connection with unread bytes is, can
			# overtake the answer while a piece is being sent, though seldom.
			my $may_be_lost = $then eq 'close' || $then eq 'reset';
			my $seen;
			foreach my $try (1 .. ($may_be_lost ? 5 : 1))
			{
				# resume() forgets what sizes were too large, or all after the
				# first 413 would be too small to be answered early.  It takes
				# a new connection, which is not what this is about.
				$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
				track($node, 'postgres');
				$node->safe_psql('postgres', 'SELECT onside_attribution.flush()');
				$node->safe_psql('postgres', 'SELECT onside_attribution.stats_reset()');
				$wire->behave({ answer => $answer, when => $when, then => $then, times => 1 });
				record_large();
				wait_for_flush($node, 'postgres', "$name: all is delivered in the end");
				$seen = outcomes(scalar @{ $wire->requests });
				$agreed{ $_->{alpn} } = 1 foreach @{ $wire->noted('tls') };
				last if $seen->{ $column{$status} };
				note("$name: lost: " . join(" ", %$seen));
			}
			cmp_ok(delete $seen->{responses_204}, '>', 0, "$name: after other answers");
			is_deeply($seen, { $column{$status} => 1 }, "$name: it is seen as $status");
		}
	}
	is(join(' ', keys %agreed), $scheme eq 'https' ? 'http/1.1' : '',
		"$scheme: HTTP/1.1 is what was agreed on");
}

is($node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.dead_letter'),
	0, 'and nothing is in dead_letter');

$node->stop;
done_testing();
