"""The engine: requests in, answers out, in batches whose rows may use different patches, strengths and sampling."""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pave.data.answers import parse_choice
from pave.data.collator import PatchCollator
from pave.data.dataset import PatchDataset
from pave.data.media import FrameSampling
from pave.inference.attention import FusionView, view_of, watched
from pave.inference.cache import ByteCache
from pave.inference.generation import evaluation_mode, generate_ids, one_answer_each
from pave.inference.loading import PatchPaths, load_model
from pave.inference.media import MediaReader
from pave.inference.reading import ReadRequest, RequestReader, flat_name, newline_of
from pave.inference.request import SAMPLING_FIELDS, Answer, Request
from pave.inference.sampling import RowSampler
from pave.inference.streaming import OnText, Row, RowTexts
from pave.patching import is_patched, patch_slot

CACHE_BYTES = 2 * 2**30


class Engine:
    """Answers requests with a model as it is at the time of each: patches that are loaded, selected or taken off later are seen.

    It never changes, and any number of threads may use it. What is read of files is kept by their content: encoded videos, which all
    patches, strengths and questions share, and side features.

    Args:
        model: a base, patched or not.
        processor: the base's processor.
        name: what to call the base in messages and records.
        encoders: modules with side encoders of one's own that patches may name.
        cache_bytes: most that is kept of files, in memory. 0 keeps nothing; the videos of a batch are then encoded together.
        sampling: frames to look at where a request does not say.
        media: what reads files, in place of one made of ``encoders`` and ``cache_bytes``.
        dataset: what reads videos and side channels for a model with one patch, in place of both; nothing is kept beside it.

    Example:
        >>> engine = Engine(model, processor)
        >>> engine.answer([Request("a.mp4", "What is heard?"), Request("a.mp4", "What is heard?", patches=None)])
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str | None = None,
        encoders: str | Iterable[str] = (),
        cache_bytes: int = CACHE_BYTES,
        sampling: FrameSampling | None = None,
        media: MediaReader | None = None,
        dataset: PatchDataset | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.name = name or getattr(model.config, "_name_or_path", "") or type(model).__name__
        media = media or MediaReader(ByteCache(cache_bytes), encoders=encoders)
        self.reader = RequestReader(model, processor, media, sampling if dataset is None else dataset.frame_sampling, dataset)
        self._preparing = threading.Lock()
        """Tokenizers, and the vision encoder, serve one thread at a time."""

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path | None = None,
        patches: PatchPaths = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        patch_revision: str | None = None,
        allow_base_mismatch: bool = False,
        **options: Any,
    ) -> Engine:
        """Load a base and, if given, patches.

        Args:
            base: folder or hub id; default, the one that the first patch was trained on, as its own record says.
            patches: folder or hub id, or several by the names they are to have.
            device: "auto" takes an accelerator if there is one; else a torch device.
            dtype: "auto" holds the weights as they are stored; or float32, bfloat16, float16.
            revision: of the base on the hub.
            patch_revision: of the patches on the hub.
            allow_base_mismatch: load patches on another base than their own.
            options: those of the class.

        Raises:
            ValueError: if there is no such base or patch, they do not fit, or the device or dtype does not exist.
        """
        model, processor, loaded, _ = load_model(
            base,
            patches,
            device=device,
            dtype=dtype,
            revision=revision,
            patch_revision=patch_revision,
            allow_base_mismatch=allow_base_mismatch,
        )
        return cls(model, processor, **{"name": loaded, **options})

    def read(self, request: Request, *, pictures: bool = False) -> ReadRequest:
        """Decode what a request is about. It may run in another thread than ``generate``; only side encoders with weights touch the
        accelerator.

        Args:
            request: what is asked.
            pictures: decode frames also where the encoded video is known.

        Raises:
            ValueError: if the model has no such patch or channel, or a file cannot be read (``MediaError``).
        """
        return self.reader.read(request, pictures=pictures)

    def key(self, read: ReadRequest) -> Hashable:
        """Requests of one key may share a batch: their videos have as many frames, and at most one patch adds tokens to their prompts, the
        same in all. Patches, strengths and sampling may differ otherwise."""
        if read.item is None:
            return "text"
        pixels = read.video_key is None and read.item.vision is None
        pre = self.reader.reads_pre_projector() if read.video_key is None else read.video_key.pre_projector
        return len(read.item.times_F), pixels, pre, read.adding

    def generate(
        self,
        reads: Sequence[ReadRequest],
        *,
        on_text: OnText | None = None,
        cancelled: Callable[[int], bool] | None = None,
        **generation: Any,
    ) -> list[Answer]:
        """Answer a batch.

        Args:
            reads: of one ``key``.
            on_text: called with the number of a row and the next piece of its answer, of whole characters; the pieces of a row together
                are its text.
            cancelled: asked at every token whether a row is not wanted any more.
            generation: further arguments of the model's ``generate``, for all rows; what a request says is none of them. With ``num_beams`` rows are not followed, so there
                is no ``on_text``, no cancelling, and no temperature.

        Raises:
            ValueError: if the base refuses the batch (``answer`` then asks one by one), a patch of a row was taken off or replaced
                since it was read, or an argument belongs in the requests.
        """
        generation = _checked(generation)
        if not reads:
            return []
        start = time.monotonic()
        for read in reads:
            self._check_patches(read)
        with evaluation_mode(self.model):  # around both: encoding alone would end it while another thread generates
            with self._preparing:
                reads = [self.reader.encoded(read) for read in reads]
                batch = self._collated(reads)
            samplings = [read.request.sampling for read in reads]
            texts = RowTexts(self.processor.tokenizer, samplings, _end_tokens(self.model, generation), on_text, cancelled)
            rows = self._rows(reads, batch, texts, generation)
        seconds = time.monotonic() - start
        lengths = [int(length) for length in batch["attention_mask"].sum(dim=1)]
        return [_answer(read, row, length, seconds) for read, row, length in zip(reads, rows, lengths, strict=True)]

    def _check_patches(self, read: ReadRequest) -> None:
        now = self.reader.patch_configs()
        gone = [name for name, config in read.configs.items() if now.get(name) != config]
        if gone:
            raise ValueError(
                f"sample {read.request.name!r}: the patch {gone[0]!r} was taken off or replaced after the request was read; read it again"
            )

    def _collated(self, reads: Sequence[ReadRequest]) -> dict[str, Any]:
        channels = {name: channel for read in reads for name, channel in read.channels.items()}
        adding = {name: read.configs[name] for read in reads for name in read.adding}
        added = [flat_name(name, channel) for name, config in adding.items() for channel in config.side_channels]
        newline = newline_of(adding, adding)
        collate = PatchCollator(self.processor, self.model.config, channels, newline=newline, train=False, adding=added)
        items = [read.item for read in reads if read.item is not None]
        if not items:
            return collate.texts([(read.request.name, read.request.turns) for read in reads])
        batch = collate(items, [bool(read.adding) for read in reads])
        nested: dict[str, dict[str, Any]] = {}
        for name, tokens in batch["side_channels"].items():
            patch, channel = name.split(".", 1)
            nested.setdefault(patch, {})[channel] = tokens
        return {**batch, "side_channels": nested}

    def _rows(
        self, reads: Sequence[ReadRequest], batch: Mapping[str, Any], texts: RowTexts, generation: Mapping[str, Any]
    ) -> list[Row]:
        samplings = [read.request.sampling for read in reads]
        options: dict[str, Any] = dict(generation)
        options["max_new_tokens"] = max(sampling.max_new_tokens for sampling in samplings)
        if is_patched(self.model):
            options["patches"] = [dict(read.patches) or None for read in reads]
        if options["num_beams"] > 1:
            texts.check_beams()
            return texts.of_beams(generate_ids(self.model, batch, **options))
        options["stopping_criteria"] = [*options.get("stopping_criteria", ()), texts]
        if any(sampling.temperature for sampling in samplings):
            options["logits_processor"] = [*options.get("logits_processor", ()), RowSampler(samplings)]
        generate_ids(self.model, batch, **options)
        return texts.rows

    def view(self, read: ReadRequest) -> dict[str, FusionView]:
        """What the patches of a request do to its video while the first token of the answer is generated, by PATCH.CHANNEL. Channels that
        are missing, or add tokens of their own, are left out.

        Raises:
            ValueError: as ``generate`` does.
        """
        self._check_patches(read)
        with self._preparing:
            read = self.reader.encoded(read)
            batch = self._collated([read])
        sides = {} if read.item is None else read.item.side
        there = {name: features for name, features in sides.items() if features is not None}
        fusions = {name: patch_slot(self.model, name.split(".")[0]).fusions[name.split(".")[1]] for name in there}
        with watched(fusions) as calls:
            if fusions:
                generate_ids(self.model, batch, max_new_tokens=1, patches=[dict(read.patches)])
        return {name: view_of(call, len(there[name])) for name, call in calls.items()}

    def answer(self, requests: Iterable[Request], *, batch_size: int = 8, **generation: Any) -> list[Answer | ValueError]:
        """Answer any requests, in batches; one that cannot be answered has its error in place of an answer.

        Args:
            requests: what is asked.
            batch_size: most in a batch.
            generation: see ``generate``.

        Raises:
            ValueError: if an argument of ``generation`` belongs in the requests.
        """
        _checked(generation)
        found: dict[int, Answer | ValueError] = {}
        waiting: dict[Hashable, dict[int, ReadRequest]] = {}
        count = 0
        for count, request in enumerate(requests, 1):
            try:
                read = self.read(request)
            except ValueError as error:
                found[count - 1] = error
                continue
            key = self.key(read)
            waiting.setdefault(key, {})[count - 1] = read
            if len(waiting[key]) >= batch_size:
                found |= self._answered(waiting.pop(key), generation)
        for group in waiting.values():
            found |= self._answered(group, generation)
        return [found[number] for number in range(count)]

    def _answered(self, group: Mapping[int, ReadRequest], generation: Mapping[str, Any]) -> dict[int, Answer | ValueError]:
        """A batch that is refused is tried one by one, so that one bad request fails alone."""
        try:
            return dict(zip(group, self.generate(list(group.values()), **generation), strict=True))
        except ValueError as error:
            if len(group) == 1:
                return dict.fromkeys(group, error)
        found: dict[int, Answer | ValueError] = {}
        for number, read in group.items():
            found |= self._answered({number: read}, generation)
        return found

    def stream(self, request: Request) -> Iterator[str]:
        """The answer's text as it comes, in pieces of whole characters. Closing the iterator cancels.

        Raises:
            ValueError: before the first piece, see ``read``.
        """
        return self._pieces(self.read(request))

    def _pieces(self, read: ReadRequest) -> Iterator[str]:
        pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        closed = threading.Event()

        def run() -> None:
            try:
                self.generate([read], on_text=lambda _, piece: pieces.put(piece), cancelled=lambda _: closed.is_set())
                pieces.put(None)
            except BaseException as error:  # raised where the pieces are taken
                pieces.put(error)

        worker = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="pave-stream", daemon=True)
        worker.start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            closed.set()
            worker.join()


def _answer(read: ReadRequest, row: Row, prompt_tokens: int, seconds: float) -> Answer:
    choices, text = read.request.choices, row.text
    found = parse_choice(text, choices) if choices else None
    return Answer(
        text=text,
        frame_times=() if read.item is None else tuple(float(t) for t in read.item.times_F),
        side_channels=read.side_channels,
        seconds=read.seconds + seconds,
        choice=None if found is None else choices[found],
        finish_reason=row.finish_reason or "stop",
        prompt_tokens=prompt_tokens,
        new_tokens=len(row.tokens),
        cached=read.cached,
    )


def _checked(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The further arguments of ``generate``, without any that a request says."""
    said = next((name for name in generation if name in SAMPLING_FIELDS or name == "patches"), None)
    if said is not None:
        raise ValueError(
            f"{said} belongs in {'Request.patches' if said == 'patches' else 'Request.sampling'}: rows may differ in it"
        )
    return one_answer_each(generation)


def _end_tokens(model: Any, generation: Mapping[str, Any]) -> frozenset[int]:
    ends = generation.get("eos_token_id", model.generation_config.eos_token_id)
    return frozenset(() if ends is None else [ends] if isinstance(ends, int) else ends)
