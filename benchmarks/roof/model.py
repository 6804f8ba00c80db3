"""The least time of a launch: the cycles that its instructions ask of each pipe, and the bytes that it must move."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from . import nvcc
from .card import OF_BANDWIDTH, OF_PIPES, Card
from .compiling import CompiledKernel, compiled
from .cuda_kernels import CudaLaunch
from .flow import Flow, Loop
from .pipes import PIPES, TENSOR, cycles
from .recording import AnyLaunch, KernelLaunch, LibraryLaunch
from .rows import LaunchRoof
from .sass import Instruction, parse
from .source import headers_of, is_rare, text_of
from .trips import TRIPS, Trips

MEMORY = "memory"
LAUNCH = "launch"
MOVES = ("LDG", "STG", "LDGSTS")  # between a thread and global memory
WIDEST = 16


class UnknownLoop(ValueError):
    """A kernel or a loop of it that TRIPS has no row for."""


def weights(flow: Flow, trips: Trips, programs: int) -> Iterator[tuple[int, float]]:
    """How often each instruction is executed by a warp of each program, all programs together.

    Args:
        flow: the kernel's.
        trips: how often its loops are gone through.
        programs: all of the launch; those that have nothing to do leave at the first exit.

    Raises:
        UnknownLoop: a loop that `trips` does not have.
    """
    code = flow.instructions
    early = next((i for i, each in enumerate(code) if each.base == "EXIT"), 0)
    counts = dict(_counts(flow, flow.loops, trips, trips.programs))
    skipped = _skipped(flow, {loop for loop, count in counts.items() if count == 0})
    every = [(place, programs if place <= early else trips.programs) for place in flow.straight()]
    every += [(place, count) for loop, count in counts.items() for place in loop.own()]
    for place, count in every:
        yield place, 0 if place in skipped else count * _share(code[place], trips.shares)


def _share(instruction: Instruction, shares: Mapping[str, float]) -> float:
    """What part of the warps executes an instruction."""
    text = " < ".join(text_of(line) for line in instruction.lines) if shares else ""
    return min((share for part, share in shares.items() if in_order(part.split(" < "), text)), default=1.0)


def in_order(parts: Iterable[str], text: str) -> bool:
    """Whether a text has some parts, one behind the other.

    Example:
        >>> in_order(["a", "c"], "abc"), in_order(["c", "a"], "abc")
        (True, False)
    """
    place = 0
    for part in parts:
        place = text.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


def _counts(flow: Flow, loops: Iterable[Loop], trips: Trips, outside: float) -> Iterator[tuple[Loop, float]]:
    """Of each loop how often it is gone through; one that the compiler made, once where it stands."""
    for loop in loops:
        headers = headers_of(flow, loop)
        known = [trips.loops[header] for header in headers if header in trips.loops]
        if is_rare(flow, loop) or known[:1] == [0]:
            yield from ((each, 0.0) for each in loop.all())
            continue
        if headers and not known:
            raise UnknownLoop(f"it has a loop {headers[0]!r}; trips.py knows {', '.join(trips.loops) or 'none'}")
        count = known[0] if known else outside
        yield loop, count
        yield from _counts(flow, loop.inner, trips, count)


def _skipped(flow: Flow, never: Collection[Loop]) -> set[int]:
    """What lies behind a branch that leads to loops which are never gone through, and to no other."""
    loops = [each for loop in flow.loops for each in loop.all()]
    found: set[int] = set()
    for after in flow.successors:
        for block in after if len(after) > 1 else ():
            behind = frozenset(flow.behind(block))
            inside = [loop for loop in loops if loop.places <= behind]
            if inside and all(loop in never for loop in inside):
                found |= behind
    return found


def sums(flow: Flow, trips: Trips, programs: int, warps: int) -> dict[str, float]:
    """Cycles of one multiprocessor by pipe, for all of a launch's programs."""
    found = dict.fromkeys(PIPES, 0.0)
    for place, count in weights(flow, trips, programs):
        for pipe, each in cycles(flow.instructions[place]).items():
            found[pipe] += each * count * warps
    return found


