# OnsideLoad: sessions that record events in every way there is, and note the
# event_ids in the same transactions.
#
# Each session is a process of its own that runs psql with one script of random
# transactions after the other, and comes back when its connection is lost.
# What a database has committed is thus in the database itself, in the very
# transactions in question: in the tables "ledger", "purchase" and "orders".
# That is the truth to which the API's side is compared.
#
# The scripts follow from the seed alone; what happens at the same time does
# not.
#
#   my $load = OnsideLoad->new(node => $node, databases => [qw(a b)],
#       sessions => 3, seed => 42);
#   $load->set_up($_) foreach qw(a b);    # the extension is there
#   $load->start;
#   $load->hold('a');                     # no session is connected to it
#   $load->release('a');
#   $load->stop;
#   my $ledger = $load->ledger('a');      # { event_id => kind }

package OnsideLoad;

use strict;
use warnings;

use Fcntl                   qw(:flock);
use IPC::Run                ();
use POSIX                   ();
use PostgreSQL::Test::Utils ();
use Time::HiRes             ();

use OnsideTest;

# What the API is to refuse; see OnsideSandbox's poison.
our $poison = 'rotten apple';

# OnsideLoad::dice($seed)
# Returns a function: dice->($n) is a number below n, the same ones for the same
# seed, whoever else asks perl for random numbers.
sub dice
{
	my ($state) = @_;
	my $next = sub {
		use integer;
		$state = ($state * 25_214_903_917 + 11) & (2**48 - 1);
		return $state >> 16;
	};
	$next->() foreach 1 .. 5;
	return sub { return int($next->() / 2**32 * $_[0]) };
}

# The tables.  "purchase" is reported by a trigger for each statement, "orders"
# by one for each row.
my $tables = <<SQL;
CREATE TABLE ledger (event_id uuid, kind text);
CREATE TABLE replayed (n bigint);

CREATE TABLE purchase (
	event_id uuid DEFAULT gen_random_uuid(), customer uuid DEFAULT gen_random_uuid(),
	total numeric, paid_at timestamptz DEFAULT clock_timestamp());
SELECT onside_attribution.attach('purchase', 'purchase_completed', 'customer',
	'{"amount": "total"}', event_datetime => 'paid_at', event_id => 'event_id');

CREATE TABLE orders (
	id bigserial, event_id uuid DEFAULT gen_random_uuid(),
	customer uuid DEFAULT gen_random_uuid(), status text DEFAULT 'new');
CREATE INDEX ON orders (id) WHERE status = 'new';
SELECT onside_attribution.attach('orders', 'order_paid', 'customer',
	'{"order": "id", "status": "status"}', event_id => 'event_id', operation => 'UPDATE',
	condition => \$\$NEW.status = 'paid' AND OLD.status IS DISTINCT FROM 'paid'\$\$);

CREATE FUNCTION buy(kind text, how_many int DEFAULT 1, extra jsonb DEFAULT '{}')
RETURNS void LANGUAGE sql AS \$\$
	INSERT INTO ledger SELECT onside_attribution.track('purchase_completed', gen_random_uuid(),
		jsonb_build_object('kind', kind, 'n', i) || extra), kind
	FROM generate_series(1, how_many) i
\$\$;

-- More subtransactions than a snapshot can hold; each third is rolled back.
CREATE FUNCTION buy_in_subtransactions(how_many int) RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN
	FOR i IN 1 .. how_many LOOP
		BEGIN
			PERFORM buy('subtransaction' || CASE i % 3 WHEN 0 THEN ', never' ELSE '' END);
			IF i % 3 = 0 THEN
				RAISE division_by_zero;
			END IF;
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END;
	END LOOP;
END
\$\$;
SQL

# Ends what others have prepared, as its name says.
my $resolve = <<'SQL';
SELECT format('%s PREPARED %L', split_part(gid, ' ', 1), gid) FROM pg_prepared_xacts
WHERE database = current_database()
SQL

