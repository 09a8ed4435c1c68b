# OnsideExamples: runs the SQL examples of a text in Markdown, in the order in
# which they are read, and compares what they print with what the text says.
#
# An example is a block ```sql; a block ```text that follows it, with nothing but
# blank lines between them, is its output.
#
#   my $text = OnsideExamples->new($node, 'shop', "$tree/README.md");
#   foreach my $example ($text->examples) { $text->example_ok($example) }

package OnsideExamples;

use strict;
use warnings;

use File::Basename ();
use Test::More;

use OnsideTest;
use PostgreSQL::Test::Utils ();

# OnsideExamples->new($node, $database, $file, %options)
# With as_shown => 1, the output is what psql shows by itself, with headers and
# command tags, and must be all that is below the example.  By default it is
# unaligned, and the text may have a part of it.
sub new
{
	my ($class, $node, $database, $file, %options) = @_;
	return bless {
		node => $node,
		database => $database,
		name => File::Basename::basename($file),
		content => PostgreSQL::Test::Utils::slurp_file($file),
		%options
	}, $class;
}

# content
# The text.
sub content { return $_[0]{content} }

# replace($theirs, $ours)
# Puts what exists here, such as a file, in the place of what the reader has.
sub replace
{
	my ($self, $theirs, $ours) = @_;
	$self->{content} =~ s/\Q$theirs\E/$ours/g or die "$self->{name} has no $theirs";
	return;
}

# examples
# [ line, SQL, expected output or undef ], ...
sub examples
{
	my ($self) = @_;
	my @examples;
	my ($language, $after_sql, $line, $content);
	my $n = 0;
	foreach (split /^/, $self->{content})
	{
		$n++;
		if (defined $language)
		{
			if (/^```$/)
			{
				push @examples, [ $line, $content, undef ] if $language eq 'sql';
				$examples[-1][2] = $content if $language eq 'text' && $after_sql;
				$after_sql = $language eq 'sql';
				undef $language;
			}
			else
			{
				$content .= $_;
			}
		}
		elsif (/^```(\w+)$/)
		{
			($language, $line, $content) = ($1, $n, '');
		}
		elsif (/\S/)
		{
			$after_sql = 0;
		}
	}
	die "a block that begins in line $line does not end" if defined $language;
	return @examples;
}

# run_sql($sql)
# Returns psql's exit code, and what was printed.
sub run_sql
{
	my ($self, $sql) = @_;
	my ($out, $err);
	$sql = "\\pset format aligned\n\\pset tuples_only off\n\\set QUIET off\n$sql"
	  if $self->{as_shown};
	my $rc = $self->{node}->psql(
		$self->{database}, $sql,
		stdout => \$out,
		stderr => \$err,
		on_error_stop => 1,
		timeout => patience());
	return ($rc, $out, $err);
}

# example_ok($example)
# Tests that it runs, and prints what the text says.
sub example_ok
{
	my ($self, $example) = @_;
	my ($line, $sql, $expected) = @$example;
	my ($exit_code, $out, $err) = $self->run_sql($sql);
	my $ok = is($exit_code, 0, "$self->{name}:$line: the example runs");
	if ($self->{as_shown})
	{
		s/[ \t]+$//mg, s/\s+\z// foreach $out, grep { defined } $expected;
		$ok &&= is($out, $expected, "$self->{name}:$line: its output is the one below it")
		  if defined $expected;
	}
	elsif (defined $expected)
	{
		$ok &&= ok(index("$out\n", $expected) >= 0, "$self->{name}:$line: its output is the one below it");
	}
	diag("output: $out\nerrors: $err") unless $ok;
	return;
}

# outputs_follow_ok
# Tests that no output is left over that belongs to no example.
sub outputs_follow_ok
{
	my ($self) = @_;
	return is(
		scalar(grep { defined $_->[2] } $self->examples),
		scalar(() = $self->{content} =~ /^```text$/mg),
		"$self->{name}: each output follows an example");
}

1;
