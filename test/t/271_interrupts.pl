# What takes a while gives way: flush(), backfill(), replay() and doctor() end at
# once by pg_cancel_backend, statement_timeout, pg_terminate_backend and DROP
# DATABASE ... WITH (FORCE), whatever they wait for: the API, room in the
# outbox, a lock, an endpoint that never says anything, a name server that does
# not answer.
#
# "At once" is within a second.  The limit here is wider, so that a busy machine
# does not decide, but each command would by itself take longer than it.

use IO::Socket::INET ();
use IPC::Run ();
use Time::HiRes qw(time);
use OnsideTest;

my $limit = 4;

# A resolver that hangs for names under hanging.test.
my $dir = PostgreSQL::Test::Utils::tempdir();
append_to_file("$dir/resolver.c", <<'C');
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>

typedef int (*resolve) (const char *, const char *, const struct addrinfo *,
						struct addrinfo **);

int
getaddrinfo(const char *node, const char *service,
			const struct addrinfo *hints, struct addrinfo **res)
{
	if (node != NULL && strstr(node, ".hanging.test") != NULL)
		sleep(60);
	return ((resolve) dlsym(RTLD_NEXT, "getaddrinfo")) (node, service, hints, res);
}
C
my $log = '';
my $has_resolver = IPC::Run::run([ 'cc', '-shared', '-fPIC', '-o', "$dir/resolver.so", "$dir/resolver.c", '-ldl' ],
	'>', \$log, '2>', \$log);

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox, start => 0);
{
	local $ENV{LD_PRELOAD} = "$dir/resolver.so" if $has_resolver;
	$node->start;
}
my $silent = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Proto => 'tcp', Listen => 50) or die $!;

# What is set up in the database, and the command; "holds" is what another
# session does meanwhile.
my %commands = (
	'flush() while sending is paused' => {
		setup => q{SELECT onside_attribution.pause(); SELECT onside_attribution.track('a', gen_random_uuid(), '{}')},
		command => q{SELECT onside_attribution.flush('1 hour')} },
	'flush() behind a lock' => {
		setup => q{SELECT onside_attribution.track('a', gen_random_uuid(), '{}')},
		holds => 'LOCK TABLE onside_attribution.delivery_cursor, onside_attribution.outbox',
		command => q{SELECT onside_attribution.flush('1 hour')} },
	'backfill() of slow rows' => {
		setup => <<'SQL',
CREATE FUNCTION slow(integer) RETURNS boolean LANGUAGE sql AS 'SELECT pg_sleep(0.05) IS NOT NULL';
CREATE TABLE bought (n integer PRIMARY KEY, installation_id uuid, event_id uuid NOT NULL DEFAULT gen_random_uuid());
INSERT INTO bought SELECT n, gen_random_uuid() FROM generate_series(1, 2000) n;
SELECT onside_attribution.attach('bought', 'bought', 'installation_id', '{"n": "n"}', event_id => 'event_id', condition => 'public.slow(NEW.n)');
SQL
		command => q{CALL onside_attribution.backfill('bought', 'bought')} },
	'backfill() that waits for room' => {
		setup => <<'SQL',
SELECT onside_attribution.pause();
SELECT count(onside_attribution.track('a', gen_random_uuid(), '{}')) FROM generate_series(1, 100001);
CREATE TABLE bought (n integer PRIMARY KEY, installation_id uuid, event_id uuid NOT NULL DEFAULT gen_random_uuid());
INSERT INTO bought SELECT n, gen_random_uuid() FROM generate_series(1, 5000) n;
SELECT onside_attribution.attach('bought', 'bought', 'installation_id', '{"n": "n"}', event_id => 'event_id');
SQL
		command => q{CALL onside_attribution.backfill('bought', 'bought')} },
	'backfill() behind a lock' => {
		setup => <<'SQL',
CREATE TABLE bought (n integer PRIMARY KEY, installation_id uuid, event_id uuid NOT NULL DEFAULT gen_random_uuid());
INSERT INTO bought SELECT n, gen_random_uuid() FROM generate_series(1, 5000) n;
SELECT onside_attribution.attach('bought', 'bought', 'installation_id', '{"n": "n"}', event_id => 'event_id');
SQL
		holds => 'LOCK TABLE onside_attribution.outbox, bought',
		command => q{CALL onside_attribution.backfill('bought', 'bought')} },
	'replay() behind a lock' => {
		setup => q{SELECT onside_attribution.track('a', gen_random_uuid(), '{}')},
		holds => 'LOCK TABLE onside_attribution.dead_letter, onside_attribution.outbox',
		command => q{SELECT onside_attribution.replay('-infinity')} },
	'doctor() and an endpoint that says nothing' => {
		endpoint => 'https://127.0.0.1:' . $silent->sockport . '/',
		command => q{SELECT count(*) FROM onside_attribution.doctor()} },
	$has_resolver
	? ('doctor() and a name server that does not answer' => {
			endpoint => 'https://name.hanging.test/',
			command => q{SELECT count(*) FROM onside_attribution.doctor()} })
	: ());

