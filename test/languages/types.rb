# What Active Record makes of parameters without casts, and with those of cast.sql.
require "active_record"

ID = "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9"
ActiveRecord::Base.establish_connection(ENV["DATABASE_URL"])

def say(what, sql, *values)
  puts "#{what}: #{ActiveRecord::Base.connection.select_value(ActiveRecord::Base.sanitize_sql([sql, *values]))}"
rescue => error
  puts "#{what}: #{error.message.lines.first}"
end

AMOUNT = "SELECT (onside_attribution.purchase(%s)).payload ->> 'amount'"
say("cast", ENV["CAST"].gsub(/\$\d/, "?"), ID, 9.9, "usd", "2026-05-05T12:00:00Z", 51, '{"sku": "gems"}')
say("BigDecimal", format(AMOUNT, "?, ?, ?"), ID, BigDecimal("9.90"), "USD")
say("colons", format(AMOUNT, ":id::uuid, :amount::numeric(12,2), currency => :currency"),
    { id: ID, amount: BigDecimal("9.90"), currency: "USD" })
say("key", "SELECT onside_attribution.event_id('orders', ?)", 51)
say("hash", "SELECT onside_attribution.track('e', ?, ?)", ID, { level: 7 })
