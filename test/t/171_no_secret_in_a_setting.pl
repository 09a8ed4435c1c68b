# No setting of ours holds a secret: an address with a user or password in any
# form, and credentials in place of a file's name, are refused by SET, ALTER
# SYSTEM, ALTER DATABASE and a reload, with a hint where they belong.  Where the
# value is there before we are asked (at server start, or stored by a session
# without the library), nothing is sent until it is corrected.  In no case does
# the value appear in a message, a view, doctor() or the log, but for what the
# server writes by itself: the statement that somebody typed.

use OnsideTest;

# Statements would show what is typed in them: see docs/settings.md.
my ($node, $sandbox) = sending_node(conf => "log_min_messages = debug1\nlog_min_error_statement = panic\nonside_attribution.retry_max_delay = '200ms'\n");

my $secret = 'xyzzy42';
my @proxies = (
	"http://user:$secret\@127.0.0.1:9", "http://$secret\@127.0.0.1:9", "http://:$secret\@127.0.0.1:9",
	"user:$secret\@127.0.0.1:9", "//user:$secret\@127.0.0.1:9", "HTTP://user:$secret\@127.0.0.1:9",
	"http:///user:$secret\@127.0.0.1:9", "http:/user:$secret\@127.0.0.1:9", "http:\\\\user:$secret\@127.0.0.1:9",
	"http://user%3A$secret%40127.0.0.1:9", "http://user:$secret%40127.0.0.1:9", "socks5h://user:$secret\@[::1]:9",
	"http://[::1]:9\@user:$secret", "http://a\@b:$secret\@127.0.0.1:9", "http://\tuser:$secret\@127.0.0.1:9",
	" http://user:$secret\@127.0.0.1:9", "http://127.0.0.1:9/$secret", "http://127.0.0.1:9?$secret",
	"http://127.0.0.1:9#$secret", "http://127.0.0.1:$secret", "$secret://127.0.0.1:9");
my @endpoints = (
	"https://user:$secret\@onside.io/", "https://$secret\@onside.io/", "https://:$secret\@onside.io/",
	"HTTPS://user:$secret\@onside.io/", "https:///user:$secret\@onside.io/", "//user:$secret\@onside.io/",
	"user:$secret\@onside.io", "https://user%3A$secret%40onside.io/", "https://user:$secret%40onside.io/",
	"https://user:$secret\@[::1]/", "https://\tuser:$secret\@onside.io/", "$secret://onside.io/",
	"https://onside.io:$secret/");
my @files = ("user:$secret", "user:$secret/with/slashes");
my %values = (
	proxy => \@proxies,
	endpoint => \@endpoints,
	credentials_file => \@files,
	proxy_credentials_file => \@files,
	ca_file => \@files);

