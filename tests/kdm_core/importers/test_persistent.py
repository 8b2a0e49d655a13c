"""Reading pickled networks of EDM and EDM2: what is read, and that nothing is executed."""

import os
import pickle
import random
import resource
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdm_core.errors import DataError
from kdm_core.importers.persistent import PersistentObject, read_checkpoint
from kdm_core.pickles import MAX_STEPS, read_pickle
from tests.support.edm_writer import EasyDict, Recorded, dump, mutate, published_modules, snapshot

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32,
          torch.int16, torch.int8, torch.uint8, torch.bool]
LOAD = b"ctorch.storage\n_load_from_bytes\n"


def module(**tensors: Tensor) -> Recorded:
    made = Recorded("Linear")
    made.parameters = {name: nn.Parameter(tensor, requires_grad=False)
                       for name, tensor in tensors.items()}
    return made


def small() -> Recorded:
    """A module with a container, buffers, None entries and a NumPy number."""
    top = Recorded("EDMPrecond", {"sigma_data": 0.5, "channel_mult": [1, 2]}, rate=np.float64(0.25))
    top.modules["enc"] = nn.ModuleDict()
    top.modules["enc"]._modules["8x8_conv"] = module(weight=torch.randn(2, 3), bias=torch.ones(2))
    top.modules["missing"] = None
    top.parameters = {"bias": None}
    top.buffers = {"u": torch.arange(5.0), "filter": None}
    return top


def read_tensor(content: bytes) -> Tensor:
    tensor = read_checkpoint(content, "f")["x"]
    assert isinstance(tensor, Tensor)
    return tensor


# What is read


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_object_is_read_as_it_was_recorded(protocol: int) -> None:
    written = small()
    document = read_checkpoint(snapshot(written, protocol), "f")
    assert list(document) == ["ema", "loss_fn", "augment_pipe", "dataset_kwargs"]
    read = document["ema"]
    assert (read.class_name, read.args) == ("EDMPrecond", ())
    assert read.kwargs == {"sigma_data": 0.5, "channel_mult": [1, 2]}
    assert read.attributes["rate"] == 0.25 and type(read.attributes["rate"]) is float
    assert read.parameters == {} and list(read.buffers) == ["u"] and list(read.modules) == ["enc"]
    assert read.modules["enc"].class_name == "ModuleDict"
    tensors = read.tensors()
    assert list(tensors) == ["u", "enc.8x8_conv.weight", "enc.8x8_conv.bias"]
    layer = written["enc.8x8_conv"].parameters
    assert torch.equal(tensors["enc.8x8_conv.weight"], layer["weight"])
    assert document["loss_fn"].attributes["P_mean"] == -1.2
    assert document["dataset_kwargs"] == {"path": "images.zip", "options": {"use_labels": True}}


def test_a_bare_object_is_the_averaged_network() -> None:
    document = read_checkpoint(dump(small()), "f")
    assert list(document) == ["ema"] and document["ema"].class_name == "EDMPrecond"


