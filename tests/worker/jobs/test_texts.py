"""Texts of clients: what is not stored, because it cannot be or must not be."""

import secrets

import pytest

from worker.jobs.spec import NAME_PATTERN, Spec
from worker.jobs.texts import looks_like_key, printable, redacted

KEY = "epochd_" + "aB3-_" * 8 + "xYz"  # 43 characters behind the prefix


@pytest.mark.parametrize("text", ["", "a name", "naïve ☃ 名前", "epochd_short", "epochd"])
def test_what_can_be_shown_is_kept_as_it_is(text: str) -> None:
    assert printable(text) == text
    assert redacted(text) == text


@pytest.mark.parametrize("text", ["a\0b", "tab\t", "\ud800", "line\n"])
def test_what_cannot_be_stored_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="control characters"):
        printable(text)


@pytest.mark.parametrize("text", [KEY, f"key={KEY};", f"a{KEY}", f"{KEY}b", f"{KEY}{KEY}", f"名{KEY}名"])
def test_a_key_is_found_wherever_it_stands(text: str) -> None:
    assert looks_like_key(text)
    assert KEY[8:] not in redacted(text)
    assert "epochd_***" in redacted(text)
    with pytest.raises(ValueError, match="must not contain an API key"):
        printable(text)


def test_every_key_that_is_made_looks_like_one() -> None:
    for _ in range(1000):
        assert looks_like_key(f"epochd_{secrets.token_urlsafe(32)}")


def test_what_is_one_character_too_short_is_no_key() -> None:
    assert not looks_like_key(KEY[:-1])
    assert redacted(KEY[:-1]) == KEY[:-1]


def test_what_stands_around_a_key_stays() -> None:
    assert redacted(f"before {KEY}, after {KEY}.") == "before epochd_***, after epochd_***."


@pytest.mark.parametrize("spec", [{"name": KEY}, {"labels": {"key": KEY}}, {"labels": {KEY: "value"}}])
def test_no_spec_holds_a_key(spec: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must not contain an API key"):
        Spec.model_validate(spec)


def test_a_key_is_no_name_of_a_dataset_or_an_alias() -> None:
    """Those have no capitals, and of 10 billion keys one has none."""
    assert NAME_PATTERN.startswith("^[a-z0-9]")
    with pytest.raises(ValueError, match="pattern"):
        Spec.model_validate({"dataset": {"name": KEY}})
