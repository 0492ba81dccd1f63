"""The class that a patched model is swapped to: ``forward`` and ``generate`` encode, fuse and hand over. ``attach`` says why so."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache

from pave.config import PatchConfig
from pave.patching import lora
from pave.patching.branches import with_branches
from pave.patching.checkpoint import save_patch
from pave.patching.fuse import FrameTimes, Fused, fuse, present_videos, read_sides, read_times, zero_of
from pave.patching.lengthen import Lengthening, at_given_positions
from pave.patching.rows import (
    InSameRows,
    Patches,
    Plan,
    Rows,
    Selection,
    check_strength,
    current_rows,
    lora_rows,
    read_selection,
)
from pave.patching.slot import SLOTS, PatchSlot, base_state_dict, without_patches
from pave.tokens import SideTokens
from pave.video_llms import get_interface
from pave.video_llms.encode import PIXELS, EncodedVideo, encode, encoder_outputs, learning_parameters

logger = logging.getLogger(__name__)

SideChannels = Mapping[str, SideTokens | Mapping[str, SideTokens]]
"""Side tokens of every video by channel, or by patch and channel."""


@dataclass(frozen=True)
class _Override:
    """What holds for one model in one thread or task, for the time of a block."""

    strength: float | None = None
    patches: Any = None
    """A selection as a mapping, which None is not."""


_OVERRIDES: ContextVar[Mapping[int, _Override]] = ContextVar("pave_overrides")


@contextlib.contextmanager
def _overridden(owner: Any, **values: Any) -> Iterator[None]:
    overrides = _OVERRIDES.get({})
    token = _OVERRIDES.set({**overrides, id(owner): replace(overrides.get(id(owner), _Override()), **values)})
    try:
        yield
    finally:
        _OVERRIDES.reset(token)


def _override(owner: Any) -> _Override:
    return _OVERRIDES.get({}).get(id(owner), _Override())


class PatchedVideoLLM:
    """What a patched model can do beyond its base. Mixed into the base's own class."""

    _pave_base: type
    pave_strength: float
    pave_enabled_strength: float
    pave_selection: dict[str, Any] | None
    """Which patches act where a call says nothing, by name with strengths; None for all of them."""

    # --- which patches there are, and which act

    @property
    def patch_names(self) -> tuple[str, ...]:
        """Of the attached patches, in the order in which they were attached."""
        return tuple(getattr(self, SLOTS))

    @property
    def patch_configs(self) -> dict[str, PatchConfig]:
        """The config of every attached patch by name."""
        slots: Mapping[str, PatchSlot] = dict(getattr(self, SLOTS).items())
        return {name: slot.config for name, slot in slots.items()}

    @property
    def patch_config(self) -> PatchConfig:
        """The attached patch's config.

        Raises:
            ValueError: if there are several.
        """
        configs = self.patch_configs
        if len(configs) > 1:
            raise ValueError(f"the model carries several patches ({', '.join(configs)}); ask patch_configs for one of them")
        return next(iter(configs.values()))

    def select_patches(self, patches: Selection) -> None:
        """Which patches act where a call says nothing, until this is called again.

        Args:
            patches: a name, a mapping from names to strengths (or pairs of strengths: of the residual and of LoRA), or None for the base.

        Raises:
            ValueError: if a name is unknown or a strength is negative or not finite.
        """
        self.pave_selection = self._as_mapping(patches)

    def patches_selected(self, patches: Selection) -> contextlib.AbstractContextManager[None]:
        """``with model.patches_selected("hearing"):`` as ``select_patches``, in this thread or task only."""
        return _overridden(self, patches=self._as_mapping(patches))

    def _as_mapping(self, patches: Selection) -> dict[str, Any]:
        return {use.name: (use.strength, use.lora_strength) for use in read_selection(patches, self.patch_names)}

    @property
    def patch_strength(self) -> float:
        """Scales what every patch does: 1 as selected, 0 exactly the base. Set it, or use ``patch_scaled`` for one block."""
        override = _override(self).strength
        return self.pave_strength if override is None else override

    @patch_strength.setter
    def patch_strength(self, value: float) -> None:
        self.pave_strength = check_strength(value, "patch_strength")

    def disable_patch(self) -> None:
        """Compute exactly what the base computes, until ``enable_patch``, or until ``patch_strength`` is set."""
        if self.pave_strength:
            self.pave_enabled_strength = self.pave_strength
        self.pave_strength = 0.0

    def enable_patch(self) -> None:
        """Act again at the strength from before ``disable_patch``; an enabled patch stays as it is."""
        if not self.pave_strength:
            self.pave_strength = self.pave_enabled_strength

    def patch_disabled(self) -> contextlib.AbstractContextManager[None]:
        """``with model.patch_disabled():`` computes exactly what the base computes, in this thread or task only."""
        return _overridden(self, strength=0.0)

    def patch_scaled(self, strength: float) -> contextlib.AbstractContextManager[None]:
        """``with model.patch_scaled(0.5):`` scales residuals and LoRA updates, in this thread or task only."""
        return _overridden(self, strength=check_strength(strength, "patch_strength"))

    def plan(self, patches: Patches, num_rows: int) -> Plan:
        """Which patches act on which row of a call, how strongly.

        Args:
            patches: what the call says; None for what ``patches_selected`` or ``select_patches`` say, else all patches as trained.
            num_rows: of the batch.
        """
        names = self.patch_names
        for said in (_override(self).patches, self.pave_selection, dict.fromkeys(names, 1.0)):
            patches = said if patches is None else patches
        return Plan.of(patches, num_rows, names, self.patch_strength)

    # --- calls

    @contextlib.contextmanager
    def patch_call(
        self,
        batch: Mapping[str, Any],
        side_channels: SideChannels | None = None,
        frame_times: FrameTimes | None = None,
        patches: Patches = None,
        vision_features: EncodedVideo | None = None,
    ) -> Iterator[dict[str, Any]]:
        """For code that runs inner modules itself: what ``forward`` does around the base's own.

        Args:
            batch: the arguments of the call by name.
            side_channels: as ``forward`` takes them.
            frame_times: likewise.
            patches: likewise.
            vision_features: likewise.

        Yields:
            The arguments to call ``model.base_model`` with inside the block.
        """
        with _prepared(self, batch, side_channels, frame_times, patches, vision_features) as call:
            yield call.inputs

    def save_pretrained(self, save_directory: Any, *args: Any, state_dict: Any = None, **kwargs: Any) -> Any:
        """Save the *base*, byte for byte as without patches, and each patch beside it under ``pave_patches/<name>``."""
        tensors = self.state_dict() if state_dict is None else state_dict  # type: ignore[attr-defined]
        with_adapters = getattr(self, "_hf_peft_config_loaded", False)  # then transformers saves those adapters, not the base
        kept = without_patches(tensors) if with_adapters else base_state_dict(tensors)
        super().save_pretrained(save_directory, *args, state_dict=kept, **kwargs)  # type: ignore[misc]
        if kwargs.get("is_main_process", True):
            folder = Path(save_directory) / SLOTS
            for name in self.patch_names:
                save_patch(self, folder / name, name=name)  # type: ignore[arg-type]
            logger.info("saved the base to %s and its patches (%s) to %s", save_directory, ", ".join(self.patch_names), folder)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Refuses a state dict without the patches' tensors, which a lenient load would skip in silence."""
        if not any(key.startswith(f"{SLOTS}.") or ".lora_" in key for key in state_dict):
            raise ValueError(
                "load_state_dict: the tensors hold no patch, but the model carries one; resume with PatchTrainer, or use "
                "load_patch on a base without a patch"
            )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)  # type: ignore[misc]

    def set_adapter(self, adapter_name: str | list[str], *args: Any, **kwargs: Any) -> None:
        """PEFT's active adapter among its user's own. A patch's is never active: it would act on every row, and twice.

        Raises:
            ValueError: if the adapter is a patch's.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        ours = [name for name in self.patch_names if lora.adapter_name(name) in names]
        if ours:
            raise ValueError(
                f"set_adapter: {lora.adapter_name(ours[0])!r} is the LoRA of a patch; choose patches by select_patches({ours[0]!r}) or by "
                "patches= in a call"
            )
        super().set_adapter(adapter_name, *args, **kwargs)  # type: ignore[misc]

    def enable_input_require_grads(self) -> None:
        """Called by activation checkpointing. Of the language model's embeddings only: transformers makes those of the vision
        tower require gradients too, and the frozen tower would be computed again and differentiated for nothing."""
        super().enable_input_require_grads()  # type: ignore[misc]
        wanted = self.get_input_embeddings()._forward_hooks  # type: ignore[attr-defined]
        for handle in getattr(self, "_require_grads_hooks", ()):
            if handle.id not in wanted:
                handle.remove()

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = checkpoint, **settings: Any
    ) -> None:
        super()._set_gradient_checkpointing(enable, InSameRows(gradient_checkpointing_func), **settings)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = super().__reduce_ex__(protocol)
        return (_rebuild, (self._pave_base,), *state[2:])


# --- one call ---------------------------------------------------------------------------------------------------------


@dataclass
class _Prepared:
    """The base's own arguments for a call."""

    inputs: dict[str, Any]
    encoded: bool = False
    """Whether they hold encoder outputs in place of pixels."""
    longer: Lengthening | None = None
    idle: list[nn.Parameter] = field(default_factory=list)
    """To be touched at the loss."""


