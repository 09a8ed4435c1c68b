# What a deferred trigger promises, held against a model of it: each version of a row
# is looked at once, when the trigger is called; each event is recorded once a
# transaction, by the row's primary key and the event's own id, or its place among the
# row's events; and what gave no event, or an invalid one, is looked at again when
# the row is written again.  What is rolled back has not been.
#
# The matrix is {how it is attached} x {what the events are made of} x {how the row is
# at first} x {when it is looked at} x {what happens then} x {who does it} x {table,
# partitioned table}.  Random histories of several rows follow.  Each transaction is
# played to the server and to the model, and both have to record the same: which row,
# which version of it, which of its events, and which dead letters.

use Storable qw(dclone);
use OnsideTest;

my $seed = $ENV{ONSIDE_SEED} // 13;
my $histories = scale(400, 5000);    # of each table

srand($seed);

# ---------------------------------------------------------------------------
# What is attached
# ---------------------------------------------------------------------------

# How: when does PostgreSQL queue the trigger, and what must hold when it is called?
# $old is the row as it was before that write, undef for an INSERT.
my %attached = (
	condition => {
		sql => q{operation => 'INSERT OR UPDATE', condition => $$NEW.st = 'paid'$$},
		fires => sub { my ($old, $new) = @_; return $new->{st} eq 'paid' },
		holds => sub { my ($old, $now) = @_; return $now->{st} eq 'paid' },
	},
	becomes => {
		sql => q{becomes => $$NEW.st = 'paid'$$},
		fires => sub { my ($old, $new) = @_; return $new->{st} eq 'paid' && !($old && $old->{st} eq 'paid') },
		holds => sub { my ($old, $now) = @_; return $now->{st} eq 'paid' },
	},
	renewal => {
		sql => q{operation => 'INSERT OR UPDATE', condition => $$OLD.buy IS DISTINCT FROM NEW.buy$$},
		fires => sub { my ($old, $new) = @_; return !$old || $old->{buy} != $new->{buy} },
		holds => sub { my ($old, $now) = @_; return !$old || $old->{buy} != $now->{buy} },
	});

# Of what: the number of a row's events, and which of them have an id of their own.
my %made_of = (
	columns    => { events => 1, own => {},                 sql => q{'install', $$%s$$, 'at'} },
	columns_id => { events => 1, own => { 1 => 1 },         sql => q{'install', $$%s$$, 'at', 'buy'} },
	one        => { events => 1, own => {},                 mapper => 1 },
	one_id     => { events => 1, own => { 1 => 1 },         mapper => 1 },
	two        => { events => 2, own => {},                 mapper => 1 },
	two_id     => { events => 2, own => { 1 => 1, 2 => 1 }, mapper => 1 },
	two_mixed  => { events => 2, own => { 2 => 1 },         mapper => 1 });

# What comes of the row's event $n: "event", "skipped" or "invalid".
sub comes_of
{
	my ($row, $made, $n) = @_;
	my $bad = $row->{bad} // '';
	my $first = $made->{events} > 1 && $n == 1;

	return 'skipped' if !$row->{install} || ($first && $bad eq 'first_skipped');
	return 'invalid' if $bad eq 'invalid' || ($first && $bad eq 'first_invalid');
	return 'event';
}

# All triggers of a table, in the order of their names.  "aa" and "zz" do what the row
# that is inserted tells them to.
sub triggers_of
{
	my ($table) = @_;
	my @triggers;
	foreach my $how (sort keys %attached)
	{
		foreach my $of (sort keys %made_of)
		{
			# That is refused.
			next if $table->{partitions} > 1 && $how eq 'becomes' && $of eq 'columns';
			push @triggers, { name => "${how}_$of", how => $attached{$how}, made => $made_of{$of}, of => $of };
		}
	}
	my @helpers = map { { name => $_, helper => 1 } } qw(aa zz);
	return ($helpers[0], @triggers, $helpers[1]);
}

# ---------------------------------------------------------------------------
# The model
# ---------------------------------------------------------------------------

# A row's life ends when it is deleted or moves to another partition; another key is the
# same life.  Each write makes another version.
my ($lives, $versions) = (0, 0);

