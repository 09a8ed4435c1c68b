# An answer that the API does not give comes from somebody else: state
# "misconfigured", slow probes, nothing lost, nothing dead-lettered.  A redirect
# is never followed: whatever an answer names, nobody but the endpoint is
# contacted, and nobody but the endpoint is shown the credentials.

use OnsideTest;
use OnsideFault;
use OnsideTls;

my $sandbox = OnsideSandbox->start;
my $other = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox);
create_extension($node, 'postgres');
my $fault = OnsideFault->new(node => $node, sandbox => $sandbox);

# One rule, and what has to hold while it acts and afterwards.
sub misconfigured_ok
{
	my ($case, $rule, $error) = @_;
	my $at = $sandbox;
	$fault->survived(
		$case,
		begin => sub { $at->behave($rule) },
		while => {
			state => 'misconfigured',

			state_reason => qr/endpoint/,
			last_error => $error,
			pending => 3,
			next_attempt_at => qr/./
		},
		during => sub {
			ok(wait_until(sub { $sandbox->used >= 4 }), "$case: it is tried again");
		},
		end => sub { $sandbox->behave });
	return;
}

# ---------------------------------------------------------------------------
# What is neither yes nor no
# ---------------------------------------------------------------------------

foreach my $status (300, 304, 402, 404, 405, 407, 409, 410, 415, 418, 421, 422, 431, 451, 499)
{
	misconfigured_ok($status, { status => $status, body => 'who are you?' }, qr/^HTTP $status/);
}

# The same by a server that means it.
foreach (
	[ 'another path', 'attribution-api/v2/events', 404 ],
	[ 'another case', 'Attribution-API/v1/events', 404 ])
{
	my ($case, $path, $status) = @$_;
	$fault->survived(
		$case,
		begin => sub {
			$fault->configure(endpoint => 'http://127.0.0.1:' . $sandbox->port . "/$path");
		},
		while => { state => 'misconfigured', state_reason => qr/endpoint/, last_error => qr/^HTTP $status/ },
		end => sub { $fault->configure(endpoint => $sandbox->url) });
}

# ---------------------------------------------------------------------------
# Redirects
# ---------------------------------------------------------------------------

my $elsewhere = '127.0.0.1:' . $other->port . '/attribution-api/v1/events';
foreach my $status (301, 302, 303, 307, 308)
{
	misconfigured_ok(
		"$status to another server",
		{ fault => 'redirect', status => $status, location => "http://$elsewhere" },
		qr/^HTTP $status/);
}
foreach my $location (
	"//$elsewhere",
	"http://sandbox:sandbox\@$elsewhere",
	'http://localhost:' . $other->port . '/',
	'/attribution-api/v1/events',
	'',
	'file:///etc/passwd',
	"http://$elsewhere " . 'x' x 4000)
{
	misconfigured_ok(
		'302 to ' . (length $location > 100 ? 'somewhere long' : "\"$location\""),
		{ fault => 'redirect', location => $location },
		qr/^HTTP 302/);
}

# Other ways of naming somebody.
misconfigured_ok(
	'404 with every header that leads elsewhere',
	{   status => 404,
		headers => {
			'Alt-Svc' => 'http/1.1="127.0.0.1:' . $other->port . '"; ma=3600, h2="127.0.0.1:' . $other->port . '"',
			'Content-Location' => "http://$elsewhere",
			Link => "<http://$elsewhere>; rel=preload",
			Location => "http://$elsewhere",
			Refresh => "0; url=http://$elsewhere",
			'Set-Cookie' => 'a=b'
		}
	},
	qr/^HTTP 404/);
misconfigured_ok(
	'407 with a proxy',
	{ status => 407, headers => { 'Proxy-Authenticate' => 'Basic realm="x"', Location => "http://$elsewhere" } },
	qr/^HTTP 407/);

my $report = $other->report;
is($report->{connections}, 0, 'the other server was never contacted');
is($report->{requests}, 0, 'and so it has never seen the credentials');
my %paths = map { $_->{path} => 1 } @{ $sandbox->requests };
is_deeply(
	[ sort keys %paths ],
	[ qw(/Attribution-API/v1/events /attribution-api/v1/events /attribution-api/v2/events) ],
	'the endpoint was asked for nothing else');
is_deeply(
	[ grep { $_->{method} ne 'POST' } @{ $sandbox->requests } ],
	[], 'and by no other method');
is($sandbox->report->{duplicates}, 0, 'nothing came twice');

# ---------------------------------------------------------------------------
# From https to http
# ---------------------------------------------------------------------------

SKIP:
{
	skip 'openssl is not installed' unless OnsideTls::available();
	my $tls = OnsideTls->new;
	my $ca = $tls->authority('good');
	my ($cert, $key) = $tls->certificate($ca);

	$sandbox = $fault->sandbox(OnsideSandbox->start(tls_cert => $cert, tls_key => $key));
	$fault->configure(ca_file => $ca->{cert}, endpoint => $sandbox->url);
	$fault->survived('https');
	foreach my $status (301, 302, 303, 307, 308)
	{
		misconfigured_ok(
			"$status from https to http",
			{ fault => 'redirect', status => $status, location => "http://$elsewhere" },
			qr/^HTTP $status/);
	}
	is($other->report->{connections}, 0, 'from https to http: it was never contacted');
}

$node->stop;
done_testing();
