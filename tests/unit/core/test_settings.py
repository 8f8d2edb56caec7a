from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigurationError
from core.settings import (
    BUILTIN_MODEL,
    PREFIX,
    Settings,
    builtin_model_directory,
    convert_settings,
    load_settings,
    parse_models,
    settings_environment,
)

DATA = Path("/data")


def test_an_empty_environment_gives_the_defaults() -> None:
    assert load_settings({}) == Settings()


def test_variables_become_values_of_their_kind() -> None:
    # When
    settings = load_settings({"MILLRACE_PORT": "9000", "MILLRACE_LEASE_SECONDS": "2.5", "MILLRACE_HOST": "::1"})

    # Then
    assert (settings.port, settings.lease_seconds, settings.host) == (9000, 2.5, "::1")


@pytest.mark.parametrize(
    ("misspelled", "meant"),
    [
        ("MILLRACE_DATABSE_URL", "MILLRACE_DATABASE_URL"),
        ("MILLRACE_LEASE_SECS", "MILLRACE_LEASE_SECONDS"),
        ("MILLRACE_MODEL", "MILLRACE_MODELS"),
    ],
)
def test_an_unknown_name_is_refused_with_the_one_that_was_meant(misspelled: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=f"unknown setting {misspelled}: did you mean {meant}?"):
        load_settings({misspelled: "x"})


def test_an_unknown_name_like_no_other_is_refused_with_the_list_of_all() -> None:
    with pytest.raises(ConfigurationError, match=r"docs/reference/settings\.md"):
        load_settings({"MILLRACE_" + "QZXJ" * 10: "x"})


def test_names_of_other_programs_and_of_our_own_parts_are_left_alone() -> None:
    assert load_settings({"PATH": "/bin", "MILLRACE__PARENT_PID": "1", "MILLRACES": "many"}) == Settings()


def test_an_empty_value_counts_as_unset() -> None:
    assert load_settings({"MILLRACE_DATABASE_URL": "", "MILLRACE_PORT": ""}) == Settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MILLRACE_PORT", "eighty"),
        ("MILLRACE_PORT", "0"),
        ("MILLRACE_PORT", "65536"),
        ("MILLRACE_LEASE_SECONDS", "0"),
        ("MILLRACE_LEASE_SECONDS", "-1"),
        ("MILLRACE_CHUNK_ROWS", "2.5"),
        ("MILLRACE_ENGINE_DTYPE", "int8"),
        ("MILLRACE_LOG_LEVEL", "LOUD"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_the_name_of_its_variable(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings({variable: value})
    assert caught.value.message.startswith(f"{variable}: ")
    assert repr(value) in caught.value.message


def test_no_time_and_no_size_is_without_its_unit() -> None:
    # Given: numbers whose names tell of neither a count nor a port
    info = msgspec.inspect.type_info(Settings)
    assert isinstance(info, msgspec.inspect.StructType)
    inner = {field.name: field.type.type for field in info.fields if isinstance(field.type, msgspec.inspect.Metadata)}

    # Then
    floats = [name for name, kind in inner.items() if isinstance(kind, msgspec.inspect.FloatType)]
    assert floats
    assert [
        name for name in floats if not name.endswith(("_seconds", "_days", "_hour_price", "_celsius", "_fraction"))
    ] == []


def test_a_child_that_reads_the_environment_has_the_same_settings() -> None:
    # Given
    settings = Settings(database_url="postgresql://h/d", lease_seconds=0.1, models="a=/m,b", data_dir="/x y", port=1)

    # Then
    assert load_settings(settings_environment(settings)) == settings


@given(
    st.floats(min_value=1e-6, max_value=1e6),
    st.integers(1, 65535),
    st.text(min_size=1).filter(lambda text: "\0" not in text),
)
def test_any_settings_survive_the_environment(seconds: float, port: int, name: str) -> None:
    settings = Settings(lease_seconds=seconds, port=port, node_name=name, data_dir="/d")
    assert load_settings(settings_environment(settings)) == settings


def test_unset_values_are_not_in_the_environment_of_a_child() -> None:
    assert PREFIX + "DATABASE_URL" not in settings_environment(Settings())


def test_settings_may_be_made_of_typed_values() -> None:
    assert convert_settings({"port": 9000, "host": "::1"}) == Settings(port=9000, host="::1")


def test_sockets_lie_in_a_short_directory_of_their_own_per_data_directory() -> None:
    # Given
    long = Settings(data_dir="/very" * 60)

    # Then
    assert len(str(long.run_path)) < 80
    assert long.run_path == Settings(data_dir="/very" * 60).run_path
    assert long.run_path != Settings(data_dir="/other").run_path


class TestModels:
    def test_a_hub_name_is_named_by_itself_and_a_directory_by_its_last_part(self) -> None:
        assert parse_models("org/model, /models/mine,./here", DATA) == {
            "org/model": "org/model",
            "mine": "/models/mine",
            "here": "./here",
        }

    def test_a_name_may_be_given(self) -> None:
        assert parse_models("chat=/models/x,big=org/model", DATA) == {"chat": "/models/x", "big": "org/model"}

    def test_the_built_in_model_is_a_directory_under_the_data(self) -> None:
        directory = builtin_model_directory(DATA)
        assert parse_models(BUILTIN_MODEL, DATA) == {BUILTIN_MODEL: directory}
        assert parse_models(f"tiny={BUILTIN_MODEL}", DATA) == {"tiny": directory}
        assert directory.startswith("/data/")

    def test_the_order_is_kept_because_the_first_is_loaded_first(self) -> None:
        assert list(parse_models("b=x,a=y,c=z", DATA)) == ["b", "a", "c"]

    @pytest.mark.parametrize("text", ["", " , ", "=/models/x", "a=", "a=x,a=y", "org/m,org/m"])
    def test_no_model_an_empty_name_and_a_doubled_one_are_refused(self, text: str) -> None:
        with pytest.raises(ConfigurationError, match="MILLRACE_MODELS"):
            parse_models(text, DATA)
