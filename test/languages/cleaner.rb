# What DatabaseCleaner empties.
require "active_record"
require "database_cleaner"

ActiveRecord::Base.establish_connection(ENV["DATABASE_URL"])
connection = ActiveRecord::Base.connection
connection.execute("INSERT INTO orders (total, currency) VALUES (1, 'USD')")
DatabaseCleaner.strategy = :truncation
DatabaseCleaner.clean
puts "truncation: #{connection.select_value("SELECT count(*) FROM orders")}"
puts "outbox: #{connection.select_value("SELECT count(*) FROM onside_attribution.outbox")}"
