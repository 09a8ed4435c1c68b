# What is aside is pending, wherever one looks: in status without a worker, for
# flush(), for DROP EXTENSION, in a dump and where that is restored.  A publisher's
# rows come to a subscriber of all tables and stay there, also when the publisher
# truncates the table, and so do the subscriber's own.  Without its indexes all of
# that is the same.

use OnsideTest;

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox, init => { allows_streaming => 'logical' });
my $other = onside_node('other');

# An event that is put aside, by SQL; its event_id.
sub put_aside
{
	my ($on, $database, $name, $age) = @_;
	$age //= '1 hour';
	return $on->safe_psql($database, <<SQL);
INSERT INTO onside_attribution.aside (event_name, payload, event_datetime, installation_id, recorded_at, failed_at, http_status, error)
VALUES ('$name', jsonb_build_object('x', repeat('y', 20000)), '2026-05-05 12:00+00', '$OnsideTest::installation',
	now() - interval '$age', now() - interval '1 minute', 503, 'away') RETURNING event_id
SQL
}

# All of it but the id, which is the row's.
my $rows = q{SELECT event_id, event_name, md5(payload::text), event_datetime, installation_id, recorded_at, failed_at, http_status, error, id
	FROM onside_attribution.aside ORDER BY id};

sub paused_database
{
	my ($on, $database) = @_;
	$on->safe_psql('postgres', "CREATE DATABASE $database");
	create_extension($on, $database);
	$on->safe_psql($database, 'SELECT onside_attribution.pause()');
	poll_status($on, $database, { state => 'paused' }, "$database: paused");
	return;
}

foreach my $with ('indexes', 'no index')
{
	my $shop = $with eq 'indexes' ? 'shop' : 'bare';

	# What a DBA may have done while the library was not loaded.
	my $bare = $with eq 'indexes' ? '' : <<'SQL';
UPDATE pg_index SET indisvalid = false WHERE indexrelid IN
	('onside_attribution.aside_pkey'::regclass, 'onside_attribution.aside_recorded_at_id_idx'::regclass);
SQL
	paused_database($node, $shop);
	$node->safe_psql($shop, $bare) if $bare;

	subtest "flush(), with $with" => sub {
		is($node->safe_psql($shop, "SELECT onside_attribution.flush('10 s')"), 't', 'nothing is pending');
		my $id = put_aside($node, $shop, 'old');
		is($node->safe_psql($shop, "SELECT onside_attribution.flush('200 ms')"), 'f', 'something is aside');
		is($node->safe_psql($shop, 'SELECT string_agg(event_id::text, $$ $$) FROM onside_attribution.pending'), $id, 'and is pending');
		$node->safe_psql($shop, "DELETE FROM onside_attribution.aside");
		is($node->safe_psql($shop, "SELECT onside_attribution.flush('10 s')"), 't', 'withdrawn');
	};

	subtest "DROP EXTENSION, with $with" => sub {
		put_aside($node, $shop, 'keep');
		foreach ('DROP EXTENSION onside_attribution', 'DROP EXTENSION onside_attribution CASCADE', 'DROP SCHEMA onside_attribution CASCADE',
			'DROP TABLE onside_attribution.aside CASCADE')
		{
			my ($ret, undef, $error) = $node->psql($shop, $_);
			like($error, /DROP TABLE/ ? qr/extension onside_attribution requires it/
				: qr/pending events.*have not been delivered: 1\b.*TRUNCATE onside_attribution\.outbox, onside_attribution\.aside/s, "$_ is refused")
			  unless /SCHEMA/;
			isnt($ret, 0, "$_ fails");
		}
		is($node->safe_psql($shop, 'SELECT count(*) FROM onside_attribution.aside'), 1, 'it is still there');
		$node->safe_psql($shop, 'TRUNCATE onside_attribution.outbox, onside_attribution.aside');
		$node->safe_psql($shop, 'BEGIN; DROP EXTENSION onside_attribution; ROLLBACK');
		pass('discarded with TRUNCATE, DROP EXTENSION works');
	};
}

