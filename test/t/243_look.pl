# The look at recent rows that attach takes waits for nobody's lock, makes nobody
# wait, and is no error: where it meets a lock, or is cut short, attach does its work
# without it.  A cancel ends attach all the same.

use OnsideTest;

# Whoever waits for a lock in vain waits until the test is killed.
my $node = onside_node('main', conf => "onside_attribution.enabled = off\ndeadlock_timeout = '1h'");
create_extension($node, 'postgres');
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE users (id int PRIMARY KEY, installation_id uuid);
CREATE TABLE orders (id int PRIMARY KEY, user_id int);
INSERT INTO users VALUES (1, NULL);
INSERT INTO orders VALUES (1, 1);
CREATE FUNCTION report_order(o orders) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS
$$ SELECT p.* FROM users u, LATERAL onside_attribution.purchase(u.installation_id, 1, 'USD') p WHERE u.id = o.user_id $$;
CREATE FUNCTION reads(o orders) RETURNS SETOF onside_attribution.event LANGUAGE plpgsql STABLE AS
$$ BEGIN RETURN QUERY SELECT * FROM report_order(o); END $$;

-- It can be held up where nobody has a lock on a table.
CREATE FUNCTION held_up(o orders) RETURNS SETOF onside_attribution.event LANGUAGE sql AS
$$ SELECT p.* FROM (SELECT pg_advisory_xact_lock(1)) AS a, LATERAL onside_attribution.purchase(NULL, 1, 'USD') p $$;
CREATE FUNCTION sleeps(o orders) RETURNS SETOF onside_attribution.event LANGUAGE sql AS
$$ SELECT p.* FROM (SELECT pg_sleep(600)) AS a, LATERAL onside_attribution.purchase(NULL, 1, 'USD') p $$;
SQL

# What attach says.
sub attach
{
	my ($event, $args) = @_;
	my ($stdout, $stderr) = ('', '');
	my $ret = $node->psql('postgres', "SELECT onside_attribution.attach($args)",
		stdout => \$stdout, stderr => \$stderr, timeout => patience());
	is("$ret $stdout", "0 onside_$event", "$event is attached");
	return $stderr;
}

like(attach('seen', q{'orders', 'seen', mapper => 'report_order'}), qr/installation_id is NULL in 1 of 1 rows/,
	'what is free is looked at');

my $other = $node->background_psql('postgres', timeout => 10 * patience());
sub held
{
	my ($command) = @_;
	$other->query_safe("BEGIN; $command");
	return;
}

held('LOCK users IN ACCESS EXCLUSIVE MODE');
unlike(attach('users_locked', q{'orders', 'users_locked', mapper => 'reads'}),
	qr/WARNING/, 'a table that the mapper reads is locked: no look, and no warning of it');
my ($stdout, $stderr) = ('', '');
$node->psql('postgres', q{SELECT onside_attribution.attach('orders', 'in vain', mapper => 'report_order')},
	stderr => \$stderr, timeout => patience());
like($stderr, qr/lock timeout.*HINT:.*Try again/s, 'one that has to be planned for attach is waited for as long as the table is');
$other->query_safe('ROLLBACK');

held('SELECT pg_advisory_xact_lock(1)');
unlike(attach('held_up', q{'orders', 'held_up', mapper => 'held_up'}), qr/WARNING/, 'nor where it waits for something else');
$other->query_safe('ROLLBACK');

# A row that was written, and has not been committed, is nobody's to see.
held('INSERT INTO users VALUES (2, NULL)');
like(attach('written', q{'orders', 'written', mapper => 'report_order'}), qr/ in 1 of 1 rows/, 'a writer holds up no look');
$other->query_safe('ROLLBACK');

unlike(attach('sleeps', q{'orders', 'sleeps', mapper => 'sleeps'}), qr/WARNING/, 'a mapper that takes its time is left');

# The cancel of a person ends attach.
$node->psql('postgres', <<'SQL', stdout => \$stdout, stderr => \$stderr, on_error_stop => 0);
CREATE FUNCTION cancels(o orders) RETURNS SETOF onside_attribution.event LANGUAGE sql AS
$$ SELECT p.* FROM (SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(600)) AS a, LATERAL onside_attribution.purchase(NULL, 1, 'USD') p $$;
SELECT onside_attribution.attach('orders', 'cancelled', mapper => 'cancels');
SELECT count(*) FROM onside_attribution.attached WHERE event_name = 'cancelled';
SQL
like($stderr, qr/ERROR:.*canceling statement due to user request/, 'a cancel within the look ends attach');
is($stdout, '0', 'and nothing is attached');

# The locks of the look are gone before those of attach are asked for.
$node->psql('postgres', <<'SQL', stdout => \$stdout, stderr => \$stderr);
BEGIN;
SELECT onside_attribution.attach('orders', 'locks', mapper => 'reads');
SELECT count(*) FROM pg_locks WHERE relation = 'users'::regclass AND pid = pg_backend_pid();
ROLLBACK;
SQL
like($stdout, qr/^onside_locks\n0$/, 'no lock of the look is left');

$other->quit;
$node->stop;
done_testing();
