"""Train WISP's demo pair: a tiny target and a tinier draft that share a tokenizer.

Both are Llama-shaped models trained on the Python standard library's own source, so that a
checkout can run speculative decoding end to end without downloading anything. They exist for
demos and tests and for nothing else.

    python tools/train_demo_pair.py --minutes 90          # train, then export
    python tools/train_demo_pair.py --evaluate            # figures of the exported pair

The two are trained side by side on the same batches: the target on the text, the draft on the
target's distribution (with a little of the text). Hidden matrices are trained with Muon, the
rest with AdamW. The learning rate follows the training time spent so far, which is part of the
checkpoint: a killed run goes on when it is started again with the same command.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import json
import os
import platform
import signal
import sys
import sysconfig
import textwrap
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAYON_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "src" / "wisp" / "demo" / "models"
console = Console(stderr=True)

# --- what is trained ------------------------------------------------------------------------

VOCAB = 2048
EOS, USER, ASSISTANT, END, SYSTEM = SPECIAL = (
    "<|endoftext|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|system|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# A line break and the indentation after it are one piece, so that indents cost one token.
PIECES = (
    r"[\r\n]+[ \t]*"
    r"| ?[\p{L}_]+"
    r"| ?\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}_]+"
    r"|[^\S\r\n]+(?=[^\S\r\n]\S)"
    r"|\s+"
)


@dataclass(frozen=True)
class Shape:
    """The size of one of the two models."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int


TARGET = Shape(hidden=384, layers=5, heads=6, kv_heads=2, mlp=896)
DRAFT = Shape(hidden=192, layers=2, heads=3, kv_heads=1, mlp=512)


@dataclass(frozen=True)
class Recipe:
    """How the pair is trained; lengths are in tokens, fractions are of the time budget."""

    window: int = 2048
    windows_per_step: int = 2
    short: int = 256
    medium: int = 1024
    muon_lr: float = 0.02
    adam_lr: float = 4e-3
    weight_decay: float = 0.1
    warmup: float = 0.01
    decay: float = 0.25
    distill: float = 0.9
    clip: float = 1.0
    chat_share: float = 0.02
    heldout_percent: int = 3
    seed: int = 20


RECIPE = Recipe()


def new_model(shape: Shape) -> LlamaForCausalLM:
    """A fresh model whose residual branches start at zero."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


# --- corpus ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Document:
    """One source file of the standard library."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def heldout(self) -> bool:
        return stable_number(self.name) % 100 < RECIPE.heldout_percent

    @property
    def is_test(self) -> bool:
        parts = self.name.split("/")
        return any(part in {"test", "tests", "idle_test"} for part in parts)


def stable_number(text: str) -> int:
    """A number that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def read_corpus() -> list[Document]:
    """The running interpreter's standard library; files that are not UTF-8 are left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    documents = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if any(part in {"site-packages", "dist-packages"} for part in path.parts):
            continue
        if path.name.startswith("_sysconfigdata") or name.startswith("config-"):
            continue  # these describe the machine that built the interpreter
        with contextlib.suppress(UnicodeDecodeError):
            text = path.read_bytes().decode("utf-8")
            if text.strip():
                documents.append(Document(name, text))
    return documents


def functions(document: Document) -> Iterator[tuple[ast.FunctionDef, str]]:
    """Functions with a docstring, in source order, each with its docstring."""
    try:
        tree = ast.parse(document.text)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (doc := ast.get_docstring(node)):
            yield node, doc


