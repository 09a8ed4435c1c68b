# A reader finds the way in src/: CONTRIBUTING.md's plan of the house has every
# room, and includes point down and make no circle.

use strict;
use warnings;

use FindBin;

use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

my $tree = "$FindBin::RealBin/../..";
my @files = glob("$tree/src/*.[ch] $tree/src/*/*.[ch]");

# The plan.
my ($house) = slurp_file("$tree/CONTRIBUTING.md") =~ /^## The house\n(.*?)^## /ms;
my %planned = map { $_ => 1 } $house =~ /`(\w+\.c)`/g;
my %rooms = map { m{([^/]*\.c)$} ? ($1 => 1) : () } @files;
is(join(' ', grep { !$planned{$_} } sort keys %rooms), '', 'CONTRIBUTING.md has every room');
is(join(' ', grep { !$rooms{$_} } sort keys %planned), '', 'and no other');

# The floors.
my $found;
ok(IPC::Run::run([ "$tree/test/setup/includes", "$tree/src" ], '>', \$found), 'includes point down, in no circle') or diag($found);

done_testing();
