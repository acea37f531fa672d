"""The field ``split``: what it accepts, what it means, and what it says of a mistake."""

from __future__ import annotations

from typing import Any

import pytest

from elsa_ray.config.errors import InputError
from elsa_ray.config.section import Section
from elsa_ray.config.split import AutoSplit, AutoSplitConfig, SplitChoice, SplitConfig
from elsa_ray.config.validate import validate


class Holder(Section):
    """Stands for a protocol's section."""

    split: SplitChoice = SplitConfig()


def split_of(value: Any) -> SplitConfig | AutoSplitConfig:
    return validate(Holder, {"split": value}, "protocol").split


@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        ("auto", AutoSplitConfig()),
        ({"auto": {}}, AutoSplitConfig()),
        (
            {"auto": {"min_front": 2, "min_back": 0, "max_splits": 4, "hysteresis": 0.1}},
            AutoSplitConfig(auto=AutoSplit(min_front=2)),
        ),
        ({"auto": {"min_front": None, "hysteresis": 0}}, AutoSplitConfig(auto=AutoSplit(hysteresis=0.0))),
        ({"front": 2, "back": 2}, SplitConfig(front=2, back=2)),
        ({"front": 3}, SplitConfig(front=3)),
        ({}, SplitConfig()),
        (AutoSplitConfig(), AutoSplitConfig()),
        (SplitConfig(front=2), SplitConfig(front=2)),
    ],
    ids=str,
)
def test_all_forms_are_understood_and_can_be_written_back(value: Any, meaning: object) -> None:
    assert split_of(value) == meaning
    assert split_of(split_of(value).model_dump(mode="json")) == meaning


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("atuo", ": found atuo; allowed: {front: P, back: O}, auto, or {auto: {min_front: P, max_splits: K, ...}}; "),
        (3, ": found 3; allowed: {front: P, back: O}, auto,"),
        (True, ": found True; allowed: {front: P, back: O}, auto,"),
        (None, ": found None; allowed: {front: P, back: O}, auto,"),
        ([2, 2], ": found [2, 2]; allowed: {front: P, back: O}, auto,"),
        ({"frnt": 2}, ".frnt: found an unknown key; allowed: back, front; did you mean front?"),
        ({"front": 0}, ".front: found 0; allowed: greater than or equal to 1"),
        ({"front": "2"}, ".front: found the text '2'; allowed: a valid integer"),
        ({"front": 2, "auto": {}}, ".front: found an unknown key; allowed: auto"),
        ({"auto": None}, ".auto: found None; allowed: a mapping of keys to values"),
        ({"auto": True}, ".auto: found True; allowed: a mapping of keys to values"),
        (
            {"auto": {"min_frnt": 1}},
            ".auto.min_frnt: found an unknown key; allowed: hysteresis, max_splits, min_back, min_front; did you",
        ),
        ({"auto": {"min_front": 0}}, ".auto.min_front: found 0; allowed: greater than or equal to 1"),
        ({"auto": {"min_front": "2"}}, ".auto.min_front: found the text '2'; allowed: a valid integer"),
        ({"auto": {"min_back": -1}}, ".auto.min_back: found -1; allowed: greater than or equal to 0"),
        ({"auto": {"max_splits": 0}}, ".auto.max_splits: found 0; allowed: greater than 0"),
        ({"auto": {"hysteresis": 1}}, ".auto.hysteresis: found 1; allowed: less than 1"),
        ({"auto": {"hysteresis": -0.1}}, ".auto.hysteresis: found -0.1; allowed: greater than or equal to 0"),
    ],
    ids=str,
)
def test_a_mistake_is_told_in_one_line(value: Any, line: str) -> None:
    with pytest.raises(InputError) as error:
        split_of(value)
    assert str(error.value).startswith(f"protocol.split{line}")
    assert "\n" not in str(error.value)


def test_the_nearest_word_is_suggested() -> None:
    with pytest.raises(InputError, match=r"did you mean auto\?$"):
        split_of("atuo")


def test_the_schema_knows_the_short_form() -> None:
    kinds = Holder.model_json_schema()["properties"]["split"]["anyOf"]
    assert {"const": "auto", "type": "string"} in kinds
    assert {kind["$ref"].rpartition("/")[2] for kind in kinds if "$ref" in kind} == {"SplitConfig", "AutoSplitConfig"}