subtest 'without a worker' => sub {
	put_aside($node, $_, 'old', '3 hours') foreach 'shop', 'bare';
	put_aside($node, $_, 'older', '30 hours') foreach 'shop', 'bare';
	$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
	$node->restart;
	is( $node->safe_psql($_, q{SELECT state, pending, oldest_pending_age BETWEEN '30 h' AND '31 h' FROM onside_attribution.status}),
		'not_running|2|t', "$_: status counts them, and knows the oldest") foreach 'shop', 'bare';
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'onside_attribution'");
	$node->restart;
};

subtest 'a dump' => sub {
	my $there = $node->safe_psql('shop', $rows);
	my $plain = $node->basedir . '/plain.sql';
	my $custom = $node->basedir . '/custom.dump';
	$node->command_ok([ 'pg_dump', '-f', $plain, $node->connstr('shop') ], 'pg_dump');
	$node->command_ok([ 'pg_dump', '-Fc', '-f', $custom, $node->connstr('shop') ], 'pg_dump -Fc');
	foreach my $format (qw(plain custom))
	{
		my $database = "restored_$format";
		$other->safe_psql('postgres', "CREATE DATABASE $database");
		$other->command_ok($format eq 'plain'
			? [ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-o', '/dev/null', '-d', $other->connstr($database), '-f', $plain ]
			: [ 'pg_restore', '--exit-on-error', '-d', $other->connstr($database), $custom ], "$format: restored");
		is($other->safe_psql($database, $rows), $there, "$format: the same rows");
		is($other->safe_psql($database, 'SELECT count(*) FROM onside_attribution.pending'), 2, "$format: which are pending there");
	}
};

subtest 'logical replication of all tables' => sub {
	paused_database($other, 'subscriber');
	put_aside($other, 'subscriber', 'own');
	$node->safe_psql('shop', 'CREATE PUBLICATION everything FOR ALL TABLES');
	$other->safe_psql('subscriber', <<SQL);
CREATE SUBSCRIPTION everything CONNECTION '@{[ $node->connstr ]} dbname=shop' PUBLICATION everything
SQL
	my $names = 'SELECT string_agg(event_name, $$ $$ ORDER BY event_name) FROM onside_attribution.aside';
	my $replicated = sub {
		$other->poll_query_until('subscriber', "SELECT count(*) = 0 FROM pg_subscription_rel WHERE srsubstate <> 'r'")
		  or die 'the initial copy did not end';
		$node->wait_for_catchup('everything');
	};
	$replicated->();
	is($other->safe_psql('subscriber', $names), 'old older own', 'what was there has come');
	put_aside($node, 'shop', 'new');
	$replicated->();
	is($other->safe_psql('subscriber', $names), 'new old older own', 'and what comes later');
	$node->safe_psql('shop', q{DELETE FROM onside_attribution.aside WHERE event_name = 'old'});
	$replicated->();
	is($other->safe_psql('subscriber', $names), 'new older own', 'what is withdrawn there is withdrawn here');
	my $kept = $other->safe_psql('subscriber', $rows);
	$node->safe_psql('shop', 'TRUNCATE onside_attribution.aside');
	$replicated->();
	is($other->safe_psql('subscriber', $rows), $kept, 'a TRUNCATE takes none along, and changes none');
	is($other->safe_psql('subscriber', 'SELECT apply_error_count FROM pg_stat_subscription_stats'), 0, 'without an error');
	$other->safe_psql('subscriber', 'DROP SUBSCRIPTION everything');
};

subtest 'a prepared transaction' => sub {
	my $id = put_aside($node, 'shop', 'prepared');
	$node->safe_psql('shop', "BEGIN; DELETE FROM onside_attribution.aside; PREPARE TRANSACTION 'withdraws'");
	$node->stop('immediate');
	$node->start;
	is($node->safe_psql('shop', 'SELECT event_id FROM onside_attribution.pending'), $id, 'prepared: it is pending');
	$node->safe_psql('shop', "COMMIT PREPARED 'withdraws'");
	is($node->safe_psql('shop', 'SELECT count(*) FROM onside_attribution.pending'), 0, 'committed after a crash: it is not');
};

is($sandbox->report->{distinct}, 0, 'nothing was sent while sending was paused');
$node->stop;
$other->stop;
$sandbox->stop;
done_testing();
