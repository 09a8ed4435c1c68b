# Five shops as they are found, reduced to what matters, and the one that most have
# in common: exactly the right events come out, to the last digit of an amount, by
# trigger with single rows and with statements for many, by backfill after detach
# and beside the trigger, and in a database that was dumped and restored; always
# with the same event_ids.

use Digest::SHA ();
use OnsideTest;

my $ada = '0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9';
my $bob = '1f1e2d3c-4b5a-1978-8695-a4b3c2d1e0f9';

# ---------------------------------------------------------------------------
# What has to come out
# ---------------------------------------------------------------------------

# event_id(), said again.
sub event_id
{
	my $sha = Digest::SHA->new(256);
	$sha->add(pack('Q>', length $_), $_) foreach @_;
	my @bytes = unpack 'C16', $sha->digest;
	$bytes[6] = ($bytes[6] & 0x0f) | 0x40;
	$bytes[8] = ($bytes[8] & 0x3f) | 0x80;
	return sprintf '%02x' x 4 . '-%02x%02x' x 4 . '%02x' x 4, @bytes;
}

# An event as it is sent.  Without a time it is one from now.
sub purchase
{
	my ($installation_id, $amount, $currency, $at, @key) = @_;
	return sprintf '{"event_name":"purchase_completed",'
	  . '"payload":{"amount": "%s", "currency": "%s"},"event_datetime":"%s",'
	  . '"event_id":"%s","installation_id":"%s"}',
	  $amount, $currency, $at // 'NOW', event_id(@key), $installation_id;
}

is(event_id('orders', '51'), '3346c9a9-2201-438e-8609-6180e40e5021', 'this event_id() is the one of the contract');

# ---------------------------------------------------------------------------
# The shops
# ---------------------------------------------------------------------------

