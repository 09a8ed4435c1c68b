<?php // A model of the outbox: what Eloquent needs to write it.
$setup = explode('class Order', file_get_contents('buy_laravel.php'))[0];
eval(preg_replace('/^<\?php.*\n/', '', $setup));

class Event extends Illuminate\Database\Eloquent\Model
{
    public $timestamps = false;
    public $incrementing = false;
    protected $table = 'onside_attribution.outbox';
    protected $primaryKey = 'event_id';
    protected $keyType = 'string';
    protected $guarded = [];
    protected $casts = ['payload' => 'array'];
}

Event::create(['event_name' => 'e', 'payload' => ['level' => 7], 'installation_id' => '0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9']);
echo "recorded: 1\n";
