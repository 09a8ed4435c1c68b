# A reader finds the way in src/: what CONTRIBUTING.md and src/README name is
# there, each file says what it is for, includes point down and make no circle, and
# no file and no function is too long to be read in one go.

use strict;
use warnings;

use FindBin;

use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

my $tree = "$FindBin::RealBin/../..";
my @files = glob("$tree/src/*.[ch] $tree/src/*/*.[ch]");

# The plan: what it names is there, and each file says first what it is for.
my ($house) = slurp_file("$tree/CONTRIBUTING.md") =~ /^## The house\n(.*?)^## /ms;
my %rooms = map { m{([^/]*\.[ch])$} ? ($1 => 1) : () } @files;
is(join(' ', grep { !$rooms{$_} } $house =~ /`(?:[\w\/]+\/)?(\w+\.[ch])`/g), '', 'CONTRIBUTING.md names files that are there');
my $tree_text = join '', map { slurp_file($_) } @files, glob("$tree/test/sim/*.[ch] $tree/test/perl/*.pm $tree/test/setup/* $tree/*.sql $tree/managed/*.sql");
my ($guide) = slurp_file("$tree/CONTRIBUTING.md");
is(join(' ', grep { $tree_text !~ /\b$_\b/ } $guide =~ /`(\w+)\(\)`/g), '', 'and functions');
is(join(' ', grep { slurp_file($_) !~ m{\A/\*-{60,}\n \*\n \* \S+\.[ch]\n \*\t\t\S} } @files), '', 'each file says what it is for');

# What src/README names is there, and it has no more words than one can keep.
my $readme = slurp_file("$tree/src/README");
my $all = join '', map { slurp_file($_) } @files;
is(join(' ', grep { !$rooms{$_} } $readme =~ /(\w+\.c)\b/g), '', 'src/README names files that are there');
is(join(' ', grep { $all !~ /\b$_\(/ } $readme =~ /\b(onside_\w+)\(\)/g), '', 'and functions');
my ($words) = $readme =~ /^Words\n-+\n(.*?)^One purchase/ms;
cmp_ok(scalar(() = $words =~ /^\S+(?: \S+)?\t/mg), '<=', 25, 'and 25 words at most');
foreach my $number ($readme =~ /\b(\d\d\d)\b/g)
{
	my @tests = glob("$tree/test/t/${number}_*.pl");
	ok(scalar @tests, "test $number is there");
}

# The floors.
my $found;
ok(IPC::Run::run([ "$tree/test/setup/includes", "$tree/src" ], '>', \$found), 'includes point down, in no circle') or diag($found);

# Names: a static function is found by its name, and the name says what is done.
my (%statics, @short);
foreach my $file (@files)
{
	my $source = slurp_file($file);
	while ($source =~ /^static\b[^;=(]*\n(\w+)\(/mg)
	{
		my $name = $1;
		push @short, $name if $name !~ /_/;
		$statics{$name}{$file} = 1;
	}
}
cmp_ok(scalar keys %statics, '>', 500, 'static functions are found');
is("@short", '', 'static functions have names of two words');
is(join(' ', grep { keys %{ $statics{$_} } > 1 } sort keys %statics), '', 'and stand in one file');

# Length, in lines.
my (@long_files, @long_functions);
foreach my $file (@files)
{
	my $source = slurp_file($file);
	my ($name) = $file =~ m{.*/src/(.*)};
	push @long_files, $name if ($source =~ tr/\n//) > 700;
	while ($source =~ /^(\w+)\([^;{}]*\)\n(\{\n.*?^\}\n)/msg)
	{
		push @long_functions, "$name: $1" if ($2 =~ tr/\n//) - 2 > 80;
	}
}
is("@long_files", '', 'no file has more than 700 lines');
is(join(', ', @long_functions), '', 'no function has more than 80');

done_testing();