my @shops = (
	{
		name => 'currency, test mode and installation are one or two joins away',
		table => 'pay',
		setup => <<'SQL',
CREATE TABLE fair(id bigint PRIMARY KEY, cur text);
CREATE TABLE ord(id bigint PRIMARY KEY, fair bigint, test bool, meta text);
CREATE TABLE pay(id bigint PRIMARY KEY, ord bigint, st text, amt numeric(13,2), paid timestamptz);
CREATE FUNCTION report_pay(p pay) RETURNS SETOF onside_attribution.event
LANGUAGE sql STABLE AS $$
    SELECT e.* FROM ord o JOIN fair f ON f.id = o.fair, LATERAL onside_attribution.purchase(
        (o.meta::jsonb ->> 'installation_id')::uuid, p.amt, f.cur, p.paid, onside_attribution.event_id('pay', p.id::text)) e
    WHERE o.id = p.ord AND NOT o.test
$$;
SQL
		attach => q{mapper => 'report_pay', becomes => $$NEW.st = 'confirmed'$$},
		truncate => 'fair, ord, pay',
		single => [
			q{INSERT INTO fair VALUES (1, 'eur')},
			qq{INSERT INTO ord VALUES (1, 1, false, '{"installation_id": "$ada"}'), (2, 1, true, '{"installation_id": "$ada"}'), (3, 1, false, NULL)},
			(map { "INSERT INTO pay VALUES ($_, $_, 'created', 20, NULL)" } 1 .. 3),
			(map { "UPDATE pay SET st = 'confirmed', paid = '2026-05-05 14:00+02' WHERE id = $_" } 1 .. 3),
			q{UPDATE pay SET amt = amt},
		],
		bulk => [
			q{INSERT INTO fair VALUES (1, 'EUR')},
			qq{INSERT INTO ord VALUES (1, 1, false, '{"installation_id": "$ada"}'), (2, 1, true, '{"installation_id": "$ada"}'), (3, 1, false, NULL)},
			q{INSERT INTO pay SELECT i, i, 'created', 20 FROM generate_series(1, 3) AS i},
			q{UPDATE pay SET st = 'confirmed', paid = '2026-05-05 14:00+02'},
		],
		events => [ purchase($ada, '20.00', 'EUR', '2026-05-05T12:00:00Z', 'pay', 1) ],
	},
	{
		name => 'a mirror of a payment provider',
		table => 'pi',
		setup => <<'SQL',
CREATE TABLE pi(id text PRIMARY KEY, amt int, cur text, created int, st text, meta jsonb);
CREATE FUNCTION report_pi(p pi) RETURNS SETOF onside_attribution.event
LANGUAGE sql STABLE AS $$
    SELECT e.* FROM onside_attribution.purchase((p.meta ->> 'installation_id')::uuid,
        onside_attribution.amount(p.amt, CASE WHEN p.cur IN ('jpy', 'krw', 'vnd') THEN 0 ELSE 2 END), p.cur,
        to_timestamp(p.created), onside_attribution.event_id('pi', p.id)) e
$$;
SQL
		attach => q{mapper => 'report_pi', becomes => $$NEW.st = 'succeeded'$$},
		truncate => 'pi',
		single => [
			(
				map {
					qq{INSERT INTO pi VALUES ('pi_1', 990, 'usd', 1777982400, '$_', '{"installation_id": "$ada"}')
					   ON CONFLICT (id) DO UPDATE SET st = excluded.st}
				} qw(open succeeded succeeded)
			),
			qq{INSERT INTO pi VALUES ('pi_2', 500, 'jpy', 1777982401, 'succeeded', '{"installation_id": "$bob"}')},
		],
		bulk => [
			map {
				qq{INSERT INTO pi VALUES ('pi_1', 990, 'usd', 1777982400, '$_', '{"installation_id": "$ada"}'),
				   ('pi_2', 500, 'jpy', 1777982401, 'succeeded', '{"installation_id": "$bob"}')
				   ON CONFLICT (id) DO UPDATE SET st = excluded.st}
			} qw(open succeeded succeeded)
		],
		events => [
			purchase($ada, '9.90', 'USD', '2026-05-05T12:00:00Z', 'pi', 'pi_1'),
			purchase($bob, '500', 'JPY', '2026-05-05T12:00:01Z', 'pi', 'pi_2'),
		],
	},
	{
		name => 'the reference is written after the state',
		table => 'p',
		setup => <<'SQL',
CREATE TABLE o(id int PRIMARY KEY, cur text, inst uuid);
CREATE TABLE p(id int PRIMARY KEY, o int, cents int, st text);
CREATE FUNCTION report_p(p p) RETURNS SETOF onside_attribution.event
LANGUAGE sql STABLE AS $$
    SELECT e.* FROM o, LATERAL onside_attribution.purchase(o.inst, onside_attribution.amount(p.cents, 2), o.cur, now(),
        onside_attribution.event_id('p', p.id::text)) e
    WHERE o.id = p.o
$$;
SQL
		attach => q{mapper => 'report_p', becomes => $$NEW.st = 'Settled'$$, deferred => true},
		truncate => 'o, p',
		single => [
			qq{INSERT INTO o VALUES (1, 'USD', '$ada')},
			map {
				qq{BEGIN; INSERT INTO p VALUES ($_, NULL, 1099, 'Created'); UPDATE p SET st = 'Settled' WHERE id = $_;
				   UPDATE p SET o = 1 WHERE id = $_; COMMIT}
			} 1 .. 2
		],
		bulk => [
			qq{INSERT INTO o VALUES (1, 'USD', '$ada')},
			q{BEGIN; INSERT INTO p SELECT i, NULL, 1099, 'Created' FROM generate_series(1, 2) AS i; UPDATE p SET st = 'Settled'; UPDATE p SET o = 1; COMMIT}
		],
		events => [ map { purchase($ada, '10.99', 'USD', undef, 'p', $_) } 1 .. 2 ],
	},
	{
		name => 'one row is several purchases, and has no price',
		table => 'sub',
		setup => <<'SQL',
CREATE TYPE plan AS ENUM('monthly', 'yearly');
CREATE TABLE usr(id int PRIMARY KEY, inst uuid);
CREATE TABLE sub(id int PRIMARY KEY, usr int, plan plan, tx text, expires timestamp);
CREATE FUNCTION report_sub(s sub) RETURNS SETOF onside_attribution.event
LANGUAGE sql STABLE AS $$
    SELECT e.* FROM usr u, LATERAL onside_attribution.purchase(u.inst,
        CASE s.plan WHEN 'monthly' THEN 3.99 WHEN 'yearly' THEN 39.99 END, 'USD', (s.expires - interval '1 month') AT TIME ZONE 'UTC',
        onside_attribution.event_id('sub', s.tx, extract(epoch FROM s.expires)::bigint::text)) e
    WHERE u.id = s.usr
$$;
SQL
		attach => q{mapper => 'report_sub', operation => 'INSERT OR UPDATE', condition => $$OLD.expires IS DISTINCT FROM NEW.expires$$},
		truncate => 'usr, sub',
		single => [
			qq{INSERT INTO usr VALUES (1, '$ada'), (2, '$bob')},
			(map { "INSERT INTO sub VALUES ($_, $_, 'monthly', 'tx_$_', '2026-06-05 12:00')" } 1 .. 2),
			(map { "UPDATE sub SET expires = '2026-07-05 12:00' WHERE id = $_" } 1 .. 2),
			(map { "UPDATE sub SET usr = usr, expires = expires WHERE id = $_" } 1 .. 2),
		],
		bulk => [
			qq{INSERT INTO usr VALUES (1, '$ada'), (2, '$bob')},
			q{INSERT INTO sub SELECT i, i, 'monthly', 'tx_' || i, '2026-06-05 12:00' FROM generate_series(1, 2) AS i},
			q{UPDATE sub SET expires = '2026-07-05 12:00'},
			q{UPDATE sub SET usr = usr},
		],
		events => [
			map { my $i = $_; map { purchase($i == 1 ? $ada : $bob, '3.99', 'USD', $_->[0], 'sub', "tx_$i", $_->[1]) }
				[ '2026-05-05T12:00:00Z', 1780660800 ], [ '2026-06-05T12:00:00Z', 1783252800 ] } 1 .. 2
		],

		# The rows as they are know of the last renewal alone.
		held => [
			map { purchase($_ == 1 ? $ada : $bob, '3.99', 'USD', '2026-06-05T12:00:00Z', 'sub', "tx_$_", 1783252800) } 1 .. 2
		],
	},
	{
		name => 'several events in a row',
		table => 'tx',
		setup => <<'SQL',
CREATE TABLE tx(ledger text, id bigint, postings text, meta jsonb, at timestamp, PRIMARY KEY (ledger, id));
CREATE FUNCTION report_tx(t tx) RETURNS SETOF onside_attribution.event
LANGUAGE sql STABLE AS $$
    SELECT e.* FROM jsonb_array_elements(t.postings::jsonb) WITH ORDINALITY AS p (posting, position),
        LATERAL onside_attribution.purchase((t.meta ->> 'installation_id')::uuid,
            onside_attribution.amount((posting ->> 'amount')::numeric, coalesce(nullif(split_part(posting ->> 'asset', '/', 2), '')::int, 0)),
            split_part(posting ->> 'asset', '/', 1), t.at AT TIME ZONE 'UTC',
            onside_attribution.event_id('tx', t.ledger, t.id::text, position::text)) e
    WHERE posting ->> 'source' = 'world'
$$;
SQL
		attach => q{mapper => 'report_tx'},
		truncate => 'tx',
		single => [ map { transfer($_) } 1 .. 2 ],
		bulk => [ transfer(1, 2) ],
		events => [
			map {
				(
					purchase($ada, '9.90', 'USD', '2026-05-05T12:00:00.5Z', 'tx', 'main', $_, 1),
					purchase($ada, '500', 'JPY', '2026-05-05T12:00:00.5Z', 'tx', 'main', $_, 2)
				)
			} 1 .. 2
		],
	},
	{
		name => 'what most have in common',
		table => 'orders',
		setup => <<'SQL',
CREATE TABLE users(id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, installation_id uuid);
CREATE TABLE orders(id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id bigint REFERENCES users, amount_cents int,
                    state text DEFAULT 'new', paid_at timestamptz);
CREATE FUNCTION report_order(o orders) RETURNS SETOF onside_attribution.event
LANGUAGE sql STABLE AS $$
    SELECT p.* FROM users u, LATERAL onside_attribution.purchase(u.installation_id, onside_attribution.amount(o.amount_cents, 2), 'USD', o.paid_at,
        onside_attribution.event_id('orders', o.id::text)) p
    WHERE u.id = o.user_id
$$;
SQL
		attach => q{mapper => 'report_order', becomes => $$NEW.state = 'paid'$$},
		truncate => 'orders, users',
		single => [
			qq{INSERT INTO users (installation_id) VALUES ('$ada'), (NULL)},
			(map { "INSERT INTO orders (user_id, amount_cents) VALUES ($_, 990)" } 1, 2, 1),
			(map { "UPDATE orders SET state = 'paid', paid_at = '2026-05-05 12:00Z' WHERE id = $_" } 1 .. 3),
			q{UPDATE orders SET state = 'refunded'},
		],
		bulk => [
			qq{INSERT INTO users (installation_id) VALUES ('$ada'), (NULL)},
			q{INSERT INTO orders (user_id, amount_cents) SELECT user_id, 990 FROM unnest(ARRAY[1, 2, 1]) AS user_id},
			q{UPDATE orders SET state = 'paid', paid_at = '2026-05-05 12:00Z'},
		],
		events => [ map { purchase($ada, '9.90', 'USD', '2026-05-05T12:00:00Z', 'orders', $_) } 1, 3 ],
	},
);

