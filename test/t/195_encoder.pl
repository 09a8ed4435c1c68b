# What is sent is what was recorded: for random events in databases of several
# encodings, the JSON that arrives at the API reads back as the very event
# (names, times, numbers digit by digit, strings character by character), is
# valid UTF-8, and has the bytes that preview() shows, whatever the session's
# settings were.
#
# ONSIDE_SEED=n repeats a run, ONSIDE_ROUNDS=n makes it longer (200 events for
# each encoding).

use Encode ();
use JSON::PP ();
use OnsideTest;

my $rounds = $ENV{ONSIDE_ROUNDS} // scale(200, 5000);
my $seed = $ENV{ONSIDE_SEED} // int(rand(2**31));
srand($seed);
note("ONSIDE_SEED=$seed ONSIDE_ROUNDS=$rounds");

# Characters that a database of that encoding can hold; ranges of code points.
my @ascii = ([ 0x20, 0x7e ], [ 0x20, 0x7e ], [ 0x22, 0x22 ], [ 0x5c, 0x5c ], [ 0x2f, 0x2f ]);
my %characters = (
	UTF8 => [
		@ascii, [ 0xa0, 0x24f ], [ 0x370, 0x3ff ], [ 0x590, 0x6ff ], [ 0x2000, 0x206f ],
		[ 0x3040, 0x30ff ], [ 0x4e00, 0x9fff ], [ 0xfdd0, 0xfdef ], [ 0xfeff, 0xfeff ],
		[ 0xfff0, 0xffff ], [ 0x1f300, 0x1f6ff ], [ 0xe0000, 0xe007f ], [ 0x10fff0, 0x10fffd ]
	],
	LATIN1 => [ @ascii, [ 0xa0, 0xff ] ],
	WIN1251 => [ @ascii, [ 0x410, 0x44f ], [ 0x2116, 0x2116 ], [ 0x20ac, 0x20ac ] ],
	EUC_JP => [ @ascii, [ 0x3041, 0x3093 ], [ 0x30a1, 0x30f6 ], [ 0x4e00, 0x4e03 ] ],
	SQL_ASCII => [ @ascii, [ 0xa0, 0xff ], [ 0x4e00, 0x9fff ], [ 0x1f300, 0x1f6ff ] ]);

sub one_of { return $_[ int rand @_ ] }

sub character
{
	my ($encoding) = @_;
	my ($first, $last) = @{ one_of(@{ $characters{$encoding} }) };
	return chr($first + int rand($last - $first + 1));
}