my %ends = (
	'pg_cancel_backend' => [ sub { "SELECT pg_cancel_backend($_[0])" }, qr/canceling statement due to user request/ ],
	'pg_terminate_backend' => [ sub { "SELECT pg_terminate_backend($_[0])" }, qr/terminating connection|server closed the connection/ ],
	'DROP DATABASE' => [ sub { 'DROP DATABASE d WITH (FORCE)' }, qr/terminating connection|server closed the connection/ ],
	'statement_timeout' => [ undef, qr/canceling statement due to statement timeout/ ]);

foreach my $what (sort keys %commands)
{
	my $case = $commands{$what};
	$node->safe_psql('postgres', "DROP DATABASE IF EXISTS $_ WITH (FORCE)") foreach qw(made d);
	$node->safe_psql('postgres', 'CREATE DATABASE made');
	create_extension($node, 'made');
	$node->safe_psql('made', $case->{setup}) if $case->{setup};
	if ($case->{endpoint})
	{
		$node->safe_psql('made', "ALTER DATABASE made SET onside_attribution.endpoint = '$case->{endpoint}'; SELECT pg_reload_conf()");
	}
	subtest $what => sub { gives_way($case, $_) foreach sort keys %ends };
}

# One command in a session of its own, ended in one way.
sub gives_way
{
	my ($case, $end) = @_;
	my ($command, $message) = @{ $ends{$end} };

	# What was set up may be gone with the database of the one before.
	if ($node->safe_psql('postgres', q{SELECT count(*) FROM pg_database WHERE datname = 'd'}) eq '0')
	{
		$node->safe_psql('postgres', 'CREATE DATABASE d TEMPLATE made');
		poll_worker($node, 'd');
		$node->safe_psql('postgres', "ALTER DATABASE d SET onside_attribution.endpoint = '$case->{endpoint}'")
		  if $case->{endpoint};
	}
	my $holder;
	if ($case->{holds})
	{
		$holder = $node->background_psql('d', on_error_stop => 0);
		$holder->query("BEGIN; $case->{holds};");
	}

	my ($out, $err, $pid) = ('', '', '');
	my $began = time();
	my $options = $command ? '' : '-c statement_timeout=500ms';
	my $session = IPC::Run::start(
		[ 'psql', '-XAtq', '-d', $node->connstr('d') . " application_name=walked options='$options'", '-c', $case->{command} ],
		'>', \$out, '2>', \$err);
	if ($command)
	{
		# It is under way when it is, or sleeps, in there.
		wait_until(
			sub {
				$pid = $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE application_name = 'walked' AND state = 'active' AND clock_timestamp() > query_start + interval '200 ms'});
				return $pid ne '' || !$session->pumpable;
			});
		isnt($pid, '', "$end: it is under way") or diag($err);
		$began = time();
		my ($ret, undef, $said) = $node->psql('postgres', $command->($pid eq '' ? 0 : $pid));
		is($ret, 0, "$end succeeds") or diag($said);
	}
	my $ended = wait_until(sub { $session->pump_nb; return !$session->pumpable }, 30, 0.02);
	my $took = time() - $began;
	$session->kill_kill unless $ended;
	$session->finish;
	cmp_ok($took, '<', $limit, "$end ends it at once");
	like($err, $message, "$end: and it says why");
	eval { $holder->{run}->finish } if $holder && $end eq 'DROP DATABASE';
	$holder->quit if $holder && $end ne 'DROP DATABASE';
	return;
}

$node->stop;
done_testing();
