# What a view of ours hides stays hidden: a function in a reader's WHERE, however
# cheap it says it is, sees the rows of the view and no others.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use Test::More;

use OnsideSandbox;
use OnsideTest;

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox, conf => "onside_attribution.retention = '1h'");
create_extension($node, 'postgres');

# Delivered events, which the outbox still holds; and pending ones.
track($node, 'postgres', 'delivered', '{"secret": "old"}') foreach 1 .. 3;
wait_for_flush($node, 'postgres', 'some events are delivered');
$node->safe_psql('postgres', 'SELECT onside_attribution.pause()');
poll_status($node, 'postgres', { state => 'paused' }, 'sending is paused');
track($node, 'postgres', 'pending', '{"secret": "new"}') foreach 1 .. 2;
is($node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.outbox'), 5, 'the outbox holds all of them');

# Triggers, of which one is attached.
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE shop (id bigint PRIMARY KEY, inst uuid, uid uuid DEFAULT gen_random_uuid());
CREATE FUNCTION other() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER other_trigger AFTER INSERT ON shop FOR EACH ROW EXECUTE FUNCTION other('secret');
SELECT onside_attribution.attach('shop', 'bought', 'inst', '{}', event_id => 'uid');
CALL onside_attribution.backfill('shop', 'bought');
CREATE ROLE reader LOGIN;
CREATE SCHEMA AUTHORIZATION reader;
GRANT USAGE ON SCHEMA onside_attribution TO reader;
GRANT SELECT ON onside_attribution.pending, onside_attribution.attached, onside_attribution.backfill_progress TO reader;
GRANT EXECUTE ON FUNCTION onside_attribution.trigger_mapping TO reader;
SET SESSION AUTHORIZATION reader;
CREATE FUNCTION reader.leak(what text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$
BEGIN
    RAISE NOTICE 'leaked: %', what;
    RETURN true;
END
$$;
SQL

# What the function sees, each value once.
sub leaked
{
	my ($query) = @_;
	my ($stdout, $stderr) = ('', '');
	my $retval = $node->psql('postgres', $query,
		extra_params => [ '-U', 'reader' ], stdout => \$stdout, stderr => \$stderr);
	is($retval, 0, "$query: runs");
	my %seen = map { $_ => 1 } $stderr =~ /leaked: (.*)$/mg;
	return join(' ', sort keys %seen);
}

$node->safe_psql('postgres', q{INSERT INTO onside_attribution.aside (event_name, payload, event_datetime, installation_id, error) VALUES ('aside', '{"secret": "new"}', now(), gen_random_uuid(), 'no')});
is(leaked('SELECT FROM onside_attribution.pending WHERE reader.leak(event_name)'), 'aside pending', 'pending: its events alone');
is(leaked(q{SELECT FROM onside_attribution.pending WHERE reader.leak(payload ->> 'secret') AND event_name <> 'x'}),
	'new', 'pending: also beside another condition');
is(leaked('SELECT FROM onside_attribution.pending p JOIN pg_class c ON reader.leak(p.event_name) LIMIT 1'),
	'aside', 'pending: also in a join');
is(leaked('SELECT FROM onside_attribution.attached WHERE reader.leak(trigger_name::text)'), 'onside_bought', 'attached: its triggers alone');
is(leaked('SELECT FROM onside_attribution.backfill_progress WHERE reader.leak(event_name)'), 'bought', 'backfill_progress: its rows');

# The kind: every view that leaves out rows.
is($node->safe_psql('postgres', <<'SQL'), '', 'every view with a WHERE is a security barrier');
SELECT oid::regclass FROM pg_class
WHERE relnamespace = 'onside_attribution'::regnamespace AND relkind = 'v'
  AND pg_get_viewdef(oid) ~ '\m(WHERE|JOIN|HAVING|LIMIT|CASE)\M'
  AND NOT coalesce('security_barrier=true' = ANY (reloptions), false)
SQL

$node->stop;
$sandbox->stop;
done_testing();
