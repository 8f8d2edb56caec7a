"""The documents of the built-in model: what is read, what counts as the same, who is held out."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.builtin.corpus import (
    Corpus,
    Document,
    DocumentKind,
    docstrings,
    is_prose,
    readable,
    split,
    unique,
)

words = st.text("ab \n", max_size=12)
documents = st.lists(words.map(lambda text: Document("title", text, DocumentKind.TOPIC)), max_size=40)


def sides(corpus: Corpus) -> tuple[set[str], set[str]]:
    return {document.key for document in corpus.training}, {document.key for document in corpus.held_out}


@given(documents)
def test_no_two_documents_of_a_unique_list_differ_only_in_spacing_and_case(found: list[Document]) -> None:
    keys = [document.key for document in unique(found)]
    assert len(keys) == len(set(keys))
    assert set(keys) == {document.key for document in found}


@given(documents)
def test_a_text_is_on_one_side_alone_however_often_and_in_whatever_order_it_comes(found: list[Document]) -> None:
    training, held_out = sides(split(unique([*found, *found])))
    assert not training & held_out
    assert (training, held_out) == sides(split(unique(reversed(found))))


def test_about_one_in_twenty_is_held_out() -> None:
    corpus = split(Document("title", f"text number {i}", DocumentKind.TOPIC) for i in range(4000))
    assert 150 < len(corpus.held_out) < 250
    assert len(corpus.held_out) + len(corpus.training) == 4000


def test_docstrings_are_read_without_running_the_file(tmp_path: Path) -> None:
    # Given a package that must not be imported, a test folder and a file that does not parse
    package = tmp_path / "shapes"
    (package / "test").mkdir(parents=True)
    (package / "__init__.py").write_text(
        '"""All shapes."""\nraise SystemExit\ndef area():\n    "The area."\n'
        'class Box:\n    """A box with a \\d."""\n'
        '    async def open(self):\n        """Open it."""\n    def shut(self): ...\n'
    )
    (package / "test" / "module.py").write_text('"""A test."""')
    (package / "old.py").write_text("print 'Python 2'")
    # When its docstrings are read
    found = {(document.title, document.kind.value, document.text) for document in docstrings(tmp_path)}
    # Then each has the name that a person would use
    assert found == {
        ("shapes", "module", "All shapes."),
        ("shapes.area", "function", "The area."),
        ("shapes.Box", "class", "A box with a \\d."),
        ("Box.open", "function", "Open it."),
    }


def test_lines_broken_for_the_page_become_one_and_layout_stays() -> None:
    text = "A text that\ngoes on\nhere.\n\n\nExample:\n\n  >>> f(1)   \n  2\n\n- one\n- two"
    assert readable(text) == "A text that goes on here.\n\nExample:\n\n  >>> f(1)\n  2\n\n- one\n- two"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Return the list of all the names that begin with this one.", True),
        ("Return it.", False),
        ("f(a, b=1, *, c=2) -> [(1, 2), (3, 4), (5, 6)] # 0x1f 0x2f", False),
    ],
)
def test_only_texts_of_words_are_learned(text: str, expected: bool) -> None:
    assert is_prose(text) is expected


def test_the_corpus_is_found_by_parsing_alone() -> None:
    """Nothing of the standard library is imported for its docstrings: this module names all that the corpus imports."""
    import engine.builtin.corpus as module

    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"collections.abc", "dataclasses", "enum", "pathlib", "core.errors", "pydoc_data.topics"}
