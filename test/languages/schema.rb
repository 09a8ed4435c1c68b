# What Active Record writes into schema.rb.
require "active_record"
require "stringio"

ActiveRecord::Base.establish_connection(ENV["DATABASE_URL"])
out = StringIO.new
ActiveRecord::SchemaDumper.dump(ActiveRecord::Base.connection, out)
puts "tables: #{out.string.scan(/create_table "(.*?)"/).join(" ")}"
puts "extension: #{out.string.include?('enable_extension "onside_attribution"')}"
puts "trigger: #{out.string.include?("track_row")}"
