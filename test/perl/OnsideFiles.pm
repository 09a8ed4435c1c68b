# OnsideFiles: what tests of the tree's own files have in common: a command with all that
# it says, YAML, and the headings that a link can name.

package OnsideFiles;

use strict;
use warnings;

use Exporter qw(import);
use IPC::Run ();
use JSON::PP ();

our @EXPORT = qw(run yaml has_yaml anchors);

# run(@command)
# Runs it with nothing on its standard input; returns its exit status, what it prints, and
# its complaints.
sub run
{
	my (@command) = @_;
	die "run() in a place for one value, which would be the complaints\n" if defined wantarray && !wantarray;
	my ($out, $err) = ('', '');
	IPC::Run::run(\@command, '<', \undef, '>', \$out, '2>', \$err);
	return ($? >> 8, $out, $err);
}

# yaml($file), yaml('-', $text)
# The documents of YAML in the file, or in the text; dies if that is none.
sub yaml
{
	my ($file, $text) = @_;
	my ($out, $err);
	IPC::Run::run(
		[ '/usr/bin/python3', '-c', <<'PYTHON', $file ], '<', \($text // ''), '>', \$out, '2>', \$err);
import json, sys, yaml
stream = sys.stdin if sys.argv[1] == "-" else open(sys.argv[1])
print(json.dumps(list(yaml.safe_load_all(stream))))
PYTHON
	die "$file: $err" if $err;
	return @{ JSON::PP::decode_json($out) };
}

# has_yaml()
# Is there what yaml needs?
sub has_yaml { return !!eval { yaml('-', 'a: b') } }

# anchors($text)
# The names by which links lead to the headings of a text in Markdown, as GitHub makes
# them: { name => 1 }.
sub anchors
{
	my ($text) = @_;
	return { map { (lc($_) =~ s/[^\w\- ]//gr =~ tr/ /-/r) => 1 } $text =~ /^#+ (.*)$/mg };
}

1;
