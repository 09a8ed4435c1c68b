# A release says the same everywhere: META.json, which is valid by the PGXN Meta
# Spec 1.0.0, the control file, the scripts, the library, the changelogs and what
# README.md tells one to install are about one version.  The files that they name
# are there.

use strict;
use warnings;

use FindBin;

use JSON::PP ();
use PostgreSQL::Test::Utils;
use Test::More;

my $tree = "$FindBin::RealBin/../..";

# The first match of a file.
sub match
{
	my ($file, $regexp) = @_;
	my ($found) = slurp_file("$tree/$file") =~ $regexp;
	return $found // "(not in $file)";
}

# ---------------------------------------------------------------------------
# META.json
# ---------------------------------------------------------------------------

my $meta = JSON::PP->new->utf8->decode(slurp_file("$tree/META.json"));

# The spec's types.
my $string = qr/\A\S(?:.*\S)?\z/;
my $term = qr/\A[^\s\/\\\x00-\x1f\x7f]{2,}\z/;
my $semver = qr/\A(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)(?:-?[A-Za-z][0-9A-Za-z-]*)?\z/;
my %licenses = map { $_ => 1 } qw(agpl_3 apache_1_1 apache_2_0 artistic_1 artistic_2 bsd
  freebsd gfdl_1_2 gfdl_1_3 gpl_1 gpl_2 gpl_3 lgpl_2_1 lgpl_3_0 mit mozilla_1_0 mozilla_1_1
  openssl perl_5 postgresql qpl_1_0 ssleay sun zlib open_source restricted unrestricted unknown);
my %keys = map { $_ => 1 } qw(name version abstract maintainer license provides meta-spec
  description generated_by tags no_index prereqs release_status resources);

is(join(' ', grep { !$keys{$_} && !/^x_/i } sort keys %$meta), '', 'no key but the spec\'s');
like($meta->{name}, $term, 'name');
like($meta->{version}, $semver, 'version');
like($meta->{abstract}, $string, 'abstract');
foreach my $maintainer (ref $meta->{maintainer} ? @{ $meta->{maintainer} } : $meta->{maintainer})
{
	like($maintainer, $string, 'maintainer');
}
ok($licenses{ $meta->{license} }, 'license');
is($meta->{'meta-spec'}{version}, '1.0.0', 'meta-spec');
like($meta->{'meta-spec'}{url}, qr{^https?://pgxn\.org/meta/spec\.(?:txt|html)$}, 'its address');
like($meta->{description}, $string, 'description');
like($meta->{release_status}, qr/^(?:stable|testing|unstable)$/, 'release_status');
like($_, qr/\A.{1,255}\z/, "tag \"$_\"") foreach @{ $meta->{tags} };

my $resources = $meta->{resources};
like($resources->{homepage}, qr{^https?://\S+$}, 'homepage');
my $mailto = $resources->{bugtracker}{mailto};
is(match('debian/control', qr/^Maintainer: .*<(.*)>$/m), $mailto, 'where faults are reported');
like(slurp_file("$tree/SECURITY.md"), qr/\Q$mailto\E/, 'as SECURITY.md says');
like(slurp_file("$tree/debian/watch"), qr/^version=\d\n\Q$resources->{homepage}\E /m,
	'debian/watch looks at the homepage');

is(join(' ', sort keys %{ $meta->{provides} }), 'onside_attribution', 'it provides one extension');
my $provided = $meta->{provides}{onside_attribution};
like($provided->{version}, $semver, 'whose version');
foreach my $file (@{$provided}{qw(file docfile)})
{
	ok(-f "$tree/$file", "$file is there");
}
like($provided->{abstract}, $string, 'and abstract are given');
foreach my $phase (values %{ $meta->{prereqs} })
{
	foreach my $relation (values %$phase)
	{
		like($relation->{$_}, $semver, "it needs $_") foreach sort keys %$relation;
	}
}

# ---------------------------------------------------------------------------
# One version
# ---------------------------------------------------------------------------

# The extension's, without the last number: a release that changes no SQL
# object has no script.
my $version = $meta->{version};
my ($sql_version) = $version =~ /^(\d+\.\d+)\./;

is($provided->{version}, $version, 'META.json');
is($provided->{file}, "onside_attribution--$sql_version.sql", 'its script');
is(match('onside_attribution.control', qr/^default_version = '(.*)'$/m),
	$sql_version, 'the control file');
is(match('src/version.h', qr/ONSIDE_SQL_VERSION\s+"(.*)"/), $sql_version, 'the library');
is(match('CHANGELOG.md', qr/^## (\S+)/m), $version, 'CHANGELOG.md');
is(match('debian/changelog', qr/\Aonside-attribution \(([^)]*)\)/), $version, 'debian/changelog');
is(match('packaging/rpm/onside_attribution.spec', qr/^Version:\s+(\S+)$/m), $version, 'the spec of the rpm');
is(match('test/sandbox/onside-sandbox.1', qr/^\.TH .*"onside_attribution (\S+)"/), $version, 'the manual page');
foreach my $file (glob("$tree/onside_attribution--*.sql"))
{
	my ($name) = $file =~ m{([^/]*)$};
	next if $name eq $provided->{file};
	like($name, qr/^onside_attribution--[\d.]+(?:--[\d.]+)?\.sql$/, "$name is a script of a version");
}
ok(-f "$tree/$provided->{file}", 'the script of the version is there');

my @named = slurp_file("$tree/README.md") =~ /onside[-_]attribution[-_](\d+\.\d+\.\d+)/g;
cmp_ok(scalar @named, '>=', 2, 'README.md names files of a release');
is(join(' ', grep { $_ ne $version } @named), '', 'of this one');

# ---------------------------------------------------------------------------
# The least PostgreSQL
# ---------------------------------------------------------------------------

my ($least) = $meta->{prereqs}{runtime}{requires}{PostgreSQL} =~ /^(\d+)/;
is(match('src/compat.h', qr/PG_VERSION_NUM < (\d+)0000\n#error/), $least, 'compat.h asks for the same PostgreSQL as META.json');
is(match('debian/pgversions', qr/^(\d+)\+$/m), $least, 'and debian/pgversions');
is(match('README.md', qr/needs PostgreSQL (\d+) or later/), $least, 'and README.md');

# CI has all versions that README.md promises.
my ($first, $last) = slurp_file("$tree/README.md") =~ /^It is written for PostgreSQL (\d+) to (\d+)/m;
is(match('.github/workflows/ci.yml', qr/^ *version: \[(.*)\]$/m),
	join(', ', $first .. $last), 'CI tests the versions of README.md');

# debian/control is made of debian/control.in, for any number of versions.
my @templates = split /\n\n/, slurp_file("$tree/debian/control.in") =~ s/\n+\z//r;
my @packages = split /\n\n/, slurp_file("$tree/debian/control") =~ s/\n+\z//r;
foreach my $template (@templates)
{
	my ($name) = $template =~ /^((?:Source|Package): .*)/;
	my $made = 0;
	while (@packages)
	{
		my ($number) = $packages[0] =~ /^Package: postgresql-(\d+)-/;
		last if $packages[0] ne $template =~ s{PGVERSION}{$number // ""}gre;
		$made++;
		shift @packages;
	}
	cmp_ok($made, '>=', 1, "debian/control has $name of debian/control.in");
}
is("@packages", '', 'and nothing else');

done_testing();
