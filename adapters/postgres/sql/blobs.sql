-- Statements of large bodies, see blobs.py.

-- name: keep
-- The body, unless the tenant has it already, and that this run needs it. A body that is being forgotten at this moment is
-- waited for and made anew; one that stays is only held, so that runs with the same body don't wait for each other.
WITH known AS (
    SELECT b.sha256 FROM blobs b WHERE b.tenant_id = :tenant AND b.sha256 = :sha256 FOR KEY SHARE
),
made AS (
    INSERT INTO blobs (tenant_id, sha256, body)
    SELECT :tenant, :sha256, :body WHERE NOT EXISTS (SELECT FROM known)
    ON CONFLICT (tenant_id, sha256) DO UPDATE SET touched_at = ao_now()
)
INSERT INTO blob_refs (tenant_id, run_id, sha256) VALUES (:tenant, :run, :sha256)
ON CONFLICT DO NOTHING;

-- name: fetch
SELECT b.sha256, b.body
FROM blobs b
WHERE b.tenant_id = :tenant
  AND b.sha256 IN (SELECT decode(h.value, 'hex') FROM json_array_elements_text(CAST(:hashes AS json)) AS h);
