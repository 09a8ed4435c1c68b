# Each link between the documents leads to a file and a heading that are there.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use OnsideFiles;

my $top = "$FindBin::RealBin/../..";
chdir $top or die;

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
		push @broken, $link if !-e $target || (defined $anchor && $target =~ /\.md$/ && !anchors(slurp_file($target))->{$anchor});
	}
	is("@broken", '', "$file: its links");
}

done_testing();
