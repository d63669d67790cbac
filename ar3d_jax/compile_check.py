"""Does a run fit a TPU? Compiles its programs for one, on a machine without.

    pip install "jax[tpu]"   # brings the libtpu that fits this jax
    python -m ar3d_jax.compile_check --config=configs/higrpo.py:7b \
        --topology=v5p:2x2x4 --config.mesh.fsdp=16

Prints, for each program of a training step, seconds to compile, memory per chip and the
collectives; in which of them hosts take part, and if any is in the decode loop. Ends
with status 1 where memory does not suffice, and says by how much and what would help.
Nothing is loaded or computed: weights need not be at hand. `--json=FILE` keeps the
numbers. Programs that need less than these are left out: further prompts of dynamic
sampling, the forward pass of `objective.correct_mismatch`.

Memory is what XLA's compiler says. Beside a program's own, a chip holds what the other
programs need: weights, reference, optimiser, codec.
"""

import dataclasses
import json
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ar3d_jax import command, hosts
from ar3d_jax.codec.vqvae import Codec
from ar3d_jax.config import Config
from ar3d_jax.errors import UserError, exit_on_user_error, write_whole
from ar3d_jax.higrpo.update import (
    ScoredRollouts,
    TrainState,
    init_state,
    update_step,
)
from ar3d_jax.models import DECODE_ROWS, decode_codes
from ar3d_jax.policy.chat import Prompts
from ar3d_jax.policy.decoder import Decoder
from ar3d_jax.policy.sequence import Sequence
from ar3d_jax.policy.tokenizer import Tokenizer
from ar3d_jax.policy.vocab import PUBLISHED, Vocab
from ar3d_jax.rollout.generate import DECODE_SCOPE
from ar3d_jax.rollout.two_step import (
    rollout_coarse,
    rollout_one_step,
    rollout_refined,
)
from ar3d_jax.sharding import make_mesh
from ar3d_jax.weights import resolve

