<?php // What Doctrine's schema tool sees, and would drop.
require 'vendor/autoload.php';
$url = parse_url(getenv('DATABASE_URL'));
$connection = Doctrine\DBAL\DriverManager::getConnection(['driver' => 'pdo_pgsql', 'host' => $url['host'], 'port' => $url['port'],
    'dbname' => ltrim($url['path'], '/'), 'user' => $url['user']]);
$platform = $connection->getDatabasePlatform();
$seen = $connection->createSchemaManager()->introspectSchema();
$drops = (new Doctrine\DBAL\Schema\Comparator($platform))->compareSchemas($seen, new Doctrine\DBAL\Schema\Schema())->toSql($platform);
echo 'by itself: ', count(preg_grep('/^DROP TABLE onside_attribution/', $drops)), "\n";
eval(preg_replace('/^<\?php.*\n/', '', file_get_contents('schema_filter.php')));
$names = array_map(fn ($table) => $table->getName(), $connection->createSchemaManager()->introspectSchema()->getTables());
echo 'filtered: ', implode(' ', $names), "\n";
