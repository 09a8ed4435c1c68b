# A session's memory does not grow with calls of flush() that are cut off, nor
# while one waits: after 200 of them, the context that lives as long as the
# session holds what it held before.  Nor does it keep what a large row has taken
# that was no valid event.

use OnsideTest;

# Caches that fill up live in contexts of their own, but each has a header here.
my $slack = 4096;

my ($node, $sandbox) = sending_node();
$node->safe_psql('postgres', 'SELECT onside_attribution.pause()');
my $id = track($node, 'postgres');

my $used = q{SELECT 'used ' || used_bytes FROM pg_backend_memory_contexts}
  . " WHERE name = 'TopMemoryContext';\n";
my $cut_off = "SET statement_timeout = '10ms';\n"
  . "SELECT onside_attribution.flush('1 min');\n"
  . "RESET statement_timeout;\n";

# One session does it all.
my ($status, $out, $err) =
  $node->psql('postgres', $cut_off x 10 . $used . $cut_off x 200 . $used, on_error_stop => 0);
my $errors = () = $err =~ /canceling statement due to statement timeout/g;
is($errors, 210, 'flush is cut off each time');
my ($before, $after) = $out =~ /^used (\d+)$/mg;
note("TopMemoryContext has $before bytes in use before and $after after");
cmp_ok($after, '<', $before + $slack, 'it leaves nothing behind');

$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
wait_for_flush($node, 'postgres', 'what waited is sent');
arrived_ok($sandbox, [$id], 'and arrives');

# A row of 30 MB fails; the trigger's mapping is kept, and nothing of the row.
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE large (install_id uuid, note text);
SELECT onside_attribution.attach('large', 'large', 'install_id', '{"note": "note"}');
SQL
($status, $out, $err) = $node->psql('postgres', <<'SQL', on_error_stop => 0);
SET onside_attribution.on_invalid_event = error;
INSERT INTO large VALUES (gen_random_uuid(), repeat('x', 30000000));
SELECT 'used ' || total_bytes FROM pg_backend_memory_contexts WHERE name = 'onside_attribution row';
SQL
like($err, qr/ERROR:.*payload is too large/, 'a row that is too large fails');
like($out, qr/^used \d+$/, 'the mapping is kept');
my ($kept) = $out =~ /(\d+)/;
note("of it are left $kept bytes");
cmp_ok($kept, '<', 100000, 'and nothing of the row');

$node->stop;
done_testing();
