"""Settings: where a value comes from, what is refused, what is never shown."""

from pathlib import Path

import pytest

from deploy import config
from ports.errors import InvalidArgument
from stack_b.backends.settings import KINDS


def settings(*, flags: dict[str, str] | None = None, **file: str) -> config.Config:
    given = {field: (value, f".agentos.env:{n}") for n, (field, value) in enumerate(file.items(), start=1)}
    return config.resolve(flags or {}, given).config


class TestPrecedence:
    def test_a_flag_wins_over_the_file_and_the_file_over_the_default(self) -> None:
        resolved = config.resolve(
            {"stack_a_port": "9001"}, {"stack_a_port": ("9002", "f:1"), "stack_b_port": ("9003", "f:2")}
        )

        assert (resolved.config.stack_a_port, resolved.config.stack_b_port, resolved.config.worker_port) == (
            9001,
            9003,
            8082,
        )
        assert [resolved.origins[field] for field in ("stack_a_port", "stack_b_port", "worker_port")] == [
            "flag",
            "f:2",
            "default",
        ]

    def test_the_process_environment_is_no_source_of_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AGENTOS_STACK_A_PORT", "9009")

        assert settings().stack_a_port == 8080

    def test_yes_and_no_are_understood_for_switches_only(self) -> None:
        found = settings(allow_embedded_postgres="yes", issuer="on")

        assert found.allow_embedded_postgres is True
        assert found.issuer == "on"


class TestRefusals:
    @pytest.mark.parametrize(
        ("field", "value"),
        [("stack_a_port", "0"), ("stack_a_port", "eighty"), ("mode", "production"), ("worker_concurrency", "1e3")],
    )
    def test_a_bad_value_is_refused_with_its_key_and_place(self, field: str, value: str) -> None:
        with pytest.raises(InvalidArgument, match=rf"^\.agentos\.env:1: AGENTOS_{field.upper()}={value}: "):
            config.resolve({}, {field: (value, ".agentos.env:1")})

    def test_an_unknown_key_is_refused_with_its_line_and_the_likely_meaning(self, tmp_path: Path) -> None:
        path = tmp_path / ".agentos.env"
        path.write_text("# mine\nAGENTOS_STAK_A_PORT=1\n")

        with pytest.raises(
            InvalidArgument, match=r"\.agentos\.env:2: unknown key 'AGENTOS_STAK_A_PORT'.*AGENTOS_STACK_A_PORT"
        ):
            config.parse_file(path)

    @pytest.mark.parametrize("line", ["PATH=/bin", "agentos_mode=dev", "AGENTOS_mode=dev", "AGENTOS_MODE"])
    def test_what_is_no_setting_of_ours_is_refused(self, tmp_path: Path, line: str) -> None:
        path = tmp_path / ".agentos.env"
        path.write_text(line + "\n")

        with pytest.raises(InvalidArgument, match=r"\.agentos\.env:1: "):
            config.parse_file(path)

    def test_a_key_given_twice_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / ".agentos.env"
        path.write_text("AGENTOS_MODE=dev\nAGENTOS_MODE=prod\n")

        with pytest.raises(InvalidArgument, match=r"already set in \.agentos\.env:1"):
            config.parse_file(path)


