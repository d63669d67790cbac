"""Hi-GRPO, the run on one page: `python -m ar3d_jax.train --config=configs/higrpo.py`.

    prompts -> rollout -> codec -> views and scores -> rewards -> advantages -> update

Up to the rewards a batch is made by `collect.py`. With `paradigm="grpo"`
(configs/grpo.py) there is one generation step. The same command goes on where
`--workdir` has a checkpoint; SIGTERM and Ctrl-C save one and end it with status 0. On
several hosts, one process runs on each (`--hosts`), with the same flags and a workdir
that all can reach; `hosts.py` says who does what.

Not here: how any of it is done. The loss is `higrpo/objective.py`, evaluation by a
judge that is no reward `held_out.py`, files `checkpoint.py`, `metrics.py` and
`gallery.py`.
"""

import contextlib
import dataclasses
import json
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np

from ar3d_jax import command, gallery, hosts, same_run
from ar3d_jax.checkpoint import Checkpoints
from ar3d_jax.collect import Collector, Waiting, batch_metrics
from ar3d_jax.config import Config, to_dict
from ar3d_jax.data.prompts import PromptSource, held_out_prompts
from ar3d_jax.errors import UserError, write_whole
from ar3d_jax.generate import generate_objects
from ar3d_jax.gradient_watch import GradientWatch, check_weights
from ar3d_jax.held_out import held_out
from ar3d_jax.higrpo.update import (
    from_saved,
    init_state,
    minibatches,
    over_updates,
    to_save,
    update_step,
    with_trainer_logp,
)
from ar3d_jax.metrics import NoLog, RunLog, Stopwatch, run_names, run_shown
from ar3d_jax.models import Models, check_length, load_models
from ar3d_jax.rewards.client import Scoring
from ar3d_jax.score_watch import (
    ScoreWatch,
    check_scorers,
    identities,
    replaced,
    switched,
)
from ar3d_jax.sharding import fold_in_name, make_mesh