GIB = 2**30
LIBTPU = 'pip install "jax[tpu]"'
TURN_TOKENS = 96  # of the local plan's instruction; an upper bound, its text has 70
RESERVED = 0.03  # of a chip's memory, for the runtime and fragments; our choice


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU chip; numbers of cloud.google.com/tpu/docs.

    Attributes:
        memory: GiB.
        flops: bfloat16, per second.
        bandwidth: of its memory, bytes per second.
        links: to its neighbours, bytes per second in each direction, all together.
    """

    memory: float
    flops: float
    bandwidth: float
    links: float


CHIPS = {
    "v5e": Chip(16.0, 197e12, 819e9, 100e9),
    "v5p": Chip(95.0, 459e12, 2765e9, 300e9),
    "v6e": Chip(32.0, 918e12, 1640e9, 224e9),
}


@dataclasses.dataclass(frozen=True)
class Program:
    """What the compiler says of one program; memory in bytes per chip.

    Attributes:
        seconds: to compile.
        arguments: of it; donated ones are counted here alone.
        outputs: that do not replace an argument.
        temporaries: while it runs.
        resident: what other programs need, held meanwhile.
        collectives: number by kind, such as "all-gather".
        decode_collectives: those in the decode loop.
        decode_across_hosts: those among them in which several hosts take part.
        refused: the compiler's words, where it found no way to fit the program; then
            memory is what these say, without outputs, and collectives are not known.
    """

    seconds: float
    arguments: int
    outputs: int
    temporaries: int
    resident: int
    collectives: dict[str, int]
    decode_collectives: dict[str, int]
    decode_across_hosts: int
    refused: str = ""

    @property
    def peak(self) -> int:
        """Bytes per chip while it runs."""
        return self.arguments + self.outputs + self.temporaries + self.resident


def topology_mesh(topology: str, config: Config) -> jax.sharding.Mesh:
    """The run's mesh on chips that are not there.

    Raises:
        UserError: no such topology, no libtpu, a mesh of another size.
    """
    from jax.experimental import topologies

    kind = topology.partition(":")[0]
    if kind not in CHIPS:
        raise UserError(
            f"--topology={topology}; expected KIND:SHAPE such as v5p:2x2x4, with KIND "
            f"one of {', '.join(CHIPS)}"
        )
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # else it asks for a machine's metadata
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # no TPU that only one may use
    # Without these two it complains, at length; what they say does not matter here.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        devices = topologies.get_topology_desc(topology, platform="tpu").devices
    except Exception as error:  # the plug-in's own kinds
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"--topology={topology}: the TPU compiler does not give it ({reason}); "
            f"expected a shape that exists, and libtpu: {LIBTPU}"
        ) from error
    mesh = config.mesh
    wanted = mesh.data * mesh.fsdp * mesh.tp
    if wanted != len(devices):
        raise UserError(
            f"mesh.data={mesh.data} x mesh.fsdp={mesh.fsdp} x mesh.tp={mesh.tp} is "
            f"{wanted}; {topology} has {len(devices)} chips: pass "
            f"--config.mesh.fsdp={len(devices) // mesh.tp // mesh.data} or so"
        )
    return make_mesh(mesh.fsdp, mesh.tp, mesh.data, devices)


def check(config: Config, mesh: jax.sharding.Mesh) -> Iterator[tuple[str, Program]]:
    """Compiles the programs of one training step, and yields each with its name."""
    with jax.set_mesh(mesh):
        hosts.check_mesh()
        state, reference = _state(config)
        policy = state.policy
        prompts, vocab = _prompts(config), _vocab(config)
        key = _on_mesh(jax.eval_shape(lambda: jax.random.key(0)))
        how = (config.rollout, vocab, key)
        sampling, sequences = _sampling(config, policy, prompts, *how)
        rollouts = ScoredRollouts(
            sequences, {step: _rewards(config) for step in sequences}
        )
        update = update_step.trace(
            state,
            reference,
            rollouts,
            vocab=vocab,
            objective=config.objective,
            optim=config.optim,
        )
        codec = _on_mesh(jax.eval_shape(lambda: Codec(config.codec, jax.random.key(0))))
        rows = config.prompts_per_step * config.group_size // mesh.size
        rows = mesh.size * min(DECODE_ROWS, max(rows, 1))
        codes = jax.ShapeDtypeStruct((rows, config.codec.tokens), jnp.int32)
        decode = decode_codes.trace(codec, codes)

    everything = _bytes(state) + _bytes(reference) + _bytes(codec)
    first, *later = sampling
    for name, traced, held in (
        (f"rollout, {first}", sampling[first], policy),
        ("codec", decode, codec),
        *((f"rollout, {step}", sampling[step], policy) for step in later),
        ("update", update, (state, reference)),
    ):
        with jax.set_mesh(mesh):
            size = _bytes(held)
            yield name, _compile(traced, mesh, size, everything - size)


def _sampling(
    config: Config, policy: Decoder, prompts: Prompts, *how: Any
) -> tuple[dict[str, Any], dict[str, tuple[Sequence, ...]]]:
    """By step: what samples it, traced, and the sequences that it leaves."""
    sizes = {"group_size": config.group_size, "shape_tokens": config.codec.tokens}
    if not config.rollout.plans:
        prompt = prompts.high, prompts.high_valid
        shape = rollout_one_step.trace(policy, *prompt, *how, **sizes)
        return {"shape": shape}, {"shape": (_on_mesh(shape.out_info),)}
    coarse = rollout_coarse.trace(policy, prompts, *how, **sizes)
    first, cache = _on_mesh(coarse.out_info)
    if config.paradigm == "grpo":
        return {"shape": coarse}, {"shape": (first,)}
    refined = rollout_refined.trace(policy, prompts, first, cache, *how, **sizes)
    return (
        {"coarse": coarse, "refined": refined},
        {"coarse": (first,), "refined": _on_mesh(refined.out_info)},
    )


def _state(config: Config) -> tuple[TrainState, Decoder | None]:
    """The training state and the reference, as shapes on the mesh."""

    def make() -> tuple[TrainState, Decoder | None]:
        policy = Decoder(config.policy, jax.random.key(0))
        state = init_state(policy, optim=config.optim, lora_config=config.lora)
        needed = config.objective.kl_coef > 0 and not config.lora.rank
        return state, policy if needed else None

    return _on_mesh(jax.eval_shape(make))


def _vocab(config: Config) -> Vocab:
    """The tokenizer's where it is at hand, else the published one."""
    try:
        return Tokenizer.load(resolve(config.policy.weights, "policy.weights")).vocab
    except UserError:
        return PUBLISHED