sub quoted { return "'" . $_[0] =~ s/'/''/gr . "'" }

# What can be seen of the settings, by whoever sees most.
sub seen
{
	my ($position) = @_;
	return log_since($node, $position) . $node->safe_psql('postgres', <<'SQL');
SELECT * FROM pg_settings;
SELECT * FROM onside_attribution.status;
SELECT check_name, ok, detail, hint FROM onside_attribution.doctor();
SQL
}

my $start = log_position($node);
my $n = 0;
foreach my $setting (sort keys %values)
{
	foreach my $value (@{ $values{$setting} })
	{
		my $quoted = quoted($value);
		foreach my $command (
			"SET onside_attribution.$setting = $quoted",
			"ALTER SYSTEM SET onside_attribution.$setting = $quoted",
			"ALTER DATABASE postgres SET onside_attribution.$setting = $quoted",
			"ALTER ROLE CURRENT_USER SET onside_attribution.$setting = $quoted",
			"SELECT set_config('onside_attribution.$setting', $quoted, false)")
		{
			my ($ret, $out, $err) = $node->psql('postgres', $command);
			my $good = $ret != 0 && $err =~ /invalid value for parameter "onside_attribution.$setting"/ && $err =~ /HINT/ && "$out$err" !~ /$secret(?!.*\nLINE)/;
			$n++;
			next if $good;
			fail("$command is refused without being repeated");
			diag("$out$err");
		}
	}
}
pass("$n commands were refused");
like(($node->psql('postgres', "SET onside_attribution.proxy = 'http://user:pass\@127.0.0.1:9'"))[2],
	qr/HINT:.*proxy_credentials_file/, 'the hint says where a password of the proxy belongs');
like(($node->psql('postgres', q{SET onside_attribution.credentials_file = 'user:pass'}))[2],
	qr/HINT:.*into a file/, 'and one of the API');
unlike(seen($start), qr/$secret/, 'none of them can be seen');

# ---------------------------------------------------------------------------
# A reload
# ---------------------------------------------------------------------------

my $conf = slurp_file($node->data_dir . '/postgresql.conf');
sub configure
{
	my (@lines) = @_;
	my $file = $node->data_dir . '/postgresql.conf';
	unlink $file;
	append_to_file($file, $conf . join '', map { "$_\n" } @lines);
	return;
}

foreach my $setting (sort keys %values)
{
	my $position = log_position($node);
	configure("onside_attribution.$setting = " . quoted($values{$setting}[0]));
	$node->reload;
	wait_for_log_line($node, qr/invalid value for parameter "onside_attribution.$setting"/, $position,
		"$setting: a reload refuses it");
	unlike(seen($position), qr/$secret/, "$setting: and shows it nowhere");
}
configure();
$node->reload;
track($node, 'postgres');
wait_for_flush($node, 'postgres', 'what was before is in force');

# ---------------------------------------------------------------------------
# A start, and what was stored without the library
# ---------------------------------------------------------------------------

# Other queries do not suffer: parallel workers are given the setting, too.
sub parallel_ok
{
	my ($what) = @_;
	my $count = $node->safe_psql('postgres', <<'SQL');
CREATE TABLE IF NOT EXISTS numbers AS SELECT * FROM generate_series(1, 100000) n;
SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
DO $$
DECLARE line text; seen boolean := false;
BEGIN
    FOR line IN EXPLAIN ANALYZE SELECT count(*) FROM numbers LOOP
        seen := seen OR line ~ 'Workers Launched: [1-9]';
    END LOOP;
    ASSERT seen, 'no parallel worker was launched';
END
$$;
SELECT count(*) FROM numbers;
SQL
	is($count, 100000, "$what: parallel queries work");
	return;
}

my %reason = (
	proxy => qr/onside_attribution.proxy cannot be used/,
	endpoint => qr/onside_attribution.endpoint cannot be used/,
	credentials_file => qr/onside_attribution.credentials_file cannot be used/,
	proxy_credentials_file => qr/onside_attribution.proxy_credentials_file cannot be used/);
foreach my $setting (sort keys %reason)
{
	my $position = log_position($node);
	my $requests = $sandbox->report->{requests};
	configure(
		$setting eq 'proxy_credentials_file' ? "onside_attribution.proxy = 'http://127.0.0.1:9'" : (),
		"onside_attribution.$setting = " . quoted($values{$setting}[0]));
	$node->restart;
	track($node, 'postgres');
	poll_status($node, 'postgres', { state => 'misconfigured', state_reason => $reason{$setting} },
		"$setting: a start with it sends nothing");
	parallel_ok($setting);
	is($sandbox->report->{requests}, $requests, "$setting: indeed");
	like(log_since($node, $position), qr/WARNING:  invalid value for parameter "onside_attribution.$setting"/,
		"$setting: the log says why");
	unlike(seen($position), qr/$secret/, "$setting: and shows it nowhere");
	configure();
	$node->reload;
	wait_for_flush($node, 'postgres', "$setting: when it is corrected, a reload is enough");
}

# The check is not there when the library is not.
foreach my $setting (qw(credentials_file proxy))
{
	my $requests = $sandbox->report->{requests};
	configure(q{shared_preload_libraries = ''});
	$node->restart;
	$node->safe_psql('template1',
		"ALTER DATABASE postgres SET onside_attribution.$setting = " . quoted($values{$setting}[0]));
	my $position = log_position($node);
	configure();
	$node->restart;
	track($node, 'postgres');
	poll_status($node, 'postgres', { state => 'misconfigured', state_reason => $reason{$setting} },
		"$setting: stored without the library, it sends nothing");
	parallel_ok($setting);
	is($sandbox->report->{requests}, $requests, "$setting: indeed");
	unlike(seen($position), qr/$secret/, "$setting: and is shown nowhere but in pg_db_role_setting");
	configure();
	$node->safe_psql('postgres', "ALTER DATABASE postgres RESET onside_attribution.$setting; SELECT pg_reload_conf()");
	wait_for_flush($node, 'postgres', "$setting: when it is reset, events are sent");
}

$node->stop;
done_testing();
