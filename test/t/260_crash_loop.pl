# A process of ours that crashes does not do so in a loop.  The third crash of a
# worker (or of the launcher) within ten minutes of running is the last one:
# nothing of that database is sent, and status and doctor() say why, until
# resume() or a quarter of an hour later.  Meanwhile purchases are recorded,
# other databases send, and every command on the database works.  Only a crash
# of the process itself counts.

use OnsideTest;
use OnsideMachine;

my $machine = OnsideMachine->new;
my $sandbox = OnsideSandbox->start;

# Nobody else writes WAL for the worker.
my $node = onside_node('main', sandbox => $sandbox, conf => "wal_writer_delay = '10s'\n");
$node->safe_psql('postgres', 'CREATE DATABASE other');
create_extension($node, $_) foreach qw(postgres other);
my @ids;

# ---------------------------------------------------------------------------
# The record that crash_guard.c keeps of a process
# ---------------------------------------------------------------------------

my @fields = qw(magic running signal step xid id ran wait_until
  crashed_1 crashed_2 crashed_3 ran_1 ran_2 ran_3);
my $format = 'L L l l Q q q q q3 q3';

# The file of a database's worker, or of the launcher.
sub record_file
{
	my ($database) = @_;
	my $oid = defined $database
	  ? $node->safe_psql('postgres', "SELECT oid FROM pg_database WHERE datname = '$database'")
	  : 0;
	return $node->data_dir . "/pg_stat_tmp/onside_attribution.$oid.run";
}

sub read_record
{
	my ($file) = @_;
	my %record;
	@record{@fields} = unpack($format, slurp_file($file));
	return \%record;
}

sub crashes
{
	my ($database) = @_;
	my $file = record_file($database);
	return 0 unless -e $file;
	my $record = read_record($file);
	return scalar grep { $record->{"crashed_$_"} } 1 .. 3;
}

# Changes records; the server must be down.
sub change
{
	my ($file, $change) = @_;
	my $record = read_record($file);
	$change->($record);
	open(my $fh, '>:raw', $file) or die "could not write $file: $!";
	print $fh pack($format, @{$record}{@fields});
	close($fh) or die "could not write $file: $!";
	return;
}

my $minute = 60_000_000;

# ---------------------------------------------------------------------------
# Crashes
# ---------------------------------------------------------------------------

# Sends a signal to a process and waits until the server has recovered.
sub crash
{
	my ($signal, $pid) = @_;
	my $position = log_position($node);
	kill $signal, $pid or die "could not kill $pid: $!";
	wait_for_log_line($node, qr/; reinitializing$/m, $position, "$signal: the server recovers");
	wait_until(sub { eval { $node->safe_psql('postgres', 'SELECT 1') } }) or die 'the server is gone';
	return;
}

sub crash_worker
{
	my ($signal) = @_;
	my $pid = poll_worker($node, 'postgres');
	crash($signal, $pid);
	return;
}

sub buy
{
	my ($database) = @_;
	push @ids, track($node, $database);
	return;
}

my $waits = {
	worker_pid => undef,
	state => 'misconfigured',
	state_reason => qr/has crashed 3 times since .* or at once after resume\(\)/,
	pending => undef,
	oldest_pending_age => undef,
};

# For crashes in a loop, and that it has an end.
my %kinds = (
	SEGV => qr/the worker .* ended by signal 11 \(.*\) while waiting/,
	ABRT => qr/the worker .* ended by signal 6 \(.*\) while waiting/,
	KILL => qr/the worker .* killed \(signal 9\) while waiting/,
);