# A JSON string; escaped now and then, in whatever way JSON knows.
sub string
{
	my ($encoding, $longest) = @_;
	my $string = '';
	foreach (1 .. int rand($longest // 12))
	{
		my $way = rand;
		my $c = character($encoding);
		if ($way < 0.05)
		{
			$string .= '\\' . one_of(qw(b f n r t / \\ "));
		}
		elsif ($way < 0.1)
		{
			$string .= sprintf '\\u%04x', 1 + int rand(0x7f);
		}
		elsif ($way < 0.15 && $encoding eq 'UTF8')
		{
			my $code = ord $c;
			$string .= $code < 0x10000
			  ? sprintf('\\u%04X', $code)
			  : sprintf('\\u%04x\\u%04x', 0xd7c0 + ($code >> 10), 0xdc00 + ($code & 0x3ff));
		}
		else
		{
			$string .= $c =~ /["\\]/ ? "\\$c" : $c;
		}
	}
	return "\"$string\"";
}

sub digits
{
	my ($longest) = @_;
	return join '', map { int rand 10 } 1 .. 1 + int rand $longest;
}

sub number
{
	my $number = one_of('', '-') . one_of(0, 1 + int rand(9), (1 + int rand 9) . digits(40));
	$number .= '.' . digits(30) if rand() < 0.5;
	$number .= one_of('e', 'E') . one_of('', '+', '-') . int rand(one_of(5, 300)) if rand() < 0.3;
	return $number;
}

sub value
{
	my ($encoding, $depth) = @_;
	my $kind = int rand($depth > 0 ? 8 : 6);
	return number() if $kind < 2;
	return string($encoding) if $kind < 5;
	return one_of(qw(true false null)) if $kind == 5;
	return '[' . join(',', map { value($encoding, $depth - 1) } 1 .. rand 5) . ']' if $kind == 6;
	return object($encoding, $depth - 1);
}

sub object
{
	my ($encoding, $depth) = @_;
	return '{'
	  . join(',', map { string($encoding) . ':' . value($encoding, $depth) } 1 .. rand 6) . '}';
}

sub uuid
{
	my ($version) = @_;
	my $hex = join '', map { sprintf '%x', int rand 16 } 1 .. 32;
	substr($hex, 12, 1) = '4' if $version;
	substr($hex, 16, 1) = one_of(qw(8 9 a b)) if $version;
	$hex =~ s/^(.{8})(.{4})(.{4})(.{4})/$1-$2-$3-$4-/;
	return one_of($hex, uc $hex);
}

sub event_name
{
	my ($encoding) = @_;
	my $name;

	# One of blanks alone is refused.
	do
	{
		$name = join '', map { character($encoding) } 1 .. 1 + int rand(one_of(10, 10, 255));
	} until $name =~ /[^\s\x{200b}-\x{200d}\x{2060}\x{feff}]/;
	return $name;
}

sub datetime
{
	return sprintf '%04d-%02d-%02d %02d:%02d:%02d.%0*d%s',
	  one_of(1970 + int rand(100), 2 + int rand(9990)), 1 + int rand(12), 1 + int rand(28),
	  int rand(24), int rand(60), int rand(60), 6, one_of(0, int rand(1_000_000), 1000 * int rand(1000)),
	  one_of('Z', '+05:30', '-11', '+00');
}

sub quoted
{
	my ($text) = @_;
	$text =~ s/'/''/g;
	return "'$text'";
}

my @settings = (
	q(SET DateStyle = 'German, DMY'; SET TimeZone = 'Asia/Kathmandu'),
	q(SET DateStyle = 'SQL, MDY'; SET TimeZone = 'America/St_Johns'; SET extra_float_digits = -15),
	q(SET IntervalStyle = 'sql_standard'; SET bytea_output = 'escape'; SET standard_conforming_strings = on));

# Runs a script; text goes in and comes out as UTF-8.  Encode's "utf8" is the
# one that takes code points that are no characters, such as U+FFFE, for text, as
# PostgreSQL does.
sub sql
{
	my ($node, $database, $encoding, $sql) = @_;
	my $client = $encoding eq 'SQL_ASCII' ? '' : "SET client_encoding = 'UTF8';\n";
	my $result = $node->safe_psql($database, Encode::encode('utf8', $client . $sql));
	return $result;
}

# ---------------------------------------------------------------------------

my $sandbox = OnsideSandbox->start(keep_events => 1_000_000);
my $node = onside_node('main', sandbox => $sandbox);

# What arrives is compared here, whatever database it comes from.
$node->safe_psql('postgres',
	q(CREATE DATABASE judge ENCODING 'UTF8' TEMPLATE template0 LOCALE 'C'));

foreach my $encoding (sort keys %characters)
{
	my $database = lc $encoding;
	$node->safe_psql('postgres',
		"CREATE DATABASE $database ENCODING '$encoding' TEMPLATE template0 LOCALE 'C'");
	create_extension($node, $database);
	$sandbox->reset;
	$node->safe_psql($database, q{SELECT onside_attribution.pause()});

	my (%event, $script);
	foreach my $i (1 .. $rounds)
	{
		my %e = (
			event_id => uuid(4),
			event_name => event_name($encoding),
			payload => object($encoding, 4),
			installation_id => uuid(),
			event_datetime => datetime());
		$event{ lc $e{event_id} } = \%e;
		$script .= one_of(@settings) . ";\n" if rand() < 0.1;
		$script .= 'SELECT onside_attribution.track('
		  . join(', ', map { quoted($_) } @e{qw(event_name installation_id payload event_datetime event_id)})
		  . ");\n";
	}
	sql($node, $database, $encoding, $script);

	my %preview = map { split /\t/, $_, 2 } split /\n/,
	  sql($node, $database, $encoding, <<'SQL');
SET DateStyle = 'SQL, DMY'; SET TimeZone = 'Pacific/Chatham';
SELECT event_id || E'\t' || onside_attribution.preview(event_id) FROM onside_attribution.pending
SQL
	is(scalar keys %preview, $rounds, "$encoding: $rounds events are recorded");
	$node->safe_psql($database, q{SELECT onside_attribution.resume()});
	wait_for_flush($node, $database, "$encoding: and delivered");
	arrived_ok($sandbox, [ keys %event ], "$encoding: all of them");
	is($node->safe_psql($database, 'SELECT count(*) FROM onside_attribution.dead_letter'),
		0, "$encoding: and none is refused");

	# The API's own view: strict JSON in UTF-8.  Its text is cut at events here.
	my $kept = $sandbox->kept_text;
	my %arrived;
	my $decoded = eval { Encode::decode('utf8', my $copy = $kept, Encode::FB_CROAK) };
	ok(defined $decoded && $decoded !~ /[\x{d800}-\x{dfff}]/, "$encoding: what arrives is UTF-8");
	foreach my $e (split /(?<=\})\s*,\s*(?=\{"event_name":)/, $kept =~ s/\A\s*\[|\]\s*\z//gr)
	{
		my ($id) = $e =~ /"event_id":"([0-9a-f-]{36})","installation_id":"[0-9a-f-]{36}"\}\z/;
		$arrived{ $id // 'none' } = $e;
	}
	is(scalar(grep { ($arrived{$_} // '') ne $preview{$_} } keys %preview),
		0, "$encoding: byte for byte as preview() shows it");

	# And what it means, as PostgreSQL reads it in another database: as text
	# too, because jsonb's = does not see the scale of a number.
	$script = "CREATE TEMP TABLE e (id uuid, name text, payload jsonb, at timestamptz, "
	  . "installation uuid, arrived jsonb);\n";
	foreach my $id (sort keys %event)
	{
		my $e = $event{$id};
		$script .= 'INSERT INTO e VALUES ('
		  . join(', ', map { quoted($_) } @{$e}{qw(event_id event_name payload event_datetime installation_id)},
			Encode::decode('utf8', $arrived{$id} // '{}'))
		  . ");\n";
	}
	my $different = sql($node, 'judge', 'UTF8', $script . <<'SQL');
SELECT id, arrived FROM e
WHERE (arrived - 'payload' - 'event_datetime') IS DISTINCT FROM
      jsonb_build_object('event_name', name, 'event_id', id, 'installation_id', installation)
   OR (arrived->'payload')::text IS DISTINCT FROM payload::text
   OR (arrived->>'event_datetime')::timestamptz IS DISTINCT FROM at
   OR arrived->>'event_datetime' !~ '^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,5}[1-9])?Z$'
LIMIT 3
SQL
	is($different, '', "$encoding: what arrives means what was recorded")
	  or diag("ONSIDE_SEED=$seed ONSIDE_ROUNDS=$rounds");

	# No worker, so that the next one has the sandbox to itself.
	$node->safe_psql('postgres', "DROP DATABASE $database");
}

$node->stop;
done_testing();