def chat_document(node: ast.FunctionDef, doc: str, text: str) -> str | None:
    """A question about one function and its source as the answer."""
    lines = text.splitlines()[node.lineno - 1 : node.end_lineno]
    source = textwrap.dedent("\n".join(lines)).strip()
    summary = " ".join(doc.split("\n\n")[0].split())
    if len(source) > 1500 or len(summary) > 200:
        return None
    name = node.name
    questions = (
        f"Write a function named {name}.",
        f"Write a Python function {name}: {summary}",
        f"Show me the source of {name}.",
        f"{summary} Write it in Python as {name}.",
        f"How would you write {name} in Python?",
        f"Write Python code. {summary}",
    )
    number = stable_number(source)
    messages = [("user", questions[number % len(questions)]), ("assistant", f"```python\n{source}\n```")]
    if number % 3 == 0:
        messages.insert(0, ("system", "You write Python."))
    return "".join(f"<|{role}|>\n{content}<|end|>\n" for role, content in messages)


def chat_documents(documents: list[Document], limit: int) -> list[str]:
    """Chat-form documents out of the training files, about `limit` characters in all."""
    found = []
    for document in documents:
        if document.is_test or document.heldout:
            continue
        for node, doc in functions(document):
            if chat := chat_document(node, doc, document.text):
                found.append(chat)
    found.sort(key=stable_number)
    total, chosen = 0, []
    for chat in found:
        if total >= limit:
            break
        chosen.append(chat)
        total += len(chat)
    return chosen


# --- tokenizer and tokens -------------------------------------------------------------------


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE that gives every text back exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def wrap_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers loads it: no BOS of its own, no cleaning up."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=EOS,
        additional_special_tokens=list(SPECIAL[1:]),
        clean_up_tokenization_spaces=False,
        add_bos_token=False,
        add_eos_token=False,
        model_max_length=2048,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All texts as one stream, every document followed by the end mark."""
    eos = tokenizer.token_to_id(EOS)
    stream: list[np.ndarray] = []
    for text in texts:
        stream.append(np.array([*tokenizer.encode(text).ids, eos], dtype=np.uint16))
    return np.concatenate(stream)


def prepare(data: Path) -> tuple[PreTrainedTokenizerFast, np.ndarray, np.ndarray]:
    """Tokenizer, training tokens and held-out tokens; made once, then read back."""
    files = data / "tokenizer.json", data / "train.npy", data / "heldout.npy"
    if not all(path.exists() for path in files):
        make_data(data)
    tokenizer = Tokenizer.from_file(str(files[0]))
    return wrap_tokenizer(tokenizer), np.load(files[1]), np.load(files[2])


def make_data(data: Path) -> None:
    """Read the corpus, train the tokenizer and write the token streams."""
    data.mkdir(parents=True, exist_ok=True)
    documents = read_corpus()
    train = [d for d in documents if not d.heldout]
    heldout = [d for d in documents if d.heldout]
    tokenizer = train_tokenizer([d.text for d in train])
    texts = [d.text for d in train]
    texts += chat_documents(documents, int(RECIPE.chat_share * sum(map(len, texts))))
    texts.sort(key=stable_number)
    np.save(data / "train.npy", encode(tokenizer, texts))
    np.save(data / "heldout.npy", encode(tokenizer, [d.text for d in heldout]))
    tokenizer.save(str(data / "tokenizer.json"))


class Batches:
    """Windows of the training stream in an order that follows from the step alone."""

    def __init__(self, stream: np.ndarray, device: torch.device) -> None:
        count = (len(stream) - 1) // RECIPE.window
        self.stream, self.count, self.device = stream, count, device
        self.epoch, self.order = -1, np.arange(count)

    def windows(self, step: int) -> Iterator[int]:
        first = step * RECIPE.windows_per_step
        for index in range(first, first + RECIPE.windows_per_step):
            epoch, place = divmod(index, self.count)
            if epoch != self.epoch:
                generator = np.random.default_rng((RECIPE.seed, epoch))
                self.epoch, self.order = epoch, generator.permutation(self.count)
            yield int(self.order[place])

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels: mostly short rows, some medium, some a whole window."""
        size = RECIPE.window
        length = {7: RECIPE.window, 3: RECIPE.medium, 11: RECIPE.medium}.get(step % 16, RECIPE.short)
        rows = [self.stream[w * size : (w + 1) * size + 1].astype(np.int64) for w in self.windows(step)]
        inputs = np.concatenate([row[:-1] for row in rows]).reshape(-1, length)
        labels = np.concatenate([row[1:] for row in rows]).reshape(-1, length)
        return torch.from_numpy(inputs).to(self.device), torch.from_numpy(labels).to(self.device)


