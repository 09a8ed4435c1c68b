# A setting made by ALTER DATABASE ... SET takes effect on pg_reload_conf(), and
# its RESET too, without a restart of the server and without an event lost.
# pause() stays until resume(), whatever restarts in between.

use OnsideTest;

my $sandbox = OnsideSandbox->start;
my $other = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox);
create_extension($node, 'postgres');
$node->safe_psql('postgres', 'CREATE DATABASE second');
create_extension($node, 'second');

my (@here, @there);

# ---------------------------------------------------------------------------
# endpoint
# ---------------------------------------------------------------------------

push @here, track($node, 'postgres');
wait_for_flush($node, 'postgres');

my $bystander = worker_pid($node, 'second');
my $worker = worker_pid($node, 'postgres');
set_for_database($node, 'postgres', 'endpoint', $other->url);
poll_worker($node, 'postgres', $worker);
push @there, track($node, 'postgres');
wait_for_flush($node, 'postgres', 'endpoint set for the database');
push @here, track($node, 'second');
wait_for_flush($node, 'second', 'not for another one');
arrived_ok($other, \@there, 'events go to the new endpoint');
arrived_ok($sandbox, \@here, 'the others to the old one');
is(worker_pid($node, 'second'), $bystander, 'whose worker goes on');

$worker = worker_pid($node, 'postgres');
set_for_database($node, 'postgres', 'endpoint', undef);
poll_worker($node, 'postgres', $worker);
push @here, track($node, 'postgres');
wait_for_flush($node, 'postgres', 'endpoint reset');
arrived_ok($sandbox, \@here, 'events go where they went before');

# In postgresql.conf it is for all databases, and needs no other worker.
$worker = worker_pid($node, 'postgres');
$node->append_conf('postgresql.conf',
	"onside_attribution.endpoint = '" . $other->url . "'");
$node->reload;
ok( wait_until(
		sub {
			push @there, track($node, 'postgres');
			wait_until(sub { $other->events->{ $there[-1] } }, 0.5)
			  or push @here, pop @there;
			return @there > 1;
		}),
	'endpoint in postgresql.conf');
is(worker_pid($node, 'postgres'), $worker, 'without another worker');
wait_for_flush($node, 'postgres');
arrived_ok($other, \@there, 'events go to the new endpoint');
$node->append_conf('postgresql.conf',
	"onside_attribution.endpoint = '" . $sandbox->url . "'");
$node->reload;

# A reload while a request hangs.
$sandbox->behave({ fault => 'black_hole' });
$other->behave({ fault => 'black_hole' });
my $hanging = track($node, 'postgres');
ok(wait_until(sub { grep { $_->rules->[0]{used} } $sandbox, $other }),
	'a request hangs');
set_for_database($node, 'postgres', 'endpoint', $other->url);
$_->behave foreach $sandbox, $other;
wait_for_flush($node, 'postgres', 'endpoint changed while a request hangs');
push @there, $hanging;
arrived_ok($other, \@there, 'the event goes to the new one');
set_for_database($node, 'postgres', 'endpoint', undef);

# http is for loopback alone, wherever it is set.
my ($ret, $stdout, $stderr) = $node->psql('postgres', <<'SQL');
LOAD 'onside_attribution';
ALTER DATABASE postgres SET onside_attribution.endpoint = 'http://192.0.2.1/events';
SQL
like($stderr, qr/invalid value for parameter "onside_attribution.endpoint"/,
	'http to elsewhere is refused');
like($stderr, qr/HINT:.*https/, 'with a hint');

# ---------------------------------------------------------------------------
# enabled
# ---------------------------------------------------------------------------

set_for_database($node, 'postgres', 'enabled', 'off');
poll_status($node, 'postgres',
	{ state => 'disabled', state_reason => qr/enabled/ }, 'enabled = off: disabled');
my $requests = $sandbox->report->{requests};
my @later = map { track($node, 'postgres') } 1 .. 3;
is( $node->safe_psql('postgres', "SELECT onside_attribution.flush('100 ms')"),
	'f', 'flush waits, then returns false');
