# docs/: each link between the documents leads to a file and a heading that are there, and the
# statements of docs/managed.md do what it says they do.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use OnsideTest;

my $top = "$FindBin::RealBin/../..";
chdir $top or die;

# A heading's name in a link, as GitHub makes it.
sub anchors
{
	my ($file) = @_;
	my %anchors;
	foreach (grep { /^#+ / } split /\n/, slurp_file($file))
	{
		my $name = lc s/^#+ //r;
		$name =~ s/[^\w\- ]//g;
		$name =~ tr/ /-/;
		$anchors{$name} = 1;
	}
	return \%anchors;
}

foreach my $file ('README.md', 'CONTRIBUTING.md', 'TUTORIAL.md', 'REFERENCE.md', glob('docs/*.md'))
{
	my ($dir) = $file =~ m{^(.*/)?};
	$dir //= '';
	my @broken;
	my $text = slurp_file($file) =~ s/^```.*?^```//gmsr =~ s/`[^`\n]*`//gr;
	foreach my $link ($text =~ /\]\(([^)\s]+)\)/g)
	{
		next if $link =~ /^\w+:/;
		my ($path, $anchor) = $link =~ /^([^#]*)(?:#(.*))?$/;
		my $target = $path eq '' ? $file : $dir . $path;
		$target =~ s{[^/]+/\.\./}{};
		push @broken, $link if !-e $target || (defined $anchor && $target =~ /\.md$/ && !anchors($target)->{$anchor});
	}
	is("@broken", '', "$file: its links");
}

my $managed = slurp_file('docs/managed.md');
my @sql = $managed =~ /```sql\n(.*?)```/gs;
is(scalar @sql, 3, 'docs/managed.md has three pieces of SQL');
my $node = onside_node('managed', preload => 0, conf => "wal_level = logical\n");
$node->safe_psql('postgres', 'CREATE ROLE app; CREATE TABLE purchases (id int PRIMARY KEY, install uuid)');
$node->safe_psql('postgres', slurp_file('managed/recorder.sql'));
$node->safe_psql('postgres', $sql[0]);
$node->safe_psql('postgres', q{SELECT onside_attribution.attach('purchases', 'e', 'install', '{}', event_id => 'id')});
$node->safe_psql('postgres', q{GRANT INSERT ON purchases TO app; SET ROLE app; INSERT INTO purchases VALUES (1, gen_random_uuid()); RESET ROLE;
	SET ROLE onside_replicator; SELECT 1 / count(*) FROM onside_attribution.outbox});
$node->safe_psql('postgres', $sql[2]);
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_namespace, pg_publication WHERE nspname = 'onside_attribution'}), 0, 'and nothing is left when it is removed');
$node->safe_psql('postgres', 'INSERT INTO purchases VALUES (2, gen_random_uuid())');
$node->stop;
done_testing();
