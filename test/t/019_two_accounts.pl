# Two databases of one server send to two accounts, set with ALTER DATABASE.
# Setting and changing them takes effect on pg_reload_conf(), and no request ever
# goes to the one endpoint with the credentials of the other, not even in the
# moment of a switch under load, nor does an event go to another account than the
# one that its database has.

use OnsideTest;

my %account = (
	red => { user => 'red', password => 'ruby' },
	blue => { user => 'blue', password => 'sky' });
$_->{sandbox} = OnsideSandbox->start(%$_) foreach values %account;

# Neither endpoint nor credentials for all.
my $node = onside_node('main');
$account{$_}{file} =
  write_credentials($node, "$account{$_}{user}:$account{$_}{password}\n", 0600, "credentials.$_")
  foreach keys %account;
my $installation = $OnsideTest::installation;

# Both settings take effect together because they commit together.
sub use_account
{
	my ($database, $name) = @_;
	my ($url, $file) = ($account{$name}{sandbox}->url, $account{$name}{file});
	$node->safe_psql($database, <<SQL);
LOAD 'onside_attribution';
BEGIN;
ALTER DATABASE $database SET onside_attribution.endpoint = '$url';
ALTER DATABASE $database SET onside_attribution.credentials_file = '$file';
COMMIT;
SELECT pg_reload_conf();
SQL
	return;
}

sub no_mistakes_ok
{
	my ($what) = @_;
	foreach my $name (sort keys %account)
	{
		my $by_status = $account{$name}{sandbox}->report->{by_status};
		is($by_status->{401} // 0, 0, "$what: $name has seen its own credentials only");
	}
	return;
}

foreach my $database (qw(one two))
{
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	create_extension($node, $database);
	poll_status($node, $database, { state => 'misconfigured', state_reason => qr/credentials_file is not set/ },
		"$database has no account");
}

my (@red, @blue);
push @red, map { track($node, 'one') } 1 .. 3;
push @blue, map { track($node, 'two') } 1 .. 3;
use_account('one', 'red');
use_account('two', 'blue');
wait_for_flush($node, 'one', 'one has an account');
wait_for_flush($node, 'two', 'two has another one');
arrived_ok($account{red}{sandbox}, \@red, 'the events of one went to its account');
arrived_ok($account{blue}{sandbox}, \@blue, 'those of two to the other');
no_mistakes_ok('two accounts');

# Switched to and fro while events pass and requests are under way.  What a
# request had under way in that moment may be sent to the new account, too.
my $one = $node->background_psql('one', on_error_stop => 0);
my %all = map { $_ => 1 } @red, @blue;
foreach my $round (1 .. scale(3, 40))
{
	foreach my $name (qw(blue red))
	{
		$_->{sandbox}->behave({ delay => 0.05 }) foreach values %account;
		my @ids = split /\n/, $one->query_safe(
			"SELECT onside_attribution.track('e', '$installation', '{}') FROM generate_series(1, 50)");
		$all{$_} = 1 foreach @ids;
		my $worker = worker_pid($node, 'one');
		use_account('one', $name);
		push @ids, split /\n/, $one->query_safe(
			"SELECT onside_attribution.track('e', '$installation', '{}') FROM generate_series(1, 50)");
		$all{$_} = 1 foreach @ids;

		# All that is recorded once the new worker is there goes to the new one.
		poll_worker($node, 'one', $worker);
		my @later = map { track($node, 'one') } 1 .. 2;
		$all{$_} = 1 foreach @later;
		$one->query_safe("SELECT onside_attribution.flush()");
		my $events = $account{$name}{sandbox}->events;
		is(scalar(grep { $events->{$_} } @later), 2, "round $round: events go to $name");
	}
}
$one->quit;
$_->{sandbox}->behave foreach values %account;
wait_for_flush($node, 'one', 'the last ones');
arrived_ok([ map { $_->{sandbox} } values %account ], [ keys %all ], 'all arrived, and nothing else');
no_mistakes_ok('switched under load');

# An account for all, in postgresql.conf, does not touch those that have one.
$node->append_conf('postgresql.conf', "onside_attribution.endpoint = '" . $account{blue}{sandbox}->url . "'");
$node->append_conf('postgresql.conf', "onside_attribution.credentials_file = '$account{blue}{file}'");
$node->reload;
my $before = keys %{ $account{blue}{sandbox}->events };
track($node, 'one') foreach 1 .. 3;
wait_for_flush($node, 'one', 'postgresql.conf has another account');
is(scalar(keys %{ $account{blue}{sandbox}->events }), $before, 'the database keeps its own');
no_mistakes_ok('an account for all');

# One of two settings is enough to be wrong: it is refused and nothing is lost.
$account{red}{sandbox}->reset;
my $worker = worker_pid($node, 'one');
set_for_database($node, 'one', 'endpoint', $account{blue}{sandbox}->url);
poll_worker($node, 'one', $worker);
my @ids = track($node, 'one');
poll_status($node, 'one', { state => 'unauthorized', pending => 1 },
	'the endpoint alone has changed: the API refuses the credentials');
use_account('one', 'red');
wait_for_flush($node, 'one', 'changed back: it is sent');
arrived_ok($account{red}{sandbox}, \@ids, 'where it belongs');

$node->stop;
$_->{sandbox}->stop foreach values %account;
done_testing();
