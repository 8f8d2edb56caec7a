import ast
import sys

from tests.architecture.source import PACKAGES, ROOT, parsed, project_files, python_files, relative

FORBIDDEN_NAMES = frozenset({"utils", "util", "common", "helpers", "misc", "manager"})
# Would tell of a machine or of the workshop, not of the product. Written in two parts, so as not to find themselves.
FORBIDDEN_WORDS = ("/wo" + "rk/", "/ro" + "ot/", "agent ses" + "sion", "TO" + "DO", "FIX" + "ME")
TEXT_SUFFIXES = frozenset(
    {".py", ".md", ".toml", ".yml", ".yaml", ".ini", ".mako", ".sh", ".jsonl", ".txt", ".cfg", ""}
)


def test_every_module_says_what_it_knows() -> None:
    silent = [
        relative(path)
        for path in python_files(*PACKAGES, "alembic", "benchmarks", "docs", "examples")
        if ast.get_docstring(parsed(path)) is None
    ]
    assert silent == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    modules = python_files(*PACKAGES)
    assert [relative(path) for path in modules if path.stem in FORBIDDEN_NAMES] == []


def test_no_top_level_package_shadows_the_standard_library() -> None:
    assert set(PACKAGES) & sys.stdlib_module_names == set()


def test_the_folder_of_migrations_does_not_shadow_the_library_of_its_name() -> None:
    assert not (ROOT / "alembic" / "__init__.py").exists()


def test_every_folder_of_packages_and_tests_is_a_package() -> None:
    # A folder of tests that is none would shadow the package of the same name.
    folders = {path.parent for path in python_files(*PACKAGES, "tests")}
    assert [relative(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_every_package_is_in_the_wheel_and_under_the_import_contracts() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = ", ".join(f'"{package}"' for package in PACKAGES)
    assert f"packages = [{listed}]" in pyproject
    assert f"root_packages = [{listed}]" in pyproject


def test_nothing_tells_of_the_machine_it_was_made_on() -> None:
    texts = [path for path in project_files() if path.suffix in TEXT_SUFFIXES and path.name != "LICENSE"]
    found = [
        f"{relative(path)}: {word}"
        for path in texts
        for word in FORBIDDEN_WORDS
        if word in path.read_text(encoding="utf-8")
    ]
    assert found == []
