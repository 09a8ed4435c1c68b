// What pg and Prisma make of parameters without casts, and with those of cast.sql.
import { PrismaPg } from "@prisma/adapter-pg";
import pg from "pg";
import { PrismaClient } from "./generated/client";

const id = "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9";
const values = [id, 9.9, "usd", "2026-05-05T12:00:00Z", 51, { sku: "gems" }];
const event = { event_name: "e", payload: {}, event_datetime: "2026-05-05T12:00:00Z", installation_id: id };
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });
const prisma = new PrismaClient({ adapter: new PrismaPg({ connectionString: process.env.DATABASE_URL }) });
const owner = new PrismaClient({ adapter: new PrismaPg({
  connectionString: process.env.DATABASE_URL!.replace("shop_app", "admin") }) });

async function say(what: string, action: () => Promise<any>) {
  try {
    const result = await action();
    console.log(`${what}: ${Array.isArray(result) ? Object.values(result[0])[0] : result}`);
  } catch (error: any) {
    console.log(`${what}: ${error.message.replace(/\s+/g, " ")}`);
  }
}
const query = async (sql: string, parameters: any[]) => (await pool.query(sql, parameters)).rows;

await say("cast pg", () => query(process.env.CAST!, values));
await say("pg number", () => query("SELECT (onside_attribution.purchase($1, $2, $3)).payload ->> 'amount'", [id, 9.90, "USD"]));
await say("pg array", () => query("SELECT onside_attribution.track_batch($1)", [[event]]));
await say("pg stringify", () => owner.$queryRawUnsafe("SELECT onside_attribution.track_batch($1::jsonb)", JSON.stringify([event])));
await say("cast", () => prisma.$queryRawUnsafe(process.env.CAST!, ...values));
await say("number", () => prisma.$queryRaw`SELECT (onside_attribution.purchase(${id}, ${9.90}, ${"USD"})).payload ->> 'amount'`);
await say("key", () => prisma.$queryRaw`SELECT onside_attribution.event_id('orders', ${51})`);
await say("void", () => owner.$queryRaw`SELECT onside_attribution.resume()`);
await say("void executed", () => owner.$executeRaw`SELECT onside_attribution.resume()`);
await pool.end();
await prisma.$disconnect();
await owner.$disconnect();
