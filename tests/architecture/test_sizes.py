from collections import Counter

from tests.architecture.source import OTHER_FOLDERS, PACKAGES, functions, num_lines, python_files, relative

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 50
MAX_FOLDER_MODULES = 12
# One command beside the other, one step after the other, one thin module per kind of work: to cut would be to hide.
CROWDED_FOLDERS = {"engine/generation": 16}


def test_no_module_is_longer_than_a_reader_keeps_in_mind() -> None:
    long = {relative(path): num_lines(path) for path in python_files(*PACKAGES, *OTHER_FOLDERS)}
    assert {name: lines for name, lines in long.items() if lines > MAX_MODULE_LINES} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    # Migrations are lists of statements, written once.
    folders = [folder for folder in (*PACKAGES, *OTHER_FOLDERS) if folder != "alembic"]
    long = [
        f"{relative(path)}: {function.name} has {lines} lines"
        for path in python_files(*folders)
        for function in functions(path)
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_no_folder_holds_more_modules_than_a_reader_can_scan() -> None:
    modules = [path for path in python_files(*PACKAGES) if path.name != "__init__.py"]
    counts = Counter(relative(path.parent) for path in modules)
    crowded = {
        folder: count for folder, count in counts.items() if count > CROWDED_FOLDERS.get(folder, MAX_FOLDER_MODULES)
    }
    assert crowded == {}
