<?php // Which connection Laravel calls a function by, if it has one for reading.
require 'vendor/autoload.php';

use Illuminate\Database\Capsule\Manager as DB;

$database = new DB;
$database->addConnection(['driver' => 'pgsql', 'charset' => 'utf8', 'host' => '127.0.0.1', 'port' => getenv('ONSIDE_PORT'),
    'database' => 'traps', 'username' => 'shop_app', 'read' => ['username' => 'shop_reader'], 'write' => ['username' => 'shop_app']]);
$database->setAsGlobal();

function say($what, $action)
{
    try {
        $action();
        echo "$what: recorded\n";
    } catch (Exception $error) {
        echo "$what: ", strtok($error->getMessage(), "\n"), "\n";
    }
}

$call = "SELECT onside_attribution.track('e', gen_random_uuid(), '{}')";
say('select', fn () => DB::select($call));
say('statement', fn () => DB::statement($call));
say('in a transaction', fn () => DB::transaction(fn () => DB::select($call)));
