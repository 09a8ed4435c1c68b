# From PostgreSQL 17 on a subscription survives a failover of the managed side: docs/managed.md's
# settings, a standby that takes over, the subscription pointed at it, and no event is missing or made up.

use FindBin;
use OnsideTest;
use OnsideTopology qw(install_recorder);

my $document = slurp_file("$FindBin::RealBin/../../docs/managed.md");
my ($steps) = $document =~ /^\*\*From PostgreSQL 17 on\*\*.*?\n\n((?:    ALTER SUBSCRIPTION .*\n)+)/ms or die 'docs/managed.md says nothing of failover slots';

my ($major) = `pg_config --version` =~ /(\d+)/;
plan skip_all => 'slots survive a failover from PostgreSQL 17 on' if $major < 17;

my $sandbox = OnsideSandbox->start;
my $primary = onside_node('primary', preload => 0, init => { allows_streaming => 'logical' });
my $sender = onside_node('sender', sandbox => $sandbox, conf => "wal_retrieve_retry_interval = '100ms'\n");
create_extension($sender, 'postgres');
$primary->safe_psql('postgres', 'CREATE ROLE shop LOGIN');
$primary->safe_psql('postgres', 'CREATE DATABASE shop OWNER shop');
install_recorder($primary, 'shop', 'shop', 'recorder.sql');

# The standby, as the document has it.
$primary->safe_psql('postgres', q{SELECT pg_create_physical_replication_slot('standby')});
$primary->backup('standby');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'standby', has_streaming => 1);
$standby->append_conf('postgresql.conf', <<"CONF");
primary_conninfo = '@{[ $primary->connstr('postgres') =~ s{'}{''}gr ]}'
primary_slot_name = 'standby'
hot_standby_feedback = on
sync_replication_slots = on
CONF
$standby->start;
$primary->append_conf('postgresql.conf', "synchronized_standby_slots = 'standby'\n");
$primary->reload;

my $track = sub {
	my ($node, $n) = @_;
	return split /\n/, $node->safe_psql('shop', "SELECT onside_attribution.track('e', gen_random_uuid(), '{}') FROM generate_series(1, $n)", extra_params => [ '-U', 'shop' ]);
};
my @ids = $track->($primary, 50);
my $connection = sub { $_[0]->connstr('shop') =~ s/'/''/gr };
$sender->safe_psql('postgres', "CREATE SUBSCRIPTION onside_shop CONNECTION '@{[ $connection->($primary) ]}' PUBLICATION onside_attribution");
ok(wait_until(sub { $sandbox->accepted($ids[-1]) }), 'the initial copy arrives');
foreach my $step ($steps =~ /^    (.*;)$/mg)
{
	ok(wait_until(sub { $sender->psql('postgres', $step) == 0 }), $step);
}
ok($primary->poll_query_until('shop', q{SELECT failover AND active FROM pg_replication_slots WHERE slot_name = 'onside_shop'}), 'the slot is one that fails over');
push @ids, $track->($primary, 50);
ok(wait_until(sub { $sandbox->accepted($ids[-1]) }), 'events arrive');
ok($standby->poll_query_until('postgres', q{SELECT synced AND NOT temporary AND invalidation_reason IS NULL FROM pg_replication_slots WHERE slot_name = 'onside_shop'}), 'the standby has the slot');

# The sending side is away, more is recorded, and then the primary is gone.
$sender->safe_psql('postgres', 'ALTER SUBSCRIPTION onside_shop DISABLE');
push @ids, $track->($primary, 200);
$primary->wait_for_catchup($standby, 'replay');
$primary->stop('immediate');
$standby->promote;
$standby->poll_query_until('shop', 'SELECT NOT pg_is_in_recovery()');
push @ids, $track->($standby, 50);
$sender->safe_psql('postgres', "ALTER SUBSCRIPTION onside_shop CONNECTION '@{[ $connection->($standby) ]}'");
$sender->safe_psql('postgres', 'ALTER SUBSCRIPTION onside_shop ENABLE');
ok(wait_until(sub { $sandbox->accepted($ids[-1]) }), 'what the new primary records arrives');
wait_for_flush($sender, 'postgres', 'all is sent');
arrived_ok($sandbox, \@ids, 'what was recorded before, while nobody read it, and after the failover');
$_->stop foreach $sender, $standby;
$sandbox->stop;
done_testing();
