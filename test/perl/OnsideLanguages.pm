# OnsideLanguages: the programs of docs/languages.md, and what runs them.
#
# A block of the document whose first line is a comment with a file's name is
# that file.  Each heading of the third level is a client, and has its entry
# below: how to see whether it is installed, and how to run its program.

package OnsideLanguages;

use strict;
use warnings;

use Cwd        ();
use File::Path ();
use IPC::Run   ();

use PostgreSQL::Test::Utils ();

my $java = '/usr/share/java';
my $hibernate = join ':', '.', map { "$java/$_.jar" } qw(postgresql hibernate-core
  hibernate-commons-annotations geronimo-jpa_2.0_spec geronimo-jta-1.2-spec javassist dom4j antlr
  commons-collections3 slf4j-api slf4j-nop);

# Debian's packages of Go programs are sources in one tree.
my @go = qw(env GO111MODULE=off GOPATH=/usr/share/gocode);

sub python { return has => [ '/usr/bin/python3', '-c', "import $_[0]" ] }
sub php { return has => [ 'php', '-r', "require 'vendor/autoload.php'; exit(extension_loaded('pdo_pgsql') && class_exists('$_[0]') ? 0 : 1);" ] }
sub node { return has => [ 'test', '-d', "node_modules/$_[0]" ] }

# quick: `make test` tries it, too.
our %clients = (
	'psycopg 3' => { python('psycopg'), quick => 1, run => [qw(/usr/bin/python3 buy_psycopg.py)] },
	'psycopg2' => { python('psycopg2'), run => [qw(/usr/bin/python3 buy_psycopg2.py)] },
	'SQLAlchemy' => { python('sqlalchemy'), run => [qw(/usr/bin/python3 buy_sqlalchemy.py)] },
	'Django' => { python('django'), run => [qw(/usr/bin/python3 buy_django.py)] },
	'Active Record' => { has => [qw(ruby -e), 'require "active_record"; require "pg"'], run => [qw(ruby buy.rb)] },
	'node-postgres' => { node('pg'), run => [qw(node buy.mjs)] },
	'Prisma' => { node('prisma'), prepare => [qw(node_modules/.bin/prisma generate)], run => [qw(node_modules/.bin/tsx buy_prisma.ts)] },
	'Drizzle' => { node('drizzle-orm'), run => [qw(node_modules/.bin/tsx buy_drizzle.ts)] },
	'TypeORM' => { node('typeorm'), run => [qw(node_modules/.bin/tsx buy_typeorm.ts)] },
	'PDO' => { php('PDO'), run => [qw(php buy_pdo.php)] },
	'Laravel' => { php('Illuminate\Database\Capsule\Manager'), run => [qw(php buy_laravel.php)] },
	'Doctrine' => { php('Doctrine\ORM\EntityManager'), run => [qw(php buy_doctrine.php)] },
	'JDBC' => {
		has => [ 'sh', '-c', "javac -version && test -e $java/postgresql.jar" ],
		prepare => [qw(javac BuyJdbc.java)],
		run => [ 'java', '-cp', "$java/postgresql.jar:.", 'BuyJdbc' ]
	},
	'Hibernate' => {
		has => [ 'sh', '-c', "javac -version && test -e $java/hibernate-core.jar" ],
		prepare => [ 'javac', '-cp', $hibernate, 'BuyHibernate.java' ],
		run => [ 'java', '--add-opens', 'java.base/java.lang=ALL-UNNAMED', '-cp', $hibernate, 'BuyHibernate' ]
	},
	'pgx' => {
		has => [ 'sh', '-c', 'go version && test -d /usr/share/gocode/src/github.com/jackc/pgx' ],
		prepare => [ @go, qw(go build -o buy buy.go) ],
		run => ['./buy']
	},
);

# OnsideLanguages->new($document, $directory): writes all files of the document there.
sub new
{
	my ($class, $document, $directory) = @_;
	my $text = PostgreSQL::Test::Utils::slurp_file($document);
	File::Path::make_path("$directory/vendor");
	my $self = bless { directory => Cwd::abs_path($directory), text => $text, files => {} }, $class;

	while ($text =~ /^```(\w+)\n((?:<\?php )?(?:#|--|\/\/) (\S+\.\w+)\n.*?)^```$/gms)
	{
		my ($content, $name) = ($2, $3);
		die "$name is there twice" if $self->{files}{$name};
		$self->{files}{$name} = $content;
		$self->write($name, $content);
	}

	# Where Composer and npm put what they install.
	$self->write('vendor/autoload.php', <<'PHP');
<?php
foreach (['Illuminate/Database', 'Doctrine/ORM', 'Doctrine/DBAL', 'Symfony/Component/Cache'] as $package) {
    if (file_exists("/usr/share/php/$package/autoload.php")) {
        require_once "/usr/share/php/$package/autoload.php";
    }
}
PHP
	$self->write('package.json', '{"type": "module"}');
	symlink("$ENV{ONSIDE_TEST_NODE}/node_modules", "$self->{directory}/node_modules") if $ENV{ONSIDE_TEST_NODE};
	return $self;
}

sub write
{
	my ($self, $name, $content) = @_;
	open(my $fh, '>', "$self->{directory}/$name") or die "could not write $name: $!";
	print $fh $content;
	close($fh) or die "could not write $name: $!";
	return;
}

sub file { return $_[0]{files}{ $_[1] } // die "docs/languages.md has no $_[1]" }

# The titles of the chapters about languages, and those of the traps.
sub titles
{
	my ($self, $chapter) = @_;
	my ($languages, $traps) = $self->{text} =~ /^(.*)^## Traps\n(.*)/ms or die 'no traps';
	return ($chapter eq 'traps' ? $traps : $languages) =~ /^### (.*)$/mg;
}

# run($command, \%environment): the exit status and what was printed.
sub run
{
	my ($self, $command, $environment) = @_;
	my $output = '';
	local %ENV = (
		%ENV,
		# Prisma would download a program that its client does not need.
		PRISMA_SCHEMA_ENGINE_BINARY => '/bin/true', PRISMA_HIDE_UPDATE_MESSAGE => 1,
		GOCACHE => "$self->{directory}/go-cache",
		%{ $environment // {} });
	my $ok = eval {
		IPC::Run::run([ 'sh', '-c', 'cd "$0" && exec "$@"', $self->{directory}, @$command ],
			'<', \undef, '>&', \$output, IPC::Run::timeout(300));
	};
	return ($ok ? 0 : 1, $output . ($@ || ''));
}

sub has
{
	my ($self, $title) = @_;
	my ($status) = $self->run($clients{$title}{has});
	return $status == 0;
}

1;