def test_containers_are_modules() -> None:
    top = Recorded("Net")
    top.modules = {"list": nn.ModuleList(), "chain": nn.Sequential()}
    for container in top.modules.values():
        container._modules["0"] = module(weight=torch.ones(1))
    read = read_checkpoint(dump(top), "f")["ema"]
    assert list(read.tensors()) == ["list.0.weight", "chain.0.weight"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_keep_type_and_values(dtype: torch.dtype, protocol: int) -> None:
    values = (torch.randn(3, 4) * 50).to(dtype)
    read = read_tensor(pickle.dumps({"x": values}, protocol))
    assert read.dtype == dtype and torch.equal(read, values)


@pytest.mark.parametrize("view", [
    lambda x: x.t(), lambda x: x[1:, ::2], lambda x: x[2, 3], lambda x: x[:0], lambda x: x[1],
    lambda x: x[None].expand(3, -1, -1), lambda x: x[:, :, None, None].to(
        memory_format=torch.channels_last),
], ids=["turned", "strided", "scalar", "empty", "row", "expanded", "channels last"])
def test_views_are_copied(view: Callable[[Tensor], Tensor]) -> None:
    values = view(torch.randn(4, 6))
    read = read_tensor(pickle.dumps({"x": values, "more": bytes(1000)}))
    assert torch.equal(read, values) and read.is_contiguous()
    read += 1  # they can be written


@settings(max_examples=100)
@given(st.data())
def test_only_what_lies_in_a_storage_is_read(data: st.DataObject) -> None:
    """Any offset, size and stride: the same as torch's `as_strided`, or refused as by it."""
    base = torch.arange(24.0)
    (_, (storage, *_)) = base.__reduce_ex__(2)
    numbers = st.integers(-2, 9)
    size = tuple(data.draw(st.lists(numbers, max_size=3)))
    stride = tuple(data.draw(st.lists(numbers, min_size=len(size), max_size=len(size))))
    offset = data.draw(st.integers(-3, 30))

    class Claim:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch._utils._rebuild_tensor_v2, (
                storage, offset, size, stride, False, OrderedDict())

    content = pickle.dumps({"x": Claim(), "more": bytes(20_000)})
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    valid = min((offset, *size, *stride)) >= 0 and (0 in size or last < 24)
    if valid:
        expected = torch.empty(size) if 0 in size else base.as_strided(size, stride, offset)
        assert torch.equal(read_tensor(content), expected)
    else:
        with pytest.raises(DataError, match="f: "):
            read_tensor(content)


# What is refused


class Exploit:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["value", "kwargs", "attribute", "parameter"])
def test_code_is_named_and_not_run(protocol: int, place: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    exploit: Any = Exploit(canary)
    top = small()
    document = {"ema": top}
    if place == "value":
        document["loss_fn"] = exploit
    elif place == "kwargs":
        top.kwargs = {"x": exploit}
    elif place == "attribute":
        top.attributes = {"x": exploit}
    else:
        top.parameters = {"x": exploit}
    content = dump(document, protocol)
    with pytest.raises(DataError, match=r"f: the pickle asks for (posix|nt)\.system,"):
        read_checkpoint(content, "f")
    assert not canary.exists()
    pickle.loads(pickle.dumps(exploit))
    assert canary.exists()  # it does work


@pytest.mark.parametrize("name", [
    "os\nsystem", "builtins\neval", "builtins\ngetattr", "torch\nload", "torch.hub\nload",
    "kdm_core.importers.persistent\nread_checkpoint", "torch._utils\n_rebuild_qtensor",
    "torch.nn.modules.container\nParameterDict", "dnnlib.util\nopen_url",
])
def test_other_names_are_refused(name: str) -> None:
    full = name.replace("\n", ".").replace(".", r"\.")
    with pytest.raises(DataError, match=f"f: the pickle asks for {full},"):
        read_checkpoint(b"\x80\x02c" + name.encode() + b"\n.", "f")
    nested = b"\x80\x02c" + name.encode() + b"\n."
    with pytest.raises(DataError, match=full):
        read_checkpoint(b"\x80\x02" + LOAD + b"B" + struct.pack("<I", len(nested)) + nested
                        + b"\x85R.", "f")


def test_the_recorded_source_is_not_executed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    top = small()
    top.source = f"open({str(canary)!r}, 'w').close()"
    exec(top.source)
    canary.unlink()  # it would work
    read_checkpoint(dump(top), "f")
    assert not canary.exists()


def test_another_version_of_the_format_is_refused() -> None:
    top = small()
    top.version = 7
    with pytest.raises(DataError, match="f: version 7 of torch_utils.persistence, expected 6"):
        read_checkpoint(dump(top), "f")


@pytest.mark.parametrize("value", [[1, 2], {1: 2}, "text", None], ids=str)
def test_other_documents_are_refused(value: Any) -> None:
    with pytest.raises(DataError, match="f: expected a dictionary of networks"):
        read_checkpoint(pickle.dumps(value), "f")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04", b"<html>", b"\x80\x04}"])
def test_other_files_are_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="^f"):
        read_checkpoint(content, "f")


def endless_tree(levels: int) -> bytes:
    """Containers that each hold the one below twice: few bytes, 2^levels modules."""
    made = b"\x80\x02"
    name = b"X\x08\x00\x00\x00_modules"
    for level in range(levels):
        below = b"h" + bytes([level - 1]) if level else b"N"
        made += (b"ctorch.nn.modules.container\nModuleDict\n)\x81}" + name + b"}X\x01\x00\x00\x00a"
                 + below + b"sX\x01\x00\x00\x00b" + below + b"ssbq" + bytes([level]))
    return made + b"."


def own_child(times: int) -> bytes:
    """A container that holds itself under so many names."""
    names = b"".join(b"X\x05\x00\x00\x00%05dh\x00" % number for number in range(times))
    return (b"\x80\x02ctorch.nn.modules.container\nModuleDict\n)\x81q\x00}X\x08\x00\x00\x00_modules"
            b"}(" + names + b"usb.")


