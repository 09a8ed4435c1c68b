import { bigint, numeric, pgTable, text, uuid } from "drizzle-orm/pg-core";

export const orders = pgTable("orders", {
  id: bigint({ mode: "bigint" }).primaryKey().generatedByDefaultAsIdentity(),
  installationId: uuid("installation_id"),
  total: numeric({ precision: 12, scale: 2 }).notNull(),
  currency: text().notNull(),
});
