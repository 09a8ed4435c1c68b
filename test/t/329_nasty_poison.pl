# Four nasty days on which much of what is sent is poison: what must hold is
# written in OnsideDays.pm.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use OnsideDays;

live_through(
	{ name => 'all_kinds_of_poison', bad => [ sort keys %answer ], events => 60 },
	{ name => 'half_is_poison', bad => [qw(e400 e500)], share => 0.5, events => 20 },
	{ name => 'nine_of_ten_are_poison', bad => [qw(e400 e500 closed)], share => 0.9, events => 3 },
	{ name => 'blocks_of_poison', bad => [qw(e400 e413 e500)], block => 60, events => 100 });
