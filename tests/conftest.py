"""Fixtures that more than one folder of tests uses, by subject."""

pytest_plugins = ["tests.servers", "tests.world", "tests.serving", "tests.answering", "tests.builtin_model"]
