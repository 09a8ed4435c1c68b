<?php // What Doctrine's schema tool sees.
require 'vendor/autoload.php';
$url = parse_url(getenv('DATABASE_URL'));
$connection = Doctrine\DBAL\DriverManager::getConnection(['driver' => 'pdo_pgsql', 'host' => $url['host'], 'port' => $url['port'],
    'dbname' => ltrim($url['path'], '/'), 'user' => $url['user']]);
$seen = fn () => implode(' ', array_map(fn ($table) => $table->getName(), $connection->createSchemaManager()->introspectSchema()->getTables()));
echo 'introspected: ', $seen(), "\n";
echo 'names: ', count(preg_grep('/^onside_attribution\./', $connection->createSchemaManager()->listTableNames())), "\n";
eval(preg_replace('/^<\?php.*\n/', '', file_get_contents('schema_filter.php')));
echo 'filtered: ', implode(' ', $connection->createSchemaManager()->listTableNames()), "\n";
echo 'introspected with it: ', $seen(), "\n";
