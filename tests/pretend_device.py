"""A pretended accelerator: tensors that hold their numbers on the CPU and refuse what CUDA would refuse.

Code that leaves a tensor on the CPU, or draws with a CPU generator where a device is asked for, fails here as it would
on a GPU, on a machine that has none. Autograd, `torch.func` and branches on values work as usual. It takes torch's
backend for Python (PrivateUse1), of which a process has one, and which must be there before the first backward pass:
import this file in a process of its own (`test_pretend_device.py` starts one).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("pretend")
DEVICE = torch.device("pretend:0")

_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
"""What may read from one device and write to another."""

_NO_SCALARS = {_aten.cat.default, _aten.stack.default, _aten.mm.default, _aten.bmm.default, _aten.addmm.default}
"""Where CUDA refuses CPU tensors without dimensions too; arithmetic takes them for numbers."""

_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
"""Where CUDA takes its indices from the CPU too."""


class DevicesMeet(RuntimeError):
    """What CUDA would have refused."""


class PretendTensor(torch.Tensor):
    """A tensor that says it is on `DEVICE`; its numbers are in `held`, on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> PretendTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    @property
    def is_cuda(self) -> bool:
        """True, so that code takes the way that it takes on a GPU."""
        return True

    def numpy(self, *_: Any, **__: Any) -> None:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu()")

    __array__ = numpy

    def tolist(self) -> Any:
        return self.held.tolist()

    def __format__(self, how: str) -> str:
        return format(self.held.detach(), how)

    def __repr__(self) -> str:
        return f"PretendTensor({self.held!r})"

    # torch makes tensors of lists by itself, on the device, where only a mode could: give it indices from the CPU
    def __getitem__(self, place: Any) -> torch.Tensor:
        return super().__getitem__(torch.tensor(place) if isinstance(place, list) else place)

    def __setitem__(self, place: Any, values: Any) -> None:
        super().__setitem__(torch.tensor(place) if isinstance(place, list) else place, values)

    @classmethod
    def __torch_dispatch__(
        cls, operation: torch._ops.OpOverload, _: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return _run(operation, args, kwargs or {})


class PretendDevice(TorchDispatchMode):
    """While it is entered, `device=DEVICE` makes tensors there: without tensors, an operation has no other way here."""

    def __torch_dispatch__(
        self, operation: torch._ops.OpOverload, _: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return _run(operation, args, kwargs or {})

    def __enter__(self) -> PretendDevice:
        self._tensor = torch.tensor
        torch.tensor = _through_the_cpu(self._tensor)
        # a device's own thread would lose what is raised in a backward pass, and wait for this one at every operation
        self._one_thread = torch.autograd.set_multithreading_enabled(False)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.tensor = self._tensor
        self._one_thread.__exit__(*error)
        super().__exit__(*error)


def _through_the_cpu(tensor: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`torch.tensor`, which fills its result without asking any mode, and so can fill one on the CPU alone."""

    @functools.wraps(tensor)
    def made(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        return tensor(data, **options) if device is None else tensor(data, **options).to(device)

    return made


def _run(operation: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The operation on the numbers that are held, after a look at where its tensors are."""
    given = _flat([*args, *kwargs.values()])
    here = any(isinstance(leaf, PretendTensor) for leaf in given)
    asked = kwargs.get("device")
    result_is_here = here if asked is None else torch.device(asked).type == DEVICE.type
    if not here and not result_is_here:
        return operation(*args, **kwargs)
    if result_is_here and any(isinstance(leaf, torch.Generator) for leaf in given):
        raise DevicesMeet(f"{operation}: a CPU generator cannot fill a tensor on {DEVICE}")
    if here:
        _check_devices(operation, args, given)

    held_args, held_kwargs = _held(args), {name: _held(value) for name, value in kwargs.items()}
    if asked is not None:
        held_kwargs = held_kwargs | {"device": torch.device("cpu")}
    found = operation(*held_args, **held_kwargs)
    if operation is _aten._to_copy.default:  # a copy, also where nothing changes and the CPU returns its input
        found = found.clone() if found is held_args[0] else found
    if not result_is_here or not any(isinstance(leaf, torch.Tensor) for leaf in _flat([found])):
        return found
    return return_and_correct_aliasing(operation, args, kwargs, _here(found))


def _flat(things: Iterable[Any]) -> list[Any]:
    """What an operation takes or gives, lists of tensors taken apart; torch's own pytrees take as long as the rest."""
    leaves = []
    for thing in things:
        leaves.extend(thing) if isinstance(thing, list | tuple) else leaves.append(thing)
    return leaves


def _held(thing: Any) -> Any:
    """The same with what its tensors hold on the CPU."""
    if isinstance(thing, list | tuple):
        return type(thing)(map(_held, thing))
    return thing.held if isinstance(thing, PretendTensor) else thing


def _here(found: Any) -> Any:
    """The same with its tensors on the device."""
    if isinstance(found, list | tuple):
        return type(found)(map(_here, found))
    return PretendTensor(found) if isinstance(found, torch.Tensor) else found


def _check_devices(operation: torch._ops.OpOverload, args: tuple, given: list) -> None:
    """Raise `DevicesMeet` where tensors on both devices meet, except where CUDA lets them."""
    elsewhere = [leaf for leaf in given if isinstance(leaf, torch.Tensor) and not isinstance(leaf, PretendTensor)]
    if operation in _COPIES or not elsewhere:
        return
    if operation._schema.name.removeprefix("aten::") in _INDEXING:
        values = args[2] if len(args) > 2 else args[0]
        if isinstance(args[0], PretendTensor) and (isinstance(values, PretendTensor) or not values.ndim):
            return
    elif all(not tensor.ndim for tensor in elsewhere) and operation not in _NO_SCALARS:
        return
    met = ", ".join(f"{leaf.device} {list(leaf.shape)}" for leaf in given if isinstance(leaf, torch.Tensor))
    raise DevicesMeet(f"{operation}: expected all tensors to be on the same device, got {met}")