def many_copies() -> bytes:
    """One storage of 400 kB, made into a tensor a thousand times."""
    start = pickle.dumps({"x": torch.zeros(100_000)}, 3)
    storage = start[start.index(b"ctorch.storage"):start.index(b"Rq") + 1] + b"q\x63"
    tensor = (b"ctorch._utils\n_rebuild_tensor_v2\n(h\x63K\x00J\xa0\x86\x01\x00\x85K\x01\x85\x89N"
              b"tR")
    return b"\x80\x02" + storage + tensor * 1000 + b"."


BOMBS: dict[str, bytes] = {
    "memo": b"\x80\x02}r\xff\xff\xff\x7f.",
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b"X\xff\xff\xff\x7f.",
    "long": b"\x80\x02\x8b" + struct.pack("<I", 2**31 - 1) + b".",
    "sets": b"\x80\x04" + b"\x8f" * (MAX_STEPS + 1) + b".",
    "nested key": b"\x80\x02})" + b"\x85" * 300_000 + b"Ns.",
    "doubled key": b"\x80\x02})" + b"\x85q\x00h\x00\x86" * 200 + b"Ns.",
    "doubled name": b"\x80\x04)" + b"\x85q\x00h\x00\x86" * 200 + b"\x8c\x01x\x93.",
    "nested tuples": b"\x80\x02)" + b"\x85" * 900_000 + b".",
    "nested lists": b"\x80\x02" + b"]" * 400_000 + b"a" * 399_999 + b".",
    "marks": b"\x80\x02" + b"(" * 500_000 + b"t" * 400_000 + b".",
    "nothing to pop": b"\x80\x02\x86.",
    "no memo": b"\x80\x02h\x05.",
    "odd items": b"\x80\x02}(Nu.",
    "items of none": b"\x80\x02N(NNu.",
    "state of a name": b"\x80\x02cnumpy\ndtype\n}b.",
    "call of a type": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "state of a list": b"\x80\x02]}b.",
    "copies of a tensor": many_copies(),
}


@pytest.mark.parametrize("read", [read_checkpoint, read_pickle])
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_little_time_and_memory(
    name: str, read: Callable[[bytes, str], Any]
) -> None:
    began, memory = time.perf_counter(), peak_memory()
    with pytest.raises(DataError, match="^f"):
        read(BOMBS[name], "f")
    assert time.perf_counter() - began < 10  # seconds; they take fewer than two
    assert peak_memory() - memory < 600 * 2**20  # sets: 2^20 of 216 bytes


def peak_memory() -> int:
    """Bytes, at most since the process began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("content", [endless_tree(17), endless_tree(60), own_child(1),
                                     own_child(60_000)],
                         ids=["wide", "deep", "endless", "endless and wide"])
def test_trees_larger_than_networks_are_refused(content: bytes) -> None:
    read = read_checkpoint(content, "f")["ema"]
    with pytest.raises(DataError, match="deeper or larger"):
        read.tensors()
    assert read_checkpoint(endless_tree(10), "f")["ema"].tensors() == {}


def test_a_storage_shorter_than_it_says_is_refused() -> None:
    content, end = pickle.dumps({"x": torch.arange(6.0)}, 4), struct.pack("<q", 6)
    assert content.count(end) == 1
    for count in (5, 7, 2**60, -1):
        with pytest.raises(DataError, match="f: .*elements"):
            read_checkpoint(content.replace(end, struct.pack("<q", count)), "f")


# Random damage


def test_damaged_files_are_read_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    originals = [snapshot(small(), protocol) for protocol in (2, 3, 4)]
    memory = peak_memory()
    for _ in range(6000):
        try:
            document = read_checkpoint(mutate(source.choice(originals), source), "f")
            for value in document.values():
                if isinstance(value, PersistentObject):
                    value.tensors()
            outcomes["read"] += 1
        except DataError:
            outcomes["refused"] += 1
    assert not any(tmp_path.iterdir())
    assert peak_memory() - memory < 300 * 2**20
    assert min(outcomes.values()) > 50, outcomes  # changed texts do no harm


def test_pickles_of_these_names_really_use_them() -> None:
    """The writer of the tests writes the globals that published files have."""
    with published_modules():
        content = dump({"ema": small(), "x": EasyDict()})
    for name in (b"torch_utils.persistence", b"_reconstruct_persistent_obj", b"dnnlib.util",
                 b"EasyDict", b"_rebuild_parameter", b"_rebuild_tensor_v2", b"_load_from_bytes"):
        assert content.count(name) == 1
