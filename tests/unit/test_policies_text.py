"""How policies read texts: canonical at any split, in linear time, and what is looked for in them."""

import random
import time
import unicodedata
from typing import Final

import pytest

from ports.errors import InvalidArgument
from stack_b.policies.patterns import Search
from stack_b.policies.rules import matches
from stack_b.policies.strings import offered, strings
from stack_b.policies.text import MAX_MARKS, Reading, canonical_text
from stack_b.policies.width import MAX_WIDTH, width

ODD: Final = (
    "a", "b", " ", "é", "e", "\u0301", "\u0323", "ﬁ", "ß", "\u200b", "%41", "%C3%A9", "%", "&eacute;", "&", "&#769;",
    "\\u0041", "\\", "\\\\n", "ｶ", "ﾞ", "각", "\u1100", "\u1161", "\u11a8", "中", "😀", "\ufe0f", "u00", "41", ";",
    "%25", "&amp;", "\u2028", "\U000e0041", "\x08",
)  # fmt: skip
"""What composes with what stands before it, and what stands for something else."""


def texts(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)  # noqa: S311 - no secret comes of it
    return ["".join(draw.choice(ODD) for _ in range(draw.randint(0, 24))) for _ in range(count)]


class TestReading:
    def test_it_reads_the_same_whatever_the_pieces_and_gives_back_what_it_was_given(self) -> None:
        draw = random.Random(7)  # noqa: S311 - no secret comes of it
        for text in (*texts(5, 3_000), "e" + "\u0301" * (3 * MAX_MARKS) + "x"):
            reading, read, given, at = Reading(), "", "", 0
            while at < len(text):
                size = draw.randint(1, 5)
                reading.feed(text[at : at + size])
                at += size
                upto, context = draw.randint(reading.context, max(reading.context, len(reading.text))), reading.context
                read += reading.text[context:upto] if upto > context else ""
                given += reading.release(upto)
            reading.end()
            read += reading.text[reading.context :]
            given += reading.rest()
            whole = Reading()
            whole.feed(text)
            whole.end()

            assert given == text
            assert read == whole.text, ascii(text)

    def test_it_reads_what_a_whole_text_is_read_as(self) -> None:
        for text in texts(11, 3_000):
            reading = Reading()
            reading.feed(text)
            reading.end()

            assert reading.text == canonical_text(text), ascii(text)

    def test_marks_without_an_end_are_held_back_only_so_far(self) -> None:
        reading = Reading()
        for _ in range(10 * MAX_MARKS):
            reading.feed("\u0301")

        assert len(reading.text) > 8 * MAX_MARKS

    def test_a_long_answer_is_read_in_linear_time(self) -> None:
        def seconds(pieces: int) -> float:
            reading, began = Reading(), time.process_time()
            for _ in range(pieces):
                reading.feed("wo\u00e9rd ")
                reading.release(len(reading.text) - 40)
            return time.process_time() - began

        small, large = min(seconds(1_000) for _ in range(3)), min(seconds(8_000) for _ in range(3))
        assert large < 24 * small


class TestSearch:
    @pytest.mark.parametrize(
        "text",
        [
            "Project X", "project\nx", "PROJECT  X!", "pro\u200bject x", "ｐｒｏｊｅｃｔ ｘ", "%70roject x",
            "&#112;roject x", "\\u0070roject x", "pro\u00adject\u00a0x", "(project x)",
        ],
    )  # fmt: skip
    def test_a_keyword_is_found_however_it_is_written(self, text: str) -> None:
        assert Search(["Project X"], []).found(canonical_text(text))

    @pytest.mark.parametrize("text", ["project xy", "subproject x", "project-x", "projectx"])
    def test_a_keyword_is_not_found_inside_another_word(self, text: str) -> None:
        assert not Search(["Project X"], []).found(canonical_text(text))

    def test_a_letter_with_its_mark_is_one_letter(self) -> None:
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            search = Search([unicodedata.normalize(form, "café crème")], [])
            for other in ("NFC", "NFD", "NFKC", "NFKD"):
                assert search.found(canonical_text(unicodedata.normalize(other, "le CAFÉ crème")))

    def test_a_keyword_of_a_script_without_blanks_is_found_inside(self) -> None:
        assert Search(["机密"], []).found("这是机密文件")

    @pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "(.*a){20}", "(x+x+)+y"])
    def test_no_pattern_takes_longer_than_its_text_is_long(self, pattern: str) -> None:
        search = Search([], [f"b{pattern}"])
        began = time.process_time()
        for _ in range(20):
            search.found("ab" + "a" * 50_000 + "!" + "x" * 50_000)

        assert time.process_time() - began < 5

    @pytest.mark.parametrize(
        ("pattern", "reason"),
        [
            ("(", "missing"),
            ("(?=x)", "no pattern of RE2"),
            (r"(a)\1", "no pattern of RE2"),
            ("a*", "found in every text"),
            (r"\pL{0,40}x.{0,200}y", "too large"),
        ],
    )
    def test_what_is_no_pattern_is_refused(self, pattern: str, reason: str) -> None:
        with pytest.raises(InvalidArgument, match=reason):
            Search([], [pattern])

    def test_a_keyword_that_can_not_be_seen_is_refused(self) -> None:
        with pytest.raises(InvalidArgument, match="nothing in it"):
            Search(["\u200b\u00ad"], [])


