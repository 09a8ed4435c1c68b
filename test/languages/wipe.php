<?php // What migrate:fresh drops.
require 'vendor/autoload.php';

use Illuminate\Database\Capsule\Manager as DB;

$url = parse_url(getenv('DATABASE_URL'));
$database = new DB;
foreach (['public' => 'public', 'with our schema' => ['public', 'onside_attribution']] as $what => $schemas) {
    $database->addConnection(['driver' => 'pgsql', 'charset' => 'utf8', 'host' => $url['host'], 'port' => $url['port'],
        'database' => getenv('OWNER'), 'username' => $url['user'], 'schema' => $schemas, 'search_path' => $schemas], $what);
    try {
        $database->getConnection($what)->getSchemaBuilder()->dropAllTables();
        echo "$what: dropped\n";
    } catch (Exception $error) {
        echo "$what: ", strtok($error->getMessage(), "\n"), "\n";
    }
}