@contextlib.contextmanager
def _prepared(
    model: Any,
    batch: Mapping[str, Any],
    side_channels: SideChannels | None,
    frame_times: FrameTimes | None,
    patches: Patches,
    vision_features: EncodedVideo | None,
) -> Iterator[_Prepared]:
    """Encode, fuse and hand over, inside the rows of the call. Where no patch acts, the base gets what it was given."""
    slots: dict[str, PatchSlot] = dict(getattr(model, SLOTS).items())
    plan: Plan = model.plan(patches, _num_rows(batch))
    times_BF = read_times(frame_times)
    sides = read_sides(slots, side_channels or {}, plan.names(), times_BF)
    vocabulary = _vocabulary(slots, plan)
    _check_vision_features(model, batch, vision_features)
    held = None if side_channels or patches is not None or vision_features is not None else _rows_of_cache(model, batch)
    if held is not None:
        with _under_way(model), lora_rows(held):
            yield _Prepared(dict(batch))
        return
    if not _must_fuse(model, slots, plan, sides):
        _check_video(batch, sides, vision_features or EncodedVideo({}, ""))
        fused = fuse(model, slots, EncodedVideo({}, ""), {}, None, plan, batch)
        fused.outputs = {} if vision_features is None else encoder_outputs(model, vision_features)
        with _under_way(model), lora_rows(Rows(model, fused.lora, vocabulary)):
            yield _handed_over(dict(batch), fused)
        return
    if vision_features is None:
        counts = None if times_BF is None else torch.isfinite(times_BF).sum(dim=1).tolist()
        features = any(slots[name].needs_pre_projector() for name in sides)
        encoded = encode(model, batch, frame_counts=counts, pre_projector=features)
    else:
        encoded = vision_features.to(model.get_input_embeddings().weight.device, vision_features.dtype)
    _check_video(batch, sides, encoded)
    grids = [name for name in plan.names() if slots[name].config.newline == "grid"]
    if grids and (batch.get("mm_encoder_outputs") or {}).get("video") is not None:
        raise ValueError(
            "newline 'grid' needs the video's pixels in the call: pass pixel_values_videos, not mm_encoder_outputs"
        )
    prompt = {name: value for name, value in batch.items() if not name.startswith(PIXELS)}
    fused = fuse(model, slots, encoded, sides, times_BF, plan, prompt)
    with _under_way(model), lora_rows(Rows(model, fused.lora, vocabulary, fused.longer)):
        yield _handed_over(prompt, fused)


