# doctor() finds what is wrong: in each set-up that is broken here for real, the
# checks that are concerned are not ok, with a hint, and no others; following
# the hint mends it, and a healthy server is ok in every row.  It sends nothing,
# shows no credentials, ends soon and when it is cancelled, and is for
# monitoring alone.

use IO::Socket::INET ();
use JSON::PP ();
use OnsideTest;
use OnsideTls;

my $password = 'very-secret-indeed';
my $sandbox = OnsideSandbox->start(user => 'shop', password => $password);
my $node = onside_node('main', start => 0, init => { allows_streaming => 1 });
send_to($node, $sandbox, 'shop', $password);
$node->start;
create_extension($node, 'postgres');

my @checks = qw(preload version tables primary launcher max_databases
  max_worker_processes worker settings enabled paused credentials_file
  endpoint proxy proxy_credentials_file name_resolution connection tls last_answer backlog outbox
  dead_letters attached subscriptions);
my $everything_said = '';

# The rows as { check => { ok => 1, 0 or undef, detail, hint } }.
sub doctor
{
	my ($on, $database) = @_;
	my $json = ($on // $node)->safe_psql($database // 'postgres',
		'SELECT json_agg(d) FROM onside_attribution.doctor() d');
	my $rows = JSON::PP::decode_json($json);
	$everything_said .= $json;
	is(join(' ', map { $_->{check_name} } @$rows), join(' ', @checks), 'all the checks, in their order')
	  unless join(' ', map { $_->{check_name} } @$rows) eq join(' ', @checks);
	return { map { $_->{check_name} => { %$_, ok => defined $_->{ok} ? ($_->{ok} ? 1 : 0) : undef } } @$rows };
}

