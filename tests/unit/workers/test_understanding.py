"""What an engine of another release is not asked for."""

import pytest

from core.protocol import FIELDS, VERSION, Embed, EngineStats, Generate, Hello, Sampling
from workers.understanding import missing_fields

PLAIN = Generate("x", "m", Sampling(temperature=0.5, max_tokens=3), text="hi", prefix_scope="tenant")
DEMANDING = Generate("x", "m", Sampling(min_p=0.1, logit_bias={3: 1.0}), text="hi", is_alone=True)


def greeted(**more: object) -> Hello:
    return Hello("boot", "cpu", 1, [], EngineStats(), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("hello", "missing"),
    [
        (greeted(version=VERSION, understood=FIELDS), []),
        (greeted(version=VERSION + 1, understood=(*FIELDS, "Generate.later")), []),
        (greeted(), ["Generate.is_alone", "Sampling.min_p", "Sampling.logit_bias"]),
        (greeted(takes_acks=True), ["Generate.is_alone"]),
        (
            greeted(version=VERSION, understood=tuple(field for field in FIELDS if "min_p" not in field)),
            ["Sampling.min_p"],
        ),
    ],
)
def test_fields_that_an_engine_would_skip_are_named(hello: Hello, missing: list[str]) -> None:
    assert missing_fields(DEMANDING, hello) == missing
    assert missing_fields(PLAIN, hello) == []


def test_texts_to_embed_ask_for_little() -> None:
    assert missing_fields(Embed("x", "m", texts=["hi"], dimensions=3), greeted()) == []
    assert missing_fields(Embed("x", "m", texts=["hi"], is_alone=True), greeted()) == ["Embed.is_alone"]