# Each is [ how often, a function of the dice and of a number that is unique
# among all transactions of all sessions ].
my %transaction = (
	autocommit => [ 20, sub { "SELECT buy('autocommit');" } ],
	async => [ 12, sub { "BEGIN; SET LOCAL synchronous_commit = off; SELECT buy('async'); COMMIT;" } ],
	commit => [ 10, sub { "BEGIN; SELECT buy('commit', 3); COMMIT;" } ],
	many => [ 3, sub { "SELECT buy('many', ${\ (10 + $_[0]->(200)) });" } ],
	rollback => [ 8, sub { "BEGIN; SELECT buy('rollback, never', 2); ROLLBACK;" } ],
	big => [ 2, sub { "SELECT buy('big', 3, jsonb_build_object('text', repeat('x', ${\ $_[0]->(5000) })));" } ],
	poison => [ 1, sub { "SELECT buy('poison', 1, '{\"fruit\": \"$poison\"}');" } ],
	track_purchase => [ 5, sub { <<'SQL' } ],
INSERT INTO ledger SELECT onside_attribution.track_purchase(
	gen_random_uuid(), 9.990, 'USD', extra => '{"shop": "München"}'), 'track_purchase';
SQL
	track_batch => [ 3, sub { <<SQL } ],
WITH made AS MATERIALIZED (
	SELECT jsonb_agg(jsonb_build_object('event_name', 'batch', 'event_id', gen_random_uuid(),
		'installation_id', gen_random_uuid(), 'event_datetime', now(), 'payload',
		jsonb_build_object('n', i))) AS events
	FROM generate_series(1, 1 + ${\ $_[0]->(150) }) i
), recorded AS MATERIALIZED (SELECT onside_attribution.track_batch(events) AS n FROM made)
INSERT INTO ledger SELECT (e->>'event_id')::uuid, 'track_batch'
FROM made, recorded, jsonb_array_elements(events) e WHERE n > 0;
SQL
	statement_trigger => [ 8, sub { <<SQL } ],
INSERT INTO purchase (total) VALUES (9.99);
INSERT INTO purchase (total) SELECT n / 100.0 FROM generate_series(1, ${\ $_[0]->(20) }) n;
INSERT INTO purchase (total, customer) VALUES (1, NULL);
SQL
	row_trigger => [ 6, sub { <<'SQL' } ],
INSERT INTO orders (customer) SELECT gen_random_uuid() FROM generate_series(1, 4);
UPDATE orders SET status = 'paid' WHERE id IN (
	SELECT id FROM orders WHERE status = 'new' LIMIT 3 FOR UPDATE SKIP LOCKED);
SQL
	invalid => [ 1, sub { <<'SQL' } ],
BEGIN;
SET LOCAL onside_attribution.on_invalid_event = dead_letter;
INSERT INTO purchase (total) VALUES (1), ('NaN');
COMMIT;
INSERT INTO purchase (total) VALUES ('NaN');
SQL
	insert => [ 4, sub { <<'SQL' } ],
WITH i AS (
	INSERT INTO onside_attribution.outbox (event_name, payload, installation_id)
	SELECT 'inserted', '{}', gen_random_uuid() FROM generate_series(1, 2) RETURNING event_id)
INSERT INTO ledger SELECT event_id, 'insert' FROM i;
SQL
	copy => [ 3, \&_copy ],
	savepoints => [ 8, sub { <<'SQL' } ],
BEGIN;
SELECT buy('outside of a savepoint');
SAVEPOINT a;
SELECT buy('savepoint rolled back, never', 2);
SAVEPOINT b;
SELECT buy('savepoint within, never');
RELEASE b;
ROLLBACK TO a;
SELECT buy('after a savepoint');
SAVEPOINT c;
SELECT buy('savepoint released');
RELEASE c;
COMMIT;
SQL
	subtransactions => [ 2, sub { <<SQL } ],
BEGIN;
SELECT buy_in_subtransactions(${\ (70 + $_[0]->(60)) });
SELECT pg_sleep(0.${\ $_[0]->(5) });
${\ ($_[0]->(4) ? 'COMMIT' : 'ROLLBACK') };
SQL
	error => [ 4, sub { "BEGIN; SELECT buy('error, never', 2); SELECT 1 / 0; SELECT buy('after an error, never'); COMMIT;" } ],
	error_in_savepoint => [ 3, sub { <<'SQL' } ],
BEGIN;
SELECT buy('before an error');
SAVEPOINT a;
SELECT buy('error in a savepoint, never');
SELECT onside_attribution.track('', gen_random_uuid(), '{}');
ROLLBACK TO a;
SELECT buy('after an error');
COMMIT;
SQL
	temporary => [ 2, sub { <<SQL } ],
BEGIN;
CREATE TEMP TABLE basket (n int) ON COMMIT ${\ ($_[0]->(2) ? 'DROP' : 'DELETE ROWS') };
INSERT INTO basket VALUES (1), (2);
SELECT buy('with a temporary table') FROM basket;
COMMIT;
DROP TABLE IF EXISTS basket;
SQL
	temporary_prepared => [ 1, sub { <<SQL } ],
BEGIN;
CREATE TEMP TABLE basket (n int) ON COMMIT DROP;
SELECT buy('prepared with a temporary table, never');
PREPARE TRANSACTION 'COMMIT $_[1]';
SQL
	prepared => [ 6, \&_prepared ],
	resolve => [ 8, sub { "$resolve AND gid NOT LIKE '% kept' ORDER BY random() LIMIT 2 \\gexec" } ],
	long => [ 3, sub { _long($_[0], 'SELECT pg_sleep(%s)') } ],
	idle => [ 2, sub { _long($_[0], '\! sleep %s') } ],
	snapshot => [ 2, sub { <<SQL } ],
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM ${\ ($_[0]->(3) ? 'ledger' : 'onside_attribution.pending') };
\\! sleep ${\ _seconds($_[0]) }
COMMIT;
SQL
	flush => [ 2, sub { "SELECT onside_attribution.flush('${\ $_[0]->(1000) } ms');" } ],
	pause => [ 1, sub { "SELECT onside_attribution.pause('chaos'); SELECT buy('paused'); SELECT onside_attribution.resume();" } ],
	retry => [ 1, sub { 'SELECT onside_attribution.retry_dead_letters();' } ],
	retry_rollback => [ 1, sub { 'BEGIN; SELECT onside_attribution.retry_dead_letters(); ROLLBACK;' } ],
	replay => [ 1, sub { <<'SQL' } ],
INSERT INTO replayed SELECT onside_attribution.replay(now() - interval '300 ms');
SQL
);

