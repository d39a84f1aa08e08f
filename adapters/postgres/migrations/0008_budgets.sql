-- Budgets beside the tenant's tokens a day: any scope, unit and window. A hold is on all windows it names or on none, and
-- what was settled into a window is the sum of usage events, which are only ever added to.

CREATE TABLE budgets (
    tenant_id    text   NOT NULL,
    id           text   NOT NULL CHECK (id ~ '^[a-z0-9][a-z0-9_-]{0,63}$'),
    scope        text   NOT NULL CHECK (scope IN ('tenant', 'key', 'agent', 'session', 'tier')),
    -- Which key, agent, session or tier; '' for each of them by itself, and for a tenant.
    scope_id     text   NOT NULL,
    unit         text   NOT NULL CHECK (unit IN ('tokens', 'nanousd')),
    amount_limit bigint NOT NULL CHECK (amount_limit >= 0),
    period       text   NOT NULL CHECK (period IN ('minute', 'hour', 'day', 'month', 'total')),
    tz           text   NOT NULL,
    mode         text   NOT NULL CHECK (mode IN ('hard', 'soft', 'shadow')),
    PRIMARY KEY (tenant_id, id)
);

-- A window is of an account: a budget, of one scope. `tokens_per_day` is the budget that each tenant's entitlements make.
ALTER TABLE budget_holds DROP CONSTRAINT budget_holds_tenant_id_window_start_fkey;
ALTER TABLE budget_windows
    DROP CONSTRAINT budget_windows_pkey,
    ADD COLUMN account text NOT NULL DEFAULT 'tokens_per_day',
    ADD COLUMN unit text NOT NULL DEFAULT 'tokens' CHECK (unit IN ('tokens', 'nanousd')),
    ADD PRIMARY KEY (tenant_id, account, window_start);
ALTER TABLE budget_windows ALTER COLUMN account DROP DEFAULT, ALTER COLUMN unit DROP DEFAULT;

CREATE TABLE budget_hold_windows (
    tenant_id    text        NOT NULL,
    hold_id      uuid        NOT NULL,
    account      text        NOT NULL,
    window_start timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, hold_id, account),
    FOREIGN KEY (tenant_id, hold_id) REFERENCES budget_holds (tenant_id, id),
    FOREIGN KEY (tenant_id, account, window_start) REFERENCES budget_windows (tenant_id, account, window_start)
);
INSERT INTO budget_hold_windows (tenant_id, hold_id, account, window_start)
SELECT h.tenant_id, h.id, 'tokens_per_day', h.window_start FROM budget_holds h;

-- `tokens` and `nanousd` are what is held still. `lapsed_*` is what was counted when the lease ended, as far as no usage of
-- it was booked since.
ALTER TABLE budget_holds RENAME COLUMN amount TO tokens;
ALTER TABLE budget_holds
    ADD COLUMN nanousd bigint NOT NULL DEFAULT 0 CHECK (nanousd >= 0),
    ADD COLUMN checkpoint_tokens bigint CHECK (checkpoint_tokens >= 0),
    ADD COLUMN checkpoint_nanousd bigint CHECK (checkpoint_nanousd >= 0),
    ADD COLUMN ended text CHECK (ended IN ('settled', 'lapsed')),
    ADD COLUMN lapsed_tokens bigint NOT NULL DEFAULT 0,
    ADD COLUMN lapsed_nanousd bigint NOT NULL DEFAULT 0;
UPDATE budget_holds SET ended = 'settled', tokens = 0 WHERE spent IS NOT NULL;
DROP INDEX budget_holds_open;
CREATE INDEX budget_holds_open ON budget_holds (tenant_id, expires_at) WHERE ended IS NULL;

CREATE TABLE usage_events (
    tenant_id          text        NOT NULL,
    -- Minted by the gateway for each request that it meters. Correlation ids are the client's to choose, and one run has one.
    request_id         text        NOT NULL,
    attempt            integer     NOT NULL,
    at                 timestamptz NOT NULL DEFAULT ao_now(),
    hold_id            uuid        NOT NULL,
    -- 'settlement': a sum without particulars. 'lapse': counted because the lease ended. 'adjustment': takes back what a lapse
    -- had counted and that was booked afterwards.
    kind               text        NOT NULL CHECK (kind IN ('call', 'settlement', 'lapse', 'adjustment')),
    correlation_id     text        NOT NULL DEFAULT '',
    principal          text        NOT NULL DEFAULT '',
    agent              text        NOT NULL DEFAULT '',
    session            text        NOT NULL DEFAULT '',
    model              text        NOT NULL DEFAULT '',
    backend            text        NOT NULL DEFAULT '',
    fresh_tokens       bigint      NOT NULL DEFAULT 0,
    cache_read_tokens  bigint      NOT NULL DEFAULT 0,
    cache_write_tokens bigint      NOT NULL DEFAULT 0,
    output_tokens      bigint      NOT NULL DEFAULT 0,
    reasoning_tokens   bigint      NOT NULL DEFAULT 0,
    cost_nanousd       bigint      NOT NULL DEFAULT 0,
    price              text        NOT NULL DEFAULT '',
    estimated          boolean     NOT NULL DEFAULT false,
    PRIMARY KEY (tenant_id, request_id, attempt),
    FOREIGN KEY (tenant_id, hold_id) REFERENCES budget_holds (tenant_id, id)
);
CREATE INDEX usage_events_by_hold ON usage_events (tenant_id, hold_id);
INSERT INTO usage_events (tenant_id, request_id, attempt, at, hold_id, kind, fresh_tokens)
SELECT h.tenant_id, 'settled ' || h.id, 0, h.expires_at, h.id, 'settlement', h.spent
FROM budget_holds h WHERE h.spent IS NOT NULL;
ALTER TABLE budget_holds DROP COLUMN spent, DROP COLUMN window_start;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['budgets', 'budget_hold_windows', 'usage_events'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format(
            $p$CREATE POLICY own_tenant ON %I TO ao_app
               USING (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')))
               WITH CHECK (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')))$p$, name);
    END LOOP;
END
$$;
GRANT SELECT, INSERT, UPDATE, DELETE ON budgets TO ao_app;
GRANT SELECT, INSERT ON budget_hold_windows, usage_events TO ao_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON budgets, budget_hold_windows, usage_events TO ao_admin;
