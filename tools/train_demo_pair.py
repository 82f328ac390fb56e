"""Train WISP's demo pair: a tiny target and a tinier draft that share a tokenizer.

Both are Llama-shaped models trained on the Python standard library's own source, so that a
checkout can run speculative decoding end to end without downloading anything. They exist for
demos and tests and for nothing else.

    python tools/train_demo_pair.py               # train, then export
    python tools/train_demo_pair.py --evaluate    # figures of the exported pair

The target is trained first. The draft learns from the text, then from the frozen target's
distribution. So small a model does not find out by itself, in so little time, that code repeats
itself: some of the draft's early rows are a passage said over and over, which teaches copying.
Hidden matrices are trained with Muon, the rest with AdamW. The learning rate follows the training
time spent so far, which is part of the checkpoint: a killed run goes on when it is started again
with the same command.
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
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
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
    """The size of one of the two models and how it is trained."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    windows_per_step: int
    muon_lr: float
    adam_lr: float


TARGET = Shape(384, 5, 6, 2, 896, windows_per_step=2, muon_lr=0.02, adam_lr=4e-3)
DRAFT = Shape(192, 2, 6, 3, 512, windows_per_step=1, muon_lr=0.01, adam_lr=2e-3)


@dataclass(frozen=True)
class Recipe:
    """What both have in common; lengths are in tokens, fractions are of the time budget."""

    window: int = 2048
    short: int = 256
    medium: int = 1024
    weight_decay: float = 0.1
    warmup: float = 0.01
    decay: float = 0.75
    repeat_until: float = 0.35
    distill_from: float = 0.4
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
    )
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


@torch.no_grad()
def seed_copying(model: LlamaForCausalLM, tokens: Tensor) -> None:
    """Start one head of the first two layers as a pair that copies from the context.

    The first looks one token back and passes on a code of what it saw; the second looks for the
    places whose passed-on code is that of the current token, and says what stood there. Weights
    are fitted on a few rows of tokens by least squares; training then does as it likes with them.
    """
    one, two = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    size = one.head_dim
    embedding = model.model.embed_tokens.weight
    embedding.add_(0.5 * embedding.std() * torch.ones_like(embedding[0]))
    angles = 10000.0 ** (-torch.arange(0, size, 2) / size)
    seen = record_inputs(model, 0, tokens)
    slow = (angles < 0.05).repeat(2).nonzero().flatten()  # dimensions that hardly turn
    codes = torch.zeros(len(seen), size)
    codes[:, slow] = token_codes(seen, len(slow))
    values = token_codes(seen, size)
    ones = torch.ones(len(seen), 1)
    back, here = torch.cat([angles.cos(), -angles.sin()]), torch.cat([angles * 0 + 1, angles * 0])
    one.q_proj.weight[:size] = fit(seen, 6.0 * ones * back)
    one.k_proj.weight[:size] = fit(seen, 6.0 * ones * here)
    one.v_proj.weight[:size] = fit(seen, codes)
    scale = record_inputs(model, 1, tokens, before_norm=True).std()
    one.o_proj.weight[:, :size] = 3 * scale * torch.nn.init.orthogonal_(torch.empty(model.config.hidden_size, size))
    seen = record_inputs(model, 1, tokens)
    previous = codes.view(*tokens.shape, size).roll(1, dims=1).flatten(0, 1)
    two.q_proj.weight[:size] = fit(seen, 3.0 * codes)
    two.k_proj.weight[:size] = fit(seen, 3.0 * previous)
    two.v_proj.weight[:size] = fit(seen, values)
    said = functional.normalize(embedding - embedding.mean(0), dim=-1)[tokens.flatten()]
    scale = record_inputs(model, 1, tokens, before_norm=True).norm(dim=-1).mean()
    two.o_proj.weight[:, :size] = fit(values, scale * said)


def token_codes(inputs: Tensor, size: int) -> Tensor:
    """The strongest directions of the inputs, made equally strong and mixed at random."""
    centred = inputs - inputs.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    white = centred @ vectors[:, -size:] / values[-size:].sqrt()
    return white @ torch.nn.init.orthogonal_(torch.empty(size, size))


def fit(inputs: Tensor, outputs: Tensor) -> Tensor:
    """The weight of a linear layer that maps inputs to outputs, by ridge regression."""
    gram = inputs.T @ inputs
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram))
    return torch.linalg.solve(gram + ridge, inputs.T @ outputs).T


