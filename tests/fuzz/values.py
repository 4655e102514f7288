"""What the fuzzing feeds in: tensors of every kind, numbers at the edges, and things that are no numbers at all."""

import math

import torch
from hypothesis import strategies as st

NAN, INF = math.nan, math.inf
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
ALL_DTYPES = (*FLOATS, *INTEGERS, torch.bool, torch.complex64, torch.uint16, torch.uint32, torch.float8_e4m3fn)
SPECIAL = (NAN, INF, -INF, 0.0, -0.0, 1e-45, -1e-45, 1e-300, 1e30, -1e30, 3e38, -3e38, 1e39, 1e300, -1e300, 1.7e308)

seeds = st.integers(0, 2**20)
numbers = st.one_of(
    st.floats(0.0, 3.0),
    st.sampled_from([0, 1, 2, 3, 10, -1, 1e-320, 1e-9, 1e9, 1e300, -1e-3, 10**400, True, False, *SPECIAL]),
)
odd_values = st.sampled_from(
    [
        None, "", "text", "0.5", b"x", (), [], [1.0], [1.0, 2.0], ["a", "b"], [[1], [2, 3]], {}, {"a": 1}, 1j, object(),
        torch.tensor(1.0), torch.tensor([]), torch.tensor([1.0, 2.0]), torch.tensor([True, False]), torch.tensor(1j),
        torch.eye(2), [NAN, 1.0], [INF, 0.0], [1e308, 1e308], [-1.0, 1.0], [0.0, 0.0], [10**400, 1],
    ]
)  # fmt: skip
anything = st.one_of(numbers, odd_values)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@st.composite
def floats(draw, shape, *, dtypes=FLOATS, specials=SPECIAL):
    """A floating tensor of ``shape``: ordinary numbers, ties or numbers of every size, with special ones among them."""
    generator, dtype = seeded(draw(seeds)), draw(st.sampled_from(dtypes))
    kind = draw(st.sampled_from(["ordinary", "ties", "zeros", "wide"]))
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * 3
    if kind == "ties":
        values = values.round()
    elif kind == "zeros":
        values = torch.zeros(shape, dtype=torch.float64)
    elif kind == "wide":
        values = values * 10 ** (torch.rand(shape, generator=generator, dtype=torch.float64) * 12 - 6)
    if values.numel() and specials:
        places = st.tuples(st.integers(0, values.numel() - 1), st.sampled_from(specials))
        for place, special in draw(st.lists(places, max_size=3)):
            values.view(-1)[place] = special
    return draw(laid_out(values.to(dtype)))


@st.composite
def integers(draw, shape, stop, *, dtypes=INTEGERS, one_in=12):
    """An integer tensor of ``shape``, but one time in so many in [0, stop)."""
    values = torch.randint(0, max(stop, 1), shape, generator=seeded(draw(seeds)))
    if values.numel() and draw(st.integers(1, one_in)) == one_in:
        values.view(-1)[draw(st.integers(0, values.numel() - 1))] = draw(
            st.sampled_from([-1, stop, stop + 1, -100, 127])
        )
    return draw(laid_out(values.to(draw(st.sampled_from(dtypes)))))


@st.composite
def laid_out(draw, tensor):
    """The same values in another layout in memory; now and then with one row repeated, or asking for gradients."""
    layout = draw(st.sampled_from(["plain", "plain", "strided", "turned", "offset", "expanded", "gradient"]))
    if layout == "strided":
        return torch.stack([tensor, tensor], dim=-1)[..., 0]
    if layout == "turned" and tensor.ndim > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "offset" and tensor.ndim and len(tensor):
        return torch.cat([tensor[:1], tensor])[1:]
    if layout == "expanded" and tensor.ndim and len(tensor):
        return tensor[:1].expand(tensor.shape)
    if layout == "gradient" and tensor.is_floating_point():
        return tensor.detach().clone().requires_grad_()
    return tensor


@st.composite
def any_tensor(draw):
    """A tensor of any dtype, of 0 to 3 axes."""
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    return torch.randn(shape, generator=seeded(draw(seeds))).mul(2).to(draw(st.sampled_from(ALL_DTYPES)))


sparse_tensors = st.sampled_from([torch.eye(3).to_sparse(), torch.ones(3).to_sparse()])


def mostly(strategy, other, *, one_in=8):
    """``strategy``, and one time in so many ``other``."""
    return st.integers(1, one_in).flatmap(lambda number: other if number == one_in else strategy)