poll_status($node, 'postgres', { pending => 3, oldest_pending_age => qr/./ },
	'events wait');
is($sandbox->report->{requests}, $requests, 'no request is made');
is($node->safe_psql('second', 'SELECT state FROM onside_attribution.status'),
	'idle', 'another database is not concerned');
push @here, @later;

set_for_database($node, 'postgres', 'enabled', undef);
poll_status($node, 'postgres', { state => 'idle', pending => 0 },
	'reset: they are sent');
arrived_ok($sandbox, \@here, 'they arrived');

# ---------------------------------------------------------------------------
# pause and resume
# ---------------------------------------------------------------------------

my $text = "stocktaking, 'till \"noon\"";
$node->safe_psql('postgres',
	"BEGIN; SELECT onside_attribution.pause('no'); ROLLBACK");
push @here, track($node, 'postgres');
wait_for_flush($node, 'postgres', 'a pause that is rolled back is none');

$node->safe_psql('postgres',
	"SELECT onside_attribution.pause(\$\$$text\$\$)");
poll_status($node, 'postgres', { state => 'paused', state_reason => qr/^\Q$text\E$/ },
	'paused, with the reason that was given');
$requests = $sandbox->report->{requests};
@later = map { track($node, 'postgres') } 1 .. 4;
push @here, track($node, 'second');
wait_for_flush($node, 'second', 'another database sends');
poll_status($node, 'postgres', { state => 'paused', pending => 4 }, 'events wait');

$worker = worker_pid($node, 'postgres');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
poll_worker($node, 'postgres', $worker);
poll_status($node, 'postgres',
	{ state => 'paused', state_reason => qr/^\Q$text\E$/, pending => 4 },
	'another worker is paused, too');
$node->restart;
poll_status($node, 'postgres',
	{ state => 'paused', state_reason => qr/^\Q$text\E$/, pending => 4 },
	'after a restart, too');
$node->stop('immediate');
$node->start;
poll_status($node, 'postgres',
	{ state => 'paused', state_reason => qr/^\Q$text\E$/, pending => 4 },
	'after a crash, too');
$node->reload;
is( $node->safe_psql('postgres', "SELECT onside_attribution.flush('200 ms')"),
	'f', 'a reload does not end a pause');
is( $node->safe_psql(
		'postgres', 'SELECT count(*) FROM onside_attribution.pending'),
	4, 'nor does flush');

$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
push @here, @later;
wait_for_flush($node, 'postgres', 'resume: they are sent');
arrived_ok($sandbox, \@here, 'they arrived');
nothing_came_twice($sandbox, 'once');
poll_status($node, 'postgres', { state => 'idle', state_reason => undef },
	'idle again');

$node->safe_psql('postgres', 'SELECT onside_attribution.pause()');
poll_status($node, 'postgres', { state => 'paused', state_reason => qr/pause/ },
	'a pause without a reason has one in status');
$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
poll_status($node, 'postgres', { state => 'idle' }, 'resumed');

# resume() ends a back-off that would last for an hour.
set_for_database($node, 'postgres', 'retry_max_delay', '1h');
set_for_database($node, 'postgres', 'retry_initial_delay', '1h');
$sandbox->behave({ status => 500, times => 1 });
ok( wait_until(
		sub {
			$node->safe_psql('postgres',
				"SELECT current_setting('onside_attribution.retry_initial_delay')") eq '1h';
		}),
	'retry_initial_delay is set');
wait_until(sub { worker_pid($node, 'postgres') });
push @here, track($node, 'postgres');
poll_status($node, 'postgres', { state => 'backing_off', next_attempt_at => qr/./ },
	'backing off');
$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
wait_for_flush($node, 'postgres', 'resume() ends a back-off at once');
arrived_ok($sandbox, \@here, 'all arrived');

$node->stop;
$_->stop foreach $sandbox, $other;
done_testing();
