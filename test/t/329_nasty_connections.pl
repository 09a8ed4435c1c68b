# Three nasty days with sick connections, answers at random and hanging requests:
# what must hold is written in OnsideDays.pm.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use JSON::PP ();

use OnsideDays;
use OnsideWire;

live_through(
	{ name => 'sick_connections', every => 3, events => 40,
		rules => sub { (on({ connection_every => 2 + int rand 3 }, $answer{ (qw(e400 e404 e503 e403 closed e413))[ int rand 6 ] }), sick($answer{e503})) } },
	{ name => 'flaky', every => 10, events => 50,
		rules => sub { { chance => 0.3, seed => int rand(1 << 20), one_of => [
			{ status => 500 }, { status => 400 }, { status => 413 }, { status => 404 }, { fault => 'close_no_answer', accept => JSON::PP::true() },
			{ fault => 'reset_after_upload' }, { delay => [ 0, 0.7 ] }, { status => 429 } ] } } },
	{ name => 'slow_and_hanging', every => 6, events => 30, bad => [qw(hang hang e500)], share => 0.03, poison_first => 1,
		rules => sub { { delay => [ 0, 0.4 ], seed => int rand(1 << 20) } } });