# --- training -------------------------------------------------------------------------------


@dataclass
class Progressed:
    """How far a run has come."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0


class Run:
    """Both models, their optimizers and what a checkpoint keeps of them."""

    def __init__(self, device: torch.device, precision: str, compiled: bool = False) -> None:
        torch.manual_seed(RECIPE.seed)
        self.device = device
        self.precision = torch.bfloat16 if precision == "bf16" else torch.float32
        self.target, self.draft = new_model(TARGET).to(device), new_model(DRAFT).to(device)
        self.done = Progressed()
        matrices, others = [], []
        for model in (self.target, self.draft):
            for name, weight in model.named_parameters():
                hidden = weight.ndim == 2 and "embed" not in name and "lm_head" not in name
                (matrices if hidden else others).append(weight)
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=RECIPE.muon_lr, weight_decay=RECIPE.weight_decay),
            torch.optim.AdamW(others, lr=RECIPE.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.rates = [RECIPE.muon_lr, RECIPE.adam_lr]
        self.fast = torch.compile(self.losses, dynamic=False) if compiled else self.losses

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        enabled = self.precision != torch.float32
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def set_rates(self, scale: float) -> None:
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale

    def losses(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The target's loss on the text and the draft's on the target's distribution."""
        with self.autocast():
            logits = self.target(inputs).logits
            guesses = self.draft(inputs).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return loss, distillation(guesses, logits.detach(), labels)

    def step(self, inputs: Tensor, labels: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """One update of both models; returns the target's and the draft's loss."""
        self.set_rates(scale)
        forward = self.fast if inputs.shape[1] == RECIPE.short else self.losses
        loss, draft_loss = forward(inputs, labels)
        (loss + draft_loss).backward()
        for model in (self.target, self.draft):
            torch.nn.utils.clip_grad_norm_(model.parameters(), RECIPE.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach(), draft_loss.detach()

    def save(self, path: Path) -> None:
        """Write the checkpoint beside its place, then move it there."""
        state = {
            "target": self.target.state_dict(),
            "draft": self.draft.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "done": asdict(self.done),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.target.load_state_dict(state["target"])
        self.draft.load_state_dict(state["draft"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.done = Progressed(**state["done"])


def distillation(guesses: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the draft against the target's distribution mixed with the text."""
    goal = RECIPE.distill * logits.flatten(0, 1).float().softmax(-1)
    text = torch.full_like(labels.flatten(), 1, dtype=goal.dtype).unsqueeze(1) * (1 - RECIPE.distill)
    goal.scatter_add_(1, labels.reshape(-1, 1), text)
    return F.cross_entropy(guesses.flatten(0, 1).float(), goal)


def rate_at(part: float) -> float:
    """Learning-rate scale when `part` of the time is spent: warm up, hold, fall to zero."""
    return max(0.0, min(1.0, part / RECIPE.warmup + 0.02, (1.0 - part) / RECIPE.decay))


@torch.no_grad()
def heldout_losses(run: Run, stream: np.ndarray, length: int = 1024, rows: int = 16) -> dict[str, float]:
    """Both losses and the greedy agreement on evenly spread pieces of the held-out stream."""
    starts = np.linspace(0, len(stream) - length - 2, rows).astype(int)
    batch = np.stack([stream[s : s + length + 1] for s in starts]).astype(np.int64)
    sums = np.zeros(3)
    for piece in torch.from_numpy(batch).to(run.device).split(4):
        with run.autocast():
            logits = run.target(piece[:, :-1]).logits.flatten(0, 1).float()
            guesses = run.draft(piece[:, :-1]).logits.flatten(0, 1).float()
        labels = piece[:, 1:].flatten()
        sums[0] += F.cross_entropy(logits, labels, reduction="sum").item()
        sums[1] += F.cross_entropy(guesses, labels, reduction="sum").item()
        sums[2] += (logits.argmax(-1) == guesses.argmax(-1)).sum().item()
    target, draft, same = sums / (rows * length)
    return {"target": round(target, 4), "draft": round(draft, 4), "agreement": round(same, 4)}


class Log:
    """A line of JSON per record, and a bar for whoever watches."""

    def __init__(self, path: Path, minutes: float, quiet: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("a", buffering=1, encoding="utf-8")
        columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
        self.bar = Progress(*columns, console=console, disable=quiet)
        self.task = self.bar.add_task("starting", total=minutes * 60)

    def write(self, **record: Any) -> None:
        self.file.write(json.dumps(record) + "\n")

    def show(self, seconds: float, text: str) -> None:
        self.bar.update(self.task, completed=seconds, description=text)


@dataclass
class Averages:
    """Losses since the last log line."""

    target: float = 0.0
    draft: float = 0.0
    tokens: int = 0
    steps: int = 0
    since: float = 0.0

    def add(self, losses: tuple[Tensor, Tensor], tokens: int) -> None:
        self.target += losses[0].item()
        self.draft += losses[1].item()
        self.tokens += tokens
        self.steps += 1

    def record(self) -> dict[str, float]:
        rate = self.tokens / max(1e-9, time.monotonic() - self.since)
        means = {"target": self.target / self.steps, "draft_distill": self.draft / self.steps}
        return {key: round(value, 4) for key, value in means.items()} | {"tokens_per_s": round(rate)}


def train(args: argparse.Namespace) -> None:
    """Train until the time budget is spent, then export."""
    tokenizer, stream, heldout = prepare(args.state / "data")
    run = Run(pick_device(args.device), args.precision, args.compile)
    folder = args.state / args.run
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        run.load(checkpoint)
    log = Log(folder / "log.jsonl", args.minutes, args.quiet)
    log.write(event="start", **asdict(run.done), stream=len(stream))
    with log.bar, stop_on_signal() as stopped:
        finished = train_loop(run, Batches(stream, run.device), heldout, log, args, stopped)
    run.save(checkpoint)
    if not finished:
        return
    log.write(event="end", **asdict(run.done), heldout=heldout_losses(run, heldout, rows=64))
    export(run.target, tokenizer, args.out / "target")
    export(run.draft, tokenizer, args.out / "draft")


def train_loop(
    run: Run,
    batches: Batches,
    heldout: np.ndarray,
    log: Log,
    args: argparse.Namespace,
    stopped: list[int],
) -> bool:
    """Steps until time is up (true) or a signal came (false)."""
    budget, done = args.minutes * 60, run.done
    last = saved = checked = time.monotonic()
    averages = Averages(since=last)
    while done.seconds < budget:
        if stopped:
            return False
        inputs, labels = batches.at(done.step)
        averages.add(run.step(inputs, labels, rate_at(done.seconds / budget)), inputs.numel())
        now = time.monotonic()
        done.step += 1
        done.tokens += inputs.numel()
        done.seconds += now - last
        last = now
        if done.step % args.log_every == 0:
            record = averages.record()
            log.write(**asdict(done), **record)
            log.show(done.seconds, f"step {done.step}  loss {record['target']:.3f}")
            averages = Averages(since=now)
        if now - checked > args.eval_seconds:
            log.write(**asdict(done), heldout=heldout_losses(run, heldout))
            checked = averages.since = time.monotonic()
        if now - saved > args.save_seconds:
            run.save(args.state / args.run / "checkpoint.pt")
            saved = time.monotonic()
    return True


@contextlib.contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """A list that becomes true when the process is asked to end."""
    stopped: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda got, _: stopped.append(got)) for number in numbers]
    try:
        yield stopped
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


# --- export ---------------------------------------------------------------------------------


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Write a Hugging Face folder with fp16 weights."""
    path.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(**{**model.config.to_dict(), "use_cache": True})
    copy = LlamaForCausalLM(config)
    copy.load_state_dict(model.state_dict())
    ends = [tokenizer.convert_tokens_to_ids(mark) for mark in (EOS, END)]
    copy.generation_config = GenerationConfig(
        bos_token_id=ends[0], eos_token_id=ends, pad_token_id=ends[0], do_sample=False
    )
    copy.half().save_pretrained(path)
    tokenizer.save_pretrained(path, save_jinja_files=False)


# --- records beside the models --------------------------------------------------------------


def heldout_prompt(document: Document, node: ast.FunctionDef, tokenizer: Any) -> str | None:
    """Whole lines that end after a function's docstring (or its head), 40 to 120 tokens."""
    lines = document.text.splitlines()
    end = node.body[0].end_lineno or node.lineno
    if end - node.lineno > 6:
        end = node.body[0].lineno
    for start in range(node.lineno - 1, max(-1, node.lineno - 25), -1):
        text = textwrap.dedent("\n".join(lines[start:end])).rstrip()
        count = len(tokenizer.encode(text))
        if count > 120:
            return None
        if count >= 40 and (start == 0 or not lines[start - 1].strip()):
            return text
    return None


def heldout_prompts(documents: list[Document], tokenizer: Any, limit: int = 24) -> list[dict[str, str]]:
    """Prompts out of held-out files, library before tests, turn by turn over the files."""
    files = sorted((d for d in documents if d.heldout), key=lambda d: (d.is_test, d.name))
    found: list[tuple[int, bool, dict[str, str]]] = []
    for document in files:
        nodes = [node for node, _ in functions(document)]
        prompts = dict.fromkeys(heldout_prompt(document, node, tokenizer) for node in nodes)
        kept = [prompt for prompt in prompts if prompt][:3]
        found += [
            (turn, document.is_test, {"file": document.name, "prompt": prompt})
            for turn, prompt in enumerate(kept)
        ]
    found.sort(key=lambda item: (item[1], item[0], item[2]["file"]))
    return [record for _, _, record in found[:limit]]


def write_records(out: Path) -> None:
    """`heldout.json` (prompts) and `corpus.json` (what the pair was trained on)."""
    documents = read_corpus()
    tokenizer = AutoTokenizer.from_pretrained(out / "target")
    prompts = heldout_prompts(documents, tokenizer)
    (out / "heldout.json").write_text(json.dumps(prompts, indent=1) + "\n", encoding="utf-8")
    hashes = {d.name: d.sha256[:10] for d in documents}
    listing = "\n".join(f"{d.name} {d.sha256}" for d in documents)
    corpus = {
        "python": platform.python_version(),
        "sha256_of_list": hashlib.sha256(listing.encode()).hexdigest(),
        "heldout": [d.name for d in documents if d.heldout],
        "files": hashes,
    }
    text = json.dumps(corpus, indent=0, separators=(",", ":"))
    (out / "corpus.json").write_text(text + "\n", encoding="utf-8")


# --- evaluation -----------------------------------------------------------------------------


@torch.no_grad()
def full_losses(target: Any, draft: Any, stream: np.ndarray, length: int, limit: int) -> dict[str, float]:
    """Losses, greedy agreement and expected sampled acceptance over a token stream."""
    count = min(limit, len(stream) - 1) // length
    sums, total = np.zeros(4), count * length
    for index in range(count):
        piece = torch.from_numpy(stream[index * length : (index + 1) * length + 1].astype(np.int64))
        logits, guesses = target(piece[None, :-1]).logits[0], draft(piece[None, :-1]).logits[0]
        sums[0] += F.cross_entropy(logits, piece[1:], reduction="sum").item()
        sums[1] += F.cross_entropy(guesses, piece[1:], reduction="sum").item()
        sums[2] += (logits.argmax(-1) == guesses.argmax(-1)).sum().item()
        sums[3] += torch.minimum(logits.softmax(-1), guesses.softmax(-1)).sum().item()
    target_loss, draft_loss, same, sampled = (float(value) for value in sums / total)
    return {
        "tokens": total,
        "target": round(target_loss, 4),
        "draft": round(draft_loss, 4),
        "gap": round(draft_loss - target_loss, 4),
        "greedy_agreement": round(same, 4),
        "sampled_acceptance": round(sampled, 4),
    }


@torch.no_grad()
def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """The model's next `count` choices; everything is recomputed, which is fine at this size."""
    made: list[int] = []
    for _ in range(count):
        logits = model(torch.tensor([ids + made])).logits[0, -1]
        made.append(int(logits.argmax()))
    return made


def acceptance(target: Any, draft: Any, prompts: list[list[int]], ahead: int, count: int) -> dict[str, float]:
    """Greedy speculative decoding replayed: what of the draft's guesses the target keeps."""
    rounds = first = accepted = 0
    for ids in prompts:
        truth = greedy(target, ids, count + ahead)
        place = 0
        while place < count:
            guess = greedy(draft, ids + truth[:place], ahead)
            kept = next((i for i in range(ahead) if guess[i] != truth[place + i]), ahead)
            rounds, first, accepted = rounds + 1, first + (kept > 0), accepted + kept
            place += kept + 1
    return {
        "prompts": len(prompts),
        "k": ahead,
        "rounds": rounds,
        "first_token_acceptance": round(first / rounds, 4),
        "mean_accepted": round(accepted / rounds, 4),
        "tokens_per_round": round(accepted / rounds + 1, 4),
    }


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """The exported pair's figures; weights are the fp16 ones, arithmetic is fp32."""
    write_records(args.out)
    target, draft = (
        AutoModelForCausalLM.from_pretrained(args.out / name, dtype=torch.float32).eval()
        for name in ("target", "draft")
    )
    tokenizer = AutoTokenizer.from_pretrained(args.out / "target")
    _, train_stream, heldout = prepare(args.state / "data")
    records = json.loads((args.out / "heldout.json").read_text(encoding="utf-8"))
    prompts = [tokenizer.encode(record["prompt"]) for record in records]
    result: dict[str, Any] = {
        "parameters": {"target": target.num_parameters(), "draft": draft.num_parameters()},
        "train": full_losses(target, draft, train_stream, 1024, 100_000),
        "heldout_256": full_losses(target, draft, heldout, 256, args.eval_tokens),
        "heldout_1024": full_losses(target, draft, heldout, 1024, args.eval_tokens),
        "heldout_2048": full_losses(target, draft, heldout, 2048, args.eval_tokens),
        "acceptance": acceptance(target, draft, prompts, ahead=4, count=64),
    }
    return result


# --- command line ---------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=90.0, help="training time in all")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--compile", action="store_true", help="torch.compile the common batch shape")
    parser.add_argument("--state", type=Path, default=ROOT / "build" / "demo-pair", help="working folder")
    parser.add_argument("--run", default="main", help="name of the run inside the working folder")
    parser.add_argument("--out", type=Path, default=MODELS, help="where the pair is exported")
    parser.add_argument("--log-every", type=int, default=20, help="steps between log lines")
    parser.add_argument("--eval-seconds", type=float, default=300.0, help="between held-out losses")
    parser.add_argument("--save-seconds", type=float, default=180.0, help="between checkpoints")
    parser.add_argument("--eval-tokens", type=int, default=1_000_000, help="most held-out tokens read")
    parser.add_argument("--prepare", action="store_true", help="only make tokenizer and tokens")
    parser.add_argument("--evaluate", action="store_true", help="measure the exported pair")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    if args.evaluate:
        json.dump(evaluate(args), sys.stdout, indent=2)
        sys.stdout.write("\n")
    elif args.prepare:
        prepare(args.state / "data")
    else:
        train(args)


if __name__ == "__main__":
    main()