# Waits until exactly these checks fail: check => what detail and hint match.
# Those of the list "unknown" are NULL, all others ok.
sub finds
{
	my ($what, $bad, %options) = @_;
	my %unknown = map { $_ => 1 } @{ $options{unknown} // [] };
	my ($rows, @wrong);
	my $found = wait_until(
		sub {
			$rows = doctor($options{node}, $options{database});
			@wrong = ();
			foreach my $check (@checks)
			{
				my $row = $rows->{$check};
				my $expected = $bad->{$check} ? 0 : $unknown{$check} ? undef : 1;
				my $got = $row->{ok};
				push @wrong, $check
				  if ($got // 'null') ne ($expected // 'null')
				  || $bad->{$check} && ($row->{detail} !~ $bad->{$check}[0] || ($row->{hint} // '') !~ $bad->{$check}[1])
				  || !length $row->{detail}
				  || $got && defined $row->{hint};
			}
			return !@wrong;
		}, $options{seconds});
	ok($found, $what);
	diag("$_: " . JSON::PP->new->canonical->allow_nonref->encode($rows->{$_})) foreach $found ? () : @wrong;
	return $rows;
}

# Does what a hint says, as far as it is SQL.
sub follow
{
	my ($row) = @_;
	my @commands = $row->{hint} =~ /((?:ALTER|SELECT|ROLLBACK PREPARED|RESET|DROP)\b.*?;)/g;
	ok(@commands > 0, "$row->{check_name}: there is SQL in the hint");
	$node->safe_psql('postgres', $_) foreach @commands;
	return;
}

sub set
{
	my (%settings) = @_;
	$node->append_conf('postgresql.conf', "onside_attribution.$_ = '$settings{$_}'")
	  foreach sort keys %settings;
	$node->reload;
	return;
}

# ---------------------------------------------------------------------------
# Healthy
# ---------------------------------------------------------------------------

finds('idle, with nothing ever sent: all is well', {});
track($node, 'postgres');
wait_for_flush($node, 'postgres', 'an event');
my $requests = $sandbox->report->{requests};
my $rows = finds('idle: all is well', {});
is($sandbox->report->{requests}, $requests, 'doctor() makes no request');
like($rows->{connection}{detail}, qr/127\.0\.0\.1:\d+/, 'it has connected');
like($rows->{last_answer}{detail}, qr/^accepted/, 'and knows the last answer');

# ---------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------

my $good = $node->basedir . '/credentials';
my $file = write_credentials($node, "shop:$password\n", 0600, 'bad');
foreach (
	[ 'no file', '', qr/is not set/, qr/ALTER DATABASE postgres SET onside_attribution.credentials_file = .* connect again/ ],
	[ 'a file that is not there', "$file.missing", qr/could not open.*No such file/, qr/chmod 600 '\Q$file\E.missing'/ ],
	[ 'a directory', '/tmp', qr/not a regular file/, qr/a file of one line/ ])
{
	my ($what, $path, $detail, $hint) = @$_;
	set(credentials_file => $path);
	finds($what, { credentials_file => [ $detail, $hint ] });
}
set(credentials_file => $file);
chmod 0644, $file;
finds('a file that others can read', { credentials_file => [ qr/permissions for group or others/, qr/chmod 600 '\Q$file\E'/ ] });
write_credentials($node, "shop $password\n", 0600, 'bad');
finds('a file of another form', { credentials_file => [ qr/does not hold one line user:password/, qr/one line user:password/ ] });
SKIP:
{
	skip 'only root can give a file away', 1 if $> != 0;
	chown 1, -1, $file;
	finds('a file of another user', { credentials_file => [ qr/not owned by/, qr/chown/ ] });
}
write_credentials($node, "shop:$password\n", 0600, 'bad');
$node->reload;
finds('a good file', {});

# A session sees what ALTER DATABASE had set when it was connected.
my $older = $node->background_psql('postgres');
$older->query_safe('SELECT 1');
$node->safe_psql('postgres', <<'SQL');
ALTER DATABASE postgres SET onside_attribution.credentials_file = '/nowhere/credentials';
SELECT pg_reload_conf();
SQL
$rows = finds('a file that is not there, for this database', { credentials_file => [ qr{/nowhere/credentials}, qr/./ ] });
like($rows->{settings}{detail}, qr/this database has its own: onside_attribution.credentials_file/, 'a setting of the database is named');
poll_status($node, 'postgres', { state => 'misconfigured' }, 'and nothing is sent');
my $rows_of_older = $older->query_safe(
	"SELECT check_name, ok, detail, hint FROM onside_attribution.doctor() WHERE check_name = 'last_answer'");
like($rows_of_older, qr{^last_answer\|f\|.*/nowhere/credentials.*\|.*connect again}m, 'an older session says what the worker says');
$older->quit;
$node->safe_psql('postgres', <<'SQL');
ALTER DATABASE postgres RESET onside_attribution.credentials_file;
SELECT pg_reload_conf();
SQL
finds('the good file again', {});

set(enabled => 'off');
$rows = finds('disabled', { enabled => [ qr/is off/, qr/^ALTER SYSTEM SET onside_attribution.enabled = on/ ] });
follow($rows->{enabled});
finds('enabled, as the hint says', {});
$node->safe_psql('postgres', 'ALTER SYSTEM RESET ALL');
set(enabled => 'on');

set_for_database($node, 'postgres', 'enabled', 'off');
$rows = finds('disabled in this database', { enabled => [ qr/is off/, qr/^ALTER DATABASE postgres SET onside_attribution.enabled = on/ ] });
like($rows->{settings}{detail}, qr/this database has its own: onside_attribution.enabled$/, 'the setting of the database is shown');
follow($rows->{enabled});
finds('enabled, as the hint says', {});
set_for_database($node, 'postgres', 'enabled', undef);

$node->safe_psql('postgres', q{SELECT onside_attribution.pause('month end')});
$rows = finds('paused', { paused => [ qr/month end/, qr/resume/ ] });
follow($rows->{paused});
finds('resumed, as the hint says', {});

set(endpoint => 'http://example.com/', batch_max_events => 'many');
$rows = finds('settings that were refused', { settings => [ qr/batch_max_events in line \d+.*onside_attribution.endpoint in line/s, qr/Correct these lines/ ] });
set(endpoint => $sandbox->url, batch_max_events => 100);
finds('settings that were corrected', {});

is($node->safe_psql('postgres', <<'SQL'), 't|t', 'a session with values of its own is told so');
SET onside_attribution.proxy = 'http://127.0.0.1:9';
SELECT ok IS NULL, detail ~ 'onside_attribution.proxy' FROM onside_attribution.doctor() WHERE check_name = 'settings'
SQL

# ---------------------------------------------------------------------------
# The way to the endpoint
# ---------------------------------------------------------------------------

my $path = '/attribution-api/v1/events';
set(endpoint => "https://no-such-host.invalid$path");
finds('a name that does not resolve', { name_resolution => [ qr/resolve/i, qr/getent hosts/ ] }, unknown => [qw(connection tls)]);

my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Proto => 'tcp', Listen => 1) or die $!;
my $port = $listener->sockport;
set(endpoint => "https://127.0.0.1:$port$path", connect_timeout => '500ms');
finds('a port that accepts and says nothing', { tls => [ qr/time/i, qr/endpoint/ ] });
close $listener;
finds('a port on which nobody listens', { connection => [ qr/connect/i, qr/firewall/ ] }, unknown => ['tls']);

# Something that answers, but not in TLS.
set(endpoint => 'https://127.0.0.1:' . $sandbox->port . $path);
finds('no TLS there', { tls => [ qr/./, qr/endpoint/ ] });
set(endpoint => $sandbox->url, connect_timeout => '10s');

SKIP:
{
	skip 'openssl is not installed', 9 unless OnsideTls::available();
	my $tls = OnsideTls->new;
	my $ca = $tls->authority('good');
	my $other_ca = $tls->authority('other');
	my ($cert, $key) = $tls->certificate($ca);
	my $secure = OnsideSandbox->start(user => 'shop', password => $password, tls_cert => $cert, tls_key => $key);

	set(endpoint => $secure->url, ca_file => $ca->{cert});
	$rows = finds('TLS', {});
	like($rows->{tls}{detail}, qr/valid for this host/, 'the certificate is valid');
	set(ca_file => $other_ca->{cert});
	finds('an authority that is not trusted', { tls => [ qr/certificate/i, qr/ca_file/ ] });
	set(ca_file => $file);
	finds('a ca_file of another form', { tls => [ qr/./, qr/PEM/ ] });
	set(ca_file => "$file.missing");
	finds('a ca_file that is not there', { tls => [ qr/\Q$file\E.missing/, qr/ca_file/ ] });
	set(ca_file => $ca->{cert});
	my ($wrong, $wrong_key) = $tls->certificate($ca, host => 'elsewhere.example');
	$secure->tls($wrong, $wrong_key);
	finds('a certificate for another host', { tls => [ qr/./, qr/right host name/ ] });
	is($secure->report->{requests}, 0, 'no request was made');
	set(endpoint => $sandbox->url, ca_file => '');
	$secure->stop;
}

set(proxy => 'http://127.0.0.1:' . $sandbox->port);
$rows = finds('a proxy', {});
like($rows->{connection}{detail}, qr/the proxy/, 'is what is connected to');
set(proxy => 'http://no-such-proxy.invalid:3128');
finds('a proxy that does not resolve', { name_resolution => [ qr/resolve.*proxy/i, qr/proxy/ ] }, unknown => [qw(connection tls)]);
set(proxy => '');
finds('no proxy', {});

# ---------------------------------------------------------------------------
# Answers
# ---------------------------------------------------------------------------

foreach (
	[ 401, qr/HTTP 401/, qr/right user:password/ ],
	[ 404, qr/HTTP 404/, qr/endpoint/ ],
	[ 503, qr/HTTP 503/, qr/tried again by itself/ ])
{
	my ($status, $detail, $hint) = @$_;
	$sandbox->behave({ status => $status });
	track($node, 'postgres');
	finds("answers $status", { last_answer => [ $detail, $hint ] });
	$sandbox->behave;
	$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
	wait_for_flush($node, 'postgres', "$status: in the end it is delivered");
	finds("after $status all is well", {});
}

# ---------------------------------------------------------------------------
# What waits, and what was refused
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', <<'SQL');
SELECT onside_attribution.pause();
INSERT INTO onside_attribution.outbox (event_name, installation_id, payload, recorded_at)
VALUES ('old', gen_random_uuid(), '{}', now() - interval '1 hour');
SQL
finds('an event that waits for an hour', {
	paused => [ qr/paused/, qr/resume/ ],
	backlog => [ qr/^1 event is pending, .* 01:00:\d\d.* in state paused/, qr/Follow the hint of the check paused/ ] });
$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
wait_for_flush($node, 'postgres', 'it is delivered');

$sandbox->poison('rotten');
$node->safe_psql('postgres', q{SELECT onside_attribution.track('rotten', gen_random_uuid(), '{}')});
finds('a dead letter', { dead_letters => [ qr/^1 event was /, qr/retry_dead_letters/ ] });
$sandbox->poison(undef);
$node->safe_psql('postgres', 'SELECT onside_attribution.retry_dead_letters()');
wait_for_flush($node, 'postgres', 'it is accepted now');
finds('no dead letter', {});

# Two transactions that keep a delivered segment: one open, one prepared.
sub keeps_segment
{
	my ($what, $begin, $end, $detail, $hint) = @_;
	my $session = $node->background_psql('postgres');
	$session->query_safe($_) foreach 'BEGIN',
	  q{SELECT onside_attribution.track('first', gen_random_uuid(), '{}')}, @$begin;
	my $before = $node->safe_psql('postgres', 'SELECT segment FROM onside_attribution.delivery_cursor');
	$node->safe_psql('postgres', <<'SQL');
SELECT onside_attribution.track('filling', gen_random_uuid(), jsonb_build_object('a', repeat(md5(random()::text), 20)))
FROM generate_series(1, 300)
SQL
	ok($node->poll_query_until('postgres', "SELECT segment <> $before FROM onside_attribution.delivery_cursor"), "$what: writing has moved on");
	my $found = finds($what, { outbox => [ $detail, $hint ] });
	poll_status($node, 'postgres', { state_reason => qr/segment of the outbox is in use/ }, "$what: status says so, too");
	$end->($session, $found);
	$session->quit;
	finds("$what: after its end all is well", {});
	return;
}

set(segment_size => '64kB', batch_max_events => 1000);
keeps_segment(
	'a segment in use by an open transaction', [],
	sub { $_[0]->query_safe('COMMIT') },
	qr/is delivered, in use by process \d+ \(.*idle in transaction/, qr/pg_terminate_backend\(\d+\)/);
keeps_segment(
	'a segment in use by a prepared transaction', [ "PREPARE TRANSACTION 'it''s'" ],
	sub { follow({ %{ $_[1]{outbox} }, hint => $_[1]{outbox}{hint} =~ s/.* or //r }) },
	qr/in use by the prepared transaction 'it''s'/, qr/^COMMIT PREPARED 'it''s'; or ROLLBACK PREPARED 'it''s';/);
set(segment_size => '64MB');

# ---------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', <<'SQL');
CREATE SCHEMA "My Shop";
CREATE TABLE "My Shop".purchase (installation uuid, total numeric);
SELECT onside_attribution.attach('"My Shop".purchase', 'bought', 'installation', '{"amount": "total"}');
SQL
finds('a table is attached', {});
$node->safe_psql('postgres', 'ALTER TABLE "My Shop".purchase DISABLE TRIGGER ALL');
$rows = finds('its trigger is disabled', { attached => [ qr/"My Shop".purchase is disabled/, qr/ENABLE TRIGGER/ ] });
follow($rows->{attached});
finds('enabled, as the hint says', {});
$node->safe_psql('postgres', q{SELECT onside_attribution.attach('"My Shop".purchase', 'paid', 'installation', '{}', becomes => 'NEW.total > 0')});
$node->safe_psql('postgres', 'ALTER TABLE "My Shop".purchase DISABLE TRIGGER onside2_paid');
$rows = finds('one of two triggers is disabled', { attached => [ qr/^the trigger onside2_paid on "My Shop".purchase is disabled$/, qr/ENABLE TRIGGER onside2_paid/ ] });
follow($rows->{attached});
finds('both are enabled, as the hint says', {});
$node->safe_psql('postgres', q{SELECT onside_attribution.detach('"My Shop".purchase', 'paid')});
my $namespace = $node->safe_psql('postgres', 'SELECT id FROM onside_attribution.namespace');
$node->safe_psql('postgres', 'DELETE FROM onside_attribution.namespace');
finds('the namespace of keys is lost, and nobody has used it',
	{ attached => [ qr/^the table onside_attribution.namespace is empty: no event_id can be made of a key$/, qr/^INSERT INTO onside_attribution.namespace \(id\) VALUES \(gen_random_uuid\(\)\);/ ] });
$node->safe_psql('postgres', "INSERT INTO onside_attribution.namespace (id) VALUES ('$namespace')");
$node->safe_psql('postgres', q{CREATE TABLE keyed (id int PRIMARY KEY, i uuid); SELECT onside_attribution.attach('keyed', 'keyed', 'i', '{}', event_id => 'id'); DELETE FROM onside_attribution.namespace});
$rows = finds('the namespace of keys is lost', { attached => [ qr/namespace is empty/, qr/VALUES \('$namespace'\);/ ] });
$node->safe_psql('postgres', $rows->{attached}{hint});
$node->safe_psql('postgres', 'DROP TABLE keyed');
finds('it is back, as the hint says', {});
$node->safe_psql('postgres', 'ALTER TABLE "My Shop".purchase DROP total');
$rows = finds('a mapped column was dropped', { attached => [ qr/maps the column total, which is not there/, qr/detach\('"My Shop".purchase', 'bought'\)/ ] });
follow($rows->{attached});
finds('detached, as the hint says', {});

# ---------------------------------------------------------------------------
# Who may call it, and for how long it runs
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', 'CREATE ROLE monitor LOGIN IN ROLE pg_monitor; CREATE ROLE other LOGIN; GRANT USAGE ON SCHEMA onside_attribution TO other');
sub as_role
{
	my ($role, $sql) = @_;
	my ($out, $err);
	my $rc = $node->psql('postgres', $sql, stdout => \$out, stderr => \$err, connstr => $node->connstr('postgres') . " user=$role", on_error_stop => 1);
	return ($rc, $out, $err);
}
my ($rc, $out, $err) = as_role('monitor', 'SELECT count(*) FROM onside_attribution.doctor() WHERE ok');
is($out, scalar @checks, 'pg_monitor calls it, and sees all that there is');
($rc) = as_role('other', 'SELECT onside_attribution.doctor()');
isnt($rc, 0, 'nobody else does');
($rc, $out, $err) = as_role('monitor', q{SET onside_attribution.endpoint = 'https://127.0.0.1:1/'; SELECT detail FROM onside_attribution.doctor() WHERE check_name = 'endpoint'});
unlike("$out", qr/127\.0\.0\.1:1\//, 'and not for an endpoint of his own choice');

$listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Proto => 'tcp', Listen => 5) or die $!;
set(endpoint => 'https://127.0.0.1:' . $listener->sockport . $path);
finds('an endpoint that never says anything ends it after some seconds', { tls => [ qr/time/i, qr/./ ] });
($rc, $out, $err) = as_role('monitor', q{SET statement_timeout = '300ms'; SELECT onside_attribution.doctor()});
like($err, qr/statement timeout/, 'and it can be cancelled');
is($node->safe_psql('postgres', <<'SQL'), 't', 'and called again in the same session');
SET statement_timeout = '300ms';
DO $$ BEGIN PERFORM onside_attribution.doctor(); EXCEPTION WHEN query_canceled THEN NULL; END $$;
RESET statement_timeout;
SELECT count(*) > 20 FROM onside_attribution.doctor();
SQL
close $listener;
set(endpoint => $sandbox->url);
finds('all is well again', {});

# ---------------------------------------------------------------------------
# Versions
# ---------------------------------------------------------------------------

sub version_is
{
	my ($version) = @_;
	$node->safe_psql('postgres', "UPDATE pg_extension SET extversion = '$version' WHERE extname = 'onside_attribution'");
	$node->restart;
	return;
}
foreach my $version ('1.10', '0.1')
{
	version_is($version);
	finds("objects of version $version", { version => [ qr/objects in this database are version \Q$version\E/, qr/restart the server; then ALTER EXTENSION onside_attribution UPDATE;/ ] },
		unknown => [qw(paused backlog outbox dead_letters)]);
}
version_is('1.0');
finds('of the same version', {});

# ---------------------------------------------------------------------------
# A standby
# ---------------------------------------------------------------------------

$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;
finds('a standby', { primary => [ qr/standby/, qr/pg_promote/ ] }, node => $standby,
	unknown => [qw(launcher max_databases worker last_answer subscriptions)]);
$standby->stop;

# ---------------------------------------------------------------------------
# Processes
# ---------------------------------------------------------------------------

# One of the two is the logical replication launcher's, one our launcher's.
$node->append_conf('postgresql.conf', 'max_worker_processes = 2');
$node->restart;
finds('no free worker slot', {
	max_worker_processes => [ qr/^2 background workers can run, and none was free/, qr/^ALTER SYSTEM SET max_worker_processes = \d+/ ],
	worker => [ qr/no free background worker/, qr/check max_worker_processes/ ] },
	unknown => ['last_answer']);
$node->append_conf('postgresql.conf', 'max_worker_processes = 8');
$node->append_conf('postgresql.conf', 'onside_attribution.max_databases = 1');
$node->restart;
poll_worker($node, 'postgres');
$node->safe_psql('postgres', 'CREATE DATABASE second');
$node->safe_psql('second', 'CREATE EXTENSION onside_attribution');
finds('too few databases', {
	max_databases => [ qr/1 of 1 places/, qr/max_databases = 2/ ],
	worker => [ qr/max_databases/, qr/check max_databases/ ] },
	database => 'second', unknown => ['last_answer']);
$node->safe_psql('postgres', 'DROP DATABASE second');

$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
finds('not preloaded', {
	preload => [ qr/not in shared_preload_libraries/, qr/shared_preload_libraries = 'onside_attribution'/ ] },
	unknown => [qw(launcher max_databases worker last_answer)]);
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'onside_attribution'");
finds('not restarted since', {
	preload => [ qr/not restarted/, qr/Restart the server/ ] },
	unknown => [qw(launcher max_databases worker last_answer)]);

# What cannot be refused when the server starts.
$node->append_conf('postgresql.conf', "onside_attribution.endpoint = 'http://example.com/?x=$password'");
$node->restart;
finds('an endpoint to which nothing may be sent', { endpoint => [ qr/was refused when the server was started/, qr/endpoint = 'https:/ ], settings => [ qr/endpoint/, qr/./ ] },
	unknown => [qw(name_resolution connection tls)]);
set(endpoint => $sandbox->url);
finds('well in the end', {});

unlike($everything_said, qr/\Q$password\E/, 'in all this the password was never shown');
is($sandbox->report->{duplicates}, 0, 'and nothing came twice');

$node->stop;
done_testing();