def _prompts(config: Config) -> Prompts:
    """A batch of the longest prompts, as the trainer has it: not on the mesh yet."""
    shape = config.prompts_per_step, config.rollout.prompt_tokens[-1]
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    valid = jax.ShapeDtypeStruct(shape, jnp.bool_)
    turn = jax.ShapeDtypeStruct((TURN_TOKENS,), jnp.int32)
    return Prompts(tokens, valid, tokens, valid, turn)


def _rewards(config: Config) -> jax.ShapeDtypeStruct:
    shape = config.prompts_per_step, config.group_size
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _on_mesh(tree: Any) -> Any:
    """Shapes with their layouts on the devices of the mesh that is set."""
    mesh = jax.sharding.get_mesh()

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        spec = leaf.sharding.spec if leaf.sharding else jax.P()
        layout = jax.NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)

    return jax.tree.map(place, tree)


def _bytes(tree: Any) -> int:
    """Of an abstract tree, on one chip."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _compile(traced: Any, mesh: jax.sharding.Mesh, held: int, resident: int) -> Program:
    """`held`: bytes of the state among its arguments; `resident`: of all other."""
    begin = time.perf_counter()
    lowered = traced.lower(lowering_platforms=("tpu",))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds, words = time.perf_counter() - begin, str(error).splitlines()[0]
        asked = asked_for(words)
        if "temporaries" not in words:  # of all that it would hold
            asked = max(asked - held, 0)
        return Program(seconds, held, 0, asked, resident, {}, {}, 0, words)
    seconds = time.perf_counter() - begin
    memory = compiled.memory_analysis()
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"jax {jax.__version__} cannot read what the TPU compiler gives; expected "
            f"the libtpu that fits it: {LIBTPU}"
        ) from error
    kinds, in_decode, across = _collectives(text, mesh)
    return Program(
        seconds=seconds,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        resident=resident,
        collectives=dict(kinds),
        decode_collectives=dict(in_decode),
        decode_across_hosts=across,
    )


_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT])\b")


def asked_for(words: str) -> int:
    """Bytes that a program needs, of the compiler's "needs 23.00G, has 15.75G"."""
    sizes = [
        float(number) * 2 ** (10 * ("KMGT".index(unit) + 1))
        for number, unit in _SIZE.findall(words)
    ]
    return int(max(sizes, default=0))


_KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_COLLECTIVE = re.compile(rf" ({'|'.join(_KINDS)})(?:-start)?\(")
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}")
_NAMED = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^ ]*)\))? \{([^}]*)\}"
)
_COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)")


def _collectives(
    text: str, mesh: jax.sharding.Mesh
) -> tuple[Counter[str], Counter[str], int]:
    """By kind: all, those in the decode loop; and of these, how many join hosts."""
    host_of = [device.process_index for device in mesh.devices.flat]
    kinds: Counter[str] = Counter()
    in_decode: Counter[str] = Counter()
    across = 0
    for line in text.splitlines():
        if not (found := _COLLECTIVE.search(line)):
            continue
        kinds[found[1]] += 1
        if f"/{DECODE_SCOPE}/while" in line:
            in_decode[found[1]] += 1
            groups = replica_groups(line, mesh.size)
            across += any(len({host_of[i] for i in group}) > 1 for group in groups)
    return kinds, in_decode, across


def replica_groups(line: str, devices: int) -> list[list[int]]:
    """Which devices take part together in a collective, from its line of HLO text."""
    if listed := _LISTED.search(line):
        groups = re.findall(r"\{([\d,]+)\}", listed[1])
        return [[int(i) for i in group.split(",")] for group in groups]
    if counted := _COUNTED.search(line):
        shape = [int(i) for i in counted[1].split(",")]
        return _ids(counted[2]).reshape(shape).tolist()
    # A part of an axis, "axis:(1)2", counts as all: to be on the safe side.
    if (named := _NAMED.search(line)) and ":" not in named[3]:
        sizes = {axis: int(n) for axis, n in re.findall(r"'(\w+)'=(\d+)", named[1])}
        joined = re.findall(r"'(\w+)'", named[3])
        ids = _ids(named[2] or f"[{devices}]").reshape(list(sizes.values()))
        axes = [list(sizes).index(axis) for axis in joined]
        ids = np.moveaxis(ids, axes, range(-len(axes), 0))
        return ids.reshape(-1, math.prod(sizes[axis] for axis in joined)).tolist()
    return [list(range(devices))]