# A decoding loop of one's own hands the cache of one call to the next, and the rows with it.


def _keep_rows(output: Any) -> None:
    """Let the cache that a call returns remember its rows."""
    found = (output,) if isinstance(output, Tensor) else output
    found = found if isinstance(found, tuple) else (getattr(output, "past_key_values", None),)
    for cache in found:
        if isinstance(cache, Cache):
            cache.pave_rows = current_rows()  # type: ignore[attr-defined]


def _rows_of_cache(model: Any, batch: Mapping[str, Any]) -> Rows | None:
    """The rows of the call whose cache this one goes on from, unless it brings a video or the patches are disabled."""
    names, strength = model.patch_names, model.patch_strength
    rows: Rows | None = getattr(batch.get("past_key_values"), "pave_rows", None)
    video = any(name.startswith(PIXELS) and value is not None for name, value in batch.items())
    if rows is None or rows.owner is not model or video or strength == 0.0:
        return None
    gone = [name for name, weights in rows.weights.items() if any(weights) and name not in names]
    if gone:
        raise ValueError(f"past_key_values come from a call with the patch {gone[0]!r}, which is not attached any more")
    return rows


_RUNNING: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_LOCK = threading.Lock()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _count(model: nn.Module, by: int) -> None:
    with _LOCK:
        _RUNNING[model] = _RUNNING.get(model, 0) + by


