"""What a student's losses have seen: no figure in it is a fair judge of the student."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

NETS = {"vgg": "vgg16", "alex": "alexnet"}
"""The networks of LPIPS."""


class Seen(NamedTuple):
    """Terms of a student's losses, by what they have seen.

    Attributes:
        networks: frozen networks by name (`vgg16`, `alexnet`, `classifier`, `teacher`), each with
            the terms in which it took part.
        real: the terms that took the training samples as real.
    """

    networks: Mapping[str, Sequence[str]]
    real: Sequence[str]


NOTHING = Seen({}, [])


def seen(provenance: Mapping[str, Any]) -> Seen:
    """What the losses of all phases have seen, by a student's own record.

    Args:
        provenance: as `KDM.provenance`, with the `losses` of each of its `phases`, or of the one
            that there was. A student without a record has seen nothing that is known.
    """
    networks: dict[str, list[str]] = {}
    real: list[str] = []
    for phase in recorded_phases(provenance):
        for term, names, takes_real in terms(phase.get("losses", {})):
            for place in (*(networks.setdefault(name, []) for name in names),
                          *([real] if takes_real else [])):
                if term not in place:
                    place.append(term)
    return Seen(networks, real)


def trains_states(provenance: Mapping[str, Any]) -> bool:
    """Whether a loss had a student decode states between noise and sample, by its own record."""
    return any(phase.get("losses", {}).get("trajectory") for phase in recorded_phases(provenance))


def recorded_phases(provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The `losses` and `training` of all phases that a student's own record has."""
    phases = provenance.get("phases") or [provenance]
    return [{key: phase[key] for key in ("losses", "training") if key in phase}
            for phase in phases]


def terms(losses: Mapping[str, Any]) -> Iterator[tuple[str, list[str], bool]]:
    """Terms that have a weight: name, networks, and whether training samples are real to it.

    Args:
        losses: a `LossConfig` as JSON has it, also one of an earlier version.
    """
    distance = losses.get("distance", {})
    if distance.get("kind") == "lpips" and any(
            losses.get(name) for name in ("reconstruction", "prediction", "trajectory")):
        yield "LPIPS distance", [NETS[distance["net"]]], False
    if losses.get("adversarial"):
        adversary = losses["adversary"]
        # Before there was a choice of features, they were VGG16's.
        features = adversary.get("features", [{"kind": "vgg16"}])
        yield ("adversary", kinds(features) if adversary["network"] == "features" else [],
               adversary.get("real") == "data")
    if losses.get("drifting"):
        drift = losses["drift"]
        yield "drifting", kinds(drift["features"]), drift["real"] == "data"


def kinds(features: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(config["kind"]) for config in features]
