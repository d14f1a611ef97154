"""Where a server's settings come from, and what is said about wrong ones."""

import json
import re
import warnings
from pathlib import Path

import pytest

from ari_core.errors import ConfigurationError
from ari_server.config import ServerConfig, create_config_environment, load_config, variable_of


@pytest.fixture
def environment(tmp_path):
    return {"ARI_REGISTRY_DATA": str(tmp_path)}


def test_what_is_given_wins_over_the_environment_and_that_over_the_default(environment):
    environment |= {"ARI_REGISTRY_UPLOADS": "3", "ARI_REGISTRY_BODY_TIMEOUT": "7.5", "ARI_REGISTRY_QUOTA": ""}
    config = load_config(environment, uploads="5", backend=None)
    assert (config.uploads, config.body_timeout) == (5, 7.5)
    assert (config.backend, config.quota) == ("filesystem-registry", None)


def test_a_misspelt_variable_is_an_error_that_names_the_right_one(environment):
    with pytest.raises(ConfigurationError, match=r"ARI_REGISTRY_MAX_UPLAOD.*'ARI_REGISTRY_MAX_UPLOAD'"):
        load_config(environment | {"ARI_REGISTRY_MAX_UPLAOD": "1GB"})


def test_an_unknown_variable_is_an_error_that_names_all_that_a_server_has(environment):
    with pytest.raises(ConfigurationError) as caught:
        load_config(environment | {"ARI_REGISTRY_PORTT": "80"})
    named = caught.value.hint.removeprefix("one of: ").split(", ")
    ours = [*map(variable_of, ServerConfig.model_fields), "ARI_REGISTRY_HOST", "ARI_REGISTRY_PORT"]
    assert sorted(named) == sorted([*ours, "ARI_REGISTRY_WORKERS"])


def test_variables_of_the_client_and_the_scripts_are_left_to_them(environment):
    theirs = ("URL", "TOKEN", "NAME", "HOST", "PORT", "WORKERS")
    assert load_config(environment | {f"ARI_REGISTRY_{name}": "x" for name in theirs}) == load_config(environment)
    scripts = Path(__file__).parents[2] / "scripts" / "registry"
    named = set(re.findall(r"ARI_REGISTRY_[A-Z_]+", "".join(path.read_text() for path in scripts.iterdir())))
    ours = {variable_of(field) for field in ServerConfig.model_fields}
    assert {"ARI_REGISTRY_PUBLISH", "ARI_REGISTRY_PORT"} <= named - ours
    assert load_config(environment | dict.fromkeys(named - ours, "x")) == load_config(environment)


def test_a_worker_reads_the_same_configuration_from_its_environment(tmp_path):
    config = ServerConfig(
        data=tmp_path,
        backend="lab",
        options={"root": "/a b", "secret": "quoted \" and 'é"},
        base_url="https://ari.example.org/registry/",
        max_upload="1.5 GiB",
        quota="20GB",
        id_digits=32,
        body_timeout=0.25,
        uploads=2,
        metrics="token",
        accel="/_artifacts",
        redirect=300,
        db="postgresql+psycopg://ari:canary@127.0.0.1/ari",
    )
    assert set(config.model_fields_set) == set(ServerConfig.model_fields), "a new setting needs a value here"
    assert load_config(create_config_environment(config)) == config
    assert config.base_url == "https://ari.example.org/registry"


def test_a_relative_data_directory_stays_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config({"ARI_REGISTRY_DATA": "data"})
    monkeypatch.chdir("/")
    assert config.data == tmp_path / "data"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("QUOTA", "5 sheep", "sheep"),
        ("QUOTA", "0", "greater than 0"),
        ("ID_DIGITS", "8", "16"),
        ("METRICS", "maybe", "'open', 'token' or 'off'"),
        ("BASE_URL", "ftp://x", "https://"),
        ("BASE_URL", "https://user:pw@x", "https://"),
        ("ACCEL", "no-slash", "pattern"),
        ("REDIRECT", "604801", "604800"),
        ("DB", "sqlite:////srv/canary", "postgresql+psycopg://"),
        ("DB", "postgresql+asyncpg://canary@x/y", "postgresql+psycopg://"),
        ("DB", "postgresql+psycopg:canary", "postgresql+psycopg://"),
        ("DB", "postgresql+psycopg://", "postgresql+psycopg://"),
        ("DB", "postgresql://ari:can@ry@x/y", "%40"),
        ("OPTIONS", "root=/x", "JSON object"),
        ("OPTIONS", "[1]", "mapping"),
        ("OPTIONS", "[" * 100_000, "JSON object"),
    ],
)
def test_a_bad_value_is_one_line_that_names_its_variable(environment, name, value, says):
    with pytest.raises(ConfigurationError) as caught:
        load_config(environment | {f"ARI_REGISTRY_{name}": value})
    assert caught.value.message.startswith(f"ARI_REGISTRY_{name}: ")
    assert says in caught.value.message
    assert "\n" not in caught.value.message
    assert "can" not in caught.value.message.replace("cannot", "")


def test_a_bad_value_that_was_given_names_the_option(environment):
    with pytest.raises(ConfigurationError, match=r"^--max-upload: "):
        load_config(environment, max_upload="-1")


def test_settings_of_the_store_may_be_secrets_and_are_never_shown(environment):
    config = load_config(environment, options={"token": "canary"})
    assert "canary" not in repr(config) + str(config)
    with pytest.raises(ConfigurationError) as caught:
        load_config(environment | {"ARI_REGISTRY_OPTIONS": json.dumps({"a": {"token": "canary"}})})
    assert "canary" not in caught.value.message


def test_the_password_of_the_database_is_never_shown_and_reaches_workers(environment):
    for scheme in ("postgresql", "postgresql+psycopg"):
        config = load_config(environment | {"ARI_REGISTRY_DB": f"{scheme}://ari:canary@db.example.org/ari"})
        assert "canary" not in repr(config) + str(config) + str(config.model_dump()) + config.model_dump_json()
        told = create_config_environment(config)["ARI_REGISTRY_DB"]
        assert told == "postgresql+psycopg://ari:canary@db.example.org/ari"


def test_without_a_data_directory_it_says_how_to_name_one(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        load_config({"HOME": str(tmp_path)})
    assert "ARI_REGISTRY_DATA" in caught.value.hint


def test_the_deprecated_data_directory_works_with_a_warning(tmp_path):
    old = tmp_path / ".ari" / "registry-data"
    old.mkdir(parents=True)
    with pytest.warns(DeprecationWarning, match=r"ARI_REGISTRY_DATA.*1\.0"):
        config = load_config({"HOME": str(tmp_path)})
    assert config.data == old
    with warnings.catch_warnings(action="error"):
        load_config({"HOME": str(tmp_path), "ARI_REGISTRY_DATA": str(old)})