def record_inputs(model: LlamaForCausalLM, layer: int, tokens: Tensor, *, before_norm: bool = False) -> Tensor:
    """What a layer's attention (or the norm before it) is given for these tokens."""
    seen: list[Tensor] = []
    norm = model.model.layers[layer].input_layernorm
    hook = norm.register_forward_hook(lambda _, given, made: seen.append(given[0] if before_norm else made))
    model(tokens)
    hook.remove()
    return seen[0].flatten(0, 1)


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
    summary = " ".join(doc.partition("\n\n")[0].split())
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
    return np.concatenate([np.array([*tokenizer.encode(text).ids, eos], dtype=np.uint16) for text in texts])


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

    def __init__(self, stream: np.ndarray, windows_per_step: int, device: torch.device) -> None:
        count = (len(stream) - 1) // RECIPE.window
        self.stream, self.count, self.device = stream, count, device
        self.windows_per_step = windows_per_step
        self.epoch, self.order = -1, np.arange(count)

    def windows(self, step: int) -> Iterator[int]:
        first = step * self.windows_per_step
        for index in range(first, first + self.windows_per_step):
            epoch, place = divmod(index, self.count)
            if epoch != self.epoch:
                generator = np.random.default_rng((RECIPE.seed, epoch))
                self.epoch, self.order = epoch, generator.permutation(self.count)
            yield int(self.order[place])

    def at(self, step: int, repeats: bool) -> tuple[Tensor, Tensor]:
        """Inputs and labels: mostly short rows, some medium, some a whole window."""
        size = RECIPE.window
        length = {7: RECIPE.window, 3: RECIPE.medium, 11: RECIPE.medium}.get(step % 16, RECIPE.short)
        windows = [self.stream[w * size : (w + 1) * size + 1].astype(np.int64) for w in self.windows(step)]
        inputs = np.concatenate([window[:-1] for window in windows]).reshape(-1, length)
        labels = np.concatenate([window[1:] for window in windows]).reshape(-1, length)
        if repeats and length == RECIPE.short:
            repeat_rows(inputs, labels, step)
        return torch.from_numpy(inputs).to(self.device), torch.from_numpy(labels).to(self.device)


def repeat_rows(inputs: np.ndarray, labels: np.ndarray, step: int) -> None:
    """Turn every fourth row into its own beginning, said over and over."""
    period = int(np.random.default_rng((RECIPE.seed, step)).integers(16, 128))
    length = inputs.shape[1]
    for row in range(0, len(inputs), 4):
        text = np.resize(inputs[row, :period], length + 1)
        inputs[row], labels[row] = text[:-1], text[1:]


# --- training -------------------------------------------------------------------------------


@dataclass
class Progressed:
    """How far a run has come."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0


class Run:
    """One model, its optimizers, its teacher if it has one, and what a checkpoint keeps."""

    def __init__(self, name: str, shape: Shape, args: argparse.Namespace) -> None:
        torch.manual_seed(RECIPE.seed)
        self.name, self.shape, self.device = name, shape, pick_device(args.device)
        self.checkpoint = args.state / args.run / f"{name}.pt"
        self.precision = torch.bfloat16 if args.precision == "bf16" else torch.float32
        self.model = new_model(shape).to(self.device)
        self.teacher: LlamaForCausalLM | None = None
        self.done = Progressed()
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for label, weight in self.model.named_parameters():
            hidden = weight.ndim == 2 and "embed" not in label and "lm_head" not in label
            (matrices if hidden else others).append(weight)
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=shape.muon_lr, weight_decay=RECIPE.weight_decay),
            torch.optim.AdamW(others, lr=shape.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.fast = torch.compile(self.loss, dynamic=False) if args.compile else self.loss

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        enabled = self.precision != torch.float32
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def set_rates(self, scale: float) -> None:
        for optimizer, rate in zip(self.optimizers, (self.shape.muon_lr, self.shape.adam_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale

    def loss(self, inputs: Tensor, labels: Tensor, taught: Tensor | None) -> Tensor:
        """Cross-entropy against the text, or mostly against the teacher's logits."""
        with self.autocast():
            logits = self.model(inputs).logits.flatten(0, 1)
        text = functional.cross_entropy(logits.float(), labels.flatten())
        if taught is None:
            return text
        soft = functional.cross_entropy(logits.float(), taught.flatten(0, 1).float().softmax(-1))
        return RECIPE.distill * soft + (1 - RECIPE.distill) * text

    def step(self, inputs: Tensor, labels: Tensor, part: float) -> Tensor:
        """One update when `part` of the time is spent; returns the loss."""
        self.set_rates(rate_at(part))
        taught = None
        if self.teacher is not None and part >= RECIPE.distill_from:
            with torch.no_grad(), self.autocast():
                taught = self.teacher(inputs).logits
        forward = self.fast if inputs.shape[1] == RECIPE.short else self.loss
        loss = forward(inputs, labels, taught)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), RECIPE.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def save(self) -> None:
        """Write the checkpoint beside its place, then move it there."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "done": asdict(self.done),
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def load(self) -> None:
        """Go on from the checkpoint if there is one."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.done = Progressed(**state["done"])


