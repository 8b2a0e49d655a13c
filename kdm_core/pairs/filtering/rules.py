"""Rules of the user's: functions that say which samples are kept."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdm_core.errors import KDMError
from kdm_core.networks.module import import_trusted, trusting_code
from kdm_core.pairs.filtering.config import FilterConfig
from kdm_core.samples import SampleSpec
from kdm_core.serialization import file_sha256

Rule = Callable[[Tensor, Tensor], Any]
"""Samples (n, *shape), images in [-1, 1], and labels (n,) → a bool (n,) tensor, True to keep.

Both are on one device, samples as float32, labels as int64, -1 where there are none. A
call has some consecutive pairs, how many may change: what is said of one must not depend on the
others.
"""


class LoadedRule(NamedTuple):
    """A rule, and the SHA-256 of the file that it stands in, if there is one."""

    rule: Rule
    sha256: str


def load_rule(path: str) -> LoadedRule:
    """The rule at `package.module:function`.

    Raises:
        KDMError: nobody trusts it, it is not there, or it is no function.
    """
    found = import_trusted(path, "rules")
    if not callable(found):
        raise KDMError(f"{path} is a {type(found).__name__} and no function; correct the name",
                       field="rules")
    file = getattr(sys.modules[path.partition(":")[0]], "__file__", None)
    return LoadedRule(found, file_sha256(Path(file)) if file else "")


def broken(path: str, rule: Rule, samples: Tensor, labels: Tensor) -> NDArray[np.bool_]:
    """Which samples (n, *shape) break a rule, (n,).

    Raises:
        KDMError: it fails, or returns something else than told in `Rule`.
    """
    try:
        keep: object = rule(samples, labels)
    except Exception as error:  # the user's code can fail in any way
        raise KDMError(f"{path} failed when called with samples of shape {tuple(samples.shape)} "
                       f"and labels of shape {tuple(labels.shape)} ({type(error).__name__}: "
                       f"{error})", field="rules") from error
    if (not isinstance(keep, Tensor) or keep.dtype != torch.bool
            or keep.shape != labels.shape):
        found = (f"{keep.dtype} of shape {tuple(keep.shape)}" if isinstance(keep, Tensor)
                 else type(keep).__name__)
        raise KDMError(f"{path} returned {found} for {len(labels)} samples, and not a bool tensor "
                       f"of shape {tuple(labels.shape)}", field="rules")
    return (~keep).cpu().numpy()


def load_rules(config: FilterConfig, spec: SampleSpec) -> dict[str, LoadedRule]:
    """The rules of a configuration by their paths, each tried with two samples of zeros.

    Raises:
        KDMError: one cannot be used, or nobody trusts the code.
    """
    with trusting_code() if config.trust_code else nullcontext():
        rules = {path: load_rule(path) for path in config.rules}
    labels = torch.full((2,), 0 if spec.num_classes else -1)
    for path, (rule, _) in rules.items():
        broken(path, rule, torch.zeros(2, *spec.shape), labels)
    return rules
