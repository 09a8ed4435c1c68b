# The sandbox API is a program for users: `make install` installs the very file
# that the tests use; it answers as the API does, shows what arrived, and
# misbehaves when it is told to, by the command line alone.  Its help, its manual
# page and docs/sandbox.md have the same options.  And the workflow that the
# documentation offers runs: each of its steps but the installation.

use FindBin;
use IPC::Run ();
use JSON::PP ();
use OnsideTest;
use OnsideFiles;

my $tree = "$FindBin::RealBin/../..";
chomp(my $bindir = `pg_config --bindir`);
chomp(my $mandir = `pg_config --mandir`);
my $program = "$bindir/onside-sandbox";
my $dir = PostgreSQL::Test::Utils::tempdir();

# ---------------------------------------------------------------------------
# One program, described once
# ---------------------------------------------------------------------------

ok(-x $program, 'it is installed');
is(slurp_file($program), slurp_file("$tree/test/sandbox/sandbox_api.py"),
	'and is the one that the tests use');

# The options that a text is about, of all that it mentions.
sub options_of
{
	my ($text, $regexp) = @_;
	my %seen = map { $_ => 1 } map { /--([a-z][a-z-]+)/g } $text =~ /$regexp/g;
	delete $seen{help};
	return join ' ', sort keys %seen;
}

my ($rc, $help) = run($program, '--help');
is($rc, 0, '--help');
my $options = options_of($help, qr/^  (?:-\w, )?(--.*)$/m);
like($options, qr/ask.*port.*show-events/, 'names the options');
my $manual = slurp_file("$mandir/man1/onside-sandbox.1");
is($manual, slurp_file("$tree/test/sandbox/onside-sandbox.1"), 'the manual page is installed');
is(options_of($manual =~ s/\\-/-/gr, qr/^\.TP\n(\.B.*)$/m), $options, 'and has the same options');
my ($table) = slurp_file("$tree/docs/sandbox.md") =~ /^\| option \|.*\n\|[-|]+\|\n((?:\|.*\n)+)/m;
is(options_of($table, qr/^\| ([^|]*) \|/m), $options, 'and so has docs/sandbox.md');
SKIP:
{
	skip 'there is no man here', 1 if (run('sh', '-c', 'command -v man'))[0] != 0;
	my ($status, $page, $warnings) = run('man', '--warnings', '-l', "$tree/test/sandbox/onside-sandbox.1");
	is("$status$warnings", '0', 'man has nothing to say about the page');
}

foreach my $wrong (
	[ '--ask', '/report' ], [ '--post', '{}' ], [ '--behave', '{' ],
	[ '--behave', '[{"no_such_key": 1}]' ], [ '--host', '0.0.0.0' ], ['--no-such-option'])
{
	is((run($program, @$wrong))[0], 2, "@$wrong: refused");
}

# ---------------------------------------------------------------------------
# Serving, asking, misbehaving
# ---------------------------------------------------------------------------

my $seen = "$dir/seen";
my $sandbox = IPC::Run::start(
	[ $program, '--user', 'shop', '--password', 'secret', '--show-events',
		'--behave', '[{"status": 503, "times": 1}]' ],
	'<', \undef, '>', $seen, '2>', "$dir/complaints");
ok(wait_until(sub { -s $seen }), 'it says where it listens');
my ($port, $control) = slurp_file($seen) =~ /^(\d+) (\d+)$/;

sub ask
{
	my (@question) = @_;
	my ($status, $out, $err) = run($program, '--control-port', $control, '--ask', @question);
	return ($status, $status == 0 || $out ? JSON::PP::decode_json($out) : $err);
}

my $node = onside_node('main', start => 0);
my $file = write_credentials($node, "shop:secret\n");
$node->append_conf('postgresql.conf', <<CONF);
onside_attribution.endpoint = 'http://127.0.0.1:$port/attribution-api/v1/events'
onside_attribution.credentials_file = '$file'
CONF
$node->start;
create_extension($node, 'postgres');
my $id = track($node, 'postgres', 'purchase_completed', qq({"note": "a\xc3\xa9"}));

my ($status, $answer) = ask('/wait?distinct=1&timeout=' . patience());
is($status, 0, 'an event arrives');
($status, $answer) = ask('/report');
is($answer->{by_status}{503}, 1, 'after the failure that --behave asked for');
($status, $answer) = ask('/kept');
is($answer->[0]{event_id}, $id, 'it shows the event');
my $shown = sub { (split /\n/, slurp_file($seen))[1] };
ok(wait_until($shown), '--show-events prints it');
is(JSON::PP::decode_json($shown->())->{payload}{note}, "a\x{e9}", 'in UTF-8');

