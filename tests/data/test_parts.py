"""Part lists by command: by words, by a judge, and after any end of a run."""

import asyncio
import fcntl
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from ar3d_jax.data import part_lists, parts
from ar3d_jax.data.prompts import read_prompts
from ar3d_jax.errors import UserError
from tests.rewards import tiny_qwen
from tests.rewards.stand_in_endpoint import Endpoint, completion

ROOT = Path(__file__).parents[2]
PROMPTS = ["a chair with four legs", "étagère", "a lamp", "a bus with two doors"]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join([*PROMPTS, PROMPTS[0]]), "utf-8")
    return path


def command(prompts, out, *flags):
    own = (f"--prompts={prompts}", f"--out={out}", *flags)
    return (sys.executable, "-m", "ar3d_jax.data.parts", *own)


async def start(*arguments):
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *arguments, cwd=ROOT, stdout=pipe, stderr=pipe
    )


async def run(*arguments):
    """Status, standard output, and the last line of standard error."""
    process = await start(*arguments)
    async with asyncio.timeout(120):
        out, error = await process.communicate()
    return process.returncode, out.decode(), error.decode().splitlines()[-1]


def answer(*pairs):
    rows = [{"name": name, "count": count} for name, count in pairs]
    return 200, {}, completion(json.dumps({"parts": rows}))


def endpoint_flags(endpoint):
    own = "--config.rewards.qwen_vl"
    return (
        *("--backend=openai", f"{own}.endpoints={endpoint.url}", f"{own}.model=judge"),
        *(f"{own}.in_flight=1", f"{own}.retries=0"),
    )


def asked(endpoint):
    """The prompts that were, which the questions have in brackets."""
    texts = [body["messages"][0]["content"][-1]["text"] for body in endpoint.bodies]
    return [text.partition("[")[2].partition("]")[0] for text in texts]


def by_words(prompts=PROMPTS):
    return {prompt: part_lists.noun_phrases(prompt) for prompt in prompts}


def test_words_of_the_shipped_prompts(tmp_path):
    out = tmp_path / "new" / "parts.jsonl"
    arguments = command("catalog", out, "--backend=words")
    texts = {text for row in read_prompts("catalog") for text in row.texts}
    for counts in (
        f"{len(texts)} by their words, 0",
        f"0 by their words, {len(texts)}",
    ):
        status, said, _ = asyncio.run(run(*arguments))
        assert status == 0
        assert said == (
            f"{out}: 0 prompts by the judge, {counts} were there; use it with "
            f"--config.rewards.part_lists={out}\n"
        )
        assert part_lists.read(out) == by_words(texts)
        assert len(out.read_text().splitlines()) == len(texts)


def test_killed_in_the_middle_nothing_is_asked_twice(tmp_path, prompts):
    out = tmp_path / "parts.jsonl"

    async def both():
        first = [answer(("leg", 4), ("seat", 1)), (200, {}, completion("Legs!"))]
        async with Endpoint(*first, "wait") as endpoint:
            process = await start(*command(prompts, out, *endpoint_flags(endpoint)))
            async with asyncio.timeout(120):
                while len(endpoint.bodies) < 3:
                    await asyncio.sleep(0.02)
            process.kill()
            await process.communicate()
            assert process.returncode == -signal.SIGKILL
            assert asked(endpoint) == PROMPTS[:3]
        with out.open("ab") as file:
            file.write(b'{"prompt": "a lamp", "parts": [{"na')
        async with Endpoint(answer(("shade", 1))) as endpoint:
            status, said, _ = await run(
                *command(prompts, out, *endpoint_flags(endpoint))
            )
            assert asked(endpoint) == PROMPTS[2:]
        assert status == 0
        assert f"{out}: 2 prompts by the judge, 0 by their words, 2 were there" in said

    asyncio.run(both())
    assert part_lists.read(out) == {
        PROMPTS[0]: (("leg", 4), ("seat", 1)),
        PROMPTS[1]: part_lists.noun_phrases(PROMPTS[1]),
        PROMPTS[2]: (("shade", 1),),
        PROMPTS[3]: (("shade", 1),),
    }
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["by"] for row in rows] == ["judge", "words", "judge", "judge"]
    why = "unreadable: there is no JSON object with parts; it answered 'Legs!'"
    assert rows[1]["why"] == why


