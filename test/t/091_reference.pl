# docs/reference.md is complete and exact: each function with its arguments, defaults
# and result, each relation, each setting with type, unit, default, range and
# context, each state, and each SQLSTATE that the library raises, is there as the
# catalogs and the source have it, and nothing else is.  Its examples run.  And
# psql's \d+ explains each column.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use OnsideTest;

my $tree = "$FindBin::RealBin/../..";
my $reference = slurp_file("$tree/docs/reference.md");

my $node = onside_node('main');
create_extension($node, 'postgres');

# What is between two headings of the second level.
sub chapter
{
	my ($name) = @_;
	my ($text) = $reference =~ /^## \Q$name\E\n(.*?)(?=^## |\z)/ms
	  or die "docs/reference.md has no chapter \"$name\"";
	return $text;
}

# The rows of a chapter's table, as cells without backticks.
sub rows
{
	my ($name) = @_;
	my ($body) = chapter($name) =~ /^\|[-|]+\|\n((?:\|.*\n)+)/m
	  or die "the chapter \"$name\" has no table";
	return map {
		my $row = $_;
		$row =~ s/^\| ?| ?\|$//g;
		[ map { s/`//gr } split / ?\| ?/, $row, -1 ]
	} split /\n/, $body;
}

# Both ways: what one side has and the other has not is named.
sub same_ok
{
	my ($documented, $real, $what) = @_;
	my (%documented, %real);
	$documented{$_}++ foreach @$documented;
	$real{$_}++ foreach @$real;
	is(join("\n", sort grep { !$documented{$_} } keys %real),
		'', "docs/reference.md has every $what");
	is(join("\n", sort grep { !$real{$_} } keys %documented),
		'', "and no $what that there is not");
	is(scalar @$documented, scalar keys %documented, 'and none twice');
	return;
}

sub query
{
	my ($sql) = @_;
	return split /\n/, $node->safe_psql('postgres', "LOAD 'onside_attribution'; $sql");
}

# ---------------------------------------------------------------------------
# Functions and relations
# ---------------------------------------------------------------------------

# As they are written by hand: without casts, types by their short names.
my @functions = query(<<'SQL');
SELECT format('%s(%s)%s', proname,
    (SELECT string_agg(format('%s%s %s', CASE WHEN provariadic <> 0 AND i = pronargs THEN 'VARIADIC ' END, proargnames[i], replace(format_type(type, NULL),
                'timestamp with time zone', 'timestamptz'))
            || COALESCE(' DEFAULT ' || replace(regexp_replace(
                pg_get_function_arg_default(p.oid, i::integer), '::(timestamp with time zone|\w+)(\[\])?', ''),
                '00:00:30', '30 s'), ''), ', ' ORDER BY i)
     FROM unnest(proargtypes::oid[]) WITH ORDINALITY AS u(type, i)),
    CASE WHEN prokind <> 'p' THEN ' → ' || pg_get_function_result(p.oid) END)
FROM pg_proc p WHERE pronamespace = 'onside_attribution'::regnamespace
SQL
my @called = chapter('Functions') =~ /^### `(.*\) *.*)$/mg;
s/`//g foreach @called;
my %internal = map { $_->[0] => 1 } rows('Functions');
same_ok(
	[ @called, sort keys %internal ],
	[ map { my $name = s/ → .*//r; $internal{$name} ? $name : $_ } @functions ],
	'function');

same_ok([ map { $_->[0] } rows('Tables and views') ],
	[ query(<<'SQL') ], 'relation');
SELECT relname FROM pg_class
WHERE relnamespace = 'onside_attribution'::regnamespace AND relkind IN ('r', 'p', 'v')
SQL

# And so \dx+, \d+ and \df+ explain everything.  090_readme.pl asks for the
# objects; this is about columns, where a segment's are the outbox's.
is(join(' ', query(<<'SQL')), '', 'every column of a table or view has a comment');
SELECT format('%s.%s', relname, attname)
FROM pg_class c JOIN pg_attribute a ON attrelid = c.oid
WHERE relnamespace = 'onside_attribution'::regnamespace AND relkind IN ('r', 'p', 'v')
  AND NOT relispartition AND attnum > 0 AND NOT attisdropped
  AND col_description(attrelid, attnum) IS NULL
SQL
is(join(' ', query(<<'SQL')), 1, 'and so has the extension');
SELECT count(*) FROM pg_extension
WHERE extname = 'onside_attribution' AND obj_description(oid, 'pg_extension') <> ''
SQL

# What is called has a paragraph about the privilege.
foreach my $section (split /^### /m, chapter('Functions'))
{
	next unless $section =~ /^`(\w+)\(/;
	like($section, qr/^\* Privilege: /m, "$1: the privilege");
	like($section, qr/^```sql\n[^`]*\b$1\b/m, "$1: an example");
}

# ---------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------

same_ok(
	[
		map {
			my ($name, $type, $unit, $default, $range, $context) = @$_;
			join ' | ', $name, $type, $unit, $default, $range, $context
		} rows('Settings')
	],
	[ query(<<'SQL') ], 'setting');
SELECT concat_ws(' | ', replace(name, 'onside_attribution.', ''), vartype, COALESCE(unit, ''),
    boot_val, COALESCE(min_val || ' to ' || max_val, array_to_string(enumvals, ', '), ''), context)
FROM pg_settings WHERE name LIKE 'onside\_attribution.%'
SQL

# ---------------------------------------------------------------------------
# States and errors
# ---------------------------------------------------------------------------

my ($names) = slurp_file("$tree/src/log/shmem.c") =~ /state_names\[\] = \{(.*?)\}/s;
same_ok([ map { $_->[0] } rows('States') ], [ $names =~ /"(\w+)"/g ], 'state');

# The names that the source uses, but for those of whole classes, which it
# compares with and does not raise.
my %raised;
foreach my $file (glob("$tree/src/*.[ch] $tree/src/*/*.[ch]"))
{
	my $source = slurp_file($file);
	$source =~ s/ERRCODE_TO_CATEGORY\([^;{]*//g;
	$raised{$_} = 1 foreach $source =~ /\bERRCODE_(\w+)/g;
}

# errcodes.h has, for each, MAKE_SQLSTATE('2','2','0','2','3').
my ($includes) = run_command([ $ENV{PG_CONFIG} || 'pg_config', '--includedir-server' ]);
my $errcodes = slurp_file("$includes/utils/errcodes.h");
my %sqlstate;
while ($errcodes =~ /^#define ERRCODE_(\w+) MAKE_SQLSTATE\((.*)\)/mg)
{
	my ($name, $characters) = ($1, $2);
	$sqlstate{$name} = join '', $characters =~ /'(.)'/g;
}
is(join(' ', grep { !$sqlstate{$_} } sort keys %raised), '', 'each has its SQLSTATE');
cmp_ok(scalar keys %raised, '>', 10, 'the source raises errors');

# "condition" is the name that PL/pgSQL has for it; a warning is nothing to catch.
my %condition;
same_ok([ map { $condition{ $_->[0] } = $_->[1]; $_->[0] } rows('Errors') ],
	[ map { $sqlstate{$_} } sort keys %raised ], 'SQLSTATE');
foreach my $state (grep { !/^01/ } sort keys %condition)
{
	is($node->safe_psql('postgres', <<SQL), 'caught', "$state is $condition{$state}");
DO \$\$
BEGIN
    RAISE EXCEPTION SQLSTATE '$state';
EXCEPTION WHEN $condition{$state} THEN
    PERFORM set_config('test.caught', 'caught', false);
END \$\$;
SELECT current_setting('test.caught');
SQL
}

# Each of the SQLSTATEs that the functions name is explained there, or is
# PostgreSQL's own.
my %own = map { $_ => 1 } qw(25006 42501 55P03);
is( join(' ', grep { !$condition{$_} && !$own{$_} } chapter('Functions') =~ /`([0-9A-Z]{5})`/g),
	'', 'each SQLSTATE that a function names is explained');

# ---------------------------------------------------------------------------
# Examples
# ---------------------------------------------------------------------------

my @examples = $reference =~ /^```sql\n(.*?)^```$/msg;
cmp_ok(scalar @examples, '>=', scalar @called, 'docs/reference.md has examples');

# Also where the library is not preloaded.
my $bare = onside_node('bare', preload => 0);
foreach my $server ($node, $bare)
{
	foreach my $example (@examples)
	{
		# There is nobody to send to, so a flush would wait in vain.
		$example =~ s/'1 min'/'1 ms'/;
		is($server->psql('postgres', $example, on_error_stop => 1),
			0, $server->name . ': ' . ($example =~ /^(.*)$/m)[0]);
	}
}

$bare->stop;
$node->stop;
done_testing();