def main(config: Config, workdir: str) -> None:
    """Trains for `config.steps` steps, going on where `workdir` has a checkpoint.

    Raises:
        UserError: whatever a user can mend: files, settings, disk, GL, scorers.
    """
    _announce(config)
    config.used_rewards.check_places()  # before models take minutes to load
    folder = Path(workdir)

    # --- Models, optimiser, prompts ---------------------------------------------------
    mesh = make_mesh(config.mesh.fsdp, config.mesh.tp, config.mesh.data)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        hosts.check_mesh()
        stop = stack.enter_context(_signals())
        source = PromptSource(
            config.prompts,
            batch=config.prompts_per_step,
            seed=config.seed,
            shuffle=config.data.shuffle,
            column=config.data.column,
            share=config.data.share,
        )
        shown = held_out_prompts(
            config.prompts, config.evaluation.prompts, config.data.column
        )
        models = load_models(config, mesh)
        _check_prompts(models, source, config)
        run_key = jax.random.key(config.seed)
        update_key = fold_in_name(run_key, "updates")
        keep = bool(config.objective.kl_coef and not config.lora.rank)
        reference = models.policy if keep else None
        state = init_state(
            models.policy,
            optim=config.optim,
            lora_config=config.lora,
            key=run_key,
            keep=keep,
        )

        # --- Checkpoint, scorers, log -------------------------------------------------
        checkpoints = stack.enter_context(
            Checkpoints(
                folder / "checkpoints",
                keep=config.log.keep_checkpoints,
                settings=same_run.settings(config),
                held=same_run.held(config),
                may_change=same_run.may_change,
            )
        )
        first_step, known = 0, {}  # scorers of earlier starts, by name
        if restored := checkpoints.restore_latest(to_save(state)):
            saved, first_step, extras = restored
            state = from_saved(state, saved)
            if not (keep or config.lora.rank):  # what was loaded serves nobody
                jax.tree.map(lambda x: x.delete(), models.policy)
            source.set_state(extras["prompts"])
            run_key = extras["key"]
            known = extras.get("scorers", known)  # older runs have none
        _write_config(config, folder)  # not before: a refused run leaves the other's
        own = hosts.own_rows(config.prompts_per_step * config.group_size)
        scoring = stack.enter_context(
            Scoring(
                config.render,
                dataclasses.replace(config.used_rewards, judge=config.eval_every > 0),
                config.codec.resolution,
                slots=2 * len(own),
                log_dir=folder / "logs" / hosts.name(),
            )
        )
        log = stack.enter_context(_open_log(config, folder, first_step))
        check_scorers(scoring, config.used_rewards, config.step_names, log.say)
        evaluation = stack.enter_context(
            held_out(
                config,
                models,
                scoring,
                log.say,
                folder,
                key=run_key,
                first_step=first_step,
            )
        )

        waiting: Waiting | None = None  # the next batch, where it is sampled already

        def save(step: int) -> None:
            check_weights(state.policy, step)
            evaluation.wait()
            # What is sampled ahead is sampled again: checkpoints hold no rollouts.
            position = waiting.position if waiting else source.get_state()
            extras = {"prompts": position, "key": run_key}
            extras["selection"] = collector.selection.get_state()
            extras["weights"] = to_dict(config.rewards.weights)
            extras["lam"] = config.objective.final_lam
            extras["scorers"] = known | identities(scoring)
            checkpoints.save(to_save(state), step, extras)

        def draw_samples(step: int) -> None:
            key = fold_in_name(run_key, "samples")
            batch, group_size = len(shown), 1
            if len(shown) <= config.prompts_per_step:  # compiled already
                batch, group_size = config.prompts_per_step, config.group_size
            objects = generate_objects(
                models,
                state.policy,
                shown,
                key,
                config,
                scoring,
                batch=batch,
                group_size=group_size,
            )
            if not hosts.is_first():
                return
            sheet = gallery.write(folder / "samples" / f"step_{step}", objects)
            log.write_picture(step, "samples", np.asarray(sheet))
            for thing in objects:
                log.write_text(step, f"plans/{thing.name}", _as_markdown(thing.plans))

        # --- The run ------------------------------------------------------------------
        collector = Collector(config, models, scoring, source, run_key, log.say)
        watch = ScoreWatch(config.rewards, log.say, scoring.counters)
        gradients = GradientWatch(
            log.say, "lower optim.lr, or set policy.dtype=float32 where it is bfloat16"
        )
        if restored:
            weights = to_dict(config.rewards.weights)
            changes = switched(extras.get("weights", weights), weights)
            for change in changes:
                log.say(f"goes on with another ensemble: {change}")
            for change in replaced(known, identities(scoring)):
                log.say(f"goes on with another scorer: {change}")
            lam = config.objective.final_lam
            if not changes and extras.get("lam", lam) == lam:  # else another scale
                collector.selection.set_state(extras["selection"])
        if first_step == 0:
            evaluation.after(0, state.policy)
            draw_samples(0)
        for step in range(first_step, config.steps):
            clock = Stopwatch()
            done = step + 1
            saving = done % config.checkpoint_every == 0 or done == config.steps

            # Rollout, views and scores: coarse ones while refined shapes are sampled,
            # and with rollout.ahead all of them during the next rollout.
            current = waiting or collector.launch(state.policy, step, clock)
            waiting = None
            if config.rollout.ahead and not saving:
                waiting = collector.launch(state.policy, done, clock)
            batch = collector.finish(current, state.policy, step, clock)

            # Update.
            with clock("update"):
                rollouts = batch.rollouts
                if config.objective.correct_mismatch:
                    rollouts = with_trainer_logp(
                        rollouts, state.policy, models.vocab, config.objective
                    )
                updates = []
                for chosen in minibatches(
                    config.objective,
                    config.prompts_per_step,
                    jax.random.fold_in(update_key, step),
                ):
                    state, metrics = update_step(
                        state,
                        reference,
                        rollouts,
                        chosen,
                        vocab=models.vocab,
                        objective=config.objective,
                        optim=config.optim,
                    )
                    updates.append(metrics)
                metrics = over_updates(jax.device_get(updates))

            # Log and save.
            line = {
                **batch_metrics(batch, config, clock),
                **watch.look(step, batch, scoring.counters),
                **metrics,
                **clock.line(render=batch.draw_s),
                "sidecar_restarts": int(hosts.total(float(scoring.restarts))),
            }
            log.write(step, line | evaluation.after(done, state.policy))
            gradients.look(step, metrics["grad_norm"])
            _warn_of_no_signal(step, metrics, log)
            stopping = hosts.any_of(bool(stop))
            if done % config.log.samples_every == 0 or done == config.steps:
                draw_samples(done)
            if saving or stopping:
                save(done)
            if stopping and done < config.steps:
                log.say(
                    f"stopped by {', '.join(stop) or 'another host'} after step {step};"
                    " saved, same command goes on"
                )
                return
            try:
                gradients.check()
                if done < config.steps:  # else complete, however the last scores were
                    watch.check()
            except UserError:
                save(done)
                raise