def copies(flow: Flow, trips: Trips, programs: int) -> dict[str, float]:
    """Of what goes between threads and global memory, each way, the part that goes 16 bytes a thread."""
    moved, wide = dict.fromkeys(MOVES, 0.0), dict.fromkeys(MOVES, 0.0)
    for place, count in weights(flow, trips, programs):
        instruction = flow.instructions[place]
        if instruction.base in MOVES:
            moved[instruction.base] += instruction.width * count
            wide[instruction.base] += instruction.width * count * (instruction.width >= WIDEST)
    return {name: round(wide[name] / moved[name], 3) for name in MOVES if moved[name]}


def roof_of(launch: AnyLaunch | CudaLaunch, card: Card) -> LaunchRoof:
    """The least time of one launch on a card."""
    if isinstance(launch, LibraryLaunch):
        return _of_library(launch, card)
    if isinstance(launch, CudaLaunch):
        return _of_cuda(launch, card)
    return _of_kernel(launch, card)


def _of_library(launch: LibraryLaunch, card: Card) -> LaunchRoof:
    memory = 1e6 * launch.bytes / card.bandwidth
    product = 1e6 * launch.operations / (card.products32 if launch.wide else card.products16)
    return _limited(LaunchRoof(launch.name, memory, 0.0, "", {TENSOR: product} if product else {}), card)


def _of_kernel(launch: KernelLaunch, card: Card) -> LaunchRoof:
    kernel = compiled(launch.configuration, card.architecture)
    count = TRIPS.get(launch.name)
    trips = Trips(launch.programs) if count is None else count(launch.arguments)
    return of_code(launch.name, kernel, Flow(parse(kernel.text())), trips, launch.programs, launch.bytes, card)


def _of_cuda(launch: CudaLaunch, card: Card) -> LaunchRoof:
    kernel, text = nvcc.compiled_kernel(launch.operation, launch.symbol, card.architecture, launch.warps, launch.shared)
    flow = Flow(parse(text, launch.symbol))
    return of_code(launch.name, kernel, flow, launch.trips, launch.programs, launch.bytes, card)


def of_code(
    name: str, kernel: CompiledKernel, flow: Flow, trips: Trips, programs: int, moved: int, card: Card
) -> LaunchRoof:
    """The least time of a launch of a compiled kernel.

    Args:
        name: the kernel's.
        kernel: what a program of it needs.
        flow: its instructions.
        trips: how often its loops are gone through.
        programs: of the launch.
        moved: bytes of its tensors.
        card: the GPU.
    """
    try:
        busy = sums(flow, trips, programs, kernel.warps)
        widths = copies(flow, trips, programs)
    except UnknownLoop as error:
        raise UnknownLoop(f"{name}: {error}") from error
    roof = LaunchRoof(
        name,
        memory=1e6 * moved * trips.touched / card.bandwidth,
        predicted=0.0,
        limit="",
        pipes={pipe: 1e6 * card.seconds(each) for pipe, each in busy.items()},
        programs=(programs, round(trips.programs)),
        warps=kernel.warps,
        registers=kernel.registers,
        spilled=kernel.stack + kernel.local,
        shared=kernel.shared,
        blocks=card.blocks_at_once(kernel.registers, kernel.warps, kernel.shared),
        copies=widths,
    )
    return _limited(roof, card)


def _limited(roof: LaunchRoof, card: Card) -> LaunchRoof:
    times = {MEMORY: roof.memory / OF_BANDWIDTH, LAUNCH: 1e6 * card.launch}
    times |= {pipe: time / OF_PIPES for pipe, time in roof.pipes.items()}
    limit = max(times, key=lambda name: times[name])
    return LaunchRoof(**{**vars(roof), "predicted": times[limit], "limit": limit})
