"""Templates: which units they make, with which strings, and what is refused."""

import pytest
from test_unitfile import problems

from parsupd.core.unitfile import ConfigurationError, parse, with_made
from parsupd.core.units import Configuration

MAIN = "/etc/a.toml"
MIRROR = """
[unit."mirror@"]
type = "simple"
description = "100%% of %i"
exec = ["mirror", "%i", "--as=%n"]
environment = { REGION = "%i" }
"""


def read(text: str) -> Configuration:
    return parse([(MAIN, text)], MAIN)


def test_a_template_makes_a_unit_of_each_argument() -> None:
    """With the argument, the name and a percent sign in all strings; they are started with parsupd, and have copies."""
    made = read(MIRROR + 'instantiate = ["eu", "us-2"]\ninstances = 2').units
    assert list(made) == ["mirror@eu", "mirror@us-2"]
    spec = made["mirror@us-2"]
    assert spec.exec == ("mirror", "us-2", "--as=mirror@us-2")
    assert (spec.description, spec.environment, spec.enabled) == ("100% of us-2", {"REGION": "us-2"}, True)
    assert [str(name) for name in spec.instance_names] == ["mirror@us-2@1", "mirror@us-2@2"]


def test_whoever_names_a_unit_of_a_template_makes_it() -> None:
    """In any file and any key, from another template too; it comes up with who needs it, not by itself."""
    text = '[unit.web]\ntype = "simple"\nexec = ["x"]\nrequires = ["app@1"]\n[group.g]\nunits = ["db@2"]'
    app = '[unit."app@"]\ntype = "simple"\nexec = ["x"]\nbinds_to = ["db@%i"]\n'
    db = '[unit."db@"]\ntype = "simple"\nexec = ["x"]\n'
    units = parse([(MAIN, text), ("/etc/b.toml", app), ("/etc/c.toml", db)], MAIN).units
    assert list(units) == ["web", "app@1", "db@2", "db@1"] or set(units) == {"web", "app@1", "db@2", "db@1"}
    assert [units[name].enabled for name in ("web", "app@1", "db@1", "db@2")] == [True, False, False, False]
    assert units["db@1"].source == "/etc/c.toml"


def test_percent_signs_of_other_units_mean_themselves() -> None:
    """Only templates have specifiers."""
    assert read('[unit.a]\ntype = "simple"\nexec = ["date", "+%i"]').units["a"].exec == ("date", "+%i")


HEAD = '[unit."m@"]\ntype = "simple"\nexec = ["x"]\n'
REFUSED: dict[str, list[str]] = {
    HEAD + 'description = "%d"': ["a.toml:1: unit.m@: has '%d' in '%d'; there are %i, the argument, %n, the name, and %%"],
    HEAD + 'umask = "999"': [
        'a.toml:4: unit.m@.umask: must be a string of octal digits such as "022", not \'999\'',
    ],
    HEAD + 'instantiate = ["a/b", ""]': ["a.toml:4: unit.m@.instantiate[1]: must not be empty"],
    HEAD + 'instantiate = ["a/b"]': [
        "a.toml:4: unit.m@.instantiate[0]: 'a/b' must be letters, digits, dots, dashes and underscores, 128 with the name"
    ],
    HEAD + '[unit.m]\ntype = "simple"\nexec = ["x"]': [
        "a.toml:1: unit.m@: there is a unit 'm': its copies have names as this makes units"
    ],
    HEAD + 'instantiate = ["x"]\nrequires = ["n"]': ["a.toml:5: unit.m@x.requires[0]: there is no unit 'n'"],
    HEAD + 'instantiate = ["x"]\nrequires = ["m@%ix"]': ["a.toml:5: unit.m@xxx"],
    '[unit."m@b"]\ntype = "simple"\nexec = ["x"]\n[unit.a]\ntype = "simple"\nexec = ["x"]\nrequires = ["n@1"]': [
        "a.toml:1: unit.m@b: a unit's name has letters, digits, dots, dashes and underscores, 128 at most",
        "a.toml:7: unit.a.requires[0]: there is no unit 'n@1'",
    ],
    '[unit."@"]\ntype = "simple"\nexec = ["x"]': [
        "a.toml:1: unit.@: a template's name has letters, digits, dots, dashes and underscores before the @"
    ],
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text: str) -> None:
    """At the place of the template, whether it makes units yet or not; one that makes others without end, too."""
    for found, expected in zip(problems(text), REFUSED[text], strict=True):
        assert found.startswith(expected)


def test_a_template_makes_units_later() -> None:
    """With those that they name; what is there stays as it is, and what cannot be changes nothing."""
    before = read(
        '[unit."a@"]\ntype = "simple"\nexec = ["%i"]\nrequires = ["b@%i"]\n[unit."b@"]\ntype = "simple"\nexec = ["x"]'
    )
    assert not before.units
    after = with_made(with_made(before, "a@1"), "a@2")
    assert list(after.units) == ["a@1", "b@1", "a@2", "b@2"]
    assert {(spec.transient, spec.enabled) for spec in after.units.values()} == {(True, False)}
    broken = read(
        '[unit."a@"]\ntype = "simple"\nexec = ["x"]\nconflicts = ["%i"]\n[unit.b]\ntype = "simple"\nexec = ["x"]'
    )
    assert list(with_made(broken, "a@b").units) == ["b", "a@b"]
    with pytest.raises(ConfigurationError, match="there is no unit 'c'"):
        with_made(broken, "a@c")
