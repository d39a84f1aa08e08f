-- Statements of Memory. `memory_words` is the index of what `memory_items` say.

-- name: put
-- Takes the item's row, so that writers of the same key come one after the other.
INSERT INTO memory_items (tenant_id, namespace, key, value, metadata, words, updated_at, principal)
SELECT :tenant, :namespace, :key, CAST(:value AS json), CAST(:metadata AS jsonb), CAST(:count AS integer), ao_now(), :principal
ON CONFLICT (tenant_id, namespace, key) DO UPDATE
SET value = excluded.value, metadata = excluded.metadata, words = excluded.words, updated_at = excluded.updated_at,
    principal = excluded.principal;

-- name: index
WITH wanted AS MATERIALIZED (SELECT word FROM json_array_elements_text(CAST(:words AS json)) AS word),
gone AS (
    DELETE FROM memory_words w
    WHERE w.tenant_id = :tenant AND w.namespace = :namespace AND w.key = :key
      AND w.word NOT IN (SELECT word FROM wanted)
)
INSERT INTO memory_words (tenant_id, namespace, word, key)
SELECT :tenant, :namespace, wanted.word, :key FROM wanted
ON CONFLICT DO NOTHING;

-- name: get
SELECT m.* FROM memory_items m WHERE m.tenant_id = :tenant AND m.namespace = :namespace AND m.key = :key;

-- name: search
-- By the number of shared words; among equals the more concise item first, then the newer.
WITH hits AS (
    SELECT found.key, count(*) AS shared
    FROM json_array_elements_text(CAST(:words AS json)) AS wanted (word)
    CROSS JOIN LATERAL (
        SELECT w.key FROM memory_words w
        WHERE w.tenant_id = :tenant AND w.namespace = :namespace AND w.word = wanted.word
        -- Word by word through the index: the planner takes every list for a long one and would read all of the tenant's.
        OFFSET 0
    ) found
    GROUP BY found.key
)
SELECT m.*, CAST(hits.shared + hits.shared / (m.words + 1.0) AS double precision) AS score
FROM hits
JOIN memory_items m ON m.key = hits.key
WHERE m.tenant_id = :tenant AND m.namespace = :namespace AND m.metadata @> CAST(:metadata AS jsonb)
ORDER BY score DESC, m.updated_at DESC, m.key
LIMIT :limit;

-- name: forget
DELETE FROM memory_items m WHERE m.tenant_id = :tenant AND m.namespace = :namespace AND m.key = :key RETURNING m.key;
