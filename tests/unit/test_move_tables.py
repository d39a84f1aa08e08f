"""Which rows a noted change brings along, and how they are written into statements."""

from adapters.postgres.move_tables import BY_NAME, TABLES, changed_keys, children_of, noting, quoted, recordset

RUN = "018f0000-0000-7000-8000-000000000001"


def test_parents_come_before_their_children() -> None:
    seen: set[str] = set()
    for table in TABLES:
        assert {parent.table for parent in table.parents} <= seen, table.name
        seen.add(table.name)


def test_a_change_brings_the_parents_of_its_row_and_each_row_comes_once() -> None:
    key = {"namespace": "default", "principal": "usr_ann", "route": "POST", "key": "k"}
    found = changed_keys(
        [
            ("idempotency", {**key, "run_id": RUN}),
            ("steps", {"run_id": RUN, "n": 1}),
            ("steps", {"run_id": RUN, "n": 1}),
            ("blob_refs", {"run_id": RUN, "sha256": "\\xab"}),
            ("memory_words", {"namespace": "default", "word": "blue", "key": "colour"}),
        ]
    )

    assert found == {
        "runs": [{"id": RUN}],
        "idempotency": [key],
        "steps": [{"run_id": RUN, "n": 1}],
        "blobs": [{"sha256": "\\xab"}],
        "blob_refs": [{"run_id": RUN, "sha256": "\\xab"}],
        "memory_items": [{"namespace": "default", "key": "colour"}],
        "memory_words": [{"namespace": "default", "word": "blue", "key": "colour"}],
    }
    assert list(found) == [table.name for table in TABLES if table.name in found]


def test_what_links_a_row_to_its_parents_is_noted_with_it() -> None:
    for table in TABLES:
        noted = {column for column, _ in table.noted}
        for parent in table.parents:
            assert {ours for _, ours in parent.link} <= noted, table.name
    assert noting(BY_NAME["steps"]) == "SELECT jsonb_build_object('run_id', ($1).run_id, 'n', ($1).n)"


def test_children_are_known_from_their_parent() -> None:
    assert [child.name for child, _ in children_of("runs")] == ["idempotency", "steps", "blob_refs"]


def test_keys_can_not_end_their_literal() -> None:
    assert quoted("it's") == "'it''s'"
    assert recordset((("key", "text"),), [{"key": "'); DROP TABLE runs; --"}]) == (
        "jsonb_to_recordset('[{\"key\":\"''); DROP TABLE runs; --\"}]'::jsonb) AS k (key text)"
    )
