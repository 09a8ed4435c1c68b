// Models of the outbox: which rights Drizzle and TypeORM need to write it.
import { drizzle } from "drizzle-orm/node-postgres";
import { jsonb, pgSchema, text, timestamp, uuid } from "drizzle-orm/pg-core";
import pg from "pg";
import { DataSource, EntitySchema } from "typeorm";

const event = { eventName: "e", payload: { level: 7 }, installationId: "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9" };
async function say(what: string, action: () => Promise<any>) {
  try {
    await action();
    console.log(`${what}: 1`);
  } catch (error: any) {
    console.log(`${what}: ${(error.cause ?? error).message}`);
  }
}

const outbox = pgSchema("onside_attribution").table("outbox", {
  eventId: uuid("event_id"),
  eventName: text("event_name"),
  payload: jsonb(),
  eventDatetime: timestamp("event_datetime", { withTimezone: true }).defaultNow(),
  installationId: uuid("installation_id"),
});
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });
const db = drizzle(pool);
await say("drizzle", () => db.insert(outbox).values({ ...event, eventId: crypto.randomUUID() }));
await say("returning", () => db.insert(outbox).values({ ...event, eventId: crypto.randomUUID() }).returning());
await pool.end();

const entity = (name: string, generated: any) => new EntitySchema<any>({
  name, tableName: "outbox", schema: "onside_attribution", columns: {
    eventId: { name: "event_id", type: "uuid", primary: true, ...generated },
    eventName: { name: "event_name", type: "text" },
    payload: { type: "jsonb" },
    installationId: { name: "installation_id", type: "uuid" },
  } });
const dataSource = new DataSource({ type: "postgres", url: process.env.DATABASE_URL,
  entities: [entity("Given", {}), entity("Generated", { generated: "uuid" })] });
await dataSource.initialize();
await say("typeorm", () => dataSource.manager.insert("Given", { ...event, eventId: crypto.randomUUID() }));
await say("generated", () => dataSource.manager.insert("Generated", event));
await dataSource.destroy();
