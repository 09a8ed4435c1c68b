# A model of the outbox: what Active Record needs to write it.
require "active_record"

ActiveRecord::Base.establish_connection(ENV["DATABASE_URL"])

class Event < ActiveRecord::Base
  self.table_name = "onside_attribution.outbox"
  self.primary_key = "event_id"
end

def say(what)
  Event.create!(event_id: SecureRandom.uuid, event_name: "e", payload: { level: 7 }, event_datetime: Time.now,
                installation_id: SecureRandom.uuid)
  puts "#{what}: 1"
rescue => error
  puts "#{what}: #{error.message.lines.first}"
end

say("without SELECT")
# As Rails 7 does it by itself.
ActiveRecord::Base.partial_writes = false
say("all columns")
Event.ignored_columns = %w[recorded_at xid id segment]
say("five columns")