def _announce(config: Config) -> None:
    """The run's first line: which preset this is; and a GPU that lies idle."""
    note = "" if config.preset == "7b" else "; the paper's run is :7b"
    print(f"preset {config.preset}{note}", flush=True)
    if jax.default_backend() == "cpu" and shutil.which("nvidia-smi"):
        print(
            "warning: running on CPU beside an NVIDIA GPU; pip install -r "
            "requirements-cuda12.txt makes jax use it",
            file=sys.stderr,
        )


def _check_prompts(models: Models, source: PromptSource, config: Config) -> None:
    """Refuses what does not fit now, not in the middle of the run."""
    if config.rollout.top_k or config.rollout.top_p < 1:
        raise UserError(
            f"rollout.top_k is {config.rollout.top_k}, rollout.top_p "
            f"{config.rollout.top_p}; expected 0 and 1.0 in training, whose "
            "probabilities are those of the whole distribution"
        )
    texts = [text for row in source.rows for text in row.texts]
    check_length(models.tokenizer, texts, config.rollout)
    room = config.policy.max_positions
    count = len(config.step_names) if config.rollout.plans else 0
    plans, shape = count * config.rollout.plan_tokens, config.codec.tokens
    if config.rollout.refined_sees_coarse:
        shape = 2 * shape + 2  # the coarse one between its marks
    needed = config.rollout.prompt_tokens[-1] + plans + shape
    if needed > room:
        raise UserError(
            f"prompts of {config.rollout.prompt_tokens[-1]} tokens, plans of {plans} "
            f"and a shape of {shape} are {needed}; policy.max_positions is {room}: "
            "lower rollout.prompt_tokens or rollout.plan_tokens"
        )


def _write_config(config: Config, folder: Path) -> None:
    if hosts.is_first():
        text = json.dumps(to_dict(config), indent=2)
        write_whole(folder / "config.json", text + "\n")


def _open_log(
    config: Config, folder: Path, first_step: int
) -> contextlib.AbstractContextManager[RunLog | NoLog]:
    if not hosts.is_first():
        return contextlib.nullcontext(NoLog())
    return RunLog(
        folder,
        names=run_names(config.step_names),
        shown=run_shown(config.step_names),
        steps=config.steps,
        first_step=first_step,
        tensorboard=config.log.tensorboard,
    )


def _warn_of_no_signal(
    step: int, metrics: Mapping[str, Any], log: RunLog | NoLog
) -> None:
    """Says so when nothing was learnt because rewards are equal."""
    if metrics["groups_used"] == 0:
        log.say(
            f"step {step}: no group has any spread of rewards, nothing was learnt; if "
            "this goes on, scorers or prompts cannot tell objects apart"
        )


def _as_markdown(plans: dict[str, str]) -> str:
    return "\n\n".join(f"**{which}** {plan}" for which, plan in plans.items())


@contextlib.contextmanager
def _signals() -> Iterator[list[str]]:
    """Empty until SIGTERM or Ctrl-C arrives; the next one ends the process."""
    received: list[str] = []
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in signals}

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        signal.signal(number, before[signal.Signals(number)])

    for number in signals:
        signal.signal(number, remember)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    command.run_config(
        main,
        section=Config,
        config_file="configs/higrpo.py",
        workdir="runs/higrpo",
        hosts=hosts,
    )