def _ids(order: str) -> np.ndarray:
    """Device numbers in an order such as [8,4]T(1,0): counted, then transposed."""
    dims, axes = re.findall(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order)[0]
    shape = [int(i) for i in dims.split(",")]
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids.transpose([int(i) for i in axes.split(",")]) if axes else ids


def remedies(name: str, program: Program, config: Config) -> list[str]:
    """Fields that would lower what the program needs, the most useful first."""
    parts = config.mesh.data * config.mesh.fsdp
    found = []
    if name == "codec":
        found.append("a smaller codec")
    if name == "update":
        if config.objective.micro_batch > parts:
            found.append(f"--config.objective.micro_batch={parts}")
        if config.policy.remat != "full":
            found.append("--config.policy.remat=full")
        if config.optim.gradient_dtype != "bfloat16":
            found.append("--config.optim.gradient_dtype=bfloat16")
    if name.startswith("rollout"):
        if config.mesh.tp < 4 and config.policy.kv_heads % (2 * config.mesh.tp) == 0:
            fsdp = max(config.mesh.fsdp // 2, 1)
            found.append(f"--config.mesh.tp={2 * config.mesh.tp} with mesh.fsdp={fsdp}")
        if config.rollout.gather:
            found.append("--config.rollout.gather=False (slower)")
        if config.prompts_per_step > parts:
            found.append(f"--config.prompts_per_step={parts}")
    if config.mesh.data > 1:
        fsdp = config.mesh.data * config.mesh.fsdp
        found.append(f"--config.mesh.data=1 with mesh.fsdp={fsdp}")
    if config.optim.moment_dtype != "bfloat16":
        found.append("--config.optim.moment_dtype=bfloat16")
    if not config.lora.rank:
        found.append("--config.lora.rank=64")
    return [*found, "more chips"]


def _describe(name: str, program: Program) -> str:
    parts = {
        "arguments": program.arguments,
        "outputs": program.outputs,
        "temporaries": program.temporaries,
        "others'": program.resident,
    }
    memory = " + ".join(f"{size / GIB:.1f} {part}" for part, size in parts.items())
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(program.collectives.items()))
    if program.refused:
        kinds = "refused by the compiler"
    line = (
        f"{name:17} {program.seconds:5.0f} s   peak {program.peak / GIB:5.1f} GiB = "
        f"{memory}; {kinds or 'no collectives'}"
    )
    if name.startswith("rollout") and not program.refused:
        inside = sum(program.decode_collectives.values())
        line += f"; in the decode loop {inside}"
        line += f", {program.decode_across_hosts} across hosts"
    return line


def main() -> int:
    """The command; returns its exit status."""
    config, values = command.parse_config(
        sys.argv, Config, "configs/higrpo.py:7b", None, _define_flags
    )
    mesh = topology_mesh(values.topology, config)
    chip = CHIPS[values.topology.partition(":")[0]]
    room = chip.memory * (1 - RESERVED) * GIB
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    print(
        f"{values.topology}: {mesh.size} chips of {chip.memory} GiB, mesh {shape}; "
        f"{config.prompts_per_step} prompts x {config.group_size}",
        flush=True,
    )
    found = {}
    for name, program in check(config, mesh):
        print(_describe(name, program), flush=True)
        found[name] = program
    if values.json:
        line = {name: dataclasses.asdict(program) for name, program in found.items()}
        write_whole(Path(values.json), json.dumps(line, indent=2) + "\n")
    name, worst = max(
        found.items(), key=lambda item: (bool(item[1].refused), item[1].peak)
    )
    if worst.peak <= room and not worst.refused:
        print(f"fits: {(room - worst.peak) / GIB:.1f} GiB to spare in {name}")
        return 0
    more = " or more" if worst.refused else ""
    print(
        f"does not fit: {name} needs {worst.peak / GIB:.1f} GiB{more}, "
        f"{max(worst.peak - room, 0) / GIB:.1f}{more} too much; these would help: "
        f"{'; '.join(remedies(name, worst, config))}",
        file=sys.stderr,
    )
    return 1


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "topology", "v5p:2x2x4", "KIND:SHAPE, such as v5e:4x8", flag_values=values
    )
    flags.DEFINE_string("json", "", "file for the numbers", flag_values=values)


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())
