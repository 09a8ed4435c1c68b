# The documents are complete and exact: docs/reference.md has each function with its
# arguments, defaults and result, and each relation; docs/settings.md has a heading for
# each setting, with type, unit, default, range and who changes it when;
# docs/troubleshooting.md has a heading for each state and for each SQLSTATE that the
# library raises; all as the catalogs and the source have it, and nothing else.  The
# messages that troubleshooting.md quotes are in the source.  The examples of the
# reference run.  And psql's \dx+ and \d+ explain each object and column.

use FindBin;
use OnsideTest;

my $tree = "$FindBin::RealBin/../..";
my %page = map { $_ => slurp_file("$tree/docs/$_.md") } qw(reference settings troubleshooting);

my $node = onside_node('main');
create_extension($node, 'postgres');

# What is between two headings of the second level.
sub chapter
{
	my ($page, $name) = @_;
	my ($text) = $page{$page} =~ /^## \Q$name\E\n(.*?)(?=^## |\z)/ms
	  or die "$page.md has no chapter \"$name\"";
	return $text;
}

# The headings of the third level in a text, with what is below each.
sub sections
{
	my ($text) = @_;
	return map { [/\A([^\n]*)\n(.*)\z/s] } grep { defined } (split /^### /m, $text)[ 1 .. 99 ];
}

# The rows of a chapter's table, as cells without backticks.
sub rows
{
	my ($page, $name) = @_;
	my ($body) = chapter($page, $name) =~ /^\| \w+ \| what it is \|\n\|[-|]+\|\n((?:\|.*\n)+)/m
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
		'', "the documents have every $what");
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
my (@called, @names);
foreach my $section (sections(chapter('reference', 'Functions')))
{
	my ($name, $body) = @$section;
	next unless my ($call) = $body =~ /\A\n((?:    .*\n)+)/;
	$call =~ s/\s+/ /g;
	$call =~ s/^ | $//g;
	push @called, $call;
	push @names, $name;
	is(($call =~ /^(\w+)/)[0], $name, "$name: its heading");
	like($body, qr/^\* Privilege: /m, "$name: the privilege");
	like($body, qr/^```sql\n[^`]*\b$name\b/m, "$name: an example");
}
my %internal = map { $_->[0] => 1 } rows('reference', 'Functions');
same_ok(
	[ @called, sort keys %internal ],
	[ map { my $name = s/ → .*//r; $internal{$name} ? $name : $_ } @functions ],
	'function');

same_ok([ map { $_->[0] } rows('reference', 'Tables and views') ],
	[ query(<<'SQL') ], 'relation');
SELECT relname FROM pg_class
WHERE relnamespace = 'onside_attribution'::regnamespace AND relkind IN ('r', 'p', 'v')
SQL

# And so \dx+, \d+ and \df+ explain everything; a segment's columns are the outbox's.
is($node->safe_psql('postgres', <<'SQL'), '', 'every object of the extension has a comment');
WITH members AS (
    SELECT classid, objid FROM pg_depend
    WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
      AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'onside_attribution')
), objects AS (
    SELECT classid, objid FROM members
    UNION ALL
    SELECT 'pg_trigger'::regclass, t.oid FROM pg_trigger t
    JOIN members m ON m.classid = 'pg_class'::regclass AND t.tgrelid = m.objid
    WHERE NOT t.tgisinternal
)
SELECT pg_describe_object(classid, objid, 0) FROM objects
WHERE classid NOT IN ('pg_type'::regclass, 'pg_rewrite'::regclass)
  AND obj_description(objid, classid::regclass::name) IS NULL
ORDER BY 1
SQL
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

# ---------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------

my %context = (
	'a superuser; takes effect at a reload' => 'superuser',
	'every role, for its own session; takes effect at once' => 'user',
	'a superuser; takes effect at a restart' => 'postmaster');
my (@settings, %unit, %in_words);
foreach my $section (sections($page{settings}))
{
	my ($name, $body) = @$section;
	my %fact = $body =~ /^\* (Type|Default|Range|Changed by|When to change it): (.*)$/mg;
	like($fact{'When to change it'} // '', qr/\w/, "$name: when to change it");
	$fact{Range} //= '';
	s/`//g foreach values %fact;
	my ($type, $unit) = ($fact{Type} // '') =~ /^(\w+)(?:, in (\w+))?$/;
	$fact{Default} = '' if ($fact{Default} // 'none') eq 'empty';
	$in_words{$name} = $1 if $fact{Default} =~ s/ \((.*)\)$//;
	push @settings, join ' | ', $name, $type // '?', $unit // '', $fact{Default}, $fact{Range}, $context{ $fact{'Changed by'} // '' } // '?';
}
same_ok(\@settings, [ query(<<'SQL') ], 'setting');
SELECT concat_ws(' | ', replace(name, 'onside_attribution.', ''), vartype, COALESCE(unit, ''),
    boot_val, COALESCE(min_val || ' to ' || max_val, array_to_string(enumvals, ', '), ''), context)
FROM pg_settings WHERE name LIKE 'onside\_attribution.%'
SQL
foreach my $name (sort keys %in_words)
{
	my $default = $in_words{$name} =~ s/ //r;
	is($node->safe_psql('postgres', <<SQL), 't', "$name: its default is $in_words{$name}");
LOAD 'onside_attribution';
SET onside_attribution.$name = '$default';
SELECT setting = boot_val FROM pg_settings WHERE name = 'onside_attribution.$name'
SQL
}

# ---------------------------------------------------------------------------
# States and errors
# ---------------------------------------------------------------------------

# The whole source, with string literals as they are printed.
my $source = join "\n", map { slurp_file($_) } glob("$tree/src/*.[ch] $tree/src/*/*.[ch]");
my ($names) = $source =~ /state_names\[\] = \{(.*?)\}/s;
same_ok([ map { $_->[0] } sections(chapter('troubleshooting', 'States')) ], [ $names =~ /"(\w+)"/g ], 'state');
is( join(' ', sort split /, | or /, $node->safe_psql('postgres', <<'SQL')),
SELECT col_description(attrelid, attnum) FROM pg_attribute
WHERE attrelid = 'onside_attribution.status'::regclass AND attname = 'state'
SQL
	join(' ', sort $names =~ /"(\w+)"/g), 'and so has the comment of status.state');

# The names that the source uses, but for those of whole classes, which it
# compares with and does not raise.
my %raised;
$raised{$_} = 1 foreach ($source =~ s/ERRCODE_TO_CATEGORY\([^;{]*//gr) =~ /\bERRCODE_(\w+)/g;

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
my @errors = sections(chapter('troubleshooting', 'Errors'));
same_ok([ map { my ($state, $name) = split / /, $_->[0]; $condition{$state} = $name; $state } @errors ],
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
is( join(' ', grep { !$condition{$_} && !$own{$_} } chapter('reference', 'Functions') =~ /`([0-9A-Z]{5})`/g),
	'', 'each SQLSTATE that a function names is explained');

# What a person copies from a log or from status and searches for is quoted as it is
# printed: "..." stands for a value, and is a %s or the like in the source.
my $printed = join '', map { s/\\"/"/gr =~ s/\\n/\n/gr } map { /^"/ ? substr($_, 1, -1) : "\0" }
  $source =~ /("(?:[^"\\\n]|\\.)*"|[^"\s]+)/g;
$printed =~ s/\0+/\0/g;
$printed =~ s/%(?:l?l?[dsuzm]|zu|\.\*s|08x)/…/g;
$printed =~ s/"…"/…/g;
my @quoted_in_all;
foreach my $section (@errors, sections(chapter('troubleshooting', 'States')),
	map { [ $_, chapter('troubleshooting', $_) ] } 'Notices', "Lines of the server's log")
{
	my ($name, $body) = @$section;
	my @quoted = map { /`([^`]*)`/g } $body =~ /^\| (`.*?) \| /mg;
	push @quoted, $body =~ /^(?:In the log: )?`([^`]*)`/mg;
	push @quoted_in_all, @quoted;
	my @invented;
	foreach my $message (@quoted)
	{
		# The first and the last word may be values, too: a field's name, or a function's.
		my $missing = grep {
			my $part = $_;
			!grep { index($printed, $_) >= 0 } $part, $part =~ s/^\S+ //r, $part =~ s/ \S+$//r;
		} grep { length > 3 } map { s/^\s+|\s+$//gr } split /…/, $message =~ s/^invalid event: //r;
		push @invented, $message if $missing;
	}
	is(join("\n", @invented), '', "$name: its messages are those of the source");
}
cmp_ok(scalar @quoted_in_all, '>=', 100, 'messages are quoted');

# ---------------------------------------------------------------------------
# Examples
# ---------------------------------------------------------------------------

my @examples = $page{reference} =~ /^```sql\n(.*?)^```$/msg;
cmp_ok(scalar @examples, '>=', scalar @called, 'reference.md has examples');

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
