"""References to a user's code, and arguments of a config, each refused in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

import automl
from automl.plugins import call_builder, call_plugin, is_reference, one_line, resolve
from search_spaces.errors import InputError, TrimtabError


def refusal(function: Callable[..., Any], *args: Any, **named: Any) -> str:
    with pytest.raises(InputError) as caught:
        function(*args, **named)
    message = str(caught.value)
    assert "\n" not in message
    return message


def build(*, given: int, size: Annotated[int, Field(ge=1)] = 3, kind: Literal["A", "B"] = "A") -> tuple[int, int, str]:
    return given, size, kind


def needy(*, root: Path) -> Path:
    return root


def test_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plugin_fine.py").write_text("class Outer:\n    inner = 3\n")
    (tmp_path / "plugin_broken.py").write_text("def f(:\n")
    (tmp_path / "plugin_raises.py").write_text("raise RuntimeError('first line\\nsecond line')\n")
    (tmp_path / "plugin_needs.py").write_text("import no_such_module_anywhere\n")
    assert resolve("plugin_fine:Outer.inner") == 3
    assert is_reference("plugin_fine:Outer")
    assert not is_reference("resnet20")
    assert "did you mean 'Outer'" in refusal(resolve, "plugin_fine:Other")
    assert "'inne'" in refusal(resolve, "plugin_fine:Outer.inne")
    assert "SyntaxError" in refusal(resolve, "plugin_broken:f")
    assert "(RuntimeError: first line)" in refusal(resolve, "plugin_raises:f")
    assert "no_such_module_anywhere" in refusal(resolve, "plugin_needs:f")
    assert str(tmp_path) in refusal(resolve, "plugin_absent:f")


@pytest.mark.parametrize(
    "reference", ["", ":", "a:", ":b", "a.b", "a:b:c", "a b:c", "../a:b", "a..b:c", "1a:b", "a:b()"]
)
def test_malformed_reference(reference: str) -> None:
    assert "'package.module:attribute'" in refusal(resolve, reference)


def test_current_directory_shadows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "colorsys.py").write_text("rgb_to_hsv = 'ours'\n")
    assert callable(resolve("colorsys:rgb_to_hsv"))


def test_builder_arguments() -> None:
    assert call_builder(build, {"size": 5, "kind": "B"}, "it", given=1) == (1, 5, "B")
    assert call_builder(needy, {"root": "here"}, "it") == Path("here")
    for args, said in (
        ({"sise": 5}, "did you mean 'size'"),
        ({"given": 5}, "unknown argument 'given'"),
        ({"size": 0}, "got 0"),
        ({"size": "many"}, "got 'many'"),
        ({"kind": "C"}, "'kind'"),
    ):
        assert said in refusal(call_builder, build, args, "it", given=1)
    assert refusal(call_builder, needy, {}, "data set 'it'") == "data set 'it' needs the argument 'root'"
    assert "takes no arguments" in refusal(call_builder, lambda: 3, {"size": 1}, "it")


def test_plugin_gets_what_its_signature_names() -> None:
    assert call_plugin(lambda classes: classes, {}, "it", classes=3, shape=(1, 2)) == 3
    assert call_plugin(lambda **named: sorted(named), {"depth": 2}, "it", classes=3) == ["classes", "depth"]
    assert call_plugin(lambda classes: classes, {"classes": 4}, "it", classes=3) == 4  # the config's own wins
    assert "TypeError" in refusal(call_plugin, lambda: 3, {"depth": 2}, "it")

    def ours() -> None:
        raise TrimtabError("said by Trimtab")

    with pytest.raises(TrimtabError, match=r"^said by Trimtab$"):
        call_plugin(ours, {}, "it")


def test_one_line() -> None:
    assert one_line(ValueError("\n  a  \nb")) == "ValueError: a"
    assert one_line(KeyError()) == "KeyError"


@pytest.mark.parametrize("name", automl.__all__)
def test_no_exported_name_is_a_module(name: str) -> None:
    """Importing a module of that name would put it in the place of what is exported."""
    package = Path(automl.__file__).parent
    assert not any(file.exists() for file in (package / f"{name}.py", package / name / "__init__.py"))
    assert callable(getattr(automl, name))
