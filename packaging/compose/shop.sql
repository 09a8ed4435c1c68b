-- The image's entrypoint runs this once, when the volume is new.
--
-- Only this database has credentials: another one, for tests, cannot send.
BEGIN;
ALTER DATABASE shop SET onside_attribution.endpoint = 'http://127.0.0.1:8080/attribution-api/v1/events';
ALTER DATABASE shop SET onside_attribution.credentials_file = '/run/secrets/onside';
COMMIT;

CREATE EXTENSION onside_attribution;

CREATE ROLE onside_monitor LOGIN PASSWORD 'monitor' IN ROLE pg_monitor;
