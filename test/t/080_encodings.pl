# Whatever the database's encoding is, a request is UTF-8 and says what was
# recorded; what cannot be told in UTF-8 is refused where it is recorded.

use JSON::PP ();
use OnsideTest;

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox);

# Characters by number, so that this file has to be in no encoding: they are
# sent from a client that speaks UTF-8.
my %text = (
	UTF8 => "K\x{e4}ufe \x{65e5}\x{672c}\x{8a9e} \x{1f355}",
	LATIN1 => "K\x{e4}ufe \x{ff}\x{a0}",
	KOI8R => "\x{41f}\x{43e}\x{43a}\x{443}\x{43f}\x{43a}\x{430}",
	EUC_JP => "\x{65e5}\x{672c}\x{8a9e}\x{30c6}\x{ff76}");

sub utf8
{
	my ($string) = @_;
	utf8::encode($string);
	return $string;
}

sub kept_event
{
	my ($id) = @_;
	my ($event) = grep { $_->{event_id} eq $id } @{ JSON::PP::decode_json($sandbox->kept_text) };
	return $event;
}

my @ids;
local $ENV{PGCLIENTENCODING} = 'UTF8';
foreach my $encoding (sort keys %text)
{
	my $database = 'db_' . lc $encoding;
	$node->safe_psql('postgres',
		"CREATE DATABASE $database ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
	create_extension($node, $database);
	my $name = utf8($text{$encoding});
	my $id = $node->safe_psql($database, <<SQL);
SELECT onside_attribution.track('$name', gen_random_uuid(),
	jsonb_build_object('$name', '$name', 'list', jsonb_build_array('$name')))
SQL
	push @ids, $id;
	wait_for_flush($node, $database, "$encoding: delivered");
	my $event = kept_event($id);
	is($event->{event_name}, $text{$encoding}, "$encoding: the name");
	is_deeply(
		$event->{payload},
		{ $text{$encoding} => $text{$encoding}, list => [ $text{$encoding} ] },
		"$encoding: the payload");

	# preview() shows it, in whatever encoding the client has asked for.
	my $preview = JSON::PP::decode_json($node->safe_psql($database, <<SQL));
BEGIN;
SELECT onside_attribution.track('$name', gen_random_uuid(), '{}') AS id \\gset
SELECT onside_attribution.preview(:'id');
SQL
	is($preview->{event_name}, $text{$encoding}, "$encoding: preview()");

	# A column, by a trigger.
	$node->safe_psql($database, <<SQL);
CREATE TABLE purchase (id uuid, what text);
SELECT onside_attribution.attach('purchase', '$name', 'id', '{"what": "what"}');
INSERT INTO purchase VALUES (gen_random_uuid(), '$name');
SQL
	wait_for_flush($node, $database);
	my ($triggered) = grep { exists $_->{payload}{what} && $_->{event_name} eq $text{$encoding} }
	  @{ JSON::PP::decode_json($sandbox->kept_text) };
	is($triggered->{payload}{what}, $text{$encoding}, "$encoding: by a trigger");
	push @ids, $triggered->{event_id};
	is(status($node, $database)->{dead_lettered}, 0, "$encoding: nothing was refused");
	$node->safe_psql('postgres', "DROP DATABASE $database");
}

# ---------------------------------------------------------------------------
# SQL_ASCII takes any bytes
# ---------------------------------------------------------------------------

delete $ENV{PGCLIENTENCODING};
$node->safe_psql('postgres',
	q{CREATE DATABASE raw ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0});
create_extension($node, 'raw');

my $valid = utf8($text{UTF8});
my $id = $node->safe_psql('raw',
	"SELECT onside_attribution.track('$valid', gen_random_uuid(), '{\"x\": \"$valid\"}')");
push @ids, $id;
wait_for_flush($node, 'raw', 'SQL_ASCII: what is UTF-8 is taken');
my $event = kept_event($id);
is($event->{event_name}, $text{UTF8}, 'SQL_ASCII: the name');
is($event->{payload}{x}, $text{UTF8}, 'SQL_ASCII: the payload');

my %invalid = (
	'a byte of LATIN1' => "K\xe4ufe",
	'half a character' => "\xe6\x97",
	'a surrogate' => "\xed\xa0\x80",
	'beyond Unicode' => "\xf4\x90\x80\x80");
foreach my $what (sort keys %invalid)
{
	my $bytes = $invalid{$what};
	foreach my $call (
		[ 'event_name', "'$bytes', gen_random_uuid(), '{}'" ],
		[ 'payload', "'x', gen_random_uuid(), '{\"a\": \"$bytes\"}'" ],
		[ 'payload', "'x', gen_random_uuid(), '{\"$bytes\": 1}'" ])
	{
		my ($field, $arguments) = @$call;
		my ($ret, $stdout, $stderr) = $node->psql('raw',
			"\\set VERBOSITY verbose\nSELECT onside_attribution.track($arguments)");
		like($stderr, qr/ERROR:\s+22(P05|023|021).*\b$field\b/,
			"SQL_ASCII: $what in $field is refused");
	}
}
my ($ret, $stdout, $stderr) = $node->psql('raw', <<SQL);
INSERT INTO onside_attribution.outbox (event_name, payload, installation_id)
VALUES ('$invalid{'a byte of LATIN1'}', '{}', gen_random_uuid())
SQL
like($stderr, qr/ERROR:.*event_name/, 'SQL_ASCII: nor by INSERT');

# Its bytes may not block the others.
push @ids, track($node, 'raw');
wait_for_flush($node, 'raw');
arrived_ok($sandbox, \@ids, 'what was recorded arrived, and nothing else');
is_deeply([ keys %{ $sandbox->report->{by_status} } ], [204], 'no request was refused');

$node->stop;
done_testing();
