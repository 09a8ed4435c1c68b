// What TypeORM's synchronize would do to the outbox.
import { DataSource, EntitySchema } from "typeorm";

const order = new EntitySchema<any>({ name: "Order", tableName: "orders", columns: {
  id: { type: "bigint", primary: true, generated: "identity" },
  installationId: { name: "installation_id", type: "uuid", nullable: true },
  total: { type: "numeric", precision: 12, scale: 2 },
  currency: { type: "text" },
} });
const outbox = (synchronize: boolean) => new EntitySchema<any>({
  name: "Event", tableName: "outbox", schema: "onside_attribution", synchronize, columns: {
    eventId: { name: "event_id", type: "uuid", primary: true },
    eventName: { name: "event_name", type: "text" },
  } });

for (const [what, entities] of [["orders", [order]], ["outbox", [order, outbox(true)]],
                                ["not synchronized", [order, outbox(false)]]] as [string, any[]][]) {
  const dataSource = new DataSource({ type: "postgres", url: process.env.DATABASE_URL, entities });
  await dataSource.initialize();
  console.log(`${what}: ${(await dataSource.driver.createSchemaBuilder().log()).upQueries.length}`);
  if (what === "outbox") {
    try {
      await dataSource.synchronize();
    } catch (error: any) {
      console.log(`synchronized: ${error.message}`);
    }
  }
  await dataSource.destroy();
}