class TestTheFile:
    def test_a_fresh_file_explains_every_key_and_sets_only_what_was_asked(self, tmp_path: Path) -> None:
        path = tmp_path / ".agentos.env"
        path.write_text(config.render_file({"stack_a_port": "9000"}))

        assert {field: value for field, (value, _) in config.parse_file(path).items()} == {"stack_a_port": "9000"}
        assert all(config.key_of(field) in path.read_text() for field in config.FIELDS)

    def test_the_defaults_in_a_fresh_file_are_valid_when_uncommented(self, tmp_path: Path) -> None:
        path = tmp_path / ".agentos.env"
        path.write_text(config.render_file({}).replace("#AGENTOS_", "AGENTOS_"))

        assert config.resolve({}, config.parse_file(path)).config == config.Config()

    def test_updating_keeps_what_people_wrote(self) -> None:
        text = "# my remark\nAGENTOS_MODE=dev\n#AGENTOS_WORKER_PORT=8082\n"

        updated = config.updated_file(text, {"mode": "demo", "worker_port": "9", "stack_b_port": "7"})

        assert updated.splitlines() == [
            "# my remark",
            "AGENTOS_MODE=demo",
            "AGENTOS_WORKER_PORT=9",
            "AGENTOS_STACK_B_PORT=7",
        ]

    def test_quotes_and_blanks_around_a_value_are_not_part_of_it(self, tmp_path: Path) -> None:
        path = tmp_path / ".agentos.env"
        path.write_text('AGENTOS_ISSUER = "urn:x y"  \n')

        assert config.parse_file(path)["issuer"] == ("urn:x y", ".agentos.env:1")

    def test_an_absent_file_has_no_settings(self, tmp_path: Path) -> None:
        assert config.parse_file(tmp_path / "none") == {}


class TestExplain:
    def test_secrets_are_masked_and_references_are_not(self) -> None:
        resolved = config.resolve(
            {}, {"openai_api_key": ("sk-plain-secret-value", "f:1"), "database_url": ("env:DB", "f:2")}
        )

        shown = {setting.key: setting.value for setting in config.explain(resolved, {})}

        assert shown["AGENTOS_OPENAI_API_KEY"] == config.MASK
        assert shown["AGENTOS_DATABASE_URL"] == "env:DB (not set)"

    def test_a_plain_key_inside_the_backends_is_masked(self) -> None:
        resolved = config.resolve(
            {}, {"backends": ('[{"name": "x", "api_key": "sk-plain"}, {"api_key": "env:KEY"}]', "f:1")}
        )

        shown = {setting.key: setting.value for setting in config.explain(resolved, {})}["AGENTOS_BACKENDS"]

        assert "sk-plain" not in shown
        assert "env:KEY" in shown

    def test_a_password_inside_an_address_is_masked(self) -> None:
        resolved = config.resolve({}, {"openai_base_url": ("https://user:hunter2@example.org/v1", "f:1")})

        shown = {setting.key: setting.value for setting in config.explain(resolved, {})}["AGENTOS_OPENAI_BASE_URL"]

        assert shown == f"https://{config.MASK}@example.org/v1"

    def test_every_setting_is_explained_once_with_a_meaning(self) -> None:
        explained = config.explain(config.resolve({}, {}), {})

        assert [setting.key for setting in explained] == [config.key_of(field) for field in config.FIELDS]
        assert all(setting.description and setting.origin == "default" for setting in explained)

    def test_a_reference_says_whether_it_leads_somewhere(self, tmp_path: Path) -> None:
        secret = tmp_path / "key"
        secret.write_text("value\n")
        resolved = config.resolve({}, {"openai_api_key": (f"file:{secret}", "f:1")})

        shown = {setting.key: setting.value for setting in config.explain(resolved, {"OPENAI_BASE_URL": "x"})}

        assert shown["AGENTOS_OPENAI_API_KEY"] == f"file:{secret} (found)"
        assert shown["AGENTOS_OPENAI_BASE_URL"] == "env:OPENAI_BASE_URL (found)"


class TestReferences:
    def test_references_are_followed_and_plain_text_is_itself(self, tmp_path: Path) -> None:
        secret = tmp_path / "key"
        secret.write_text(" value \n")

        assert config.dereference("env:NAME", {"NAME": "v"}) == "v"
        assert config.dereference("env:NAME", {}) == ""
        assert config.dereference(f"file:{secret}", {}) == "value"
        assert config.dereference("file:/no/such/file", {}) == ""
        assert config.dereference("plain", {}) == "plain"

    def test_names_inside_a_json_setting_are_found(self) -> None:
        assert config.referred_names('[{"api_key": "env:B"}, {"api_key": "env:A"}, {"k": "env:B"}]') == ["A", "B"]


