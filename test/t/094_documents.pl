# Each link between the documents leads to a file and a heading that are there.

use strict;
use warnings;

use FindBin;

use PostgreSQL::Test::Utils;
use Test::More;

my $top = "$FindBin::RealBin/../..";
chdir $top or die;

# A heading's name in a link, as GitHub makes it.
sub anchors
{
	my ($file) = @_;
	my %anchors;
	foreach (grep { /^#+ / } split /\n/, slurp_file($file))
	{
		my $name = lc s/^#+ //r;
		$name =~ s/[^\w\- ]//g;
		$name =~ tr/ /-/;
		$anchors{$name} = 1;
	}
	return \%anchors;
}

foreach my $file ('README.md', 'CONTRIBUTING.md', 'TUTORIAL.md', 'REFERENCE.md', glob('docs/*.md'))
{
	my ($dir) = $file =~ m{^(.*/)?};
	$dir //= '';
	my @broken;
	my $text = slurp_file($file) =~ s/^```.*?^```//gmsr =~ s/`[^`\n]*`//gr;
	foreach my $link ($text =~ /\]\(([^)\s]+)\)/g)
	{
		next if $link =~ /^\w+:/;
		my ($path, $anchor) = $link =~ /^([^#]*)(?:#(.*))?$/;
		my $target = $path eq '' ? $file : $dir . $path;
		$target =~ s{[^/]+/\.\./}{};
		push @broken, $link if !-e $target || (defined $anchor && $target =~ /\.md$/ && !anchors($target)->{$anchor});
	}
	is("@broken", '', "$file: its links");
}

done_testing();
