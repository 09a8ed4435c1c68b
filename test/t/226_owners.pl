# What an operator may call works for a role with EXECUTE alone, whoever owns
# the extension's objects: a creator who has lost SUPERUSER, whoever they were
# reassigned to, whomever an event trigger gave each of them as it was made.

use OnsideTest;

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox,
	conf => "onside_attribution.retention = '1h'");

$node->safe_psql('postgres', <<'SQL');
CREATE ROLE app_owner;
CREATE ROLE creator SUPERUSER LOGIN;
CREATE ROLE operator LOGIN;
SQL

# Whatever is made in this database becomes app_owner's at once.
my $giveaway = <<'SQL';
CREATE FUNCTION give_away() RETURNS event_trigger LANGUAGE plpgsql AS $$
DECLARE
    made record;
BEGIN
    FOR made IN SELECT object_type, object_identity FROM pg_event_trigger_ddl_commands()
        WHERE object_type IN ('schema', 'table', 'view', 'function', 'procedure', 'type')
    LOOP
        EXECUTE format('ALTER %s %s OWNER TO app_owner', made.object_type, made.object_identity);
    END LOOP;
END
$$;
CREATE EVENT TRIGGER give_away ON ddl_command_end
    WHEN TAG IN ('CREATE SCHEMA', 'CREATE TABLE', 'CREATE VIEW', 'CREATE FUNCTION', 'CREATE PROCEDURE', 'CREATE TYPE')
    EXECUTE FUNCTION give_away();
SQL

my %ownership = (
	untouched => { },
	demoted => { after => 'ALTER ROLE creator NOSUPERUSER' },
	reassigned => { after => 'REASSIGN OWNED BY creator TO app_owner' },
	given => { before => $giveaway });

# The owner of a table is who its tests are about.
my %owner = (untouched => 'creator', demoted => 'creator', reassigned => 'app_owner', given => 'app_owner');

# A dead letter that the API has refused, and one that nobody has sent.
my $letters = <<'SQL';
INSERT INTO onside_attribution.dead_letter
    (event_id, event_name, payload, event_datetime, installation_id, http_status, error, attempts, recorded_at, failed_at)
SELECT gen_random_uuid(), 'refused', '{}', now(), gen_random_uuid(), status, 'no', attempts, now(), now()
FROM (VALUES (400, 1), (NULL, 0)) AS s(status, attempts)
SQL

foreach my $name (qw(untouched given reassigned demoted))
{
	subtest $name => sub {
		my $case = $ownership{$name};
		my $sql = sub { return $node->safe_psql($name, $_[0]) };

		# As the operator, whose error is the value when there is one.
		my $call = sub {
			my ($out, $error) = ('', '');
			$node->psql($name, "SELECT onside_attribution.$_[0]",
				stdout => \$out, stderr => \$error, extra_params => [ '-U', 'operator' ]);
			return $error || $out;
		};

		$node->safe_psql('postgres', "CREATE DATABASE $name");
		$node->safe_psql($name, $case->{before}) if $case->{before};
		$node->safe_psql($name, 'CREATE EXTENSION onside_attribution',
			extra_params => [ '-U', 'creator' ]);
		$node->safe_psql($name, $case->{after}) if $case->{after};
		poll_worker($node, $name);
		is($sql->("SELECT DISTINCT relowner::regrole FROM pg_class WHERE relname IN ('outbox', 'outbox_2', 'dead_letter')"),
			$owner{$name}, 'the tables are theirs');
		$sql->(<<'SQL');
GRANT USAGE ON SCHEMA onside_attribution TO operator;
GRANT EXECUTE ON FUNCTION onside_attribution.retry_dead_letters, onside_attribution.replay,
    onside_attribution.pause, onside_attribution.resume, onside_attribution.forget TO operator;
SQL

		my $since = $sql->('SELECT clock_timestamp()');
		my $first = track($node, $name, 'first');
		wait_for_flush($node, $name, 'an event is delivered');
		is($call->("replay('$since')"), 1, 'replay()');
		$sql->($letters);
		is($call->('retry_dead_letters()'), 1, 'retry_dead_letters()');
		my $id = $sql->('SELECT event_id FROM onside_attribution.dead_letter');
		is($call->("retry_dead_letters('{$id}')"), 1, 'retry_dead_letters() of one');
		wait_for_flush($node, $name, 'all of it is delivered');
		is($sandbox->events->{$first}, 2, 'what was replayed has come again');
		is($sandbox->events->{$id}, 1, 'what was retried has come');
		is($sql->('SELECT count(*) FROM onside_attribution.dead_letter'), 0, 'no dead letter is left');

		is($call->("pause('by the operator')"), '', 'pause()');
		poll_status($node, $name, { state => 'paused', state_reason => qr/by the operator/ }, 'it is paused');
		is($call->('resume()'), '', 'resume()');
		poll_status($node, $name, { state => 'idle' }, 'it is not any more');

		$sql->('SELECT onside_attribution.pause()');
		poll_status($node, $name, { state => 'paused' }, 'paused');
		track($node, $name, 'forgotten');
		$sql->("INSERT INTO onside_attribution.aside (event_name, payload, event_datetime, installation_id, error) VALUES ('forgotten', '{}', now(), '$OnsideTest::installation', 'no')");
		cmp_ok($call->("forget('$OnsideTest::installation')"), '>=', 2, 'forget()');
		is($sql->('SELECT count(*) FROM onside_attribution.pending'), 0, 'nothing is pending');
		$sql->('SELECT onside_attribution.resume()');

		# The privilege is EXECUTE, and it is one on nothing else.
		foreach my $table (qw(outbox outbox_1 aside dead_letter delivery_cursor control))
		{
			my ($ret, undef, $error) = $node->psql($name, "SELECT * FROM onside_attribution.$table",
				extra_params => [ '-U', 'operator' ]);
			like($error, qr/permission denied for table $table/, "$table is still nothing that it may read");
		}
		$sql->('REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA onside_attribution FROM operator');
		like($call->($_), qr/permission denied for function/, "$_ needs EXECUTE")
		  foreach 'retry_dead_letters()', "replay('-infinity')", 'pause()', 'resume()', "forget('$OnsideTest::installation')";
	};
}

$node->stop;
done_testing();
