<?php // What PDO makes of parameters without casts, and with those of cast.sql.
$url = parse_url(getenv('DATABASE_URL'));
$pdo = new PDO("pgsql:host={$url['host']};port={$url['port']};dbname=" . ltrim($url['path'], '/'), $url['user'], null,
               [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION]);
$id = '0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9';

function say($what, $sql, $values)
{
    global $pdo;
    try {
        $statement = $pdo->prepare($sql);
        $statement->execute($values);
        echo "$what: ", $statement->fetchColumn(), "\n";
    } catch (PDOException $error) {
        echo "$what: ", strtok($error->getMessage(), "\n"), "\n";
    }
}

$amount = "SELECT (onside_attribution.purchase(%s)).payload ->> 'amount'";
say('cast', preg_replace('/\$\d/', '?', getenv('CAST')), [$id, 9.9, 'usd', '2026-05-05T12:00:00Z', 51, '{"sku": "gems"}']);
say('float', sprintf($amount, '?, ?, ?'), [$id, 9.90, 'USD']);
say('colons', sprintf($amount, ':id::uuid, :amount::numeric(12,2), currency => :currency'), ['id' => $id, 'amount' => 9.9, 'currency' => 'USD']);
say('key', "SELECT onside_attribution.event_id('orders', ?)", [51]);
say('empty', "SELECT onside_attribution.track('e', ?, ?)", [$id, json_encode([])]);
say('object', "SELECT onside_attribution.track('e', ?, ?)", [$id, json_encode((object) [])]);