class TestProblems:
    def test_the_defaults_have_none(self) -> None:
        assert config.problems(config.Config()) == []

    def test_two_services_can_not_share_a_port(self) -> None:
        [problem] = config.problems(settings(stack_b_port="8080"))

        assert "AGENTOS_STACK_A_PORT and AGENTOS_STACK_B_PORT are both 8080" in problem

    def test_an_external_database_needs_its_roles_by_reference(self) -> None:
        assert "needs AGENTOS_DATABASE_URL" in config.problems(settings(database_url="env:DB"))[0]
        plain = "postgresql://ao_app:secret@db/agentos"
        [problem] = config.problems(
            settings(database_url=plain, database_owner_url="env:OWNER", database_control_url="env:CONTROL")
        )
        assert "must be a reference" in problem
        assert "secret" not in problem

    @pytest.mark.parametrize(
        ("backends", "says"),
        [
            ("{", "JSON list"),
            ('{"name": "x"}', "Expected `array`"),
            (
                '[{"name": "x", "kind": "openay", "base_url": "http://x"}]',
                "`kind` may be openai_compatible or openai or",
            ),
            ('[{"name": "x"}]', "base_url"),
            ('[{"name": "x", "base_url": "http://x", "url": ""}]', "`url`"),
            (
                '[{"name": "x", "base_url": "http://x", "models": [{"id": "m", "prompt_usd_per_million": "?"}]}]',
                "price",
            ),
            ('[{"name": "x", "base_url": "http://x", "api_key": "sk-plain"}]', "must be a reference"),
        ],
    )
    def test_backends_that_would_keep_the_gateway_from_starting_are_told(self, backends: str, says: str) -> None:
        [problem] = config.problems(settings(backends=backends))

        assert problem.startswith("AGENTOS_BACKENDS: ")
        assert says in problem
        assert "sk-plain" not in problem

    def test_the_setting_names_the_kinds_of_backends(self) -> None:
        named = config.description("backends").partition("kind (")[2].partition(";")[0].split(" or ")

        assert named == list(KINDS)

    def test_a_backend_s_key_that_leads_nowhere_is_told(self, tmp_path: Path) -> None:
        gone = tmp_path / "gone"
        backends = (
            f'[{{"name": "a", "base_url": "http://a", "api_key": "env:KEY_A"}},'
            f' {{"name": "b", "base_url": "http://b", "api_key": "file:{gone}"}}, {{"name": "c", "base_url": "http://c"}}]'
        )

        found = config.dangling(settings(backends=backends), {})

        assert ["'a'" in found[0], "env:KEY_A" in found[0], "'b'" in found[1], str(gone) in found[1]] == [True] * 4
        assert len(found) == 2
        assert (
            config.dangling(settings(backends=backends.replace(f"file:{gone}", "env:B")), {"KEY_A": "x", "B": "y"})
            == []
        )


class TestProd:
    def test_prod_without_a_database_is_refused_and_says_what_to_do(self) -> None:
        [problem] = config.problems(settings(mode="prod"))

        assert "AGENTOS_DATABASE_URL" in problem
        assert "--allow-embedded-postgres" in problem

    def test_prod_with_the_embedded_database_accepted_is_fine(self) -> None:
        assert config.problems(settings(mode="prod", allow_embedded_postgres="true")) == []

    def test_prod_takes_secrets_by_reference_only(self) -> None:
        found = config.problems(
            settings(
                mode="prod",
                allow_embedded_postgres="true",
                openai_api_key="sk-plain-secret",
                backends='[{"name": "x", "base_url": "http://x", "api_key": "sk-other"}]',
            )
        )

        assert len(found) == 2
        assert not any("sk-" in problem for problem in found)

    def test_prod_does_not_serve_the_demo_backend(self) -> None:
        [problem] = config.problems(
            settings(mode="prod", allow_embedded_postgres="true", backends='[{"name": "d", "kind": "demo"}]')
        )

        assert "'d' is the demo backend" in problem

    def test_prod_does_not_serve_plain_http_to_a_network(self) -> None:
        [problem] = config.problems(settings(mode="prod", allow_embedded_postgres="true", stack_a_host="192.0.2.1"))

        assert "TLS" in problem
