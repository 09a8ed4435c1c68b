# OnsideQuery: safe_psql() without a psql.
#
# The tests ask their servers some ten thousand questions, and starting psql for
# one costs more than its answer: 13 ms of CPU, by far the most of what the tests
# use.  This sends the same statements in the same way, in a connection of their
# own each time, over the server's socket.  What needs psql itself, its backslash
# commands, variables, COPY and options, or a server that asks for a password,
# still gets it.

package OnsideQuery;

use strict;
use warnings;

use IO::Socket::UNIX ();
use PostgreSQL::Test::Cluster ();

my $psql = \&PostgreSQL::Test::Cluster::safe_psql;

# What psql and libpq would take from the environment, and this does not.
my @environment = map { "PG$_" } qw(USER OPTIONS CLIENTENCODING TZ DATESTYLE PASSWORD);

{
	no warnings 'redefine';
	*PostgreSQL::Test::Cluster::safe_psql = \&_safe_psql;
}

sub _safe_psql
{
	my ($node, $database, $sql, %params) = @_;
	delete $params{timeout};
	my $statements = %params ? undef : _statements($sql);
	my $socket = $statements ? _connect($node, $database) : undef;
	goto &$psql unless $socket;

	my @rows;
	foreach my $statement (@$statements)
	{
		my $error = _query($socket, $statement, \@rows) // next;
		die "error running SQL: 'psql:<stdin>: $error'\nwith sql '$sql'";
	}
	print $socket pack('A N', 'X', 4);
	return join "\n", @rows;
}

# The statements that psql would send, or undef for what is its own.
sub _statements
{
	my ($sql) = @_;
	return if $sql =~ /\\|(?<!:):["'{A-Z]|\bcopy\b|\batomic\b|\bcreate\s+(?:or\s+replace\s+)?rule\b/i
	  || grep { defined $ENV{$_} } @environment;
	utf8::encode($sql) if utf8::is_utf8($sql);
	my @statements = ('');
	while ($sql =~ m{\G('[^']*'|"[^"]*"|(\$\w*\$).*?\g2|--[^\n]*|/\*.*?\*/|[\w\s]+|.)}gs)
	{
		my $token = $1;
		$token eq ';' ? push(@statements, '') : ($statements[-1] .= $token);
	}
	@statements = grep { /\S/ } map { s/^(?:\s|--[^\n]*(?:\n|\z))+//r } @statements;
	return @statements ? \@statements : undef;
}

# undef where psql is to try instead, and to say what is wrong.
sub _connect
{
	my ($node, $database) = @_;
	return if $database =~ /=/;
	my $socket = IO::Socket::UNIX->new(Peer => $node->host . '/.s.PGSQL.' . $node->port) or return;
	my %options = (
		user => scalar getpwuid($<),
		database => $database,
		application_name => $ENV{PGAPPNAME} // 'psql');
	my $startup = pack 'N', 196608;
	$startup .= "$_\0$options{$_}\0" foreach sort keys %options;
	$startup .= "\0";
	binmode $socket;
	$socket->autoflush;
	local $SIG{PIPE} = 'IGNORE';
	print $socket pack('N', 4 + length $startup), $startup;
	for (;;)
	{
		my ($type, $body) = _message($socket) or return;
		return if $type eq 'E' || ($type eq 'R' && unpack('N', $body) != 0);
		return $socket if $type eq 'Z';
	}
}

# Adds the rows as psql -At prints them; returns the error, if there is one.
sub _query
{
	my ($socket, $statement, $rows) = @_;
	my $error;
	local $SIG{PIPE} = 'IGNORE';
	print $socket pack('A N', 'Q', 5 + length $statement), $statement, "\0";
	for (;;)
	{
		my ($type, $body) = _message($socket)
		  or return $error // 'server closed the connection unexpectedly';
		if ($type eq 'D')
		{
			my ($n, $at) = (unpack('n', $body), 2);
			my @values;
			foreach (1 .. $n)
			{
				my $length = unpack 'l>', substr($body, $at, 4);
				push @values, $length < 0 ? '' : substr($body, $at + 4, $length);
				$at += 4 + ($length < 0 ? 0 : $length);
			}
			push @$rows, join '|', @values;
		}
		elsif ($type =~ /[EN]/)
		{
			my %field = map { substr($_, 0, 1) => substr($_, 1) } grep { length } split /\0/, $body;
			my $text = "$field{S}:  $field{M}" . join '',
			  map { defined $field{ $_->[0] } ? "\n$_->[1]:  $field{ $_->[0] }" : () }
			  [ D => 'DETAIL' ], [ H => 'HINT' ], $type eq 'E' ? [ W => 'CONTEXT' ] : ();
			$type eq 'E' ? ($error = $text) : print "#### $text\n" =~ s/\n(?!\z)/\n#### /gr;
		}
		return $error if $type eq 'Z';
	}
}

# (type, body) of the server's next message; nothing at the end.
sub _message
{
	my ($socket) = @_;
	my $header = _read($socket, 5) // return;
	my ($type, $length) = unpack 'A N', $header;
	my $body = _read($socket, $length - 4) // return;
	return ($type, $body);
}

sub _read
{
	my ($socket, $wanted) = @_;
	my $read = '';
	while (length $read < $wanted)
	{
		my $n = read $socket, $read, $wanted - length $read, length $read;
		next if !defined $n && $!{EINTR};
		return unless $n;
	}
	return $read;
}

1;
