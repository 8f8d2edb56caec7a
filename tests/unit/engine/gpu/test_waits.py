"""What a CUDA graph cannot hold is found on any device."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from engine.gpu.waits import HostWaits, NoWaiting

CPU = torch.device("cpu")
VALUES = torch.arange(16.0).view(4, 4)

Kernel = Callable[[Tensor], Tensor]


@pytest.fixture(params=[True, False], ids=["inference mode", "training"])
def _mode(request: pytest.FixtureRequest) -> Iterator[None]:
    """In inference mode composed operations reach whoever watches in one piece."""
    with torch.inference_mode(request.param):
        yield


WAITING: dict[str, Kernel] = {
    "item": lambda values: values * values.sum().item(),
    "a branch": lambda values: values if (values > 3).any() else -values,
    "where": lambda values: values[torch.where(values > 3)],
    "argwhere": lambda values: torch.argwhere(values),
    "a mask": lambda values: values[values > 3],
    "writing by a mask": lambda values: values.clone().index_put_((values > 11,), torch.zeros(4)),
    "repeat_interleave": lambda values: torch.repeat_interleave(values, values[0].long(), dim=0),
    "allclose": lambda values: values if torch.allclose(values, values) else -values,
    "equal": lambda values: values if torch.equal(values, values) else -values,
    "unique": lambda values: torch.unique(values),
}
HARMLESS: dict[str, Kernel] = {
    "a product": lambda values: torch.nn.functional.linear(values, values),
    "attention": lambda values: torch.nn.functional.scaled_dot_product_attention(values, values, values),
    "where with values": lambda values: torch.where(values > 3, values, 0),
    "indices": lambda values: values[torch.tensor([2, 1])],
    "a number where a mask is": lambda values: values.clone().masked_fill_(values > 3, 0.0),
    "repeat_interleave of known size": lambda values: torch.repeat_interleave(
        values, values[0].long(), dim=0, output_size=6
    ),
}


@pytest.mark.usefixtures("_mode")
@pytest.mark.parametrize("kernel", WAITING.values(), ids=WAITING)
def test_what_waits_is_found(kernel: Kernel) -> None:
    with NoWaiting(CPU), pytest.raises(HostWaits, match="waits for the device"):
        kernel(VALUES)


@pytest.mark.usefixtures("_mode")
@pytest.mark.parametrize("kernel", HARMLESS.values(), ids=HARMLESS)
def test_what_does_not_wait_is_computed_as_ever(kernel: Kernel) -> None:
    with NoWaiting(CPU):
        watched = kernel(VALUES)
    assert torch.equal(watched, kernel(VALUES))


@pytest.mark.usefixtures("_mode")
@pytest.mark.parametrize("key", ["CPU", "CompositeExplicitAutograd"])
def test_it_looks_into_kernels_that_another_library_registered(key: str) -> None:
    # Given an operation of a library, whose kernel is Python and branches on a value, as bitsandbytes' for int8 is
    library = torch.library.Library(f"millrace_{key.lower()}", "DEF")  # type: ignore[no-untyped-call]
    library.define("outliers(Tensor values) -> Tensor")  # type: ignore[no-untyped-call]
    library.impl("outliers", lambda values: values * 2 if (values > 3).any() else values.clone(), key)  # type: ignore[no-untyped-call]
    operation = getattr(torch.ops, f"millrace_{key.lower()}").outliers
    # Then
    with NoWaiting(CPU), pytest.raises(HostWaits):
        operation(VALUES)
    assert torch.equal(operation(VALUES), VALUES * 2)
    library._destroy()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("copy", [lambda far: far.cpu(), lambda far: torch.ones(4).to(far.device)])
def test_a_copy_between_host_and_device_is_found(copy: Kernel) -> None:
    # Given a tensor that is not on the host
    far = torch.empty(4, device="meta")
    # Then
    with NoWaiting(torch.device("meta")), pytest.raises(HostWaits):
        copy(far)


def test_what_happens_on_the_host_beside_the_device_is_nobodys_business() -> None:
    with NoWaiting(torch.device("meta")):
        assert torch.ones(1).item() == 1