sub new_world
{
	my ($table) = @_;
	return {
		rows => {}, life => {}, immediate => 0, pending => [],
		looked_at => {}, recorded => {}, outcome => [], savepoints => [], table => $table };
}

# Puts the trigger's calls for one write into the queue, or calls it.
sub queue
{
	my ($world, $old, $new) = @_;
	my @calls;
	foreach my $trigger (@{ $world->{table}{triggers} })
	{
		my $fires =
		  $trigger->{helper}
		  ? !$old && $new->{todo} && $new->{who} eq $trigger->{name}
		  : $trigger->{how}{fires}->($old, $new);
		push @calls, { trigger => $trigger, old => $old && {%$old}, new => {%$new} } if $fires;
	}
	if ($world->{immediate})
	{
		call($world, $_) foreach @calls;
	}
	else
	{
		push @{ $world->{pending} }, @calls;
	}
	return;
}

# What is queued meanwhile comes afterwards.
sub call_pending
{
	my ($world) = @_;
	while (my @calls = splice @{ $world->{pending} })
	{
		call($world, $_) foreach @calls;
	}
	return;
}

sub call
{
	my ($world, $call) = @_;
	my $trigger = $call->{trigger};
	my $name = $trigger->{name};

	if ($trigger->{helper})
	{
		play($world, $_) foreach @{ $call->{new}{todo} };
		return;
	}

	my $id = $world->{life}{ $call->{new}{life} } // return;
	my $row = $world->{rows}{$id};
	return if !$trigger->{how}{holds}->($call->{old}, $row);
	return if $world->{looked_at}{"$name $row->{version}"}++;

	if ($trigger->{made}{mapper} && ($row->{bad} // '') eq 'raises')
	{
		push @{ $world->{outcome} }, "$name: dead letter of row $id";
		return;
	}
	foreach my $n (1 .. $trigger->{made}{events})
	{
		my $comes = comes_of($row, $trigger->{made}, $n);
		my $which = $trigger->{made}{own}{$n} ? "id $row->{buy} $n" : "place $n";
		if ($comes eq 'invalid')
		{
			push @{ $world->{outcome} }, "$name: dead letter of row $id, event $n";
		}
		elsif ($comes eq 'event' && !$world->{recorded}{"$name $id $row->{part} $which"}++)
		{
			push @{ $world->{outcome} }, "$name: row $id in $row->{part}, version $row->{ref}, buy $row->{buy}, event $n";
		}
	}
	return;
}

sub begin_life
{
	my ($world, $row) = @_;
	$row->{life} = ++$lives;
	$row->{version} = ++$versions;
	$world->{life}{ $row->{life} } = $row->{id};
	$world->{rows}{ $row->{id} } = $row;
	queue($world, undef, $row);
	return;
}

sub end_life
{
	my ($world, $id) = @_;
	my $row = delete $world->{rows}{$id} // return;
	delete $world->{life}{ $row->{life} };
	return $row;
}

sub update
{
	my ($world, $id, $changes) = @_;
	my $old = $world->{rows}{$id} // return;
	my $new = { %$old, %$changes };

	if ($new->{part} != $old->{part})
	{
		end_life($world, $id);
		begin_life($world, $new);
		return;
	}
	delete $world->{rows}{$id};
	$new->{version} = ++$versions;
	$world->{life}{ $new->{life} } = $new->{id};
	$world->{rows}{ $new->{id} } = $new;
	queue($world, $old, $new);
	return;
}

sub play
{
	my ($world, $step) = @_;
	my ($what, @args) = @$step;

	if ($what eq 'insert') { begin_life($world, { %{ $args[0] } }) }
	elsif ($what eq 'update') { update($world, @args) }
	elsif ($what eq 'delete') { end_life($world, @args) }
	elsif ($what eq 'truncate') { end_life($world, $_) foreach keys %{ $world->{rows} } }
	elsif ($what =~ /^(?:rewrite|undone_update)$/) { }
	elsif ($what eq 'deferred') { $world->{immediate} = 0 }
	elsif ($what eq 'immediate')
	{
		$world->{immediate} = 1;
		call_pending($world);
	}
	elsif ($what eq 'savepoint')
	{
		my %now = %$world;
		delete @now{qw(savepoints table)};

		# The triggers are code, which cannot be copied, and need not be.
		my @pending = map { { %$_ } } @{ delete $now{pending} };
		push @{ $world->{savepoints} }, { %{ dclone(\%now) }, pending => \@pending };
	}
	elsif ($what eq 'rollback') { %$world = (%$world, %{ pop @{ $world->{savepoints} } }) }
	elsif ($what eq 'release') { pop @{ $world->{savepoints} } }
	else { die "there is no step $what" }
	return;
}

# ---------------------------------------------------------------------------
# The server
# ---------------------------------------------------------------------------

my $node = onside_node('main', conf => <<'CONF');
onside_attribution.enabled = off
log_min_messages = error
CONF
create_extension($node, 'postgres');

my $columns = q{id int, part int, st text, install uuid, bad text, at timestamptz, ref int, buy int, todo text, who text, pad int};
my @tables = (
	{ name => 'plain', partitions => 1 },
	{ name => 'parted', partitions => 3 });

$node->safe_psql('postgres', <<"SQL");
CREATE TABLE plain ($columns, PRIMARY KEY (id, part));
CREATE TABLE parted ($columns, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
CREATE TABLE parted1 PARTITION OF parted FOR VALUES IN (1);
CREATE TABLE parted2 (pad int, gone int, who text, todo text, buy int, ref int, at timestamptz, bad text, install uuid, st text, part int NOT NULL, id int NOT NULL);
ALTER TABLE parted2 DROP gone;
ALTER TABLE parted ATTACH PARTITION parted2 FOR VALUES IN (2);
CREATE TABLE parted3 PARTITION OF parted FOR VALUES IN (3) PARTITION BY RANGE (id);
CREATE TABLE parted3a PARTITION OF parted3 DEFAULT;
CREATE FUNCTION do_it() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN EXECUTE NEW.todo; RETURN NULL; END \$\$;
SQL

sub attach_all
{
	my ($table) = @_;
	my $name = $table->{name};
	my $payload = '{' . join(', ', map { qq{"$_": "$_"} } qw(id part ref buy)) . '}';
	my $sql = "SET client_min_messages = error;\n";

	foreach my $trigger (@{ $table->{triggers} })
	{
		if ($trigger->{helper})
		{
			$sql .= <<"SQL";
CREATE CONSTRAINT TRIGGER $trigger->{name} AFTER INSERT ON $name DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.todo IS NOT NULL AND NEW.who = '$trigger->{name}') EXECUTE FUNCTION do_it();
SQL
			next;
		}
		my $made = $trigger->{made};
		my $mapper = "$trigger->{of}_of_$name";
		my $from = $made->{mapper} ? "mapper => '$mapper'" : sprintf $made->{sql}, $payload;
		if ($made->{mapper})
		{
			my $own = join(', ', 0, sort keys %{ $made->{own} });
			$sql .= <<"SQL";
CREATE OR REPLACE FUNCTION $mapper(r $name) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS \$\$
    SELECT CASE WHEN $made->{events} > 1 AND n = 1 AND r.bad = 'first_skipped' THEN NULL ELSE r.install END,
        jsonb_build_object('id', r.id, 'part', r.part, 'ref', r.ref, 'buy', r.buy, 'n', n / CASE r.bad WHEN 'raises' THEN 0 ELSE 1 END),
        CASE WHEN $made->{events} > 1 AND n = 1 AND r.bad = 'first_invalid' THEN 'infinity' ELSE r.at END,
        CASE WHEN n IN ($own) THEN onside_attribution.event_id('$trigger->{of}', r.buy::text, n::text) END
    FROM generate_series(1, $made->{events}) n \$\$;
SQL
		}
		$sql .= "SELECT onside_attribution.attach('$name', '$trigger->{name}', $from, $trigger->{how}{sql}, deferred => true);\n";
	}
	$node->safe_psql('postgres', $sql);
	return;
}

# Column and value of what a step sets.
sub settings
{
	my (%row) = @_;
	my %set = map { $_ => $row{$_} } grep { exists $row{$_} } qw(id part ref buy);
	$set{st} = "'$row{st}'" if exists $row{st};
	$set{install} = $row{install} ? "'$OnsideTest::installation'" : 'NULL' if exists $row{install};
	if (exists $row{bad})
	{
		$set{bad} = $row{bad} ? "'$row{bad}'" : 'NULL';
		$set{at} = ($row{bad} // '') eq 'invalid' ? "'infinity'" : "'2026-05-05 12:00+00'";
	}
	$set{todo} = $row{todo} ? '$todo$' . join('; ', map { $_->{sql} } @{ $row{todo} }) . '$todo$' : 'NULL' if exists $row{todo};
	$set{who} = "'$row{who}'" if exists $row{who};
	return \%set;
}

sub sql_of
{
	my ($table, $step, $depth) = @_;
	my ($what, @args) = @$step;
	my $name = $table->{name};

	if ($what eq 'insert')
	{
		my %row = %{ $args[0] };
		$row{todo} = [ map { { sql => sql_of($table, $_, 0) } } @{ $row{todo} } ] if $row{todo};
		my $set = settings(%row);
		my @names = sort keys %$set;
		return "INSERT INTO $name (" . join(', ', @names) . ') VALUES (' . join(', ', @$set{@names}) . ')';
	}
	if ($what eq 'update')
	{
		my $set = settings(%{ $args[1] });
		return "UPDATE $name SET " . join(', ', map { "$_ = $set->{$_}" } sort keys %$set) . " WHERE id = $args[0]";
	}
	return "DO \$do\$ BEGIN UPDATE $name SET ref = 99, bad = NULL WHERE id = $args[0]; RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN NULL; END \$do\$"
	  if $what eq 'undone_update';
	return "DELETE FROM $name WHERE id = $args[0]" if $what eq 'delete';
	return "TRUNCATE $name" if $what eq 'truncate';
	return "ALTER TABLE $name ALTER pad TYPE int USING pad + 1" if $what eq 'rewrite';
	return 'SET CONSTRAINTS ALL IMMEDIATE' if $what eq 'immediate';
	return 'SET CONSTRAINTS ALL DEFERRED' if $what eq 'deferred';
	return 'SAVEPOINT s' . ($depth + 1) if $what eq 'savepoint';
	return "ROLLBACK TO s$depth; RELEASE s$depth" if $what eq 'rollback';
	return "RELEASE s$depth" if $what eq 'release';
	die "there is no step $what";
}

# A case is { steps, name, group }.  Plays all of them, and tests each group.
sub hold_against_model
{
	my ($table, @cases) = @_;
	my $script = "SET client_min_messages = error;\n";

	foreach my $case (@cases)
	{
		my $world = new_world($table);
		$case->{sql} = 'BEGIN';
		foreach my $step (@{ $case->{steps} })
		{
			$case->{sql} .= '; ' . sql_of($table, $step, scalar @{ $world->{savepoints} });
			play($world, $step);
		}
		call_pending($world);
		$case->{sql} .= '; COMMIT;';
		$case->{expected} = join "\n", sort @{ $world->{outcome} };
		$script .= "$case->{sql}\n";
	}
	$node->safe_psql('postgres', "TRUNCATE $table->{name}, onside_attribution.outbox, onside_attribution.dead_letter");
	$node->safe_psql('postgres', $script);

	my %got;
	foreach my $line (split /\n/, $node->safe_psql('postgres', <<'SQL'))
SELECT (payload ->> 'id')::int / 100, format('%s: row %s in %s, version %s, buy %s, event %s', event_name, payload ->> 'id',
        payload ->> 'part', payload ->> 'ref', payload ->> 'buy', coalesce(payload ->> 'n', '1'))
FROM onside_attribution.outbox
UNION ALL
SELECT r.id::int / 100, format('%s: dead letter of row %s%s', event_name, r.id, ', event ' || CASE WHEN payload IS NOT NULL THEN coalesce(payload ->> 'n', '1') END)
FROM onside_attribution.dead_letter, LATERAL coalesce(payload ->> 'id', substring(error FROM '\(id, part\)=\((\d+)')) AS r (id)
SQL
	{
		my ($number, $event) = split /\|/, $line;
		push @{ $got{$number} }, $event;
	}

	my (%wrong, %all);
	foreach my $case (@cases)
	{
		my $got = join "\n", sort @{ $got{ $case->{number} } // [] };
		$all{ $case->{group} }++;
		push @{ $wrong{ $case->{group} } }, { %$case, got => $got } if $got ne $case->{expected};
	}
	foreach my $group (sort keys %all)
	{
		my @wrong = @{ $wrong{$group} // [] };
		is(scalar @wrong, 0, "$table->{name}, $group: $all{$group} transactions");
		what_differs(@wrong) if @wrong;
	}

	# An id of the row's own is the same for the same, and a fresh one is nobody else's.
	is($node->safe_psql('postgres', <<'SQL'), '', "$table->{name}: event_ids");
SELECT event_name, event_id FROM (SELECT event_name, event_id, payload ->> 'buy' AS buy, payload ->> 'n' AS n, coalesce(payload ->> 'n', '1') = '2' OR event_name NOT LIKE '%mixed' AS own FROM onside_attribution.outbox) e
GROUP BY event_name, event_id
HAVING count(DISTINCT (buy, n)) > 1 OR (count(*) > 1 AND NOT (event_name ~ '_(id|mixed)$' AND bool_and(own)))
LIMIT 10
SQL
	return;
}

sub what_differs
{
	my ($case, @others) = @_;
	my %expected = map { $_ => 1 } split /\n/, $case->{expected};
	my %got = map { $_ => 1 } split /\n/, $case->{got};
	my @missing = grep { !$got{$_} } sort keys %expected;
	my @unexpected = grep { !$expected{$_} } sort keys %got;

	diag($case->{name}, "\n", $case->{sql});
	diag('likewise ', join(', ', map { $_->{name} } @others)) if @others;
	diag(scalar @missing, ' missing, such as ', $missing[0]) if @missing;
	diag(scalar @unexpected, ' not expected, such as ', $unexpected[0]) if @unexpected;
	diag("some several times: $case->{got}") if !@missing && !@unexpected;
	return;
}

# ---------------------------------------------------------------------------
# The matrix
# ---------------------------------------------------------------------------

my $good = { st => 'paid', install => 1, bad => undef };
my %first = (
	good            => {},
	no_installation => { install => 0 },
	raises          => { bad => 'raises' },
	invalid         => { bad => 'invalid' },
	first_skipped   => { bad => 'first_skipped' },
	first_invalid   => { bad => 'first_invalid' },
	not_met         => { st => 'new' });

# What is done between the insert and what happens then.
my @early = ([ 'immediate' ], [ 'deferred' ]);
my @twice = ([ 'insert', { id => 'THIRD', part => 1, ref => 40, buy => 40, %$good, st => 'new' } ], [ 'update', 'ID', { ref => 50 } ]);
my %looked_at = (
	at_commit => [],
	early     => \@early,
	early_and_each => [ [ 'immediate' ] ],
	undone         => [ [ 'savepoint' ], @early, [ 'rollback' ] ],
	released       => [ [ 'savepoint' ], @early, [ 'release' ] ],
	released_in_undone => [ [ 'savepoint' ], [ 'savepoint' ], @early, [ 'release' ], [ 'rollback' ] ],
	written_twice      => \@twice,
	written_twice_and_early => [ @twice, @early ],
	undone_and_early   => [ [ 'savepoint' ], [ 'immediate' ], [ 'rollback' ], @early ],
	early_and_undone   => [ @early, [ 'savepoint' ], [ 'update', 'ID', { ref => 90 } ], @early, [ 'rollback' ] ]);

my %then = (
	unchanged   => [],
	touched     => [ [ 'update', 'ID', { ref => 2 } ] ],
	undone      => [ [ 'undone_update', 'ID' ] ],
	twice       => [ [ 'update', 'ID', { ref => 2 } ], [ 'update', 'ID', { ref => 3 } ] ],
	good        => [ [ 'update', 'ID', { ref => 2, %$good } ] ],
	left        => [ [ 'update', 'ID', { ref => 2, st => 'refunded' } ] ],
	and_back    => [ [ 'update', 'ID', { ref => 2, st => 'refunded' } ], [ 'update', 'ID', { ref => 3, %$good } ] ],
	spoilt      => [ [ 'update', 'ID', { ref => 2, bad => 'invalid', st => 'paid' } ] ],
	other_id    => [ [ 'update', 'ID', { ref => 2, buy => 20, %$good } ] ],
	other_key   => [ [ 'update', 'ID', { ref => 2, id => 'OTHER' } ] ],
	key_taken   => [ [ 'update', 'ID', { ref => 2, id => 'OTHER' } ], [ 'insert', { id => 'ID', part => 1, ref => 3, buy => 30, %$good } ] ],
	deleted     => [ [ 'delete', 'ID' ] ],
	and_again   => [ [ 'delete', 'ID' ], [ 'insert', { id => 'ID', part => 1, ref => 2, buy => 10, %$good } ] ],
	moved       => [ [ 'update', 'ID', { ref => 2, part => 2 } ] ],
	moved_far   => [ [ 'update', 'ID', { ref => 2, part => 2 } ], [ 'update', 'ID', { ref => 3, part => 3, %$good } ] ]);

# The same step with the ids of this case.  What a trigger does, it does once: so the row
# forgets what it is to do.
sub step_for
{
	my ($number, $once, @step) = @_;
	my %ids = (ID => 100 * $number + 1, OTHER => 100 * $number + 2, THIRD => 100 * $number + 3);
	my ($what, @args) = map { ref $_ ? { %$_ } : $ids{$_} // $_ } @step;
	foreach my $arg (grep { ref $_ } @args)
	{
		$arg->{id} = $ids{ $arg->{id} } // $arg->{id} if exists $arg->{id};
		$arg->{todo} = undef if $once;
	}
	return [ $what, @args ];
}

sub matrix
{
	my ($table) = @_;
	my @cases;
	foreach my $then (sort keys %then)
	{
		next if $then =~ /^moved/ && $table->{partitions} == 1;
		foreach my $when (sort keys %looked_at)
		{
			foreach my $who (qw(session aa zz))
			{
				foreach my $first (sort keys %first)
				{
					my $number = @cases + 1;
					my $row = { id => 'ID', part => 1, ref => 1, buy => 10, who => $who, %$good, %{ $first{$first} } };
					my @then = map { step_for($number, $who ne 'session', @$_) } @{ $then{$then} };
					$row->{todo} = \@then if $who ne 'session' && @then;
					my @steps = map { step_for($number, 0, @$_) } [ 'insert', $row ], @{ $looked_at{$when} };
					push @steps, @then if $who eq 'session';
					push @cases, { number => $number, steps => \@steps, group => "$then by $who, looked at $when", name => "$first at first" };
				}
			}
		}
	}
	return @cases;
}

# ---------------------------------------------------------------------------
# Random histories
# ---------------------------------------------------------------------------

sub any { return $_[ int rand @_ ] }

# Some of what can be written into a row.
sub any_change
{
	my ($table, $row, $ref) = @_;
	my %change = (ref => $ref);
	$change{st} = any(qw(paid paid new)) if rand() < 0.4;
	$change{install} = any(0, 1, 1) if rand() < 0.3;
	$change{bad} = any(undef, undef, qw(raises invalid first_skipped first_invalid)) if rand() < 0.4;
	$change{buy} = any(10, 20, 30) if rand() < 0.2;
	$change{part} = any(1 .. $table->{partitions}) if rand() < 0.2;
	return \%change;
}

# Only steps that the server can do: the history is played as it is made.
sub any_history
{
	my ($table, $number) = @_;
	my $world = new_world($table);
	my @ids = map { 100 * $number + $_ } 1 .. 3;
	my $ref = 0;
	my @steps;
	foreach (1 .. 4 + int rand 12)
	{
		my @free = grep { !$world->{rows}{$_} } @ids;
		my @taken = sort keys %{ $world->{rows} };
		my $step = any(qw(insert insert update update update update update rekey delete
			immediate early early savepoint savepoint rollback release truncate rewrite undone_update));
		my @next;
		if ($step eq 'insert' && @free)
		{
			my $id = any(@free);
			my $row = { id => $id, part => 1, buy => 10, %$good, who => any(qw(aa zz)), %{ any_change($table, {}, ++$ref) } };
			my $change = { %{ any_change($table, {}, ++$ref) }, todo => undef };
			$row->{todo} = any([ [ 'update', $id, $change ] ], [ [ 'delete', $id ] ], [ [ 'undone_update', $id ] ]) if rand() < 0.2;
			@next = ([ 'insert', $row ]);
		}
		elsif ($step eq 'update' && @taken)
		{
			my $id = any(@taken);
			@next = ([ 'update', $id, { %{ any_change($table, {}, ++$ref) }, todo => undef } ]);
		}
		elsif ($step eq 'rekey' && @taken && @free)
		{
			@next = ([ 'update', any(@taken), { id => any(@free), ref => ++$ref, todo => undef } ]);
		}
		elsif ($step =~ /delete|undone_update/ && @taken) { @next = ([ $step, any(@taken) ]) }
		elsif ($step eq 'immediate') { @next = ([ 'immediate' ]) }
		elsif ($step eq 'early') { @next = @early }
		elsif ($step eq 'savepoint') { @next = ([ 'savepoint' ]) }
		elsif ($step =~ /rollback|release/ && @{ $world->{savepoints} }) { @next = ([ $step ]) }
		elsif ($step =~ /truncate|rewrite/ && !@{ $world->{pending} }) { @next = ([ $step ]) }
		play($world, $_) foreach @next;
		push @steps, @next;
	}
	push @steps, [ 'release' ] foreach @{ $world->{savepoints} };
	return @steps;
}

foreach my $table (@tables)
{
	$table->{triggers} = [ triggers_of($table) ];
	attach_all($table);
	hold_against_model($table, matrix($table));
	hold_against_model($table,
		map { { number => $_, steps => [ any_history($table, $_) ], group => "random histories of seed $seed", name => "history $_" } } 1 .. $histories);
}

# The trigger is called within itself then, and what goes wrong there is caught.  The
# outer row's event is known by the outer row's key all the same.
# These statements are as they were seen to fail, on memory that had been freed.
$node->safe_psql('postgres', <<'SQL');
TRUNCATE onside_attribution.outbox;
CREATE TABLE n (id int PRIMARY KEY, install uuid DEFAULT '550e8400-e29b-41d4-a716-446655440000', bad bool DEFAULT false);
CREATE FUNCTION m(r n) RETURNS SETOF onside_attribution.event LANGUAGE plpgsql AS $$
BEGIN
    IF r.bad THEN RAISE EXCEPTION 'bad'; END IF;
    IF r.id < 100 THEN
        BEGIN
            INSERT INTO n VALUES (r.id + 100, DEFAULT, true);
        EXCEPTION WHEN OTHERS THEN RAISE NOTICE 'caught %', SQLERRM;
        END;
    END IF;
    RETURN QUERY SELECT r.install, jsonb_build_object('id', r.id), NULL::timestamptz, NULL::uuid;
END $$;
SELECT onside_attribution.attach('n', 'e', mapper => 'm', deferred => true);
SET onside_attribution.on_invalid_event = error;
BEGIN; SET CONSTRAINTS ALL IMMEDIATE; INSERT INTO n VALUES (1); INSERT INTO n VALUES (2); INSERT INTO n VALUES (101); INSERT INTO n VALUES (102); COMMIT;
SQL
is($node->safe_psql('postgres', q{SELECT string_agg(payload ->> 'id', ' ' ORDER BY (payload ->> 'id')::int) FROM onside_attribution.outbox}),
	'1 2 101 102', 'a mapper that writes to its own table, in vain');

unlike(slurp_file($node->logfile), qr/leak|PANIC|terminated by signal/, 'nothing is left behind');
$node->stop;
done_testing();