@contextlib.contextmanager
def _under_way(model: nn.Module) -> Iterator[None]:
    _count(model, 1)
    try:
        yield
    finally:
        _count(model, -1)


def calls_under_way(model: nn.Module) -> int:
    """How many calls of a patched model run at present, in all threads."""
    with _LOCK:
        return _RUNNING.get(model, 0)


def _handed_over(prompt: dict[str, Any], fused: Fused) -> _Prepared:
    inputs = prompt if fused.longer is None else fused.longer.arguments
    if fused.outputs:
        inputs = {**inputs, "mm_encoder_outputs": fused.outputs}
    return _Prepared(inputs, bool(fused.outputs), fused.longer, fused.idle)


def _check_vision_features(model: Any, batch: Mapping[str, Any], features: EncodedVideo | None) -> None:
    if features is None:
        return
    if not isinstance(features, EncodedVideo):
        raise ValueError(f"vision_features: expected EncodedVideo, got {type(features).__name__}")
    given = [name for name, value in batch.items() if name.startswith(PIXELS) and value is not None]
    if given:
        raise ValueError(f"vision_features stand in place of pixels, but {given[0]} was given as well; pass one of them")
    trained = learning_parameters(model) if torch.is_grad_enabled() else []
    if trained:
        raise ValueError(
            f"the vision tower is trained (the first parameter that takes gradients is {trained[0]!r}), so its features change and cannot "
            "be stored: freeze it, or pass the video's pixels"
        )


def _num_rows(batch: Mapping[str, Any]) -> int:
    """Of the prompt; of the pixels where a base makes the prompt by itself."""
    for name in ("input_ids", "inputs_embeds", "pixel_values"):
        if batch.get(name) is not None:
            return len(batch[name])
    return 1


def _must_fuse(model: Any, slots: Mapping[str, PatchSlot], plan: Plan, sides: Mapping[str, Any]) -> bool:
    if torch.is_grad_enabled():
        if model.training:
            return True  # every fusion gets a gradient, of zero at least, and nothing is kept of the frozen encoders
        if any(p.requires_grad for name in sides for p in slots[name].parameters()):
            return True
    acting = plan.names()
    return any(any(present_videos(sides.get(name, {}))) or slots[name].config.newline == "grid" for name in acting)


def _check_video(batch: Mapping[str, Any], sides: Mapping[str, Mapping[str, SideTokens]], encoded: EncodedVideo) -> None:
    given = [channel for own in sides.values() for channel in own]
    if encoded.has_videos or not any(any(present_videos(own)) for own in sides.values()):
        return
    if not encoded.video_key and any(name.startswith(PIXELS) and batch[name] is not None for name in batch):
        return  # the base encodes them
    raise ValueError(
        f"side_channels ({', '.join(given)}) were given, but no video was encoded in this call; pass the video's pixels in "
        "the same call, or leave side_channels out"
    )


def _vocabulary(slots: Mapping[str, PatchSlot], plan: Plan) -> list[int | None]:
    """How many token ids each row chooses from, empty where no patch says anything of it."""
    if all(slot.config.vocabulary is None for slot in slots.values()):
        return []
    out: list[int | None] = []
    for row in plan.rows:
        cut = [slots[use.name].config.vocabulary for use in row if use.acts]
        out.append(min((rows for rows in cut if rows is not None), default=None))
    return out


def cut_vocabulary(head: nn.Module, args: tuple[Any, ...], logits: Tensor) -> None:
    """A hook on the output embeddings: -inf for ids that a patch's ``vocabulary`` leaves out, in place.

    The softmax over the rest is then that of a head cut to ``vocabulary`` rows, in the loss and in decoding. Logits keep
    their shape, because the base's own loss flattens them by the vocabulary size of its config.
    """
    rows = current_rows()
    if rows is None or not any(rows.vocabulary) or rows.owner.get_output_embeddings() is not head:  # type: ignore[operator]
        return
    if len(set(rows.vocabulary)) == 1:
        logits[..., rows.vocabulary[0] :] = float("-inf")
        return
    if logits.ndim != 3 or len(logits) % len(rows.vocabulary):
        raise ValueError("rows with and without a patch's vocabulary cannot share this batch: pass them in separate batches")
    copies = len(logits) // len(rows.vocabulary)
    for row, count in enumerate(rows.vocabulary):
        if count is not None:
            logits[row * copies : (row + 1) * copies, ..., count:] = float("-inf")


