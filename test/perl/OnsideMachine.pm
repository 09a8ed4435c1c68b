# OnsideMachine: a machine with faults below PostgreSQL.
#
# Compiles test/instruments/faults.c and has servers that are started from then
# on load it: their disk can be full, their clocks be set, and names lead
# elsewhere or nowhere, from one moment to the next.
#
#   my $machine = OnsideMachine->new or plan skip_all => 'there is no compiler';
#   my $node = onside_node('main', sandbox => $sandbox);
#   $machine->fill_disk;
#   $machine->free_disk;
#   $machine->set_clock(86400);

package OnsideMachine;

use strict;
use warnings;

use Cwd            ();
use File::Basename ();
use File::Spec     ();
use File::Temp     ();

use PostgreSQL::Test::Utils ();

my $source = File::Spec->catfile(
	File::Basename::dirname(Cwd::abs_path(__FILE__)),
	File::Spec->updir, 'instruments', 'faults.c');

# OnsideMachine->new
# Sets the environment for all servers that this test starts.  Returns nothing if
# the compiler cannot make it.
sub new
{
	my ($class) = @_;
	my $directory = PostgreSQL::Test::Utils::tempdir();
	my $library = "$directory/faults.so";

	system('gcc', '-shared', '-fPIC', '-o', $library, $source, '-ldl') == 0
	  or return;
	$ENV{LD_PRELOAD} = $library;
	$ENV{ONSIDE_FAULTS} = $directory;
	return bless { directory => $directory }, $class;
}

sub _write
{
	my ($self, $name, $text) = @_;
	PostgreSQL::Test::Utils::append_to_file("$self->{directory}/$name.new", $text);
	rename "$self->{directory}/$name.new", "$self->{directory}/$name"
	  or die "could not rename: $!";
	return;
}

# fill_disk, free_disk
# From now on no table can grow; and it can again.
sub fill_disk { return $_[0]->_write('full', '') }

sub free_disk
{
	my ($self) = @_;
	unlink "$self->{directory}/full" or die "could not unlink: $!";
	return;
}

# refusals
# How often a table could not grow so far.
sub refusals { return (-s "$_[0]{directory}/refused") // 0 }

# crash($pid, $path), is_crashed
# The process dies by SIGSEGV when it writes the next time to a file whose path
# has $path in it; and has it?
sub crash
{
	my ($self, $pid, $path) = @_;
	return $self->_write('crash', "$pid $path\n");
}

sub is_crashed { return !-e "$_[0]{directory}/crash" }

# set_monotonic_clock($seconds), set_address($address)
# The servers' monotonic clock is so many seconds ahead; and this is where moving.test is.
sub set_monotonic_clock
{
	my ($self, $seconds) = @_;
	return $self->_write('ahead', "$seconds\n");
}

sub set_address
{
	my ($self, $address) = @_;
	return $self->_write('address', $address);
}

# hang_resolver, answer_resolver
# From now on nobody is told where *.hanging.test is; and then that it is here.
sub hang_resolver { return $_[0]->_write('hang', '') }
sub answer_resolver { return unlink "$_[0]{directory}/hang" }

# set_clock($seconds)
# The servers' time of day is so many seconds ahead.
sub set_clock
{
	my ($self, $seconds) = @_;
	return $self->_write('clock', "$seconds\n");
}

1;
