# How many events three equal calls record, where the query cache is on.
require "active_record"

ActiveRecord::Base.establish_connection(ENV["DATABASE_URL"])
connection = ActiveRecord::Base.connection
owner = PG.connect(ENV["DATABASE_URL"].sub("shop_app", "admin"))
ActiveRecord::Base.cache do
  [:select_value, :exec_query, :execute].each do |method|
    3.times { connection.send(method, "SELECT onside_attribution.track('#{method}', '0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9', '{}')") }
    puts "#{method}: #{owner.exec("SELECT count(*) FROM onside_attribution.outbox WHERE event_name = '#{method}'").getvalue(0, 0)}"
  end
end
