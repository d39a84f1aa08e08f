from datetime import UTC, datetime

import pytest

from adapters.builtin_tools.clock import tell
from adapters.builtin_tools.text_stats import count
from ports.errors import InvalidArgument

NOON = datetime(2030, 7, 1, 12, tzinfo=UTC)


def test_to_be_or_not_to_be_has_six_words_of_which_four_are_different() -> None:
    stats = count("to be or not to be")

    assert (stats["words"], stats["unique_words"], stats["sentences"]) == (6, 4, 1)


@pytest.mark.parametrize(
    ("text", "words", "sentences"),
    [
        ("", 0, 0),
        ("   \n ", 0, 0),
        ("Don't use a well-kept secret!", 5, 1),
        ("It costs 3.50 today. Really?! Yes", 6, 3),
        ("“Stop.” She left.", 3, 2),
        ("... --- !!!", 0, 0),
        ("今日は。明日も。", 2, 2),
    ],
)
def test_words_and_sentences_are_counted_as_people_count(text: str, words: int, sentences: int) -> None:
    stats = count(text)

    assert (stats["words"], stats["sentences"]) == (words, sentences)


def test_characters_lines_and_paragraphs_are_counted() -> None:
    stats = count("one two\nthree\n\nfour")

    assert stats["characters"] == 19
    assert stats["characters_without_spaces"] == 15
    assert (stats["lines"], stats["paragraphs"]) == (4, 2)


def test_the_clock_tells_the_time_of_a_zone_with_its_summer_time() -> None:
    told = tell(NOON, "Europe/Berlin")

    assert told["local"] == "2030-07-01T14:00:00+02:00"
    assert told["utc"] == "2030-07-01T12:00:00+00:00"
    assert told["weekday"] == "Monday"
    assert told["unix_seconds"] == 1_909_137_600


@pytest.mark.parametrize("zone", ["Mars/Base", "../../etc/passwd", "/etc/passwd", "America", "", "a\x00b", "zone.tab"])
def test_what_is_no_zone_is_a_bad_argument(zone: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        tell(NOON, zone)

    assert refusal.value.code == "tool_bad_arguments"
