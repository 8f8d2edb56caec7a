"""The documents that the built-in model reads: `pydoc_data.topics` and the docstrings of the standard library.

Nothing is imported to get them, except `pydoc_data.topics`, which is one dictionary: source files are parsed. Documents
are deduplicated before they are split, and the split goes by a hash of the text: the same document is on the same side
on every machine.
"""

import ast
import hashlib
import logging
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from core.errors import ConfigurationError

HELD_OUT_FRACTION = 0.05
MIN_DOCUMENTS = 1000
MIN_CHARACTERS = 40
MIN_LETTER_FRACTION = 0.8

# Tests, third-party code, and packages whose docstrings are data or repeat those of others.
_SKIPPED_PARTS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3", "idlelib"}
    | {"turtledemo", "ensurepip", "pydoc_data", "encodings"}
)

_LAID_OUT = re.compile(r"\s|>>>|[-*+|=#:@.]|\d+[.)]")  # the beginning of a line that means what its layout says

logger = logging.getLogger(__name__)


class DocumentKind(StrEnum):
    TOPIC = "topic"
    MODULE = "module"
    CLASS = "class"
    FUNCTION = "function"


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Document:
    title: str
    text: str
    kind: DocumentKind

    @property
    def key(self) -> str:
        """Equal for texts that differ only in spacing and case."""
        return " ".join(self.text.split()).casefold()


@dataclass(frozen=True, slots=True)
class Corpus:
    training: list[Document]
    held_out: list[Document]


def load_corpus() -> Corpus:
    """Raises ConfigurationError where this Python came without its documentation."""
    library = Path(sysconfig.get_path("stdlib"))
    documents = unique(document for document in (*topics(), *docstrings(library)) if is_prose(document.text))
    if len(documents) < MIN_DOCUMENTS:
        raise ConfigurationError(
            f"expected the documentation of Python in {library}, at least {MIN_DOCUMENTS} texts, found "
            f"{len(documents)}; install the sources of the standard library, or set MILLRACE_MODELS to another model"
        )
    return split(documents)


def topics() -> Iterator[Document]:
    try:
        from pydoc_data.topics import topics as texts
    except ImportError:  # some distributions leave it out
        logger.warning("pydoc_data.topics is not installed; the built-in model learns from docstrings alone")
        return
    for title, text in texts.items():
        yield Document(title, readable(text), DocumentKind.TOPIC)


def docstrings(library: Path) -> Iterator[Document]:
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if _SKIPPED_PARTS.isdisjoint(relative.parts):
            yield from _file_docstrings(path, _module_name(relative))


def unique(documents: Iterable[Document]) -> list[Document]:
    """The first of those that are equal."""
    by_key: dict[str, Document] = {}
    for document in documents:
        by_key.setdefault(document.key, document)
    return list(by_key.values())


def readable(text: str) -> str:
    """Lines that were broken only for the width of a page become one; examples, lists and tables keep their lines."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join(_unwrapped(paragraph) for paragraph in paragraphs)


def is_prose(text: str) -> bool:
    """Long enough to answer anything, and mostly words: a small model learns nothing from tables and signatures."""
    num_letters = sum(character.isalpha() or character == " " for character in text)
    return len(text) >= MIN_CHARACTERS and num_letters >= MIN_LETTER_FRACTION * len(text)


def split(documents: Iterable[Document]) -> Corpus:
    corpus = Corpus([], [])
    for document in documents:
        side = corpus.held_out if _hash_fraction(document.key) < HELD_OUT_FRACTION else corpus.training
        side.append(document)
    return corpus


def _unwrapped(paragraph: str) -> str:
    lines = paragraph.split("\n")
    is_laid_out = any(_LAID_OUT.match(line) for line in lines)
    return "\n".join(line.rstrip() for line in lines) if is_laid_out else " ".join(lines)


def _hash_fraction(key: str) -> float:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) / 2**32


def _module_name(relative: Path) -> str:
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _file_docstrings(path: Path, module: str) -> Iterator[Document]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a file's odd escapes are not our concern
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        logger.warning("skipped %s, which does not parse: %s", path, error)
        return
    yield from _documents(tree, module, parent=module)


def _documents(node: _Documented, title: str, parent: str) -> Iterator[Document]:
    """Titles are what a person would call the thing: `json`, `json.loads`, then `JSONDecoder.decode`."""
    text = ast.get_docstring(node)
    if text:
        yield Document(title, readable(text), _kind(node))
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documents(child, f"{parent}.{child.name}", parent=child.name)


def _kind(node: _Documented) -> DocumentKind:
    match node:
        case ast.Module():
            return DocumentKind.MODULE
        case ast.ClassDef():
            return DocumentKind.CLASS
        case _:
            return DocumentKind.FUNCTION