sub _seconds
{
	my ($dice) = @_;
	return sprintf '%.1f', (1 + $dice->(15)) / 10;
}

sub _long
{
	my ($dice, $wait) = @_;
	my ($end, $never) = $dice->(3) ? ('COMMIT', '') : ('ROLLBACK', ', never');
	return "BEGIN;\nSELECT buy('long$never', 2);\n"
	  . sprintf("$wait\n;\n", _seconds($dice))
	  . "SELECT buy('long, later$never');\n$end;";
}

sub _prepared
{
	my ($dice, $number) = @_;
	my ($fate, $never) = $dice->(3) ? ('COMMIT', '') : ('ROLLBACK', ', never');
	my $kept = $dice->(12) ? '' : ' kept';
	return <<SQL;
BEGIN;
SELECT buy('prepared$never', 2);
SAVEPOINT a;
SELECT buy('prepared in a savepoint$never');
SAVEPOINT b;
SELECT buy('prepared in a savepoint rolled back, never');
ROLLBACK TO b;
PREPARE TRANSACTION '$fate $number$kept';
SQL
}

sub _copy
{
	my ($dice) = @_;
	my @ids = map { _uuid($dice) } 1 .. 1 + $dice->(30);
	return join "\n",
	  'BEGIN;',
	  'COPY onside_attribution.outbox (event_id, event_name, payload, event_datetime, installation_id) FROM STDIN;',
	  (map { "$_\tcopied\t{\"n\": 1}\t2026-05-05 12:00:00+02\t$OnsideTest::installation" } @ids),
	  '\.',
	  'COPY ledger FROM STDIN;',
	  (map { "$_\tcopy" } @ids),
	  '\.',
	  ($dice->(5) ? 'COMMIT;' : 'ROLLBACK;');
}

# Unique, even if the same seed is taken twice for two sessions.
sub _uuid
{
	my ($dice) = @_;
	return sprintf '%08x-%04x-4%03x-8%03x-%04x%08x', $dice->(2**32),
	  $dice->(2**16), $dice->(2**12), $dice->(2**12), $dice->(2**16), $dice->(2**32);
}

my @deck = map { ($_) x $transaction{$_}[0] } sort keys %transaction;

# OnsideLoad->new(%options), set_up($database), start, stop
# sessions is their number for each database.  stop waits until each has
# ended its script.
sub new
{
	my ($class, %options) = @_;
	my $self = bless { sessions => 3, pids => [], %options }, $class;
	$self->{dir} = PostgreSQL::Test::Utils::tempdir();
	return $self;
}

sub set_up
{
	my ($self, $database) = @_;
	$self->{node}->safe_psql($database, $tables);
	return;
}

sub start
{
	my ($self) = @_;
	unlink $self->_file('stop');
	foreach my $database (@{ $self->{databases} })
	{
		push @{ $self->{pids} }, $self->_session($database) foreach 1 .. $self->{sessions};
	}
	return;
}

