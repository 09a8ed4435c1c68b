# Events and credentials go over TLS only to whom ca_file vouches for, by the
# name in the endpoint and at the present time.  Anybody else gets not even a
# request; events wait until that is repaired.  Without TLS there is loopback
# alone.

use File::Copy qw(copy);
use OnsideTest;
use OnsideFault;
use OnsideTls;

plan skip_all => 'openssl is not installed' unless OnsideTls::available();

my $tls = OnsideTls->new;
my $ca = $tls->authority('trusted');
my $other_ca = $tls->authority('other');
my @good = $tls->certificate($ca);
my @expired = $tls->certificate($ca, expired => 1);
my @wrong_host = $tls->certificate($ca, host => 'elsewhere.test');
my @unknown_ca = $tls->certificate($other_ca);

my $sandbox = OnsideSandbox->start(tls_cert => $good[0], tls_key => $good[1]);
my $path = '/attribution-api/v1/events';
my $localhost = 'https://localhost:' . $sandbox->port . $path;
my $ca_file = PostgreSQL::Test::Utils::tempdir() . '/ca.crt';
copy($ca->{cert}, $ca_file) or die "copy: $!";

my $node = onside_node('main', sandbox => $sandbox,
	conf => "onside_attribution.endpoint = '$localhost'\n"
	  . "onside_attribution.ca_file = '$ca_file'\n");
create_extension($node, 'postgres');
my $fault = OnsideFault->new(node => $node, sandbox => $sandbox);

my %not_trusted = (
	state => 'misconfigured',
	state_reason => qr/certificate cannot be trusted/,
	retries => qr/^[1-9]/);
my %backing_off = (
	state => 'backing_off',
	state_reason => qr/cannot be reached or fails/,
	retries => qr/^[1-9]/);

# From now on the sandbox has this certificate, and a handshake is needed to get
# to it: a connection that is open was made with another ca_file.
sub present
{
	my (@certificate) = @_;
	my $before = $ca_file;
	$ca_file .= '+';
	copy($before, $ca_file) or die "copy: $!";
	$sandbox->tls(@certificate);
	$fault->configure(ca_file => $ca_file);
	return;
}

# ---------------------------------------------------------------------------
# The right one
# ---------------------------------------------------------------------------

$fault->record;
$fault->settled('a certificate for localhost');
is(status($node, 'postgres')->{retries}, 0, 'at the first attempt');

$fault->configure(endpoint => 'https://127.0.0.1:' . $sandbox->port . $path);
$fault->record;
$fault->settled('a certificate for 127.0.0.1');
$fault->configure(endpoint => $localhost);

# ---------------------------------------------------------------------------
# The wrong ones
# ---------------------------------------------------------------------------

foreach my $case (
	[ 'an expired certificate', \@expired, qr/expired/ ],
	[ 'a certificate for another host', \@wrong_host, qr/subject name|localhost/ ],
	[ 'a certificate of an unknown authority', \@unknown_ca, qr/certificate|issuer/ ])
{
	my ($name, $certificate, $error) = @$case;
	my $requests;
	present(@$certificate);
	$fault->survived(
		$name,
		begin => sub { $requests = $sandbox->report->{requests} },
		while => { %not_trusted, last_error => $error },
		during => sub {
			my $retries = status($node, 'postgres')->{retries};
			poll_status($node, 'postgres', { retries => sub { $_[0] > $retries } },
				"$name: it is tried again");
			is($sandbox->report->{requests}, $requests, "$name: and no request is sent");
		},
		end => sub { $sandbox->tls(@good) });
}

# ca_file replaces the system's authorities, it is not one more.  There are
# none to try on loopback, so: it does not do without any.
$fault->survived(
	'a ca_file that is not there',
	begin => sub { present(@good); $fault->configure(ca_file => "$ca_file.gone") },
	while => { %not_trusted, last_error => qr/ca\.crt\+*\.gone|CA|certificate/ },
	end => sub { $fault->configure(ca_file => $ca_file) });

$fault->survived(
	"no ca_file: the system's authorities do not know ours",
	begin => sub { present(@good); $fault->configure(ca_file => '') },
	while => { %not_trusted, last_error => qr/certificate|issuer/ },
	end => sub { $fault->configure(ca_file => $ca_file) });

# ---------------------------------------------------------------------------
# The authority is rotated
# ---------------------------------------------------------------------------

# The server's new certificate is first, then ca_file's new content.
present(@good);
$fault->survived(
	'a rotated authority',
	begin => sub { $sandbox->tls(@unknown_ca) },
	while => { %not_trusted, last_error => qr/certificate|issuer/ },
	end => sub { copy($other_ca->{cert}, $ca_file) or die "copy: $!"; $node->reload });

# And the old one is not trusted any more.
present(@unknown_ca);
$fault->survived(
	'the old authority',
	begin => sub { $sandbox->tls(@good) },
	while => { %not_trusted, last_error => qr/certificate|issuer/ },
	end => sub { $sandbox->tls(@unknown_ca) });

# Both in one file.
append_to_file($ca_file, slurp_file($ca->{cert}));
$node->reload;
present(@good);
$fault->record;
$fault->settled('two authorities in ca_file');

# ---------------------------------------------------------------------------
# TLS here and none there
# ---------------------------------------------------------------------------

my $plain = OnsideSandbox->start;
$fault->survived(
	'TLS to a server that speaks none', # and may wait for more of a request
	begin => sub { $fault->configure(endpoint => 'https://localhost:' . $plain->port . $path) },
	while => { %backing_off, last_error => qr/SSL|TLS|wrong version|timed out/i },
	end => sub {
		is($plain->report->{accepted_requests}, 0, 'nothing is sent in the clear');
		$fault->configure(endpoint => $localhost);
	});

$fault->survived(
	'no TLS to a server that wants it',
	begin => sub { $fault->configure(endpoint => 'http://localhost:' . $sandbox->port . $path) },
	while => \%backing_off,
	end => sub { $fault->configure(endpoint => $localhost) });

foreach my $rule ({ fault => 'reset_after_upload' }, { fault => 'truncated_body', status => 400 })
{
	$fault->survived(
		"$rule->{fault} over TLS",
		begin => sub { $sandbox->behave($rule) },
		while => \%backing_off,
		end => sub { $sandbox->behave });
}

# A redirect is not followed, least of all from TLS to none.
$fault->survived(
	'https redirects to http',
	begin => sub { $sandbox->behave({ fault => 'redirect', location => $plain->url }) },
	while => { state => 'misconfigured', state_reason => qr/endpoint/, last_error => qr/302/ },
	during => sub {
		ok(wait_until(sub { $sandbox->report->{by_fault}{redirect} >= 3 }),
			'https redirects to http: it is tried again');
		is($plain->report->{connections} - $plain->report->{requests}, 0,
			'https redirects to http: nobody goes there');
	},
	end => sub { $sandbox->behave });

$node->stop;
done_testing();
