"""What the histories of the fleet are told with."""

from typing import Any

from parsupd.core.effects import (
    Alarm,
    AllDown,
    Effect,
    GroupFailed,
    Publish,
    Shutdown,
    SignalGroup,
    Spawn,
    StormBegan,
    StormEnded,
    Withdraw,
)
from parsupd.core.events import Exited, GroupEmpty, Ready, Spawned, StartDefault
from parsupd.core.fleet import Fleet
from parsupd.core.units import (
    SIGTERM,
    Configuration,
    DaemonSettings,
    Dependency,
    ExitCause,
    GroupSpec,
    InstanceName,
    UnitSpec,
    UnitType,
)

TERMED = ExitCause.signaled(SIGTERM)


def unit(name: str, kind: UnitType = UnitType.SIMPLE, **changes: Any) -> UnitSpec:
    for key in ("requires", "binds_to", "wants", "after"):
        if key in changes:
            changes[key] = tuple(Dependency(other) for other in changes[key].split())
    for key in ("part_of", "conflicts", "on_failure"):
        if key in changes:
            changes[key] = tuple(changes[key].split())
    return UnitSpec(name=name, type=kind, **changes)


class Stage:
    """A fleet, a clock, and somebody who answers for the processes when told to."""

    def __init__(self, *units: UnitSpec, groups: tuple[GroupSpec, ...] = (), **daemon: Any) -> None:
        named = {each.name: each for each in units}
        self.fleet = Fleet(Configuration(DaemonSettings(**daemon), named, {each.name: each for each in groups}))
        self.now = 0.0
        self.generations: dict[InstanceName, int] = {}

    def do(self, event: Any, after_s: float = 0.0) -> list[str]:
        """What the event leads to: spawns, signals and the like in short words; the rest is left out."""
        self.now += after_s
        return [word for effect in self.fleet.handle(event, self.now) if (word := self.short(effect))]

    def short(self, effect: Effect) -> str:
        match effect:
            case Spawn():
                self.generations[effect.instance] = effect.generation
                return f"spawn {effect.instance}"
            case SignalGroup():
                return f"signal {effect.instance} {effect.signal}"
            case Publish():
                return f"publish {effect.instance}"
            case Withdraw():
                return f"withdraw {effect.instance}"
            case Shutdown():
                return f"shutdown {effect.exit_code}"
            case AllDown():
                return f"all down {effect.exit_code}"
            case Alarm():
                return f"{'alarm' if effect.started else 'no alarm'} {effect.unit} for {effect.instance}"
            case GroupFailed():
                return f"group {effect.group} failed"
            case StormBegan():
                return "storm"
            case StormEnded():
                return "calm"
            case _:
                return ""

    def up(self, name: str) -> list[str]:
        """The process exists; a worker is ready."""
        instance = InstanceName.parse(name)
        generation = self.generations[instance]
        effects = self.do(Spawned(instance, generation, 100))
        if self.fleet.spec(instance).type is UnitType.WORKER:
            effects += self.do(Ready(instance, generation, f"PYRO:{name}@./u:/run/{name}"))
        return effects

    def down(self, name: str, cause: ExitCause = TERMED) -> list[str]:
        """The process ends and leaves nobody behind."""
        instance = InstanceName.parse(name)
        generation = self.generations[instance]
        return self.do(Exited(instance, generation, cause)) + self.do(GroupEmpty(instance, generation))

    def states(self) -> dict[str, str]:
        return {each.name: each.sub_state.value for each in self.fleet.status()}


def up(*units: UnitSpec, **settings: Any) -> Stage:
    """All units, started in order and ready."""
    stage = Stage(*units, **settings)
    spawned = [word.removeprefix("spawn ") for word in stage.do(StartDefault())]
    while spawned:
        spawned += [word.removeprefix("spawn ") for word in stage.up(spawned.pop(0)) if word.startswith("spawn ")]
    return stage
