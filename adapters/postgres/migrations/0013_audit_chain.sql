-- The audit becomes a chain per tenant: every entry gets a number without gaps and a hash over the one before it (ADR 0034).
--
-- An entry and its link are rows apart. Entries are written by whoever does what they tell, in the same transaction; links are
-- written at the end of that transaction by a deferred trigger, so that a tenant's head is the last lock that a transaction
-- takes and is held for its commit only. No service may write a link or move a head.

-- Forced security hides the entries from their owner too, and what was there before is to be linked below.
ALTER TABLE audit_log NO FORCE ROW LEVEL SECURITY;
ALTER TABLE audit_log ADD COLUMN outcome text NOT NULL DEFAULT 'done' CHECK (outcome IN ('done', 'denied'));
ALTER TABLE audit_log ADD COLUMN detail text NOT NULL DEFAULT '';
UPDATE audit_log SET outcome = 'denied' WHERE action = 'model.deny';

CREATE TABLE audit_chain (
    tenant_id text   NOT NULL,
    seq       bigint NOT NULL CHECK (seq > 0),
    entry     uuid   NOT NULL,
    hash      bytea  NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (tenant_id, seq),
    UNIQUE (tenant_id, entry)
);

-- Half empty, so that a head moves within its page.
CREATE TABLE audit_heads (
    tenant_id text   PRIMARY KEY,
    seq       bigint NOT NULL CHECK (seq >= 0),
    hash      bytea  NOT NULL CHECK (octet_length(hash) = 32)
) WITH (fillfactor = 50);

GRANT SELECT ON audit_chain, audit_heads TO ao_app, ao_admin;

-- What is hashed of an entry: each field as its length in bytes, a colon, its bytes and a comma. The moment is in
-- microseconds since 1970. `ports.audit_rules` says the same.
CREATE FUNCTION ao_audit_form(a audit_log) RETURNS bytea LANGUAGE sql STABLE PARALLEL SAFE
    RETURN convert_to(
        octet_length(a.tenant_id) || ':' || a.tenant_id || ',' ||
        octet_length(CAST(a.id AS text)) || ':' || CAST(a.id AS text) || ',' ||
        octet_length(CAST(CAST(extract(epoch FROM a.at) * 1000000 AS bigint) AS text)) || ':' || CAST(CAST(extract(epoch FROM a.at) * 1000000 AS bigint) AS text) || ',' ||
        octet_length(a.namespace) || ':' || a.namespace || ',' ||
        octet_length(a.actor_tenant) || ':' || a.actor_tenant || ',' ||
        octet_length(a.principal) || ':' || a.principal || ',' ||
        octet_length(a.action) || ':' || a.action || ',' ||
        octet_length(a.subject) || ':' || a.subject || ',' ||
        octet_length(a.correlation_id) || ':' || a.correlation_id || ',' ||
        octet_length(a.outcome) || ':' || a.outcome || ',' ||
        octet_length(a.detail) || ':' || a.detail || ',',
        'UTF8');

GRANT CREATE ON SCHEMA agentos TO ao_def;
GRANT SELECT, INSERT, DELETE ON audit_log TO ao_def;
GRANT SELECT, INSERT ON audit_chain TO ao_def;
GRANT SELECT, INSERT, UPDATE ON audit_heads TO ao_def;

-- Each entry links itself, in the order in which they were written. An entry costs the same whether the transaction's others are
-- of its tenant or not.
CREATE FUNCTION ao_audit_link() RETURNS trigger LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = agentos, pg_temp
AS $$
DECLARE
    form CONSTANT bytea := ao_audit_form(NEW);
    head audit_heads;
BEGIN
    LOOP
        UPDATE audit_heads h SET seq = h.seq + 1, hash = sha256(h.hash || int8send(h.seq + 1) || form)
        WHERE h.tenant_id = NEW.tenant_id RETURNING h.* INTO head;
        EXIT WHEN FOUND;
        INSERT INTO audit_heads (tenant_id, seq, hash) VALUES (NEW.tenant_id, 0, decode(repeat('00', 32), 'hex'))
            ON CONFLICT DO NOTHING;
    END LOOP;
    INSERT INTO audit_chain (tenant_id, seq, entry, hash) VALUES (NEW.tenant_id, head.seq, NEW.id, head.hash);
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION ao_audit_link() FROM PUBLIC;

-- What was written before there was a chain is its beginning.
DO $$
DECLARE
    entry audit_log;
    tenant text := '';
    seq bigint;
    hash bytea;
