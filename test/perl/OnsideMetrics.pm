# OnsideMetrics: Debian's postgres_exporter and Prometheus, for the tests of
# monitoring/.
#
# Both listen on loopback and are children of the test.  They end with it,
# whatever happens to it: stop(), END, and the kernel (setpriv --pdeathsig).
#
#   plan skip_all => $reason if (my $reason = OnsideMetrics::missing());
#
#   my $metrics = OnsideMetrics->start($node, 'onside_monitor', [qw(shop books)]);
#   my $shop = $metrics->scrape->{'onside_attribution_pending{datname="shop"}'};
#   my $series = $metrics->query('rate(onside_attribution_delivered_total[1m])');
#   $metrics->stop;

package OnsideMetrics;

use strict;
use warnings;

use Cwd            ();
use File::Basename ();
use File::Temp     ();
use HTTP::Tiny     ();
use JSON::PP       ();
use POSIX          ();

use OnsideTest;
use PostgreSQL::Test::Cluster ();
use PostgreSQL::Test::Utils   ();

# Where the files that are tested are.
our $directory =
  Cwd::abs_path(File::Basename::dirname(Cwd::abs_path(__FILE__)) . '/../../monitoring');

my %running;

# missing
# Why the programs cannot be run here; false if they can.
sub missing
{
	my @missing = grep {
		my $program = $_;
		!grep { -x "$_/$program" } split /:/, $ENV{PATH}
	} qw(prometheus-postgres-exporter prometheus promtool);
	return @missing && "not installed: @missing; \"make check-metrics\" installs what this needs";
}

# OnsideMetrics->start($node, $role, \@databases)
# Starts an exporter that asks these databases as this role, in the way that
# monitoring/README.md recommends, and a Prometheus with the alert rules that
# scrapes it twice a second.
sub start
{
	my ($class, $node, $role, $databases) = @_;
	my $self = bless {
		owner => $$,
		dir => File::Temp::tempdir(DIR => $PostgreSQL::Test::Utils::tmp_check),
		exporter_port => PostgreSQL::Test::Cluster::get_free_port(),
		prometheus_port => PostgreSQL::Test::Cluster::get_free_port(),
		http => HTTP::Tiny->new(timeout => 60, proxy => undef, http_proxy => undef),
		dsn => 'host=' . $node->host . ' port=' . $node->port
		  . " user=$role dbname=$databases->[0] sslmode=disable statement_timeout=5s",
		databases => join(',', @$databases)
	}, $class;
	$running{$self} = $self;
	$self->start_exporter;

	my $config = "$self->{dir}/prometheus.yml";
	PostgreSQL::Test::Utils::append_to_file($config, <<"YAML");
global:
  scrape_interval: 500ms
  scrape_timeout: 500ms
  evaluation_interval: 1s
rule_files: ['$directory/alerts.yaml']
scrape_configs:
  - job_name: onside_attribution
    static_configs:
      - targets: ['127.0.0.1:$self->{exporter_port}']
YAML
	$self->{prometheus} = $self->_spawn(
		'prometheus',
		'prometheus', "--config.file=$config", "--storage.tsdb.path=$self->{dir}/data",
		"--web.listen-address=127.0.0.1:$self->{prometheus_port}");
	$self->_wait_for($self->{prometheus}, 'prometheus', $self->prometheus . '/-/ready');
	return $self;
}

# start_exporter, stop_exporter
sub start_exporter
{
	my ($self) = @_;
	local $ENV{DATA_SOURCE_NAME} = $self->{dsn};
	$self->{exporter} = $self->_spawn(
		'exporter',
		'prometheus-postgres-exporter', "--extend.query-path=$directory/queries.yaml",
		'--auto-discover-databases', "--include-databases=$self->{databases}",
		"--web.listen-address=127.0.0.1:$self->{exporter_port}");
	$self->_wait_for($self->{exporter}, 'exporter', $self->exporter . '/metrics');
	return;
}

sub stop_exporter
{
	my ($self) = @_;
	_end(delete $self->{exporter});
	return;
}

# exporter, prometheus
# Their addresses.
sub exporter { return "http://127.0.0.1:$_[0]{exporter_port}" }
sub prometheus { return "http://127.0.0.1:$_[0]{prometheus_port}" }

# scrape
# What the exporter says now: { 'name{label="value",...}' => number }, without the
# label server.
sub scrape
{
	my ($self) = @_;
	my %metrics;
	foreach (split /\n/, $self->_get($self->exporter . '/metrics'))
	{
		next if /^#/;
		my ($name, $value) = /^(\S.*) (\S+)$/ or die "not a metric: $_";
		$name =~ s/,?server="[^"]*"//;
		$name =~ s/\{,/{/;
		$metrics{$name} = $value;
	}
	return \%metrics;
}

# query($promql)
# [ { metric => { labels }, value => number }, ... ] as of now.  Dies if the
# expression is none.
sub query
{
	my ($self, $promql) = @_;
	my $answer = $self->api('query', query => $promql);
	return [ map { { metric => $_->{metric}, value => $_->{value}[1] } } @{ $answer->{result} } ];
}

# api($what, %parameters)
# The data of an answer of Prometheus's HTTP API.
sub api
{
	my ($self, $what, %parameters) = @_;
	my $url = $self->prometheus . "/api/v1/$what";
	$url .= '?' . $self->{http}->www_form_urlencode(\%parameters) if %parameters;
	return JSON::PP::decode_json($self->_get($url))->{data};
}

# stop
sub stop
{
	my ($self) = @_;
	_end(delete $self->{$_}) foreach qw(prometheus exporter);
	delete $running{$self};
	return;
}

END
{
	local ($?, $!, $@);
	foreach my $one (values %running)
	{
		$one->stop if $one->{owner} == $$;
	}
}

# ---------------------------------------------------------------------------

sub _spawn
{
	my ($self, $name, @command) = @_;
	my $pid = fork() // die "could not fork: $!";
	return $pid if $pid;
	open(STDIN, '<', '/dev/null')
	  && open(STDOUT, '>>', "$self->{dir}/$name.log")
	  && open(STDERR, '>&', \*STDOUT)
	  && exec 'setpriv', '--pdeathsig', 'KILL', @command;
	POSIX::_exit(127);
}

sub _end
{
	my ($pid) = @_;
	return unless $pid;
	kill 'TERM', $pid;
	my $ended = wait_until(sub { waitpid($pid, POSIX::WNOHANG()) != 0 }, 30);
	return if $ended;
	kill 'KILL', $pid;
	waitpid($pid, 0);
	return;
}

sub _wait_for
{
	my ($self, $pid, $name, $url) = @_;
	my $answers = wait_until(
		sub {
			die "$name has ended, see $self->{dir}/$name.log" if waitpid($pid, POSIX::WNOHANG());
			return $self->{http}->get($url)->{success};
		});
	die "$name does not answer, see $self->{dir}/$name.log" unless $answers;
	return;
}

sub _get
{
	my ($self, $url) = @_;
	my $response = $self->{http}->get($url);
	die "$url: $response->{status} $response->{content}" unless $response->{success};
	return $response->{content};
}

1;