sub stop
{
	my ($self) = @_;
	_touch($self->_file('stop'));
	waitpid $_, 0 foreach splice @{ $self->{pids} };
	return;
}

sub _file
{
	my ($self, $name) = @_;
	return "$self->{dir}/$name";
}

sub _touch
{
	my ($file) = @_;
	open(my $fh, '>', $file) or die "could not write $file: $!";
	return $fh;
}

sub _session
{
	my ($self, $database) = @_;
	my $number = ++$self->{started};
	my $parent = $$;
	my $pid = fork() // die "could not fork: $!";
	return $pid if $pid;

	# The child.  It ends without END, which is the parent's.
	my $dice = dice($self->{seed} * 1000 + $number);
	my $scripts = 0;
	my $lost = 0;
	until (-e $self->_file('stop') || getppid() != $parent)
	{
		if (-e $self->_file("gate.$database"))
		{
			Time::HiRes::sleep(0.02);
			next;
		}
		eval {
			my $lock = _touch($self->_file("lock.$database.$number"));
			flock($lock, LOCK_EX);
			if (!-e $self->_file("gate.$database"))
			{
				my $script = _script($dice, "$self->{seed}.$number." . ++$scripts);
				$lost = !$self->_run($database, $script);
			}
		};
		Time::HiRes::sleep(0.1) if $lost;
	}
	POSIX::_exit(0);
}

sub _script
{
	my ($dice, $name) = @_;
	my @sql = ("SET client_min_messages = error;\n");

	push @sql, "SET synchronous_commit = off;\n" unless $dice->(4);
	foreach my $i (1 .. 5 + $dice->(15))
	{
		my $kind = $deck[ $dice->(scalar @deck) ];
		my $sql = $transaction{$kind}[1]->($dice, "$name.$i");
		chomp $sql;
		push @sql, "$sql\n";

		# Whatever a transaction that failed to be prepared has left.
		push @sql, "ROLLBACK;\n" if $kind =~ /prepared/;
	}
	return join '', @sql;
}

# False if the connection was lost, or could not be made.
sub _run
{
	my ($self, $database, $script) = @_;
	my $out = '';
	IPC::Run::run(
		[
			'psql', '-X', '-q', '-A', '-t', '-f', '-', '-d',
			$self->{node}->connstr($database)
		],
		'<', \$script, '>&', \$out) and return 1;
	return 0;
}

# hold($database), release($database)
# Between them no session is connected to the database, nor is anything prepared
# in it.  Returns false if the sessions have not left in time.
sub hold
{
	my ($self, $database) = @_;
	my $node = $self->{node};

	_touch($self->_file("gate.$database"));
	foreach my $file (glob $self->_file("lock.$database.*"))
	{
		open(my $lock, '<', $file) or die "could not open $file: $!";
		wait_until(sub { flock($lock, LOCK_EX | LOCK_NB) }) or return 0;
	}
	$self->resolve($database);
	return wait_until(
		sub {
			my $n = eval {
				$node->safe_psql('postgres', <<SQL)
SELECT count(*) FROM pg_stat_activity WHERE datname = '$database' AND backend_type = 'client backend'
SQL
			};
			return defined $n && $n eq '0';
		});
}

sub release
{
	my ($self, $database) = @_;
	unlink $self->_file("gate.$database");
	return;
}

# resolve($database)
# Commits what is prepared in the database or rolls it back, as had been decided
# when it was prepared.
sub resolve
{
	my ($self, $database) = @_;
	$self->_run($database, "SET client_min_messages = error;\n$resolve \\gexec\n")
	  or die "could not end the prepared transactions of $database";
	return;
}

# ledger($database), never_sent($database)
# What is committed: { event_id => kind }.  The second one has the event_ids of
# rows that are no valid events: they can only be in dead_letter.
sub ledger
{
	my ($self, $database) = @_;
	return { map { split /\|/ } split /\n/, $self->{node}->safe_psql($database, <<'SQL') };
SELECT event_id, kind FROM ledger
UNION ALL SELECT event_id, 'statement trigger' FROM purchase WHERE customer IS NOT NULL
UNION ALL SELECT event_id, 'row trigger' FROM orders WHERE status = 'paid'
SQL
}

sub never_sent
{
	my ($self, $database) = @_;
	return { map { $_ => 1 } @{ committed($self->{node}, $database,
		"SELECT event_id FROM purchase WHERE total = 'NaN'") } };
}

1;