($status, $answer) = ask('/wait?distinct=2&timeout=0.1');
is($status, 1, 'what does not arrive is no success');
is($answer->{distinct}, 1, 'and the report is printed all the same');
($status, $answer) = ask('/behave', '--post', '[{"status": 500}]');
is($status, 0, 'it can be told to misbehave');
track($node, 'postgres');
poll_status($node, 'postgres', { state => 'backing_off' }, 'and does');
is((ask('/behave', '--post', '[]'))[0], 0, 'and to be healthy again');
is((ask('/wait?distinct=2&timeout=' . patience()))[0], 0, 'then the second event arrives');
($status, $answer) = ask('/behave', '--post', '[{"status": "x"}]');
is($status, 1, 'no rule');
like($answer, qr/"error"/, 'is refused with what is wrong');
is((ask('/no_such_request'))[0], 1, 'so is an unknown request');

# Somebody who stops reading what is shown stops nothing else.
my $reader = IPC::Run::start(
	[ 'sh', '-c', '"$0" "$@" | head -n 1 >"$PORTS"', $program, '--show-events' ],
	init => sub { $ENV{PORTS} = "$dir/ports" });
ok(wait_until(sub { -s "$dir/ports" }), 'a pipe that is read for one line');
($port, my $other) = slurp_file("$dir/ports") =~ /^(\d+) (\d+)$/;
($control, $other) = ($other, $control);
$node->append_conf('postgresql.conf', "onside_attribution.endpoint = 'http://127.0.0.1:$port/attribution-api/v1/events'");
write_credentials($node, "sandbox:sandbox\n");
$node->reload;
track($node, 'postgres') foreach 1 .. 3;
wait_for_flush($node, 'postgres', 'events are accepted all the same');
($status, $answer) = ask('/report');
is($answer->{distinct}, 3, 'and counted');
is((ask('/stop', '--post', '{}'))[0], 0, 'stopped');
$reader->finish;
($control, $other) = ($other, $control);
is((ask('/stop', '--post', '{}'))[0], 0, 'and the first one');
$sandbox->finish;
is($sandbox->result(0), 0, 'it ends by itself');
is(slurp_file("$dir/complaints"), '', 'and complained about nothing');
is((ask('/report'))[0], 1, 'nobody answers any more');
$node->stop;

# ---------------------------------------------------------------------------
# The workflow for GitHub Actions
# ---------------------------------------------------------------------------

SKIP:
{
	my $workflow = "$tree/docs/examples/github-actions.yml";
	skip 'there is no python3-yaml here', 1 unless has_yaml();
	my ($document) = eval { yaml($workflow) };
	is($@, '', 'it is YAML');
	my ($job, @others) = values %{ $document->{jobs} };
	is(scalar @others, 0, 'it has one job');
	my @steps = grep { $_->{run} } @{ $job->{steps} };
	like((shift @steps)->{run}, qr/apt-get install/, 'the first step installs');
	cmp_ok(scalar @steps, '>=', 5, 'more follow');

	# The machine of the workflow: its own server, free ports, and no root.
	my $shop = PostgreSQL::Test::Cluster->new('shop');
	$shop->init;
	$shop->start;
	my $data = $shop->data_dir;
	my $ports = join ' ', PostgreSQL::Test::Cluster::get_free_port(), PostgreSQL::Test::Cluster::get_free_port();
	my ($api, $steer) = split ' ', $ports;
	local %ENV = (%ENV, PGHOST => $shop->host, PGPORT => $shop->port, PATH => "$bindir:$ENV{PATH}");
	foreach my $step (@steps)
	{
		my $script = $step->{run};
		$script =~ s/sudo (?:-u \S+ )?//g;
		$script =~ s/install -o \S+ /install /g;
		$script =~ s{/etc/postgresql/16/main}{$data}g;
		$script =~ s{/etc/postgresql/}{$dir/}g;
		$script =~ s{pg_ctlcluster 16 main restart}{pg_ctl restart -w -s -D $data -l $dir/shop.log};
		$script =~ s/\b8080\b/$api/g;
		$script =~ s/\b8081\b/$steer/g;
		my ($status, $out, $err) = run('bash', '-e', '-o', 'pipefail', '-c', "cd $dir; $script");
		is($status, 0, $step->{name}) or diag("$out$err");
	}
	my @arrived = slurp_file("$dir/sandbox.log") =~ /"amount": "([\d.]+)"/g;
	is("@arrived", '9.99 5.00', 'what has arrived is what the shop has sold');
	run($program, '--control-port', $steer, '--ask', '/stop', '--post', '{}');
	$shop->_update_pid(1);
	$shop->stop;
}

done_testing();
