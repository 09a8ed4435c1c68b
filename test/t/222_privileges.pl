# docs/operations.md's table of privileges says what each function, procedure, table and
# view of the extension takes: who has just that can use it, and who lacks any
# part of it cannot.  Nothing of the extension is missing in the table.

use FindBin;
use OnsideTest;

my $node = onside_node('main', conf => 'onside_attribution.enabled = off');
create_extension($node, 'postgres');

# ---------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------

my $readme = slurp_file("$FindBin::RealBin/../../docs/operations.md");
my ($table) = $readme =~ /^(\| object \| to \|.*?)^$/ms
  or die 'operations.md has no table of privileges that begins with "| object | to |"';
my @rows;
foreach my $line (split /\n/, $table)
{
	my ($objects, $to, $needs) = $line =~ /^\| (.*) \| (.*) \| (.*) \|$/ or next;
	next if $objects eq 'object';
	push @rows, {
		objects => [ $objects =~ /`([^`]+)`/g ],
		to => $to,
		needs => $needs
	};
}
cmp_ok(scalar @rows, '>', 5, 'operations.md has a table of privileges');

my %kind;
foreach (split /\n/, $node->safe_psql('postgres', <<'SQL'))
SELECT relname, CASE relkind WHEN 'v' THEN 'view' ELSE 'table' END
FROM pg_class WHERE relnamespace = 'onside_attribution'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
UNION ALL
SELECT DISTINCT proname || '()', CASE WHEN prorettype = 'trigger'::regtype THEN 'trigger function'
    WHEN prokind = 'p' THEN 'procedure' ELSE 'function' END
FROM pg_proc WHERE pronamespace = 'onside_attribution'::regnamespace
SQL
{
	my ($name, $kind) = split /\|/;
	$kind{$name} = $kind;
}

# An object is in the table as one of its own, or as what another one needs.
my %documented = map { $_ => 1 } map { @{ $_->{objects} }, $_->{needs} =~ /`(\w+\(\))`/g } @rows;
foreach my $name (sort keys %kind)
{
	ok($documented{$name}, "operations.md: the table of privileges has the $kind{$name} $name")
	  or diag("Add $name to the table in \"Privileges\" of operations.md, with what a role needs for it.");
}
foreach my $name (sort map { @{ $_->{objects} } } @rows)
{
	ok($kind{$name}, "operations.md: $name of the table of privileges exists");
}

# ---------------------------------------------------------------------------
# Walking it
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', <<'SQL');
CREATE SCHEMA shop;
CREATE TABLE shop.source (installation_id uuid);
SELECT onside_attribution.attach('shop.source', 'attached', 'installation_id', '{}');
SQL

# How a part of "needs" is granted to the role %s.
sub granting
{
	my ($need, $object) = @_;
	(my $name = $object // '') =~ s/\(\)//;
	my $routine = $name ne ($object // '');

	return "GRANT EXECUTE ON ROUTINE onside_attribution.$name TO %s" if $need eq 'EXECUTE' && $routine;
	return "GRANT $need ON onside_attribution.$name TO %s"
	  if $need =~ /^(SELECT|INSERT|UPDATE|DELETE|TRUNCATE)$/ && !$routine;
	return "GRANT EXECUTE ON ROUTINE onside_attribution.$1 TO %s" if $need =~ /^EXECUTE on `(\w+)\(\)`$/;
	return "GRANT $1 ON onside_attribution.$2 TO %s" if $need =~ /^(SELECT|INSERT) on `(\w+)`$/;
	return "GRANT $1 ON shop.source TO %s" if $need =~ /^(TRIGGER|SELECT) on the table$/;
	return 'GRANT USAGE ON SCHEMA shop TO %s' if $need eq 'USAGE on its schema';

	# Who owns a table need not own what it is in, but has to find it.
	return 'GRANT USAGE ON SCHEMA shop TO %s; ALTER TABLE shop.source OWNER TO %1$s'
	  if $need eq 'ownership of the table';
	return;
}

# The command that uses an object.  A routine is called with the table where it
# takes one, and otherwise with NULLs that the planner does not see: what matters
# is who is let in.
sub using
{
	my ($object, $needs) = @_;
	(my $name = $object) =~ s/\(\)//;

	return "SELECT onside_attribution.attach(:table, 'e', 'installation_id', '{}')" if $name eq 'attach';
	return "SELECT onside_attribution.detach(:table, 'attached')" if $name eq 'detach';
	return "CALL onside_attribution.backfill(:table, 'attached')" if $name eq 'backfill';
	return "CREATE TRIGGER t AFTER INSERT ON shop.source FOR EACH ROW EXECUTE FUNCTION onside_attribution.$name()"
	  if $kind{$object} eq 'trigger function';
	if ($kind{$object} =~ /function|procedure/)
	{
		my $null = $kind{$object} eq 'procedure' ? 'NULL::%s' : '(SELECT NULL::%s)';
		my $arguments = $node->safe_psql('postgres', <<SQL);
SELECT coalesce(string_agg(CASE a WHEN 'regclass'::regtype THEN ':table' ELSE format('$null', a::regtype) END, ', ' ORDER BY n), '')
FROM pg_proc, unnest(proargtypes::oid[]) WITH ORDINALITY AS u(a, n)
WHERE pronamespace = 'onside_attribution'::regnamespace AND proname = '$name'
SQL
		return ($kind{$object} eq 'procedure' ? 'CALL' : 'SELECT') . " onside_attribution.$name($arguments)";
	}
	return "INSERT INTO onside_attribution.$name DEFAULT VALUES" if $needs =~ /^INSERT/;
	return "DELETE FROM onside_attribution.$name" if $needs =~ /^DELETE/;
	return "SELECT * FROM onside_attribution.$name";
}

# The SQLSTATE with which a command fails for a role with these grants.  All of
# it is rolled back.
my $source = $node->safe_psql('postgres', "SELECT 'shop.source'::regclass::oid");

sub attempt
{
	my ($command, @grants) = @_;

	# By OID: a name would be looked up with the role's own rights first.
	$command =~ s/:table/$source/g;
	my ($retval, $out, $err) = $node->psql(
		'postgres', join(";\n",
			'BEGIN', 'CREATE ROLE tester', (map { sprintf $_, 'tester' } @grants),
			'SET LOCAL ROLE tester', $command, 'ROLLBACK'),
		extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	return $err =~ /ERROR:\s+(\w{5})/ ? $1 : 'ok';
}

# USAGE is PUBLIC's until somebody takes it away.
my $usage = 'GRANT USAGE ON SCHEMA onside_attribution TO %s';
my $no_usage = 'REVOKE USAGE ON SCHEMA onside_attribution FROM PUBLIC, %s';
foreach my $row (@rows)
{
	foreach my $object (@{ $row->{objects} })
	{
		next unless $kind{$object};
		my $command = using($object, $row->{needs});
		my $what = "$object to $row->{to}";

		if ($row->{needs} eq 'nothing')
		{
			isnt(attempt($command), '42501', "$what: without any privilege");
			is(attempt($command, $no_usage), '42501', "$what: but not without USAGE on the schema");
			next;
		}

		# By default, and with USAGE; where the table is needed, that is the
		# role's own here.
		my @table = $kind{$object} eq 'trigger function' ? granting('ownership of the table') : ();
		is(attempt($command), '42501', "$what: not without any privilege");
		is(attempt($command, $usage, @table), '42501', "$what: nor with USAGE on the schema alone");
		next if $row->{needs} eq 'grant nothing on it';

		(my $needs = $row->{needs}) =~ s/ \(`pg_monitor` has it all\)//;
		is(attempt($command, 'GRANT pg_monitor TO %s') eq '42501' ? 'no' : 'yes',
			$needs eq $row->{needs} ? 'no' : 'yes', "$what: a member of pg_monitor");

		my @grants = map {
			granting($_, $object)
			  // die "operations.md: this test does not know what \"$_\" means for $object"
		} split /; /, $needs;
		isnt(attempt($command, @grants), '42501', "$what: with $needs");
		foreach my $missing (0 .. $#grants)
		{
			my @others = @grants;
			my ($left_out) = splice @others, $missing, 1;
			is(attempt($command, @others), '42501', "$what: not without part " . ($missing + 1) . ' of it');
		}
		is(attempt($command, @grants, $no_usage), '42501', "$what: nor without USAGE on the schema");
	}
}

# ---------------------------------------------------------------------------
# Default privileges
# ---------------------------------------------------------------------------

# Whoever is given all that is made in a database is given nothing of the extension's.
$node->safe_psql('postgres', 'CREATE ROLE heir; CREATE ROLE "Heir, the second"');
my %granted;
foreach my $database (qw(without_defaults with_defaults))
{
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	foreach my $objects ($database eq 'with_defaults' ? qw(TABLES SEQUENCES FUNCTIONS SCHEMAS) : ())
	{
		$node->safe_psql($database, qq{ALTER DEFAULT PRIVILEGES GRANT ALL ON $objects TO heir, PUBLIC, "Heir, the second"});
	}
	create_extension($node, $database);
	$granted{$database} = $node->safe_psql($database, <<'SQL');
SELECT o.name, a.grantee::regrole, a.privilege_type
FROM (SELECT oid::regclass::text, relacl, relowner FROM pg_class WHERE relnamespace = 'onside_attribution'::regnamespace
      UNION ALL SELECT oid::regprocedure::text, proacl, proowner FROM pg_proc WHERE pronamespace = 'onside_attribution'::regnamespace
      UNION ALL SELECT nspname, nspacl, nspowner FROM pg_namespace WHERE nspname = 'onside_attribution') o (name, acl, owner),
    aclexplode(o.acl) a
WHERE a.grantee <> o.owner ORDER BY 1, 2, 3
SQL
}
is($granted{with_defaults}, $granted{without_defaults}, 'default privileges grant nothing of the extension');

$node->stop;
done_testing();