class TestWidth:
    @pytest.mark.parametrize(
        ("pattern", "most"),
        [
            ("abc", 3), ("a|bcd|", 3), ("a?b{2}c{1,3}", 6), (r"\bx\b", 1), (r"\d{3}-\d{4}", 8), ("[]a-z]{4}", 4),
            ("[[:alpha:]_]{2}", 2), (r"[\]x]", 1), (r"\pL\p{Greek}", 2), (r"\x{1F600}\x41", 2), ("(?i:ab|c)d", 3),
            ("(?P<name>ab)+?"[:-2], 2), ("(?i)ab", 2), ("^a$", 1), (r"(?:\b)*a", 1), (r"\.\*", 2), ("a{,5}", 5),
        ],
    )  # fmt: skip
    def test_it_is_that_of_the_longest_match(self, pattern: str, most: int) -> None:
        assert width(pattern) == most

    @pytest.mark.parametrize("pattern", ["a*", "a+", "a{2,}", "(a{100}){6}", f"a{{{MAX_WIDTH + 1}}}", "(ab?)+", "[*]+"])
    def test_one_without_a_bound_is_refused(self, pattern: str) -> None:
        with pytest.raises(InvalidArgument, match="say how often at most"):
            width(pattern)

    @pytest.mark.parametrize("pattern", ["(?=x)", r"\Qa*\E", r"\C", "(a", "a)", "[a"])
    def test_what_is_not_understood_is_refused(self, pattern: str) -> None:
        with pytest.raises(InvalidArgument, match=r"isn't understood|no end"):
            width(pattern)