def _touched(output: Any, idle: list[nn.Parameter]) -> Any:
    """Give fusion modules a part in the graph, with gradient zero, in a batch that has no video to carry it."""
    zero = zero_of(idle)
    if isinstance(output, tuple):  # return_dict=False: the loss comes first where there is one, else the logits
        return (output[0] + zero.to(output[0].device, output[0].dtype), *output[1:])
    for key in ("loss", "logits"):
        value = getattr(output, key, None)
        if value is not None:
            setattr(output, key, value + zero.to(value.device, value.dtype))
    return output


# --- the class --------------------------------------------------------------------------------------------------------


@functools.cache
def patched_class(base: Any) -> type:
    """``base`` with ``PatchedVideoLLM`` before it, under its own name."""
    namespace: dict[str, Any] = {key: getattr(base, key) for key in ("__module__", "__qualname__", "__doc__")}
    namespace.update(_pave_base=base, forward=_forward_method(base), generate=_generate_method(base))
    return type(base.__name__, (PatchedVideoLLM, base), namespace)


def _rebuild(base: type) -> Any:
    cls: Any = patched_class(base)
    return cls.__new__(cls)


def _forward_method(base: Any) -> Any:
    original = base.forward
    signature = inspect.signature(original)
    parameters = list(signature.parameters.values())
    required = [p.name for p in parameters[1:] if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    at = len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    for name in ("branches", "vision_features", "patches", "frame_times", "side_channels"):
        parameters.insert(at, inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None))

    @functools.wraps(original)
    def forward(
        self: Any,
        *args: Any,
        side_channels: Any = None,
        frame_times: Any = None,
        patches: Any = None,
        vision_features: Any = None,
        branches: Any = None,
        **kwargs: Any,
    ) -> Any:
        running = current_rows()
        own = side_channels is None and patches is None and vision_features is None
        if own and running is not None and running.owner is self:
            return original(self, *args, **kwargs)  # a step of generate, or inside patch_call
        batch = dict(signature.bind_partial(self, *args, **kwargs).arguments)
        batch |= batch.pop("kwargs", {})
        del batch["self"]
        if branches is not None:
            batch = with_branches(self, branches, batch)
        with _prepared(self, batch, side_channels, frame_times, patches, vision_features) as call:
            if call.encoded:
                call.inputs = {**dict.fromkeys(required), **call.inputs}  # some ask for pixels by position
            output = original(self, **call.inputs)
            if call.idle and self.training and torch.is_grad_enabled():
                output = _touched(output, call.idle)
            _keep_rows(output)
            return output if call.longer is None else at_given_positions(output, call.longer, batch)

    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    forward.__doc__ = (original.__doc__ or "") + _ARGUMENTS
    return forward


_ARGUMENTS = """
        side_channels (`dict`, *optional*): tokens of each side channel (`SideTokens`, one row per video) by channel, or by patch and
            channel.
        frame_times (array, list or tensor of shape `(videos, frames)`, *optional*): seconds of the sampled frames, NaN-padded.
        patches (*optional*): which patches act, for all rows or one entry a row: a name, a mapping from names to strengths, or None for
            the base. Default: those selected, else all.
        vision_features (`EncodedVideo`, *optional*): what the base made of the videos earlier, in place of their pixels.
        branches (`torch.LongTensor` of shape `(batch, tokens)`, *optional*): 0 where a token is seen by the whole row, else the number
            of the question that it belongs to, -1 at padding; questions do not see each other.
"""


def _generate_method(base: Any) -> Any:
    original = base.generate
    first = list(inspect.signature(original).parameters)[1]
    prompt = "input_ids" if first == "inputs" else first

    @functools.wraps(original)
    def generate(
        self: Any,
        inputs: Any = None,
        *args: Any,
        side_channels: Any = None,
        frame_times: Any = None,
        patches: Any = None,
        vision_features: Any = None,
        **kwargs: Any,
    ) -> Any:
        batch = kwargs if inputs is None else {**kwargs, prompt: inputs}
        with _prepared(self, batch, side_channels, frame_times, patches, vision_features) as call:
            if call.encoded:
                output = get_interface(self.config).generate(self, original, args, call.inputs)
            else:  # a few families have another first argument than the prompt: it is passed on only if given
                output = original(self, *(() if inputs is None else (inputs,)), *args, **kwargs)
            _keep_rows(output)
            if call.longer is None:
                return output
            if isinstance(output, Tensor):
                return call.longer.shrink(output)
            output.sequences = call.longer.shrink(output.sequences)
            return output

    return generate
