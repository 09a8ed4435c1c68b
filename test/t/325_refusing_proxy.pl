# A proxy in front that refuses (407, or another answer to CONNECT) is said to be
# the proxy and not the API: state "misconfigured", nothing dead-lettered, and all
# is delivered once it lets us through.  The same for plain requests.

use OnsideTest;
use OnsideWire;
use OnsideTls;

plan skip_all => 'openssl is not installed' unless OnsideTls::available();

my $tls = OnsideTls->new;
my $ca = $tls->authority('test');
my ($cert, $key) = $tls->certificate($ca);
my %sandbox = (
	https => OnsideSandbox->start(history => 1, tls_cert => $cert, tls_key => $key),
	http => OnsideSandbox->start(history => 1));
my $proxy = OnsideSandbox->proxy(user => 'us', password => 'secret');

foreach my $scheme (sort keys %sandbox)
{
	my $wire = OnsideWire->new($scheme, sandbox => $sandbox{$scheme}, conf => <<"CONF");
onside_attribution.ca_file = '$ca->{cert}'
onside_attribution.proxy = 'http://127.0.0.1:@{[ $proxy->port ]}'
CONF
	my $node = $wire->node;
	my $file;

	# What the proxy says, the state, and what the reason has to name.
	foreach my $case (
		[ 'credentials are missing', undef, 'misconfigured' ],
		[ '407', "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 'misconfigured' ],
		[ '403', "HTTP/1.1 403 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 'misconfigured', 'https' ],
		[ '404', "HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 'misconfigured', 'https' ],
		[ '400', "HTTP/1.1 400 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 'misconfigured', 'https' ],
		[ '503', "HTTP/1.1 503 No\r\nRetry-After: 3600\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 'misconfigured', 'https' ])
	{
		my ($name, $answer, $state, $only) = @$case;

		# To a plain request, these could be the API's.
		next if $only && $only ne $scheme;
		subtest "$scheme, $name" => sub {
			$proxy->answer($answer);
			$file = write_credentials($node, "us:secret\n", 0600, 'proxy_credentials') unless $name =~ /missing/;
			$wire->sql("SELECT onside_attribution.resume()");
			my @ids = $wire->record('good', 20);
			poll_status($node, 'postgres',
				{ state => $state, state_reason => qr/proxy/, last_error => qr/./, pending => 20 }, "$name: it is the proxy");
			is(scalar keys %{ $wire->dead }, 0, "$name: nothing is given up");
			$proxy->answer(undef);
			unless ($file)
			{
				$file = write_credentials($node, "us:secret\n", 0600, 'proxy_credentials');
				$node->append_conf('postgresql.conf', "onside_attribution.proxy_credentials_file = '$file'");
				$node->reload;
			}

			# No resume(): it is noticed by itself.
			$wire->arrive(\@ids, patience(), "$name, and it lets us through: all");
			wait_for_flush($node, 'postgres', "$name: flush");
			poll_status($node, 'postgres', { state => 'idle', pending => 0 }, "$name: idle");
		};
		$file = 1;
	}
	$wire->healed($scheme);
	$wire->clean($scheme, twice_in_flight => 1);
	$node->stop;
}
ok(scalar(grep { /^CONNECT / } $proxy->asked), 'https goes by CONNECT');
ok(scalar(grep { m{^POST http://} } $proxy->asked), 'http does not');

done_testing();
