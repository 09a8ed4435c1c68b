# backfill makes one event of each row, whatever the table's keys, their collation,
# operator class and order are, without a key, and over partitions of every shape.
#
# The kinds: collations (also one to which rows are equal that the key tells apart),
# operator classes, orders, keys of several columns; each as a plain table and as a
# partitioned one.  Every table has more rows than three chunks.

use OnsideTest;

my $node = onside_node('main', conf => 'onside_attribution.enabled = off');
create_extension($node, 'postgres');

sub sql { return $node->safe_psql('postgres', $_[0]) }

sql(<<'SQL');
CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE COLLATION digits (provider = icu, locale = 'en-u-kn-true');
CREATE TYPE price AS (v numeric);
SQL

# Texts in upper and lower case, with what collations pass over; each twice but for its
# case.  The first has no pair, so that a pair lies on both sides of each chunk's end.
my $text = q{CASE n % 2 WHEN 0 THEN 'a-' ELSE 'A-' END || (n / 2) % 40 || CASE (n / 2) % 3 WHEN 0 THEN ' é' WHEN 1 THEN '_Z' ELSE '' END || n / 2};

# name, the key's columns with their types, its values for n, the indexes (T: the table)
my @keys = (
	[ 'bigint', 'k bigint', 'n', 'PRIMARY KEY (k)' ],
	[ 'text', 'k text', $text, 'PRIMARY KEY (k)' ],
	[ 'text, C', 'k text COLLATE "C"', $text, 'PRIMARY KEY (k)' ],
	[ 'text, German', 'k text COLLATE "de-x-icu"', $text, 'PRIMARY KEY (k)' ],
	[ 'text, numeric order', 'k text COLLATE digits', $text, 'PRIMARY KEY (k)' ],
	[ 'text, no case, its own index in C', 'k text COLLATE ci NOT NULL', $text, 'UNIQUE INDEX (k COLLATE "C")' ],
	[ 'text, pattern operators', 'k text COLLATE "de-x-icu" NOT NULL', $text, 'UNIQUE INDEX (k text_pattern_ops)' ],
	[ 'a row, as an image', 'k price NOT NULL', "ROW(n / 2 || CASE n % 2 WHEN 0 THEN '.0' ELSE '.00' END)::price", 'UNIQUE INDEX (k record_image_ops)' ],
	[ 'downwards, nulls last', 'k int NOT NULL', 'n', 'UNIQUE INDEX (k DESC NULLS LAST)' ],
	[ 'two columns, both ways', 'a text COLLATE "de-x-icu" NOT NULL, b int NOT NULL', "chr(65 + n % 5), n / 5", 'UNIQUE INDEX (a DESC, b ASC NULLS FIRST)' ],
	[ 'three columns', 'a text COLLATE ci, b numeric, c uuid', "chr(65 + n % 2 * 32), n % 7, ('0a0b0c0d-0001-4002-8003-' || to_char(n, 'fm000000000000'))::uuid", 'PRIMARY KEY (a, b, c)' ],
	[ 'no key', 'k text COLLATE ci', 'NULL', undef ],
);

my $count = 0;
foreach my $key (@keys)
{
	my ($name, $columns, $values, $index) = @$key;

	foreach my $kind ('plain', 'partitioned')
	{
		my $t = 't' . ++$count;
		my $parted = $kind eq 'partitioned' ? 'PARTITION BY LIST (part)' : '';
		my $names = join ', ', ($columns =~ /(?:^|, )(\w+) /g);

		sql("CREATE TABLE $t ($columns, part int NOT NULL, n int NOT NULL, inst uuid DEFAULT gen_random_uuid()) $parted");
		sql(<<"SQL") if $parted;
CREATE TABLE ${t}_1 PARTITION OF $t FOR VALUES IN (1);
CREATE TABLE ${t}_2 (gone int, inst uuid, n int NOT NULL, part int NOT NULL, $columns);
ALTER TABLE ${t}_2 DROP gone;
ALTER TABLE $t ATTACH PARTITION ${t}_2 FOR VALUES IN (2);
CREATE TABLE ${t}_3 PARTITION OF $t DEFAULT PARTITION BY HASH (n);
CREATE TABLE ${t}_3_0 PARTITION OF ${t}_3 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE ${t}_3_1 PARTITION OF ${t}_3 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
SQL
		if (defined $index)
		{
			my $more = $parted ? ', part, n' : '';
			(my $definition = $index) =~ s/\)$/$more)/;
			sql($definition =~ /^PRIMARY/ ? "ALTER TABLE $t ADD $definition" : ($definition =~ s/INDEX/INDEX ON $t/r =~ s/^/CREATE /r));
		}
		sql("INSERT INTO $t ($names, part, n) SELECT $values, 1 + n % 4, n FROM generate_series(1, 3500) AS n");
		sql("SELECT onside_attribution.attach('$t', 'e', 'inst', '{\"n\": \"n\"}', event_id => 'n')");
		my ($out, $err) = ('', '');
		$node->psql('postgres', "CALL onside_attribution.backfill('$t', 'e')", stdout => \$out, stderr => \$err);
		is(sql("SELECT count(*), count(DISTINCT event_id), count(DISTINCT payload) FROM onside_attribution.outbox"),
			'3500|3500|3500', "$name, $kind: each row is one event")
		  or diag($err);
		sql('TRUNCATE onside_attribution.outbox');
	}
}

$node->stop;
done_testing();
