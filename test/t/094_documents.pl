# Each link between the documents leads to a file and a heading that are there, and so
# does each runbook_url of an alert, and each document that code, scripts, manifests and
# other texts name.  The documents for users can be read as they are, too: prose has
# lines of at most 120 columns.

use strict;
use warnings;

use File::Find ();
use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use OnsideFiles;

my $top = "$FindBin::RealBin/../..";
chdir $top or die;

my %anchors;

# Why does this place not exist?  Nothing if it does.
sub missing
{
	my ($path, $anchor) = @_;
	1 while $path =~ s{[^/]+/\.\./}{};
	return "no file $path" if !-e $path;
	return if !defined $anchor || $path !~ /\.md$/;
	$anchors{$path} //= anchors(slurp_file($path));
	return $anchors{$path}{$anchor} ? () : "no heading $path#$anchor";
}

# What is built or fetched while a test runs is no document of ours.
my (@documents, @others);
File::Find::find({
	no_chdir => 1,
	wanted => sub {
		$File::Find::prune = 1, return if m{^\./(?:\.git|tmp_check|results|node_modules)$};
		s{^\./}{};
		return unless -f;
		push @documents, $_ if /\.md$/;
		push @others, $_ if m{^(?:src|sql|test|managed|monitoring|packaging|debian|\.github)/} && -T;
	} }, '.');

cmp_ok(scalar @documents, '>=', 15, 'there are documents');
foreach my $file (sort @documents)
{
	my ($dir) = $file =~ m{^(.*/)?};
	$dir //= '';
	my @broken;
	my $text = slurp_file($file) =~ s/^ *```.*?^ *```//gmsr =~ s/`[^`\n]*`//gr;
	foreach my $link ($text =~ /\]\(([^)\s]+)\)/g)
	{
		next if $link =~ /^\w+:/;
		my ($path, $anchor) = $link =~ /^([^#]*)(?:#(.*))?$/;
		push @broken, missing($path eq '' ? $file : $dir . $path, $anchor);
	}
	is(join(', ', @broken), '', "$file: its links");
}

# What is named without a link, and runbook_urls; 374_alerts_and_dashboard.pl looks at
# those that are made of an alert's labels.
foreach my $file (sort @documents, @others)
{
	my @broken;
	foreach my $name (slurp_file($file) =~ m{(?<![\w./])(docs/\w+\.md(?:#[\w-]+)?)}g)
	{
		push @broken, missing(split /#/, $name);
	}
	is(join(', ', @broken), '', "$file: the documents that it names") if @broken;
}
pass('all documents that are named have been looked for');

foreach my $file (grep { m{^(?:README\.md|docs/.*)$} } sort @documents)
{
	my $text = slurp_file($file) =~ s/^ *```.*?^ *```//gmsr;
	utf8::decode($text);
	is(join("\n", grep { length > 120 && !/^(?:\||    |!\[)/ } split /\n/, $text), '', "$file: its lines");
}

done_testing();
