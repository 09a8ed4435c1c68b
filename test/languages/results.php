<?php // The id of the last INSERT, after the order's trigger and a call have recorded events.
$url = parse_url(getenv('DATABASE_URL'));
$pdo = new PDO("pgsql:host={$url['host']};port={$url['port']};dbname=" . ltrim($url['path'], '/'), $url['user']);
$pdo->query("SELECT onside_attribution.attach('orders', 'e', 'installation_id', '{}')");
$pdo->exec("INSERT INTO orders (installation_id, total, currency) VALUES (gen_random_uuid(), 1, 'USD')");
$pdo->query("SELECT onside_attribution.track('e', gen_random_uuid(), '{}')");
echo 'lastInsertId: ', $pdo->lastInsertId(), "\n";
echo 'id: ', $pdo->query('SELECT max(id) FROM orders')->fetchColumn(), "\n";
$pdo->query("SELECT onside_attribution.detach('orders', 'e')");