# One INSERT of these rows.
sub transfer
{
	return 'INSERT INTO tx VALUES ' . join ', ', map {
		qq{('main', $_, '[{"source":"world","amount":990,"asset":"USD/2"}, {"source":"world","amount":500,"asset":"JPY"}, }
		  . qq{{"source":"a","amount":10,"asset":"USD/2"}]', '{"installation_id": "$ada"}', '2026-05-05 12:00:00.5')}
	} @_;
}

# ---------------------------------------------------------------------------
# What comes out
# ---------------------------------------------------------------------------

# Nothing is sent, so that every event stays where it can be seen.
my $node = onside_node('main', conf => 'onside_attribution.enabled = off');
$node->safe_psql('postgres', 'CREATE DATABASE shops');
$node->safe_psql('shops', 'CREATE EXTENSION onside_attribution');
# A session's settings must not get into an event_id or an amount.
$node->safe_psql('postgres', "ALTER DATABASE shops SET datestyle = 'SQL, DMY'; ALTER DATABASE shops SET timezone = 'Asia/Kathmandu'");

sub sql { return $node->safe_psql(@_) }

# No event of the shops is as young as this test.
my $started = sql('shops', q{SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS')});

# What is in the outbox, in the form in which it is sent: as the columns have it, or
# as preview() says.
sub recorded
{
	my ($database, $form) = @_;
	my @events = split /\n/, sql($database, "SELECT $form FROM onside_attribution.outbox");
	s/"event_datetime":"\K([^"]*)/$1 ge $started ? 'NOW' : $1/e foreach @events;
	return sort @events;
}

my $columns = <<'SQL';
format('{"event_name":"%s","payload":%s,"event_datetime":"%sZ","event_id":"%s","installation_id":"%s"}', event_name, payload,
    rtrim(rtrim(to_char(event_datetime AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'), '0'), '.'), event_id, installation_id)
SQL

sub empty
{
	my ($database, $shop) = @_;
	sql($database, "TRUNCATE onside_attribution.outbox; TRUNCATE $shop->{truncate} RESTART IDENTITY");
	return;
}

sub run_all
{
	my ($database, $statements) = @_;
	sql($database, $_) foreach @$statements;
	return;
}

sub attach
{
	my ($database, $shop) = @_;
	sql($database, "SET client_min_messages = error; SELECT onside_attribution.attach('$shop->{table}', 'purchase_completed', $shop->{attach})");
	return;
}

# backfill() commits, so nothing may be in front of it.
sub backfill
{
	my ($database, $shop) = @_;
	sql($database, "CALL onside_attribution.backfill('$shop->{table}', 'purchase_completed')");
	return;
}

sub events_ok
{
	my ($database, $expected, $name) = @_;
	my @events = recorded($database, $columns);
	is_deeply(\@events, [ sort @$expected ], $name)
	  or diag(explain(\@events), sql($database, 'SELECT error, payload FROM onside_attribution.dead_letter'));
	is_deeply([ recorded($database, 'onside_attribution.preview(event_id)') ], \@events, 'and so they are sent');
	is(sql($database, 'SELECT count(*) FROM onside_attribution.dead_letter'), 0, 'no dead letter');
	return;
}

sub unique
{
	my %seen;
	return grep { !$seen{$_}++ } @_;
}

foreach my $shop (@shops)
{
	subtest $shop->{name} => sub {
		my $held = $shop->{held} // $shop->{events};

		sql('shops', $shop->{setup});
		attach('shops', $shop);
		run_all('shops', $shop->{single});
		events_ok('shops', $shop->{events}, 'by trigger, row by row');

		empty('shops', $shop);
		run_all('shops', $shop->{bulk});
		events_ok('shops', $shop->{events}, 'by trigger, many rows in a statement');

		# Beside the trigger: what it has reported comes again, and is the same.
		backfill('shops', $shop);
		my @both = recorded('shops', $columns);
		is(scalar @both, @{ $shop->{events} } + @$held, 'backfill beside the trigger records what the table holds');
		is_deeply([ unique(@both) ], [ sort @{ $shop->{events} } ], 'as the very same events');

		# After it: rows that were written while nothing was attached are in, too.
		sql('shops', "SELECT onside_attribution.detach('$shop->{table}', 'purchase_completed')");
		empty('shops', $shop);
		run_all('shops', $shop->{bulk});
		events_ok('shops', [], 'nothing is reported after detach');
		attach('shops', $shop);
		backfill('shops', $shop);
		events_ok('shops', $held, 'by backfill');
		sql('shops', 'TRUNCATE onside_attribution.outbox');
	};
}

# A dump has the tables, the mappers and the triggers.
my $dump = "$PostgreSQL::Test::Utils::tmp_check/shops.sql";
$node->run_log([ 'pg_dump', '--file', $dump, $node->connstr('shops') ]) or BAIL_OUT('no dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $node->connstr('restored') ], 'dumped and restored');
foreach my $shop (@shops)
{
	subtest "restored: $shop->{name}" => sub {
		backfill('restored', $shop);
		events_ok('restored', $shop->{held} // $shop->{events}, 'by backfill');
		foreach my $way (qw(single bulk))
		{
			empty('restored', $shop);
			run_all('restored', $shop->{$way});
			events_ok('restored', $shop->{events}, "by trigger, $way");
		}
		sql('restored', 'TRUNCATE onside_attribution.outbox');
	};
}

$node->stop;
done_testing();