def test_what_has_no_answer_gets_no_line_and_is_said(tmp_path, prompts):
    out = tmp_path / "parts.jsonl"

    async def both():
        script = [answer(("leg", 4)), (400, {}, {"error": "no"}), answer(("base", 1))]
        async with Endpoint(*script) as endpoint:
            flags = endpoint_flags(endpoint)
            status, said, error = await run(*command(prompts, out, *flags))
        return status, said, error, endpoint.url

    status, said, error, url = asyncio.run(both())
    assert (status, said) == (2, "")
    assert error == (
        f"error: 1 prompts without an answer (status 400: {url}: no); the other lists "
        f"are in {out}, and the same command asks for what is missing"
    )
    assert set(part_lists.read(out)) == set(PROMPTS) - {PROMPTS[1]}


def test_a_judge_in_this_process(tmp_path, prompts):
    """A random one, which knows no JSON: words, and that is said."""
    out = tmp_path / "parts.jsonl"
    model = tiny_qwen.make(tmp_path / "qwen")
    flags = ("--backend=local", f"--config.rewards.qwen_vl.model={model}")
    status, said, error = asyncio.run(run(*command(prompts, out, *flags)))
    assert status == 0, error
    assert f"{out}: 0 prompts by the judge, 4 by their words, 0 were there" in said
    assert part_lists.read(out) == by_words()
    lines = out.read_text().splitlines()
    assert all("it answered" in json.loads(line)["why"] for line in lines)


def test_a_last_line_is_mended_wherever_it_was_cut(tmp_path):
    path = tmp_path / "parts.jsonl"
    with parts.open_list(path) as lists:
        for prompt in PROMPTS[:2]:
            lists.by_words(prompt)
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1
    for length in range(second, len(whole)):
        path.write_bytes(whole[:length])
        with parts.open_list(path) as lists:
            complete = length == len(whole) - 1  # all but the line break
            assert lists.there == set(PROMPTS[: 1 + complete])
            if not complete:
                lists.by_words(PROMPTS[1])
        assert path.read_bytes() == whole


def test_a_second_run_keeps_out(tmp_path):
    path = tmp_path / "parts.jsonl"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with (
            pytest.raises(UserError, match="another run is writing"),
            parts.open_list(path),
        ):
            pass
    with parts.open_list(path) as lists:
        assert lists.there == frozenset()


def test_a_full_disk_is_one_line():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with open("/dev/full", "ab", buffering=0) as file:
        lists = parts.ListFile(Path("parts.jsonl"), frozenset(), file)
        with pytest.raises(UserError, match=r"cannot write parts\.jsonl: No space"):
            lists.by_words("a chair")


def test_the_config_says_what_flags_do_not(tmp_path, prompts, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = f"--out={tmp_path / 'parts.jsonl'}"
    task = parts.read_command(["parts", out, f"--config.prompts={prompts}"])
    assert (task.prompts, task.backend) == (tuple(PROMPTS), "local")
    (tmp_path / "p.csv").write_text('say,prompt\n"[""a"", ""b""]",x\na,y\n')
    flags = [f"--prompts={tmp_path / 'p.csv'}", "--config.data.column=say"]
    assert parts.read_command(["parts", out, *flags]).prompts == ("a", "b")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out="], "--out=; expected the .jsonl file to write"),
        (["--out={}/parts.txt"], "parts.txt; expected the .jsonl file"),
        (["--prompts={}/none.txt"], "prompts file {}/none.txt: No such file"),
        (
            ["--prompts=nothing"],
            "prompts file nothing: expected a .txt, .csv or .jsonl",
        ),
        (["--backend=remote"], "flag --backend=remote"),
        (["--backend=openai"], "rewards.qwen_vl.endpoints is (); expected one http"),
        (
            ["--noconfig.judged", "--backend=words"],
            "Unknown command line flag 'noconfig.judged'",
        ),
        (["--backend=words", "--out={}/bad.jsonl"], "bad.jsonl, line 1: parts is null"),
        (["--backend=words", "--out={}/dir.jsonl"], "dir.jsonl: Is a directory"),
    ],
)
def test_bad_input_is_one_line(prompts, flags, message, monkeypatch, capsys):
    folder = prompts.parent
    (folder / "bad.jsonl").write_text('{"prompt": "a"}\n')
    (folder / "dir.jsonl").mkdir()
    monkeypatch.chdir(ROOT)
    arguments = [flag.replace("{}", str(folder)) for flag in flags]
    own = [f"--prompts={prompts}", f"--out={folder / 'parts.jsonl'}"]
    with pytest.raises(SystemExit) as caught:
        parts.main(["parts", *own, *arguments])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert message.replace("{}", str(folder)) in said


def test_remote_servers_only_score(prompts, monkeypatch):
    monkeypatch.chdir(ROOT)
    flags = [f"--prompts={prompts}", "--out=x.jsonl", "--config.rewards.backend=remote"]
    with pytest.raises(UserError, match="backend is remote, whose servers only score"):
        parts.read_command(["parts", *flags])