class TestStrings:
    def test_it_is_every_string_that_a_backend_would_see(self) -> None:
        part = {"type": "text", "text": "said"}
        call = {"function": {"name": "named", "arguments": '{"to": "argued"}'}}
        members = {
            "messages": [
                {
                    "role": "user",
                    "content": [part, {"type": "image_url", "image_url": {"url": "https://x.example/linked"}}],
                },
                {"role": "assistant", "name": "called-so", "content": None, "tool_calls": [call]},
            ],
            "tools": [{"function": {"description": "described", "parameters": {"properties": {"keyed": {}}}}}],
            "metadata": {"card": 4111111111111111, "x": True},
        }
        found = " ".join(strings(members))

        for text in (
            "said",
            "linked",
            "named",
            "argued",
            "called-so",
            "described",
            "keyed",
            "4111111111111111",
            "card",
        ):
            assert text in found

    def test_what_is_said_in_two_parts_is_read_together(self) -> None:
        parts = [{"type": "text", "text": "blue he"}, {"type": "text", "text": "ron"}]

        assert "blue heron" in list(strings({"content": parts}))
        assert "blue heron" in list(
            strings([{"type": "refusal", "refusal": "blue "}, {"type": "text", "text": "heron"}])
        )
        assert "blue heron" in list(strings(["blue he", "ron"]))

    def test_media_are_no_text_and_what_only_looks_like_it_is(self) -> None:
        media = "data:image/png;base64,iVBORw0KGgoA" + "QUJD" * 100

        assert media not in list(strings({"messages": [{"content": [{"image_url": {"url": media}}]}]}))
        assert media in list(strings({"image_url": {"url": media}}))
        assert media in list(strings({"tools": [{"function": {"parameters": {"source": {"data": media}}}}]}))
        assert media in list(strings({"content": media}))
        assert media in list(strings({"metadata": {"url": media, "data": media}}))
        assert "secretword" in " ".join(strings({"file": {"file_data": "secretword"}}))

    @pytest.mark.parametrize(
        ("members", "names"),
        [
            ({"tools": [{"type": "function", "function": {"name": "a"}}, {"type": "web_search"}]}, ("a", "web_search")),
            ({"functions": [{"name": "b"}], "function_call": {"name": "c"}}, ("b", "c")),
            ({"tools": [{"type": "custom", "custom": {"name": "d"}}]}, ("d",)),
            ({"tool_choice": {"type": "function", "function": {"name": "e"}}}, ("e",)),
            (
                {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": [{"function": {"name": "f"}}]}}},
                ("f",),
            ),
            ({"tools": ["odd", {}], "tool_choice": "auto"}, ("",)),
            ({"tool_choice": "wipe"}, ("wipe",)),
            ({"function_call": "wipe"}, ("wipe",)),
            ({"tool_choice": "required", "function_call": "none"}, ()),
            (
                {"tools": [{"type": "custom", "custom": {"name": "g"}, "function": {"name": "h"}}]},
                ("h", "g"),
            ),
            # However deep they stand.
            (
                {
                    "tools": [
                        {
                            "type": "namespace",
                            "name": "crm",
                            "tools": [{"type": "function", "name": "i"}, {"type": "shell"}],
                        }
                    ]
                },
                ("crm", "namespace", "i", "shell"),
            ),
            ({"tools": [{"functionDeclarations": [{"name": "j"}]}]}, ("functionDeclarations", "j")),
            # What the provider runs may have no type, or stand beside a function.
            ({"tools": [{"googleSearch": {}}]}, ("googleSearch",)),
            ({"tools": [{"google_search": {}, "codeExecution": {}}]}, ("google_search", "codeExecution")),
            (
                {"tools": [{"type": "function", "function": {"name": "f"}, "web_search": {}}]},
                ("f", "web_search"),
            ),
            ({"tools": [{"type": "function", "googleSearch": {}}]}, ("function", "googleSearch")),
            ({"functions": [{"name": "f", "type": "web_search"}]}, ("f", "web_search")),
            (
                {"tools": [{"type": "custom", "custom": {"name": "f", "tools": [{"urlContext": {}}]}}]},
                ("f", "urlContext"),
            ),
            ({"tools": [{"type": "function", "function": {"name": "k", "functions": [{"name": "l"}]}}]}, ("k", "l")),
            ({"tools": [{"type": "custom", "custom": {"name": "m", "tools": [[{"name": "n"}]]}}]}, ("m", "n")),
            ({"functions": [{"name": "o", "functions": [{"name": "p"}]}]}, ("o", "functions", "p")),
            (
                {"tools": [{"type": "mcp", "server_label": "s", "allowed_tools": ["q"], "x": {"tool_names": ["r"]}}]},
                ("mcp", "q", "r"),
            ),
            ({"mcp_servers": [{"name": "s", "tool_configuration": {"allowed_tools": ["t"]}}]}, ("s", "t")),
            (
                {
                    "tool_choice": {
                        "type": "allowed_tools",
                        "mode": "auto",
                        "tools": [{"type": "x", "x": {"name": "u"}}],
                    }
                },
                ("u", "x"),
            ),
            # A name that somebody gave it makes of a provider's tool no other.
            ({"tools": [{"type": "web_search", "name": "get_weather"}]}, ("get_weather", "web_search")),
            # What only describes arguments offers nothing.
            (
                {"tools": [{"type": "function", "function": {"name": "v", "parameters": {"default": {"name": "w"}}}}]},
                ("v",),
            ),
            ({"tools": [{"name": "v", "input_schema": {"examples": [{"name": "w"}]}}]}, ("v",)),
        ],
    )
    def test_what_is_offered_or_forced_has_a_name(self, members: dict[str, object], names: tuple[str, ...]) -> None:
        assert offered(members) == names


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("m-1", "m-1", True), ("m-1", "m-10", False), ("m-*", "m-", True), ("*", "", True), ("*-1", "m-1", True),
        ("a*c*e", "abcde", True), ("a*c*e", "aec", False), ("ab*ba", "aba", False), ("*b*", "abc", True),
        ("a*a", "a", False), ("M-*", "m-1", False),
    ],
)  # fmt: skip
def test_a_name_with_stars_names(name: str, text: str, *, expected: bool) -> None:
    assert matches(name, text) is expected
