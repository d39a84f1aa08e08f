-- Lists of the runs of a status or an agent, without reading all that is beside them.
--
-- A status was in the conditions of `runs_open` and `runs_held` before, so that a change of it never was a HOT update:
-- these cost an entry in each, at creation, claim and end, and no HOT update. The agent's has the status before the id, for
-- lists of both; without a status it is read once per status.
CREATE INDEX runs_by_status ON runs (tenant_id, namespace, status, id);
CREATE INDEX runs_by_agent ON runs (tenant_id, namespace, agent_id, status, id);