foreach my $signal (sort keys %kinds)
{
	subtest "three times SIG$signal" => sub {
		foreach my $time (1, 2)
		{
			buy('postgres');
			wait_for_flush($node, 'postgres', "it sends before crash $time");
			poll_status($node, 'postgres', { state => 'idle' }, 'and then waits');
			crash_worker($signal);
		}
		buy('postgres');
		wait_for_flush($node, 'postgres', 'it sends after two crashes');
		poll_status($node, 'postgres', { state => 'idle' }, 'and then waits');
		my $position = log_position($node);
		crash_worker($signal);
		my $row = poll_status($node, 'postgres', $waits, 'after the third one it is not started');
		like($row->{state_reason}, $kinds{$signal}, 'the reason says what it was and where');
		wait_for_log_line($node, qr/the worker of database "postgres" has crashed\n.*DETAIL:.*\n.*HINT:.*resume\(\)/,
			$position, 'the log says so');

		is($node->safe_psql('postgres', <<'SQL'), 'f|t|t', 'doctor() says it and what to do');
SELECT ok, detail LIKE '%crashed 3 times%', hint LIKE '%resume();' FROM onside_attribution.doctor()
WHERE check_name = 'worker'
SQL
		buy('postgres');
		is($node->safe_psql('postgres', q{SELECT onside_attribution.flush('0 s')}),
			'f', 'a purchase is recorded and not sent');
		poll_worker($node, 'other');
		buy('other');
		wait_for_flush($node, 'other', 'another database sends');
		is(worker_pid($node, 'postgres'), undef, 'there is no worker');

		my $launcher = launcher_pid($node);
		$node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher)");
		ok(wait_until(sub { (launcher_pid($node) // $launcher) != $launcher }), 'another launcher');
		buy('other');
		wait_for_flush($node, 'other', 'serves the other database');
		$node->restart;
		poll_worker($node, 'other');
		poll_status($node, 'postgres', $waits, 'a restart of the server changes nothing');

		$node->safe_psql('postgres', 'BEGIN; SELECT onside_attribution.resume(); ROLLBACK');
		poll_status($node, 'postgres', $waits, 'a resume() that is rolled back does not, either');
		$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
		wait_for_flush($node, 'postgres', 'resume() sends everything');
		arrived_ok($sandbox, \@ids, 'nothing is lost');
		is(crashes('postgres'), 0, 'and counts anew');
	};
}

subtest 'what it was doing' => sub {
	plan skip_all => 'NOT TESTED: gcc cannot make faults.so' unless $machine;

	# Each makes the worker write to a file that it writes to for nothing else then:
	# to WAL before it hands out an event whose commit is not on disk (so this event
	# is lost with its transaction), and to a table for its first page.
	my $path = sub { $node->safe_psql('postgres', "SELECT pg_relation_filepath('onside_attribution.$_[0]')") };
	my $place = qr/ \(at or behind the event with xid \d+, id \d+\)/;
	# Its commit is asynchronous, so the crash may take it back.
	my $unsure = $node->safe_psql('postgres', 'SELECT gen_random_uuid()');
	my @moments = (
		{
			doing => qr/reading the outbox/,
			file => sub { '/pg_wal/' },
			begin => sub {
				$node->safe_psql('postgres',
					"SET synchronous_commit = off; SELECT onside_attribution.track('paid', '$OnsideTest::installation', '{}', event_id => '$unsure')");
			},
		},
		{
			doing => qr/moving events to dead_letter$place/,
			file => sub { $path->('dead_letter') },
			begin => sub {
				$sandbox->poison('"rotten"');
				$node->safe_psql('postgres',
					qq{SELECT onside_attribution.track('rotten', '$OnsideTest::installation', '{"a": 1}')});
			},
		},
		{
			doing => qr/writing how far delivery has come/,
			file => sub { '/base/' },
			begin => sub {
				$node->safe_psql('postgres', 'TRUNCATE onside_attribution.delivery_cursor');
				buy('postgres');
				$node->safe_psql('postgres', q{SELECT onside_attribution.flush('10 s')});
			},
		},
		{
			doing => qr/setting events aside$place/,
			file => sub { $path->('aside') },
			begin => sub {
				$sandbox->behave({ match => { event_name => 'failing' }, status => 500 });
				push @ids, track($node, 'postgres', 'failing');
				wait_until(
					sub {
						return 1 if $machine->is_crashed;
						my $id = eval { track($node, 'postgres') };
						push @ids, $id if defined $id;
						return 0;
					}, undef, 0.3);
			},
		},
	);
	$node->safe_psql('postgres', "TRUNCATE onside_attribution.$_") foreach qw(dead_letter aside);
	my $crashes = 0;
	foreach my $moment (@moments)
	{
		# Nothing else is left for it to write.
		my $pid = poll_worker($node, 'postgres');
		buy('postgres');
		wait_for_flush($node, 'postgres', "it sends before it is $moment->{doing}");
		$node->safe_psql('postgres', 'CHECKPOINT');

		my $position = log_position($node);
		$machine->crash($pid, $moment->{file}->());
		eval { $moment->{begin}->() };
		ok(wait_until(sub { $machine->is_crashed }), 'it crashes');
		wait_for_log_line($node, qr/DETAIL:  It was ended by signal 11 \(.*\) while $moment->{doing}\./,
			$position, 'the log says that it was at that');
		$sandbox->behave;
		wait_until(sub { eval { $node->safe_psql('postgres', 'SELECT 1') } }) or die 'the server is gone';
		push @ids, $unsure
		  if $crashes == 0 && $node->safe_psql('postgres', "SELECT count(*) FROM onside_attribution.outbox WHERE event_id = '$unsure'");
		if (++$crashes == 3)
		{
			poll_status($node, 'postgres', $waits, 'a third crash');
			$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
		}
		poll_worker($node, 'postgres');

		# An event that is refused is judged once another one is accepted.
		buy('postgres');
		wait_for_flush($node, 'postgres', 'it goes on');
	}
	$sandbox->poison(undef);
	arrived_ok($sandbox, \@ids, 'nothing is lost');

	crash_worker('SEGV') foreach 1, 2;
	poll_status($node, 'postgres', $waits, 'the third crash after that');
	$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
};

# ---------------------------------------------------------------------------
# Times
# ---------------------------------------------------------------------------

subtest 'a quarter of an hour' => sub {
	crash_worker('SEGV') foreach 1 .. 3;
	poll_status($node, 'postgres', $waits, 'three crashes');
	buy('postgres');
	my $file = record_file('postgres');
	$node->stop;
	change($file, sub { $_[0]{wait_until} -= 14 * $minute });
	$node->start;
	poll_status($node, 'postgres', $waits, '14 minutes later it is not started');
	$node->stop;
	change($file, sub { $_[0]{wait_until} -= 1 * $minute });
	$node->start;
	wait_for_flush($node, 'postgres', '15 minutes later it sends by itself');
	arrived_ok($sandbox, \@ids, 'everything');
	crash_worker('SEGV');
	poll_status($node, 'postgres', $waits, 'one more crash, and it waits again');

	$node->stop;
	change($file, sub { $_[0]{wait_until} += 60 * $minute });
	$node->start;
	wait_for_flush($node, 'postgres', 'a clock that was set back does not make it wait for an hour');

	# Ten minutes of running behind the second crash.
	$node->stop;
	change($file, sub { $_[0]{ran} += 10 * $minute });
	$node->start;
	foreach my $time (1, 2)
	{
		crash_worker('SEGV');
		buy('postgres');
		wait_for_flush($node, 'postgres', "after ten minutes of running crash $time is no loop");
	}
	crash_worker('SEGV');
	poll_status($node, 'postgres', $waits, 'the third one is');
	$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
	poll_worker($node, 'postgres');
};

subtest 'a file that nobody can use' => sub {
	my $file = record_file('postgres');
	foreach my $content ('', 'x', "\xff" x 200)
	{
		$node->stop;
		open(my $fh, '>:raw', $file) or die "could not write $file: $!";
		print $fh $content;
		close($fh);
		$node->start;
		buy('postgres');
		wait_for_flush($node, 'postgres', length($content) . ' bytes of nonsense do not matter');
	}
};

# ---------------------------------------------------------------------------
# What does not count
# ---------------------------------------------------------------------------

subtest 'only its own crash counts' => sub {
	my %ends = (
		'the crash of a session' => sub {
			my $session = $node->background_psql('postgres');
			my $pid = $session->query_safe('SELECT pg_backend_pid()');
			crash('KILL', $pid);
			eval { $session->quit };
		},
		'the crash of another worker' => sub { crash('SEGV', poll_worker($node, 'other')) },
		'an immediate shutdown' => sub { $node->stop('immediate'); $node->start },
		'a fast shutdown' => sub { $node->restart },
		'pg_terminate_backend' => sub {
			my $pid = poll_worker($node, 'postgres');
			$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
			poll_worker($node, 'postgres', $pid);
		},
		'a command that wants the database for itself' => sub {
			$node->safe_psql('other', 'ALTER DATABASE postgres RENAME TO renamed');
			$node->safe_psql('other', 'ALTER DATABASE renamed RENAME TO postgres');
		},
		'DROP EXTENSION' => sub {
			$node->safe_psql('postgres',
				'DROP EXTENSION onside_attribution; CREATE EXTENSION onside_attribution');
		},
		'the death of the postmaster' => sub {
			my @pids = split /\n/, $node->safe_psql('postgres',
				'SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()');
			$node->kill9;
			ok(!(grep { !wait_for_exit($_) } @pids), 'all processes have noticed');

			# Where nobody waits for it, the postmaster stays as a zombie.
			unlink $node->data_dir . '/postmaster.pid',
			  $node->host . '/.s.PGSQL.' . $node->port . '.lock';
			$node->start;
		},
	);
	foreach my $end (sort keys %ends)
	{
		poll_worker($node, $_) foreach qw(postgres other);
		$node->safe_psql('other', 'SELECT onside_attribution.resume()');
		$ends{$end}() foreach 1 .. 3;
		poll_worker($node, 'postgres');
		buy('postgres');
		wait_for_flush($node, 'postgres', "$end, three times: it sends");
		is(crashes('postgres'), 0, 'and no crash is counted');
		$node->safe_psql('other', 'SELECT onside_attribution.resume()');
	}
	arrived_ok($sandbox, \@ids, 'nothing is lost');
};

# ---------------------------------------------------------------------------
# The launcher
# ---------------------------------------------------------------------------

subtest 'the launcher' => sub {
	foreach my $time (1 .. 3)
	{
		poll_worker($node, 'postgres');
		crash('SEGV', launcher_pid($node));
	}
	my $row = poll_status($node, 'postgres', $waits, 'after three crashes it starts nothing');
	like($row->{state_reason}, qr/the launcher has crashed .* by signal 11/, 'and says why');
	buy('postgres');
	is(worker_pid($node, 'other'), undef, 'there is no worker');
	$node->restart;
	poll_status($node, 'postgres', $waits, 'a restart of the server changes nothing');
	$node->safe_psql('other', 'SELECT onside_attribution.resume()');
	wait_for_flush($node, 'postgres', 'resume() in any database starts it');
	arrived_ok($sandbox, \@ids, 'nothing is lost');
};

# ---------------------------------------------------------------------------
# The database goes
# ---------------------------------------------------------------------------

subtest 'commands on a database whose worker waits' => sub {
	$node->safe_psql('postgres', 'CREATE DATABASE third');
	create_extension($node, 'third');
	crash('SEGV', poll_worker($node, 'third')) foreach 1 .. 3;
	poll_status($node, 'third', $waits, 'it waits');
	$node->safe_psql('postgres', 'ALTER DATABASE third RENAME TO fourth');
	$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE fourth');
	poll_worker($node, 'copy');
	pass('its copy has a worker');
	$node->safe_psql('fourth', 'DROP EXTENSION onside_attribution');
	my @files = map { record_file($_) } qw(fourth copy);
	is(scalar(grep { -e } @files), 2, 'both have a record');
	$node->safe_psql('postgres', "DROP DATABASE $_") foreach qw(fourth copy);
	ok(wait_until(sub { !grep { -e } @files }), 'DROP DATABASE removes it');
};

$node->stop;
done_testing();
