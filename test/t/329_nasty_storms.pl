# Three nasty days of outages that come and go, with poison and restarts among
# them: what must hold is written in OnsideDays.pm.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use OnsideDays;

live_through(
	{ name => 'storms', every => 4, events => 40,
		rules => sub { rand() < 0.5 ? storm() : () } },
	{ name => 'storms_over_poison', every => 5, events => 40, bad => [qw(e400 e500 closed e413)],
		rules => sub { rand() < 0.5 ? storm() : () } },
	{ name => 'restarts_in_all_of_it', every => 4, events => 40, bad => [qw(e400 e500 closed)], restarts => 1,
		rules => sub { rand() < 0.3 ? storm() : () } });