def rate_at(part: float) -> float:
    """Learning-rate scale when `part` of the time is spent: warm up, hold, fall to zero."""
    return max(0.0, min(1.0, part / RECIPE.warmup + 0.02, (1.0 - part) / RECIPE.decay))


@torch.no_grad()
def heldout_figures(run: Run, stream: np.ndarray, length: int = 1024, rows: int = 16) -> dict[str, float]:
    """Loss, and greedy agreement with the teacher, on evenly spread held-out pieces."""
    starts = np.linspace(0, len(stream) - length - 2, rows).astype(int)
    batch = np.stack([stream[s : s + length + 1] for s in starts]).astype(np.int64)
    loss = same = 0.0
    for piece in torch.from_numpy(batch).to(run.device).split(4):
        with run.autocast():
            logits = run.model(piece[:, :-1]).logits.flatten(0, 1).float()
            taught = run.teacher(piece[:, :-1]).logits.flatten(0, 1) if run.teacher else logits
        loss += functional.cross_entropy(logits, piece[:, 1:].flatten(), reduction="sum").item()
        same += (logits.argmax(-1) == taught.argmax(-1)).sum().item()
    count = rows * length
    return {"loss": round(loss / count, 4), "agreement": round(same / count, 4)}


class Log:
    """A line of JSON per record, and a bar for whoever watches."""

    def __init__(self, path: Path, model: str, minutes: float, quiet: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.model = model
        self.file = path.open("a", buffering=1, encoding="utf-8")
        columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
        self.bar = Progress(*columns, console=console, disable=quiet)
        self.task = self.bar.add_task(model, total=minutes * 60)

    def __enter__(self) -> Log:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        self.file.close()

    def write(self, **record: Any) -> None:
        self.file.write(json.dumps({"model": self.model, **record}) + "\n")

    def show(self, seconds: float, text: str) -> None:
        self.bar.update(self.task, completed=seconds, description=text)


@dataclass
class Averages:
    """Loss and speed since the last log line."""

    loss: float = 0.0
    tokens: int = 0
    steps: int = 0
    since: float = 0.0

    def add(self, loss: Tensor, tokens: int) -> None:
        self.loss += loss.item()
        self.tokens += tokens
        self.steps += 1

    def record(self) -> dict[str, float]:
        rate = self.tokens / max(1e-9, time.monotonic() - self.since)
        return {"loss": round(self.loss / self.steps, 4), "tokens_per_s": round(rate)}


def train(args: argparse.Namespace) -> None:
    """Train the target, then the draft, each until its time is spent; then export."""
    tokenizer, stream, heldout = prepare(args.state / "data")
    target, draft = Run("target", TARGET, args), Run("draft", DRAFT, args)
    draft.teacher = target.model
    minutes = {"target": args.minutes, "draft": args.draft_minutes}
    with stop_on_signal() as stopped:
        for run in (target, draft):
            run.load()
            if run is draft and run.done.step == 0:
                seed_copying(run.model, torch.from_numpy(stream[: 64 * 256].astype(np.int64)).view(64, 256))
            batches = Batches(stream, run.shape.windows_per_step, run.device)
            with Log(args.state / args.run / "log.jsonl", run.name, minutes[run.name], args.quiet) as log:
                finished = train_loop(run, batches, heldout, log, args, minutes[run.name] * 60, stopped)
            if not finished:
                return
    export(target.model, tokenizer, args.out / "target")
    export(draft.model, tokenizer, args.out / "draft")


def train_loop(
    run: Run,
    batches: Batches,
    heldout: np.ndarray,
    log: Log,
    args: argparse.Namespace,
    budget: float,
    stopped: list[int],
) -> bool:
    """Steps until time is up (true) or a signal came (false)."""
    done = run.done
    log.write(event="start", **asdict(done))
    last = saved = checked = time.monotonic()
    averages = Averages(since=last)
    while done.seconds < budget and not stopped:
        part = done.seconds / budget
        repeats = run.teacher is not None and part < RECIPE.repeat_until
        inputs, labels = batches.at(done.step, repeats)
        averages.add(run.step(inputs, labels, part), inputs.numel())
        now = time.monotonic()
        done.step += 1
        done.tokens += inputs.numel()
        done.seconds += now - last
        last = now
        if done.step % args.log_every == 0:
            record = averages.record()
            log.write(**asdict(done), **record)
            log.show(done.seconds, f"{run.name}  step {done.step}  loss {record['loss']:.3f}")
            averages = Averages(since=now)
        if now - checked > args.eval_seconds:
            log.write(**asdict(done), heldout=heldout_figures(run, heldout))
            checked = time.monotonic()
        if now - saved > args.save_seconds:
            run.save()
            saved = time.monotonic()
    run.save()
    log.write(event="end", **asdict(done), heldout=heldout_figures(run, heldout, rows=32))
    return done.seconds >= budget


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
    """The device asked for; `auto` takes CUDA where there is one."""
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
    settle_tokenizer_config(path / "tokenizer_config.json")
    for file in path.iterdir():
        file.chmod(0o644)


def settle_tokenizer_config(path: Path) -> None:
    """Name things the way that transformers 4 and 5 both read."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("backend", None)
    config["additional_special_tokens"] = config.pop("extra_special_tokens", list(SPECIAL[1:]))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["add_bos_token"] = config["add_eos_token"] = False
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


# --- records beside the models --------------------------------------------------------------


def heldout_prompt(document: Document, node: ast.FunctionDef, tokenizer: Any) -> str | None:
    """Whole lines up to a function's docstring or its first line, 40 to 120 tokens."""
    lines = document.text.splitlines()
    docstring = node.body[0]
    end = docstring.end_lineno or docstring.lineno
    if end - docstring.lineno > 3:
        end = docstring.lineno
    for start in range(node.lineno - 1, max(-1, node.lineno - 25), -1):
        if not lines[start].strip().startswith(("def ", "class ", "@", "import ", "from ")):
            continue
        text = textwrap.dedent("\n".join(lines[start:end])).rstrip()
        count = len(tokenizer.encode(text))
        if 40 <= count <= 120 and parses_so_far(text):
            return text
    return None


def parses_so_far(text: str) -> bool:
    """Whether the text can be the start of a module, once its open docstring is closed."""
    indent = " " * (len(text.splitlines()[-1]) - len(text.splitlines()[-1].lstrip()))
    for ending in ("", '"""', "'''"):
        with contextlib.suppress(SyntaxError):
            ast.parse(f"{text}{ending}\n{indent}pass\n")
            return True
    return False


def heldout_prompts(documents: list[Document], tokenizer: Any, limit: int = 24) -> list[dict[str, str]]:
    """Prompts out of held-out files, library before tests, turn by turn over the files."""
    files = sorted((d for d in documents if d.heldout), key=lambda d: (d.is_test, d.name))
    found: list[tuple[int, bool, dict[str, str]]] = []
    for document in files:
        nodes = [node for node, _ in functions(document)]
        prompts = dict.fromkeys(heldout_prompt(document, node, tokenizer) for node in nodes)
        kept = [prompt for prompt in prompts if prompt][:3]
        found += [
            (turn, document.is_test, {"file": document.name, "prompt": prompt}) for turn, prompt in enumerate(kept)
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
def window_losses(target: Any, draft: Any, stream: np.ndarray, length: int, limit: int) -> dict[str, float]:
    """Losses, greedy agreement and expected sampled acceptance on evenly spread windows."""
    count = min(limit, len(stream) - 1) // length
    sums, total = np.zeros(4), count * length
    for start in np.linspace(0, len(stream) - length - 1, count).astype(int):
        piece = torch.from_numpy(stream[start : start + length + 1].astype(np.int64))
        logits, guesses = target(piece[None, :-1]).logits[0], draft(piece[None, :-1]).logits[0]
        sums[0] += functional.cross_entropy(logits, piece[1:], reduction="sum").item()
        sums[1] += functional.cross_entropy(guesses, piece[1:], reduction="sum").item()
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
        "train": window_losses(target, draft, train_stream, 1024, 100_000),
        "heldout_256": window_losses(target, draft, heldout, 256, 100_000),
        "heldout_1024": window_losses(target, draft, heldout, 1024, args.eval_tokens),
        "heldout_2048": window_losses(target, draft, heldout, 2048, 100_000),
        "acceptance_first_16": acceptance(target, draft, prompts, ahead=4, count=16),
        "acceptance": acceptance(target, draft, prompts, ahead=4, count=64),
    }
    return result


# --- command line ---------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=72.0, help="the target's training time")
    parser.add_argument("--draft-minutes", type=float, default=15.0, help="the draft's training time")
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
    """Prepare, train or evaluate."""
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