BEGIN
    FOR entry IN SELECT * FROM audit_log ORDER BY tenant_id, id LOOP
        IF entry.tenant_id <> tenant THEN
            tenant := entry.tenant_id;
            seq := 0;
            hash := decode(repeat('00', 32), 'hex');
        END IF;
        seq := seq + 1;
        hash := sha256(hash || int8send(seq) || ao_audit_form(entry));
        INSERT INTO audit_chain VALUES (tenant, seq, entry.id, hash);
    END LOOP;
    INSERT INTO audit_heads (tenant_id, seq, hash)
        SELECT DISTINCT ON (c.tenant_id) c.tenant_id, c.seq, c.hash FROM audit_chain c ORDER BY c.tenant_id, c.seq DESC;
END
$$;

ALTER TABLE audit_log FORCE ROW LEVEL SECURITY;
SELECT ao_guard_events(name) FROM unnest(ARRAY['audit_chain', 'audit_heads']) AS name;

CREATE CONSTRAINT TRIGGER linked AFTER INSERT ON audit_log DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION ao_audit_link();

-- Every tenant's head, for whoever signs them: numbers and hashes, nothing of what happened.
CREATE FUNCTION ao_audit_heads(p_after text, p_limit integer) RETURNS TABLE (tenant text, seq bigint, hash bytea)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    SELECT h.tenant_id, h.seq, h.hash FROM audit_heads h WHERE h.tenant_id > p_after ORDER BY h.tenant_id LIMIT p_limit;
END;
REVOKE ALL ON FUNCTION ao_audit_heads(text, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ao_audit_heads(text, integer) TO ao_app;

-- An entry that tells which went, as numbers (`detail`, as 3-7,12), in the transaction that removes them; how many they are.
CREATE FUNCTION ao_audit_note_erased(
    p_tenant text, p_numbers bigint[], p_namespace text, p_actor_tenant text, p_principal text, p_correlation_id text
) RETURNS bigint LANGUAGE plpgsql VOLATILE SET search_path = agentos, pg_temp
AS $$
DECLARE
    which text;
BEGIN
    SELECT string_agg(CASE WHEN i.first = i.last THEN CAST(i.first AS text) ELSE i.first || '-' || i.last END, ',' ORDER BY i.first)
    INTO which
    FROM (
        SELECT min(g.seq) AS first, max(g.seq) AS last
        FROM (SELECT n.seq, n.seq - row_number() OVER (ORDER BY n.seq) AS island FROM unnest(p_numbers) AS n (seq)) g
        GROUP BY g.island
    ) i;
    IF which IS NOT NULL THEN
        INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id, detail)
        VALUES (p_tenant, p_namespace, p_actor_tenant, p_principal, 'audit.erase', 'audit', p_correlation_id, which);
    END IF;
    RETURN coalesce(cardinality(p_numbers), 0);
END
$$;
REVOKE ALL ON FUNCTION ao_audit_note_erased(text, bigint[], text, text, text, text) FROM PUBLIC;

-- The only way an entry goes. Its number and hash stay, so that the chain can be checked with the gap. Entries that tell of
-- this are never erased. Only the tenant the transaction is bound to, and it says how many went.
CREATE FUNCTION ao_audit_erase(
    p_first bigint, p_last bigint, p_namespace text, p_actor_tenant text, p_principal text, p_correlation_id text, p_subject text
) RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    whose   text := nullif(current_setting('app.tenant_id', true), '');
    numbers bigint[];
BEGIN
    WITH gone AS (
        DELETE FROM audit_log a USING audit_chain c
        WHERE c.tenant_id = whose AND c.seq BETWEEN p_first AND p_last AND a.tenant_id = c.tenant_id AND a.id = c.entry
          AND a.action <> 'audit.erase' AND (p_subject IS NULL OR a.principal = p_subject)
        RETURNING c.seq
    )
    SELECT array_agg(gone.seq) INTO numbers FROM gone;
    RETURN ao_audit_note_erased(whose, numbers, p_namespace, p_actor_tenant, p_principal, p_correlation_id);
END
$$;
REVOKE ALL ON FUNCTION ao_audit_erase(bigint, bigint, text, text, text, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ao_audit_erase(bigint, bigint, text, text, text, text, text) TO ao_app;

ALTER FUNCTION ao_audit_form(audit_log) OWNER TO ao_def;
ALTER FUNCTION ao_audit_link() OWNER TO ao_def;
ALTER FUNCTION ao_audit_heads(text, integer) OWNER TO ao_def;
ALTER FUNCTION ao_audit_note_erased(text, bigint[], text, text, text, text) OWNER TO ao_def;
ALTER FUNCTION ao_audit_erase(bigint, bigint, text, text, text, text, text) OWNER TO ao_def;
REVOKE CREATE ON SCHEMA agentos FROM ao_def;
